//! Everything that `inspect` has to say, gathered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bind::alias::Kind;
use crate::gguf::{Metadata, Value};
use crate::index::{FileTensor, Index, Other};
use crate::pipeline::{self, Additions, BESIDE, FAMILIES, Opened, PRIOR, Reader, is_textual_inversion, own_word};
use crate::source::slot::IMAGE_EMBEDDER;
use crate::source::{
    Component, Layout, Network, Place, Source, Text, keys, kinds_in, not_run, piece, recognise, unused,
};
use crate::{Error, json};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json};

use super::check::CheckReport;
use super::lora::LoraReport;
use super::subject::Subject;
use crate::entries::Entries;

/// The settings of a schedule that the report shows.
const SCHEDULE: &[&str] = &[
    "_class_name",
    "prediction_type",
    "shift",
    "flow_shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "timestep_spacing",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "rescale_betas_zero_snr",
    "algorithm_type",
    "solver_order",
    "solver_type",
];

/// Longer metadata is cut in the report.
const MOST_CHARACTERS: usize = 200;

fn shown_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What something on disk is.
#[derive(Serialize)]
pub struct Report {
    /// Where it lies. In JSON, which holds text only, what is no Unicode in it is shown as such.
    #[serde(serialize_with = "shown_path")]
    pub path: PathBuf,
    /// `bundle`, `diffusers`, `files`, `gguf`, `safetensors` or `pytorch`.
    pub kind: &'static str,
    /// As the file says.
    pub architecture: Option<String>,
    /// As the tensors' names say, where the file is no model.
    pub holds: Vec<String>,
    /// What it changes, where it is a LoRA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraReport>,
    /// How large it is, where it goes beside a model: blocks, widths, kinds of pictures.
    #[serde(skip_serializing_if = "Entries::is_empty")]
    pub settings: Entries<Json>,
    /// Of all files.
    pub bytes: u64,
    /// How many there are.
    pub tensors: usize,
    /// How many numbers.
    pub parameters: u64,
    /// The parts of a model.
    pub components: Vec<ComponentReport>,
    /// What is stored in which number format, the most bytes first.
    pub types: Vec<TypeReport>,
    /// The tokenizers of a model.
    pub tokenizers: Vec<TokenizerReport>,
    /// What says how steps are spaced.
    pub scheduler: Entries<Json>,
    /// What requests are made with where they do not say.
    pub defaults: Entries<Json>,
    /// What the file says about itself.
    pub metadata: Entries<Json>,
    /// What is missing or wrong.
    pub problems: Vec<Problem>,
    /// Only with `--tensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_list: Option<Vec<TensorReport>>,
    /// Only with `--check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckReport>,
}

/// A part of a model.
#[derive(Serialize)]
pub struct ComponentReport {
    /// Its name.
    pub name: &'static str,
    /// How many there are.
    pub tensors: usize,
    /// How many numbers.
    pub parameters: u64,
    /// Bytes of its weights.
    pub bytes: u64,
    /// What says how large it is.
    pub config: Entries<Json>,
    /// Tensors that no weight of the model is read from.
    pub unused: Vec<String>,
}

