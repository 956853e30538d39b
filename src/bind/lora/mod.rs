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
mod contents;
mod delta;
mod file;
mod keys;
mod low_rank;
mod module;
mod names;
mod outline;
mod places;
mod seems;
mod settings;
mod target;

use std::path::{Path, PathBuf};

pub use delta::{Changes, Delta, Merged};
pub use file::Lora;
use file::some_of;
pub use low_rank::{CONTROL_MARK, LowRank, Spelling};
use names::Names;
pub use outline::Outline;
pub use seems::FIRST_LAYERS;
pub use settings::About;
pub use target::{Base, Target};

use crate::{Error, Result};

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

impl Lora {
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
    let bases: Vec<Base<'_>> = targets.iter().map(Target::base).collect();
    let report = fit(lora, strength, &bases, fitted)?;
    for (target, changes) in targets.iter_mut().zip(fitted.drain(..)) {
        attach::attach(target, changes)?;
    }
    Ok(report)
}

/// What the LoRAs at `paths`, each with its strength, make of the weights of `bases`, for a conversion: one [`Merged`] for each
/// of them, and a report for each file.
///
/// # Errors
/// As [`add`].
pub fn merged(paths: &[(PathBuf, f32)], bases: &[Base<'_>]) -> Result<(Vec<Merged>, Vec<Report>)> {
    let mut all: Vec<Merged> = bases.iter().map(|_| Merged::default()).collect();
    let mut reports = Vec::with_capacity(paths.len());
    for (path, strength) in paths {
        let mut fitted = Vec::new();
        reports.push(fit(&Lora::open(path)?, *strength, bases, &mut fitted)?);
        for (all, new) in all.iter_mut().zip(fitted) {
            all.deltas.extend(new.deltas);
            all.vectors.extend(new.vectors);
        }
    }
    Ok((all, reports))
}

/// Fills `fitted` with what `lora` changes in each of `bases`.
fn fit(lora: &Lora, strength: f32, bases: &[Base<'_>], fitted: &mut Vec<Merged>) -> Result<Report> {
    if !strength.is_finite() {
        return Err(Error::option("--lora", "a strength that is a finite number", strength.to_string()));
    }
    let names: Vec<Names> = bases.iter().map(|base| Names::new(base.manifest, base.aliases)).collect();
    let places::Found { found, unmatched } = places::find(lora, bases, &names)?;
    fitted.extend(bases.iter().map(|_| Merged::default()));
    let mut used = 0;
    for places in &found {
        module::read(lora, strength, places, bases, fitted)?;
        used += places.module.parts.len();
    }
    for (base, merged) in bases.iter().zip(fitted.iter_mut()) {
        // A LoRA without strength changes nothing, DoRA's norms included.
        if strength == 0.0 {
            *merged = Merged::default();
        }
        for delta in &mut merged.deltas {
            delta.set_gains(base.bound)?;
        }
    }
    Ok(lora.report(strength, used, unmatched))
}
