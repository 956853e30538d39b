//! Writes the synthetic Z-Image of the golden `z_image`, as a diffusers directory and as files of other tools.

use std::fs;
use std::path::Path;

use serde_json::{Map, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::fixtures::{F32, RawGguf, RawTensor, STRING, U32, array, string, text, typed};
use super::numbers::Format;
use super::sd1::{Tensor, write_tensors};
use super::synth::weights;
use super::{Golden, Layout, golden, write_component};

/// GGUF's number for a list element of 32 bits with a sign.
pub(crate) const I32: u32 = 5;

/// Writes the model into `dir` in the diffusers layout.
pub(crate) fn write_directory(dir: &Path, golden: &Golden) {
    let mut index = Map::new();
    index.insert("_class_name".into(), json!("ZImagePipeline"));
    index.insert("_diffusers_version".into(), golden.at("/versions/diffusers").clone());
    index.insert("scheduler".into(), json!(["diffusers", "FlowMatchEulerDiscreteScheduler"]));
    index.insert("tokenizer".into(), json!(["transformers", "Qwen2Tokenizer"]));
    for (key, component) in golden.at("/components").as_object().unwrap() {
        index.insert(key.clone(), json!([component["library"], component["class"]]));
        // The text encoder is in several files.
        let shards = (key == "text_encoder").then_some(1 << 20);
        let layout = Layout { max_shard_bytes: shards, ..Layout::default() };
        write_component(&dir.join(key), golden, key, &layout);
    }
    copy_tokenizer("qwen", &dir.join("tokenizer"));
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    write_json(&dir.join("scheduler/scheduler_config.json"), golden.at("/scheduler"));
    write_json(&dir.join("model_index.json"), &json!(index));
}

/// The tensors of a component, as PyTorch has them.
pub(crate) fn tensors(golden: &Golden, component: &str) -> Vec<Tensor> {
    weights(golden, component)
        .into_iter()
        .map(|weight| Tensor { name: weight.name.clone(), shape: weight.shape.clone(), values: weight.values() })
        .collect()
}

/// Writes the transformer as one file with the names of its first publisher, behind `prefix`.
pub(crate) fn write_original(path: &Path, golden: &Golden, prefix: &str) {
    write_tensors(path, &original(golden, prefix));
}

/// The same with what leaves attention and feed-forward layers `factor` times as large. The norms behind them take that back.
pub(crate) fn write_loud(path: &Path, golden: &Golden, factor: f32) {
    let mut all = original(golden, "");
    for tensor in &mut all {
        if tensor.name.ends_with("attention.out.weight") || tensor.name.ends_with("feed_forward.w2.weight") {
            tensor.values.iter_mut().for_each(|value| *value *= factor);
        }
    }
    write_tensors(path, &all);
}

/// The tensors of the transformer with the names of its first publisher, behind `prefix`.
pub(crate) fn original(golden: &Golden, prefix: &str) -> Vec<Tensor> {
    let mut found = Vec::new();
    let all = tensors(golden, "transformer");
    for tensor in &all {
        let name =
            tensor.name.replace("all_x_embedder.2-1", "x_embedder").replace("all_final_layer.2-1", "final_layer");
        let name = name.replace("attention.to_out.0", "attention.out");
        let name = name.replace("attention.norm_q", "attention.q_norm").replace("attention.norm_k", "attention.k_norm");
        let mut one = Tensor { name: format!("{prefix}{name}"), ..tensor.clone() };
        if name.contains("attention.to_k") || name.contains("attention.to_v") {
            continue;
        }
        if name.contains("attention.to_q") {
            one.name = one.name.replace("attention.to_q", "attention.qkv");
            for other in ["to_k", "to_v"] {
                let name = tensor.name.replace("to_q", other);
                one.values.extend(&all.iter().find(|tensor| tensor.name == name).unwrap().values);
            }
            one.shape[0] *= 3;
        }
        found.push(one);
    }
    found
}

/// Writes the transformer as ComfyUI-GGUF does.
pub(crate) fn write_gguf(path: &Path, golden: &Golden, format: Format) {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"lumina2"));
    push(&mut file, &original(golden, ""), format);
    fs::write(path, file.bytes()).unwrap();
}

