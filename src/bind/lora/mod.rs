//! LoRA files: changes of a model's weights, in all the spellings that people's files have.
//!
//! A [`Lora`] is read (its header, and the numbers once, to see that they are finite), its names are looked up among all names that
//! the [alias table](super::alias) gives the model's weights, and what it changes is either declared as
//! [branches](crate::stage::Branch) beside the weights ([`add`]), or merged into them ([`merged`]).
//!
//! | in the file | beside a weight |
//! |---|---|
//! | down and up, LoCon's kernels | two matrices (or three kernels), as they lie in the file |
//! | LoKr | two to four matrices, as they lie in the file; a Tucker core is multiplied out, in memory |
//! | LoHa | the product of the ranks as the rank of two matrices, in memory; one as large as the weight where that is smaller |
//! | `.diff` of a matrix | a matrix as large, as it lies in the file |
//! | `.diff`, `.diff_b` of a vector | the vector with the difference added, in memory |
//! | DoRA | as above, and a factor for each output (or input), in memory |
//!
//! What is in memory is F32 and belongs to the model's weights from then on: planned, placed and streamed as they are.

mod attach;
mod delta;
mod keys;
mod module;
mod names;
mod places;
mod seems;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use delta::{Changes, Delta, Merged};
use keys::Part;
use names::Names;
pub use settings::About;
use settings::Adapter;

use super::Bound;
use super::alias::Alternative;
use crate::index::{FileTensor, quoted, tensor_at};
use crate::safetensors::Safetensors;
use crate::stage::Model;
use crate::{Error, Result};

/// How many names a message gives.
const NAMED: usize = 4;

/// A model that a LoRA may change, and where its weights come from.
pub struct Target<'a> {
    /// Its place in the whole, by diffusers' name of its folder: `transformer`, `unet`, `text_encoder_2`.
    pub slot: &'static str,
    /// The model.
    pub model: &'a mut Model,
    /// Its weights.
    pub bound: &'a mut Bound,
    /// What files call them.
    pub aliases: &'a dyn Fn(&str) -> Vec<Alternative>,
}

/// What became of a LoRA.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// Its strength.
    pub strength: f32,
    /// How many of its tensors were used.
    pub used: usize,
    /// Those that fit nothing.
    pub unused: Vec<String>,
    /// The family of models that it seems to be for.
    pub family: Option<&'static str>,
    /// What its metadata say.
    pub about: About,
}

impl Report {
    /// What a user should hear of: how many tensors fit nothing, with examples. `None` where all were used.
    pub fn warning(&self) -> Option<String> {
        let examples = some_of(self.unused.iter().map(String::as_str));
        let (path, all) = (self.path.display(), self.used + self.unused.len());
        (!self.unused.is_empty()).then(|| {
            format!("{path}: {} of its {all} tensors fit nothing in this model: {examples}", self.unused.len())
        })
    }
}

/// Some names of many, for a message.
fn some_of<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let shown: Vec<String> = names.take(NAMED).map(quoted).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// A LoRA's file.
pub struct Lora {
    path: PathBuf,
    file: Safetensors,
    adapter: Adapter,
    modules: Vec<Module>,
    /// Tensors that are part of no change.
    others: Vec<String>,
}

/// The change of one module.
struct Module {
    key: keys::Module,
    /// The tensors' names.
    parts: BTreeMap<Part, String>,
}

impl Lora {
    /// Opens the file at `path`. Its numbers are not read.
    ///
    /// # Errors
    /// Those of [`Safetensors::open`]; [`Error::Malformed`] where two tensors are the same part of one module or the training's
    /// settings cannot be read.
    pub fn open(path: &Path) -> Result<Lora> {
        let file = Safetensors::open(path)?;
        let adapter = Adapter::read(&file.metadata, path)?;
        let (mut modules, mut others) = (BTreeMap::<String, Module>::new(), Vec::new());
        for (name, _) in file.index.iter() {
            let Some((key, part)) = keys::parse(name) else {
                others.push(name.to_owned());
                continue;
            };
            let module = modules.entry(key.name.clone()).or_insert_with(|| Module { key, parts: BTreeMap::new() });
            if let Some(first) = module.parts.insert(part, name.to_owned()) {
                let found = format!("{} too", quoted(&first));
                return Err(Error::malformed(path, tensor_at(name), "each part of a change once", found));
            }
        }
        let modules = modules.into_values().collect();
        Ok(Lora { path: path.to_owned(), file, adapter, modules, others })
    }

