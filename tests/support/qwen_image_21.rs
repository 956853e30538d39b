//! Writes the synthetic Qwen-Image 2.1 of the golden `qwen_image_21`, as a diffusers directory and as files of other tools.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::fixtures::{F32, RawGguf, U32, text, typed};
use super::numbers::Format;
use super::qwen_image::{add_words, frames};
use super::sd1::{Tensor, write_tensors};
use super::z_image::{in_llama, push, push_tokenizer, tensors};
use super::{Golden, Layout, write_component};

/// What stands around a picture in a prompt, and in its place.
const SEEN: [&str; 3] = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"];

/// Writes the model into `dir` in the diffusers layout.
pub(crate) fn write_directory(dir: &Path, golden: &Golden) {
    let mut index = Map::new();
    index.insert("_class_name".into(), json!("QwenImage21Pipeline"));
    index.insert("_diffusers_version".into(), golden.at("/versions/diffusers").clone());
    index.insert("scheduler".into(), json!(["diffusers", "FlowMatchEulerDiscreteScheduler"]));
    index.insert("processor".into(), json!(["transformers", "Qwen3VLProcessor"]));
    index.insert("sample_sigmas".into(), Value::Null);
    for (key, component) in golden.at("/components").as_object().unwrap() {
        index.insert(key.clone(), json!([component["library"], component["class"]]));
        let shards = (key == "text_encoder").then_some(1 << 20);
        write_component(&dir.join(key), golden, key, &Layout { max_shard_bytes: shards, ..Layout::default() });
    }
    copy_tokenizer("qwen", &dir.join("processor"));
    add_words(&dir.join("processor"), &SEEN.map(Value::from));
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    write_json(&dir.join("scheduler/scheduler_config.json"), golden.at("/scheduler"));
    write_json(&dir.join("model_index.json"), &json!(index));
}

/// Gives the model in `dir` the text encoder of `edits`, whose vision tower is larger.
pub(crate) fn give_sight(dir: &Path, edits: &Golden) {
    let key = "text_encoder";
    fs::remove_dir_all(dir.join(key)).unwrap();
    write_component(&dir.join(key), edits, key, &Layout::default());
}

/// Writes the vision tower of `edits` as llama.cpp does, in a file of its own.
pub(crate) fn write_projector(path: &Path, edits: &Golden, format: Format) {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"clip"));
    let mut all = Vec::new();
    for tensor in tensors(edits, "text_encoder") {
        let Some(name) = tensor.name.strip_prefix("model.visual.") else { continue };
        if name == "patch_embed.proj.weight" {
            all.extend(frames(&tensor));
            continue;
        }
        let mut name = name.to_owned();
        for (theirs, ours) in [
            ("merger.linear_fc1", "mm.0"),
            ("merger.linear_fc2", "mm.2"),
            ("merger.norm", "v.post_ln"),
            ("deepstack_merger_list.0", "v.deepstack.5"),
            ("deepstack_merger_list.1", "v.deepstack.11"),
            ("deepstack_merger_list.2", "v.deepstack.17"),
            ("mlp.linear_fc1", "ffn_up"),
            ("mlp.linear_fc2", "ffn_down"),
            ("linear_fc", "fc"),
            ("attn.qkv", "attn_qkv"),
            ("attn.proj", "attn_out"),
            ("norm1", "ln1"),
            ("norm2", "ln2"),
            ("pos_embed", "v.position_embd"),
            ("patch_embed.proj", "v.patch_embd"),
        ] {
            name = name.replace(theirs, ours);
        }
        let name = if name.starts_with("blocks.") { name.replacen("blocks.", "v.blk.", 1) } else { name };
        all.push(Tensor { name, ..tensor });
    }
    push(&mut file, &all, format);
    fs::write(path, file.bytes()).unwrap();
}

/// Gives the model in `dir` the noise levels `sigmas`, and the schedule that goes with Turbo's.
pub(crate) fn make_turbo(dir: &Path, golden: &Golden, sigmas: &Value) {
    let path = dir.join("model_index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["sample_sigmas"] = sigmas.clone();
    write_json(&path, &index);
    write_json(&dir.join("scheduler/scheduler_config.json"), golden.at("/turbo_scheduler"));
}

/// Writes the transformer as ComfyUI has it: one file, with names behind `prefix`, and two matrices of each block in one.
pub(crate) fn write_single(path: &Path, golden: &Golden, prefix: &str) {
    let all = tensors(golden, "transformer");
    let mut found = Vec::new();
    for tensor in &all {
        let mut one = Tensor { name: format!("{prefix}{}", tensor.name), ..tensor.clone() };
        if tensor.name.contains("img_mlp.proj.") {
            continue;
        }
        if tensor.name.contains("img_mlp.gate_layer.") {
            one.name = one.name.replace("gate_layer", "gate_up");
            let up = tensor.name.replace("gate_layer", "proj");
            one.values.extend(&all.iter().find(|tensor| tensor.name == up).unwrap().values);
            one.shape[0] *= 2;
        }
        found.push(one);
    }
    write_tensors(path, &found);
}

/// Writes the transformer with all that goes into the residual streams `factor` times as large: norms take that back.
pub(crate) fn write_loud(path: &Path, golden: &Golden, factor: f32) {
    let mut all = tensors(golden, "transformer");
    for tensor in &mut all {
        let of_streams = ["to_out.0.", "img_mlp.out.", "img_in.", "txt_in.out_layer."];
        if of_streams.iter().any(|part| tensor.name.contains(part)) {
            tensor.values.iter_mut().for_each(|value| *value *= factor);
        }
    }
    write_tensors(path, &all);
}

/// Writes the transformer as ComfyUI-GGUF does.
pub(crate) fn write_gguf(path: &Path, golden: &Golden, format: Format) {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"qwen_image"));
    push(&mut file, &tensors(golden, "transformer"), format);
    fs::write(path, file.bytes()).unwrap();
}

