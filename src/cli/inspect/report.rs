//! Everything that `inspect` has to say, gathered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pinhole::gguf::{Metadata, Value};
use pinhole::index::FileTensor;
use pinhole::source::flux::FluxModel;
use pinhole::source::{ComponentKind, Layout, Source, Text, TokenizerFiles, keys, recognise};
use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::check::CheckReport;
use super::subject::Subject;
use crate::cli::entries::Entries;

/// The keys of a component's configuration that say what size it is.
fn highlights(kind: ComponentKind) -> &'static [&'static str] {
    match kind {
        ComponentKind::Transformer => &[
            "num_layers",
            "num_single_layers",
            "num_attention_heads",
            "attention_head_dim",
            "axes_dims_rope",
            "in_channels",
            "joint_attention_dim",
            "pooled_projection_dim",
            "guidance_embeds",
        ],
        ComponentKind::TextEncoder => &[
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "hidden_act",
            "max_position_embeddings",
            "vocab_size",
        ],
        ComponentKind::TextEncoder2 => {
            &["num_layers", "d_model", "num_heads", "d_ff", "feed_forward_proj", "vocab_size"]
        }
        ComponentKind::Vae => {
            &["latent_channels", "block_out_channels", "norm_num_groups", "scaling_factor", "shift_factor"]
        }
    }
}

/// The same of a schedule.
const SCHEDULE: &[&str] = &["_class_name", "shift", "use_dynamic_shifting", "base_shift", "max_shift"];

/// Longer metadata is cut in the report.
const MOST_CHARACTERS: usize = 200;

/// What something on disk is.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) path: PathBuf,
    /// `bundle`, `diffusers`, `files`, `gguf` or `safetensors`.
    pub(super) kind: &'static str,
    /// As the file says.
    pub(super) architecture: Option<String>,
    /// As the tensors' names say, where the file is no model.
    pub(super) holds: Vec<&'static str>,
    /// Of all files.
    pub(super) bytes: u64,
    pub(super) tensors: usize,
    pub(super) parameters: u64,
    pub(super) components: Vec<ComponentReport>,
    pub(super) types: Vec<TypeReport>,
    pub(super) tokenizers: Vec<TokenizerReport>,
    pub(super) scheduler: Entries<Json>,
    pub(super) defaults: Entries<Json>,
    pub(super) metadata: Entries<Json>,
    /// What is missing or wrong.
    pub(super) problems: Vec<Problem>,
    /// Only with `--tensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tensor_list: Option<Vec<TensorReport>>,
    /// Only with `--check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) check: Option<CheckReport>,
}

/// A part of a model.
#[derive(Serialize)]
pub(super) struct ComponentReport {
    pub(super) name: &'static str,
    pub(super) tensors: usize,
    pub(super) parameters: u64,
    pub(super) bytes: u64,
    /// What says how large it is.
    pub(super) config: Entries<Json>,
    /// Tensors that no weight of the model is read from.
    pub(super) unused: Vec<String>,
}

/// What is stored in one number format.
#[derive(Serialize)]
pub(super) struct TypeReport {
    #[serde(rename = "type")]
    pub(super) name: &'static str,
    pub(super) tensors: usize,
    pub(super) parameters: u64,
    pub(super) bytes: u64,
}

#[derive(Serialize)]
pub(super) struct TokenizerReport {
    pub(super) name: &'static str,
    pub(super) present: bool,
    pub(super) vocabulary: Option<usize>,
    /// Tokens that the text encoder reads by default.
    pub(super) length: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

#[derive(Serialize)]
pub(super) struct TensorReport {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) storage: &'static str,
    /// In ggml order: fastest first.
    pub(super) shape: Vec<usize>,
    pub(super) bytes: usize,
}

