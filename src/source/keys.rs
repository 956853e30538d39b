//! The metadata keys of a bundle: written by the converter, read here.

/// GGUF's own: the model family.
pub const ARCHITECTURE: &str = "general.architecture";
/// GGUF's own: a name for people.
pub const NAME: &str = "general.name";
/// GGUF's own: the version of the quantized formats.
pub const QUANTIZATION_VERSION: &str = "general.quantization_version";
/// GGUF's own: what most matrices are.
pub const FILE_TYPE: &str = "general.file_type";
/// The version of the bundle's layout.
pub const VERSION: &str = "pinhole.version";
/// Which components the bundle holds.
pub const COMPONENTS: &str = "pinhole.components";
/// The text of `scheduler_config.json`.
pub const SCHEDULER: &str = "pinhole.scheduler.config";
/// The text of `generation_config.json`.
pub const DEFAULTS: &str = "pinhole.defaults";
/// The settings of diffusers' pipeline, as a JSON object.
pub const PIPELINE: &str = "pinhole.pipeline";
/// The text of `preprocessor_config.json`.
pub const FEATURE_EXTRACTOR: &str = "pinhole.feature_extractor.config";
/// The LoRAs that are part of the weights, each with its strength.
pub const MERGED: &str = "pinhole.merged";

/// The text of a component's `config.json`.
pub fn component_config(component: &str) -> String {
    format!("pinhole.{component}.config")
}

/// The text of a `tokenizer.json`.
pub fn tokenizer(name: &str) -> String {
    format!("pinhole.tokenizer.{name}")
}

/// The text of a `tokenizer_config.json`.
pub fn tokenizer_config(name: &str) -> String {
    format!("pinhole.tokenizer.{name}.config")
}
