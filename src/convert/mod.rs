//! From a model on disk to one GGUF bundle.
//!
//! A [`Plan`] names every tensor of the output with its format and size before anything is written; [`Plan::write`]
//! then takes one piece of one tensor after the other through memory, so that a model of any size converts in a few
//! dozen megabytes. Tensors are written in stage order: a stage is one contiguous read.

mod types;
mod write;

use std::path::PathBuf;

use pinhole_quant::DType;
use pinhole_quant::gguf::{Array, Layout, Strings, TensorSpec, Value, WriteError};
use pinhole_quant::recipe::{self, Fallback, FileType, Recipe};

use crate::bind::Bound;
use crate::source::flux::FluxModel;
use crate::source::{ComponentKind, Source, Text, keys};
use crate::tensor::Shape;
use crate::weights::WeightId;
use crate::{Error, Result};

pub use types::Types;
pub use write::Progress;

/// What tensors' offsets in a bundle are multiples of, in bytes: a page.
const ALIGNMENT: u32 = 4096;

/// ggml's version of its quantized formats (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// A tensor of the output.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// Its name in the bundle.
    pub name: String,
    /// Its extents, in ggml order.
    pub shape: Shape,
    /// What it is made of: the formats of its pieces in the source.
    pub from: String,
    /// Its format.
    pub to: DType,
    /// The bytes that it takes.
    pub bytes: u64,
    /// Why it is not in the format that was asked for, where it is not.
    pub fallback: Option<Fallback>,
}

/// What a conversion will write.
pub struct Plan<'a> {
    /// Every tensor, in the order of the file.
    pub tensors: Vec<PlannedTensor>,
    /// The size of the output, to the byte.
    pub total_bytes: u64,
    layout: Layout,
    weights: Vec<(&'a Bound, WeightId)>,
    source: PathBuf,
}

/// Plans the bundle of `model`, which is `source`'s, in `types`.
///
/// # Errors
/// [`Error::Mismatch`] where the source has a name or a text that no GGUF can hold.
pub fn plan<'a>(source: &Source, model: &'a FluxModel, types: impl Into<Types>) -> Result<Plan<'a>> {
    let types = types.into();
    let (mut tensors, mut weights) = (Vec::new(), Vec::new());
    let mut recipes = ComponentKind::ALL.map(|kind| (kind, Recipe::new(types.of(kind), "flux")));
    for (kind, net, bound) in model.parts() {
        let recipe = recipes.iter_mut().find(|(other, _)| *other == kind).map(|(_, recipe)| recipe);
        let recipe = recipe.ok_or_else(|| Error::graph("convert", format!("no recipe for {}", kind.name())))?;
        for (id, weight) in net.manifest().iter() {
            let stored = bound.dtype(id);
            let choice = recipe.choose(&recipe::Weight {
                name: &weight.name,
                role: weight.role,
                row_len: weight.shape.row(),
                elements: weight.shape.elements(),
                source: stored,
            });
            let bytes = weight.shape.bytes(choice.dtype).ok_or_else(|| impossible(&weight.name, source))?;
            tensors.push(PlannedTensor {
                name: format!("{}{}", kind.prefix(), weight.name),
                shape: weight.shape,
                from: formats(bound, id),
                to: choice.dtype,
                bytes: bytes as u64,
                fallback: choice.fallback,
            });
            weights.push((bound, id));
        }
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let layout = Layout::new(&metadata(source, types.transformer()), &specs, ALIGNMENT);
    let layout = layout.map_err(|error| invalid(source, &error))?;
    Ok(Plan { total_bytes: layout.total_bytes(), layout, tensors, weights, source: source.path.clone() })
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

fn metadata(source: &Source, file_type: FileType) -> Vec<(String, Value)> {
    let mut names = Strings::with_capacity(ComponentKind::ALL.len());
    source.components().for_each(|(kind, _)| names.push(kind.name()));
    let mut metadata: Vec<(String, Value)> = vec![
        (keys::ARCHITECTURE.into(), source.architecture.as_str().into()),
        (keys::QUANTIZATION_VERSION.into(), QUANTIZATION_VERSION.into()),
        (keys::FILE_TYPE.into(), file_type.number().into()),
        (keys::VERSION.into(), crate::source::VERSION.into()),
        (keys::COMPONENTS.into(), Value::Array(Array::String(names))),
    ];
    if let Some(name) = source.path.file_stem() {
        metadata.push((keys::NAME.into(), name.to_string_lossy().into_owned().into()));
    }
    let mut text = |key: String, text: Option<&Text>| {
        metadata.extend(text.map(|text| (key, text.text.as_str().into())));
    };
    for (kind, component) in source.components() {
        text(keys::component_config(kind.name()), component.config.as_ref().map(without_paths).as_ref());
    }
    for (name, files) in [("tokenizer", &source.tokenizer), ("tokenizer_2", &source.tokenizer_2)] {
        text(keys::tokenizer(name), files.as_ref().map(|files| &files.tokenizer));
        text(keys::tokenizer_config(name), files.as_ref().and_then(|files| files.config.as_ref()));
    }
    text(keys::SCHEDULER.into(), source.scheduler.as_ref());
    text(keys::DEFAULTS.into(), source.defaults.as_ref());
    metadata
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

fn impossible(name: &str, source: &Source) -> Error {
    Error::mismatch(&source.path, format!("tensor {name}"), "rows that its blocks divide", "others")
}

fn invalid(source: &Source, error: &WriteError) -> Error {
    Error::mismatch(&source.path, "bundle", "names and texts that GGUF can hold", error.to_string())
}
