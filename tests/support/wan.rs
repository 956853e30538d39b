//! Writes the synthetic models of the golden `wan`, as diffusers directories and as files of other tools.

use std::fs;
use std::path::Path;

use serde_json::{Map, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::fixtures::{RawGguf, text};
use super::numbers::Format;
use super::sd1::{Tensor, write_tensors};
use super::z_image::{push, tensors};
use super::{Golden, Layout, write_component};

/// Writes the model called `model` into `dir` in the diffusers layout.
pub(crate) fn write_directory(dir: &Path, golden: &Golden, model: &str) {
    let described = golden.at(&format!("/models/{model}"));
    let transformers: Vec<&str> =
        described["transformers"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let looks = golden.at(&format!("/components/{}/config/image_dim", transformers[0])).is_u64();
    let mut parts = vec![("text_encoder", "text_encoder"), ("vae", "vae")];
    parts.extend(["transformer", "transformer_2"].into_iter().zip(transformers));
    if looks {
        parts.push(("image_encoder", "image_encoder"));
    }
    let mut index = Map::new();
    let class = if model.contains("i2v") && model != "ti2v" { "WanImageToVideoPipeline" } else { "WanPipeline" };
    index.insert("_class_name".into(), json!(class));
    index.insert("_diffusers_version".into(), golden.at("/versions/diffusers").clone());
    index.insert("scheduler".into(), json!(["diffusers", "UniPCMultistepScheduler"]));
    index.insert("tokenizer".into(), json!(["transformers", "T5TokenizerFast"]));
    for key in ["boundary_ratio", "expand_timesteps"] {
        if let Some(setting) = described.get(key) {
            index.insert(key.into(), setting.clone());
        }
    }
    for (slot, key) in parts {
        let component = golden.at(&format!("/components/{key}"));
        index.insert(slot.into(), json!([component["library"], component["class"]]));
        write_component(&dir.join(slot), golden, key, &Layout::default());
    }
    copy_tokenizer("t5", &dir.join("tokenizer"));
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    write_json(&dir.join("scheduler/scheduler_config.json"), golden.at("/scheduler"));
    write_json(&dir.join("model_index.json"), &json!(index));
}

/// How a kernel over time lies in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// With its five extents.
    Whole,
    /// With the first two put together.
    Folded,
}

/// The tensors of the transformer `component` with the names of its publisher, behind `prefix`.
pub(crate) fn original(golden: &Golden, component: &str, prefix: &str, kernel: Kernel) -> Vec<Tensor> {
    let mut all = tensors(golden, component);
    for tensor in &mut all {
        tensor.name = format!("{prefix}{}", in_original(&tensor.name));
        if tensor.shape.len() == 5 && kernel == Kernel::Folded {
            let [outputs, inputs, rest @ ..] = &tensor.shape[..] else { unreachable!() };
            tensor.shape = std::iter::once(outputs * inputs).chain(rest.iter().copied()).collect();
        }
    }
    all
}

/// Writes the transformer `component` as one file.
pub(crate) fn write_single(path: &Path, golden: &Golden, component: &str, prefix: &str) {
    write_tensors(path, &original(golden, component, prefix, Kernel::Whole));
}

/// Writes the transformer `component` as ComfyUI-GGUF does.
pub(crate) fn write_gguf(path: &Path, golden: &Golden, component: &str, (format, kernel): (Format, Kernel)) {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"wan"));
    push(&mut file, &original(golden, component, "", kernel), format);
    fs::write(path, file.bytes()).unwrap();
}

/// Writes the text encoder in one file, with the names of the model's publisher, or with those of transformers and the tokenizer.
pub(crate) fn write_umt5(path: &Path, golden: &Golden, is_original: bool) {
    let mut all = tensors(golden, "text_encoder");
    for tensor in all.iter_mut().filter(|_| is_original) {
        let mut name = tensor.name.replace("encoder.block.", "blocks.").replace("encoder.final_layer_norm", "norm");
        for (theirs, ours) in [
            ("shared", "token_embedding"),
            ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
            ("layer.0.SelfAttention", "attn"),
            ("layer.0.layer_norm", "norm1"),
            ("layer.1.layer_norm", "norm2"),
            ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
            ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
            ("layer.1.DenseReluDense.wo", "ffn.fc2"),
        ] {
            name = name.replace(theirs, ours);
        }
        tensor.name = name;
    }
    write_tensors(path, &all);
}

/// The publisher's name of a tensor.
fn in_original(name: &str) -> String {
    let mut name = name.to_owned();
    if let Some(rest) = name.strip_prefix("scale_shift_table") {
        return format!("head.modulation{rest}");
    }
    for (theirs, ours) in [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
        ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
        ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
        ("proj_out", "head.head"),
        ("attn1.", "self_attn."),
        ("attn2.", "cross_attn."),
        ("add_k_proj", "k_img"),
        ("add_v_proj", "v_img"),
        ("norm_added_k", "norm_k_img"),
        ("to_out.0", "o"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        (".norm2.", ".norm3."),
        ("scale_shift_table", "modulation"),
    ] {
        name = name.replace(theirs, ours);
    }
    name
}