/// The tensors of the text encoder, of what sees as well if `seeing`, with ComfyUI's names.
pub(crate) fn write_reader(path: &Path, golden: &Golden, seeing: bool) {
    let mut all = tensors(golden, "text_encoder");
    all.retain(|tensor| seeing || !tensor.name.starts_with("model.visual."));
    for tensor in &mut all {
        tensor.name = tensor.name.replace("model.language_model.", "model.").replace("model.visual.", "visual.");
    }
    write_tensors(path, &all);
}

/// Writes the language model as llama.cpp does, with its tokenizer.
pub(crate) fn write_llama(path: &Path, golden: &Golden, format: Format) {
    let config = golden.at("/components/text_encoder/config/text_config");
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"qwen3vl"));
    for (key, setting) in [
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
    ] {
        let number = config[setting].as_u64().unwrap() as u32;
        file.push(&format!("qwen3vl.{key}"), typed(U32, &number.to_le_bytes()));
    }
    file.push("qwen3vl.rope.freq_base", typed(F32, &5e6f32.to_le_bytes()));
    file.push("qwen3vl.attention.layer_norm_rms_epsilon", typed(F32, &1e-6f32.to_le_bytes()));
    push_tokenizer(&mut file, &SEEN);
    let mut language_model = Vec::new();
    for tensor in tensors(golden, "text_encoder") {
        if tensor.name.starts_with("model.visual.") {
            continue;
        }
        let name = tensor.name.strip_prefix("model.language_model.").unwrap_or(&tensor.name);
        let name = if name == "lm_head.weight" { "output.weight".to_owned() } else { in_llama(name) };
        language_model.push(Tensor { name, ..tensor });
    }
    push(&mut file, &language_model, format);
    fs::write(path, file.bytes()).unwrap();
}

/// Writes the autoencoder with the names of its first publisher, whose kernels have one plane.
pub(crate) fn write_original_vae(path: &Path, golden: &Golden) {
    let mut all = tensors(golden, "vae");
    for tensor in &mut all {
        tensor.name = in_original(&tensor.name);
        let is_flat = ["resample.1.", "to_qkv.", "middle.1.proj."].iter().any(|part| tensor.name.contains(part));
        if let ([outputs, inputs, h, w], false) = (&tensor.shape[..], is_flat) {
            tensor.shape = vec![*outputs, *inputs, 1, *h, *w];
        }
    }
    write_tensors(path, &all);
}

/// The name of its first publisher. The model has one residual block on each level, and two in the decoder.
fn in_original(name: &str) -> String {
    let mut name = name.to_owned();
    for (theirs, ours, blocks) in
        [("encoder.down_blocks", "encoder.downsamples", 1), ("decoder.up_blocks", "decoder.upsamples", 2)]
    {
        let Some(rest) = name.strip_prefix(&format!("{theirs}.")) else { continue };
        let (level, rest) = rest.split_once('.').unwrap();
        let kind = ours.rsplit_once('.').unwrap().1;
        let (block, rest) = match rest.strip_prefix("resnets.") {
            Some(rest) => rest.split_once('.').map(|(block, rest)| (block.to_owned(), rest)).unwrap(),
            None => (blocks.to_string(), rest.split_once('.').unwrap().1),
        };
        name = format!("{ours}.{level}.{kind}.{block}.{rest}");
    }
    for (theirs, ours) in [
        ("mid_block.resnets.0.", "middle.0."),
        ("mid_block.attentions.0.", "middle.1."),
        ("mid_block.resnets.1.", "middle.2."),
        (".norm1.", ".residual.0."),
        (".conv1.", ".residual.2."),
        (".norm2.", ".residual.3."),
        (".conv2.", ".residual.6."),
        (".conv_shortcut.", ".shortcut."),
        (".conv_in.", ".conv1."),
        (".norm_out.", ".head.0."),
        (".conv_out.", ".head.2."),
        ("post_quant_conv.", "conv2."),
        ("quant_conv.", "conv1."),
    ] {
        name = name.replace(theirs, ours);
    }
    name
}
