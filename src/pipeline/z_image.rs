//! Z-Image, Turbo and Base: diffusers' `ZImagePipeline`. A language model reads the prompt inside a template.

use std::path::Path;

use super::controls;
use super::fit::{self, Side};
use super::language_model::{LanguageEncoder, Reading};
use super::opened::{Additions, Denoiser, Encoders, Family, Given, Opened, Parts, Reader, StepPorts, subject, texts};
use super::prompts::{ArraySpec, Prompt};
use super::request::Settings;
use super::rules::{Defaults, GuidanceScale, Rules, Use};
use super::run::Run;
use super::safety;
use super::vae::Vae;
use super::z_image_control;
use crate::bind::alias;
use crate::exec::Session;
use crate::models::language_model::Taps;
use crate::models::z_image::{self, ControlConfig, Sizes, ZImage, filled_up, pack_latents, sinusoid, unpack_latents};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::FlowMatchConfig;
use crate::source::networks;
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TINY_VAE, TRANSFORMER, VAE};
use crate::source::{Network, Networks, Part, Place, Source, Text, model_name};
use crate::text::Encoded;
use crate::{Error, Result, reserve};

/// Z-Image and Z-Image-Turbo.
pub(super) static Z_IMAGE: Family = Family {
    name: "z_image",
    classes: &["ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"],
    places: &[
        Place::needed(&TRANSFORMER, &alias::Z_IMAGE, |component| Ok(Box::new(networks::z_image(component)?))),
        Place::needed(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, |component| {
            Ok(Box::new(networks::language_model(component, taps)?.0))
        }),
        Place::needed(&VAE, &alias::AUTOENCODER_KL, |component| Ok(Box::new(networks::autoencoder_kl(component)?)))
            .unless(&TINY_VAE),
        Place::given(&TINY_VAE, &alias::AUTOENCODER_TINY, |component| {
            Ok(Box::new(networks::autoencoder_tiny(component)?))
        }),
        safety::PLACE,
    ],
    beside: &[CONTROL],
    marks: &[],
    tokens: MOST_TOKENS,
    denoiser: |source| {
        let part = networks::z_image(source.component(&TRANSFORMER)?)?;
        Ok(Box::new(ZImageDenoiser { part, control: None }))
    },
    open,
};

/// A ControlNet, which runs beside it.
const CONTROL: Place = Place::given(&CONTROLNET, &alias::Z_IMAGE_CONTROL, |component| {
    Ok(Box::new(networks::z_image_control(component, None)?))
});

/// Pixels of an image token, in both directions: 8 pixels a latent, 2 latents a token.
const SIDE: usize = 16;

/// The most tokens of a prompt, with its template.
const MOST_TOKENS: usize = 512;

/// The names of its subject, and of what reads.
const LANGUAGE_MODEL: &str = "language model";

/// What stands before and behind a prompt: a user's turn and the beginning of the answer, as the template of Qwen3 has it if thinking is
/// not turned off.
const BEFORE: &str = "<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";
const MARKS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// The hidden states before the last layer.
fn taps(layers: usize) -> Taps {
    Taps::after(layers.saturating_sub(1))
}

/// What Base was published with: diffusers' own defaults.
fn rules(config: &z_image::Config) -> Rules {
    // Positions of the rotary axes: those of texts, of rows, of columns.
    let rows = config.axes_lens[1..].iter().copied().min().unwrap_or(1);
    let tokens = (config.axes_lens[0] - 2) / z_image::MULTIPLE * z_image::MULTIPLE;
    let tokens = tokens.min(MOST_TOKENS);
    Rules {
        multiple: SIDE,
        most_pixels: rows.saturating_mul(SIDE),
        tokens: 1..=tokens,
        guided_above: 0.0,
        inputs: &[Use::Start, Use::Mask],
        ..Rules::of_prompts(Defaults {
            width: 1024,
            height: 1024,
            steps: 50,
            cfg_scale: 5.0,
            negative_prompt: String::new(),
            tokens,
            strength: 0.6,
            strength_with_mask: 1.0,
        })
    }
}

/// The defaults of Turbo, which only its name tells from Base: the model card's steps, and no guidance.
const TURBO: &str = r#"{"num_inference_steps": 8, "guidance_scale": 0.0}"#;

/// Whether `source` or its transformer is called Turbo.
fn is_turbo(source: &Source) -> Result<bool> {
    let transformer = source.component(&TRANSFORMER)?;
    let is_called = |path: &Path| model_name(path).to_lowercase().contains("turbo");
    Ok(is_called(&source.path) || is_called(&transformer.origin))
}

