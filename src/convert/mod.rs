//! From a model on disk to GGUF: one bundle, or one component by itself.
//!
//! A [`Plan`] names every tensor of the output with its format and size before anything is written; [`Plan::write`]
//! then takes one piece of one tensor after the other through memory, reading ahead and writing behind, so that a model
//! of any size converts in a few dozen megabytes. Tensors are written in stage order: a stage is one contiguous read.

mod merge;
mod metadata;
mod pipeline;
mod requantize;
mod rows;
mod types;
mod write;

use std::path::PathBuf;

use pinhole_quant::DType;
use pinhole_quant::gguf::{Layout, TensorSpec, WriteError};
use pinhole_quant::pattern::TensorPattern;
use pinhole_quant::recipe::{self, Fallback, FileType, Recipe};

use crate::bind::lora::{self, Merged};
use crate::bind::{Bound, alias};
use crate::source::{Network, Slot, Source, left_over};
use crate::tensor::Shape;
use crate::weights::{Weight, WeightId};
use crate::{Error, Result};

pub(crate) use metadata::QUANTIZATION_VERSION;
pub use requantize::Requantized;
pub use types::Types;
pub(crate) use write::write_error;
pub use write::{NonFinite, Progress, WriteOptions};

/// What tensors' offsets in a bundle are multiples of, in bytes: a page.
pub(crate) const BUNDLE_ALIGNMENT: u32 = 4096;

/// The same in the file of a component by itself, as everybody's.
const COMPONENT_ALIGNMENT: u32 = 32;

/// What is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// A bundle: every component, configurations, tokenizers, schedule and defaults.
    #[default]
    Bundle,
    /// One component under the names that other tools know: the denoiser or T5.
    Component(&'static Slot),
}

/// How a model is converted.
#[derive(Clone, Debug)]
pub struct Options {
    /// The type of every component.
    pub types: Types,
    /// Formats of single tensors; the last pattern that matches one decides.
    pub patterns: Vec<TensorPattern>,
    /// What is made.
    pub target: Target,
    /// Whether weights that are quantized in the source to less than 8 bits may be quantized again.
    pub allow_requantize: bool,
    /// LoRAs that become part of the weights, each with its strength. Their changes add up.
    pub merge: Vec<(PathBuf, f32)>,
}

impl<T: Into<Types>> From<T> for Options {
    fn from(types: T) -> Options {
        Options {
            types: types.into(),
            patterns: Vec::new(),
            target: Target::Bundle,
            allow_requantize: false,
            merge: Vec::new(),
        }
    }
}

/// A tensor of the output.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// Its name in the output.
    pub name: String,
    /// Its extents, in ggml order.
    pub shape: Shape,
    /// What it is made of: the formats of its pieces in the source.
    pub from: String,
    /// Whether LoRAs change it.
    pub merged: bool,
    /// Its format.
    pub to: DType,
    /// The bytes that it takes.
    pub bytes: u64,
    /// Why it is not in the format that was asked for, where it is not.
    pub fallback: Option<Fallback>,
}

impl PlannedTensor {
    /// Adds the rows of `more` below. `None` where no tensor has so many.
    fn stack(&mut self, more: &PlannedTensor) -> Option<()> {
        self.shape = self.shape.stacked(more.shape)?;
        self.bytes = self.bytes.checked_add(more.bytes)?;
        self.merged |= more.merged;
        Some(())
    }
}

/// What a conversion will write.
pub struct Plan<'a> {
    /// The type that was asked for each component.
    pub types: Vec<(&'static Slot, FileType)>,
    /// Every tensor, in the order of the file.
    pub tensors: Vec<PlannedTensor>,
    /// The size of the output, to the byte.
    pub total_bytes: u64,
    /// What is quantized from less than 8 bits, where that is allowed.
    pub requantized: Vec<Requantized>,
    /// Tensors of the source that no such model has, and that are left out: some that others write for their own use, or a
    /// sign that the source is something else.
    pub left_out: Vec<&'a str>,
    /// What becomes of the LoRAs.
    pub loras: Vec<lora::Report>,
    layout: Layout,
    weights: Vec<Planned<'a>>,
    /// What LoRAs make of the weights of each network.
    merged: Vec<Merged>,
    /// The source, every file with weights of its, and the LoRAs.
    sources: Vec<PathBuf>,
}

/// A weight that a tensor of the output is made of, or the next rows of one.
struct Planned<'a> {
    /// The position of the tensor.
    tensor: usize,
    bound: &'a Bound,
    id: WeightId,
    shape: Shape,
    /// The network whose LoRAs change it, if any do.
    merged: Option<usize>,
}

