//! Wan 2.1 and 2.2: diffusers' `WanPipeline`, `WanImageToVideoPipeline` and `WanVACEPipeline`. One network draws all steps, or two experts share them: the
//! first begins with noise, and the second goes on below a share of it.

use super::encoders::T5Encoder;
use super::fit::{self, Side};
use super::guide;
use super::opened::{
    Additions, Denoiser, Encoders, Family, Given, ImagePrompts, Opened, Parts, Reader, StepPorts, subject, texts,
};
use super::prompts::{ArraySpec, Prompt};
use super::request::{Experts, OpenedWith, Settings};
use super::rules::{Defaults, FirstFrame, Followed, Frames, GuidanceScale, Rules, Starts, Use};
use super::run::Run;
use super::safety;
use super::step_cache::CacheKind;
use super::vae::Vae;
use super::wan_caches::{cached, caches};
use super::wan_pictures::{self, WanPictures};
use crate::bind::{alias, lora};
use crate::exec::Session;
use crate::models::layers::sinusoid;
use crate::models::step_cache::{CachePorts, Cached};
use crate::models::wan::{Config, Sizes, Wan, joined, pack_latents, unpack_prediction};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::{AYS, FlowMatchConfig, Sampler, Scheduler};
use crate::source::networks;
use crate::source::slot::{IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE};
use crate::source::{Component, Network, Networks, Part, Place, Source};
use crate::text::{Encoded, MAX_SEQUENCE_LENGTH, cleaned};
use crate::{Error, Result, reserve};

/// Wan 2.1 and 2.2.
pub(super) static WAN: Family = Family {
    name: "wan",
    classes: &["WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline"],
    places: &[
        Place::needed(&TRANSFORMER, &alias::WAN, |component| Ok(Box::new(networks::wan(component)?))),
        Place {
            needed: false,
            ..Place::needed(&TRANSFORMER_2, &alias::WAN, |component| Ok(Box::new(networks::wan(component)?)))
        },
        Place::needed(&TEXT_ENCODER, &alias::UMT5, |component| Ok(Box::new(networks::umt5(component)?.0))),
        Place {
            needed: false,
            ..Place::needed(&IMAGE_ENCODER, &alias::CLIP_VISION, |component| {
                Ok(Box::new(wan_pictures::tower(component)?))
            })
        },
        Place::needed(&VAE, &alias::AUTOENCODER_WAN, |component| {
            Ok(Box::new(networks::autoencoder_causal_of_films(component)?))
        }),
        safety::PLACE,
    ],
    beside: &[],
    marks: &[],
    tokens: MAX_SEQUENCE_LENGTH,
    denoiser: |source| {
        let transformer = networks::wan(source.component(&TRANSFORMER)?)?;
        let config = transformer.net.config();
        let expands = is_5b(config);
        let side = if expands { 2 * SIDE } else { SIDE };
        let seen = config.pos_embed_seq_len.unwrap_or(SEEN);
        Ok(Box::new(WanDenoiser::new(vec![transformer], expands, side, seen)))
    },
    open,
};

/// Pixels of a token of the video, in both directions: 8 pixels a latent, 2 latents a token.
const SIDE: usize = 16;

/// Frames of a latent frame, from the second on.
const FRAMES: usize = 4;

/// What the published tower sees of a picture: tokens of 16 by 16 patches, and its own.
const SEEN: usize = 257;

/// The name of the subject that reads.
const UMT5: &str = "umt5";

/// The names of the second expert's subject, and of the first one's.
const EXPERTS: [&str; 2] = ["transformer", "transformer_2"];

/// What videos are not to be like, as the publisher has it.
const NEGATIVE: &str = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，\
                        多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，\
                        背景人很多，倒着走";

/// Whether a transformer is that of TI2V 5B, in which a given frame is at a time of its own.
fn is_5b(config: &Config) -> bool {
    config.in_channels == 48 && config.channels_beside() == 0
}

