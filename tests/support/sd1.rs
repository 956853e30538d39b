//! Writes the synthetic Stable Diffusion of the golden `sd1` or `sdxl`, as a diffusers directory and as one file with original names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Map, Value, json};

use super::diffusers::{copy_tokenizer, write_json};
use super::numbers::Format;
use super::synth::weights;
use super::{Golden, Layout, write_component};

/// Residual blocks of a level on the way down.
const LAYERS: usize = 2;
/// Levels of the autoencoder.
const VAE_LEVELS: usize = 4;

/// Writes the model into `dir` in the diffusers layout, with this scheduler_config.json.
pub(crate) fn write_directory(dir: &Path, golden: &Golden, scheduler: &Value) {
    let mut index = Map::new();
    let is_xl = golden.get("/components/text_encoder_2").is_some();
    let class = if is_xl { "StableDiffusionXLPipeline" } else { "StableDiffusionPipeline" };
    index.insert("_class_name".into(), json!(class));
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
    copy_tokenizer("clip", &dir.join("tokenizer"));
    if is_xl {
        index.insert("tokenizer_2".into(), json!(["transformers", "CLIPTokenizer"]));
        let folder = dir.join("tokenizer_2");
        copy_tokenizer("clip", &folder);
        let path = folder.join("tokenizer_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["pad_token"] = golden.at("/pad_2").clone();
        write_json(&path, &config);
    }
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    write_json(&dir.join("scheduler/scheduler_config.json"), scheduler);
    write_json(&dir.join("model_index.json"), &Value::Object(index));
}

/// Writes the model as one safetensors file with the names of its first publisher.
pub(crate) fn write_checkpoint(path: &Path, golden: &Golden) {
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for component in golden.at("/components").as_object().unwrap().keys() {
        for weight in weights(golden, component) {
            let (stem, leaf) = weight.name.rsplit_once('.').unwrap();
            let (name, mut shape) = (original(component, stem), weight.shape.clone());
            if component == "vae" && name.contains("mid.attn_1") && shape.len() == 2 {
                shape.extend([1, 1]);
            }
            let bytes = Format::F32.encode(&weight.values());
            assert!(tensors.insert(format!("{name}.{leaf}"), (Dtype::F32, shape, bytes)).is_none(), "{name} twice");
        }
    }
    let positions = (0..77i64).flat_map(i64::to_le_bytes).collect();
    let name = "cond_stage_model.transformer.text_model.embeddings.position_ids";
    tensors.insert(name.to_owned(), (Dtype::I64, vec![1, 77], positions));
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

/// The name in the file of the layer that diffusers calls `stem`.
fn original(component: &str, stem: &str) -> String {
    match component {
        "text_encoder" => format!("cond_stage_model.transformer.{stem}"),
        "unet" => format!("model.diffusion_model.{}", unet(stem)),
        "vae" => format!("first_stage_model.{}", vae(stem)),
        other => panic!("no names for {other}"),
    }
}

/// The number at the front of a path, and the rest of it.
fn numbered(path: &str) -> (usize, &str) {
    let (number, rest) = path.split_once('.').unwrap_or((path, ""));
    (number.parse().unwrap_or_else(|_| panic!("no number begins {path}")), rest)
}

fn unet(stem: &str) -> String {
    let ends = [
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
        // Behind the attention, which the first level has not.
        "upsamplers" => format!("{blocks}.{}.{}.conv", at + LAYERS, if level == 0 { 1 } else { 2 }),
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
