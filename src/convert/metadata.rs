//! What a file says of itself.

use pinhole_quant::gguf::{Array, Strings, Value};
use pinhole_quant::recipe::FileType;

use super::merge;
use crate::bind::alias::{Follows, Reads};
use crate::bind::lora::Report;
use crate::source::slot::SLOTS;
use crate::source::{self, Network, Slot, Source, Text, keys};
use crate::text::t5_gguf_metadata;
use crate::{Error, Result, json};

/// ggml's version of its quantized formats (`GGML_QNT_VERSION`).
pub(crate) const QUANTIZATION_VERSION: u32 = 2;

type Entries = Vec<(String, Value)>;

/// The metadata of a bundle.
pub(super) fn bundle(source: &Source, networks: &[Network<'_>], file_type: FileType) -> Entries {
    let mut names = Strings::with_capacity(SLOTS.len());
    source.components().for_each(|component| names.push(component.slot.name));
    let mut metadata = general(source.family, file_type);
    metadata.push((keys::VERSION.into(), source::VERSION.into()));
    metadata.push((keys::COMPONENTS.into(), Value::Array(Array::String(names))));
    metadata.push((keys::NAME.into(), source::model_name(&source.path).into()));
    let mut text = |key: String, text: Option<&Text>| {
        metadata.extend(text.map(|text| (key, text.text.as_str().into())));
    };
    for component in source.components() {
        let slot = component.slot;
        let config = match &component.config {
            Some(config) => Some(without_paths(config)),
            None => derived(networks, slot).map(|text| Text { text, origin: component.origin.clone() }),
        };
        text(keys::component_config(slot.name), config.as_ref());
    }
    for slot in SLOTS {
        if let (Some(name), Some(files)) = (slot.tokenizer, source.tokenizer(slot)) {
            text(keys::tokenizer(name), Some(&files.tokenizer));
            text(keys::tokenizer_config(name), files.config.as_ref());
        }
    }
    text(keys::SCHEDULER.into(), source.scheduler.as_ref());
    text(keys::DEFAULTS.into(), source.defaults.as_ref());
    text(keys::PIPELINE.into(), source.pipeline.as_ref());
    text(keys::FEATURE_EXTRACTOR.into(), source.feature_extractor.as_ref());
    metadata
}

/// The metadata of the file of one component, as ComfyUI-GGUF, stable-diffusion.cpp and llama.cpp read it.
///
/// # Errors
/// [`Error::Option`] for a component that these do not read from GGUF; [`Error::NotAModel`] for T5 without a tokenizer.
pub(super) fn component(
    source: &Source,
    networks: &[Network<'_>],
    slot: &'static Slot,
    types: &[(&'static Slot, FileType)],
) -> Result<Entries> {
    let file_type = types.iter().find(|(other, _)| *other == slot).map_or(FileType::F32, |(_, file_type)| *file_type);
    let network = networks.iter().find(|network| network.slot == slot);
    let network = network.ok_or_else(|| Error::graph("convert", format!("no network of {}", slot.name)))?;
    let mut metadata = match (network.kind.reads, network.kind.follows) {
        (Some(Reads::T5), _) => t5(source, network, file_type)?,
        (None, Follows::Same) if !network.kind.label.is_empty() => general(network.kind.label, file_type),
        (None, Follows::Same) => general(source.family, file_type),
        _ => {
            let found = format!("{}, which other tools read from safetensors only", slot.name);
            let expected = "the denoiser, text_encoder_2 if it is T5, image_encoder or image_embedder";
            return Err(Error::option("--component", expected, found));
        }
    };
    // Only if shapes do not say the same: published models need no word of ours.
    if !network.from_shapes {
        metadata.push((keys::component_config(slot.name), network.config.to_string().into()));
    }
    Ok(metadata)
}

fn general(architecture: &str, file_type: FileType) -> Entries {
    vec![
        (keys::ARCHITECTURE.into(), architecture.into()),
        (keys::QUANTIZATION_VERSION.into(), QUANTIZATION_VERSION.into()),
        (keys::FILE_TYPE.into(), file_type.number().into()),
    ]
}

/// The LoRAs that are part of the weights: those that are part of the source's, and then `loras`.
pub(super) fn merged(source: &Source, loras: &[Report]) -> Option<(String, Value)> {
    let names: Strings = source.merged.iter().cloned().chain(loras.iter().map(merge::entry)).collect();
    (!names.is_empty()).then(|| (keys::MERGED.into(), Value::Array(Array::String(names))))
}

/// llama.cpp's metadata of a T5 encoder.
fn t5(source: &Source, network: &Network<'_>, file_type: FileType) -> Result<Entries> {
    const ARCHITECTURE: &str = "t5encoder";
    let slot = network.slot;
    let tokenizer = source.tokenizer(slot).ok_or_else(|| Error::NotAModel {
        path: source.path.clone(),
        found: "it has no tokenizer of T5, which a GGUF of it carries".into(),
        hint: Some(format!("give one with {}", slot.tokenizer_option)),
    })?;
    let config = network.config;
    let setting = |name: &str| config[name].as_u64().unwrap_or(0) as u32;
    let mut metadata = general(ARCHITECTURE, file_type);
    let mut number = |key: &str, value: Value| metadata.push((format!("{ARCHITECTURE}.{key}"), value));
    // T5's positions are relative, so that any length will do; llama.cpp's converter writes down that of the training.
    number("context_length", 512u32.into());
    number("embedding_length", setting("d_model").into());
    number("feed_forward_length", setting("d_ff").into());
    number("block_count", setting("num_layers").into());
    number("attention.head_count", setting("num_heads").into());
    number("attention.key_length", setting("d_kv").into());
    number("attention.value_length", setting("d_kv").into());
    number("attention.relative_buckets_count", setting("relative_attention_num_buckets").into());
    let epsilon = config["layer_norm_epsilon"].as_f64().unwrap_or(1e-6);
    number("attention.layer_norm_epsilon", Value::F32(epsilon as f32));
    number("attention.layer_norm_rms_epsilon", Value::F32(epsilon as f32));
    let Text { text, origin } = &tokenizer.tokenizer;
    metadata.extend(t5_gguf_metadata(text, setting("vocab_size") as usize, origin)?);
    Ok(metadata)
}

/// The configuration of the component at `slot` as it was read off the shapes.
fn derived(networks: &[Network<'_>], slot: &Slot) -> Option<String> {
    networks.iter().find(|network| network.slot == slot).map(|network| network.config.to_string())
}

/// A configuration without the path of the machine that saved it, which diffusers writes down.
fn without_paths(config: &Text) -> Text {
    let mut config = config.clone();
    // What is not an object was refused when the model was opened.
    if let Ok(mut settings) = json::read::<serde_json::Map<String, serde_json::Value>>(&config.text)
        && settings.remove("_name_or_path").is_some()
    {
        config.text = serde_json::Value::Object(settings).to_string();
    }
    config
}