/// A model as its files have it.
struct Kind {
    /// Whether tokens have times of their own.
    expands: bool,
    /// Whether there are two experts.
    experts: bool,
    /// How pictures come in.
    first: Option<FirstFrame>,
    /// How a film is followed.
    followed: Option<Followed>,
}

impl Kind {
    fn of(source: &Source, config: &Config, experts: bool) -> Kind {
        let says = source.pipeline_setting("expand_timesteps").and_then(|says| says.as_bool());
        let expands = says.unwrap_or_else(|| is_5b(config));
        let (beside, follows) = (config.channels_beside() > 0, config.follows_film());
        let first = FirstFrame {
            needed: beside && !follows,
            beside,
            // What looks at pictures has positions for two, or for none.
            last: config.is_told_given() && (config.image_dim.is_none() || config.pos_embed_seq_len.is_some()),
            last_needed: config.pos_embed_seq_len.is_some(),
        };
        let followed = Followed { told_given: config.is_told_given(), refers: config.add_ref_conv };
        let (first, followed) = ((beside || expands).then_some(first), follows.then_some(followed));
        Kind { expands, experts, first, followed }
    }

    /// Steps, and guidance of both experts: those of the publisher.
    fn sampling(&self) -> (usize, [f32; 2]) {
        match (self.experts, self.first.is_some()) {
            _ if self.followed.is_some() => (50, [6.0, 6.0]),
            (true, false) => (40, [4.0, 3.0]),
            (true, true) => (40, [3.5, 3.5]),
            (false, _) => (50, [5.0, 5.0]),
        }
    }

    /// Below which share of all noise the second expert takes over, unless the model says.
    fn boundary(&self, source: &Source) -> f32 {
        let own = source.pipeline_setting("boundary_ratio").and_then(|says| says.as_f64());
        own.map_or(if self.first.is_some() { 0.9 } else { 0.875 }, |own| own as f32)
    }

    /// As published.
    fn schedule(&self, config: &Config) -> FlowMatchConfig {
        let shift = match () {
            () if config.pos_embed_seq_len.is_some() => 16.0,
            () if self.expands || (self.experts && self.followed.is_some()) => 5.0,
            () => 3.0,
        };
        FlowMatchConfig { flow_shift: Some(shift), ..FlowMatchConfig::of_solver(Sampler::UniPc) }
    }

    fn rules(&self, source: &Source, config: &Config, side: usize) -> Rules {
        let (steps, [cfg_scale, of_second]) = self.sampling();
        let (width, height, default, fps) = if self.expands { (1280, 704, 121, 24.0) } else { (832, 480, 81, 16.0) };
        let (most, guide) = (config.rope_max_seq_len, config.guide_channels() > 0);
        // The reference cuts what stands before the text by this number.
        let least_tokens = if config.image_dim.is_some() { MAX_SEQUENCE_LENGTH } else { 1 };
        Rules {
            multiple: side,
            most_pixels: most.saturating_mul(side),
            tokens: least_tokens..=MAX_SEQUENCE_LENGTH,
            guidance: None,
            guided_above: 1.0,
            is_told_sizes: false,
            is_told_scores: false,
            ays: AYS,
            zeros_without_negative: false,
            inputs: if self.first.is_none() && !guide { &[Use::Film] } else { &[] },
            starts: Starts::Mean,
            beside: None,
            references: None,
            controls: Vec::new(),
            caches: caches(source, config, !self.experts, self.expands),
            frames: Some(Frames { default, most: FRAMES * (most - 1) + 1, step: FRAMES, fps }),
            experts: self.experts.then(|| Experts {
                boundary: self.boundary(source),
                cfg_scale: of_second,
                evaluations: 0,
            }),
            first: self.first,
            guide,
            followed: self.followed,
            told: OpenedWith::default(),
            defaults: Defaults {
                width,
                height,
                steps,
                cfg_scale,
                negative_prompt: NEGATIVE.into(),
                tokens: MAX_SEQUENCE_LENGTH,
                strength: 0.8,
                strength_with_mask: 0.8,
            },
        }
    }
}

