//! The options that say what a request is: those that `generate` and `plan` share.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use pinhole::ggml::log::{self, Level};
use pinhole::ggml::{self, CancelFlag, Device, build};
use pinhole::image::Picture;
use pinhole::pipeline::{
    self, Additions, AttentionMode, MemoryOptions, Pipeline, Posterior, ReferenceResize, Request, SafetyMode, TinyUse,
};
use pinhole::plan::Offload;
use pinhole::plan::devices::Among;
use pinhole::sample::{Sampler, Schedule};
use pinhole::size::Size;
use pinhole::source::Source;
use pinhole::{Error, Result};

use super::control::ControlArgs;
use super::lora::{self, Lora, Weighted};
use super::pictures::{open_picture, picture};
use super::preview::{self, Preview};
use super::printer::{self, Printer};
use super::stable_diffusion::StableDiffusionArgs;
use super::video::VideoArgs;
use super::{step_cache, threads};

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("looked_at").multiple(true)))]
pub(super) struct RequestArgs {
    /// What not to draw; has an effect with a --cfg-scale above 1
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    negative_prompt: Option<String>,
    /// Pixels across, a multiple of 16 (8 for Stable Diffusion)
    #[arg(long, value_name = "W")]
    width: Option<usize>,
    /// Pixels down, a multiple of 16 (8 for Stable Diffusion)
    #[arg(long, value_name = "H")]
    height: Option<usize>,
    /// Denoising steps
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Seed of the noise, the same noise as PyTorch's CPU generator; picture i of a batch uses SEED + i; -1 is a random one
    /// [default: random]
    #[arg(long, value_name = "SEED", value_parser = seed)]
    seed: Option<Seed>,
    /// Guidance as an input of the model, for those that take it (FLUX.1-dev)
    #[arg(long, value_name = "G")]
    guidance: Option<f32>,
    /// Classifier-free guidance with the negative prompt: 1 is off, more takes twice the time
    #[arg(long, value_name = "C")]
    cfg_scale: Option<f32>,
    /// How steps are taken: euler, euler_a, ddim, pndm, dpm++_2m, dpm++_2m_sde, dpm++_2s, dpm++_sde, ddpm, lms, heun, kdpm2,
    /// kdpm2_a, deis, unipc, lcm, tcd or edm_euler, as far as the model takes it; a schedule may follow, as in "DPM++ 2M Karras"
    /// [default: as the model was published]
    #[arg(long, value_name = "NAME", value_parser = sampler)]
    sampler: Option<(Sampler, Option<Schedule>)>,
    /// Which levels of noise are visited: normal, karras, exponential, beta, sgm_uniform, ays or lu, as far as the sampler
    /// follows it [default: as the model was published]
    #[arg(long, value_name = "NAME", value_parser = schedule)]
    schedule: Option<Schedule>,
    /// The levels of noise themselves, one for each step, the largest first
    #[arg(long, value_name = "A,B,..", value_parser = sigmas)]
    sigmas: Option<Sigmas>,
    /// The share of fresh noise in each step, 0 to 1, for ddim and tcd [default: 0]
    #[arg(long, value_name = "E")]
    eta: Option<f32>,
    /// How a flow is bent towards noise, whatever the size of the picture: FLUX, Z-Image, Qwen-Image, Wan. LoRAs for few steps name one,
    /// such as 3 [default: as the model was published]
    #[arg(long, visible_alias = "flow-shift", value_name = "K")]
    shift: Option<f32>,
    /// How much of the spread that guidance adds to a prediction is taken back, 0 to 1, with a --cfg-scale above 1 [default: 0]
    #[arg(long, value_name = "R")]
    rescale_cfg: Option<f32>,
    /// Skip evaluations that change little: first-block, teacache, magcache or taylorseer, as far as the model takes it. A larger
    /// THRESHOLD skips more [default: as published: first-block:0.05, teacache:0.6 for FLUX.1 and 0.08 to 0.3 for Wan, magcache:0.06].
    /// taylorseer:N computes every Nth evaluation [default: taylorseer:5]. none computes all [default: none]
    #[arg(long, value_name = "KIND[:THRESHOLD]", value_parser = step_cache::parse)]
    cache: Option<step_cache::Given>,
    /// How exact attention is on the CPU. exact is single precision. auto is so, too, except in denoisers with quantized weights, where
    /// whole numbers of 11 to 13 bits are faster and add less error than those weights did
    #[arg(long, value_name = "MODE", value_parser = attention_parser(), default_value = AttentionMode::default().name())]
    attention: AttentionMode,
    /// A LoRA, and how strongly it works [default: 1]; several are added up: --lora a.safetensors --lora b.safetensors:0.6
    #[arg(long = "lora", value_name = "FILE[:STRENGTH]", value_parser = lora::parse)]
    pub(super) loras: Vec<Lora>,
    #[command(flatten)]
    pub(super) stable_diffusion: StableDiffusionArgs,
    #[command(flatten)]
    pub(super) video: VideoArgs,
    /// How many of the last layers of CLIP the prompt does not go through, for Stable Diffusion: 1 is what many fine-tunes were
    /// trained with [default: 0]
    #[arg(long, value_name = "N")]
    pub(super) clip_skip: Option<usize>,
    /// A picture to begin with, or to be changed by a model that was trained for that: PNG, JPEG or WebP, resized to the size that is
    /// drawn
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
    /// The part of --image that is painted anew, in white on black; the rest stays
    #[arg(long, value_name = "FILE")]
    pub(super) mask: Option<PathBuf>,
    /// How far from --image the result may be: 0 is the picture, 1 is as far as without it [default: the model's]
    #[arg(long, value_name = "S")]
    strength: Option<f32>,
    /// Which latents --image has: a draw of what its autoencoder gives, as diffusers does it, or the mean
    #[arg(long, value_name = "HOW", value_parser = posterior_parser(), default_value = Posterior::Sample.name())]
    pub(super) posterior: Posterior,
    #[command(flatten)]
    pub(super) control: ControlArgs,
    /// For ControlNets of Stable Diffusion: let them guess what a picture shows, without a prompt that says so. Only the prompt's pass
    /// follows them, and the finest of what they say counts least
    #[arg(long)]
    pub(super) control_guess: bool,
    /// A face, for InfiniteYou: the embedding of ArcFace that --id-projector takes, or tokens; or for an --ip-adapter that reads faces,
    /// the embedding of one face or of several; .npy, safetensors or PyTorch's
    #[arg(long, value_name = "FILE", group = "looked_at")]
    pub(super) id_embedding: Option<PathBuf>,
    /// What makes tokens of --id-embedding: InfiniteYou's image_proj_model.bin. Its network is the first --control
    #[arg(long, value_name = "FILE")]
    pub(super) id_projector: Option<PathBuf>,
    /// A picture that the model looks at beside the prompt, as FLUX.1 Kontext and Qwen-Image-Edit do at the one that they change; more
    /// than one, in order, for models that take several
    #[arg(long = "reference", value_name = "FILE")]
    pub(super) references: Vec<PathBuf>,
    /// What size they have: auto is one that the model was trained with, none is their own
    #[arg(long, value_name = "HOW", value_parser = resize_parser(), default_value = ReferenceResize::Auto.name())]
    reference_resize: ReferenceResize,
    /// For edits of Qwen-Image whose file does not say: whether the pictures that are changed are modulated as at time 0, as in
    /// Qwen-Image-Edit-2511
    #[arg(long, value_name = "on|off", value_parser = switch)]
    pub(super) zero_cond_t: Option<bool>,
    /// For models that change --image as the prompt says: how closely the result follows it; 1 is off [default: 1.5]
    #[arg(long, value_name = "C")]
    image_cfg_scale: Option<f32>,
    /// FLUX.1 Redux, which makes a prompt of pictures: its file, a diffusers directory, or a folder with it and its image encoder
    #[arg(long, value_name = "FILE|DIR", requires = "redux_images")]
    pub(super) redux: Option<PathBuf>,
    /// A picture that Redux makes a prompt of, and how much it counts [default: 1]; of several, what becomes of them is added up
    #[arg(long = "redux-image", value_name = "FILE[:WEIGHT]", value_parser = lora::weighted, requires = "redux")]
    pub(super) redux_images: Vec<lora::Weighted>,
    /// An IP-Adapter: of FLUX.1, of XLabs or InstantX; or of Stable Diffusion, plain, Plus or FaceID
    #[arg(long, value_name = "FILE", requires = "looked_at")]
    pub(super) ip_adapter: Option<PathBuf>,
    /// A picture that the IP-Adapter lets the model look at; several are looked at together
    #[arg(long = "ip-image", value_name = "FILE", requires = "ip_adapter", group = "looked_at")]
    pub(super) ip_images: Vec<PathBuf>,
    /// How much these pictures count [default: 1]
    #[arg(long, value_name = "S")]
    pub(super) ip_scale: Option<f32>,
    /// What sees pictures for --redux, if that has none, and for --ip-adapter: a vision tower of SigLIP (for Redux and InstantX) or CLIP
    /// (for XLabs and Stable Diffusion); one of each if both are needed. For Qwen-Image-Edit: its `mmproj`, if that does not lie beside the text encoder
    #[arg(long = "image-encoder", value_name = "FILE|DIR")]
    pub(super) image_encoders: Vec<PathBuf>,
    /// For Stable Diffusion XL: the size of the picture that this one is like a resized copy of; smaller is blurred [default: the size
    /// that is drawn]
    #[arg(long, value_name = "WxH", value_parser = |text: &str| two(text, 'x'))]
    original_size: Option<[usize; 2]>,
    /// For Stable Diffusion XL: how many pixels that copy was cut off on the left and at the top; more is off centre [default: 0,0]
    #[arg(long, value_name = "X,Y", value_parser = |text: &str| two(text, ','))]
    crop: Option<[usize; 2]>,
    /// Tokens that the T5 text encoder reads
    #[arg(long, value_name = "N")]
    max_sequence_length: Option<usize>,
    /// How many pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// What --tiny-vae is used for: all is pictures, given ones too, and previews; preview is those alone [default: all]
    #[arg(long, value_name = "WHAT", value_parser = tiny_parser())]
    tiny_vae_for: Option<TinyUse>,
    /// What becomes of pictures that the model's safety checker flags: on makes them black, report only says so, off checks none
    /// [default: on with a model that brings one, off without]
    #[arg(long, value_name = "HOW", value_parser = safety_parser())]
    safety: Option<SafetyMode>,
    /// Make the pictures larger in the end, as `pinhole upscale` does: Real-ESRGAN's or ESRGAN's network
    #[arg(long, value_name = "FILE")]
    pub(super) upscaler: Option<PathBuf>,
    /// Write what the picture looks like after every EVERY steps to this file, which is replaced each time [default: after each]
    #[arg(long, value_name = "FILE[:EVERY]", value_parser = preview::parse)]
    pub(super) preview: Option<Preview>,
    /// Where to compute: auto, or a device that `pinhole devices` lists, or rpc:HOST:PORT, where another machine runs `pinhole rpc-server`;
    /// several with `,` between them compute together
    #[arg(long, value_name = "NAME,...", default_value = "auto")]
    pub(super) device: String,
    /// The most memory to take on the device, never exceeded: 4G, 3500M, 1.5G, ... in units of 1024; auto is what is free,
    /// less a margin, and on the CPU what --host-memory allows. With several devices it holds for each, or is one for each
    #[arg(long, value_name = "SIZE,...", default_value = "auto", value_parser = budgets)]
    vram: Budgets,
    /// What several devices have among them of the denoiser: passes (of guidance, one on each), tokens (of a pass: all compute each stage,
    /// for some of its tokens), stages, several of these with commas, or none of them. auto is what is forecast to be quickest
    #[arg(long, value_name = "WHAT,...", default_value = "auto", value_parser = Among::from_str)]
    devices_by: Among,
    /// How to share a device that is smaller than the model: none (all of it stays there), model (one component at a
    /// time), sequential (streamed layer by layer), or auto, the fastest that fits
    #[arg(long, value_name = "MODE", value_parser = offload_parser(), default_value = Offload::default().name())]
    offload: Offload,
    /// The most memory to take on the host, everything counted, resident pages of the model's files too: pages that do not fit are
    /// read from the disk in every step. auto is what is free, within the limits of the process and of its control group
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = budget)]
    host_memory: Budget,
    /// Threads of the CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    pub(super) threads: Option<usize>,
}

