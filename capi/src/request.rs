//! `pinhole_request`: what to draw.

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use pinhole::Error as E;
use pinhole::ggml::CancelFlag;
use pinhole::pipeline::{
    AttentionMode, CacheKind, CacheRequest, Posterior, PromptSyntax, ReferenceResize, Request as Wanted, SafetyMode,
    TinyUse, Upscale, UpscaleSpace,
};
use pinhole::sample::{Sampler, Schedule};
use pinhole::video::{Clip, MAX_FRAMES};

use crate::cancel::{self, Cancel};
use crate::control::{Control, Followed, preprocess};
use crate::embeddings::Embeddings;
use crate::error::Failure;
use crate::input::{Input, Pictures};
use crate::options::{self, versioned};
use crate::progress::{Callbacks, FrameFn, PreviewFn, ProgressFn, WarningFn, Watch};
use crate::text;

/// `pinhole_request`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, private_interfaces, reason = "the header says what they are")]
pub struct Request {
    pub struct_size: usize,
    pub prompt: *const c_char,
    pub negative_prompt: *const c_char,
    pub width: i32,
    pub height: i32,
    pub steps: i32,
    pub batch: i32,
    pub seed: u64,
    pub guidance: f32,
    pub cfg_scale: f32,
    pub sampler: i32,
    pub max_sequence_length: i32,
    pub noise: *const f32,
    pub noise_count: usize,
    pub embeddings: *const Embeddings,
    pub cancel: *mut Cancel,
    pub progress: ProgressFn,
    pub warning: WarningFn,
    pub preview: PreviewFn,
    pub user_data: *mut c_void,
    pub preview_interval: i32,
    pub reserved: i32,
    pub inputs: *const *const Input,
    pub input_count: usize,
    pub strength: f32,
    pub posterior: i32,
    pub original_width: i32,
    pub original_height: i32,
    pub crop_left: i32,
    pub crop_top: i32,
    pub image_cfg_scale: f32,
    pub reference_resize: i32,
    pub schedule: i32,
    pub eta: f32,
    pub sigmas: *const f32,
    pub sigma_count: usize,
    pub rescale_cfg: f32,
    pub reserved_2: i32,
    pub ip_scale: f32,
    pub reserved_3: i32,
    pub controls: *const *const Control,
    pub control_count: usize,
    pub cache: i32,
    pub cache_threshold: f32,
    pub control_preprocess: i32,
    pub canny_low: f32,
    pub canny_high: f32,
    pub reserved_4: i32,
    pub id_embedding: *const f32,
    pub id_embedding_count: usize,
    pub tiny_vae_for: i32,
    pub shift: f32,
    pub prompt_syntax: i32,
    pub safety: i32,
    pub refiner_start: f32,
    pub aesthetic_score: f32,
    pub negative_aesthetic_score: f32,
    pub upscale: f32,
    pub upscale_strength: f32,
    pub upscale_space: i32,
    pub upscale_steps: i32,
    pub control_guess: i32,
    pub frames: i32,
    pub fps: f32,
    pub frame: FrameFn,
    pub cfg_scale_2: f32,
    pub boundary: f32,
    pub video: *const c_char,
    pub attention: i32,
    pub guide_scale: f32,
    /// See the header.
    pub trace: *const c_char,
    pub video_mask: *const c_char,
}

const DEFAULT: Request = Request {
    struct_size: size_of::<Request>(),
    prompt: ptr::null(),
    negative_prompt: ptr::null(),
    width: 0,
    height: 0,
    steps: 0,
    batch: 0,
    seed: 0,
    guidance: -1.0,
    cfg_scale: -1.0,
    sampler: 0,
    max_sequence_length: 0,
    noise: ptr::null(),
    noise_count: 0,
    embeddings: ptr::null(),
    cancel: ptr::null_mut(),
    progress: None,
    warning: None,
    preview: None,
    user_data: ptr::null_mut(),
    preview_interval: 0,
    reserved: 0,
    inputs: ptr::null(),
    input_count: 0,
    strength: -1.0,
    posterior: 0,
    original_width: 0,
    original_height: 0,
    crop_left: 0,
    crop_top: 0,
    image_cfg_scale: -1.0,
    reference_resize: 0,
    schedule: 0,
    eta: -1.0,
    sigmas: ptr::null(),
    sigma_count: 0,
    rescale_cfg: 0.0,
    reserved_2: 0,
    ip_scale: -1.0,
    reserved_3: 0,
    controls: ptr::null(),
    control_count: 0,
    cache: 0,
    cache_threshold: 0.0,
    control_preprocess: 0,
    canny_low: 0.0,
    canny_high: 0.0,
    reserved_4: 0,
    id_embedding: ptr::null(),
    id_embedding_count: 0,
    tiny_vae_for: 0,
    shift: 0.0,
    prompt_syntax: 0,
    safety: 0,
    refiner_start: 0.0,
    aesthetic_score: -1.0,
    negative_aesthetic_score: -1.0,
    upscale: 0.0,
    upscale_strength: 0.0,
    upscale_space: 0,
    upscale_steps: 0,
    control_guess: 0,
    frames: 0,
    fps: 0.0,
    frame: None,
    cfg_scale_2: -1.0,
    boundary: 0.0,
    video: ptr::null(),
    attention: 0,
    guide_scale: 0.0,
    trace: ptr::null(),
    video_mask: ptr::null(),
};
versioned!(Request, "pinhole_request", offset_of!(Request, inputs), DEFAULT);