fn open(source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_image_prompts_except_encoders()?;
    additions.refuse_controls()?;
    additions.refuse_what_goes_with_clip()?;
    source.require_configurations()?;
    let mut experts = experts(&source)?;
    let config = experts[0].net.config().clone();
    let kind = Kind::of(&source, &config, experts.len() > 1);
    let mut encoder = T5Encoder::open_umt5(&source, &TEXT_ENCODER)?;
    let pictures = WanPictures::open(&source, additions, &experts[0])?;
    let vae = Vae::open_causal_of_films(&source)?;
    let scheduler = super::flux::scheduler(&source, kind.schedule(&config))?;
    let scheduler = match scheduler {
        // The pipeline leaves the spacing to the scheduler.
        Scheduler::Flow(flow) => Scheduler::Flow(FlowMatchConfig { spaced_by_training: true, ..flow }),
        other => other,
    };
    let side = 2 * vae.factor();
    let rules = kind.rules(&source, &config, side).read(&source, GuidanceScale::Free)?;
    check(&source, &experts, &encoder, &vae)?;
    let loras = apply(additions, &mut experts, &mut encoder)?;
    let seen = pictures.as_ref().map_or(0, WanPictures::tokens);
    // Tiny autoencoders that are published for these latents work on several frames at once.
    let denoiser = Box::new(WanDenoiser::new(experts, kind.expands, side, seen));
    let parts: Parts = (Box::new(WanEncoder(encoder)), denoiser, vae.boxed());
    let image_prompts = pictures.map(|pictures| Box::new(pictures) as Box<dyn ImagePrompts>);
    Ok(Opened { image_prompts, ..Opened::new(&WAN, source, parts, (scheduler, rules, loras)) })
}

/// Which of two experts a name says that something is: the first, which begins with noise, or the second.
fn said(component: &Component) -> Option<usize> {
    let name = component.origin.file_name()?.to_string_lossy().to_lowercase();
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    ["highnoise", "lownoise"].iter().position(|part| plain.contains(part))
}

/// The network, or both experts. There is nothing in a file that says which of two it is, except its name.
///
/// # Errors
/// [`Error::NotAModel`] for one expert without the other; [`Error::Option`] for one that is given twice, or in the place of the other.
fn experts(source: &Source) -> Result<Vec<Part<Wan>>> {
    let first = source.component(&TRANSFORMER)?;
    let mut experts = vec![networks::wan(first)?];
    if !source.has(&TRANSFORMER_2) {
        let config = experts[0].net.config();
        // No other model has a picture beside the latents, and looks at none.
        let is_half = said(first).is_some() || (config.channels_beside() > 0 && config.image_dim.is_none());
        if is_half && source.pipeline_setting("boundary_ratio").is_none() {
            let which = match said(first) {
                Some(1) => "the second of two experts, for low noise, and not the first",
                Some(_) => "the first of two experts, for high noise, and not the second",
                None => "one of two experts, and not the other",
            };
            let hint = "give the expert for high noise with --transformer, the one for low noise with --transformer-2";
            return Err(Error::NotAModel {
                path: first.origin.clone(),
                found: format!("it is {which}"),
                hint: Some(hint.into()),
            });
        }
        return Ok(experts);
    }
    let second = source.component(&TRANSFORMER_2)?;
    if first.origin == second.origin && first.prefix == second.prefix {
        let found = format!("{} for both", first.origin.display());
        let error = Error::option("--transformer-2", "another expert than --transformer", found);
        return Err(error.with_hint("the second one is for low noise"));
    }
    for (component, place, option) in [(first, 0, "--transformer"), (second, 1, "--transformer-2")] {
        if said(component).is_some_and(|said| said != place) {
            let noise = ["high", "low"][place];
            let found = format!("{}, by its name the other", component.origin.display());
            let error = Error::option(option, format!("the expert for {noise} noise"), found);
            return Err(
                error.with_hint("give the expert for high noise with --transformer, the other with --transformer-2")
            );
        }
    }
    experts.push(networks::wan(second)?);
    Ok(experts)
}