/// What is stored in one number format.
#[derive(Serialize)]
pub struct TypeReport {
    /// Its name.
    #[serde(rename = "type")]
    pub name: String,
    /// How many there are.
    pub tensors: usize,
    /// How many numbers.
    pub parameters: u64,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// A tokenizer.
#[derive(Serialize)]
pub struct TokenizerReport {
    /// Its name.
    pub name: &'static str,
    /// Whether it is there.
    pub present: bool,
    /// How many tokens it knows.
    pub vocabulary: Option<usize>,
    /// Tokens that the text encoder reads by default.
    pub length: Option<usize>,
}

/// Something that is missing or wrong.
#[derive(Serialize)]
pub struct Problem {
    /// What.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A tensor.
#[derive(Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its number format.
    #[serde(rename = "type")]
    pub storage: String,
    /// In ggml order: fastest first.
    pub shape: Vec<usize>,
    /// Bytes of its weights.
    pub bytes: usize,
}

impl Report {
    /// What `subject` is. Reads headers and configurations, no weights.
    pub fn of(path: &Path, subject: &Subject) -> Report {
        let tensors = Tensor::of_subject(subject);
        let mut report = Report {
            path: path.to_owned(),
            kind: "safetensors",
            architecture: None,
            holds: Vec::new(),
            lora: None,
            settings: Entries::default(),
            bytes: subject.bytes(),
            tensors: tensors.len(),
            parameters: tensors.iter().map(|tensor| tensor.numbers).sum(),
            components: Vec::new(),
            types: types(&tensors),
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
                match piece(&gguf.metadata) {
                    Some(error) => report.problem(&error),
                    None => report.try_parts(&gguf.index),
                }
            }
            Subject::Safetensors { kind, metadata, index } => {
                report.kind = kind;
                report.metadata = metadata.iter().map(|(key, text)| (key, Json::from(shortened(text)))).collect();
                report.describe_lora();
                let is_word = report.lora.is_none() && is_textual_inversion(index);
                if is_word {
                    report.describe_word(index);
                } else if report.lora.is_none() {
                    report.try_parts(index);
                }
            }
        }
        if report.components.is_empty() && report.holds.is_empty() {
            report.holds = recognise(tensors.iter().map(|tensor| tensor.name));
        }
        report
    }

    /// Lists every tensor.
    pub fn list_tensors(&mut self, subject: &Subject) {
        let mut list = Vec::new();
        for tensor in Tensor::of_subject(subject) {
            list.push(TensorReport {
                name: tensor.name.to_owned(),
                storage: tensor.storage.to_owned(),
                shape: tensor.shape.to_vec(),
                bytes: tensor.bytes as usize, // was a `usize`
            });
        }
        self.tensor_list = Some(list);
    }

    /// How many things are wrong.
    pub fn faults(&self) -> usize {
        self.problems.len() + self.check.as_ref().map_or(0, CheckReport::faults)
    }