/// Writes the language model as llama.cpp does, with its tokenizer.
pub(crate) fn write_llama(path: &Path, golden: &Golden, format: Format) {
    let config = golden.at("/components/text_encoder/config");
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"qwen3"));
    for (key, setting) in [
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
    ] {
        let number = config[setting].as_u64().unwrap() as u32;
        file.push(&format!("qwen3.{key}"), typed(U32, &number.to_le_bytes()));
    }
    file.push("qwen3.rope.freq_base", typed(F32, &1e6f32.to_le_bytes()));
    file.push("qwen3.attention.layer_norm_rms_epsilon", typed(F32, &1e-6f32.to_le_bytes()));
    push_tokenizer(&mut file, &[]);
    let mut all = tensors(golden, "text_encoder");
    for tensor in &mut all {
        tensor.name = in_llama(&tensor.name);
    }
    push(&mut file, &all, format);
    fs::write(path, file.bytes()).unwrap();
}

/// llama.cpp's name of a weight.
pub(crate) fn in_llama(name: &str) -> String {
    let mut name = name.strip_prefix("model.").unwrap_or(name).replace("layers.", "blk.");
    for (theirs, ours) in [
        ("embed_tokens", "token_embd"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(theirs, ours);
    }
    if name == "norm.weight" { "output_norm.weight".into() } else { name }
}

/// The metadata of the tokenizer, with `words` behind its own.
pub(crate) fn push_tokenizer(file: &mut RawGguf, words: &[&str]) {
    let path = golden::directory().join("tokenizers/qwen/tokenizer.json");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut tokens: Vec<(u64, String, i32)> = Vec::new();
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens.push((id.as_u64().unwrap(), token.clone(), 1));
    }
    for token in json["added_tokens"].as_array().unwrap() {
        let kind = if token["special"].as_bool().unwrap() { 3 } else { 4 };
        tokens.push((token["id"].as_u64().unwrap(), token["content"].as_str().unwrap().to_owned(), kind));
    }
    tokens.sort();
    tokens.retain(|(_, token, _)| !words.contains(&token.as_str()));
    let first = 1 + tokens.last().map_or(0, |(id, ..)| *id);
    tokens.extend((first..).zip(words).map(|(id, word)| (id, (*word).to_owned(), 3)));
    // The table has more rows.
    while tokens.len() < 440 {
        tokens.push((tokens.len() as u64, format!("[PAD{}]", tokens.len()), 5));
    }
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    let strings = |all: &mut dyn Iterator<Item = &str>| all.flat_map(|one| string(one.as_bytes())).collect::<Vec<u8>>();
    let count = tokens.len() as u64;
    file.push("tokenizer.ggml.model", text(b"gpt2"));
    file.push("tokenizer.ggml.pre", text(b"qwen2"));
    let texts = strings(&mut tokens.iter().map(|(_, token, _)| token.as_str()));
    file.push("tokenizer.ggml.tokens", array(STRING, count, &texts));
    let kinds: Vec<u8> = tokens.iter().flat_map(|(_, _, kind)| kind.to_le_bytes()).collect();
    file.push("tokenizer.ggml.token_type", array(I32, count, &kinds));
    let texts = strings(&mut merges.iter().map(String::as_str));
    file.push("tokenizer.ggml.merges", array(STRING, merges.len() as u64, &texts));
}

/// Adds `tensors` in `format`, as far as they have more than one extent and its blocks divide their rows.
pub(crate) fn push(file: &mut RawGguf, tensors: &[Tensor], format: Format) {
    for tensor in tensors {
        let dims: Vec<u64> = tensor.shape.iter().rev().map(|&extent| extent as u64).collect();
        let fits = dims.len() > 1 && dims[0].is_multiple_of(format.block() as u64);
        let format = if fits { format } else { Format::F32 };
        file.tensors.push(RawTensor::new(&tensor.name, &dims, format.ggml_id(), file.data.len() as u64));
        file.data.extend(format.encode(&tensor.values));
        file.data.resize(file.data.len().next_multiple_of(file.alignment), 0);
    }
}