/// The samplers by the header's numbers. `None` is as the model was published. One names its schedule.
pub const SAMPLERS: [Option<(Sampler, Option<Schedule>)>; 20] = [
    None,
    Some((Sampler::EulerAncestral, None)),
    Some((Sampler::Ddim, None)),
    Some((Sampler::Pndm, None)),
    Some((Sampler::Dpm2m, None)),
    Some((Sampler::Dpm2m, Some(Schedule::Karras))),
    Some((Sampler::Euler, None)),
    Some((Sampler::Dpm2mSde, None)),
    Some((Sampler::Dpm2s, None)),
    Some((Sampler::DpmSde, None)),
    Some((Sampler::Ddpm, None)),
    Some((Sampler::Lms, None)),
    Some((Sampler::Heun, None)),
    Some((Sampler::Kdpm2, None)),
    Some((Sampler::Kdpm2Ancestral, None)),
    Some((Sampler::Deis, None)),
    Some((Sampler::UniPc, None)),
    Some((Sampler::Lcm, None)),
    Some((Sampler::Tcd, None)),
    Some((Sampler::EdmEuler, None)),
];

/// The schedules by the header's numbers. `None` is as the model was published.
pub const SCHEDULES: [Option<Schedule>; 8] = [
    None,
    Some(Schedule::Normal),
    Some(Schedule::Karras),
    Some(Schedule::Exponential),
    Some(Schedule::Beta),
    Some(Schedule::SgmUniform),
    Some(Schedule::Ays),
    Some(Schedule::Lu),
];

/// The step caches by the header's numbers. `None` is none.
pub const CACHES: [Option<CacheKind>; 5] = [
    None,
    Some(CacheKind::FirstBlock),
    Some(CacheKind::TeaCache),
    Some(CacheKind::MagCache),
    Some(CacheKind::TaylorSeer),
];

/// A request as the pipeline takes it, and who watches it.
pub(crate) struct Read {
    pub(crate) wanted: Wanted,
    pub(crate) watch: Watch,
    pub(crate) cancel: CancelFlag,
    /// What to warn of before the work begins.
    pub(crate) notes: Vec<String>,
    /// Where the trace goes.
    pub(crate) trace: Option<PathBuf>,
}

/// Two numbers that are 0 if the model decides.
fn pair(option: &'static str, given: [i32; 2]) -> Result<Option<[usize; 2]>, Failure> {
    match given.map(|number| count(option, number)) {
        [Ok(None), Ok(None)] => Ok(None),
        [x, y] => Ok(Some([x?.unwrap_or(0), y?.unwrap_or(0)])),
    }
}

/// A number that is 0 where the model decides.
fn count(option: &'static str, given: i32) -> Result<Option<usize>, Failure> {
    match usize::try_from(given) {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(_) => Err(E::option(option, "a positive number, or 0 for the default", given.to_string()).into()),
    }
}

/// A number that is negative where the model decides. NaN is not, and is refused further on.
fn number(given: f32) -> Option<f32> {
    if given < 0.0 { None } else { Some(given) }
}

/// A number that is 0 where the model decides. NaN is not, and is refused further on.
fn given(given: f32) -> Option<f32> {
    if given == 0.0 { None } else { Some(given) }
}

