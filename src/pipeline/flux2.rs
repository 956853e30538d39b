//! FLUX.2, klein and dev: diffusers' `Flux2KleinPipeline` and `Flux2Pipeline`. A language model reads the prompt inside a template, and
//! what fills it up.

use std::path::Path;

use super::fit::{self, Side};
use super::language_model::{self, LanguageEncoder};
use super::opened::{Additions, Denoiser, Encoders, Family, Given, Opened, Parts, Reader, StepPorts, subject, texts};
use super::prompts::{ArraySpec, Prompt};
use super::request::Settings;
use super::rules::{Cropped, Defaults, GuidanceScale, References, Rules, Starts, Use};
use super::run::Run;
use super::safety;
use super::step_cache::{CacheKind, Caches};
use super::vae::Vae;
use crate::bind::alias;
use crate::exec::Session;
use crate::models::flux::flux2::{Flux2, pack_latents, unpack_latents};
use crate::models::language_model::Taps;
use crate::models::step_cache::{CachePorts, Cached, DecidedBy};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::{FlowMatchConfig, Scheduler};
use crate::source::networks;
use crate::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};
use crate::source::{Layout, Network, Networks, Part, Place, Source, Text, model_name};
use crate::stage::{Dims, Symbol};
use crate::text::Encoded;
use crate::{Error, Result, reserve};

/// FLUX.2 klein, distilled and base, and FLUX.2 dev.
pub(super) static FLUX2: Family = Family {
    name: "flux2",
    classes: &["Flux2KleinPipeline", "Flux2KleinInpaintPipeline", "Flux2Pipeline"],
    places: &[
        Place::needed(&TRANSFORMER, &alias::FLUX2, |component| Ok(Box::new(networks::flux2(component)?))),
        Place::needed(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, |component| {
            Ok(Box::new(networks::language_model(component, taps)?.0))
        }),
        Place::needed(&VAE, &alias::AUTOENCODER_KL, |component| Ok(Box::new(networks::autoencoder_kl(component)?))),
        safety::PLACE,
    ],
    beside: &[],
    marks: &[],
    tokens: MOST_TOKENS,
    denoiser: |source| Ok(Box::new(Flux2Denoiser::new(networks::flux2(source.component(&TRANSFORMER)?)?))),
    open,
};

/// Pixels of an image token, in both directions: 8 pixels a latent, 2 latents a token.
const SIDE: usize = 16;

/// The most tokens of a prompt, with its template and what fills it up.
const MOST_TOKENS: usize = 512;

/// The names of its subject, and of what reads.
const LANGUAGE_MODEL: &str = "language model";

/// What times and guidance are multiplied by before they are embedded.
const TIME_SCALE: f32 = 1000.0;

/// What it looks at: pictures of any shape, up to a megapixel each.
const REFERENCES: References = References {
    most: 10,
    sizes: &[],
    cropped: Some(Cropped { area: 1024 * 1024, least_side: 64, most_quotient: 8, alone: None }),
    area: None,
    needed: false,
};

/// How a model reads a prompt.
struct Reading {
    /// What stands before and behind a prompt.
    before: &'static str,
    after: &'static str,
    /// Marks that the vocabulary must have.
    marks: &'static [&'static str],
    /// What fills it up.
    pad: &'static str,
    /// What is not to be in it: marks of pictures.
    removed: Option<&'static str>,
    /// The family of language models, as a `config.json` calls it.
    family: &'static str,
    taps: fn(usize) -> Taps,
}

/// klein's: a user's turn and the beginning of the answer, as the template of Qwen3 has it if thinking is turned off.
static KLEIN: Reading = Reading {
    before: "<|im_start|>user\n",
    after: "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    marks: &["<|im_start|>", "<|im_end|>"],
    pad: "<|endoftext|>",
    removed: None,
    family: "qwen3",
    taps: |_| Taps { after: vec![9, 18, 27], normalised: false },
};

/// dev's: a system's turn and a user's, as the template of Mistral Small has them.
static DEV: Reading = Reading {
    before: "<s>[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses focusing on object \
             relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT][INST]",
    after: "[/INST]",
    marks: &["<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"],
    pad: "<pad>",
    removed: Some("[IMG]"),
    family: "mistral",
    taps: |_| Taps { after: vec![10, 20, 30], normalised: false },
};

/// How many layers dev's language model has as published, and klein's have not.
const LAYERS_OF_DEV: usize = 40;

/// The hidden states that are read of a language model by itself, of so many layers.
fn taps(layers: usize) -> Taps {
    let reading = if layers >= LAYERS_OF_DEV { &DEV } else { &KLEIN };
    (reading.taps)(layers)
}

/// The widths that prompts have in the published models, and the language models that give them.
const ENCODERS: [(usize, &str); 3] = [(7680, "Qwen3-4B"), (12288, "Qwen3-8B"), (15360, "Mistral-Small-3.2-24B")];

