//! The registry of families, and how a model finds its own.

use super::flux_image_prompts::BESIDE;
use super::opened::{Additions, Denoiser, Family, Opened};
use super::request::OpenedWith;
use super::safety::Safety;
use super::upscale::{self, UpscaleModel};
use super::{flux, flux2, flux3, qwen_image, qwen_image_21, sd, sdxl, wan, z_image};
use crate::source::slot::UPSCALER;
use crate::source::{Layout, Networks, Place, Slot, Source, pipeline_not_run};
use crate::{Error, Result};

/// Every family that pinhole runs. Those with marks stand before those of the same kind without.
pub static FAMILIES: &[&Family] = &[
    &flux::FLUX,
    &sdxl::SDXL,
    &sdxl::REFINER,
    &sd::SD1,
    &z_image::Z_IMAGE,
    &flux2::FLUX2,
    &flux3::FLUX3,
    &qwen_image::QWEN_IMAGE,
    &qwen_image_21::QWEN_IMAGE_21,
    &wan::WAN,
];

/// Opens `source` as a model of its family. Reads headers and configurations, no weights.
///
/// # Errors
/// [`Error::NotAModel`] if it is of no family that pinhole runs or a part is missing, [`Error::Mismatch`] if parts do not fit
/// together, and what reading them returns.
pub fn open(source: &Source) -> Result<Opened> {
    open_with(source, &Additions::default())
}

/// As [`open`], with `additions`.
///
/// # Errors
/// As [`open`]; [`Error::Option`] for an addition that such a model does not take.
pub fn open_with(source: &Source, additions: &Additions) -> Result<Opened> {
    let family = family_of(source)?;
    let source = source.arranged(family.name, family.places)?;
    source.require(family.places)?;
    if family.name != qwen_image::QWEN_IMAGE.name {
        additions.refuse_zero_cond_t()?;
    }
    let mut model = (family.open)(source, additions)?;
    model.rules.told = OpenedWith { clip_skip: additions.clip_skip, zero_cond_t: additions.zero_cond_t };
    let upscaler = additions.upscaler.as_deref().map(UpscaleModel::open).transpose()?;
    Ok(Opened { safety: Safety::open(&model.source)?, upscaler, ..model })
}

/// The networks of `source` at `slot`, opened without the others, and the source with its networks at their places.
///
/// # Errors
/// As [`open`].
pub fn component(source: &Source, slot: &Slot) -> Result<(Source, Box<dyn Networks>)> {
    if let Some(place) = beside(source, slot) {
        let source = source.arranged(place.slot.name, std::slice::from_ref(place))?;
        let networks = (place.load)(source.component(slot)?)?;
        return Ok((source, networks));
    }
    let family = family_of(source)?;
    let source = source.arranged(family.name, family.places)?;
    let component = source.component(slot)?;
    let place = family.places.iter().find(|place| place.slot == slot);
    let place = place.ok_or_else(|| Error::graph("component", format!("{} has no {}", family.name, slot.name)))?;
    let networks = (place.load)(component)?;
    Ok((source, networks))
}

/// A network that goes beside models, by itself.
pub struct Alone {
    /// The source, with the network as its only component.
    pub source: Source,
    /// Its place.
    pub slot: &'static Slot,
    /// The network.
    pub networks: Box<dyn Networks>,
}

/// The network that `source` has, if it is one that goes beside models and no part of any is there.
///
/// # Errors
/// What reading it returns.
pub fn alone(source: &Source) -> Result<Option<Alone>> {
    let families = FAMILIES.iter().filter(|family| family.marks.is_empty() || source.has_tensor(family.marks));
    let beside = families.flat_map(|family| family.beside.iter().map(|place| (family.name, place)));
    for (name, place) in beside.chain([(UPSCALER.name, &upscale::PLACE)]) {
        if !source.has_loose(place.kind) {
            continue;
        }
        if FAMILIES
            .iter()
            .any(|family| family.places.iter().any(|place| source.has(place.slot) || source.has_loose(place.kind)))
        {
            return Ok(None);
        }
        let source = Source::alone(&source.path, name, place)?;
        let networks = (place.load)(source.component(place.slot)?)?;
        return Ok(Some(Alone { source, slot: place.slot, networks }));
    }
    Ok(None)
}