/// Adds the LoRAs to both experts, and those of one to that one.
fn apply(additions: &Additions, experts: &mut [Part<Wan>], encoder: &mut T5Encoder) -> Result<Vec<lora::Report>> {
    let Additions { loras_high, loras_low, .. } = additions;
    if experts.len() == 1 {
        return additions.apply(&mut [experts[0].target(), encoder.part.target()]);
    }
    let both = Additions { loras_high: Vec::new(), loras_low: Vec::new(), ..additions.clone() };
    let mut targets: Vec<lora::Target<'_>> = experts.iter_mut().map(Part::target).collect();
    targets.push(encoder.part.target());
    let mut reports = both.apply(&mut targets)?;
    for (expert, loras) in experts.iter_mut().zip([loras_high, loras_low]) {
        let own = Additions { loras: loras.clone(), ..Additions::default() };
        reports.extend(own.apply(&mut [expert.target()])?);
    }
    Ok(reports)
}

/// Whether the parts fit together.
fn check(source: &Source, experts: &[Part<Wan>], encoder: &T5Encoder, vae: &Vae) -> Result<()> {
    let (first, config) = (&experts[0], experts[0].net.config());
    let side = |what, number| Side::of(first, what, number);
    let text = side("text_dim of the transformer", config.text_dim);
    fit::equal(source, text, Side::of(&encoder.part, "the width of the text encoder", encoder.config.d_model))?;
    let channels = side("out_channels of the transformer", config.latent_channels());
    fit::equal(source, channels, vae.side("the latent channels of the autoencoder", vae.channels()))?;
    let beside = config.channels_beside();
    if config.guide_channels() > 0 {
        let wanted = guide::channels(vae.channels(), vae.factor());
        fit::exactly(first, "vace_in_channels", config.guide_channels(), wanted)?;
    }
    if beside > 0 && !config.follows_film() {
        fit::exactly(first, "channels beside the latents", beside, FRAMES + config.latent_channels())?;
    }
    for second in &experts[1..] {
        let own = second.net.config();
        for (what, one, other) in [
            ("in_channels of both experts", config.in_channels, own.in_channels),
            ("num_layers of both experts", config.num_layers, own.num_layers),
            ("the width of both experts", config.hidden(), own.hidden()),
            ("attention_head_dim of both experts", config.attention_head_dim, own.attention_head_dim),
            ("ffn_dim of both experts", config.ffn_dim, own.ffn_dim),
            ("text_dim of both experts", config.text_dim, own.text_dim),
            ("freq_dim of both experts", config.freq_dim, own.freq_dim),
            ("out_channels of both experts", config.latent_channels(), own.latent_channels()),
            ("add_ref_conv of both experts", config.add_ref_conv.into(), own.add_ref_conv.into()),
            ("vace_in_channels of both experts", config.guide_channels(), own.guide_channels()),
            ("image_dim of both experts", config.image_dim.unwrap_or(0), own.image_dim.unwrap_or(0)),
        ] {
            fit::equal(source, side(what, one), Side::of(second, what, other))?;
        }
    }
    encoder.check(source)
}

/// The text encoder.
struct WanEncoder(T5Encoder);

impl Networks for WanEncoder {
    fn networks(&self) -> Vec<Network<'_>> {
        self.0.part.networks()
    }
}