    fn describe_model(&mut self, source: &Source) {
        self.kind = match source.layout {
            Layout::Bundle => "bundle",
            Layout::Diffusers => "diffusers",
            Layout::Files => "files",
        };
        if source.says.as_deref() == Some(PRIOR[0]) {
            return self.describe_prior(source);
        }
        let family = pipeline::family_of(source);
        self.architecture = family.as_ref().map(|family| family.name.to_owned()).ok().or_else(|| source.says.clone());
        let opened = family.and_then(|family| {
            let source = source.arranged(family.name, family.places)?;
            Ok((family, source))
        });
        self.scheduler = chosen(source.scheduler.as_ref(), SCHEDULE);
        self.defaults = object(source.defaults.as_ref()).into_iter().collect();
        let (family, source) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.components = source.components().map(|component| self::component(component, None)).collect();
                return self.problem(&error);
            }
        };
        for component in source.components() {
            let place = family.places.iter().find(|place| place.slot == component.slot);
            self.components.push(self::component(component, place));
        }
        for text in source.passed_over() {
            self.problems.push(Problem { message: text.clone(), hint: None });
        }
        self.missing(&source, family.places);
        let model = (family.open)(source.clone(), &Additions::default());
        self.tokenizers = tokenizers(&source, family.places, model.as_ref().ok());
        match model {
            Ok(model) => self.find_unused(&model),
            // What is missing is said already, and would be the only thing that this error says.
            Err(_) if !self.problems.is_empty() => {}
            Err(error) => self.problem(&error),
        }
    }

    /// What a directory has that goes beside a model.
    fn describe_prior(&mut self, source: &Source) {
        self.architecture = Some(PRIOR[1].to_owned());
        for component in source.components() {
            let place = BESIDE.iter().find(|place| place.slot == component.slot && source.holds(place));
            self.components.push(self::component(component, place));
            if let Some(Err(error)) = place.map(|place| (place.load)(component)) {
                self.problem(&error);
            }
        }
        if source.component(&IMAGE_EMBEDDER).is_err() {
            let message = format!("{} is missing", IMAGE_EMBEDDER.name);
            self.problems.push(Problem { message, hint: Some("the folder is incomplete: download it again".into()) });
        }
    }

    /// A folder or a file with the names of others is no LoRA.
    fn describe_lora(&mut self) {
        if self.path.is_dir() || self.path.extension().is_some_and(|extension| extension == "json") {
            return;
        }
        match LoraReport::of(&self.path) {
            Ok(lora) => self.lora = lora,
            Err(error) => self.problem(&error),
        }
    }

    /// What a textual inversion is.
    fn describe_word(&mut self, index: &Index) {
        self.holds = vec!["a textual inversion: a word that text encoders were taught".to_owned()];
        let mut settings: Vec<(&str, Json)> = Vec::new();
        settings.extend(own_word(index).map(|word| ("word", word.into())));
        for (name, tensor) in index.iter().filter(|(name, _)| !name.starts_with("string_to_token")) {
            let [width, vectors, ..] = tensor.shape.dims();
            let widths = if name == "clip_g" { "width of the second" } else { "width" };
            if name != "clip_g" {
                settings.push(("vectors", vectors.into()));
            }
            settings.push((widths, width.into()));
        }
        self.settings = settings.into_iter().collect();
    }

    /// What would be said where the networks in `index` are used as parts of a model.
    fn try_parts(&mut self, index: &Index) {
        let kinds: Vec<(&Kind, String)> = kinds_in(index).collect();
        if kinds.is_empty()
            && let Some(error) = not_run(&self.path, index)
        {
            self.problem(&error);
        }
        let index = Arc::new(index.clone());
        for (kind, prefix) in kinds {
            let own = FAMILIES.iter().flat_map(|family| family.places.iter().chain(family.beside));
            let mut places = own.chain(&BESIDE);
            let Some(place) = places.find(|place| place.kind == kind) else { continue };
            let component = Component::lone(&self.path, &index, prefix, place.slot);
            match component.and_then(|component| (place.load)(&component)) {
                Err(error) => self.problem(&error),
                Ok(loaded) if !place.needed => self.describe(&loaded.networks(), place),
                Ok(_) => {}
            }
        }
    }

    /// What says how large the first of `networks` is, which goes beside a model.
    fn describe(&mut self, networks: &[Network<'_>], place: &Place) {
        let Some(config) = networks.first().and_then(|network| network.config.as_object()) else { return };
        self.settings = place
            .kind
            .highlights
            .iter()
            .filter_map(|key| Some((*key, config.get(*key).filter(|value| !value.is_null())?.clone())))
            .collect();
    }

    fn problem(&mut self, error: &Error) {
        self.problems.push(Problem { message: error.to_string(), hint: error.hint().map(str::to_owned) });
    }

    fn missing(&mut self, source: &Source, places: &[Place]) {
        let mut lacking = Vec::new();
        for place in places.iter().filter(|place| place.needed && source.component(place.slot).is_err()) {
            lacking.push((place.slot.name, place.slot.option));
        }
        for Place { slot, .. } in places.iter().filter(|place| place.kind.reads.is_some() && place.needed) {
            let tokenizer = slot.tokenizer.filter(|_| source.tokenizer(slot).is_none());
            lacking.extend(tokenizer.map(|name| (name, slot.tokenizer_option)));
        }
        for (name, option) in lacking {
            let hint = format!("{option} FILE gives it to other commands");
            self.problems.push(Problem { message: format!("{name} is missing"), hint: Some(hint) });
        }
    }

    fn find_unused(&mut self, model: &Opened) {
        let networks = model.networks();
        for component in &mut self.components {
            if let Some(network) = networks.iter().find(|network| network.slot.name == component.name) {
                component.unused = unused(&networks, network.slot).into_iter().map(str::to_owned).collect();
            }
        }
    }
}

/// What a report says of a tensor, whether weights can be read from it or not.
struct Tensor<'a> {
    name: &'a str,
    storage: &'a str,
    shape: &'a [usize],
    numbers: u64,
    bytes: u64,
}