/// The place of what goes beside a model at `slot`, if `source` has it: in a loose file, or in a folder of Redux's directory.
fn beside(source: &Source, slot: &Slot) -> Option<&'static Place> {
    BESIDE.iter().filter(|place| place.slot == slot).find(|place| source.holds(place))
}

/// The denoiser of `source`, opened without the rest of the model, and the family that it is of.
///
/// # Errors
/// As [`open`].
pub fn denoiser(source: &Source) -> Result<(&'static Family, Box<dyn Denoiser>)> {
    let family = family_of(source)?;
    let source = source.arranged(family.name, family.places)?;
    Ok((family, (family.denoiser)(&source)?))
}

/// The family of `source`: the one that it names, or else the one whose denoiser is there, or else the first that has a place
/// for what is there.
///
/// # Errors
/// [`Error::NotAModel`] if there is none.
pub fn family_of(source: &Source) -> Result<&'static Family> {
    let found = family_by_name_or_place(source)?;
    // Both have the same classes of pipelines and the same kinds of networks.
    Ok(if found.name == sdxl::SDXL.name && sdxl::is_refiner(source) { &sdxl::REFINER } else { found })
}

/// The same, which takes a refiner for what it refines.
fn family_by_name_or_place(source: &Source) -> Result<&'static Family> {
    if let Some(says) = source.says.as_deref() {
        let named = FAMILIES.iter().find(|family| family.name == says || family.classes.contains(&says));
        return named.copied().ok_or_else(|| unknown(source, says));
    }
    if source.layout == Layout::Bundle {
        // Names of components say nothing of what lies there.
        return Err(unknown(source, ""));
    }
    let denoiser = |place: &Place| source.has(place.slot) || source.has_loose(place.kind);
    let first_of = |is_there: &dyn Fn(&Place) -> bool| {
        FAMILIES.iter().find(|family| {
            let is_marked = family.marks.is_empty() || source.has_tensor(family.marks);
            is_marked && family.places.first().is_some_and(is_there)
        })
    };
    // What was given for a place may be a network of any kind: those that are known come first.
    let by_denoiser = first_of(&|place| source.has_loose(place.kind)).or_else(|| first_of(&denoiser));
    by_denoiser
        .or_else(|| FAMILIES.iter().find(|family| family.places.iter().any(denoiser)))
        .copied()
        .ok_or_else(|| unknown(source, ""))
}

fn unknown(source: &Source, says: &str) -> Error {
    let (names, found) = match source.layout {
        Layout::Diffusers => {
            let classes = FAMILIES.iter().flat_map(|family| family.classes).copied().collect::<Vec<_>>();
            let found = format!("a diffusers directory of a {says}");
            if let Some((what, instead)) = pipeline_not_run(says) {
                let (found, hint) = (format!("{found}, {what}"), format!("{instead}; {}", runs(&classes)));
                return Error::NotAModel { path: source.path.clone(), found, hint: Some(hint) };
            }
            (classes, found)
        }
        Layout::Files if says.is_empty() && source.has_loose(upscale::PLACE.kind) => {
            let hint = "it makes pictures larger: `pinhole upscale IN OUT -m FILE` does so".to_owned();
            let found = format!("it holds {}", upscale::PLACE.kind.words);
            return Error::NotAModel { path: source.path.clone(), found, hint: Some(hint) };
        }
        Layout::Files if says.is_empty() => {
            let what = BESIDE.iter().filter(|place| source.has_loose(place.kind));
            let words: Vec<&str> = what.map(|place| place.kind.words).collect();
            let hint = "it goes beside a model: give it with --redux or --image-encoder; `pinhole convert --component` takes it alone";
            let found = format!("it holds {}", words.join(", "));
            return Error::NotAModel { path: source.path.clone(), found, hint: Some(hint.to_owned()) };
        }
        _ => {
            let names = FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>();
            let found = match says {
                "" => "its metadata names no architecture".to_owned(),
                other => format!("a model of the architecture `{other}`"),
            };
            (names, found)
        }
    };
    Error::NotAModel { path: source.path.clone(), found, hint: Some(runs(&names)) }
}

fn runs(names: &[&str]) -> String {
    format!("this version runs: {}", names.join(", "))
}
