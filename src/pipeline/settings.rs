//! Requests with every default filled in.

use super::opened::Direction;
use super::opened::Opened;
use super::request::{Request, Settings};
use super::rules::Use;
use crate::sample::Levels;
use crate::source::Text;
use crate::{Error, Result};

/// How many pictures one request may make.
const MOST_BATCH: usize = 64;

/// The longest text that is a prompt, in bytes. Text encoders read some hundred tokens; tokenizers take time and memory for all of
/// it.
const MOST_TEXT: usize = 1 << 16;

/// Refuses a `text` that nobody would write.
fn check_text(option: &'static str, text: &str) -> Result<()> {
    if text.len() <= MOST_TEXT {
        return Ok(());
    }
    let error = Error::option(option, format!("at most {MOST_TEXT} bytes of text"), format!("{} bytes", text.len()));
    Err(error.with_hint("text encoders read a few hundred tokens, and nothing of what follows"))
}

/// `request` with every default of `model` filled in.
///
/// # Errors
/// [`Error::Option`] for the first value that cannot work.
pub fn settings(model: &Opened, request: &Request) -> Result<Settings> {
    let rules = &model.rules;
    let defaults = &rules.defaults;
    let own = |key| Default { model, key };
    check_text("--prompt", &request.prompt)?;
    let cfg_scale = number("--cfg-scale", request.cfg_scale.unwrap_or(defaults.cfg_scale), 0.0, 100.0);
    let says = |key| model.source.defaults.as_ref().is_some_and(|defaults| defaults.text.contains(key));
    let cfg_key = if says("true_cfg_scale") { "true_cfg_scale" } else { "guidance_scale" };
    let cfg_scale = own(cfg_key).blame(request.cfg_scale.is_some(), cfg_scale)?;
    let guidance = number("--guidance", request.guidance.or(rules.guidance).unwrap_or(0.0), 0.0, 1000.0);
    let guidance = own("guidance_scale").blame(request.guidance.is_some(), guidance)?;
    let negative = request.negative_prompt.as_ref().unwrap_or(&defaults.negative_prompt);
    own("negative_prompt").blame(request.negative_prompt.is_some(), check_text("--negative-prompt", negative))?;
    let negative = (cfg_scale > 1.0).then(|| negative.clone());
    check_original(model, request)?;
    // Whether one step more or less works is the schedule's business; it knows its limits.
    let steps = request.steps.unwrap_or(defaults.steps);
    let sampler = model.scheduler.sampler(request.sampler)?;
    let levels = model.scheduler.levels(sampler, steps, 1);
    let levels = own("num_inference_steps").blame(request.steps.is_some(), levels)?;
    let strength = strength(model, request)?;
    if let Some(strength) = strength {
        levels.first_of(strength)?;
    }
    if !(1..=MOST_BATCH).contains(&request.batch) {
        return Err(Error::option("--batch", format!("1 to {MOST_BATCH}"), request.batch.to_string()));
    }
    let tokens = request.max_sequence_length.unwrap_or(defaults.tokens);
    if !rules.tokens.contains(&tokens) {
        let (least, most) = (rules.tokens.start(), rules.tokens.end());
        let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
        let error = Error::option("--max-sequence-length", expected, tokens.to_string());
        return own("max_sequence_length").blame(request.max_sequence_length.is_some(), Err(error));
    }
    let width = side("--width", request.width.unwrap_or(defaults.width), model);
    let height = side("--height", request.height.unwrap_or(defaults.height), model);
    let width = own("width").blame(request.width.is_some(), width)?;
    let height = own("height").blame(request.height.is_some(), height)?;
    let settings = Settings {
        width,
        height,
        steps,
        seed: request.seed,
        guidance: rules.guidance.map(|_| guidance),
        cfg_scale,
        negative_is_zero: negative.as_deref() == Some("")
            && request.negative_prompt.is_none()
            && rules.zeros_without_negative,
        negative_prompt: negative,
        original_size: request.original_size.unwrap_or([width, height]),
        crop: request.crop.unwrap_or([0, 0]),
        sampler,
        strength,
        masked: request.mask.is_some(),
        max_sequence_length: tokens,
        batch: request.batch,
        embedded: false,
    };
    match &request.embeddings {
        Some(embeddings) => embeddings.fill_in(settings, request, model),
        None => Ok(settings),
    }
}

/// The most pixels of a side that a model may be told of.
const MOST_TOLD: usize = 1 << 16;

