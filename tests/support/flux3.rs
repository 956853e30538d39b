//! Writes the synthetic FLUX.3 of the golden `flux3`, as a directory of diffusers' blocks and as files of other tools.

use std::fs;
use std::path::Path;

use serde_json::{Map, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::fixtures::{RawGguf, text};
use super::numbers::Format;
use super::sd1::{Tensor, write_tensors};
use super::z_image::{push, tensors};
use super::{Golden, Layout, write_component};

/// Writes the model into `dir` as diffusers' blocks are published. Its transformer is the component `transformer` of the golden.
pub(crate) fn write_directory(dir: &Path, golden: &Golden, transformer: &str) {
    let is_distilled = golden.at(&format!("/components/{transformer}/config/flow_map")).as_bool().unwrap();
    let mut index = Map::new();
    let class = if is_distilled { "Flux3DistilledModularPipeline" } else { "Flux3ModularPipeline" };
    index.insert("_class_name".into(), json!(class));
    index.insert("_diffusers_version".into(), golden.at("/versions/diffusers").clone());
    let spec = json!({ "pretrained_model_name_or_path": "somewhere", "revision": null });
    index.insert("guider".into(), json!([null, null, spec]));
    index.insert("tokenizer".into(), json!(["transformers", "Qwen3VLProcessor", spec]));
    for (name, key) in [("text_encoder", "text_encoder"), ("transformer", transformer), ("vae", "vae")] {
        let component = golden.at(&format!("/components/{key}"));
        index.insert(name.into(), json!([component["library"], component["class"], spec]));
        write_component(&dir.join(name), golden, key, &Layout::default());
    }
    copy_tokenizer("qwen", &dir.join("tokenizer"));
    write_json(&dir.join("modular_model_index.json"), &json!(index));
}

/// Names of the transformer's layers in diffusers and in the files of its first publisher.
const LAYERS: [(&str, &str); 18] = [
    ("target_timestep_embedder.linear_1", "ref_time_in.in_layer"),
    ("target_timestep_embedder.linear_2", "ref_time_in.out_layer"),
    ("timestep_embedder.linear_1", "time_in.in_layer"),
    ("timestep_embedder.linear_2", "time_in.out_layer"),
    ("x_embedders", "emb_in"),
    ("context_embedder", "txt_in"),
    (".linear.weight", ".lin.weight"),
    ("norm_out.lin", "final_layer.image.adaLN_modulation.1"),
    ("proj_out", "final_layer.image.linear"),
    ("single_transformer_blocks", "single_blocks"),
    ("attn.to_q", "q_proj"),
    ("attn.to_k", "k_proj"),
    ("attn.to_v", "v_proj"),
    ("attn.to_out.0", "attn_out"),
    ("attn.norm_q.weight", "norm.query_norm.scale"),
    ("attn.norm_k.weight", "norm.key_norm.scale"),
    ("ff.linear_in", "mlp_in"),
    ("ff.linear_out", "mlp_out"),
];

/// The tensors of `transformer` with the names of its first publisher, behind `prefix`.
pub(crate) fn original(golden: &Golden, transformer: &str, prefix: &str) -> Vec<Tensor> {
    let mut found = Vec::new();
    for tensor in tensors(golden, transformer) {
        let mut name = tensor.name.clone();
        for (theirs, ours) in LAYERS {
            name = name.replace(theirs, ours);
        }
        if let Some(modes) = name.strip_prefix("mode_blocks.") {
            name = format!("content_mode_blocks.{modes}");
        }
        let mut one = Tensor { name: format!("{prefix}{name}"), ..tensor };
        if name.starts_with("final_layer.image.adaLN") {
            // Shift before scale.
            let half = one.values.len() / 2;
            one.values.rotate_left(half);
        }
        found.push(one);
    }
    found
}

/// Writes the transformer as one file with the names of its first publisher, behind `prefix`, with what helped its training.
pub(crate) fn write_original(path: &Path, golden: &Golden, transformer: &str, prefix: &str) {
    let mut all = original(golden, transformer, prefix);
    all.push(Tensor { name: format!("{prefix}repa_projectors.0.weight"), shape: vec![2], values: vec![1.0; 2] });
    write_tensors(path, &all);
}

/// Writes the transformer as a GGUF with the label `architecture`.
pub(crate) fn write_gguf(path: &Path, golden: &Golden, transformer: &str, architecture: &str) {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(architecture.as_bytes()));
    push(&mut file, &original(golden, transformer, ""), Format::F32);
    fs::write(path, file.bytes()).unwrap();
}
