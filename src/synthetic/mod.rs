//! Models of real size with random weights, made directly in their type: what plans, benches and tests of memory run where
//! the published weights are not at hand. They draw noise.

mod flux;
mod flux2;
mod flux3;
mod qwen_image;
mod sd;
mod wan;
mod z_image;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use pinhole_quant::gguf::{Array, Layout, Strings, TensorSpec, Value, WriteError, Writer};
use pinhole_quant::output::AtomicFile;
use pinhole_quant::recipe::{self, FileType, Recipe};
use pinhole_quant::{DType, rows, workers};
use serde_json::{Value as Json, json};

use crate::bind::alias::{self, Alternative, Kind, Part, Reads};
use crate::builtin;
use crate::convert::{BUNDLE_ALIGNMENT, QUANTIZATION_VERSION, Types, write_error};
use crate::index::Map;
use crate::source::slot::{TEXT_ENCODER, TEXT_ENCODER_2};
use crate::source::{self, HasModel, Slot, Source, keys};
use crate::tensor::Shape;
use crate::text::bytes_tokenizer_json;
use crate::weights::{Role, Weight};
use crate::{Error, Result};

/// How many numbers are made of each kind of row, and repeated.
const CHUNK: usize = 4 << 20;

/// A published model, as far as sizes go.
#[derive(Clone, Copy)]
pub struct Architecture(&'static Published);

/// A name, and what is behind it.
struct Published {
    name: &'static str,
    /// Where its denoiser is.
    denoiser: &'static Slot,
    /// The format of its published weights: what stays unquantized has it.
    source: DType,
    blueprint: fn(&Options) -> Result<Blueprint>,
}

/// The networks of a model, and what is written beside them.
struct Blueprint {
    /// As in `general.architecture`.
    family: &'static str,
    /// In the order of bundles.
    parts: Vec<Planned>,
    /// The text of `scheduler_config.json`, if the family's default is not meant.
    scheduler: Option<Json>,
    /// The text of `generation_config.json`.
    defaults: Json,
    /// Whether it goes beside models: a network in a file of its own, without anything before its names.
    alone: bool,
}

impl Blueprint {
    /// What stands before the names of the component at `slot`.
    fn prefix(&self, slot: &Slot) -> &'static str {
        if self.alone { "" } else { slot.prefix }
    }
}

/// A component of a blueprint.
struct Planned {
    slot: &'static Slot,
    kind: &'static Kind,
    /// Its `config.json`.
    config: Json,
    networks: Vec<Box<dyn HasModel>>,
    /// What files call its weights.
    aliases: fn(&str) -> Vec<Alternative>,
}

impl Planned {
    fn new(slot: &'static Slot, kind: &'static Kind, config: Json, networks: Vec<Box<dyn HasModel>>) -> Planned {
        Planned { slot, kind, config, networks, aliases: |name| vec![vec![Part::all(name)]] }
    }
}

impl Blueprint {
    fn of(options: &Options) -> Result<Blueprint> {
        let mut blueprint = (options.architecture.0.blueprint)(options)?;
        blueprint.parts.retain(|part| options.only.is_none_or(|only| only == part.slot));
        Ok(blueprint)
    }
}

impl Architecture {
    /// All models.
    pub const ALL: &[Architecture] = &[
        Architecture::FLUX_DEV,
        Architecture::FLUX_SCHNELL,
        Architecture::FLUX_FILL,
        Architecture::FLUX_CANNY,
        Architecture::SD15,
        Architecture::SDXL,
        Architecture::Z_IMAGE,
        Architecture::QWEN_IMAGE,
        Architecture::QWEN_IMAGE_21,
        Architecture::FLUX2_KLEIN_4B,
        Architecture::FLUX2_KLEIN_9B,
        Architecture::FLUX3_KLEIN,
        Architecture::FLUX3_KLEIN_BASE,
        Architecture::WAN_1_3B,
        Architecture::WAN_14B,
        Architecture::WAN_A14B,
        Architecture::WAN_TI2V_5B,
        Architecture::WAN_FUN_A14B_CONTROL,
    ];

