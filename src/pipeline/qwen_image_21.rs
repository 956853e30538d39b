//! Qwen-Image 2.1: diffusers' `QwenImage21Pipeline`. A language model reads the prompt inside a template, with the pictures that the model
//! looks at, and the system's turn of that is not given to the denoiser.

use std::sync::Arc;

use super::fit::{self, Side};
use super::language_model::{LanguageEncoder, Reading};
use super::opened::{Additions, Denoiser, Encoders, Family, Given, Opened, Parts, Reader, StepPorts, subject, texts};
use super::prompts::{ArraySpec, Prompt};
use super::qwen_image_21_pictures::{self as pictures, Sight};
use super::request::Settings;
use super::rules::{Defaults, GuidanceScale, References, Rules};
use super::run::Run;
use super::vae::Vae;
use super::{qwen_image, safety};
use crate::bind::alias;
use crate::exec::Session;
use crate::image::Picture;
use crate::models::language_model::{QWEN3_VL, Taps};
use crate::models::qwen_image::single::{MOST_REFERENCES, SingleStream, Sizes, pack_latents, sinusoid, unpack_latents};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::FlowMatchConfig;
use crate::source::networks;
use crate::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};
use crate::source::{Network, Networks, Part, Place, Source, Text, model_name};
use crate::text::Encoded;
use crate::{Error, Result};

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
        pictures::PLACE,
        Place::needed(&VAE, &alias::AUTOENCODER_WAN, |component| {
            Ok(Box::new(networks::autoencoder_causal(component)?))
        }),
        safety::PLACE,
    ],
    beside: &[],
    marks: &[],
    tokens: MOST_TOKENS,
    denoiser: |source| {
        let part = networks::qwen_image_21(source.component(&TRANSFORMER)?)?;
        Ok(Box::new(SingleDenoiser { part, gaps: Vec::new() }))
    },
    open,
};

/// Pixels of an image token, in both directions, and what the sides of a picture are multiples of: two tokens.
const SIDE: usize = 16;
const MULTIPLE: usize = pictures::TOKEN_SIDE;

/// Positions that the reference has tables for, to both sides of a picture's middle.
const POSITIONS: usize = 1024;

/// The most tokens of a prompt for the denoiser, with what stands around it. The reference has no limit.
const MOST_TOKENS: usize = 1024;

/// What it looks at: pictures of any shape, of a megapixel each.
const LOOKED_AT: References =
    References { most: MOST_REFERENCES, sizes: &[], cropped: None, area: Some(pictures::AREA), needed: false };

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
        references: Some(LOOKED_AT),
        ..Rules::of_prompts(Defaults {
            width: 1024,
            height: 1024,
            steps: 40,
            cfg_scale: 1.0,
            negative_prompt: EMPTY.into(),
            tokens: MOST_TOKENS,
            strength: 0.6,
            strength_with_mask: 0.6,
        })
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
    additions.refuse_image_prompts_except_encoders()?;
    additions.refuse_controls()?;
    additions.refuse_what_goes_with_clip()?;
    source.require_configurations()?;
    let mut transformer = networks::qwen_image_21(source.component(&TRANSFORMER)?)?;
    let mut encoder = LanguageEncoder::open_beside(&source, &TEXT_ENCODER, taps, Some(QWEN3_VL))?;
    let vae = Vae::open_causal_with_opacity(&source)?;
    if is_turbo(&source)? {
        let text = |text: &str| Text { text: text.into(), origin: source.path.clone() };
        let (pipeline, defaults) = (text(TURBO_SIGMAS), text(TURBO));
        source.pipeline = Some(pipeline);
        source.defaults = source.defaults.or(Some(defaults));
    }
    // Noise levels that a model brings are not shifted.
    let brings_levels = source.sample_sigmas()?.is_some();
    let schedule = if brings_levels { FlowMatchConfig::default() } else { qwen_image::schedule() };
    let scheduler = super::flux::scheduler(&source, schedule)?;
    let rules = rules().read(&source, GuidanceScale::Input)?;
    check(&source, &transformer, &encoder, &vae)?;
    let sight = Sight::open(&source, additions, &encoder)?;
    if let Some(eye) = sight.eye() {
        encoder = encoder.told(taps, eye.layers_told())?;
    }
    let loras = additions.apply(&mut [transformer.target(), encoder.part.target()])?;
    let encoder = SingleEncoder::new(encoder, sight)?;
    let denoiser = SingleDenoiser { part: transformer, gaps: encoder.gaps()? };
    let parts: Parts = (Box::new(encoder), Box::new(denoiser), vae.boxed());
    Ok(Opened::new(&QWEN_IMAGE_21, source, parts, (scheduler, rules, loras)))
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

/// A language model, for the tokens of the prompt, and what sees pictures for it.
struct SingleEncoder {
    language: LanguageEncoder,
    /// How many of the first tokens the denoiser is not given: those of the system's turn.
    dropped: usize,
    sight: Sight,
}

impl SingleEncoder {
    fn new(language: LanguageEncoder, sight: Sight) -> Result<SingleEncoder> {
        let dropped = language.tokenize(SYSTEM, MOST_TOKENS)?.used;
        Ok(SingleEncoder { language, dropped, sight })
    }

    /// How many tokens of the text the denoiser is given before each picture; none if there is nothing to see them with.
    fn gaps(&self) -> Result<Vec<usize>> {
        match self.sight.eye() {
            Some(_) => pictures::gaps(&self.language, BEFORE),
            None => Ok(Vec::new()),
        }
    }