impl Report {
    /// What `subject` is. Reads headers and configurations, no weights.
    pub(super) fn of(path: &Path, subject: &Subject) -> Report {
        let tensors = subject.tensors();
        let mut report = Report {
            path: path.to_owned(),
            kind: "safetensors",
            architecture: None,
            holds: Vec::new(),
            bytes: subject.bytes(),
            tensors: tensors.len(),
            parameters: parameters(tensors.iter().map(|(_, tensor)| *tensor)),
            components: Vec::new(),
            types: types(tensors.iter().map(|(_, tensor)| *tensor)),
            tokenizers: Vec::new(),
            scheduler: Entries::default(),
            defaults: Entries::default(),
            metadata: Entries::default(),
            problems: Vec::new(),
            tensor_list: None,
            check: None,
        };
        match subject {
            Subject::Model { source, metadata } => {
                report.describe_model(source);
                report.metadata = metadata.as_ref().map(bundle_metadata).unwrap_or_default();
            }
            Subject::Gguf(gguf) => {
                report.kind = "gguf";
                report.architecture = gguf.metadata.string(keys::ARCHITECTURE).ok().flatten().map(str::to_owned);
                report.metadata = gguf.metadata.iter().map(|(key, value)| (key, shown(value))).collect();
            }
            Subject::Safetensors { metadata, .. } => {
                report.metadata = metadata.iter().map(|(key, text)| (key, Json::from(shortened(text)))).collect();
            }
        }
        if report.components.is_empty() {
            report.holds = recognise(tensors.iter().map(|(name, _)| *name));
        }
        report
    }

    /// Lists every tensor.
    pub(super) fn list_tensors(&mut self, subject: &Subject) {
        let row = |(name, tensor): (&str, &FileTensor)| TensorReport {
            name: name.to_owned(),
            storage: tensor.storage.name(),
            shape: tensor.file_shape.clone(),
            bytes: tensor.bytes().len(),
        };
        self.tensor_list = Some(subject.tensors().into_iter().map(row).collect());
    }

    /// How many things are wrong.
    pub(super) fn faults(&self) -> usize {
        self.problems.len() + self.check.as_ref().map_or(0, |check| check.not_finite.len() + check.unreadable.len())
    }

    fn describe_model(&mut self, source: &Source) {
        self.kind = match source.layout {
            Layout::Bundle => "bundle",
            Layout::Diffusers => "diffusers",
            Layout::Files => "files",
        };
        self.architecture = Some(source.architecture.clone());
        self.components = source.components().map(|(kind, component)| self::component(kind, component)).collect();
        self.scheduler = chosen(source.scheduler.as_ref(), SCHEDULE);
        self.defaults = object(source.defaults.as_ref()).into_iter().collect();
        self.missing(source);
        let model = FluxModel::open(source);
        self.tokenizers = tokenizers(source, model.as_ref().ok());
        match model {
            Ok(model) => self.find_unused(&model),
            // What is missing is said already, and would be the only thing that this error says.
            Err(_) if !self.problems.is_empty() => {}
            Err(error) => {
                self.problems.push(Problem { message: error.to_string(), hint: error.hint().map(str::to_owned) });
            }
        }
    }

    fn missing(&mut self, source: &Source) {
        let component = |kind: &ComponentKind| source.component(*kind).is_err();
        let components = ComponentKind::ALL.into_iter().filter(component).map(ComponentKind::name);
        let tokenizers = named_tokenizers(source).into_iter().filter(|(_, files)| files.is_none());
        let missing = components.chain(tokenizers.map(|(name, _)| name));
        self.problems.extend(missing.map(|name| Problem { message: format!("{name} is missing"), hint: None }));
    }

    fn find_unused(&mut self, model: &FluxModel) {
        for component in &mut self.components {
            let kind = ComponentKind::ALL.into_iter().find(|kind| kind.name() == component.name);
            component.unused = kind.iter().flat_map(|&kind| model.unused(kind)).map(str::to_owned).collect();
        }
    }
}

fn parameters<'a>(tensors: impl Iterator<Item = &'a FileTensor>) -> u64 {
    tensors.map(|tensor| tensor.shape.elements() as u64).sum()
}

