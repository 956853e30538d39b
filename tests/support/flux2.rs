//! Writes the synthetic FLUX.2 of the goldens `flux2_*`, as a diffusers directory and as files of other tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::fixtures::{RawGguf, text};
use super::numbers::Format;
use super::sd1::{Tensor, write_safetensors, write_tensors};
use super::z_image::{push, tensors};
use super::{Golden, Layout, write_component};

/// Writes the model into `dir` in the diffusers layout. Its autoencoder is the component `vae` of the golden.
pub(crate) fn write_directory(dir: &Path, golden: &Golden, class: &str, vae: &str) {
    let mut index = Map::new();
    index.insert("_class_name".into(), json!(class));
    index.insert("_diffusers_version".into(), golden.at("/versions/diffusers").clone());
    index.insert("scheduler".into(), json!(["diffusers", "FlowMatchEulerDiscreteScheduler"]));
    index.insert("tokenizer".into(), json!(["transformers", "Qwen2Tokenizer"]));
    for (name, key) in [("text_encoder", "text_encoder"), ("transformer", "transformer"), ("vae", vae)] {
        let component = golden.at(&format!("/components/{key}"));
        index.insert(name.into(), json!([component["library"], component["class"]]));
        write_component(&dir.join(name), golden, key, &Layout::default());
    }
    let tokenizer = golden.get("/tokenizer").and_then(|name| name.as_str()).unwrap_or("qwen");
    copy_tokenizer(tokenizer, &dir.join("tokenizer"));
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    write_json(&dir.join("scheduler/scheduler_config.json"), golden.at("/scheduler"));
    write_json(&dir.join("model_index.json"), &json!(index));
}

/// Says in the model in `dir` whether it is distilled.
pub(crate) fn set_distilled(dir: &Path, distilled: bool) {
    let path = dir.join("model_index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["is_distilled"] = distilled.into();
    write_json(&path, &index);
}

/// Names of the transformer's layers in diffusers and in the files of its first publisher.
const LAYERS: [(&str, &str); 24] = [
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("_modulation_img.linear", "_modulation_img.lin"),
    ("_modulation_txt.linear", "_modulation_txt.lin"),
    ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
    ("attn.to_qkv_mlp_proj", "linear1"),
    ("attn.to_out.0", "img_attn.proj"),
    ("attn.to_add_out", "txt_attn.proj"),
    ("attn.to_out", "linear2"),
    ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    ("ff.linear_in", "img_mlp.0"),
    ("ff.linear_out", "img_mlp.2"),
    ("ff_context.linear_in", "txt_mlp.0"),
    ("ff_context.linear_out", "txt_mlp.2"),
    ("single_transformer_blocks", "single_blocks"),
    ("transformer_blocks", "double_blocks"),
    ("attn.to_q", "img_attn.qkv"),
];

/// The tensors of the transformer with the names of its first publisher, behind `prefix`.
pub(crate) fn original(golden: &Golden, prefix: &str) -> Vec<Tensor> {
    let (mut found, all) = (Vec::new(), tensors(golden, "transformer"));
    for tensor in &all {
        let is_double = tensor.name.starts_with("transformer_blocks.");
        let attention = if is_double { "img_attn.norm" } else { "norm" };
        let mut name = tensor.name.clone();
        for (theirs, ours) in LAYERS {
            name = name.replace(theirs, ours);
        }
        name = name.replace("attn.add_q_proj", "txt_attn.qkv");
        name = name.replace("attn.norm_q.weight", &format!("{attention}.query_norm.scale"));
        name = name.replace("attn.norm_k.weight", &format!("{attention}.key_norm.scale"));
        if ["attn.to_k.", "attn.to_v.", "attn.add_k_proj.", "attn.add_v_proj."].iter().any(|part| name.contains(part)) {
            continue;
        }
        let mut one = Tensor { name: format!("{prefix}{name}"), ..tensor.clone() };
        for (first, others) in [("to_q", ["to_k", "to_v"]), ("add_q_proj", ["add_k_proj", "add_v_proj"])] {
            let first = format!("attn.{first}.");
            for other in others.iter().filter(|_| tensor.name.contains(&first)) {
                let name = tensor.name.replace(&first, &format!("attn.{other}."));
                one.values.extend(&all.iter().find(|tensor| tensor.name == name).unwrap().values);
                one.shape[0] += tensor.shape[0];
            }
        }
        if name.starts_with("final_layer.adaLN_modulation") {
            // Shift before scale.
            let half = one.values.len() / 2;
            one.values.rotate_left(half);
        }
        found.push(one);
    }
    found
}

/// Writes the transformer as one file with the names of its first publisher, behind `prefix`.
pub(crate) fn write_original(path: &Path, golden: &Golden, prefix: &str) {
    write_tensors(path, &original(golden, prefix));
}

/// Writes the transformer as ComfyUI-GGUF does, with the label `architecture`.
pub(crate) fn write_gguf(path: &Path, golden: &Golden, architecture: &str, format: Format) {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(architecture.as_bytes()));
    push(&mut file, &original(golden, ""), format);
    fs::write(path, file.bytes()).unwrap();
}

/// Writes the autoencoder `key` with the names of its first publisher.
pub(crate) fn write_vae(path: &Path, golden: &Golden, key: &str) {
    let mut all = tensors(golden, key);
    for tensor in &mut all {
        tensor.name = in_original(&tensor.name);
        // There, matrices of attention are convolutions of one pixel.
        if tensor.name.contains("attn_1.") && tensor.shape.len() == 2 {
            tensor.shape.extend([1, 1]);
        }
    }
    let mut stored = BTreeMap::new();
    for tensor in &all {
        stored.insert(tensor.name.as_str(), (Dtype::F32, tensor.shape.clone(), Format::F32.encode(&tensor.values)));
    }
    if stored.contains_key("bn.running_mean") {
        // What training counted.
        stored.insert("bn.num_batches_tracked", (Dtype::I64, Vec::new(), 7i64.to_le_bytes().to_vec()));
    }
    write_safetensors(path, &stored);
}

/// The name of a weight of the autoencoder, of four levels, in the files of its first publisher.
fn in_original(name: &str) -> String {
    let mut name = name.to_owned();
    for (theirs, ours) in [
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("resnets.", "block."),
        ("down_blocks.", "down."),
    ] {
        name = name.replace(theirs, ours);
    }
    for level in 0..4 {
        name = name.replace(&format!("up_blocks.{level}."), &format!("up.{}.", 3 - level));
    }
    match name.split_once("quant_conv") {
        Some(("", leaf)) => format!("encoder.quant_conv{leaf}"),
        Some((_, leaf)) => format!("decoder.post_quant_conv{leaf}"),
        None => name,
    }
}