    /// Those that go beside models.
    pub const BESIDE: &[Architecture] = &[
        Architecture::FLUX_CONTROLNET_UNION,
        Architecture::SD15_CONTROL,
        Architecture::SDXL_CONTROL,
        Architecture::Z_IMAGE_CONTROL,
        Architecture::QWEN_IMAGE_CONTROL,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Where its denoiser is.
    pub fn denoiser(self) -> &'static Slot {
        self.0.denoiser
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(name: &str) -> Result<Architecture, String> {
        let all = || Architecture::ALL.iter().chain(Architecture::BESIDE);
        let found = all().find(|architecture| architecture.name() == name);
        let names: Vec<&str> = all().map(|architecture| architecture.name()).collect();
        found.copied().ok_or_else(|| format!("`{name}` is none of {}", names.join(", ")))
    }
}

/// What a synthetic model is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whose sizes it has.
    pub architecture: Architecture,
    /// The type of its denoiser; the other components follow, as when a model is converted.
    pub file_type: FileType,
    /// How many blocks of each kind it has, if it is a transformer; all of them by default.
    pub blocks: Option<usize>,
    /// Whether weights are zeros that take no room on the disk, where the file system can: enough to plan with.
    pub hollow: bool,
    /// The one component that it has; all of them by default.
    pub only: Option<&'static Slot>,
}

/// Writes the bundle `path`, whole or not at all. `after` hears of the bytes of each tensor that is written.
///
/// # Errors
/// [`Error::Io`] and [`Error::Exists`] of the file; what `after` returns.
pub fn write(path: &Path, options: &Options, mut after: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let blueprint = Blueprint::of(options)?;
    let weights = choose(&blueprint, options)?;
    let specs: Vec<TensorSpec> = weights.iter().map(Chosen::spec).collect();
    let failed = |error: WriteError| write_error(path, error);
    let layout = Layout::new(&metadata(&blueprint, options)?, &specs, BUNDLE_ALIGNMENT).map_err(failed)?;
    if options.hollow {
        return hollow(path, &layout);
    }
    let mut writer = Writer::new(AtomicFile::create(path, false).map_err(Error::output)?, layout).map_err(failed)?;
    let mut made = Made::default();
    for (weight, spec) in weights.iter().zip(&specs) {
        writer.begin(&spec.name).map_err(failed)?;
        let mut left = weight.bytes()?;
        after(left as u64)?;
        let rows = made.rows(weight)?;
        while left > 0 {
            let part = rows.len().min(left);
            writer.write(&rows[..part]).map_err(failed)?;
            left -= part;
        }
        writer.end().map_err(failed)?;
    }
    writer.finish().map_err(failed)?.commit().map_err(Error::output)
}

/// The size of what [`write()`] writes.
///
/// # Errors
/// Only of sizes that no file has.
pub fn total_bytes(options: &Options) -> Result<u64> {
    let blueprint = Blueprint::of(options)?;
    let specs: Vec<TensorSpec> = choose(&blueprint, options)?.iter().map(Chosen::spec).collect();
    let layout = Layout::new(&metadata(&blueprint, options)?, &specs, BUNDLE_ALIGNMENT);
    layout.map(|layout| layout.total_bytes()).map_err(|error| Error::graph("synthetic", error.to_string()))
}

/// The model that [`write()`] writes with [`hollow`](Options::hollow), without a file: enough to plan with.
///
/// # Errors
/// [`Error::Io`] where the system has no addresses for it.
pub fn imagined(options: &Options) -> Result<Source> {
    let blueprint = Blueprint::of(options)?;
    let specs: Vec<TensorSpec> = choose(&blueprint, options)?.iter().map(Chosen::spec).collect();
    let failed = |error: String| Error::graph("synthetic", error);
    let layout = Layout::new(&metadata(&blueprint, options)?, &specs, BUNDLE_ALIGNMENT);
    let layout = layout.map_err(|error| failed(error.to_string()))?;
    let bytes = usize::try_from(layout.total_bytes()).map_err(|error| failed(error.to_string()))?;
    Source::from_map(Map::hollow(options.architecture.name(), layout.header(), bytes)?)
}

/// The header, and a hole as large as the tensors.
fn hollow(path: &Path, layout: &Layout) -> Result<()> {
    let file = File::create_new(path).and_then(|mut file| {
        file.write_all(layout.header())?;
        file.set_len(layout.total_bytes())
    });
    file.map_err(|source| Error::io("write", path, source))
}

/// A weight with its format.
struct Chosen<'a> {
    /// What stands before its name.
    prefix: &'static str,
    /// Its name in the file.
    name: String,
    weight: &'a Weight,
    /// Its shape there, with the rows of weights that are stacked below.
    shape: Shape,
    dtype: DType,
}

impl Chosen<'_> {
    fn spec(&self) -> TensorSpec {
        let shape = self.shape;
        TensorSpec {
            name: format!("{}{}", self.prefix, self.name),
            dims: shape.dims()[..shape.rank()].to_vec(),
            dtype: self.dtype,
        }
    }

    fn bytes(&self) -> Result<usize> {
        let bytes = self.shape.bytes(self.dtype);
        bytes.ok_or_else(|| Error::graph("synthetic", format!("{} is too large", self.name)))
    }
}