/// The versions, which differ in what they were published with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// klein in few steps, without guidance.
    Distilled,
    /// klein in many steps, with classifier-free guidance.
    Base,
    /// Guidance is an input.
    Dev,
}

impl Version {
    /// That of `transformer`. What its layers do not tell, the settings of diffusers' pipeline say, whose own default is not distilled.
    /// Of other files, the name does.
    fn of(source: &Source, transformer: &Part<Flux2>) -> Result<Version> {
        if transformer.net.config().guidance_embeds {
            return Ok(Version::Dev);
        }
        let origin = &source.component(&TRANSFORMER)?.origin;
        let is_base = |path: &Path| {
            let name = model_name(path).to_lowercase();
            name.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == "base")
        };
        // What is given in another's place may be the other.
        let was_given = source.given_at(&TRANSFORMER) > 0;
        let is_distilled = match source.pipeline_setting("is_distilled") {
            _ if was_given && is_base(origin) => false,
            Some(told) => told.as_bool().unwrap_or(false),
            None if source.layout == Layout::Diffusers => false,
            None => !is_base(&source.path) && !is_base(origin),
        };
        Ok(if is_distilled { Version::Distilled } else { Version::Base })
    }

    fn reading(self) -> &'static Reading {
        if self == Version::Dev { &DEV } else { &KLEIN }
    }

    /// Steps and classifier-free guidance: those of the model cards.
    fn defaults(self) -> (usize, f32) {
        match self {
            Version::Distilled => (4, 1.0),
            Version::Base => (50, 4.0),
            Version::Dev => (50, 1.0),
        }
    }

    /// What `guidance_scale` is in its files.
    fn scale(self) -> GuidanceScale {
        if self == Version::Dev { GuidanceScale::Input } else { GuidanceScale::Free }
    }
}

fn rules(version: Version) -> Rules {
    let (steps, cfg_scale) = version.defaults();
    Rules {
        multiple: SIDE,
        most_pixels: 16384,
        tokens: 1..=MOST_TOKENS,
        guidance: (version == Version::Dev).then_some(4.0),
        inputs: &[Use::Start, Use::Mask],
        references: Some(REFERENCES),
        starts: Starts::Mean,
        ..Rules::of_prompts(Defaults {
            width: 1024,
            height: 1024,
            steps,
            cfg_scale,
            negative_prompt: String::new(),
            tokens: MOST_TOKENS,
            strength: 0.6,
            strength_with_mask: 0.8,
        })
    }
}

fn open(mut source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_image_prompts()?;
    additions.refuse_controls()?;
    additions.refuse_what_goes_with_clip()?;
    source.require_configurations()?;
    let mut transformer = networks::flux2(source.component(&TRANSFORMER)?)?;
    let version = Version::of(&source, &transformer)?;
    let is_distilled = serde_json::Value::from(version == Version::Distilled);
    if version != Version::Dev && source.pipeline_setting("is_distilled").as_ref() != Some(&is_distilled) {
        // A bundle has another name.
        let told = serde_json::json!({ "is_distilled": is_distilled });
        source.pipeline = Some(Text { text: told.to_string(), origin: source.path.clone() });
    }
    let mut encoder = LanguageEncoder::open(&source, &TEXT_ENCODER, version.reading().taps)?;
    let vae = Vae::open(&source, None)?;
    let scheduler = super::flux::scheduler(&source, schedule())?;
    let scheduler = match scheduler {
        Scheduler::Flow(config) => Scheduler::Flow(FlowMatchConfig { empirical_shift: true, ..config }),
        other => other,
    };
    let rules = Rules { caches: caches(&transformer.net), ..rules(version) }.read(&source, version.scale())?;
    check(&source, &transformer, &encoder, &vae, version.reading())?;
    let loras = additions.apply(&mut [transformer.target(), encoder.part.target()])?;
    let encoders = Box::new(Flux2Encoder { encoder, reading: version.reading() });
    let parts: Parts = (encoders, Box::new(Flux2Denoiser::new(transformer)), vae.boxed());
    Ok(Opened::new(&FLUX2, source, parts, (scheduler, rules, loras)))
}

/// The step caches that a transformer has the blocks for. No one has published what TeaCache and MagCache have to know of FLUX.2.
fn caches(transformer: &Flux2) -> Caches {
    let config = transformer.config();
    let blocks = config.num_layers + config.num_single_layers;
    Caches { first_block: blocks > 1, taylorseer: true, ..Caches::NONE }
}

/// As published: the shift follows the picture and the steps.
fn schedule() -> FlowMatchConfig {
    FlowMatchConfig { shift: 3.0, use_dynamic_shifting: true, ..FlowMatchConfig::default() }
}