/// The entry of a list by its number in the header.
fn numbered<T: Copy>(
    option: &'static str,
    list: &[Option<T>],
    given: i32,
    name: impl Fn(T) -> String,
) -> Result<Option<T>, Failure> {
    if let Some(found) = usize::try_from(given).ok().and_then(|given| list.get(given)) {
        return Ok(*found);
    }
    let mut known = Vec::new();
    for (number, entry) in list.iter().enumerate() {
        known.push(format!("{number} ({})", entry.map_or("default".to_owned(), &name)));
    }
    Err(E::option(option, format!("one of: {}", known.join(", ")), given.to_string()).into())
}

/// The sampler and the schedule, which the sampler's number may name.
fn sampler(sampler: i32, schedule: i32) -> Result<(Option<Sampler>, Option<Schedule>), Failure> {
    let found = numbered("--sampler", &SAMPLERS, sampler, |(sampler, named)| match named {
        Some(schedule) => format!("{sampler}_{schedule}"),
        None => sampler.to_string(),
    })?;
    let schedule = numbered("--schedule", &SCHEDULES, schedule, |schedule| schedule.to_string())?;
    match (found, schedule) {
        (Some((_, Some(named))), Some(other)) if named != other => {
            let expected = format!("`{named}`, which the sampler names, or the default");
            Err(E::option("--schedule", expected, format!("`{other}`")).into())
        }
        (Some((sampler, named)), other) => Ok((Some(sampler), named.or(other))),
        (None, other) => Ok((None, other)),
    }
}

/// The step cache, with the threshold that it was published with if the one that is given is 0.
fn step_cache(cache: i32, threshold: f32) -> Result<Option<CacheRequest>, Failure> {
    let kind = numbered("--cache", &CACHES, cache, |kind| kind.name().to_owned())?;
    Ok(kind.map(|kind| CacheRequest { kind, threshold: (threshold != 0.0).then_some(threshold) }))
}

fn posterior(given: i32) -> Result<Posterior, Failure> {
    // The header's numbers are the order of the list.
    let found = usize::try_from(given).ok().and_then(|given| Posterior::ALL.get(given).copied());
    let expected = "PINHOLE_POSTERIOR_SAMPLE (0) or PINHOLE_POSTERIOR_MEAN (1)";
    found.ok_or_else(|| E::option("--posterior", expected, given.to_string()).into())
}

fn reference_resize(given: i32) -> Result<ReferenceResize, Failure> {
    // The header's numbers are the order of the list.
    let found = usize::try_from(given).ok().and_then(|given| ReferenceResize::ALL.get(given).copied());
    let expected = "PINHOLE_REFERENCE_RESIZE_AUTO (0) or PINHOLE_REFERENCE_RESIZE_NONE (1)";
    found.ok_or_else(|| E::option("--reference-resize", expected, given.to_string()).into())
}

fn prompt_syntax(given: i32) -> Result<PromptSyntax, Failure> {
    // The header's numbers are the order of the list.
    let found = usize::try_from(given).ok().and_then(|given| PromptSyntax::ALL.get(given).copied());
    let expected = "PINHOLE_PROMPT_PLAIN (0) or PINHOLE_PROMPT_A1111 (1)";
    found.ok_or_else(|| E::option("--prompt-syntax", expected, given.to_string()).into())
}

fn attention(given: i32) -> Result<AttentionMode, Failure> {
    // The header's numbers are the order of the list.
    let found = usize::try_from(given).ok().and_then(|given| AttentionMode::ALL.get(given).copied());
    let expected = "PINHOLE_ATTENTION_AUTO (0) or PINHOLE_ATTENTION_EXACT (1)";
    found.ok_or_else(|| E::option("--attention", expected, given.to_string()).into())
}

/// 0, as in a struct of zeros, leaves it to the model.
fn tiny_use(given: i32) -> Result<Option<TinyUse>, Failure> {
    match given {
        0 => Ok(None),
        1 => Ok(Some(TinyUse::Preview)),
        _ => {
            let expected = "PINHOLE_TINY_VAE_ALL (0) or PINHOLE_TINY_VAE_PREVIEW (1)";
            Err(E::option("--tiny-vae-for", expected, given.to_string()).into())
        }
    }
}

/// 0, as in a struct of zeros, leaves it to the model.
fn safety(given: i32) -> Result<Option<SafetyMode>, Failure> {
    match given {
        0 => Ok(None),
        1 => Ok(Some(SafetyMode::Off)),
        2 => Ok(Some(SafetyMode::On)),
        3 => Ok(Some(SafetyMode::Report)),
        _ => {
            let expected =
                "PINHOLE_SAFETY_MODEL (0), PINHOLE_SAFETY_OFF, PINHOLE_SAFETY_ON or PINHOLE_SAFETY_REPORT (3)";
            Err(E::option("--safety", expected, given.to_string()).into())
        }
    }
}

