//! What a request says of a second pass: a refiner goes on where the model stops, or what the model drew is made larger and drawn again.

use super::opened::{Direction, Opened};
use super::request::{Request, Settings};
use super::rules::Use;
use super::start::Inputs;
use super::stretch::{Pass, Upscale, UpscaleSpace};
use super::values::{levels, negative, number, side, taught};
use crate::sample::Chosen;
use crate::{Error, Result};

const REFINER: &str = "--refiner";
const REFINER_START: &str = "--refiner-start";
const UPSCALE: &str = "--upscale";
const STRENGTH: &str = "--upscale-strength";

/// From which part of the steps on a refiner goes on, if no one says.
const START: f32 = 0.8;

/// Most times as large as in the first pass.
const MOST_FACTOR: f32 = 8.0;

/// The `settings` of `request` with those of a second pass, if there is one.
///
/// # Errors
/// [`Error::Option`] for the first value that cannot work.
pub(super) fn with_second(model: &Opened, request: &Request, settings: Settings) -> Result<Settings> {
    match (&model.refiner, request.upscale) {
        (Some(_), Some(upscale)) => {
            let error = Error::option(UPSCALE, "nothing beside a refiner", upscale.factor.to_string());
            Err(error.with_hint("draw with the refiner first, and give the picture with --image"))
        }
        (Some(refiner), None) => refined(model, refiner, request, settings),
        (None, _) if request.refiner_start.is_some() => {
            let error = Error::option(REFINER_START, "a model that was opened with a refiner", "one without");
            Err(error.with_hint("give it with --refiner FILE"))
        }
        (None, Some(upscale)) if settings.fps.is_some() => {
            let expected = "nothing, since videos are drawn in one pass";
            Err(Error::option(UPSCALE, expected, upscale.factor.to_string()))
        }
        (None, Some(upscale)) => redrawn(model, request, upscale, settings),
        (None, None) => Ok(settings),
    }
}

/// Refuses pictures that only one of two passes would be given.
fn refuse_pictures(model: &Opened, request: &Request, option: &'static str) -> Result<()> {
    if request.mask.is_some() {
        return Err(Error::option(option, "nothing beside a mask", "a mask"));
    }
    match model.rules.beside {
        Some(_) => Err(Error::option(option, "a model that takes no picture beside its latents", "one that does")),
        None => Ok(()),
    }
}

/// As the original of both passes says it: the model makes the first steps, and the `refiner` the others.
fn refined(model: &Opened, refiner: &Opened, request: &Request, settings: Settings) -> Result<Settings> {
    refuse_pictures(model, request, REFINER)?;
    if request.embeddings.is_some() {
        let error = Error::option("embeddings", "a prompt as text, which the refiner reads, too", "embeddings");
        return Err(error.with_hint("leave them out, or open the model without a refiner"));
    }
    let start = request.refiner_start.unwrap_or(START);
    if !(start > 0.0 && start < 1.0) {
        return Err(Error::option(REFINER_START, "a number between 0 and 1", start.to_string()));
    }
    // The number as it was written.
    let start = start.to_string().parse().unwrap_or(f64::from(start));
    let first = Settings { pass: Pass::Begun(start), ..settings };
    levels(model, &first)?;
    let negative_prompt = negative(refiner, request, &first);
    let mut second = Settings {
        pass: Pass::Refined(start),
        sampling: Chosen { ays: refiner.rules.ays, ..refiner.scheduler.choose(&request.sampling())? },
        aesthetic: aesthetic(refiner, request)?,
        negative_is_zero: negative_prompt.as_deref() == Some("")
            && request.negative_prompt.is_none()
            && refiner.rules.zeros_without_negative,
        negative_prompt,
        strength: None,
        encoded_pictures: 0,
        cache: None,
        // What is followed or looked at is the model's.
        controls: Vec::new(),
        control_guess: false,
        ip_images: 0,
        text_tokens: Vec::new(),
        ..first.clone()
    };
    levels(refiner, &second)?;
    let mut texts = vec![request.prompt.as_str()];
    texts.extend(second.negative_prompt.as_deref());
    let tokens = refiner.encoders.tokens(&texts, &second)?;
    second.taught = taught(refiner, &texts)?;
    second.text_tokens = tokens;
    Ok(Settings { second: Some(Box::new(second)), ..first })
}

