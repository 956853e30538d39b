//! Writes the synthetic Stable Diffusion of the golden `sd1`, `sd2` or `sdxl`, as a diffusers directory and as files of other tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Map, Value, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::fixtures::{RawGguf, RawTensor, array, text};
use super::numbers::Format;
use super::synth::weights;
use super::{Golden, Layout, write_component};

/// GGUF's number for a list element of 32 bits with a sign.
const I32: u32 = 5;

/// Residual blocks of a level on the way down.
const LAYERS: usize = 2;
/// Levels of the autoencoder.
const VAE_LEVELS: usize = 4;

/// Writes the model into `dir` in the diffusers layout, with this scheduler_config.json.
pub(crate) fn write_directory(dir: &Path, golden: &Golden, scheduler: &Value) {
    let mut index = Map::new();
    let is_xl = golden.get("/components/text_encoder_2").is_some();
    let class = if is_xl { "StableDiffusionXLPipeline" } else { "StableDiffusionPipeline" };
    let class = golden.get("/class").cloned().unwrap_or(json!(class));
    index.insert("_class_name".into(), class);
    index.insert("_diffusers_version".into(), golden.at("/versions/diffusers").clone());
    index.insert("feature_extractor".into(), json!([null, null]));
    index.insert("safety_checker".into(), json!([null, null]));
    index.insert("requires_safety_checker".into(), json!(false));
    index.insert("scheduler".into(), json!(["diffusers", scheduler["_class_name"]]));
    index.insert("tokenizer".into(), json!(["transformers", "CLIPTokenizer"]));
    for (key, component) in golden.at("/components").as_object().unwrap() {
        index.insert(key.clone(), json!([component["library"], component["class"]]));
        write_component(&dir.join(key), golden, key, &Layout::default());
    }
    write_tokenizer(&dir.join("tokenizer"), golden.get("/pad"));
    if is_xl {
        index.insert("tokenizer_2".into(), json!(["transformers", "CLIPTokenizer"]));
        write_tokenizer(&dir.join("tokenizer_2"), golden.get("/pad_2"));
    }
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    write_json(&dir.join("scheduler/scheduler_config.json"), scheduler);
    write_json(&dir.join("model_index.json"), &Value::Object(index));
}

/// Writes CLIP's tokenizer into `folder`, with the token that pads, if it is another.
pub(crate) fn write_tokenizer(folder: &Path, pad: Option<&Value>) {
    copy_tokenizer("clip", folder);
    let Some(pad) = pad else { return };
    let path = folder.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["pad_token"] = pad.clone();
    write_json(&path, &config);
}

/// A tensor of a file, as PyTorch has it.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Slowest first.
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// The tensors of the model's first publisher, by part of the model.
pub(crate) fn original_tensors(golden: &Golden) -> BTreeMap<String, Vec<Tensor>> {
    let mut parts = BTreeMap::new();
    for component in golden.at("/components").as_object().unwrap().keys() {
        let mut tensors = Vec::new();
        for weight in weights(golden, component) {
            tensors.push(Tensor { name: weight.name.clone(), shape: weight.shape.clone(), values: weight.values() });
        }
        let tensors = match is_open_clip(golden, component) {
            true => open_clip(golden, component, tensors),
            false => tensors.into_iter().map(|tensor| original(golden, component, tensor)).collect(),
        };
        parts.insert(component.clone(), tensors);
    }
    parts
}

/// Whether the publisher's file has OpenCLIP's names for this part.
fn is_open_clip(golden: &Golden, component: &str) -> bool {
    let is_text = component.starts_with("text_encoder");
    is_text && golden.at(&format!("/components/{component}/config/hidden_act")) == "gelu"
}

/// Writes the model as one safetensors file with the names of its first publisher.
pub(crate) fn write_checkpoint(path: &Path, golden: &Golden) {
    let tensors: Vec<Tensor> = original_tensors(golden).into_values().flatten().collect();
    let mut stored: BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for tensor in &tensors {
        let entry = (Dtype::F32, tensor.shape.clone(), Format::F32.encode(&tensor.values));
        assert!(stored.insert(&tensor.name, entry).is_none(), "{} twice", tensor.name);
    }
    let positions = (0..77i64).flat_map(i64::to_le_bytes).collect();
    let first = stored.keys().find(|name| name.contains(".text_model.")).map(|name| name.split(".text_model.").next());
    let name = first.flatten().map(|prefix| format!("{prefix}.text_model.embeddings.position_ids"));
    if let Some(name) = &name {
        stored.insert(name, (Dtype::I64, vec![1, 77], positions));
    }
    write_safetensors(path, &stored);
}

/// Writes `tensors` as F32 into a safetensors file.
pub(crate) fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let mut stored = BTreeMap::new();
    for tensor in tensors {
        stored.insert(tensor.name.as_str(), (Dtype::F32, tensor.shape.clone(), Format::F32.encode(&tensor.values)));
    }
    write_safetensors(path, &stored);
}