/// Refuses an original that the model is not told of, or that cannot be.
fn check_original(model: &Opened, request: &Request) -> Result<()> {
    for (option, given, least) in [("--original-size", request.original_size, 1), ("--crop", request.crop, 0)] {
        let Some([x, y]) = given else { continue };
        if !model.rules.is_told_sizes {
            return Err(Error::option(option, "a model that is told sizes, as Stable Diffusion XL", "one that is not"));
        }
        if [x, y].iter().any(|side| !(least..=MOST_TOLD).contains(side)) {
            return Err(Error::option(
                option,
                format!("two numbers from {least} to {MOST_TOLD}"),
                format!("{x} and {y}"),
            ));
        }
    }
    Ok(())
}

/// A default that the model brings, by its name there.
struct Default<'a> {
    model: &'a Opened,
    key: &'static str,
}

impl Default<'_> {
    /// `checked`, with the blame where it belongs: on the option, if it was given, and on the model's defaults otherwise.
    fn blame<T>(&self, given: bool, checked: Result<T>) -> Result<T> {
        let defaults =
            self.model.source.defaults.as_ref().filter(|defaults| !given && defaults.text.contains(self.key));
        let Some(Text { origin, .. }) = defaults else { return checked };
        checked.map_err(|error| match error {
            Error::Option { option, expected, found, .. } => {
                let error = Error::mismatch(origin, format!("defaults: {}", self.key), expected, found);
                error.with_hint(format!("give {option}"))
            }
            other => other,
        })
    }
}

/// The noise levels of a request.
///
/// # Errors
/// As [`Scheduler::levels`](crate::sample::Scheduler::levels).
pub(super) fn levels(model: &Opened, settings: &Settings) -> Result<Levels> {
    let multiple = model.rules.multiple;
    let tokens = (settings.width / multiple) * (settings.height / multiple);
    let levels = model.scheduler.levels(settings.sampler, settings.steps, tokens)?;
    match settings.strength {
        Some(strength) => {
            let first = levels.first_of(strength)?;
            levels.starting_at(first)
        }
        None => Ok(levels),
    }
}

/// How far from the picture of `request` the result may be; `None` without a picture.
fn strength(model: &Opened, request: &Request) -> Result<Option<f32>> {
    let rules = &model.rules;
    let given = [(Use::Start, "--image", request.image.is_some()), (Use::Mask, "--mask", request.mask.is_some())];
    for (purpose, option, given) in given {
        if given && !rules.inputs.contains(&purpose) {
            return Err(Error::option(option, "nothing, since this model takes no such picture", "a picture"));
        }
    }
    if request.image.is_none() {
        if request.mask.is_some() {
            let error = Error::option("--mask", "a mask together with its picture", "a mask alone");
            return Err(error.with_hint("give the picture with --image"));
        }
        if request.strength.is_some() {
            let error = Error::option("--strength", "a strength together with a picture", "a strength alone");
            return Err(error.with_hint("give the picture with --image"));
        }
        return Ok(None);
    }
    if let (Some(image), Some(mask)) = (&request.image, &request.mask) {
        mask.require_size_of(image)?;
    }
    if !model.autoencoder.goes(Direction::Encode) {
        let error = Error::option("--image", "a model whose autoencoder can encode", "a decoder alone");
        return Err(error.with_hint("give a whole autoencoder with --vae FILE"));
    }
    let defaults = &rules.defaults;
    let default = if request.mask.is_some() { defaults.strength_with_mask } else { defaults.strength };
    Ok(Some(request.strength.unwrap_or(default)))
}

/// The options that were given and change nothing, in words.
pub(super) fn without_effect(request: &Request, settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    if request.negative_prompt.as_ref().is_some_and(|text| !text.is_empty()) && settings.negative_prompt.is_none() {
        found.push("the negative prompt has no effect without a --cfg-scale above 1".to_owned());
    }
    if request.guidance.is_some() && settings.guidance.is_none() {
        found.push("this model takes no guidance: --guidance has no effect".to_owned());
    }
    found
}

fn side(option: &'static str, side: usize, model: &Opened) -> Result<usize> {
    let (multiple, most) = (model.rules.multiple, model.rules.most_pixels);
    if side.is_multiple_of(multiple) && (multiple..=most).contains(&side) {
        return Ok(side);
    }
    let nearest = ((side.saturating_add(multiple / 2)) / multiple * multiple).clamp(multiple, most);
    let expected = format!("a multiple of {multiple} from {multiple} to {most}");
    Err(Error::option(option, expected, side.to_string()).with_hint(format!("the nearest is {nearest}")))
}

fn number(option: &'static str, value: f32, least: f32, most: f32) -> Result<f32> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::option(option, format!("a number from {least} to {most}"), value.to_string()))
}
