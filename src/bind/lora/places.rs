//! Where the modules of a LoRA belong in the models that it is added to.

use std::collections::BTreeMap;
use std::ops::Range;

use super::file::{Lora, Module, some_of};
use super::keys::{Meant, Part, Reading};
use super::names::{self, Names, Place};
use super::target::Base;
use crate::index::{quoted, tensor_at};
use crate::tensor::Shape;
use crate::weights::{Role, Weight, WeightId};
use crate::{Error, Result};

/// The extents of a weight as a matrix: outputs, columns, and columns of each input.
pub(super) fn matrix(weight: &Weight) -> [usize; 3] {
    let [w, h, inputs, outputs] = weight.shape.dims();
    match weight.role {
        Role::ConvKernel => [outputs, w * h * inputs, w * h],
        Role::Vector => [weight.shape.elements(), 1, 1],
        _ => [weight.shape.rows(), weight.shape.row(), 1],
    }
}

/// Rows of a weight that a module changes.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) target: usize,
    pub(super) id: WeightId,
    /// Which of its rows.
    pub(super) rows: Range<usize>,
    /// Which of the module's outputs come first there.
    pub(super) from: usize,
}

/// A module with all that it changes.
pub(super) struct Placed<'a> {
    pub(super) module: &'a Module,
    /// Of what PEFT's settings say.
    pub(super) component: &'static str,
    pub(super) stem: String,
    /// How many outputs it has.
    pub(super) outputs: usize,
    /// Rows of weights, and those of their biases where the model has biases.
    pub(super) weights: Vec<Rows>,
    pub(super) biases: Vec<Rows>,
}

/// What of a LoRA fits, and the names of the tensors that do not.
pub(super) struct Found<'a> {
    pub(super) found: Vec<Placed<'a>>,
    pub(super) unmatched: Vec<String>,
}

/// Finds the weights of every module of `lora` in `bases`, whose names are `names`.
pub(super) fn find<'a>(lora: &'a Lora, bases: &[Base<'_>], names: &[Names]) -> Result<Found<'a>> {
    let (mut matched, mut unmatched, mut beyond) = (Vec::new(), Vec::new(), None);
    for module in &lora.modules {
        match Match::new(module, bases, names) {
            Some(found) => matched.push(found),
            None => {
                if beyond.is_none() && is_like_others(module, bases, names) {
                    beyond = module.parts.values().next();
                }
                unmatched.extend(module.parts.values().cloned());
            }
        }
    }
    if matched.is_empty() {
        return Err(fits_nothing(lora));
    }
    if let Some(tensor) = beyond {
        let error = Error::mismatch(&lora.path, tensor_at(tensor), "blocks that this model has", "another block");
        return Err(with_family(error, lora));
    }
    let sizes = Sizes::of(lora, &matched)?;
    let mut found = Vec::with_capacity(matched.len());
    for matched in matched {
        found.push(sizes.place(lora, matched, bases)?);
    }
    Ok(Found { found, unmatched })
}

/// A module and the places that have its name.
struct Match<'a> {
    module: &'a Module,
    component: &'static str,
    stem: String,
    weights: Vec<(usize, Place)>,
    biases: Vec<(usize, Place)>,
}

impl<'a> Match<'a> {
    fn new(module: &'a Module, bases: &[Base<'_>], names: &[Names]) -> Option<Match<'a>> {
        for reading in module.key.readings.iter().rev() {
            let mut found = Match {
                module,
                component: reading.component,
                stem: reading.stem.clone(),
                weights: Vec::new(),
                biases: Vec::new(),
            };
            for target in chosen(reading, bases, names) {
                let of = |bias| names[target].find(&reading.stem, bias).into_iter().map(move |place| (target, place));
                found.weights.extend(of(false));
                found.biases.extend(of(true));
            }
            if !found.weights.is_empty() {
                return Some(found);
            }
        }
        None
    }
}

/// The text encoder's number in its slot's name; 0 for another model.
fn number(slot: &str) -> u8 {
    match slot.strip_prefix("text_encoder") {
        Some("") => 1,
        Some(rest) => rest.strip_prefix('_').and_then(|number| number.parse().ok()).unwrap_or(0),
        None => 0,
    }
}

/// The slot of the second of two denoisers.
const SECOND: &str = "transformer_2";