impl<'a> Tensor<'a> {
    /// All tensors of `subject`: those that weights can be read from, then the others.
    fn of_subject(subject: &'a Subject) -> Vec<Tensor<'a>> {
        let readable = subject.tensors().into_iter().map(|(name, tensor)| Tensor::readable(name, tensor));
        readable.chain(subject.others().into_iter().map(Tensor::other)).collect()
    }

    /// Those of `index` whose names begin with `prefix`.
    fn of_index(index: &'a Index, prefix: &str) -> Vec<Tensor<'a>> {
        let readable = index.iter().map(|(name, tensor)| Tensor::readable(name, tensor));
        let all = readable.chain(index.others().iter().map(Tensor::other));
        all.filter(|tensor| tensor.name.starts_with(prefix)).collect()
    }

    fn readable(name: &'a str, tensor: &'a FileTensor) -> Tensor<'a> {
        let (numbers, bytes) = (tensor.shape.elements() as u64, tensor.bytes().len() as u64);
        Tensor { name, storage: tensor.storage.name(), shape: &tensor.file_shape, numbers, bytes }
    }

    fn other(other: &'a Other) -> Tensor<'a> {
        let (numbers, bytes) = (other.numbers() as u64, other.bytes as u64);
        Tensor { name: &other.name, storage: &other.storage, shape: &other.file_shape, numbers, bytes }
    }
}

/// By type, the most bytes first.
fn types(tensors: &[Tensor<'_>]) -> Vec<TypeReport> {
    let mut by_name = BTreeMap::new();
    for tensor in tensors {
        let name = tensor.storage;
        let none = TypeReport { name: name.to_owned(), tensors: 0, parameters: 0, bytes: 0 };
        let row: &mut TypeReport = by_name.entry(name).or_insert(none);
        row.tensors += 1;
        row.parameters += tensor.numbers;
        row.bytes += tensor.bytes;
    }
    let mut rows: Vec<TypeReport> = by_name.into_values().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

fn component(component: &Component, place: Option<&Place>) -> ComponentReport {
    let tensors = Tensor::of_index(&component.index, &component.prefix);
    ComponentReport {
        name: component.slot.name,
        tensors: tensors.len(),
        parameters: tensors.iter().map(|tensor| tensor.numbers).sum(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        config: chosen(component.config.as_ref(), place.map_or(&[], |place| place.kind.highlights)),
        unused: Vec::new(),
    }
}

/// The tokenizers that `places` need, with what `model` knows of them.
fn tokenizers(source: &Source, places: &[Place], model: Option<&Opened>) -> Vec<TokenizerReport> {
    let readers: Vec<Reader> = model.map(|model| model.encoders.readers()).unwrap_or_default();
    let mut rows = Vec::new();
    for place in places.iter().filter(|place| place.kind.reads.is_some()) {
        let Some(name) = place.slot.tokenizer else { continue };
        let reader = readers.iter().find(|reader| reader.tokenizer == name);
        rows.push(TokenizerReport {
            name,
            present: source.tokenizer(place.slot).is_some(),
            vocabulary: reader.map(|reader| reader.vocabulary),
            length: reader.map(|reader| reader.length),
        });
    }
    rows
}

/// A text as a JSON object; empty where it is none, which opening the model reports.
fn object(text: Option<&Text>) -> Map<String, Json> {
    text.and_then(|text| json::read(&text.text).ok()).unwrap_or_default()
}

/// Those of `keys` that the object has.
fn chosen(text: Option<&Text>, keys: &[&str]) -> Entries<Json> {
    let mut object = object(text);
    keys.iter().filter_map(|&key| object.remove(key).map(|value| (key, value))).collect()
}

/// What a bundle says about itself, beside what the report says elsewhere.
fn bundle_metadata(metadata: &Metadata) -> Entries<Json> {
    let keys = [keys::NAME, keys::FILE_TYPE, keys::QUANTIZATION_VERSION, keys::VERSION];
    let short = keys.iter().filter_map(|&key| Some((key, shown(metadata.get(key)?))));
    // A list that was read when the model was opened.
    let merged = metadata.strings(keys::MERGED).ok().flatten();
    short.chain(merged.map(|names| (keys::MERGED, names.iter().collect()))).collect()
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
