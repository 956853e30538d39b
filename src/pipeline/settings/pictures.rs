//! The pictures and films of a request: which of them a model takes and needs, and in what sizes.

use crate::pipeline::choices::{Preprocess, ReferenceResize, TinyUse};
use crate::pipeline::controls;
use crate::pipeline::opened::{Direction, Opened};
use crate::pipeline::padded::{padded, size_of};
use crate::pipeline::request::{Control, Request};
use crate::pipeline::rules::{Beside, Cropped, Rules, Use, of_area};
use crate::pipeline::start::MOST_REFERENCES;
use crate::pipeline::values::number;
use crate::video::Clip;
use crate::{Error, Result};

/// How many pictures may take part in one prompt, or be looked at by an IP-Adapter.
const MOST_PROMPTING: usize = 64;

/// How many frames a video of `request` has, and how many are shown in a second; 1 and nothing for pictures.
pub(super) fn frames(model: &Opened, request: &Request) -> Result<(usize, Option<f32>)> {
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

/// What the tiny autoencoder of `model` is used for.
pub(super) fn tiny_use(model: &Opened, request: &Request) -> Result<Option<TinyUse>> {
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

/// How far from the picture of `request` the result may be; `None` if denoising does not begin with one.
pub(super) fn strength(model: &Opened, request: &Request) -> Result<Option<f32>> {
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
    let &Rules { inputs, beside, first, guide, .. } = &model.rules;
    let Request { image, mask, control_image, last_image, .. } = request;
    let followed = controls::of(&model.rules, request)?;
    let takes = |purpose| inputs.contains(&purpose);
    let given = [
        ("--image", image, takes(Use::Start) || takes(Use::Edit) || first.is_some() || guide),
        ("--last-image", last_image, first.is_some_and(|first| first.last) || guide),
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
    } else if model.rules.followed.is_some() {
        let error = Error::option("--video", "a film, since this model follows one: edges, poses, or depths", "none");
        return Err(error.with_hint("give the film with --video"));
    }
    check_guide(model, request)?;
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
    if !model.rules.inputs.contains(&Use::Film) && !model.rules.guide && model.rules.followed.is_none() {
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

/// Refuses what does not go together beside the latents, or is there for a model that takes no film there.
fn check_guide(model: &Opened, request: &Request) -> Result<()> {
    let Request { image, video, video_mask, .. } = request;
    if model.rules.guide {
        // If nothing is given, that is encoded.
        require_encoder(model, request, "--vae")?;
    }
    if let Some(masks) = video_mask {
        if !model.rules.guide || video.is_none() {
            let expected = if model.rules.guide {
                "masks together with their film"
            } else {
                "nothing, since this model takes none"
            };
            return Err(Error::option("--video-mask", expected, "masks"));
        }
        let ((frames, _), given) = (frames(model, request)?, masks.frames().len());
        if given != 1 && given < frames {
            let expected = format!("one for all frames, or at least {frames}, as --frames says");
            return Err(Error::option("--video-mask", expected, given.to_string()));
        }
    }
    if model.rules.guide && image.is_some() && video.is_some() {
        let error = Error::option("--image", "nothing together with --video", "a picture");
        return Err(error.with_hint("put it in the place of the first frame, and paint that black in --video-mask"));
    }
    Ok(())
}

/// How many pictures a video refers to, which are not more than `most`.
pub(super) fn referred_to(request: &Request, most: usize) -> Result<usize> {
    let count = request.references.len();
    if count > most {
        return Err(Error::option("--reference", format!("at most {most}"), format!("{count} pictures")));
    }
    Ok(count)
}

/// How strongly a film beside the latents works, in models that take one.
pub(super) fn guide_scale(rules: &Rules, request: &Request) -> Result<Option<f32>> {
    match request.guide_scale {
        Some(scale) if !rules.guide => {
            let expected = "nothing, since this model takes no film beside the latents";
            Err(Error::option("--guide-scale", expected, scale.to_string()))
        }
        given if rules.guide => number("--guide-scale", given.unwrap_or(1.0), 0.0, 10.0).map(Some),
        _ => Ok(None),
    }
}

/// What is made of the picture that is followed.
pub(super) fn control_preprocess(request: &Request, has_controls: bool) -> Result<Preprocess> {
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
pub(super) fn default_size(model: &Opened, request: &Request, sizes: &[[usize; 2]]) -> [usize; 2] {
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
pub(super) fn references(model: &Opened, request: &Request) -> Result<Vec<[usize; 2]>> {
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
pub(super) fn prompt_tokens(model: &Opened) -> Option<usize> {
    model.image_prompts.as_ref()?.prompt_tokens()
}

/// The weights of the pictures that take part in the prompt.
pub(super) fn redux_weights(model: &Opened, request: &Request) -> Result<Vec<f32>> {
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
pub(super) fn face_width(model: &Opened) -> Option<usize> {
    model.image_prompts.as_ref().and_then(|pictures| pictures.face_width())
}

/// How many pictures, or faces, an IP-Adapter looks at.
pub(super) fn looked_at(model: &Opened, request: &Request) -> Result<usize> {
    let Some(width) = face_width(model) else { return Ok(request.ip_images.len()) };
    if !request.ip_images.is_empty() {
        let error =
            Error::option("--ip-image", "nothing, since this IP-Adapter reads the embedding of a face", "a picture");
        return Err(error.with_hint("give what insightface says of it with --id-embedding FILE"));
    }
    crate::pipeline::face::count(request.id_embedding.as_deref(), width)
}

/// How much the `pictures` of an IP-Adapter count.
pub(super) fn ip_scale(model: &Opened, request: &Request, pictures: usize) -> Result<f32> {
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
pub(super) fn image_cfg_scale(model: &Opened, request: &Request, cfg_scale: f32) -> Result<Option<f32>> {
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
