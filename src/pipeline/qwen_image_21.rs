//! Qwen-Image 2.1: diffusers' `QwenImage21Pipeline`, without pictures to look at. A language model reads the prompt inside a template, and the
//! system's turn of that is not given to the denoiser.

use super::fit::{self, Side};
use super::language_model::LanguageEncoder;
use super::opened::{Additions, Denoiser, Encoders, Family, Given, Opened, Reader, StepPorts, subject, texts};
use super::prompts::{ArraySpec, Prompt};
use super::request::{OpenedWith, Settings};
use super::rules::{Defaults, GuidanceScale, Rules, Starts};
use super::run::Run;
use super::safety;
use super::step_cache::Caches;
use super::vae::Vae;
use crate::bind::alias;
use crate::exec::Session;
use crate::models::language_model::{QWEN3_VL, Taps, causal_mask};
use crate::models::qwen_image::single::{SingleStream, Sizes, pack_latents, sinusoid, unpack_latents};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::{AYS, FlowMatchConfig, Scheduler};
use crate::source::networks;
use crate::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};
use crate::source::{Network, Networks, Part, Place, Source, Text, model_name};
use crate::text::Encoded;
use crate::{Error, Result, reserve};

/// Qwen-Image 2.1 and its Turbo.
pub(super) static QWEN_IMAGE_21: Family = Family {
    name: "qwen_image_21",
    classes: &["QwenImage21Pipeline"],
    places: &[
        Place::needed(&TRANSFORMER, &alias::QWEN_IMAGE_21, |component| {
            Ok(Box::new(networks::qwen_image_21(component)?))
        }),
        Place::needed(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, |component| {
            Ok(Box::new(networks::language_model_beside(component, taps, Some(QWEN3_VL))?.0))
        }),
        Place::needed(&VAE, &alias::AUTOENCODER_WAN, |component| {
            Ok(Box::new(networks::autoencoder_causal(component)?))
        }),
        safety::PLACE,
    ],
    beside: &[],
    marks: &[],
    tokens: MOST_TOKENS,
    denoiser: |source| Ok(Box::new(SingleDenoiser(networks::qwen_image_21(source.component(&TRANSFORMER)?)?))),
    open,
};

/// Pixels of an image token, in both directions, and what the sides of a picture are multiples of: two tokens.
const SIDE: usize = 16;
const MULTIPLE: usize = 2 * SIDE;

/// Positions that the reference has tables for, to both sides of a picture's middle.
const POSITIONS: usize = 1024;

/// The most tokens of a prompt for the denoiser, with what stands around it. The reference has no limit.
const MOST_TOKENS: usize = 1024;

/// The name of its subject, and of what reads.
const LANGUAGE_MODEL: &str = "language model";

/// What stands before and behind a prompt: the system's turn, which the denoiser is not given, the beginning of the user's, and that of the
/// answer.
const SYSTEM: &str = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n";
const BEFORE: &str = "<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";
const MARKS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// What is read in the place of an empty prompt.
const EMPTY: &str = " ";

/// The hidden states behind the last layer, which do not go through the norm behind it.
fn taps(layers: usize) -> Taps {
    Taps::after(layers)
}

/// What the model was published with.
fn rules() -> Rules {
    Rules {
        multiple: MULTIPLE,
        most_pixels: 2 * POSITIONS * SIDE,
        tokens: 1..=MOST_TOKENS,
        guidance: None,
        guided_above: 1.0,
        is_told_sizes: false,
        is_told_scores: false,
        ays: AYS,
        zeros_without_negative: false,
        inputs: &[],
        starts: Starts::Drawn,
        beside: None,
        references: None,
        controls: Vec::new(),
        caches: Caches::NONE,
        frames: None,
        experts: None,
        first: None,
        guide: false,
        told: OpenedWith::default(),
        defaults: Defaults {
            width: 1024,
            height: 1024,
            steps: 40,
            cfg_scale: 1.0,
            negative_prompt: EMPTY.into(),
            tokens: MOST_TOKENS,
            strength: 0.6,
            strength_with_mask: 0.6,
        },
    }
}

/// As published: a shift that grows with the picture, and a schedule that is stretched to end at 0.02.
fn schedule() -> FlowMatchConfig {
    FlowMatchConfig {
        use_dynamic_shifting: true,
        base_shift: 0.5,
        max_shift: 0.9,
        max_image_seq_len: 8192,
        shift_terminal: Some(0.02),
        ..FlowMatchConfig::default()
    }
}

/// The noise levels of Turbo, which its `model_index.json` has, and its defaults. Its schedule is not shifted.
const TURBO_SIGMAS: &str =
    r#"{"sample_sigmas": [1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568]}"#;