fn choose<'a>(blueprint: &'a Blueprint, options: &Options) -> Result<Vec<Chosen<'a>>> {
    let types = Types::from(options.file_type);
    let mut chosen: Vec<Chosen<'a>> = Vec::new();
    for Planned { slot, kind, networks, aliases, .. } in &blueprint.parts {
        let all = networks.iter().flat_map(|network| network.model().manifest().iter());
        let names = all.map(|(_, weight)| weight.name.as_str());
        let mut recipe = Recipe::new(types.of(slot, kind), blueprint.family).for_names(names);
        for (_, weight) in networks.iter().flat_map(|network| network.model().manifest().iter()) {
            let (name, part) = alias::stacked(aliases, &weight.name).unwrap_or_else(|| (weight.name.clone(), 0));
            let begun = chosen.iter_mut().rev().find(|begun| part > 0 && begun.name == name);
            if let Some(begun) = begun {
                let stacked = begun.shape.stacked(weight.shape);
                begun.shape = stacked.ok_or_else(|| Error::graph("synthetic", format!("{name} is too large")))?;
                continue;
            }
            let seen = recipe::Weight {
                prefix: blueprint.prefix(slot),
                name: &name,
                role: weight.role,
                row_len: weight.shape.row(),
                elements: weight.shape.elements(),
                source: options.architecture.0.source,
            };
            let (prefix, shape, dtype) = (blueprint.prefix(slot), weight.shape, recipe.choose(&seen).dtype);
            chosen.push(Chosen { prefix, name, weight, shape, dtype });
        }
    }
    Ok(chosen)
}

/// Rows that were made, by format, length and kind: weights of one kind repeat them.
#[derive(Default)]
struct Made(HashMap<(DType, usize, bool), Vec<u8>>);

impl Made {
    fn rows(&mut self, chosen: &Chosen<'_>) -> Result<&[u8]> {
        let Chosen { weight, dtype, .. } = *chosen;
        let is_scale = weight.role == Role::Vector && is_scale(&weight.name);
        let row = weight.shape.row();
        match self.0.entry((dtype, row, is_scale)) {
            Entry::Occupied(made) => Ok(made.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(rows_of(weight, dtype, is_scale)?)),
        }
    }
}

/// Whether a vector is the scale of a norm that has no shift: one near 0 would leave nothing of what it normalises.
fn is_scale(name: &str) -> bool {
    const NORMS: [&str; 10] = [
        "_norm.weight",
        "_norm1.weight",
        "_norm2.weight",
        "cap_embedder.0.weight",
        ".scale",
        ".norm_q.weight",
        ".norm_k.weight",
        ".norm_added_q.weight",
        ".norm_added_k.weight",
        ".gamma",
    ];
    // T5 brings its own way to scale.
    NORMS.iter().any(|end| name.ends_with(end)) && !name.starts_with("enc.") && !name.starts_with("text_model.")
}

fn rows_of(weight: &Weight, dtype: DType, is_scale: bool) -> Result<Vec<u8>> {
    let row = weight.shape.row();
    let numbers = random(weight, (CHUNK / row).max(1) * row, is_scale);
    let failed = |error: String| Error::graph("synthetic", format!("{}: {error}", weight.name));
    let bytes = dtype.row_bytes(row).ok_or_else(|| failed(format!("{row} numbers in {dtype}")))?;
    let mut made = vec![0; bytes * (numbers.len() / row)];
    rows::quantize_parallel(dtype, &numbers, row, &mut made).map_err(|error| failed(error.to_string()))?;
    Ok(made)
}

/// Uniform numbers that keep the variance of what a matrix multiplies; about 1 for norm scales.
fn random(weight: &Weight, len: usize, is_scale: bool) -> Vec<f32> {
    let (scale, offset) = match weight.role {
        Role::Vector if is_scale => (0.1, 1.0),
        Role::Vector => (0.02, 0.0),
        _ => ((3.0 / weight.shape.row() as f32).sqrt(), 0.0),
    };
    let mut numbers = vec![0.0; len];
    let chunks = numbers.chunks_mut(1 << 16).enumerate().collect();
    workers::for_each(chunks, |(chunk, numbers): (usize, &mut [f32])| {
        let mut state = (weight.shape.row() as u64) << 32 | (chunk as u64) << 1 | 1;
        for number in numbers {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *number = ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale + offset;
        }
    });
    numbers
}