/// What `--seed` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seed {
    Random,
    Given(u64),
}

/// Other tools take any number below zero for a random seed.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
}

fn seed(text: &str) -> Result<Seed, String> {
    match text.parse::<i128>() {
        Ok(..0) => Ok(Seed::Random),
        Ok(number) => u64::try_from(number).map(Seed::Given).map_err(|_| format!("the largest is {}", u64::MAX)),
        Err(_) => Err("expected a whole number, or -1 for a random one".to_owned()),
    }
}

/// A budget; `None` for `auto`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(Option<Size>);

impl Budget {
    /// In bytes; `None` for `auto`.
    pub(super) fn bytes(self) -> Option<usize> {
        self.0.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX))
    }
}

/// Parses a budget.
pub(super) fn budget(text: &str) -> Result<Budget, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Budget(None));
    }
    text.parse().map(|size| Budget(Some(size))).map_err(|error| format!("{error}, or auto"))
}

/// A budget of each device, or one for all.
#[derive(Clone, Debug)]
pub(super) struct Budgets(Vec<Budget>);

fn budgets(text: &str) -> Result<Budgets, String> {
    let each: Result<Vec<Budget>, String> = text.split(',').map(budget).collect();
    each.map(Budgets)
}

/// Two numbers with `between` between them.
fn two(text: &str, between: char) -> Result<[usize; 2], String> {
    let numbers = text.split_once(between).and_then(|(x, y)| Some([x.trim().parse().ok()?, y.trim().parse().ok()?]));
    numbers.ok_or_else(|| format!("expected two numbers with `{between}` between them"))
}