const TURBO: &str = r#"{"num_inference_steps": 8, "true_cfg_scale": 1.0}"#;

/// Whether `source`, which says nothing of its schedule, or its transformer is called Turbo.
fn is_turbo(source: &Source) -> Result<bool> {
    let transformer = source.component(&TRANSFORMER)?;
    let is_called =
        [&source.path, &transformer.origin].iter().any(|path| model_name(path).to_lowercase().contains("turbo"));
    Ok(is_called && source.scheduler.is_none() && source.pipeline.is_none())
}

fn open(mut source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_image_prompts()?;
    additions.refuse_controls()?;
    additions.refuse_embeddings()?;
    additions.refuse_refiner()?;
    if additions.clip_skip.is_some() {
        return Err(Error::option("--clip-skip", "a model that reads CLIP's hidden states", "one without CLIP"));
    }
    for component in source.components() {
        component.require_configuration()?;
    }
    let mut transformer = networks::qwen_image_21(source.component(&TRANSFORMER)?)?;
    let mut encoder = LanguageEncoder::open_beside(&source, &TEXT_ENCODER, taps, Some(QWEN3_VL))?;
    let vae = Vae::open_causal_with_opacity(&source)?;
    if is_turbo(&source)? {
        let text = |text: &str| Text { text: text.into(), origin: source.path.clone() };
        let (pipeline, defaults) = (text(TURBO_SIGMAS), text(TURBO));
        source.pipeline = Some(pipeline);
        source.defaults = source.defaults.or(Some(defaults));
    }
    let scheduler = match &source.scheduler {
        Some(Text { text, origin }) => super::flux::flow(Scheduler::from_json(text, origin)?, origin)?,
        // Noise levels that a model brings are not shifted.
        None if source.sample_sigmas()?.is_some() => Scheduler::Flow(FlowMatchConfig::default()),
        None => Scheduler::Flow(schedule()),
    };
    source.sample_sigmas()?;
    let rules = rules().read(&source, GuidanceScale::Input)?;
    check(&source, &transformer, &encoder, &vae)?;
    let loras = additions.apply(&mut [transformer.target(), encoder.part.target()])?;
    Ok(Opened {
        family: &QWEN_IMAGE_21,
        encoders: Box::new(SingleEncoder::new(encoder)?),
        denoiser: Box::new(SingleDenoiser(transformer)),
        tiny: None,
        autoencoder: vae.boxed(),
        scheduler,
        rules,
        loras,
        image_prompts: None,
        face: None,
        safety: None,
        upscaler: None,
        refiner: None,
        source,
    })
}

/// Whether the parts fit together.
fn check(source: &Source, transformer: &Part<SingleStream>, encoder: &LanguageEncoder, vae: &Vae) -> Result<()> {
    let config = transformer.net.config();
    let found = &encoder.config.model_type;
    if !encoder.config.is_like(QWEN3_VL) {
        let error = Error::mismatch(encoder.part.bound.origin(), "model_type", QWEN3_VL, found.clone());
        return Err(error.with_hint("this transformer was trained with Qwen3-VL-8B: give that with --text-encoder"));
    }
    let side = |what, number| Side::of(transformer, what, number);
    let text = side("context_in_dim of the transformer", config.context_in_dim);
    fit::equal(source, text, Side::of(&encoder.part, "the width of the language model", encoder.width()))?;
    let channels = side("in_channels of the transformer", config.in_channels);
    fit::equal(source, channels, vae.side("the latent channels of the autoencoder", vae.channels()))?;
    vae.exactly("pixels to a latent", vae.factor(), SIDE)?;
    encoder.check(source, &MARKS)
}

/// A language model, for the tokens of the prompt.
struct SingleEncoder {
    language: LanguageEncoder,
    /// How many of the first tokens the denoiser is not given: those of the system's turn.
    dropped: usize,
}

impl SingleEncoder {
    fn new(language: LanguageEncoder) -> Result<SingleEncoder> {
        let dropped = language.tokenize(SYSTEM, MOST_TOKENS)?.used;
        Ok(SingleEncoder { language, dropped })
    }
}

impl Networks for SingleEncoder {
    fn networks(&self) -> Vec<Network<'_>> {
        self.language.part.networks()
    }
}

