//! Writes the synthetic Qwen-Image of the golden `qwen_image`, as a diffusers directory and as files of other tools.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::fixtures::{F32, RawGguf, U32, text, typed};
use super::numbers::Format;
use super::sd1::{Tensor, write_tensors};
use super::z_image::{in_llama, push, push_tokenizer, tensors};
use super::{Golden, Layout, write_component};

/// Writes the model into `dir` in the diffusers layout.
pub(crate) fn write_directory(dir: &Path, golden: &Golden) {
    let mut index = Map::new();
    index.insert("_class_name".into(), json!("QwenImagePipeline"));
    index.insert("_diffusers_version".into(), golden.at("/versions/diffusers").clone());
    index.insert("scheduler".into(), json!(["diffusers", "FlowMatchEulerDiscreteScheduler"]));
    index.insert("tokenizer".into(), json!(["transformers", "Qwen2Tokenizer"]));
    for (key, component) in golden.at("/components").as_object().unwrap() {
        index.insert(key.clone(), json!([component["library"], component["class"]]));
        let shards = (key == "text_encoder").then_some(1 << 20);
        write_component(&dir.join(key), golden, key, &Layout { max_shard_bytes: shards, ..Layout::default() });
    }
    copy_tokenizer("qwen", &dir.join("tokenizer"));
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    write_json(&dir.join("scheduler/scheduler_config.json"), golden.at("/scheduler"));
    write_json(&dir.join("model_index.json"), &json!(index));
}

/// Makes the model in `dir` one of the edits: `class` of diffusers, with the marks of pictures among its words.
pub(crate) fn make_edit(dir: &Path, edits: &Golden, class: &str, zero_cond_t: bool) {
    let change = |path: &str, edit: &dyn Fn(&mut Value)| {
        let path = dir.join(path);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    change("model_index.json", &|index| index["_class_name"] = class.into());
    change("transformer/config.json", &|config| config["zero_cond_t"] = zero_cond_t.into());
    add_words(&dir.join("tokenizer"), edits.list("/vision_tokens"));
}

/// Adds the marks of pictures, `words`, to those of the tokenizer in `dir`.
pub(crate) fn add_words(dir: &Path, words: &[Value]) {
    let path = dir.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.retain(|token| !words.contains(&token["content"]));
    let first = 1 + added.iter().map(|token| token["id"].as_u64().unwrap()).max().unwrap();
    for (i, content) in words.iter().enumerate() {
        let mut token = added[0].clone();
        token["id"] = (first + i as u64).into();
        token["content"] = content.clone();
        added.push(token);
    }
    fs::write(path, tokenizer.to_string()).unwrap();
}

/// The kernel of patches of two frames as llama.cpp has it: one of each.
pub(crate) fn frames(kernel: &Tensor) -> [Tensor; 2] {
    let [width, colours, _, side, _] = kernel.shape[..] else { unreachable!() };
    [(0, "v.patch_embd.weight"), (1, "v.patch_embd.weight.1")].map(|(frame, name)| {
        let planes = kernel.values.chunks_exact(side * side).skip(frame).step_by(2);
        let (shape, values) = (vec![width, colours, side, side], planes.flatten().copied().collect());
        Tensor { name: name.to_owned(), shape, values }
    })
}

/// Writes the vision tower as llama.cpp does, in a file of its own.
pub(crate) fn write_projector(path: &Path, golden: &Golden, format: Format) {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"clip"));
    let mut all = Vec::new();
    for tensor in tensors(golden, "text_encoder") {
        let Some(name) = tensor.name.strip_prefix("model.visual.") else { continue };
        let mut name = name.replace("blocks.", "v.blk.").replace("norm1", "ln1").replace("norm2", "ln2");
        for (theirs, ours) in [
            ("attn.proj", "attn_out"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("merger.ln_q", "v.post_ln"),
            ("merger.mlp", "mm"),
        ] {
            name = name.replace(theirs, ours);
        }
        let parts = |names: &[String], parts: usize| -> Vec<Tensor> {
            let rows = tensor.shape[0] / parts;
            let shape: Vec<usize> = std::iter::once(rows).chain(tensor.shape[1..].iter().copied()).collect();
            let each = tensor.values.len() / parts;
            let values = tensor.values.chunks_exact(each).map(<[f32]>::to_vec);
            names
                .iter()
                .zip(values)
                .map(|(name, values)| Tensor { name: name.clone(), shape: shape.clone(), values })
                .collect()
        };
        if let Some(start) = name.strip_suffix("attn.qkv.weight").or(name.strip_suffix("attn.qkv.bias")) {
            let kind = &name[name.rfind('.').unwrap()..];
            all.extend(parts(&["attn_q", "attn_k", "attn_v"].map(|part| format!("{start}{part}{kind}")), 3));
        } else if name == "patch_embed.proj.weight" {
            all.extend(frames(&tensor));
        } else {
            all.extend(parts(&[name], 1));
        }
    }
    push(&mut file, &all, format);
    fs::write(path, file.bytes()).unwrap();
}