fn sampler(name: &str) -> Result<(Sampler, Option<Schedule>), String> {
    let names: Vec<&str> = Sampler::ALL.iter().map(|sampler| sampler.name()).collect();
    Sampler::with_schedule(name).map_err(|_| format!("expected one of {}", names.join(", ")))
}

fn schedule(name: &str) -> Result<Schedule, String> {
    let names: Vec<&str> = Schedule::ALL.iter().map(|schedule| schedule.name()).collect();
    name.parse().map_err(|_| format!("expected one of {}", names.join(", ")))
}

/// What `--sigmas` names.
#[derive(Clone, Debug)]
struct Sigmas(Vec<f32>);

fn sigmas(text: &str) -> Result<Sigmas, String> {
    let numbers: Result<Vec<f32>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    numbers.map(Sigmas).map_err(|_| "expected numbers with `,` between them".to_owned())
}

fn posterior_parser() -> impl TypedValueParser<Value = Posterior> {
    PossibleValuesParser::new(Posterior::ALL.map(Posterior::name)).map(|name| match name.as_str() {
        "mean" => Posterior::Mean,
        _ => Posterior::Sample,
    })
}

fn tiny_parser() -> impl TypedValueParser<Value = TinyUse> {
    PossibleValuesParser::new(TinyUse::ALL.map(TinyUse::name)).map(|name| match name.as_str() {
        "preview" => TinyUse::Preview,
        _ => TinyUse::All,
    })
}