impl Encoders for SingleEncoder {
    fn readers(&self) -> Vec<Reader> {
        vec![self.language.reader(LANGUAGE_MODEL, self.dropped + MOST_TOKENS)]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        let text = if text.is_empty() { EMPTY } else { text };
        let most = self.dropped + settings.max_sequence_length;
        let mut encoded = self.language.tokenize(&format!("{SYSTEM}{BEFORE}{text}{AFTER}"), most)?;
        // What is not seen of the template is not worth a word.
        encoded.cut =
            encoded.cut.and_then(|cut| Some(cut.strip_suffix(AFTER)?.to_owned())).filter(|cut| !cut.is_empty());
        Ok(vec![encoded])
    }

    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            let all: usize = self.tokenize(text, settings)?.iter().map(|encoded| encoded.used).sum();
            tokens.push(all.saturating_sub(self.dropped));
        }
        Ok(tokens)
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        vec![self.language.subject(LANGUAGE_MODEL, self.dropped + settings.most_text_tokens(), texts(settings))]
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        vec![ArraySpec { name: "hidden", dims: vec![self.language.width(), tokens] }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        let subjects = self.subjects(settings);
        let [subject] = &subjects[..] else { return Err(Error::graph("encode", "one encoder")) };
        let (tokens, dropped) = (self.dropped + settings.most_text_tokens(), self.dropped * self.language.width());
        let mut prompts = Vec::new();
        for mut hidden in self.language.hidden(run, subject, tokens, texts.iter().map(|tokens| &tokens[0]))? {
            hidden.drain(..hidden.len().min(dropped));
            prompts.push(Prompt(vec![hidden]));
        }
        Ok(prompts)
    }
}

/// The sizes of a request.
fn sizes(settings: &Settings) -> Sizes {
    let image = [settings.height / SIDE, settings.width / SIDE];
    Sizes { batch: settings.batch, image, texts: settings.text_tokens[..settings.passes()].to_vec() }
}

/// The transformer.
struct SingleDenoiser(Part<SingleStream>);

impl Networks for SingleDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.0.networks()
    }
}

impl SingleDenoiser {
    /// The prompt of every item of a part of the batch, filled up with zeros to `room` tokens.
    fn texts(&self, given: &Given<'_>, room: usize) -> Result<Vec<f32>> {
        let each = room * self.0.net.config().context_in_dim;
        let items = given.pictures * given.passes;
        let mut text = reserve::room("the prompts", items.saturating_mul(each))?;
        for Prompt(arrays) in given.prompts.iter().take(given.passes) {
            for _ in 0..given.pictures {
                let behind = text.len() + each;
                text.extend_from_slice(&arrays[0]);
                text.resize(behind, 0.0);
            }
        }
        Ok(text)
    }
}

impl Denoiser for SingleDenoiser {
    fn subjects(&self, settings: &Settings, _: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let (dims, runs) = (sizes(settings).dims(evaluations), Runs::of_steps(evaluations));
        vec![subject(&self.0, TRANSFORMER.name, Phase::Denoise, dims, runs)]
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.0.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.prediction, condition: ports.condition }
    }

    fn conditions_are_times(&self) -> bool {
        true
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, all) = (&self.0.net, sizes(given.settings));
        let room = all.text_tokens();
        let own = all.texts.get(given.pass..given.pass + given.passes).unwrap_or_default().to_vec();
        let sizes = Sizes { batch: given.pictures, texts: own, ..all };
        let mut times = Vec::new();
        for &time in &given.levels.times[given.evaluations.clone()] {
            times.extend(sinusoid(time));
        }
        // The prompt's.
        times.extend(sinusoid(0.0));
        session.set(net.ports.time, &times)?;
        session.set(net.ports.text, &self.texts(given, room)?)?;
        session.set(net.ports.mask, &causal_mask(room)?)?;
        let (cos, sin) = net.rotary(&sizes, room)?;
        session.set(net.ports.cos, &cos)?;
        session.set(net.ports.sin, &sin)
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        let (config, sizes) = (self.0.net.config(), sizes(settings));
        let text = sizes.text_tokens();
        let tokens = sizes.image_tokens().saturating_add(text);
        // The rotary tables, cosine and sine, and the mask.
        let tables = sizes.tables().saturating_mul(tokens).saturating_mul(2 * config.attention_head_dim);
        let mask = text.saturating_mul(text);
        // The prompts, filled up.
        let items = sizes.batch * sizes.texts.len();
        let prompts = items.saturating_mul(text).saturating_mul(config.context_in_dim);
        tables.saturating_add(mask).saturating_add(prompts).saturating_mul(size_of::<f32>())
    }

    fn image_tokens(&self, settings: &Settings) -> Option<usize> {
        Some((settings.width / SIDE) * (settings.height / SIDE))
    }

    fn pack(&self, latents: &[f32], [_, _, _, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        pack_latents(latents, channels)
    }

    fn unpack(&self, packed: &[f32], [_, _, _, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        unpack_latents(packed, channels)
    }
}
