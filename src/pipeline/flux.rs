//! FLUX.1: diffusers' `FluxPipeline`.

use std::path::Path;

use super::controls;
use super::encoders::{CLIP_NAME, ClipEncoder, T5Encoder};
use super::face::Face;
use super::fit::{self, Side};
use super::flux_controls;
use super::flux_image_prompts::FluxImagePrompts;
use super::opened::{
    Additions, Denoiser, Encoders, Family, Given, ImagePrompts, Opened, Reader, StepPorts, subject, texts,
};
use super::prompts::{ArraySpec, Prompt};
use super::request::{OpenedWith, Settings};
use super::rules::{Beside, Defaults, GuidanceScale, References, Rules, Starts, Use};
use super::run::Run;
use super::safety;
use super::step_cache::{CacheKind, Caches, Rescaling};
use super::vae::Vae;
use crate::bind::{alias, lora};
use crate::exec::Session;
use crate::models::flux::{
    ControlConfig, ControlNet, Flux, IP_PICTURES, SEEN_BY, UNSEEN, pack_latents, pack_mask, sinusoid, unpack_latents,
};
use crate::models::step_cache::{CachePorts, Cached, DecidedBy};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::{AYS, DiscreteConfig, FlowMatchConfig, Scheduler};
use crate::source::networks;
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TEXT_ENCODER_2, TINY_VAE, TRANSFORMER, VAE};
use crate::source::{Network, Networks, Part, Place, Source, Text};
use crate::stage::{Dims, Symbol};
use crate::text::{Encoded, MAX_SEQUENCE_LENGTH};
use crate::{Error, Result, reserve};

/// FLUX.1-dev and -schnell.
pub(super) static FLUX: Family = Family {
    name: "flux",
    classes: &["FluxPipeline", "FluxFillPipeline", "FluxControlPipeline", "FluxKontextPipeline"],
    places: &[
        Place::needed(&TRANSFORMER, &alias::FLUX, |component| Ok(Box::new(networks::flux(component)?))),
        Place::needed(&TEXT_ENCODER, &alias::CLIP, |component| Ok(Box::new(networks::clip(component)?.0))),
        Place::needed(&TEXT_ENCODER_2, &alias::T5, |component| Ok(Box::new(networks::t5(component)?.0))),
        Place::needed(&VAE, &alias::AUTOENCODER_KL, |component| Ok(Box::new(networks::autoencoder_kl(component)?)))
            .unless(&TINY_VAE),
        Place::given(&TINY_VAE, &alias::AUTOENCODER_TINY, |component| {
            Ok(Box::new(networks::autoencoder_tiny(component)?))
        }),
        safety::PLACE,
    ],
    beside: &[CONTROL],
    marks: &[],
    tokens: 512,
    denoiser: |source| Ok(Box::new(FluxDenoiser::new(networks::flux(source.component(&TRANSFORMER)?)?, &[]))),
    open,
};

/// ControlNets, which run beside it.
const CONTROL: Place =
    Place::given(&CONTROLNET, &alias::FLUX_CONTROL, |component| Ok(Box::new(networks::flux_control(component)?)));

/// Pixels of an image token, in both directions: 8 pixels a latent, 2 latents a token.
const SIDE: usize = 16;

/// What FLUX.1 Kontext looks at: one picture, of a size that it was trained with (`PREFERRED_KONTEXT_RESOLUTIONS` of diffusers).
const KONTEXT: References = References {
    most: 1,
    sizes: &[
        [672, 1568],
        [688, 1504],
        [720, 1456],
        [752, 1392],
        [800, 1328],
        [832, 1248],
        [880, 1184],
        [944, 1104],
        [1024, 1024],
        [1104, 944],
        [1184, 880],
        [1248, 832],
        [1328, 800],
        [1392, 752],
        [1456, 720],
        [1504, 688],
        [1568, 672],
    ],
    cropped: None,
    area: None,
    needed: false,
};

/// FLUX.1-dev's guidance.
const GUIDANCE: f32 = 3.5;

/// What times and guidance are multiplied by before they are embedded.
const TIME_SCALE: f32 = 1000.0;