/// Writes tensors, each with its type, shape and bytes, into a safetensors file.
pub(crate) fn write_safetensors(path: &Path, stored: &BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)>) {
    let views = stored
        .iter()
        .map(|(name, (dtype, shape, bytes))| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

/// Writes `tensors` into a GGUF file without metadata, as stable-diffusion.cpp does, or with those that ComfyUI-GGUF would reshape in
/// rows of 256, and their shapes in the metadata. `format` is for what has more than one extent.
pub(crate) fn write_gguf(path: &Path, tensors: &[Tensor], format: Format, reshape: bool) {
    let mut file = RawGguf::empty();
    if reshape {
        file.push("general.architecture", text(b"sdxl"));
    }
    for tensor in tensors {
        let elements = tensor.values.len();
        let last = tensor.shape.last().copied().unwrap_or(1);
        let mut dims: Vec<u64> = tensor.shape.iter().rev().map(|&extent| extent as u64).collect();
        if reshape && elements >= 512 && elements.is_multiple_of(256) && !last.is_multiple_of(256) {
            let shape: Vec<u8> = tensor.shape.iter().flat_map(|&extent| (extent as i32).to_le_bytes()).collect();
            let key = format!("comfy.gguf.orig_shape.{}", tensor.name);
            file.push(&key, array(I32, tensor.shape.len() as u64, &shape));
            dims = vec![256, elements as u64 / 256];
        }
        let fits = dims.len() > 1 && dims[0].is_multiple_of(format.block() as u64);
        let format = if fits { format } else { Format::F32 };
        file.tensors.push(RawTensor::new(&tensor.name, &dims, format.ggml_id(), file.data.len() as u64));
        file.data.extend(format.encode(&tensor.values));
        file.data.resize(file.data.len().next_multiple_of(file.alignment), 0);
    }
    fs::write(path, file.bytes()).unwrap();
}

/// The tensor as the publisher's file has it.
fn original(golden: &Golden, component: &str, tensor: Tensor) -> Tensor {
    let (stem, leaf) = tensor.name.rsplit_once('.').unwrap();
    let is_xl = golden.get("/components/text_encoder_2").is_some();
    let stem = match component {
        "text_encoder" if is_xl => format!("conditioner.embedders.0.transformer.{stem}"),
        "text_encoder" => format!("cond_stage_model.transformer.{stem}"),
        "unet" => format!("model.diffusion_model.{}", unet(golden, stem)),
        "vae" => format!("first_stage_model.{}", vae(stem)),
        other => panic!("no names for {other}"),
    };
    let mut shape = tensor.shape.clone();
    if component == "vae" && stem.contains("mid.attn_1") && shape.len() == 2 {
        shape.extend([1, 1]);
    }
    Tensor { name: format!("{stem}.{leaf}"), shape, ..tensor }
}

/// A text encoder with OpenCLIP's names: queries, keys and values fused, the projection transposed. That of version 2 has a layer
/// more, which is not used.
fn open_clip(golden: &Golden, component: &str, tensors: Vec<Tensor>) -> Vec<Tensor> {
    let is_xl = golden.get("/components/text_encoder_2").is_some();
    let is_alone = golden.get("/components/text_encoder").is_none();
    let prefix = match (is_xl, is_alone) {
        (true, true) => "conditioner.embedders.0.model.",
        (true, false) => "conditioner.embedders.1.model.",
        (false, _) => "cond_stage_model.model.",
    };
    let layers = golden.at(&format!("/components/{component}/config/num_hidden_layers")).as_u64().unwrap();
    let mut found = Vec::new();
    for tensor in &tensors {
        let own = tensor.name.strip_prefix("text_model.").unwrap_or(&tensor.name);
        let renamed = |name: &str| Tensor { name: format!("{prefix}{name}"), ..tensor.clone() };
        let Some(rest) = own.strip_prefix("encoder.layers.") else {
            found.push(match own {
                "embeddings.token_embedding.weight" => renamed("token_embedding.weight"),
                "embeddings.position_embedding.weight" => renamed("positional_embedding"),
                "final_layer_norm.weight" => renamed("ln_final.weight"),
                "final_layer_norm.bias" => renamed("ln_final.bias"),
                "text_projection.weight" => transposed(renamed("text_projection")),
                other => panic!("no name for {other}"),
            });
            continue;
        };
        let (layer, name) = numbered(rest);
        let (stem, leaf) = name.rsplit_once('.').unwrap();
        let theirs = match stem {
            "layer_norm1" => format!("ln_1.{leaf}"),
            "layer_norm2" => format!("ln_2.{leaf}"),
            "mlp.fc1" => format!("mlp.c_fc.{leaf}"),
            "mlp.fc2" => format!("mlp.c_proj.{leaf}"),
            "self_attn.out_proj" => format!("attn.out_proj.{leaf}"),
            "self_attn.q_proj" => format!("attn.in_proj_{leaf}"),
            "self_attn.k_proj" | "self_attn.v_proj" => continue,
            other => panic!("no name for {other}"),
        };
        let mut one = renamed(&format!("transformer.resblocks.{layer}.{theirs}"));
        if stem == "self_attn.q_proj" {
            for other in ["k_proj", "v_proj"] {
                let name = tensor.name.replace("q_proj", other);
                let more = tensors.iter().find(|tensor| tensor.name == name).unwrap();
                one.values.extend(&more.values);
            }
            one.shape[0] *= 3;
        }
        if !is_xl && layer as u64 + 1 == layers {
            let name = one.name.replace(&format!("resblocks.{layer}."), &format!("resblocks.{layers}."));
            found.push(Tensor { name, ..one.clone() });
        }
        found.push(one);
    }
    found
}

fn transposed(tensor: Tensor) -> Tensor {
    let [rows, columns] = tensor.shape[..] else { panic!("{} is no matrix", tensor.name) };
    let values = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
    let values = values.map(|at| tensor.values[at]).collect();
    Tensor { shape: vec![columns, rows], values, ..tensor }
}

/// The number at the front of a path, and the rest of it.
fn numbered(path: &str) -> (usize, &str) {
    let (number, rest) = path.split_once('.').unwrap_or((path, ""));
    (number.parse().unwrap_or_else(|_| panic!("no number begins {path}")), rest)
}

/// The name in the original files of a layer of a UNet that diffusers calls `stem`.
pub(crate) fn unet(golden: &Golden, stem: &str) -> String {
    let ends = [
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
    ];
    if let Some((_, name)) = ends.iter().find(|(theirs, _)| *theirs == stem) {
        return (*name).to_owned();
    }
    let (side, rest) = stem.split_once('.').unwrap();
    if side == "mid_block" {
        let (kind, rest) = rest.split_once('.').unwrap();
        let (block, rest) = numbered(rest);
        return match kind {
            "resnets" => format!("middle_block.{}.{}", 2 * block, resnet(rest)),
            _ => format!("middle_block.1.{rest}"),
        };
    }
    let (level, rest) = numbered(rest);
    let (kind, rest) = rest.split_once('.').unwrap();
    let (block, rest) = numbered(rest);
    let (blocks, at) = match side {
        "down_blocks" => ("input_blocks", level * (LAYERS + 1) + 1),
        "up_blocks" => ("output_blocks", level * (LAYERS + 1)),
        other => panic!("no name for {other}"),
    };
    match kind {
        "resnets" => format!("{blocks}.{}.0.{}", at + block, resnet(rest)),
        "attentions" => format!("{blocks}.{}.1.{rest}", at + block),
        "downsamplers" => format!("{blocks}.{}.0.op", at + LAYERS),
        // Behind the attention, if the level has some.
        "upsamplers" => {
            let attends = golden.at(&format!("/components/unet/config/up_block_types/{level}")) != "UpBlock2D";
            format!("{blocks}.{}.{}.conv", at + LAYERS, if attends { 2 } else { 1 })
        }
        other => panic!("no name for {other}"),
    }
}

fn resnet(layer: &str) -> &str {
    match layer {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        other => panic!("no name for {other}"),
    }
}

fn vae(stem: &str) -> String {
    let Some((side, rest)) = stem.split_once('.') else { return stem.to_owned() };
    let name = match rest.split_once('.') {
        None if rest == "conv_norm_out" => "norm_out".to_owned(),
        None => rest.to_owned(),
        Some(("mid_block", rest)) => {
            let (kind, rest) = rest.split_once('.').unwrap();
            let (block, rest) = numbered(rest);
            match kind {
                "resnets" => format!("mid.block_{}.{}", block + 1, shortcut(rest)),
                _ => format!("mid.attn_1.{}", attention(rest)),
            }
        }
        Some((blocks, rest)) => {
            let (level, rest) = numbered(rest);
            let (kind, rest) = rest.split_once('.').unwrap();
            let (block, rest) = numbered(rest);
            let level = match blocks {
                "down_blocks" => format!("down.{level}"),
                _ => format!("up.{}", VAE_LEVELS - 1 - level),
            };
            match kind {
                "resnets" => format!("{level}.block.{block}.{}", shortcut(rest)),
                "downsamplers" => format!("{level}.downsample.conv"),
                _ => format!("{level}.upsample.conv"),
            }
        }
    };
    format!("{side}.{name}")
}

fn shortcut(layer: &str) -> &str {
    if layer == "conv_shortcut" { "nin_shortcut" } else { layer }
}

fn attention(layer: &str) -> &str {
    match layer {
        "group_norm" => "norm",
        "to_q" => "q",
        "to_k" => "k",
        "to_v" => "v",
        "to_out.0" => "proj_out",
        other => panic!("no name for {other}"),
    }
}