/// A copy of the numbers of the member `name`.
///
/// # Safety
/// `numbers` is NULL or readable for `count` numbers.
unsafe fn copied(name: &'static str, numbers: *const f32, count: usize) -> Result<Option<Vec<f32>>, Failure> {
    if numbers.is_null() {
        return match count {
            0 => Ok(None),
            _ => Err(Failure::null(name)),
        };
    }
    let bytes = count.checked_mul(size_of::<f32>()).filter(|&bytes| bytes <= isize::MAX as usize);
    let bytes = bytes.ok_or_else(|| Failure::argument(format!("{name}: found {count} numbers"), ""))?;
    let mut copy = Vec::new();
    copy.try_reserve_exact(count).map_err(|_| Failure::out_of_memory(name, bytes))?;
    // SAFETY: not NULL, and the caller promises `count` numbers.
    copy.extend_from_slice(unsafe { std::slice::from_raw_parts(numbers, count) });
    Ok(Some(copy))
}

impl Request {
    /// How a second pass makes the picture larger.
    fn upscaled(&self) -> Result<Option<Upscale>, Failure> {
        let Some(factor) = given(self.upscale) else { return Ok(None) };
        let plain = Upscale::new(factor);
        // The header's numbers are the order of the list.
        let space = usize::try_from(self.upscale_space).ok().and_then(|given| UpscaleSpace::ALL.get(given).copied());
        let expected = "PINHOLE_UPSCALE_LATENT (0), PINHOLE_UPSCALE_LATENT_NEAREST (1) or PINHOLE_UPSCALE_PIXEL (2)";
        let space = space.ok_or_else(|| E::option("--upscale-space", expected, self.upscale_space.to_string()))?;
        let steps = count("--upscale-steps", self.upscale_steps)?;
        Ok(Some(Upscale { strength: given(self.upscale_strength).unwrap_or(plain.strength), space, steps, ..plain }))
    }

    /// # Safety
    /// The header's contract for `request` and all that it points to.
    pub(crate) unsafe fn read(request: *const Request) -> Result<Read, Failure> {
        // SAFETY: the caller's promise.
        unsafe { options::read(request)?.resolve() }
    }

    /// The same for text encoders alone, which take no pictures.
    ///
    /// # Safety
    /// As [`read`](Request::read).
    pub(crate) unsafe fn read_prompts(request: *const Request) -> Result<Read, Failure> {
        let Request {
            inputs,
            input_count,
            strength,
            posterior,
            ip_scale,
            controls,
            control_count,
            video,
            trace,
            video_mask,
            ..
        } = DEFAULT;
        // SAFETY: the caller's promise.
        let request = unsafe { options::read(request) }?;
        let request = Request {
            inputs,
            input_count,
            strength,
            posterior,
            ip_scale,
            controls,
            control_count,
            video,
            trace,
            video_mask,
            ..request
        };
        // SAFETY: the caller's promise.
        unsafe { request.resolve() }
    }