/// The names of its subjects.
const CLIP: &str = "clip";
const T5: &str = "t5";

/// What a model was published with, if its file brings no defaults: the model cards of FLUX.1-dev and -schnell.
fn rules(takes_guidance: bool, tokens: usize) -> Rules {
    let (steps, guidance) = if takes_guidance { (50, Some(GUIDANCE)) } else { (4, None) };
    let negative_prompt = String::new();
    Rules {
        multiple: SIDE,
        // Beyond it the rotary positions leave all that was ever trained.
        most_pixels: 16384,
        tokens: 1..=MAX_SEQUENCE_LENGTH,
        guidance,
        guided_above: 1.0,
        is_told_sizes: false,
        is_told_scores: false,
        ays: AYS,
        zeros_without_negative: false,
        inputs: &[Use::Start, Use::Mask],
        beside: None,
        references: None,
        starts: Starts::Drawn,
        controls: Vec::new(),
        caches: Caches::NONE,
        frames: None,
        experts: None,
        first: None,
        guide: false,
        followed: None,
        told: OpenedWith::default(),
        defaults: Defaults {
            width: 1024,
            height: 1024,
            steps,
            cfg_scale: 1.0,
            negative_prompt,
            tokens,
            strength: 0.6,
            strength_with_mask: 0.6,
        },
    }
}

fn open(source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_embeddings()?;
    additions.refuse_refiner()?;
    if additions.clip_skip.is_some() {
        return Err(Error::option(
            "--clip-skip",
            "a model that reads CLIP's hidden states",
            "one that reads its last vector",
        ));
    }
    source.require_configurations()?;
    let transformer = following(networks::flux(source.component(&TRANSFORMER)?)?, additions)?;
    let controls = flux_controls::open(additions, &CONTROL)?;
    let mut encoders = FluxEncoders {
        clip: ClipEncoder::open(&source, &TEXT_ENCODER)?,
        t5: T5Encoder::open(&source, &TEXT_ENCODER_2)?,
    };
    let vae = Vae::open(&source, None)?;
    let takes_guidance = transformer.net.config().guidance_embeds;
    let scheduler = match &source.scheduler {
        Some(Text { text, origin }) => flow(Scheduler::from_json(text, origin)?, origin)?,
        None if takes_guidance => Scheduler::Flow(dev_schedule()),
        None => Scheduler::Flow(schnell_schedule()),
    };
    let beside = beside(&transformer);
    let rules = rules(takes_guidance, encoders.t5.reader().length).with(beside);
    // Kontext has the layers of the others: what a transformer makes of a picture, only its training tells.
    let rules = Rules { references: beside.is_none().then_some(KONTEXT), ..rules };
    let rules = Rules {
        caches: caches(&transformer.net),
        ..flux_controls::followed(with_defaults(rules, beside), &controls, GUIDANCE)
    };
    let rules = rules.read(&source, GuidanceScale::Input)?;
    check(&source, &transformer, &encoders, &vae)?;
    let reader = controls.first().map(|control| (control.bound.origin(), control.net.config().num_mode.is_some()));
    let width = transformer.net.config().joint_attention_dim;
    let face = Face::open(additions.id_projector.as_deref(), additions.takes_id, width, reader)?;
    let mut image_prompts: Option<Box<dyn ImagePrompts>> = None;
    let mut adapter = None;
    if let Some((pictures, with)) = FluxImagePrompts::open(additions, transformer.net.config())? {
        image_prompts = Some(Box::new(pictures));
        adapter = with;
    }
    let mut transformer = networks::flux_with(transformer, &controls, adapter.as_ref())?;
    let FluxEncoders { clip, t5 } = &mut encoders;
    let loras = additions.apply(&mut [transformer.target(), clip.part.target(), t5.part.target()])?;
    Ok(Opened {
        family: &FLUX,
        encoders: Box::new(encoders),
        denoiser: Box::new(FluxDenoiser::new(transformer, &controls)),
        tiny: vae.tiny(&source)?,
        autoencoder: vae.boxed(),
        scheduler,
        rules,
        loras,
        image_prompts,
        face,
        safety: None,
        upscaler: None,
        refiner: None,
        source,
    })
}

