//! Requests with every default filled in.

use super::choices::{Preprocess, ReferenceResize, TinyUse};
use super::controls;
use super::opened::Direction;
use super::opened::Opened;
use super::padded::{kept, padded, size_of};
use super::request::{Control, Experts, Request, Settings};
use super::rules::{Beside, Cropped, Rules, Use, of_area};
use super::second_pass::{aesthetic, with_second};
use super::start::{Inputs, MOST_REFERENCES};
use super::stretch::Pass;
use super::textual_inversion::Words;
use super::values::{chosen, first, levels, number, side, taught};
use crate::sample::Chosen;
use crate::source::Text;
use crate::text::PromptSyntax;
use crate::video::Clip;
use crate::{Error, Result};

/// How many pictures one request may make.
const MOST_BATCH: usize = 64;

/// How many pictures may take part in one prompt, or be looked at by an IP-Adapter.
const MOST_PROMPTING: usize = 64;

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
    let references = references(model, request)?;
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
    with_second(model, request, settings)
}

/// How many frames a video of `request` has, and how many are shown in a second; 1 and nothing for pictures.
fn frames(model: &Opened, request: &Request) -> Result<(usize, Option<f32>)> {
    const MOST_FPS: f32 = 240.0;
    let Request { frames, fps, .. } = *request;
    let Some(rules) = model.rules.frames else {
        let pictures = "nothing, since this model makes pictures";
        return match (frames, fps) {
            (Some(frames), _) => Err(Error::option("--frames", pictures, frames.to_string())),
            (None, Some(fps)) => Err(Error::option("--fps", pictures, fps.to_string())),
            (None, None) => Ok((1, None)),
        };
    };
    let frames = frames.unwrap_or(match &request.video {
        // All that there is, as far as it goes.
        Some(video) => rules.nearest((video.frames().len() - 1) / rules.step * rules.step + 1),
        None => rules.default,
    });
    let nearest = rules.nearest(frames);
    if frames != nearest {
        let expected = format!("1 to {}, one more than a multiple of {}", rules.most, rules.step);
        let error = Error::option("--frames", expected, frames.to_string());
        return Err(error.with_hint(rules.nearest_in_words(frames)));
    }
    let fps = fps.unwrap_or(rules.fps);
    if !(fps > 0.0 && fps <= MOST_FPS) {
        return Err(Error::option("--fps", format!("more than 0, at most {MOST_FPS}"), fps.to_string()));
    }
    Ok((frames, Some(fps)))
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

/// What the tiny autoencoder of `model` is used for.
fn tiny_use(model: &Opened, request: &Request) -> Result<Option<TinyUse>> {
    const OPTION: &str = "--tiny-vae-for";
    let asked = request.tiny_vae;
    match &model.tiny {
        None => match asked {
            None => Ok(None),
            Some(asked) => {
                let error = Error::option(OPTION, "a tiny autoencoder", format!("`{}` and none", asked.name()));
                Err(error.with_hint("give one with --tiny-vae FILE"))
            }
        },
        Some(_) if asked == Some(TinyUse::Preview) && !model.has_full_autoencoder() => {
            let error = Error::option(OPTION, "`all`, since the model has no other autoencoder", "`preview`");
            Err(error.with_hint("give a whole autoencoder with --vae FILE"))
        }
        Some(_) => Ok(Some(asked.unwrap_or_default())),
    }
}

/// Refuses the picture that `option` gives if no autoencoder of `model` encodes it for `request`.
fn require_encoder(model: &Opened, request: &Request, option: &'static str) -> Result<()> {
    if model.autoencoder.goes(Direction::Encode) || model.tiny_encodes(tiny_use(model, request)?) {
        return Ok(());
    }
    let error = Error::option(option, "a model whose autoencoder can encode", "a decoder alone");
    Err(error.with_hint("give a whole autoencoder with --vae FILE"))
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

/// How far from the picture of `request` the result may be; `None` if denoising does not begin with one.
fn strength(model: &Opened, request: &Request) -> Result<Option<f32>> {
    check_pictures(model, request)?;
    let rules = &model.rules;
    let begins_with = |given: bool, purpose| given && rules.inputs.contains(&purpose);
    if !begins_with(request.image.is_some(), Use::Start) && !begins_with(request.video.is_some(), Use::Film) {
        if request.strength.is_some() {
            let error =
                Error::option("--strength", "a strength together with a picture to begin with", "a strength alone");
            return Err(if rules.inputs.contains(&Use::Start) {
                error.with_hint("give the picture with --image")
            } else if rules.inputs.contains(&Use::Film) {
                error.with_hint("give the film with --video")
            } else {
                error
            });
        }
        return Ok(None);
    }
    let defaults = &rules.defaults;
    let default = if request.mask.is_some() { defaults.strength_with_mask } else { defaults.strength };
    Ok(Some(request.strength.unwrap_or(default)))
}

/// Refuses pictures that the model does not take, and requests without those that it needs.
fn check_pictures(model: &Opened, request: &Request) -> Result<()> {
    let Rules { inputs, beside, first, .. } = &model.rules;
    let Request { image, mask, control_image, last_image, .. } = request;
    let followed = controls::of(&model.rules, request)?;
    let takes = |purpose| inputs.contains(&purpose);
    let given = [
        ("--image", image, takes(Use::Start) || takes(Use::Edit) || first.is_some()),
        ("--last-image", last_image, first.is_some_and(|first| first.last)),
        ("--mask", mask, takes(Use::Mask)),
        ("--control-image", control_image, takes(Use::Control) || !followed.is_empty()),
    ];
    for (option, picture, is_taken) in given {
        if picture.is_some() && !is_taken {
            return Err(Error::option(option, "nothing, since this model takes no such picture", "a picture"));
        }
    }
    if let Some(video) = &request.video {
        check_video(model, request, video)?;
    }
    let needed =
        |option: &'static str, expected: &str, hint: &str| Err(Error::option(option, expected, "none").with_hint(hint));
    match beside {
        Some(Beside::Masked { .. }) if image.is_none() || mask.is_none() => {
            let option = if image.is_none() { "--image" } else { "--mask" };
            return needed(
                option,
                "a picture and its mask, since this model paints within one",
                "give --image and --mask",
            );
        }
        Some(Beside::Edited) if image.is_none() => {
            return needed("--image", "a picture, since this model changes one", "give the picture with --image");
        }
        Some(Beside::Control) if control_image.is_none() => {
            let expected = "a picture, since this model follows one: edges, or a map of depth";
            return needed("--control-image", expected, "give the picture with --control-image");
        }
        _ => {}
    }
    if image.is_none() && (last_image.is_some() || first.is_some_and(|first| first.needed)) {
        let expected = "a picture, since videos of this model begin with one";
        return needed("--image", expected, "give the picture with --image");
    }
    if last_image.is_none() && first.is_some_and(|first| first.last_needed) {
        let expected = "a picture, since videos of this model end with one";
        return needed("--last-image", expected, "give the picture with --last-image");
    }
    check_followed(model, request, &followed)?;
    match (image, mask) {
        (None, Some(_)) if controls::masked(&model.rules, &followed).is_none() => {
            let error = Error::option("--mask", "a mask together with its picture", "a mask alone");
            return Err(error.with_hint("give the picture with --image"));
        }
        (Some(image), Some(mask)) => mask.require_size_of(image)?,
        _ => {}
    }
    if image.is_some() || control_image.is_some() {
        require_encoder(model, request, if image.is_some() { "--image" } else { "--control-image" })?;
    }
    Ok(())
}

/// Refuses a film that the model does not take, or that is shorter than what is drawn.
fn check_video(model: &Opened, request: &Request, video: &Clip) -> Result<()> {
    if !model.rules.inputs.contains(&Use::Film) {
        return Err(Error::option("--video", "nothing, since this model begins with no film", "a film"));
    }
    require_encoder(model, request, "--video")?;
    let ((frames, _), given) = (frames(model, request)?, video.frames().len());
    if given < frames {
        let error = Error::option("--video", format!("at least {frames} frames, as --frames says"), given.to_string());
        return Err(error.with_hint("without --frames, as many are drawn as the film has"));
    }
    Ok(())
}

/// What is made of the picture that is followed.
fn control_preprocess(request: &Request, has_controls: bool) -> Result<Preprocess> {
    if let Preprocess::Canny(thresholds) = request.control_preprocess {
        if request.control_image.is_none() {
            let expected = "a picture that edges are made from";
            let error = Error::option("--control-preprocess", expected, "none");
            return Err(error.with_hint("give the picture with --control-image"));
        }
        thresholds.check("--canny-thresholds")?;
    }
    if request.control_preprocess == Preprocess::Inpaint && !has_controls {
        let expected = "another, since it is for inpainting ControlNets of Stable Diffusion";
        return Err(Error::option("--control-preprocess", expected, "`inpaint`"));
    }
    Ok(request.control_preprocess)
}

/// Refuses pictures that ControlNets follow without what has to be there besides.
fn check_followed(model: &Opened, request: &Request, followed: &[Control]) -> Result<()> {
    if let Some(picture) = controls::masked(&model.rules, followed) {
        let Some(mask) = &request.mask else {
            let expected = "a mask of its picture, since this ControlNet paints within one";
            let error = Error::option("--mask", expected, "none");
            return Err(error.with_hint("give it with --mask: white is painted anew"));
        };
        mask.require_size_of(picture)?;
    }
    let takes_latents = model.rules.controls.iter().any(|rules| rules.takes.latents());
    if takes_latents {
        require_encoder(model, request, "--control")?;
    }
    Ok(())
}

/// Pixels across and down of what is drawn, unless the request says: as the model has it, or in the shape of the last picture that is
/// changed.
fn default_size(model: &Opened, request: &Request, sizes: &[[usize; 2]]) -> [usize; 2] {
    let Rules { references, defaults, .. } = &model.rules;
    // As diffusers has it where pictures keep their size, the first one gives that of the result.
    let first = sizes.first().filter(|_| references.is_some_and(|rules| rules.cropped.is_some()));
    if let Some(size) = first {
        return *size;
    }
    let changed = request.references.last().zip(references.and_then(|rules| rules.area));
    match changed {
        Some((picture, area)) if request.width.is_none() && request.height.is_none() => of_area(area, size_of(picture)),
        _ => [defaults.width, defaults.height],
    }
}

/// The sizes of the pictures that the model looks at.
fn references(model: &Opened, request: &Request) -> Result<Vec<[usize; 2]>> {
    const OPTION: &str = "--reference";
    let Request { references, reference_resize, .. } = request;
    if references.is_empty() {
        if model.rules.references.is_some_and(|rules| rules.needed) {
            let error = Error::option(OPTION, "a picture, since this model changes one", "none");
            return Err(error.with_hint("give the picture with --reference"));
        }
        return Ok(Vec::new());
    }
    let Some(rules) = model.rules.references else {
        return Err(Error::option(OPTION, "nothing, since this model looks at no pictures", "a picture"));
    };
    let most = rules.most.min(MOST_REFERENCES);
    if references.len() > most {
        return Err(Error::option(OPTION, format!("at most {most}"), format!("{} pictures", references.len())));
    }
    require_encoder(model, request, OPTION)?;
    let multiple = model.rules.multiple;
    let mut sizes = Vec::with_capacity(references.len());
    for picture in references {
        let own = size_of(picture);
        if let Some(padded) = padded(&rules, request) {
            sizes.push(padded.checked(own, multiple, request)?);
            continue;
        }
        if let Some(Cropped { least_side, most_quotient, .. }) = rules.cropped.filter(|rules| !rules.takes(own)) {
            let expected =
                format!("sides of at least {least_side} pixels, one at most {most_quotient} times the other");
            return Err(Error::option(OPTION, expected, format!("{}x{}", own[0], own[1])));
        }
        let trained = rules.nearest(own).or(rules.cropped.map(|rules| rules.whole(own)));
        let trained = trained.filter(|_| *reference_resize == ReferenceResize::Auto);
        let size = trained.unwrap_or(own).map(|side| side / multiple * multiple);
        if size.iter().any(|side| !(multiple..=model.rules.most_pixels).contains(side)) {
            let expected = format!("sides from {multiple} to {} pixels", model.rules.most_pixels);
            return Err(Error::option(OPTION, expected, format!("{}x{}", own[0], own[1])));
        }
        sizes.push(size);
    }
    Ok(sizes)
}

/// How many tokens pictures become in a prompt of `model`, if they do.
fn prompt_tokens(model: &Opened) -> Option<usize> {
    model.image_prompts.as_ref()?.prompt_tokens()
}

/// The weights of the pictures that take part in the prompt.
fn redux_weights(model: &Opened, request: &Request) -> Result<Vec<f32>> {
    const OPTION: &str = "--redux-image";
    let pictures = request.redux.len();
    if pictures > 0 && prompt_tokens(model).is_none() {
        let error = Error::option(OPTION, "nothing, since the model was opened without Redux", "a picture");
        return Err(error.with_hint("give its file with --redux"));
    }
    if pictures == 0 && request.without_prompt {
        return Err(Error::option("--prompt", "a prompt, or a picture with --redux-image", "neither"));
    }
    if pictures > MOST_PROMPTING {
        return Err(Error::option(OPTION, format!("at most {MOST_PROMPTING}"), format!("{pictures} pictures")));
    }
    match request.redux.iter().find(|(_, weight)| !weight.is_finite()) {
        Some((_, weight)) => Err(Error::option(OPTION, "weights that are finite numbers", weight.to_string())),
        None => Ok(request.redux.iter().map(|(_, weight)| *weight).collect()),
    }
}

/// How many numbers of a face the IP-Adapter of `model` reads, if it reads faces.
fn face_width(model: &Opened) -> Option<usize> {
    model.image_prompts.as_ref().and_then(|pictures| pictures.face_width())
}

/// How many pictures, or faces, an IP-Adapter looks at.
fn looked_at(model: &Opened, request: &Request) -> Result<usize> {
    let Some(width) = face_width(model) else { return Ok(request.ip_images.len()) };
    if !request.ip_images.is_empty() {
        let error =
            Error::option("--ip-image", "nothing, since this IP-Adapter reads the embedding of a face", "a picture");
        return Err(error.with_hint("give what insightface says of it with --id-embedding FILE"));
    }
    super::face::count(request.id_embedding.as_deref(), width)
}

/// How much the `pictures` of an IP-Adapter count.
fn ip_scale(model: &Opened, request: &Request, pictures: usize) -> Result<f32> {
    const OPTION: &str = "--ip-image";
    if pictures == 0 {
        return match request.ip_scale {
            Some(_) => {
                let error = Error::option("--ip-scale", "a scale together with a picture to look at", "a scale alone");
                Err(error.with_hint("give the picture with --ip-image"))
            }
            None => Ok(0.0),
        };
    }
    if !model.image_prompts.as_ref().is_some_and(|pictures| pictures.looks_in_blocks()) {
        let error = Error::option(OPTION, "nothing, since the model was opened without an IP-Adapter", "a picture");
        return Err(error.with_hint("give its file with --ip-adapter"));
    }
    if pictures > MOST_PROMPTING {
        return Err(Error::option(OPTION, format!("at most {MOST_PROMPTING}"), format!("{pictures} pictures")));
    }
    number("--ip-scale", request.ip_scale.unwrap_or(1.0), -100.0, 100.0)
}

/// How closely the result follows the picture that is changed; `None` for models that change none, and without guidance.
fn image_cfg_scale(model: &Opened, request: &Request, cfg_scale: f32) -> Result<Option<f32>> {
    const DEFAULT: f32 = 1.5;
    if model.rules.beside != Some(Beside::Edited) {
        return match request.image_cfg_scale {
            Some(scale) => {
                let expected = "nothing, since this model was not trained to change a picture";
                Err(Error::option("--image-cfg-scale", expected, scale.to_string()))
            }
            None => Ok(None),
        };
    }
    let scale = number("--image-cfg-scale", request.image_cfg_scale.unwrap_or(DEFAULT), 0.0, 100.0)?;
    Ok((cfg_scale > 1.0 && scale >= 1.0).then_some(scale))
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
