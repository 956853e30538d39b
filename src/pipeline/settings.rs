//! Requests with every default filled in.

mod pictures;

use self::pictures::{
    control_preprocess, default_size, face_width, frames, guide_scale, image_cfg_scale, ip_scale, looked_at,
    prompt_tokens, redux_weights, references, referred_to, strength, tiny_use,
};
use super::controls;
use super::followed;
use super::opened::Opened;
use super::padded::{kept, size_of};
use super::request::{Experts, Request, Settings};
use super::rules::Beside;
use super::second_pass::{aesthetic, with_second};
use super::start::{Inputs, MOST_REFERENCES};
use super::stretch::Pass;
use super::textual_inversion::Words;
use super::values::{chosen, first, levels, number, side, taught};
use crate::sample::Chosen;
use crate::source::Text;
use crate::text::PromptSyntax;
use crate::{Error, Result};

/// How many pictures one request may make.
const MOST_BATCH: usize = 64;

/// The longest text that is a prompt, in bytes. Text encoders read some hundred tokens; tokenizers take time and memory for all of
/// it.
const MOST_TEXT: usize = 1 << 16;

/// Refuses a `text` that no one would write.
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
    let says_true = model.source.defaults.as_ref().is_some_and(|defaults| defaults.text.contains("true_cfg_scale"));
    let cfg_key = if says_true { "true_cfg_scale" } else { "guidance_scale" };
    let cfg_scale = own(cfg_key).blame(request.cfg_scale.is_some(), cfg_scale)?;
    let guidance = number("--guidance", request.guidance.or(rules.guidance).unwrap_or(0.0), 0.0, 1000.0);
    let guidance = own("guidance_scale").blame(request.guidance.is_some(), guidance)?;
    let negative = request.negative_prompt.as_ref().unwrap_or(&defaults.negative_prompt);
    own("negative_prompt").blame(request.negative_prompt.is_some(), check_text("--negative-prompt", negative))?;
    let image_cfg_scale = image_cfg_scale(model, request, cfg_scale)?;
    // diffusers guides an edit by both, or by neither.
    let is_guided =
        cfg_scale > rules.guided_above && (image_cfg_scale.is_some() || rules.beside != Some(Beside::Edited));
    let negative = is_guided.then(|| negative.clone());
    check_original(model, request)?;
    // Whether one step more or less works is the schedule's business; it knows its limits.
    let sampling = Chosen { ays: rules.ays, ..chosen(model, request)? };
    let told = sampling.sigmas.as_ref().map(Vec::len);
    let steps = request.steps.or(told).unwrap_or(defaults.steps);
    let rescale_cfg = number("--rescale-cfg", request.rescale_cfg.unwrap_or(0.0), 0.0, 1.0)?;
    let levels = model.scheduler.levels(&sampling, steps, 1);
    let levels = match levels {
        Err(error @ Error::Option { option: "--steps", .. }) => {
            own("num_inference_steps").blame(request.steps.or(told).is_some(), Err(error))?
        }
        levels => levels?,
    };
    let strength = strength(model, request)?;
    if let Some(strength) = strength {
        first(model, &levels, strength)?;
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
    let (references, front_frames) = match rules.followed {
        _ if rules.guide => (Vec::new(), referred_to(request, MOST_REFERENCES)?),
        Some(followed) if followed.refers => {
            referred_to(request, 1)?;
            (Vec::new(), 0)
        }
        _ => (references(model, request)?, 0),
    };
    let own_size = default_size(model, request, &references);
    let width = side("--width", request.width.unwrap_or(own_size[0]), model);
    let height = side("--height", request.height.unwrap_or(own_size[1]), model);
    let width = own("width").blame(request.width.is_some(), width)?;
    let height = own("height").blame(request.height.is_some(), height)?;
    if let Some(upscaler) = &model.upscaler {
        upscaler.size([width, height], None)?;
    }
    let (frames, fps) = frames(model, request)?;
    let tiny = tiny_use(model, request)?;
    let ip_images = looked_at(model, request)?;
    let (id_tokens, id_projected) = match face_width(model) {
        Some(_) => (0, false),
        None => super::face::settings(model.face.as_ref(), request)?,
    };
    let mut settings = Settings {
        id_tokens,
        id_projected,
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
        sampling,
        rescale_cfg: if is_guided { rescale_cfg } else { 0.0 },
        strength,
        masked: request.mask.is_some(),
        image_cfg_scale,
        encoded_pictures: 0,
        references,
        reference_sources: request.references.iter().map(|picture| size_of(picture)).collect(),
        control_preprocess: control_preprocess(request, !rules.controls.is_empty())?,
        max_sequence_length: tokens,
        batch: request.batch,
        embedded: false,
        text_tokens: Vec::new(),
        guided_above: rules.guided_above,
        redux: redux_weights(model, request)?,
        prompt_is_zero: request.without_prompt,
        ip_images,
        ip_scale: ip_scale(model, request, ip_images)?,
        redux_tokens: if request.redux.is_empty() { 0 } else { prompt_tokens(model).unwrap_or(0) },
        controls: controls::settings(rules, &controls::of(rules, request)?)?,
        control_guess: controls::guesses(rules, request)?,
        cache: rules.caches.checked(request.cache)?,
        attention: request.attention,
        previewed: request.preview.is_some(),
        tiny_vae: tiny,
        tiny_encodes: model.tiny_encodes(tiny),
        prompt_syntax: prompt_syntax(model, request)?,
        taught: Vec::new(),
        safety: super::safety::mode(model.safety.as_ref(), request.safety)?,
        aesthetic: aesthetic(model, request)?,
        pass: Pass::Only,
        upscale: None,
        second: None,
        frames,
        fps,
        experts: experts(model, request, cfg_scale)?,
        given_frames: [request.image.is_some(), request.last_image.is_some()]
            .map(|given| given && rules.first.is_some()),
        kept: kept(rules, request, [width, height]),
        front_frames,
        encoded_alone: front_frames + followed::alone(rules, request),
        guide_scale: guide_scale(rules, request)?,
        told: rules.told,
    };
    settings.experts = shared_out(model, &settings)?;
    settings.encoded_pictures = Inputs::of(rules, request, &settings).count();
    let settings = match &request.embeddings {
        Some(embeddings) => embeddings.fill_in(settings, request, model),
        None => {
            let mut texts = vec![request.prompt.as_str()];
            texts.extend(settings.negative_prompt.as_deref());
            let text_tokens = model.encoders.tokens(&texts, &settings)?;
            let taught = taught(model, &texts)?;
            Ok(Settings { text_tokens, taught, ..settings })
        }
    }?;
    let settings = with_second(model, request, settings)?;
    if !request.latents_only {
        return Ok(settings);
    }
    if settings.second.is_some() {
        return Err(Error::option("latents_only", "a request of one pass", "one of two"));
    }
    Ok(Settings { pass: Pass::Whole { decodes: false }, ..settings })
}