/// The metadata of a bundle, with the miniature's tokenizers: they know fewer words than the published ones, and every id
/// of theirs is one here.
fn metadata(blueprint: &Blueprint, options: &Options) -> Result<Vec<(String, Value)>> {
    if blueprint.alone {
        let mut metadata: Vec<(String, Value)> = vec![
            (keys::ARCHITECTURE.into(), blueprint.family.into()),
            (keys::QUANTIZATION_VERSION.into(), QUANTIZATION_VERSION.into()),
            (keys::FILE_TYPE.into(), options.file_type.number().into()),
        ];
        // Of some, zeros would say something else.
        for Planned { slot, config, .. } in &blueprint.parts {
            metadata.push((keys::component_config(slot.name), config.to_string().into()));
        }
        return Ok(metadata);
    }
    let mini = builtin::mini()?;
    let mut names = Strings::with_capacity(blueprint.parts.len());
    blueprint.parts.iter().for_each(|part| names.push(part.slot.name));
    let mut metadata: Vec<(String, Value)> = vec![
        (keys::ARCHITECTURE.into(), blueprint.family.into()),
        (keys::QUANTIZATION_VERSION.into(), QUANTIZATION_VERSION.into()),
        (keys::FILE_TYPE.into(), options.file_type.number().into()),
        (keys::VERSION.into(), source::VERSION.into()),
        (keys::NAME.into(), format!("synthetic {}", options.architecture.name()).into()),
        (keys::COMPONENTS.into(), Value::Array(Array::String(names))),
    ];
    for Planned { slot, kind, config, .. } in &blueprint.parts {
        metadata.push((keys::component_config(slot.name), config.to_string().into()));
        let Some(name) = slot.tokenizer else { continue };
        // Where the miniature has one of that kind, whatever its place is here.
        let of_mini = match kind.reads {
            Some(Reads::Clip) => mini.tokenizer(&TEXT_ENCODER),
            Some(Reads::T5) => mini.tokenizer(&TEXT_ENCODER_2),
            Some(Reads::Words) | None => None,
        };
        if let Some(files) = of_mini {
            metadata.push((keys::tokenizer(name), files.tokenizer.text.as_str().into()));
        } else if kind.reads == Some(Reads::Words) {
            metadata.push((keys::tokenizer(name), bytes_tokenizer_json()?.into()));
        }
    }
    metadata.extend(blueprint.scheduler.iter().map(|config| (keys::SCHEDULER.into(), config.to_string().into())));
    metadata.push((keys::DEFAULTS.into(), blueprint.defaults.to_string().into()));
    Ok(metadata)
}

/// CLIP ViT-L's text encoder.
fn clip() -> Json {
    json!({
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "eos_token_id": 2,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::source::slot::TRANSFORMER;

    #[test]
    fn a_hollow_model_opens_and_has_the_published_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dev.gguf");
        let options = Options {
            architecture: Architecture::FLUX_DEV,
            file_type: FileType::Q4_K_S,
            blocks: None,
            hollow: true,
            only: None,
        };
        write(&path, &options, |_| Ok(())).unwrap();
        let source = Source::open(&path).unwrap();
        let transformer = source::networks::flux(source.component(&TRANSFORMER).unwrap()).unwrap();
        assert_eq!(transformer.net.model.manifest().parameters(), 11_901_408_320);
        assert!(matches!(write(&path, &options, |_| Ok(())), Err(Error::Io { .. })));
        // Without a file it is the same.
        let imagined = imagined(&options).unwrap();
        assert_eq!(imagined.bytes(), source.bytes());
        let transformer = source::networks::flux(imagined.component(&TRANSFORMER).unwrap()).unwrap();
        assert_eq!(transformer.net.model.manifest().parameters(), 11_901_408_320);
    }

    #[test]
    fn every_architecture_opens_as_a_model() {
        let dir = tempfile::tempdir().unwrap();
        for &architecture in Architecture::ALL {
            let path = dir.path().join(architecture.name());
            let options = Options { architecture, file_type: FileType::Q8_0, blocks: None, hollow: true, only: None };
            write(&path, &options, |_| Ok(())).unwrap();
            let model = crate::open(&path).unwrap();
            assert_eq!(model.family.places[0].slot, architecture.denoiser(), "{architecture:?}");
        }
    }

    #[test]
    fn what_goes_beside_models_opens_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        for &architecture in Architecture::BESIDE {
            let path = dir.path().join(architecture.name());
            let options = Options { architecture, file_type: FileType::Q8_0, blocks: None, hollow: true, only: None };
            write(&path, &options, |_| Ok(())).unwrap();
            let alone = crate::pipeline::alone(&crate::source::Source::open(&path).unwrap()).unwrap().unwrap();
            assert_eq!(alone.slot, architecture.denoiser(), "{architecture:?}");
        }
    }
}