/// One of [`AttentionMode::ALL`], by its name.
pub(super) fn attention_parser() -> impl TypedValueParser<Value = AttentionMode> {
    PossibleValuesParser::new(AttentionMode::ALL.map(AttentionMode::name)).map(|name| match name.as_str() {
        "exact" => AttentionMode::Exact,
        _ => AttentionMode::Auto,
    })
}

fn safety_parser() -> impl TypedValueParser<Value = SafetyMode> {
    PossibleValuesParser::new(["on", "off", "report"]).map(|name| match name.as_str() {
        "on" => SafetyMode::On,
        "report" => SafetyMode::Report,
        _ => SafetyMode::Off,
    })
}

fn resize_parser() -> impl TypedValueParser<Value = ReferenceResize> {
    PossibleValuesParser::new(ReferenceResize::ALL.map(ReferenceResize::name)).map(|name| match name.as_str() {
        "none" => ReferenceResize::None,
        _ => ReferenceResize::Auto,
    })
}

/// Parses an offload mode.
pub(super) fn offload_parser() -> impl TypedValueParser<Value = Offload> {
    let names = Offload::ALL.iter().map(|offload| offload.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Offload>().map_err(std::io::Error::other))
}

impl RequestArgs {
    /// The request for pictures of `prompt`, or of none.
    ///
    /// # Errors
    /// Those of [`Picture::open`]; [`Error::Option`] for two schedules.
    pub(super) fn request(&self, prompt: Option<&str>, printer: &Printer) -> Result<Request> {
        let (sampler, schedule) = self.sampler_and_schedule()?;
        let request = self.stable_diffusion.told(Request {
            prompt: prompt.unwrap_or_default().to_owned(),
            negative_prompt: self.negative_prompt.clone(),
            width: self.width,
            height: self.height,
            steps: self.steps,
            seed: self.given_seed().unwrap_or_else(random_seed),
            guidance: self.guidance,
            cfg_scale: self.cfg_scale,
            sampler,
            schedule,
            sigmas: self.sigmas.as_ref().map(|sigmas| sigmas.0.clone()),
            eta: self.eta,
            shift: self.shift,
            rescale_cfg: self.rescale_cfg,
            image: picture(&self.image, printer)?,
            mask: picture(&self.mask, printer)?,
            strength: self.strength,
            posterior: self.posterior,
            control_image: picture(&self.control.image, printer)?,
            control_preprocess: self.control.preprocess()?,
            id_embedding: self.id_embedding.as_deref().map(pipeline::read_id_embedding).transpose()?,
            image_cfg_scale: self.image_cfg_scale,
            references: self.references.iter().map(|path| open_picture(path, printer)).collect::<Result<_>>()?,
            reference_resize: self.reference_resize,
            original_size: self.original_size,
            crop: self.crop,
            max_sequence_length: self.max_sequence_length,
            batch: self.batch,
            noise: None,
            embeddings: None,
            redux: self.redux_pictures(printer)?,
            ip_images: self.ip_images.iter().map(|path| open_picture(path, printer)).collect::<Result<_>>()?,
            ip_scale: self.ip_scale,
            without_prompt: prompt.is_none() && !self.redux_images.is_empty(),
            controls: self.control.read(printer)?,
            cache: self.cache.and_then(|cache| cache.0),
            attention: self.attention,
            preview: self.preview.as_ref().map(|preview| preview.every),
            tiny_vae: self.tiny_vae_for,
            safety: self.safety,
            control_guess: self.control_guess,
            ..Request::default()
        });
        self.video.told(request, printer)
    }

