//! Writes the synthetic models of the golden `wan`, as diffusers directories and as files of other tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::fixtures::{F32, RawGguf, STRING, U32, array, string, text, typed};
use super::numbers::Format;
use super::pickle::{Named, older};
use super::sd1::{Tensor, write_safetensors, write_tensors};
use super::z_image::{I32, push, tensors};
use super::{Golden, Layout, golden, write_component};

/// Writes the model called `model` into `dir` in the diffusers layout.
pub(crate) fn write_directory(dir: &Path, golden: &Golden, model: &str) {
    let described = golden.at(&format!("/models/{model}"));
    let transformers: Vec<&str> =
        described["transformers"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let looks =
        golden.get(&format!("/components/{}/config/image_dim", transformers[0])).is_some_and(|dim| dim.is_u64());
    let mut parts = vec![("text_encoder", "text_encoder"), ("vae", "vae")];
    parts.extend(["transformer", "transformer_2"].into_iter().zip(transformers));
    if looks {
        parts.push(("image_encoder", "image_encoder"));
    }
    let mut index = Map::new();
    let class = match model {
        "vace" | "vace_pair" => "WanVACEPipeline",
        _ if model.contains("i2v") && model != "ti2v" => "WanImageToVideoPipeline",
        _ => "WanPipeline",
    };
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

/// The tensors of the text encoder with the names of Wan's publisher.
fn original_umt5(golden: &Golden) -> Vec<Tensor> {
    let mut all = tensors(golden, "text_encoder");
    for tensor in &mut all {
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
    all
}

/// Writes the text encoder in one file, with the names of the model's publisher, or with those of transformers.
pub(crate) fn write_umt5(path: &Path, golden: &Golden, is_original: bool) {
    let all = if is_original { original_umt5(golden) } else { tensors(golden, "text_encoder") };
    write_tensors(path, &all);
}

/// Writes the text encoder as its publisher does: a dictionary that PyTorch saved.
pub(crate) fn write_umt5_pth(path: &Path, golden: &Golden) {
    let all: Vec<Named> =
        original_umt5(golden).into_iter().map(|tensor| (tensor.name, tensor.shape, tensor.values)).collect();
    fs::write(path, older(None, &all)).unwrap();
}

/// Writes the text encoder as llama.cpp does, with its tokenizer.
pub(crate) fn write_umt5_gguf(path: &Path, golden: &Golden, format: Format) {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"t5encoder"));
    push_pieces(&mut file, golden.at("/components/text_encoder/config/vocab_size").as_u64().unwrap() as usize);
    let mut all = tensors(golden, "text_encoder");
    for tensor in &mut all {
        let mut name =
            tensor.name.replace("encoder.block.", "enc.blk.").replace("encoder.final_layer_norm", "enc.output_norm");
        for (theirs, ours) in [
            ("shared", "token_embd"),
            ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
            ("layer.0.SelfAttention.", "attn_"),
            ("layer.0.layer_norm", "attn_norm"),
            ("layer.1.layer_norm", "ffn_norm"),
            ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
            ("layer.1.DenseReluDense.wi_1", "ffn_up"),
            ("layer.1.DenseReluDense.wo", "ffn_down"),
        ] {
            name = name.replace(theirs, ours);
        }
        tensor.name = name;
    }
    push(&mut file, &all, format);
    fs::write(path, file.bytes()).unwrap();
}

/// Pushes the pieces of the miniature's tokenizer, filled up to `rows`.
fn push_pieces(file: &mut RawGguf, rows: usize) {
    let path = golden::directory().join("tokenizers/t5/tokenizer.json");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let (mut tokens, mut scores, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    let mut push = |text: &str, score: f32, kind: i32| {
        tokens.extend(string(text.as_bytes()));
        scores.extend(score.to_le_bytes());
        kinds.extend(kind.to_le_bytes());
    };
    let pieces = json["model"]["vocab"].as_array().unwrap();
    for piece in pieces {
        let name = piece[0].as_str().unwrap();
        let kind = match name {
            "<unk>" => 2,
            "<pad>" | "</s>" => 3,
            _ => 1,
        };
        push(name, piece[1].as_f64().unwrap() as f32, kind);
    }
    for i in pieces.len()..rows {
        push(&format!("[PAD{i}]"), -10000.0, 5);
    }
    let count = rows.max(pieces.len()) as u64;
    file.push("tokenizer.ggml.model", text(b"t5"));
    file.push("tokenizer.ggml.tokens", array(STRING, count, &tokens));
    file.push("tokenizer.ggml.scores", array(F32, count, &scores));
    file.push("tokenizer.ggml.token_type", array(I32, count, &kinds));
    for (key, id) in [("eos", 1), ("padding", 0), ("unknown", 2)] {
        file.push(&format!("tokenizer.ggml.{key}_token_id"), typed(U32, &u32::to_le_bytes(id)));
    }
}

/// Writes `tensors` as ComfyUI's files in 8-bit floats have them, matrices of blocks each divided by a scale or as they are, with the
/// tensors `beside` them. Gives what these numbers stand for.
pub(crate) fn write_fp8(path: &Path, tensors: Vec<Tensor>, is_scaled: bool, beside: &[(&str, Vec<u8>)]) -> Vec<Tensor> {
    let format = Format::F8E4M3;
    let (mut stored, mut stand_for) = (BTreeMap::new(), Vec::new());
    for tensor in tensors {
        let is_matrix = tensor.shape.len() == 2 && tensor.name.contains("block") && tensor.name.ends_with(".weight");
        let most = tensor.values.iter().fold(0f32, |most, value| most.max(value.abs()));
        let scale = if is_scaled { most / 448.0 } else { 1.0 };
        if !is_matrix {
            stored.insert(tensor.name.clone(), (Dtype::F32, tensor.shape.clone(), Format::F32.encode(&tensor.values)));
            stand_for.push(tensor);
            continue;
        }
        let divided: Vec<f32> = tensor.values.iter().map(|value| (value / scale).clamp(-448.0, 448.0)).collect();
        let bytes = format.encode(&divided);
        let values = format.decode(&bytes).into_iter().map(|value| value * scale).collect();
        if is_scaled {
            let name = tensor.name.replace(".weight", ".scale_weight");
            stored.insert(name, (Dtype::F32, vec![1], scale.to_le_bytes().to_vec()));
        }
        stored.insert(tensor.name.clone(), (format.dtype(), tensor.shape.clone(), bytes));
        stand_for.push(Tensor { values, ..tensor });
    }
    if is_scaled {
        stored.insert("scaled_fp8".into(), (format.dtype(), vec![2], vec![0; 2]));
    }
    for (name, bytes) in beside {
        stored.insert((*name).into(), (Dtype::U8, vec![bytes.len()], bytes.clone()));
    }
    let stored = stored.iter().map(|(name, stored)| (name.as_str(), stored.clone())).collect();
    write_safetensors(path, &stored);
    stand_for
}

/// The publisher's name of a tensor.
fn in_original(name: &str) -> String {
    let mut name = name.to_owned();
    if let Some(rest) = name.strip_prefix("scale_shift_table") {
        return format!("head.modulation{rest}");
    }
    if let Some(rest) = name.strip_prefix("proj_out") {
        return format!("head.head{rest}");
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
        ("attn1.", "self_attn."),
        ("attn2.", "cross_attn."),
        ("add_k_proj", "k_img"),
        ("add_v_proj", "v_img"),
        ("norm_added_k", "norm_k_img"),
        ("proj_in", "before_proj"),
        ("proj_out", "after_proj"),
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
