//! What a file says of itself.

use pinhole_quant::gguf::{Array, Strings, Value};
use pinhole_quant::recipe::FileType;

use crate::source::flux::Network;
use crate::source::{self, ComponentKind, Source, Text, keys};
use crate::text::t5_gguf_metadata;
use crate::{Error, Result};

/// ggml's version of its quantized formats (`GGML_QNT_VERSION`).
pub(crate) const QUANTIZATION_VERSION: u32 = 2;

type Entries = Vec<(String, Value)>;

/// The metadata of a bundle.
pub(super) fn bundle(source: &Source, networks: &[Network<'_>], file_type: FileType) -> Entries {
    let mut names = Strings::with_capacity(ComponentKind::ALL.len());
    source.components().for_each(|(kind, _)| names.push(kind.name()));
    let mut metadata = general(&source.architecture, file_type);
    metadata.push((keys::VERSION.into(), source::VERSION.into()));
    metadata.push((keys::COMPONENTS.into(), Value::Array(Array::String(names))));
    if let Some(name) = source.path.file_stem() {
        metadata.push((keys::NAME.into(), name.to_string_lossy().into_owned().into()));
    }
    let mut text = |key: String, text: Option<&Text>| {
        metadata.extend(text.map(|text| (key, text.text.as_str().into())));
    };
    for (kind, component) in source.components() {
        let config = match &component.config {
            Some(config) => Some(without_paths(config)),
            None => derived(networks, kind).map(|text| Text { text, origin: component.origin.clone() }),
        };
        text(keys::component_config(kind.name()), config.as_ref());
    }
    for (name, files) in [("tokenizer", &source.tokenizer), ("tokenizer_2", &source.tokenizer_2)] {
        text(keys::tokenizer(name), files.as_ref().map(|files| &files.tokenizer));
        text(keys::tokenizer_config(name), files.as_ref().and_then(|files| files.config.as_ref()));
    }
    text(keys::SCHEDULER.into(), source.scheduler.as_ref());
    text(keys::DEFAULTS.into(), source.defaults.as_ref());
    metadata
}

/// The metadata of the file of one component, as ComfyUI-GGUF, stable-diffusion.cpp and llama.cpp read it.
///
/// # Errors
/// [`Error::Option`] for a component that these do not read from GGUF; [`Error::NotAModel`] for T5 without a tokenizer.
pub(super) fn component(
    source: &Source,
    networks: &[Network<'_>],
    kind: ComponentKind,
    file_type: FileType,
) -> Result<Entries> {
    let mut metadata = match kind {
        ComponentKind::Transformer => general(&source.architecture, file_type),
        ComponentKind::TextEncoder2 => t5(source, networks, file_type)?,
        _ => {
            let found = format!("{}, which other tools read from safetensors only", kind.name());
            return Err(Error::option("--component", "transformer or text_encoder_2", found));
        }
    };
    // Only where shapes do not say the same: published models need no word of ours.
    let config = networks.iter().find(|network| network.kind == kind && !network.follows_from_shapes());
    metadata.extend(config.map(|network| (keys::component_config(kind.name()), network.config.to_string().into())));
    Ok(metadata)
}

fn general(architecture: &str, file_type: FileType) -> Entries {
    vec![
        (keys::ARCHITECTURE.into(), architecture.into()),
        (keys::QUANTIZATION_VERSION.into(), QUANTIZATION_VERSION.into()),
        (keys::FILE_TYPE.into(), file_type.number().into()),
    ]
}

/// llama.cpp's metadata of a T5 encoder.
fn t5(source: &Source, networks: &[Network<'_>], file_type: FileType) -> Result<Entries> {
    const ARCHITECTURE: &str = "t5encoder";
    let kind = ComponentKind::TextEncoder2;
    let tokenizer = source.tokenizer_2.as_ref().ok_or_else(|| Error::NotAModel {
        path: source.path.clone(),
        found: "it has no tokenizer of T5, which a GGUF of it carries".into(),
        hint: Some("give one with --tokenizer-2".into()),
    })?;
    let config = networks.iter().find(|network| network.kind == kind).map(|network| &network.config);
    let setting = |name: &str| config.and_then(|config| config[name].as_u64()).unwrap_or(0) as u32;
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
    let epsilon = config.and_then(|config| config["layer_norm_epsilon"].as_f64()).unwrap_or(1e-6);
    number("attention.layer_norm_epsilon", Value::F32(epsilon as f32));
    number("attention.layer_norm_rms_epsilon", Value::F32(epsilon as f32));
    let Text { text, origin } = &tokenizer.tokenizer;
    metadata.extend(t5_gguf_metadata(text, setting("vocab_size") as usize, origin)?);
    Ok(metadata)
}

/// The configuration of `kind` as it was read off the shapes.
fn derived(networks: &[Network<'_>], kind: ComponentKind) -> Option<String> {
    networks.iter().find(|network| network.kind == kind).map(|network| network.config.to_string())
}

/// A configuration without the path of the machine that saved it, which diffusers writes down.
fn without_paths(config: &Text) -> Text {
    let mut config = config.clone();
    // What is not an object was refused when the model was opened.
    if let Ok(mut settings) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&config.text)
        && settings.remove("_name_or_path").is_some()
    {
        config.text = serde_json::Value::Object(settings).to_string();
    }
    config
}