/// The targets that a module so called is for. Trainers count text encoders in different ways, so that the number decides only
/// where several have such a module.
fn chosen(reading: &Reading, bases: &[Base<'_>], names: &[Names]) -> Vec<usize> {
    let Reading { meant, stem, component } = reading;
    let targets = (0..bases.len()).filter(|&target| !names[target].find(stem, false).is_empty());
    let (texts, denoisers): (Vec<usize>, Vec<usize>) = targets.partition(|&target| number(bases[target].slot) > 0);
    match *meant {
        // What names the second of two denoisers is for that one alone.
        Meant::Denoiser if *component == SECOND => {
            let second = denoisers.iter().copied().find(|&target| bases[target].slot == SECOND);
            second.map_or(denoisers, |second| vec![second])
        }
        Meant::Denoiser => denoisers,
        Meant::Any if !denoisers.is_empty() => denoisers,
        Meant::Any => texts.into_iter().take(1).collect(),
        Meant::Text(wanted) => match texts.as_slice() {
            [] | [_] => texts,
            _ => texts.into_iter().find(|&target| number(bases[target].slot) == wanted).into_iter().collect(),
        },
    }
}

/// Whether a denoiser has such a module in other blocks.
fn is_like_others(module: &Module, bases: &[Base<'_>], names: &[Names]) -> bool {
    let mut denoisers = names.iter().zip(bases).filter(|(_, target)| number(target.slot) == 0).map(|(names, _)| names);
    let readings = module.key.readings.iter().filter(|reading| !matches!(reading.meant, Meant::Text(_)));
    denoisers.any(|names| readings.clone().any(|reading| names.has_like(&reading.stem)))
}

fn fits_nothing(lora: &Lora) -> Error {
    let modules: Vec<&str> = lora.modules.iter().map(|module| module.key.name.as_str()).collect();
    let found = match modules.is_empty() {
        true => "none of its tensors is part of a LoRA".to_owned(),
        false => format!("no weight of this model is called {}", some_of(modules.into_iter())),
    };
    let hint = lora.family().map(|family| format!("it seems to be a LoRA for {family}"));
    Error::Mismatch {
        path: lora.path.clone(),
        at: "LoRA".into(),
        expected: "changes of this model's weights".into(),
        found,
        hint,
    }
}

/// `error` with what the LoRA seems to be for.
pub(super) fn with_family(error: Error, lora: &Lora) -> Error {
    let family = lora.family().map(|family| format!(" for {family}")).unwrap_or_default();
    error.with_hint(format!(
        "it seems to be a LoRA{family}: a LoRA works with models of the family and size it was made for"
    ))
}

/// A weight that a file may have parts of: target, weight, and the first part's name.
type Fused = (usize, WeightId, String);

/// How many outputs modules have that are parts of one weight.
struct Sizes(BTreeMap<Fused, Vec<(Option<usize>, String)>>);

impl Sizes {
    fn of(lora: &Lora, matched: &[Match<'_>]) -> Result<Sizes> {
        let mut sizes = BTreeMap::new();
        for found in matched {
            let Some((outputs, tensor)) = outputs(lora, found.module)? else { continue };
            for (target, place) in found.weights.iter().chain(&found.biases) {
                let key = (*target, place.id, place.parts[0].name.clone());
                let known = sizes.entry(key).or_insert_with(|| vec![(None, String::new()); place.parts.len()]);
                known[place.at] = (Some(names::taken(place.parts[place.at].rows, outputs).len()), tensor.clone());
            }
        }
        Ok(Sizes(sizes))
    }

    fn place<'a>(&self, lora: &Lora, found: Match<'a>, bases: &[Base<'_>]) -> Result<Placed<'a>> {
        let outputs = outputs(lora, found.module)?.map_or(0, |(outputs, _)| outputs);
        let rows = |places: &[(usize, Place)]| -> Result<Vec<Rows>> {
            places.iter().map(|(target, place)| self.rows(lora, found.module, *target, place, outputs, bases)).collect()
        };
        let (weights, biases) = (rows(&found.weights)?, rows(&found.biases)?);
        let Match { module, component, stem, .. } = found;
        Ok(Placed { module, component, stem, outputs, weights, biases })
    }

    /// The rows of a weight that are at `place`.
    fn rows(
        &self,
        lora: &Lora,
        module: &Module,
        target: usize,
        place: &Place,
        outputs: usize,
        bases: &[Base<'_>],
    ) -> Result<Rows> {
        let weight = bases[target].manifest.get(place.id);
        let [total, ..] = matrix(weight);
        let taken = names::taken(place.parts[place.at].rows, outputs);
        let rows =
            |start: usize, len: usize| Rows { target, id: place.id, rows: start..start + len, from: taken.start };
        let key = (target, place.id, place.parts[0].name.clone());
        let Some(known) = self.0.get(&key) else {
            // Only a bias changes, or a vector: by as many numbers as there are.
            return Ok(rows(0, total));
        };
        if place.parts.len() == 1 {
            let fits = taken.len() == total || (module.key.first_rows && taken.len() <= total);
            return match fits {
                true => Ok(rows(0, taken.len())),
                false => Err(wrong_rows(lora, weight, known, total)),
            };
        }
        let told: Vec<Option<usize>> = known.iter().map(|(size, _)| *size).collect();
        let sizes = names::sizes(&told, total).ok_or_else(|| wrong_rows(lora, weight, known, total))?;
        Ok(rows(sizes[..place.at].iter().sum(), sizes[place.at]))
    }
}

fn wrong_rows(lora: &Lora, weight: &Weight, known: &[(Option<usize>, String)], total: usize) -> Error {
    let known: Vec<_> = known.iter().filter_map(|(size, tensor)| Some(((*size)?, tensor))).collect();
    let tensors: Vec<String> = known.iter().map(|(_, tensor)| quoted(tensor)).collect();
    let found: Vec<String> = known.iter().map(|(size, _)| size.to_string()).collect();
    let at = format!("tensor {}", tensors.join(", "));
    let expected = format!("{total} outputs, for {}", weight.name);
    with_family(Error::mismatch(&lora.path, at, expected, found.join(" + ")), lora)
}

/// How many outputs a module changes, and the tensor that says so. `None` for one that says nothing of a weight.
fn outputs(lora: &Lora, module: &Module) -> Result<Option<(usize, String)>> {
    let rows = |part: Part| -> Result<Option<(usize, String)>> {
        let Some(name) = module.parts.get(&part) else { return Ok(None) };
        Ok(Some((first_extent(&lora.tensor(name)?.file_shape), name.clone())))
    };
    for part in [Part::Up, Part::Diff, Part::Set, Part::Scales] {
        if let Some(found) = rows(part)? {
            return Ok(Some(found));
        }
    }
    if let Some((rows, name)) = rows(Part::HadaW1A)? {
        // With a core, the factor's rows are ranks.
        let tucker = module.parts.contains_key(&Part::HadaT1);
        let columns = lora.tensor(&name)?.shape.row();
        return Ok(Some((if tucker { columns } else { rows }, name)));
    }
    let side = |whole: Part, a: Part, core: Option<Part>| -> Result<Option<(usize, String)>> {
        let tucker = core.is_some_and(|core| module.parts.contains_key(&core));
        Ok(match (rows(whole)?, rows(a)?) {
            (Some(found), _) => Some(found),
            (None, Some((_, name))) if tucker => Some((lora.tensor(&name)?.shape.row(), name)),
            (None, found) => found,
        })
    };
    let left = side(Part::LokrW1, Part::LokrW1A, None)?;
    let right = side(Part::LokrW2, Part::LokrW2A, Some(Part::LokrT2))?;
    match left.zip(right) {
        Some(((left, name), (right, _))) => Ok(left.checked_mul(right).map(|outputs| (outputs, name))),
        None => rows(Part::DiffBias),
    }
}

/// PyTorch's first extent, which counts outputs. Of a vector, its numbers, and so of a table of modulation, which has an extent of 1 before it.
pub(super) fn first_extent(file_shape: &[usize]) -> usize {
    match *file_shape {
        [width, parts, 1] => width * parts,
        _ => file_shape.last().copied().unwrap_or(1),
    }
}

/// The numbers of a shape over those of its first extent.
pub(super) fn other_extents(shape: Shape, file_shape: &[usize]) -> usize {
    shape.elements() / first_extent(file_shape).max(1)
}