/// Plans the conversion of `networks`, which are `source`'s.
///
/// # Errors
/// [`Error::Option`] for a pattern that no matrix matches, or a component that has no file of its own;
/// [`Error::Mismatch`] where the source has a name or a text that no GGUF can hold, or is quantized to less than 8 bits
/// and may not be quantized again; those of [`lora::merged`].
pub fn plan<'a>(source: &Source, networks: &[Network<'a>], options: impl Into<Options>) -> Result<Plan<'a>> {
    let options = options.into();
    let (mut tensors, mut weights) = (Vec::new(), Vec::new());
    let types = options.types.of_all(networks)?;
    let mut recipes = Vec::with_capacity(types.len());
    for (slot, file_type) in &types {
        let own = networks.iter().filter(|network| network.slot == *slot);
        let names = own.flat_map(|network| network.model.manifest().iter().map(|(_, weight)| weight.name.as_str()));
        let recipe = Recipe::new(*file_type, source.family).for_names(names).with_patterns(options.patterns.clone());
        recipes.push((*slot, recipe));
    }
    let (merged, loras) = merge::merge(&options.merge, networks)?;
    let mut unmatched = options.patterns.clone();
    for (place, network) in networks.iter().enumerate() {
        let recipe = recipes.iter_mut().find(|(slot, _)| *slot == network.slot).map(|(_, recipe)| recipe);
        let recipe = recipe.ok_or_else(|| Error::graph("convert", format!("no recipe for {}", network.slot.name)))?;
        for (id, weight) in network.model.manifest().iter() {
            let stacked = alias::stacked(network.aliases(), &weight.name);
            let (in_files, part) = stacked.unwrap_or_else(|| (weight.name.clone(), 0));
            let seen = seen(network, id, (&in_files, weight));
            unmatched.retain(|pattern| !recipe::reaches(pattern, &seen));
            let choice = recipe.choose(&seen);
            let bytes = weight.shape.bytes(choice.dtype).ok_or_else(|| impossible(&weight.name, source))?;
            let own = PlannedTensor {
                name: name(options.target, network.slot, &in_files),
                shape: weight.shape,
                from: formats(network.bound, id),
                merged: merged[place].changes(id),
                to: choice.dtype,
                bytes: bytes as u64,
                fallback: choice.fallback,
            };
            let begun = tensors.iter().rposition(|tensor: &PlannedTensor| part > 0 && tensor.name == own.name);
            let tensor = begun.unwrap_or(tensors.len());
            match tensors.get_mut(tensor) {
                Some(begun) => begun.stack(&own).ok_or_else(|| impossible(&in_files, source))?,
                None => tensors.push(own),
            }
            let merged = merged[place].changes(id).then_some(place);
            weights.push(Planned { tensor, bound: network.bound, id, shape: weight.shape, merged });
        }
    }
    weights.sort_by_key(|planned| planned.tensor);
    if let Some(pattern) = unmatched.first() {
        return Err(no_match(pattern, &tensors));
    }
    let requantized = requantize::check(&tensors, &weights, options.allow_requantize)?;
    let (mut metadata, alignment) = match options.target {
        Target::Bundle => (metadata::bundle(source, networks, options.types.denoiser()), BUNDLE_ALIGNMENT),
        Target::Component(slot) => (metadata::component(source, networks, slot, &types)?, COMPONENT_ALIGNMENT),
    };
    metadata.extend(metadata::merged(source, &loras));
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let layout = Layout::new(&metadata, &specs, alignment).map_err(|error| invalid(source, &error))?;
    let left_out = types.iter().flat_map(|(slot, _)| left_over(networks, slot)).collect();
    let sources = sources(source, &loras);
    let total_bytes = layout.total_bytes();
    Ok(Plan { types, tensors, total_bytes, requantized, left_out, loras, layout, weights, merged, sources })
}

impl Plan<'_> {
    /// The type that was asked for each component: `transformer=q4_k_s,text_encoder=f16`.
    pub fn requested(&self) -> String {
        let entries: Vec<String> =
            self.types.iter().map(|(slot, file_type)| format!("{}={file_type}", slot.name)).collect();
        entries.join(",")
    }
}

/// `weight`, as a recipe sees it.
fn seen<'a>(network: &Network<'_>, id: WeightId, (name, weight): (&'a str, &Weight)) -> recipe::Weight<'a> {
    recipe::Weight {
        prefix: network.slot.prefix,
        name,
        role: weight.role,
        row_len: weight.shape.row(),
        elements: weight.shape.elements(),
        source: network.bound.dtype(id),
    }
}

/// What the weight `name` is called in the output: in a component's own file, as by other tools.
fn name(target: Target, slot: &Slot, name: &str) -> String {
    match target {
        Target::Bundle => format!("{}{name}", slot.prefix),
        Target::Component(_) => name.to_owned(),
    }
}

/// The formats of a weight's pieces, each named once.
fn formats(bound: &Bound, id: WeightId) -> String {
    let mut names: Vec<&str> = bound.pieces(id).iter().map(|piece| piece.storage().name()).collect();
    names.dedup();
    names.join("+")
}

fn spec(tensor: &PlannedTensor) -> TensorSpec {
    let dims = tensor.shape.dims()[..tensor.shape.rank()].to_vec();
    TensorSpec { name: tensor.name.clone(), dims, dtype: tensor.to }
}

fn sources(source: &Source, loras: &[lora::Report]) -> Vec<PathBuf> {
    let mut sources = vec![source.path.clone()];
    for index in source.indexes() {
        sources.extend(index.maps().iter().map(|map| map.path().to_owned()));
    }
    sources.extend(loras.iter().map(|report| report.path.clone()));
    sources
}

fn no_match(pattern: &TensorPattern, tensors: &[PlannedTensor]) -> Error {
    let matrices = tensors.iter().filter(|tensor| tensor.shape.rank() > 1).map(|tensor| tensor.name.as_str());
    let some: Vec<&str> = matrices.step_by(7).take(3).collect();
    let error = Error::option("--tensor", "a pattern of names of matrices", format!("`{pattern}`, which none has"));
    error.with_hint(format!("names are {}, ...: --dry-run lists them all", some.join(", ")))
}

fn impossible(name: &str, source: &Source) -> Error {
    Error::mismatch(
        &source.path,
        format!("tensor {name}"),
        "a size that a file can have",
        "more bytes than addresses can count",
    )
}

fn invalid(source: &Source, error: &WriteError) -> Error {
    Error::mismatch(&source.path, "output", "names and texts that GGUF can hold", error.to_string())
}