/// By type, the most bytes first.
fn types<'a>(tensors: impl Iterator<Item = &'a FileTensor>) -> Vec<TypeReport> {
    let mut by_name = BTreeMap::new();
    for tensor in tensors {
        let name = tensor.storage.name();
        let row = by_name.entry(name).or_insert(TypeReport { name, tensors: 0, parameters: 0, bytes: 0 });
        row.tensors += 1;
        row.parameters += tensor.shape.elements() as u64;
        row.bytes += tensor.bytes().len() as u64;
    }
    let mut rows: Vec<TypeReport> = by_name.into_values().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

fn component(kind: ComponentKind, component: &pinhole::source::Component) -> ComponentReport {
    let prefixed = component.index.iter().filter(|(name, _)| name.starts_with(&component.prefix));
    let tensors: Vec<&FileTensor> = prefixed.map(|(_, tensor)| tensor).collect();
    ComponentReport {
        name: kind.name(),
        tensors: tensors.len(),
        parameters: parameters(tensors.iter().copied()),
        bytes: tensors.iter().map(|tensor| tensor.bytes().len() as u64).sum(),
        config: chosen(component.config.as_ref(), highlights(kind)),
        unused: Vec::new(),
    }
}

fn named_tokenizers(source: &Source) -> [(&'static str, Option<&TokenizerFiles>); 2] {
    [("tokenizer", source.tokenizer.as_ref()), ("tokenizer_2", source.tokenizer_2.as_ref())]
}

fn tokenizers(source: &Source, model: Option<&FluxModel>) -> Vec<TokenizerReport> {
    let sizes = [
        model.map(|model| (model.clip_tokenizer.vocab_size(), model.clip_tokenizer.length())),
        model.map(|model| (model.t5_tokenizer.vocab_size(), model.t5_tokenizer.default_length())),
    ];
    let row = |((name, files), size): ((_, Option<&TokenizerFiles>), Option<(usize, usize)>)| TokenizerReport {
        name,
        present: files.is_some(),
        vocabulary: size.map(|(vocabulary, _)| vocabulary),
        length: size.map(|(_, length)| length),
    };
    named_tokenizers(source).into_iter().zip(sizes).map(row).collect()
}

/// A text as a JSON object; empty where it is none, which opening the model reports.
fn object(text: Option<&Text>) -> Map<String, Json> {
    text.and_then(|text| serde_json::from_str(&text.text).ok()).unwrap_or_default()
}

/// Those of `keys` that the object has.
fn chosen(text: Option<&Text>, keys: &[&str]) -> Entries<Json> {
    let mut object = object(text);
    keys.iter().filter_map(|&key| object.remove(key).map(|value| (key, value))).collect()
}

/// What a bundle says about itself, beside what the report says elsewhere.
fn bundle_metadata(metadata: &Metadata) -> Entries<Json> {
    let keys = [keys::NAME, keys::FILE_TYPE, keys::QUANTIZATION_VERSION, keys::VERSION];
    keys.iter().filter_map(|&key| Some((key, shown(metadata.get(key)?)))).collect()
}

/// A value from a file, in short.
fn shown(value: &Value) -> Json {
    match value {
        Value::String(text) => shortened(text).into(),
        Value::Bool(truth) => (*truth).into(),
        Value::U8(number) => (*number).into(),
        Value::I8(number) => (*number).into(),
        Value::U16(number) => (*number).into(),
        Value::I16(number) => (*number).into(),
        Value::U32(number) => (*number).into(),
        Value::I32(number) => (*number).into(),
        Value::U64(number) => (*number).into(),
        Value::I64(number) => (*number).into(),
        // Through text, so that 0.1 stays 0.1; NaN, which JSON has not, becomes a text.
        Value::F32(number) => serde_json::from_str(&number.to_string()).unwrap_or_else(|_| number.to_string().into()),
        Value::F64(number) => serde_json::from_str(&number.to_string()).unwrap_or_else(|_| number.to_string().into()),
        Value::Array(array) => format!("{} of {}", value.describe(), array.len()).into(),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}