/// What TeaCache's script for FLUX rescales the change of the first block's modulated input by.
const TEACACHE: Rescaling = Rescaling {
    coefficients: [4.98651651e+02, -2.83781631e+02, 5.58554382e+01, -3.82021401e+00, 2.64230861e-01],
    threshold: 0.6,
};

/// `FLUX_MAG_RATIOS` of diffusers.
const MAGNITUDES: [f32; 28] = [
    1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047, 1.01562,
    1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703, 0.93359,
    0.89062,
];

/// The step caches that a transformer has the blocks for.
fn caches(transformer: &Flux) -> Caches {
    let config = transformer.config();
    let blocks = config.num_layers + config.num_single_layers;
    Caches {
        first_block: blocks > 1,
        teacache: (config.num_layers > 0).then_some(TEACACHE),
        magcache: (blocks > 0).then_some(&MAGNITUDES),
        taylorseer: true,
    }
}

/// A plain `transformer` as a control LoRA takes it, if one is among `additions`: the latents of a picture stand beside those that are
/// denoised.
fn following(transformer: Part<Flux>, additions: &Additions) -> Result<Part<Flux>> {
    let channels = transformer.net.config().in_channels;
    let is_plain = channels == transformer.net.config().out_channels();
    match additions.inputs(&lora::FIRST_LAYERS)? {
        Some(inputs) if is_plain && inputs == 2 * channels => networks::flux_reading(transformer, inputs),
        _ => Ok(transformer),
    }
}

/// What stands beside the packed latents: as many more of a picture that is followed, or those of what a mask leaves, and the mask, of
/// which each token has its pixels.
fn beside(transformer: &Part<Flux>) -> Option<Beside> {
    let config = transformer.net.config();
    match config.in_channels.checked_sub(config.out_channels()) {
        Some(more) if more == config.out_channels() => Some(Beside::Control),
        Some(more) if more == config.out_channels() + SIDE * SIDE => Some(Beside::Masked { draws_picture: true }),
        _ => None,
    }
}

/// With the defaults of FLUX.1 Fill and of FLUX.1 Canny, as their model cards have them.
fn with_defaults(rules: Rules, beside: Option<Beside>) -> Rules {
    if beside.is_none() {
        return rules;
    }
    let defaults = Defaults { strength_with_mask: 1.0, ..rules.defaults };
    Rules { guidance: rules.guidance.map(|_| 30.0), defaults, ..rules }
}

/// FLUX.1-dev's, as published: the shift grows with the picture.
fn dev_schedule() -> FlowMatchConfig {
    FlowMatchConfig { shift: 3.0, use_dynamic_shifting: true, ..FlowMatchConfig::default() }
}

/// FLUX.1-schnell's, as published: no shift.
fn schnell_schedule() -> FlowMatchConfig {
    FlowMatchConfig::default()
}

/// The scheduler of `source`, whose model predicts a flow, or the one with the `published` schedule.
///
/// # Errors
/// [`Error::Mismatch`] for a schedule that no flow has; what reading it returns.
pub(super) fn scheduler(source: &Source, published: FlowMatchConfig) -> Result<Scheduler> {
    match &source.scheduler {
        Some(Text { text, origin }) => flow(Scheduler::from_json(text, origin)?, origin),
        None => Ok(Scheduler::Flow(published)),
    }
}

/// Refuses a schedule of discrete timesteps: the model predicts a flow.
fn flow(scheduler: Scheduler, origin: &Path) -> Result<Scheduler> {
    let refuse = |found: String| Err(Error::mismatch(origin, "_class_name", "FlowMatchEulerDiscreteScheduler", found));
    match scheduler {
        Scheduler::Flow(_) => Ok(scheduler),
        Scheduler::Discrete(DiscreteConfig { class_name, .. }) => refuse(class_name),
        _ => refuse("EDMEulerScheduler".into()),
    }
}