impl Encoders for WanEncoder {
    fn readers(&self) -> Vec<Reader> {
        vec![Reader { name: UMT5, ..self.0.reader() }]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        Ok(vec![self.0.tokenize(&cleaned(text), settings.max_sequence_length)?])
    }

    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            tokens.push(self.tokenize(text, settings)?.iter().map(|encoded| encoded.used).sum());
        }
        Ok(tokens)
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        vec![self.0.subject(UMT5, settings.most_text_tokens(), texts(settings))]
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        vec![ArraySpec { name: "hidden", dims: vec![self.0.config.d_model, tokens] }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        let subjects = self.subjects(settings);
        let [subject] = &subjects[..] else { return Err(Error::graph("encode", "one encoder")) };
        let texts = texts.iter().map(|tokens| &tokens[0]);
        let hidden = self.0.hidden(run, subject, settings.most_text_tokens(), texts)?;
        Ok(hidden.into_iter().map(|hidden| Prompt(vec![hidden])).collect())
    }
}

/// A time as the network is given it: of a thousand. Where the scheduler rounds to whole numbers, so that they stay whole.
pub(super) fn thousandths(time: f32) -> f32 {
    const NEAR: f32 = 2e-4;
    let time = 1000.0 * time;
    if (time - time.round()).abs() < NEAR { time.round() } else { time }
}

/// The transformer, or both.
struct WanDenoiser {
    experts: Vec<Part<Wan>>,
    expands: bool,
    /// Pixels of a token, in both directions.
    side: usize,
    /// Tokens of what is seen of the pictures of a request.
    seen: usize,
    /// The first one with each of the step caches; the second one is the same network.
    cached: Vec<(CacheKind, Cached)>,
}

impl Networks for WanDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.experts.iter().flat_map(Networks::networks).collect()
    }
}

impl WanDenoiser {
    fn new(experts: Vec<Part<Wan>>, expands: bool, side: usize, seen: usize) -> WanDenoiser {
        let cached = cached(&experts[0].net);
        WanDenoiser { experts, expands, side, seen, cached }
    }

    /// The one with the cache of a request, if anything of that is on the device.
    fn cached(&self, settings: &Settings) -> Option<&Cached> {
        let kind = settings.cache?.kind;
        self.cached.iter().find(|(known, _)| *known == kind).map(|(_, cached)| cached)
    }

    fn config(&self) -> &Config {
        self.experts[0].net.config()
    }

    fn sizes(&self, settings: &Settings) -> Sizes {
        let frames = settings.front_frames + settings.frames.saturating_sub(1) / FRAMES + 1;
        Sizes {
            batch: settings.batch * settings.passes(),
            passes: settings.passes(),
            grid: [frames, settings.height / self.side, settings.width / self.side],
            text_tokens: settings.max_sequence_length,
            seen_tokens: self.seen,
            refers: self.config().add_ref_conv,
            gives_first: self.expands && settings.given_frames[0],
        }
    }
}

impl Denoiser for WanDenoiser {
    fn subjects(&self, settings: &Settings, _: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let first = settings.experts.map_or(evaluations, |experts| experts.evaluations.min(evaluations));
        let (sizes, mut subjects) = (self.sizes(settings), Vec::new());
        for ((expert, name), steps) in self.experts.iter().zip(EXPERTS).zip([first, evaluations - first]) {
            if steps > 0 {
                let runs = Runs::of_steps(steps);
                let plain = subject(expert, name, Phase::Denoise, sizes.dims(steps), runs);
                let model = self.cached(settings).map_or(plain.model, |cached| &cached.model);
                subjects.push(Subject { model, ..plain });
            }
        }
        subjects
    }

    fn ports(&self, _: usize) -> StepPorts {
        // Both experts have the same.
        let ports = &self.experts[0].net.ports;
        StepPorts { latents: ports.latents, prediction: ports.prediction, condition: ports.condition }
    }

    fn conditions_are_times(&self) -> bool {
        true
    }

    fn cache(&self, _: usize, settings: &Settings) -> Option<CachePorts> {
        self.cached(settings).map(|cached| cached.ports)
    }