    /// The most tokens that the language model reads.
    fn read_tokens(&self, settings: &Settings) -> usize {
        self.dropped + pictures::seen_tokens(settings) + settings.most_text_tokens()
    }
}

impl Networks for SingleEncoder {
    fn networks(&self) -> Vec<Network<'_>> {
        let mut networks = self.language.part.networks();
        networks.extend(self.sight.networks());
        networks
    }
}

impl Encoders for SingleEncoder {
    fn readers(&self) -> Vec<Reader> {
        vec![self.language.reader(LANGUAGE_MODEL, self.dropped + MOST_TOKENS)]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        self.sight.check(settings)?;
        let text = if text.is_empty() { EMPTY } else { text };
        let most = self.dropped + pictures::seen_tokens(settings) + settings.max_sequence_length;
        let before = format!("{SYSTEM}{BEFORE}{}", pictures::pictures(settings));
        Ok(vec![self.language.tokenize_within([&before, AFTER], text, most)?])
    }

    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            let all: usize = self.tokenize(text, settings)?.iter().map(|encoded| encoded.used).sum();
            tokens.push(all.saturating_sub(self.dropped + pictures::seen_tokens(settings)));
        }
        Ok(tokens)
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        let tokens = self.read_tokens(settings);
        match self.sight.eye().filter(|_| !settings.references.is_empty()) {
            Some(eye) => {
                let mut subjects = eye.subjects(settings);
                subjects.push(self.language.subject_told(LANGUAGE_MODEL, (tokens, tokens), texts(settings)));
                subjects
            }
            None => vec![self.language.subject(LANGUAGE_MODEL, tokens, texts(settings))],
        }
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        vec![ArraySpec { name: "hidden", dims: vec![self.language.width(), tokens] }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        self.encode_seeing(run, settings, texts, &[])
    }

    fn see(&self) -> bool {
        self.sight.eye().is_some()
    }

    fn seen_bytes(&self, settings: &Settings) -> usize {
        let Some(eye) = self.sight.eye().filter(|_| !settings.references.is_empty()) else { return 0 };
        let (tokens, width) = (self.read_tokens(settings), self.language.width());
        // What the text is with pictures in it, and what they have been before; what is added to it, one layer after the other; and its mask.
        let text = tokens.saturating_mul(3 * width).saturating_add(tokens.saturating_mul(tokens));
        text.saturating_mul(size_of::<f32>()).saturating_add(eye.bytes(settings))
    }

    fn encode_seeing(
        &self,
        run: &mut Run<'_>,
        settings: &Settings,
        texts: &[Vec<Encoded>],
        pictures: &[Arc<Picture>],
    ) -> Result<Vec<Prompt>> {
        let subjects = self.subjects(settings);
        let Some((subject, towers)) = subjects.split_last() else { return Err(Error::graph("encode", "no encoder")) };
        let seen = match self.sight.eye().filter(|_| !towers.is_empty()) {
            Some(eye) => Some(eye.look(run, settings, towers, pictures)?),
            None => None,
        };
        let (tokens, dropped) = (self.read_tokens(settings), self.dropped);
        self.language.prompts(
            run,
            subject,
            texts,
            Reading { tokens, dropped, seen: seen.as_ref(), without_pictures: true },
        )
    }
}

/// The transformer, and how many tokens of a text stand before each picture in it.
struct SingleDenoiser {
    part: Part<SingleStream>,
    gaps: Vec<usize>,
}

impl SingleDenoiser {
    /// The sizes of a request.
    fn sizes(&self, settings: &Settings) -> Sizes {
        let tokens = |[width, height]: [usize; 2]| [height / SIDE, width / SIDE];
        Sizes {
            batch: settings.batch,
            image: tokens([settings.width, settings.height]),
            references: settings.references.iter().map(|&sides| tokens(sides)).collect(),
            gaps: self.gaps.iter().take(settings.references.len()).copied().collect(),
            texts: settings.text_tokens[..settings.passes()].to_vec(),
        }
    }
}

impl Networks for SingleDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.part.networks()
    }
}

impl Denoiser for SingleDenoiser {
    fn subjects(&self, settings: &Settings, _: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let (dims, runs) = (self.sizes(settings).dims(evaluations), Runs::of_steps(evaluations));
        vec![subject(&self.part, TRANSFORMER.name, Phase::Denoise, dims, runs)]
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.part.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.prediction, condition: ports.condition }
    }

    fn conditions_are_times(&self) -> bool {
        true
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, all) = (&self.part.net, self.sizes(given.settings));
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
        session.set(net.ports.text, &given.filled_prompt(net.config().context_in_dim, room)?)?;
        session.set(net.ports.mask, &net.mask(&sizes, room)?)?;
        let (cos, sin) = net.rotary(&sizes, room)?;
        session.set(net.ports.cos, &cos)?;
        session.set(net.ports.sin, &sin)
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        let (config, sizes) = (self.part.net.config(), self.sizes(settings));
        let (text, prefix) = (sizes.text_tokens(), sizes.prefix_tokens());
        let tokens = sizes.image_tokens().saturating_add(prefix);
        // The rotary tables, cosine and sine, and the mask.
        let tables = sizes.tables().saturating_mul(tokens).saturating_mul(2 * config.attention_head_dim);
        let mask = text.saturating_mul(prefix);
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