/// Whether the parts fit together.
fn check(source: &Source, transformer: &Part<Flux>, encoders: &FluxEncoders, vae: &Vae) -> Result<()> {
    let (flux, FluxEncoders { clip, t5 }) = (transformer.net.config(), encoders);
    let side = |what, number| Side::of(transformer, what, number);
    let pooled = side("pooled_projection_dim of the transformer", flux.pooled_projection_dim);
    fit::equal(source, pooled, Side::of(&clip.part, "the width of CLIP", clip.config.hidden_size))?;
    let joint = side("joint_attention_dim of the transformer", flux.joint_attention_dim);
    fit::equal(source, joint, Side::of(&t5.part, "the width of T5", t5.config.d_model))?;
    let more = match beside(transformer) {
        Some(_) => flux.in_channels - flux.out_channels(),
        None => 0,
    };
    let channels = side("in_channels of the transformer", flux.in_channels - more);
    let latents = vae.side("four times the latent channels of the autoencoder", 4 * vae.channels());
    fit::equal(source, channels, latents)?;
    fit::exactly(transformer, "out_channels of the transformer", flux.out_channels(), 4 * vae.channels())?;
    vae.exactly("pixels to a latent", vae.factor(), SIDE / 2)?;
    clip.check(source)?;
    t5.check(source)
}

/// CLIP, for the pooled prompt, and T5, for its tokens.
struct FluxEncoders {
    clip: ClipEncoder,
    t5: T5Encoder,
}

impl Networks for FluxEncoders {
    fn networks(&self) -> Vec<Network<'_>> {
        [self.clip.part.networks(), self.t5.part.networks()].concat()
    }
}

impl Encoders for FluxEncoders {
    fn readers(&self) -> Vec<Reader> {
        vec![self.clip.reader(CLIP_NAME), self.t5.reader()]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        Ok(vec![self.clip.tokenize(text)?, self.t5.tokenize(text, settings.max_sequence_length)?])
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        let (runs, tokens) = (texts(settings), settings.max_sequence_length);
        vec![self.clip.subject(CLIP, runs), self.t5.subject(T5, tokens, runs)]
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        let hidden = vec![self.t5.config.d_model, tokens];
        let pooled = vec![self.clip.config.hidden_size];
        vec![ArraySpec { name: "hidden", dims: hidden }, ArraySpec { name: "pooled", dims: pooled }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        let subjects = self.subjects(settings);
        let [clip, t5] = &subjects[..] else { return Err(Error::graph("encode", "two encoders")) };
        let pooled = self.clip.pooled(run, clip, texts.iter().map(|tokens| &tokens[0]))?;
        let tokens = settings.max_sequence_length;
        let hidden = self.t5.hidden(run, t5, tokens, texts.iter().map(|tokens| &tokens[1]))?;
        Ok(hidden.into_iter().zip(pooled).map(|(hidden, pooled)| Prompt(vec![hidden, pooled])).collect())
    }
}

/// Rows and columns of tokens of the picture that is drawn, and of those that the model looks at.
fn grids(settings: &Settings) -> Vec<[usize; 2]> {
    let mut grids = vec![[settings.height / SIDE, settings.width / SIDE]];
    grids.extend(settings.references.iter().map(|[width, height]| [height / SIDE, width / SIDE]));
    grids
}

/// How many tokens these are.
fn image_tokens(settings: &Settings) -> usize {
    grids(settings).into_iter().map(|[rows, columns]| rows.saturating_mul(columns)).fold(0, usize::saturating_add)
}

/// Tokens of `width` numbers in `packed`, each with its share of `beside` behind it.
fn joined(packed: &[f32], beside: &[f32], width: usize) -> Result<Vec<f32>> {
    let tokens = packed.len() / width;
    let mut joined = reserve::room("the latents", packed.len() + beside.len())?;
    for (token, more) in packed.chunks_exact(width).zip(beside.chunks_exact(beside.len() / tokens)) {
        joined.extend_from_slice(token);
        joined.extend_from_slice(more);
    }
    Ok(joined)
}

/// The transformer, with the ControlNets that run beside it, and the same with each of the caches that it has the blocks for.
struct FluxDenoiser {
    part: Part<Flux>,
    controls: Vec<ControlConfig>,
    cached: Vec<(CacheKind, Cached)>,
}

impl FluxDenoiser {
    fn new(part: Part<Flux>, controls: &[Part<ControlNet>]) -> FluxDenoiser {
        let by = [
            (CacheKind::FirstBlock, DecidedBy::FirstBlock),
            (CacheKind::TeaCache, DecidedBy::Input),
            (CacheKind::MagCache, DecidedBy::Host),
        ];
        let cached = by.into_iter().filter_map(|(kind, by)| Some((kind, part.net.cached(by)?))).collect();
        let controls = controls.iter().map(|control| control.net.config().clone()).collect();
        FluxDenoiser { part, controls, cached }
    }