/// Writes the transformer as one file, with names behind `prefix`.
pub(crate) fn write_single(path: &Path, golden: &Golden, prefix: &str) {
    let mut named = tensors(golden, "transformer");
    for tensor in &mut named {
        tensor.name.insert_str(0, prefix);
    }
    write_tensors(path, &named);
}

/// The same with all that goes into the residual streams `factor` times as large: norms take that back, and so does what else reads
/// them.
pub(crate) fn write_loud(path: &Path, golden: &Golden, factor: f32) {
    let mut all = tensors(golden, "transformer");
    for tensor in &mut all {
        let of_streams = ["to_out.0.", "to_add_out.", "mlp.net.2.", "img_in.", "txt_in."];
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

/// Writes the language model as llama.cpp does, with its tokenizer.
pub(crate) fn write_llama(path: &Path, golden: &Golden, format: Format) {
    let config = golden.at("/components/text_encoder/config/text_config");
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"qwen2vl"));
    for (key, setting) in [
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
    ] {
        let number = config[setting].as_u64().unwrap() as u32;
        file.push(&format!("qwen2vl.{key}"), typed(U32, &number.to_le_bytes()));
    }
    file.push("qwen2vl.rope.freq_base", typed(F32, &1e6f32.to_le_bytes()));
    file.push("qwen2vl.attention.layer_norm_rms_epsilon", typed(F32, &1e-5f32.to_le_bytes()));
    push_tokenizer(&mut file, &[]);
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

/// Writes the autoencoder with the names of its first publisher: as it is, or with kernels cut to their last planes.
pub(crate) fn write_original_vae(path: &Path, golden: &Golden, is_cut: bool) {
    let mut all = tensors(golden, "vae");
    for tensor in &mut all {
        tensor.name = in_original(&tensor.name);
        if is_cut && tensor.shape.len() == 5 {
            let [outputs, inputs, planes, h, w] = tensor.shape[..] else { unreachable!() };
            let kernels = tensor.values.chunks_exact(planes * h * w);
            tensor.values = kernels.flat_map(|kernel| kernel[(planes - 1) * h * w..].to_vec()).collect();
            tensor.shape = vec![outputs, inputs, h, w];
        }
    }
    all.retain(|tensor| !is_cut || !tensor.name.contains("time_conv"));
    write_tensors(path, &all);
}

/// The name of its first publisher. The model has one residual block on each level, and two in the decoder.
fn in_original(name: &str) -> String {
    let mut name = name.to_owned();
    if let Some(rest) = name.strip_prefix("decoder.up_blocks.") {
        let parts: Vec<&str> = rest.splitn(4, '.').collect();
        let level: usize = parts[0].parse().unwrap();
        let block = if parts[1] == "resnets" { parts[2].parse::<usize>().unwrap() } else { 2 };
        name = format!("decoder.upsamples.{}.{}", 3 * level + block, parts[3]);
    }
    for (theirs, ours) in [
        ("encoder.down_blocks.", "encoder.downsamples."),
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