    /// The pictures of `--redux-image`, each with its weight.
    fn redux_pictures(&self, printer: &Printer) -> Result<Vec<(Arc<Picture>, f32)>> {
        let mut pictures = Vec::with_capacity(self.redux_images.len());
        for Weighted { path, weight } in &self.redux_images {
            pictures.push((open_picture(path, printer)?, *weight));
        }
        Ok(pictures)
    }

    /// The schedule may be named by `--sampler`, too.
    fn sampler_and_schedule(&self) -> Result<(Option<Sampler>, Option<Schedule>)> {
        let Some((sampler, named)) = self.sampler else { return Ok((None, self.schedule)) };
        match (named, self.schedule) {
            (Some(named), Some(other)) if named != other => {
                let expected = format!("`{named}`, which --sampler names, or nothing");
                Err(Error::option("--schedule", expected, format!("`{other}`")))
            }
            (named, other) => Ok((Some(sampler), named.or(other))),
        }
    }

    /// The seed that was asked for, if it is to be no random one.
    pub(super) fn given_seed(&self) -> Option<u64> {
        match self.seed {
            Some(Seed::Given(seed)) => Some(seed),
            Some(Seed::Random) | None => None,
        }
    }

    /// What the model is opened with beside its own files.
    pub(super) fn additions(&self) -> Additions {
        let additions = self.stable_diffusion.add_to(Additions {
            clip_skip: self.clip_skip,
            loras: lora::pairs(&self.loras),
            redux: self.redux.clone(),
            image_encoders: self.image_encoders.clone(),
            ip_adapter: self.ip_adapter.clone(),
            controls: self.control.paths(),
            id_projector: self.id_projector.clone(),
            takes_id: self.id_embedding.is_some(),
            upscaler: self.upscaler.clone(),
            zero_cond_t: self.zero_cond_t,
            ..Additions::default()
        });
        self.video.add_to(additions)
    }