    /// The one with the cache of a request, if anything of that is on the device.
    fn cached(&self, settings: &Settings) -> Option<&Cached> {
        let kind = settings.cache?.kind;
        self.cached.iter().find(|(known, _)| *known == kind).map(|(_, cached)| cached)
    }

    /// Fills the ports of the ControlNets.
    fn fill_controls(&self, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, settings) = (&self.part.net, given.settings);
        let count = given.levels.len();
        let pictures: Vec<usize> = (0..given.pictures).collect();
        self.follow(session, (given.controls, settings.batch), &pictures)?;
        for (i, (ports, control)) in net.controls.iter().zip(&settings.controls).enumerate() {
            if let Some(pixels) = given.controls.get(i).filter(|_| self.controls[i].takes_pixels()) {
                session.set(ports.picture, pixels)?;
            }
            let mut factors = Vec::with_capacity(given.evaluations.len() * given.prompts.len());
            for evaluation in given.evaluations.clone() {
                factors.extend(std::iter::repeat_n(control.factor(evaluation, count), given.prompts.len()));
            }
            session.set(ports.scale, &factors)?;
            if let (Some((table, port)), Some(mode)) = (ports.mode, control.mode) {
                let mode = u32::try_from(mode).unwrap_or(u32::MAX);
                let row = self.part.bound.gather(table, net.config().hidden(), &[mode])?;
                session.set(port, &reserve::repeat("the mode", &row, given.pictures)?)?;
            }
            if let Some(port) = ports.face {
                session.set(port, &reserve::repeat("a face", given.face, given.pictures)?)?;
            }
            if let Some([cos, sin]) = ports.rotary {
                let text = if ports.face.is_some() { settings.id_tokens } else { settings.prompt_tokens() + 1 };
                let tables = net.rotary(text, &grids(settings))?;
                session.set(cos, &tables.0)?;
                session.set(sin, &tables.1)?;
            }
        }
        Ok(())
    }
}

impl Networks for FluxDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.part.networks()
    }
}

impl Denoiser for FluxDenoiser {
    fn subjects(&self, settings: &Settings, latents: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let image = image_tokens(settings);
        let (text, passes) = (settings.prompt_tokens(), settings.passes());
        let mut dims = Dims::new()
            .with(Symbol::PASSES, passes)
            .with(Symbol::BATCH, settings.batch * passes)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(Symbol::TEXT_TOKENS, text)
            .with(Symbol::JOINT_TOKENS, text + image)
            .with(Symbol::CONDITIONS, evaluations * passes);
        if settings.redux_tokens > 0 && passes > 1 {
            // The negative prompt has no pictures.
            dims = dims.with(SEEN_BY, settings.batch).with(UNSEEN, settings.redux_tokens).with_in_pass(1, SEEN_BY, 0);
        }
        if self.part.net.ports.ip.is_some() {
            dims = dims.with(IP_PICTURES, settings.ip_images.max(1));
        }
        if !self.controls.is_empty() {
            for (symbol, size) in ControlConfig::sizes(settings.batch, text, image, [latents[0], latents[1]]) {
                dims = dims.with(symbol, size);
            }
            for (symbol, size) in ControlConfig::face_sizes(settings.id_tokens, image) {
                dims = dims.with(symbol, size);
            }
            dims = dims.with_spans(controls::spans(settings, evaluations));
        }
        let plain = subject(&self.part, TRANSFORMER.name, Phase::Denoise, dims, Runs::of_steps(evaluations));
        let model = self.cached(settings).map_or(plain.model, |cached| &cached.model);
        vec![Subject { model, ..plain }]
    }