    /// # Safety
    /// The header's contract for every member.
    unsafe fn resolve(self) -> Result<Read, Failure> {
        let request = self;
        // SAFETY: the caller's promise.
        let (embeddings, prompt, negative_prompt, noise, sigmas, id_embedding, cancel) = unsafe {
            let embeddings = request.embeddings.as_ref().map(|embeddings| Arc::clone(&embeddings.0));
            let prompt = text::optional(request.prompt, "prompt")?;
            let negative_prompt = text::optional(request.negative_prompt, "negative_prompt")?.map(str::to_owned);
            let noise = copied("noise", request.noise, request.noise_count)?;
            let sigmas = copied("sigmas", request.sigmas, request.sigma_count)?;
            let face = copied("id_embedding", request.id_embedding, request.id_embedding_count)?;
            (embeddings, prompt.map(str::to_owned), negative_prompt, noise, sigmas, face, cancel::flag(request.cancel))
        };
        // SAFETY: the caller's promise.
        let pictures = unsafe { Pictures::read(request.inputs, request.input_count, &cancel) }?;
        // Zeros may stand for the prompt beside pictures that Redux makes a prompt of.
        if prompt.is_none() && embeddings.is_none() && pictures.redux.is_empty() {
            return Err(Failure::null("prompt"));
        }
        let without_prompt = prompt.is_none() && embeddings.is_none();
        // A struct of zeros asks for a picture from noise, as it did before there was a strength.
        let strength = number(request.strength)
            .filter(|&strength| strength != 0.0 || pictures.image.is_some() || !request.video.is_null());
        let mut notes = pictures.notes();
        // SAFETY: the caller's promise.
        let (video, masks) =
            unsafe { (text::optional(request.video, "video")?, text::optional(request.video_mask, "video_mask")?) };
        let most = count("--frames", request.frames)?.unwrap_or(MAX_FRAMES);
        let video = video.map(|path| Clip::open(Path::new(path), most)).transpose()?.map(Arc::new);
        let masks = masks.map(|path| Clip::open(Path::new(path), most)).transpose()?.map(Arc::new);
        notes.extend(video.iter().chain(&masks).flat_map(|video| video.notes().iter().cloned()));
        // SAFETY: the caller's promise.
        let followed = unsafe { Followed::read(pictures.controls, request.controls, request.control_count) }?;
        let interval = count("preview_interval", request.preview_interval)?.unwrap_or(1);
        let (sampler, schedule) = sampler(request.sampler, request.schedule)?;
        let wanted = Wanted {
            prompt: prompt.unwrap_or_default(),
            without_prompt,
            // Callers take pictures.
            latents_only: false,
            negative_prompt,
            width: count("--width", request.width)?,
            height: count("--height", request.height)?,
            steps: count("--steps", request.steps)?,
            seed: request.seed,
            guidance: number(request.guidance),
            cfg_scale: number(request.cfg_scale),
            sampler,
            schedule,
            sigmas,
            eta: number(request.eta),
            // A struct of zeros leaves it to the model.
            shift: number(request.shift).filter(|&shift| shift != 0.0),
            rescale_cfg: Some(request.rescale_cfg),
            image: pictures.image,
            mask: pictures.mask,
            strength,
            posterior: posterior(request.posterior)?,
            control_image: followed.image,
            controls: followed.controls,
            control_preprocess: preprocess(request.control_preprocess, request.canny_low, request.canny_high)?,
            references: pictures.references,
            // As with the strength, a struct of zeros is one without such pictures.
            ip_scale: number(request.ip_scale).filter(|&scale| scale != 0.0 || !pictures.ip_images.is_empty()),
            redux: pictures.redux,
            ip_images: pictures.ip_images,
            reference_resize: reference_resize(request.reference_resize)?,
            // A struct of zeros leaves it to the model.
            image_cfg_scale: number(request.image_cfg_scale).filter(|&scale| scale != 0.0),
            original_size: pair("--original-size", [request.original_width, request.original_height])?,
            crop: pair("--crop", [request.crop_left, request.crop_top])?,
            max_sequence_length: count("--max-sequence-length", request.max_sequence_length)?,
            batch: count("--batch", request.batch)?.unwrap_or(1),
            noise,
            embeddings,
            preview: request.preview.map(|_| interval),
            cache: step_cache(request.cache, request.cache_threshold)?,
            attention: attention(request.attention)?,
            id_embedding,
            tiny_vae: tiny_use(request.tiny_vae_for)?,
            prompt_syntax: prompt_syntax(request.prompt_syntax)?,
            safety: safety(request.safety)?,
            refiner_start: given(request.refiner_start),
            // A struct of zeros leaves them to the model.
            aesthetic_score: number(request.aesthetic_score).filter(|&score| score != 0.0),
            negative_aesthetic_score: number(request.negative_aesthetic_score).filter(|&score| score != 0.0),
            upscale: request.upscaled()?,
            control_guess: request.control_guess != 0,
            frames: count("--frames", request.frames)?,
            // A struct of zeros leaves them to the model.
            fps: given(request.fps),
            last_image: pictures.last_image,
            video,
            video_mask: masks,
            guide_scale: given(request.guide_scale),
            cfg_scale_2: number(request.cfg_scale_2).filter(|&scale| scale != 0.0),
            boundary: given(request.boundary),
        };
        let Request { progress, warning, preview, frame, user_data, .. } = request;
        let watch = Watch::new(Callbacks { progress, warning, preview, frame, user_data }, cancel.clone());
        // SAFETY: the caller's promise.
        let trace = unsafe { text::optional(request.trace, "trace") }?.map(PathBuf::from);
        Ok(Read { wanted, watch, cancel, notes, trace })
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_request_init(request: *mut Request, struct_size: usize) -> i32 {
    // SAFETY: the header's contract.
    unsafe { options::init(request, struct_size) }
}