    /// What its metadata say about it.
    pub fn about(&self) -> About {
        About::read(&self.file.metadata)
    }

    /// The family of models that it seems to be for, by its names.
    pub fn family(&self) -> Option<&'static str> {
        let columns = |name: &str| {
            let module = self.modules.iter().find(|module| module.key.name == name)?;
            self.file.index.get(module.parts.get(&Part::Down)?).map(|tensor| tensor.shape.row())
        };
        seems::family(self.modules.iter().map(|module| module.key.name.as_str()), columns)
    }

    /// The tensor `name`, which is there.
    fn tensor(&self, name: &str) -> Result<&FileTensor> {
        let missing = || Error::mismatch(&self.path, tensor_at(name), "such a tensor", "none");
        self.file.index.get(name).ok_or_else(missing)
    }

    /// The report on it when all that fits is known.
    fn report(&self, strength: f32, used: usize, unmatched: Vec<String>) -> Report {
        let unused = unmatched.into_iter().chain(self.others.iter().cloned()).collect();
        Report { path: self.path.clone(), strength, used, unused, family: self.family(), about: self.about() }
    }
}

/// Adds the LoRA at `path` to `targets`, its changes multiplied by `strength`: branches beside the weights, whose bytes are the
/// file's or in memory. Several LoRAs are added one after another, and their changes add up.
///
/// # Errors
/// Those of [`Lora::open`]; [`Error::NotAModel`] where it fits none of the targets, with what it seems to be for;
/// [`Error::Mismatch`] naming a tensor of a wrong shape, of a block that the model does not have, or without its counterpart;
/// [`Error::NotFinite`] naming one with a NaN or an infinity.
pub fn add(path: &Path, strength: f32, targets: &mut [Target<'_>]) -> Result<Report> {
    let (lora, fitted) = (&Lora::open(path)?, &mut Vec::new());
    let report = fit(lora, strength, targets, fitted)?;
    for (target, changes) in targets.iter_mut().zip(fitted.drain(..)) {
        attach::attach(target, changes)?;
    }
    Ok(report)
}

/// What the LoRAs at `paths`, each with its strength, make of the weights of `targets`, for a conversion: one [`Merged`] for each
/// target, and a report for each file.
///
/// # Errors
/// As [`add`].
pub fn merged(paths: &[(PathBuf, f32)], targets: &[Target<'_>]) -> Result<(Vec<Merged>, Vec<Report>)> {
    let mut all: Vec<Merged> = targets.iter().map(|_| Merged::default()).collect();
    let mut reports = Vec::with_capacity(paths.len());
    for (path, strength) in paths {
        let mut fitted = Vec::new();
        reports.push(fit(&Lora::open(path)?, *strength, targets, &mut fitted)?);
        for (all, new) in all.iter_mut().zip(fitted) {
            all.deltas.extend(new.deltas);
            all.vectors.extend(new.vectors);
        }
    }
    Ok((all, reports))
}

/// Fills `fitted` with what `lora` changes in each of `targets`.
fn fit(lora: &Lora, strength: f32, targets: &[Target<'_>], fitted: &mut Vec<Merged>) -> Result<Report> {
    if !strength.is_finite() {
        return Err(Error::option("--lora", "a strength that is a finite number", strength.to_string()));
    }
    let names: Vec<Names> = targets.iter().map(|target| Names::new(target.model.manifest(), target.aliases)).collect();
    let places::Found { found, unmatched } = places::find(lora, targets, &names)?;
    fitted.extend(targets.iter().map(|_| Merged::default()));
    let mut used = 0;
    for places in &found {
        module::read(lora, strength, places, targets, fitted)?;
        used += places.module.parts.len();
    }
    for (target, merged) in targets.iter().zip(fitted.iter_mut()) {
        // A LoRA without strength changes nothing, DoRA's norms included.
        if strength == 0.0 {
            *merged = Merged::default();
        }
        for delta in &mut merged.deltas {
            delta.set_gains(target.bound)?;
        }
    }
    Ok(lora.report(strength, used, unmatched))
}