    fn cache(&self, _: usize, settings: &Settings) -> Option<CachePorts> {
        self.cached(settings).map(|cached| cached.ports)
    }

    fn probed(&self, settings: &Settings) -> usize {
        image_tokens(settings).saturating_mul(self.part.net.config().hidden())
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.part.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.velocity, condition: ports.condition }
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, settings) = (&self.part.net, given.settings);
        let ports = &net.ports;
        session.set(ports.time, &given.times(|time| sinusoid(time * TIME_SCALE))?)?;
        if let (Some(port), Some(guidance)) = (ports.guidance, settings.guidance) {
            let conditions = given.evaluations.len() * given.prompts.len();
            session.set(port, &reserve::repeat("the guidance", &sinusoid(guidance * TIME_SCALE), conditions)?)?;
        }
        if let Some(ip) = &ports.ip {
            session.set(ip.seen, &given.ip()?)?;
            session.set(ip.scale, &[settings.ip_scale])?;
        }
        session.set(ports.text, &given.prompt(0)?)?;
        session.set(ports.pooled, &given.prompt_by_condition(1)?)?;
        self.fill_controls(session, given)?;
        let (cos, sin) = net.rotary(settings.prompt_tokens(), &grids(settings))?;
        session.set(ports.cos, &cos)?;
        session.set(ports.sin, &sin)
    }

    fn follow(
        &self,
        session: &mut Session<'_>,
        (followed, batch): (&[Vec<f32>], usize),
        pictures: &[usize],
    ) -> Result<()> {
        for ((ports, followed), config) in self.part.net.controls.iter().zip(followed).zip(&self.controls) {
            // Pixels are the same for all pictures.
            if config.takes_pixels() {
                continue;
            }
            let each = followed.len() / batch;
            let mut own = reserve::room("the latents", each * pictures.len())?;
            for &picture in pictures {
                own.extend_from_slice(&followed[picture * each..(picture + 1) * each]);
            }
            session.set(ports.picture, &own)?;
        }
        Ok(())
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        // The rotary tables, cosine and sine, and the positions that they are made from.
        let image = image_tokens(settings);
        let axes = &self.part.net.config().axes_dims_rope;
        let each = 2 * size_of::<f32>() * axes.iter().sum::<usize>() + size_of::<u32>() * axes.len();
        (settings.prompt_tokens() + image).saturating_mul(each)
    }

    fn beside(&self, [w, h, ..]: [usize; 5]) -> usize {
        let config = self.part.net.config();
        config.in_channels.saturating_sub(config.out_channels()) * (w / 2) * (h / 2)
    }

    fn pack_beside(
        &self,
        latents: &[f32],
        mask: Option<&[f32]>,
        [w, h, _, channels, _]: [usize; 5],
    ) -> Result<Vec<f32>> {
        let packed = pack_latents(latents, w, h, channels)?;
        match mask {
            None => Ok(packed),
            Some(mask) => joined(&packed, &pack_mask(mask, w, h)?, 4 * channels),
        }
    }

    fn joined(&self, packed: &[f32], beside: &[f32]) -> Result<Vec<f32>> {
        joined(packed, beside, self.part.net.config().out_channels())
    }

    fn pack_followed(&self, latents: &[f32], mask: Option<&[f32]>, dims: [usize; 5]) -> Result<Vec<f32>> {
        let [w, h, _, channels, _] = dims;
        let packed = pack_latents(latents, w, h, channels)?;
        let Some(mask) = mask else { return Ok(packed) };
        // It says what is left of the picture.
        let left = reserve::collect("the mask", mask.len(), mask.iter().map(|masked| 1.0 - masked))?;
        joined(&packed, &pack_latents(&left, w, h, 1)?, 4 * channels)
    }

    fn pack(&self, latents: &[f32], [w, h, _, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        pack_latents(latents, w, h, channels)
    }

    fn unpack(&self, packed: &[f32], [w, h, _, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        unpack_latents(packed, w, h, channels)
    }
}