    /// The model of `source` on `devices`, with what these options say of its weights and of the memory it may take.
    ///
    /// # Errors
    /// Those of [`pipeline::open_with`], [`Pipeline::on_devices`] and [`Pipeline::set_budgets`].
    pub(super) fn pipeline(
        &self,
        source: &Source,
        devices: &[Device],
        threads: usize,
        cancel: CancelFlag,
    ) -> Result<Pipeline> {
        let model = pipeline::open_with(source, &self.additions())?;
        let mut pipeline = Pipeline::on_devices(model, devices, threads, cancel)?;
        pipeline.set_memory(self.memory());
        pipeline.set_among(self.devices_by);
        if self.vram.0.len() > 1 {
            let budgets: Vec<Option<usize>> = self.vram.0.iter().map(|budget| budget.bytes()).collect();
            pipeline.set_budgets(&budgets)?;
        }
        Ok(pipeline)
    }

    /// How much of the device and the host it may take.
    pub(super) fn memory(&self) -> MemoryOptions {
        let vram = match &self.vram.0[..] {
            [of_all] => of_all.bytes(),
            _ => None,
        };
        MemoryOptions { vram, offload: self.offload, host: self.host_memory.bytes() }
    }
}

/// The device `name`; an unknown one is a wrong option, and a processor that this build is not for is none.
pub(super) fn device(name: &str) -> Result<Device> {
    build::check_processor()?;
    Device::by_name(name).map_err(|error| match error.hint() {
        // A server's own words.
        Some(_) if name.to_ascii_lowercase().starts_with("rpc:") => error,
        // A device that is there, and cannot compute.
        Some(_) if ggml::devices().is_ok_and(|all| all.iter().any(|known| known.name().eq_ignore_ascii_case(name))) => {
            error
        }
        Some(known) => {
            let known = known.to_owned();
            Error::option("--device", "a device of this machine", format!("`{name}`")).with_hint(known)
        }
        None => error,
    })
}

/// The devices `names`, with `,` between them.
pub(super) fn devices(names: &str) -> Result<Vec<Device>> {
    let devices = names.split(',').map(|name| device(name.trim())).collect::<Result<Vec<_>>>()?;
    if devices.iter().any(Device::is_remote) {
        log::set_hook(Some(Arc::new(|level, message| {
            if level >= Level::Warning {
                printer::aside(message);
            }
        })));
    }
    Ok(devices)
}

/// The names of `devices`, as `--device` takes them.
pub(super) fn device_names(devices: &[Device]) -> String {
    devices.iter().map(Device::name).collect::<Vec<_>>().join(",")
}

/// A seed of 32 bits: short enough to type again.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds its hash maps from the system's random numbers.
    RandomState::new().hash_one(Instant::now()) >> 32
}