/// How two experts share the steps of `request`; `None` for models of one. Its guidance is `cfg_scale`.
fn experts(model: &Opened, request: &Request, cfg_scale: f32) -> Result<Option<Experts>> {
    let Request { cfg_scale_2, boundary, .. } = *request;
    let Some(rules) = model.rules.experts else {
        for (option, given) in [("--cfg-scale-2", cfg_scale_2), ("--boundary", boundary)] {
            if let Some(given) = given {
                return Err(Error::option(option, "nothing, since this model has one expert", given.to_string()));
            }
        }
        return Ok(None);
    };
    let own = if request.cfg_scale.is_some() { cfg_scale } else { rules.cfg_scale };
    let cfg_scale = number("--cfg-scale-2", cfg_scale_2.unwrap_or(own), 0.0, 100.0)?;
    let boundary = number("--boundary", boundary.unwrap_or(rules.boundary), 0.0, 1.0)?;
    Ok(Some(Experts { boundary, cfg_scale, ..rules }))
}

/// The experts of `settings`, with how many evaluations the first one makes: those at a time not below the boundary.
fn shared_out(model: &Opened, settings: &Settings) -> Result<Option<Experts>> {
    let Some(experts) = settings.experts else { return Ok(None) };
    let levels = levels(model, settings)?;
    let boundary = f64::from(experts.boundary) * TIMES;
    // Rounded, so that times that are whole are whole again.
    let boundary = (boundary * PARTS).round();
    let taken = levels.times.iter().take(levels.taken());
    let evaluations = taken.take_while(|&&time| (f64::from(time) * TIMES * PARTS).round() >= boundary).count();
    Ok(Some(Experts { evaluations, ..experts }))
}

/// How many times there are where all noise is one, and parts of these that are told apart.
const TIMES: f64 = 1000.0;
const PARTS: f64 = 1000.0;

/// How the texts of `request` are read.
fn prompt_syntax(model: &Opened, request: &Request) -> Result<PromptSyntax> {
    let syntax = request.prompt_syntax;
    if model.encoders.reads(syntax) {
        return Ok(syntax);
    }
    let expected = "plain, since weights are for models whose prompts CLIP alone reads: Stable Diffusion 1, 2 and XL";
    Err(Error::option("--prompt-syntax", expected, syntax.name()))
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

/// The options that were given and change nothing, in words.
pub(super) fn without_effect(model: &Opened, request: &Request, settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    if request.negative_prompt.as_ref().is_some_and(|text| !text.is_empty()) && settings.negative_prompt.is_none() {
        found.push(format!("the negative prompt has no effect without a --cfg-scale above {}", settings.guided_above));
    }
    if request.guidance.is_some() && settings.guidance.is_none() {
        found.push("this model takes no guidance: --guidance has no effect".to_owned());
    }
    if request.eta.is_some_and(|eta| eta > 0.0) && settings.sampling.eta.is_none() {
        found.push(format!("the sampler {} takes no eta: --eta has no effect", settings.sampling.sampler));
    }
    if request.rescale_cfg.is_some_and(|share| share > 0.0) && settings.rescale_cfg == 0.0 {
        found.push(format!("--rescale-cfg has no effect without a --cfg-scale above {}", settings.guided_above));
    }
    for word in model.encoders.words().into_iter().flat_map(Words::given) {
        if !settings.taught.iter().any(|known| known == word) && !settings.embedded {
            found.push(format!("no prompt has the word `{word}`: its --embedding has no effect"));
        }
    }
    found
}