    fn probed(&self, settings: &Settings) -> usize {
        let times = settings.cache.is_some_and(|cache| cache.kind == CacheKind::TeaCache);
        let tokens = if times { 1 } else { self.sizes(settings).tokens() };
        tokens.saturating_mul(self.config().hidden())
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, sizes) = (&self.experts[0].net, self.sizes(given.settings));
        let (ports, width) = (&net.ports, net.config().freq_dim);
        let mut times = Vec::new();
        for &time in &given.levels.times[given.evaluations.clone()] {
            times.extend(sinusoid(thousandths(time), width));
        }
        if sizes.gives_first {
            times.extend(sinusoid(0.0, width));
        }
        session.set(ports.time, &times)?;
        session.set(ports.text, &given.filled_prompt(self.config().text_dim, sizes.text_tokens)?)?;
        if let Some(seen) = ports.seen {
            session.set(seen, &given.ip()?)?;
        }
        if let Some(port) = ports.reference {
            let latents = given.controls.first().ok_or_else(|| Error::graph("fill", "no picture to refer to"))?;
            let items = given.passes * given.pictures;
            session.set(port, &reserve::repeat("the latents of a picture", latents, items)?)?;
        }
        if let (Some(scale), Some(own)) = (ports.guide_scale, given.settings.guide_scale) {
            session.set(scale, &[own])?;
        }
        let (cos, sin) = net.rotary(sizes.whole_grid())?;
        session.set(ports.cos, &cos)?;
        session.set(ports.sin, &sin)
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        let (config, sizes) = (self.config(), self.sizes(settings));
        // The rotary tables, cosine and sine, and the positions that they are made from.
        let tokens = sizes.tokens().saturating_add(sizes.reference_tokens());
        let tables = tokens.saturating_mul(2 * config.attention_head_dim + 3);
        let latents = sizes.reference_tokens().saturating_mul(4 * config.latent_channels());
        let reference = (1 + sizes.batch).saturating_mul(latents);
        let prompts = sizes.batch.saturating_mul(sizes.text_tokens).saturating_mul(config.text_dim);
        let seen = sizes.batch.saturating_mul(sizes.seen_tokens).saturating_mul(config.image_dim.unwrap_or(0));
        let numbers = [tables, prompts, seen, reference].into_iter().fold(0, usize::saturating_add);
        numbers.saturating_mul(size_of::<f32>())
    }

    fn beside(&self, [w, h, frames, ..]: [usize; 5]) -> usize {
        (self.config().channels_beside() + self.config().guide_channels()) * w * h * frames
    }

    /// The mask says of every frame whether it is given: each latent frame has that of four frames in channels of their own, and
    /// the first that of one.
    fn pack_beside(
        &self,
        latents: &[f32],
        mask: Option<&[f32]>,
        [w, h, frames, channels, _]: [usize; 5],
    ) -> Result<Vec<f32>> {
        let Some(mask) = mask else {
            // A film with its masks among its channels, or latents alone.
            return pack_latents(latents, [w, h, frames, latents.len() / (w * h * frames)]);
        };
        let mut all = reserve::room("the latents", latents.len() + FRAMES * w * h * frames)?;
        for channel in 0..FRAMES {
            for frame in 0..frames {
                let at = (FRAMES * frame + channel + 1).saturating_sub(FRAMES);
                all.resize(all.len() + w * h, mask.get(at).copied().unwrap_or(0.0));
            }
        }
        all.extend_from_slice(latents);
        pack_latents(&all, [w, h, frames, FRAMES + channels])
    }

    fn joined(&self, packed: &[f32], beside: &[f32]) -> Result<Vec<f32>> {
        joined(packed, beside, 4 * self.config().latent_channels())
    }

    fn pack(&self, latents: &[f32], [w, h, frames, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        pack_latents(latents, [w, h, frames, channels])
    }

    fn unpack(&self, packed: &[f32], [w, h, frames, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        unpack_prediction(packed, [w, h, frames, channels])
    }
}