fn open(mut source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_image_prompts()?;
    additions.refuse_face()?;
    additions.refuse_what_goes_with_clip()?;
    source.require_configurations()?;
    let transformer = networks::z_image(source.component(&TRANSFORMER)?)?;
    let control = z_image_control::open(additions, &CONTROL, transformer.net.config())?;
    let mut encoder = LanguageEncoder::open(&source, &TEXT_ENCODER, taps)?;
    let vae = Vae::open(&source, None)?;
    let scheduler = super::flux::scheduler(&source, schedule())?;
    if source.defaults.is_none() && is_turbo(&source)? {
        source.defaults = Some(Text { text: TURBO.into(), origin: source.path.clone() });
    }
    let rules = rules(transformer.net.config()).read(&source, GuidanceScale::Free)?;
    check(&source, &transformer, &encoder, &vae)?;
    let rules = z_image_control::followed(rules, control.as_ref(), transformer.net.config().in_channels);
    let mut transformer = networks::z_image_with(transformer, control.as_ref())?;
    let control = control.map(|control| control.net.config().clone());
    let loras = additions.apply(&mut [transformer.target(), encoder.part.target()])?;
    let (tiny, denoiser) = (vae.tiny(&source)?, Box::new(ZImageDenoiser { part: transformer, control }));
    let parts: Parts = (Box::new(ZImageEncoder(encoder)), denoiser, vae.boxed());
    Ok(Opened { tiny, ..Opened::new(&Z_IMAGE, source, parts, (scheduler, rules, loras)) })
}

/// As published: one shift for all sizes.
fn schedule() -> FlowMatchConfig {
    FlowMatchConfig { shift: 3.0, ..FlowMatchConfig::default() }
}

/// Whether the parts fit together.
fn check(source: &Source, transformer: &Part<ZImage>, encoder: &LanguageEncoder, vae: &Vae) -> Result<()> {
    let config = transformer.net.config();
    let side = |what, number| Side::of(transformer, what, number);
    let text = side("cap_feat_dim of the transformer", config.cap_feat_dim);
    fit::equal(source, text, Side::of(&encoder.part, "the width of the language model", encoder.width()))?;
    let channels = side("in_channels of the transformer", config.in_channels);
    fit::equal(source, channels, vae.side("the latent channels of the autoencoder", vae.channels()))?;
    vae.exactly("pixels to a latent", vae.factor(), SIDE / 2)?;
    encoder.check(source, &MARKS)
}

/// A language model, for the tokens of the prompt.
struct ZImageEncoder(LanguageEncoder);

impl Networks for ZImageEncoder {
    fn networks(&self) -> Vec<Network<'_>> {
        self.0.part.networks()
    }
}

impl Encoders for ZImageEncoder {
    fn readers(&self) -> Vec<Reader> {
        vec![self.0.reader(LANGUAGE_MODEL, MOST_TOKENS)]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        Ok(vec![self.0.tokenize_within([BEFORE, AFTER], text, settings.max_sequence_length)?])
    }

    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            tokens.push(self.tokenize(text, settings)?.iter().map(|encoded| encoded.used).sum());
        }
        Ok(tokens)
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        vec![self.0.subject(LANGUAGE_MODEL, settings.most_text_tokens(), texts(settings))]
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        vec![ArraySpec { name: "hidden", dims: vec![self.0.width(), tokens] }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        let subjects = self.subjects(settings);
        let [subject] = &subjects[..] else { return Err(Error::graph("encode", "one encoder")) };
        self.0.prompts(run, subject, texts, Reading::whole(settings.most_text_tokens()))
    }
}

/// The sizes of a request.
fn sizes(settings: &Settings) -> Sizes {
    let image = [settings.height / SIDE, settings.width / SIDE];
    Sizes { batch: settings.batch, image, texts: settings.text_tokens[..settings.passes()].to_vec() }
}

/// The transformer, with the ControlNet that runs beside it.
struct ZImageDenoiser {
    part: Part<ZImage>,
    control: Option<ControlConfig>,
}

impl Networks for ZImageDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.part.networks()
    }
}

