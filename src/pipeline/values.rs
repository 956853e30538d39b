//! Values of requests, as a model takes them.

use super::opened::Opened;
use super::request::{Request, Settings};
use super::rules::Use;
use super::stretch::Pass;
use crate::sample::{Chosen, Levels, Sampling, Share};
use crate::{Error, Result};

/// The noise levels of a request.
///
/// # Errors
/// As [`Scheduler::levels`](crate::sample::Scheduler::levels).
pub(super) fn levels(model: &Opened, settings: &Settings) -> Result<Levels> {
    let multiple = model.rules.multiple;
    let by_sides = (settings.width / multiple) * (settings.height / multiple);
    let tokens = model.denoiser.image_tokens(settings).unwrap_or(by_sides);
    let scheduler = &of_pass(model, settings).scheduler;
    let mut levels = scheduler.levels(&settings.sampling, settings.steps, tokens)?;
    if let Some(strength) = settings.strength {
        let first = first(model, &levels, strength)?;
        levels = levels.starting_at(first)?;
    }
    match settings.pass {
        Pass::Begun(part) => scheduler.shared(levels, Share::Until(part)),
        Pass::Refined(part) => scheduler.shared(levels, Share::From(part)),
        Pass::Only | Pass::Whole { .. } | Pass::Redrawn(_) => Ok(levels),
    }
}

/// How `request` is sampled. Where it says nothing of noise levels and `model` was published with some, they are these.
///
/// # Errors
/// As [`Scheduler::choose`](crate::sample::Scheduler::choose); [`Error::Malformed`] or [`Error::Mismatch`] for such levels that are none.
pub(super) fn chosen(model: &Opened, request: &Request) -> Result<Chosen> {
    let asked = request.sampling();
    let is_told = asked.sigmas.is_some() || asked.schedule.is_some() || asked.shift.is_some();
    let own = if is_told || asked.sampler.is_some() { None } else { model.source.sample_sigmas()? };
    let own = own.filter(|own| request.steps.is_none_or(|steps| steps == own.len()));
    model.scheduler.choose(&Sampling { sigmas: asked.sigmas.clone().or(own), ..asked })
}

/// The first evaluation of a request of this `strength`. Models of films count whole steps, as diffusers' pipelines of films.
///
/// # Errors
/// As [`Levels::first_of`].
pub(super) fn first(model: &Opened, levels: &Levels, strength: f32) -> Result<usize> {
    match model.rules.inputs.contains(&Use::Film) {
        true => levels.first_of_whole(strength),
        false => levels.first_of(strength),
    }
}

/// What reads prompts and denoises in the pass of `settings`: the `model`, or its refiner.
pub(super) fn of_pass<'m>(model: &'m Opened, settings: &Settings) -> &'m Opened {
    let refiner = model.refiner.as_deref().filter(|_| matches!(settings.pass, Pass::Refined(_)));
    refiner.unwrap_or(model)
}

/// The negative prompt of `request` for the second of two models, as `first` has one for the first.
pub(super) fn negative(model: &Opened, request: &Request, first: &Settings) -> Option<String> {
    let own = request.negative_prompt.as_ref().unwrap_or(&model.rules.defaults.negative_prompt);
    first.negative_prompt.as_ref().map(|_| own.clone())
}

/// The taught words in `texts`, each once.
pub(super) fn taught(model: &Opened, texts: &[&str]) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let Some(words) = model.encoders.words() else { return Ok(found) };
    for text in texts {
        for word in words.of(text)? {
            if !found.iter().any(|known| known == word) {
                found.push(word.to_owned());
            }
        }
    }
    Ok(found)
}

/// A `side` of a picture that `model` can draw, which `option` gave.
///
/// # Errors
/// [`Error::Option`] with the nearest that it can.
pub(super) fn side(option: &'static str, side: usize, model: &Opened) -> Result<usize> {
    let (multiple, most) = (model.rules.multiple, model.rules.most_pixels);
    if side.is_multiple_of(multiple) && (multiple..=most).contains(&side) {
        return Ok(side);
    }
    let nearest = ((side.saturating_add(multiple / 2)) / multiple * multiple).clamp(multiple, most);
    let expected = format!("a multiple of {multiple} from {multiple} to {most}");
    Err(Error::option(option, expected, side.to_string()).with_hint(format!("the nearest is {nearest}")))
}

/// A `value` between `least` and `most`, which `option` gave.
///
/// # Errors
/// [`Error::Option`].
pub(super) fn number(option: &'static str, value: f32, least: f32, most: f32) -> Result<f32> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::option(option, format!("a number from {least} to {most}"), value.to_string()))
}