/// What a model is told of how pleasing a picture is, with the prompt and with the negative one; `None` if it is not told.
///
/// # Errors
/// [`Error::Option`] for scores that a model is not told of, or that are none.
pub(super) fn aesthetic(model: &Opened, request: &Request) -> Result<Option<[f32; 2]>> {
    // As in diffusers.
    const SCORES: [f32; 2] = [6.0, 2.5];
    const OPTIONS: [&str; 2] = ["--aesthetic-score", "--negative-aesthetic-score"];
    let told = [model, model.refiner.as_deref().unwrap_or(model)].iter().any(|model| model.rules.is_told_scores);
    let mut scores = SCORES;
    for ((score, option), given) in
        scores.iter_mut().zip(OPTIONS).zip([request.aesthetic_score, request.negative_aesthetic_score])
    {
        let Some(given) = given else { continue };
        if !told {
            let expected = "a model that is told scores, as the refiner of Stable Diffusion XL";
            return Err(Error::option(option, expected, "one that is not"));
        }
        *score = number(option, given, 0.0, 100.0)?;
    }
    Ok(model.rules.is_told_scores.then_some(scores))
}

/// What the first pass draws is stretched, and drawn again under less noise.
fn redrawn(model: &Opened, request: &Request, upscale: Upscale, settings: Settings) -> Result<Settings> {
    if !model.rules.inputs.contains(&Use::Start) {
        return Err(Error::option(UPSCALE, "nothing, since this model begins with no picture", "a factor"));
    }
    refuse_pictures(model, request, UPSCALE)?;
    let Upscale { factor, space, strength, steps } = upscale;
    if !(1.0..=MOST_FACTOR).contains(&factor) {
        return Err(Error::option(UPSCALE, format!("a number from 1 to {MOST_FACTOR}"), factor.to_string()));
    }
    if space == UpscaleSpace::Pixel && !model.encoder(&settings).goes(Direction::Encode) {
        let error = Error::option("--upscale-space", "latent, since the autoencoder cannot encode", space.name());
        return Err(error.with_hint("give a whole autoencoder with --vae FILE"));
    }
    let multiple = model.rules.multiple;
    // The number as it was written.
    let written: f64 = factor.to_string().parse().unwrap_or(f64::from(factor));
    let larger = |side: usize| {
        let wanted = written * side as f64 / multiple as f64;
        (wanted.round() as usize).max(1) * multiple
    };
    let (width, height) = (larger(settings.width), larger(settings.height));
    for side in [width, height] {
        self::side(UPSCALE, side, model)?;
    }
    let first =
        Settings { pass: Pass::Whole { decodes: space == UpscaleSpace::Pixel }, upscale: Some(upscale), ..settings };
    let is_default = first.original_size == [first.width, first.height];
    let mut second = Settings {
        pass: Pass::Redrawn(space),
        width,
        height,
        original_size: if is_default { [width, height] } else { first.original_size },
        steps: steps.unwrap_or(first.steps),
        strength: Some(strength),
        sampling: Chosen { ays: model.rules.ays, ..model.scheduler.choose(&request.sampling())? },
        ..first.clone()
    };
    if let (Some(sigmas), Some(steps)) = (&second.sampling.sigmas, steps)
        && sigmas.len() != steps
    {
        let expected = format!("{}, as many as --sigmas", sigmas.len());
        return Err(Error::option("--upscale-steps", expected, steps.to_string()));
    }
    levels(model, &second).map_err(|error| match error {
        Error::Option { option: "--strength", expected, found, .. } => Error::option(STRENGTH, expected, found),
        Error::Option { option: "--steps", expected, found, .. } => Error::option("--upscale-steps", expected, found),
        error => error,
    })?;
    second.encoded_pictures = Inputs::of(&model.rules, request, &second).count();
    Ok(Settings { second: Some(Box::new(second)), ..first })
}