impl ZImageDenoiser {
    /// The prompt of every item of `sizes`, filled up with zeros to `room` tokens, and which tokens are there.
    fn texts(&self, given: &Given<'_>, sizes: &Sizes, room: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let width = self.part.net.config().cap_feat_dim;
        let items = sizes.batch * sizes.texts.len();
        let mut text = reserve::room("the prompts", items.saturating_mul(room * width))?;
        let mut kept = reserve::room("the prompts", items.saturating_mul(room))?;
        for (i, Prompt(arrays)) in given.prompts.iter().take(given.passes).enumerate() {
            let tokens = arrays[0].len() / width;
            for item in 0..sizes.batch {
                text.extend_from_slice(&arrays[0]);
                kept.resize(kept.len() + tokens, 1.0);
                let behind = (i * sizes.batch + item + 1) * room;
                text.resize(behind * width, 0.0);
                kept.resize(behind, 0.0);
            }
        }
        Ok((text, kept))
    }

    /// Fills the ports of the ControlNet.
    fn fill_control(&self, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let Some(ports) = &self.part.net.control else { return Ok(()) };
        let (Some(seen), Some(control)) = (given.controls.first(), given.settings.controls.first()) else {
            return Err(Error::graph("fill", "a ControlNet without its picture"));
        };
        session.set(ports.picture, seen)?;
        let (count, mut factors) = (given.levels.len(), Vec::new());
        for evaluation in given.evaluations.clone() {
            factors.extend(std::iter::repeat_n(control.factor(evaluation, count), given.prompts.len()));
        }
        session.set(ports.scale, &factors)
    }
}

impl Denoiser for ZImageDenoiser {
    fn subjects(&self, settings: &Settings, _: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let mut dims = sizes(settings).dims(evaluations);
        if self.control.is_some() {
            dims = dims.with_spans(controls::spans(settings, evaluations));
        }
        vec![subject(&self.part, TRANSFORMER.name, Phase::Denoise, dims, Runs::of_steps(evaluations))]
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.part.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.prediction, condition: ports.condition }
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, all) = (&self.part.net, sizes(given.settings));
        let room = all.text_tokens();
        let own = all.texts.get(given.pass..given.pass + given.passes).unwrap_or_default().to_vec();
        let sizes = Sizes { batch: given.pictures, texts: own, ..all };
        let (ports, scale) = (&net.ports, net.config().t_scale);
        // Time runs the other way, in thousandths.
        session.set(ports.time, &given.times(|sigma| sinusoid((1000.0 - sigma * 1000.0) / 1000.0 * scale))?)?;
        let (text, kept) = self.texts(given, &sizes, room)?;
        session.set(ports.text, &text)?;
        session.set(ports.text_kept, &kept)?;
        let tokens = sizes.image_tokens();
        let mut kept = reserve::repeat("the picture's tokens", &[1.0], sizes.image[0] * sizes.image[1])?;
        kept.resize(tokens, 0.0);
        session.set(ports.image_kept, &kept)?;
        self.fill_control(session, given)?;
        let (cos, sin) = net.rotary(&sizes, room)?;
        session.set(ports.cos, &cos)?;
        session.set(ports.sin, &sin)
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        let (config, sizes) = (self.part.net.config(), sizes(settings));
        let tokens = sizes.image_tokens().saturating_add(sizes.text_tokens());
        // The rotary tables, cosine and sine, and which of the picture's tokens are there.
        let tables =
            sizes.tables().saturating_mul(tokens).saturating_mul(2 * config.head_width()).saturating_add(tokens);
        // The prompts, filled up.
        let items = sizes.batch * sizes.texts.len();
        let prompts = items.saturating_mul(filled_up(sizes.text_tokens())).saturating_mul(config.cap_feat_dim + 1);
        tables.saturating_add(prompts).saturating_mul(size_of::<f32>())
    }

    fn pack_followed(&self, latents: &[f32], _: Option<&[f32]>, [w, h, ..]: [usize; 5]) -> Result<Vec<f32>> {
        let channels = self.control.as_ref().map_or(0, |control| control.control_in_dim);
        let mut planes = reserve::room("the latents", w * h * channels)?;
        planes.extend_from_slice(latents);
        // Nothing is masked.
        planes.resize(w * h * channels, 0.0);
        pack_latents(&planes, w, h, channels)
    }

    fn pack(&self, latents: &[f32], [w, h, _, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        pack_latents(latents, w, h, channels)
    }

    fn unpack(&self, packed: &[f32], [w, h, _, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        let mut velocity = unpack_latents(packed, w, h, channels)?;
        velocity.iter_mut().for_each(|number| *number = -*number);
        Ok(velocity)
    }
}