/// Whether the parts fit together.
fn check(
    source: &Source,
    transformer: &Part<Flux2>,
    encoder: &LanguageEncoder,
    vae: &Vae,
    reading: &Reading,
) -> Result<()> {
    let config = transformer.net.config();
    let side = |what, number| Side::of(transformer, what, number);
    let width = config.joint_attention_dim;
    let needed = ENCODERS.iter().find(|(known, _)| *known == width).map(|(_, name)| *name);
    let hint = needed.map(|name| format!("this transformer was trained with {name}: give that with --text-encoder"));
    let hinted = |error: Error| match &hint {
        Some(hint) => error.with_hint(hint.clone()),
        None => error,
    };
    let found = &encoder.config.model_type;
    if !encoder.config.is_like(reading.family) {
        return Err(hinted(Error::mismatch(encoder.part.bound.origin(), "model_type", reading.family, found.clone())));
    }
    let text = side("joint_attention_dim of the transformer", width);
    let tapped = Side::of(&encoder.part, "the width of the three layers of the language model", encoder.width());
    fit::equal(source, text, tapped).map_err(hinted)?;
    let channels = side("in_channels of the transformer", config.in_channels);
    fit::equal(source, channels, vae.side("channels of a patch of the autoencoder's latents", vae.channels()))?;
    vae.exactly("pixels to a patch of latents", vae.factor(), SIDE)?;
    encoder.check(source, reading.marks)
}

/// A language model, for the tokens of the prompt and what fills them up.
struct Flux2Encoder {
    encoder: LanguageEncoder,
    reading: &'static Reading,
}

impl Networks for Flux2Encoder {
    fn networks(&self) -> Vec<Network<'_>> {
        self.encoder.part.networks()
    }
}

impl Encoders for Flux2Encoder {
    fn readers(&self) -> Vec<Reader> {
        vec![self.encoder.reader(LANGUAGE_MODEL, MOST_TOKENS)]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        let Reading { before, after, pad, removed, .. } = *self.reading;
        let text = removed.map_or_else(|| text.to_owned(), |mark| text.replace(mark, ""));
        let filled = (settings.max_sequence_length, pad);
        Ok(vec![self.encoder.tokenize_filled_within([before, after], &text, filled)?])
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        vec![self.encoder.subject(LANGUAGE_MODEL, settings.max_sequence_length, texts(settings))]
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        vec![ArraySpec { name: "hidden", dims: vec![self.encoder.width(), tokens] }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        let subjects = self.subjects(settings);
        let [subject] = &subjects[..] else { return Err(Error::graph("encode", "one encoder")) };
        self.encoder.prompts(run, subject, texts, language_model::Reading::whole(settings.max_sequence_length))
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

/// The transformer, and the same with a first-block cache, if it has the blocks for it.
struct Flux2Denoiser {
    part: Part<Flux2>,
    cached: Option<Cached>,
}

impl Flux2Denoiser {
    fn new(part: Part<Flux2>) -> Flux2Denoiser {
        let cached = part.net.cached(DecidedBy::FirstBlock);
        Flux2Denoiser { part, cached }
    }

    /// The one with the cache of a request, if anything of that is on the device.
    fn cached(&self, settings: &Settings) -> Option<&Cached> {
        self.cached.as_ref().filter(|_| settings.cache.is_some_and(|cache| cache.kind == CacheKind::FirstBlock))
    }
}

impl Networks for Flux2Denoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.part.networks()
    }
}

impl Denoiser for Flux2Denoiser {
    fn subjects(&self, settings: &Settings, _: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let (image, text, passes) = (image_tokens(settings), settings.prompt_tokens(), settings.passes());
        let dims = Dims::new()
            .with(Symbol::PASSES, passes)
            .with(Symbol::BATCH, settings.batch * passes)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(Symbol::TEXT_TOKENS, text)
            .with(Symbol::JOINT_TOKENS, text.saturating_add(image))
            .with(Symbol::CONDITIONS, evaluations * passes);
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
        session.set(ports.time, &given.times(|time| net.sinusoid(time * TIME_SCALE))?)?;
        if let (Some(port), Some(guidance)) = (ports.guidance, settings.guidance) {
            let conditions = given.evaluations.len() * given.prompts.len();
            session.set(port, &reserve::repeat("the guidance", &net.sinusoid(guidance * TIME_SCALE), conditions)?)?;
        }
        session.set(ports.text, &given.prompt(0)?)?;
        let (cos, sin) = net.rotary(settings.prompt_tokens(), &grids(settings))?;
        session.set(ports.cos, &cos)?;
        session.set(ports.sin, &sin)
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        // The rotary tables, cosine and sine, and the positions that they are made from.
        let axes = &self.part.net.config().axes_dims_rope;
        let each = 2 * size_of::<f32>() * axes.iter().sum::<usize>() + size_of::<u32>() * axes.len();
        settings.prompt_tokens().saturating_add(image_tokens(settings)).saturating_mul(each)
    }

    fn pack(&self, latents: &[f32], [w, h, ..]: [usize; 5]) -> Result<Vec<f32>> {
        pack_latents(latents, w * h)
    }

    fn unpack(&self, packed: &[f32], [w, h, ..]: [usize; 5]) -> Result<Vec<f32>> {
        unpack_latents(packed, w * h)
    }
}
