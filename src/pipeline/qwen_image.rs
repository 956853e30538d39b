//! Qwen-Image and its edits: diffusers' `QwenImagePipeline`, `QwenImageEditPipeline` and `QwenImageEditPlusPipeline`. A language model
//! reads the prompt inside a template, and the first tokens of that are not given to the denoiser.

use std::sync::Arc;

use super::controls;
use super::fit::{self, Side};
use super::language_model::{LanguageEncoder, Reading};
use super::opened::{Additions, Denoiser, Encoders, Family, Given, Opened, Parts, Reader, StepPorts, subject, texts};
use super::prompts::{ArraySpec, Prompt};
use super::qwen_image_edit::{self as edit, Edits, Eye};
use super::request::Settings;
use super::rules::{ControlRules, Defaults, GuidanceScale, References, Rules, Takes, Use};
use super::run::Run;
use super::safety;
use super::vae::Vae;
use crate::bind::alias;
use crate::exec::Session;
use crate::image::Picture;
use crate::models::flux::{pack_latents, unpack_latents};
use crate::models::language_model::Taps;
use crate::models::qwen_image::{ControlNet, QwenImage, Sizes, sinusoid};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::FlowMatchConfig;
use crate::source::networks;
use crate::source::slot::{CONTROLNET, IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE};
use crate::source::{Network, Networks, Part, Place, Source};
use crate::text::Encoded;
use crate::{Error, Result, reserve};

/// Qwen-Image.
pub(super) static QWEN_IMAGE: Family = Family {
    name: "qwen_image",
    classes: &[
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        edit::CLASSES[0],
        edit::CLASSES[1],
    ],
    places: &[
        Place::needed(&TRANSFORMER, &alias::QWEN_IMAGE, |component| Ok(Box::new(networks::qwen_image(component)?))),
        Place::needed(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, |component| {
            Ok(Box::new(networks::language_model(component, taps)?.0))
        }),
        // Of the edits alone.
        Place {
            needed: false,
            ..Place::needed(&IMAGE_ENCODER, &alias::QWEN_VL_VISION, |component| {
                Ok(Box::new(networks::qwen_vl(component)?))
            })
        },
        Place::needed(&VAE, &alias::AUTOENCODER_WAN, |component| {
            Ok(Box::new(networks::autoencoder_causal(component)?))
        }),
        safety::PLACE,
    ],
    beside: &[CONTROL],
    marks: &[],
    tokens: TOKENS,
    denoiser: |source| Ok(Box::new(QwenImageDenoiser(networks::qwen_image(source.component(&TRANSFORMER)?)?))),
    open,
};

/// ControlNets, which run beside it.
const CONTROL: Place =
    Place::given(&CONTROLNET, &alias::QWEN_CONTROL, |component| Ok(Box::new(networks::qwen_control(component)?)));

/// Pixels of an image token, in both directions: 8 pixels a latent, 2 latents a token.
const SIDE: usize = 16;

/// Positions that the reference has tables for, on every axis and in both directions.
const POSITIONS: usize = 4096;

/// Tokens of a prompt for the denoiser, with what stands behind the prompt: usually at most, and at all.
const TOKENS: usize = 512;
const MOST_TOKENS: usize = 1024;

/// The names of its subject, and of what reads.
const LANGUAGE_MODEL: &str = "language model";

/// What stands before and behind a prompt.
const BEFORE: &str = "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial \
                      relationships of the objects and background:<|im_end|>\n<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";
const MARKS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// How many of the first tokens the denoiser is not given: those of what stands before the prompt.
const DROPPED: usize = 34;

/// The hidden states behind the last norm.
fn taps(layers: usize) -> Taps {
    Taps { after: vec![layers], normalised: true }
}

/// What the model was published with: as its card and diffusers have it.
fn rules(edits: Option<Edits>) -> Rules {
    let tokens = if edits.is_some() { MOST_TOKENS } else { TOKENS };
    Rules {
        multiple: SIDE,
        most_pixels: POSITIONS * SIDE,
        tokens: 1..=MOST_TOKENS,
        inputs: if edits.is_some() { &[] } else { &[Use::Start, Use::Mask] },
        references: edits.map(|edits| References {
            most: edits.most(),
            sizes: &[],
            cropped: None,
            area: Some(edit::AREA),
            needed: true,
        }),
        ..Rules::of_prompts(Defaults {
            width: 1024,
            height: 1024,
            steps: 50,
            cfg_scale: 4.0,
            negative_prompt: " ".into(),
            tokens,
            strength: 0.6,
            strength_with_mask: 0.6,
        })
    }
}

fn open(mut source: Source, additions: &Additions) -> Result<Opened> {
    let edits = edit::of(&source)?;
    if edits.is_none() {
        additions.refuse_image_prompts()?;
        additions.refuse_zero_cond_t()?;
    }
    additions.refuse_face()?;
    additions.refuse_what_goes_with_clip()?;
    source.require_configurations()?;
    let transformer = networks::qwen_image(source.component(&TRANSFORMER)?)?;
    let transformer = match additions.zero_cond_t {
        Some(zero_cond_t) => networks::qwen_image_of_zero(transformer, zero_cond_t)?,
        None => transformer,
    };
    let controls = open_controls(additions, edits)?;
    let mut encoder = LanguageEncoder::open(&source, &TEXT_ENCODER, taps)?;
    let eye = edits.map(|edits| Eye::open(&source, additions, (edits, &encoder))).transpose()?;
    edit::note(&mut source, edits);
    let vae = Vae::open_causal(&source)?;
    let scheduler = super::flux::scheduler(&source, schedule())?;
    let rules = rules(edits).read(&source, GuidanceScale::Input)?;
    check(&source, &transformer, &encoder, &vae)?;
    let rules = followed(rules, &controls);
    let mut transformer = networks::qwen_image_with(transformer, &controls)?;
    let loras = additions.apply(&mut [transformer.target(), encoder.part.target()])?;
    let encoders = Box::new(QwenEncoder { language: encoder, eye });
    // Tiny autoencoders that are published for other latents of 16 channels would draw noise.
    let parts: Parts = (encoders, Box::new(QwenImageDenoiser(transformer)), vae.boxed());
    Ok(Opened::new(&QWEN_IMAGE, source, parts, (scheduler, rules, loras)))
}

/// The ControlNets of `additions`.
fn open_controls(additions: &Additions, edits: Option<Edits>) -> Result<Vec<Part<ControlNet>>> {
    controls::check_count(additions.controls.len())?;
    let mut controls = Vec::with_capacity(additions.controls.len());
    for path in &additions.controls {
        if edits.is_some() {
            let expected = "nothing, since ControlNets go beside Qwen-Image, and not beside its edits";
            return Err(Error::option("--control", expected, path.display().to_string()));
        }
        controls.push(networks::qwen_control(&Source::lone(path, &CONTROL)?)?);
    }
    Ok(controls)
}

/// With what `controls` follow.
fn followed(mut rules: Rules, controls: &[Part<ControlNet>]) -> Rules {
    for control in controls {
        let takes = if control.net.config().takes_mask() { Takes::Masked } else { Takes::Latents };
        let path = control.bound.origin().to_owned();
        rules.controls.push(ControlRules { path, takes, modes: 0, mode_names: &[], pooled: false });
    }
    rules
}

/// As published: a shift that grows with the picture, and a schedule that is stretched to end at 0.02.
pub(super) fn schedule() -> FlowMatchConfig {
    FlowMatchConfig {
        use_dynamic_shifting: true,
        base_shift: 0.5,
        max_shift: 0.9,
        max_image_seq_len: 8192,
        shift_terminal: Some(0.02),
        ..FlowMatchConfig::default()
    }
}

/// Whether the parts fit together.
fn check(source: &Source, transformer: &Part<QwenImage>, encoder: &LanguageEncoder, vae: &Vae) -> Result<()> {
    let config = transformer.net.config();
    let side = |what, number| Side::of(transformer, what, number);
    let text = side("joint_attention_dim of the transformer", config.joint_attention_dim);
    fit::equal(source, text, Side::of(&encoder.part, "the width of the language model", encoder.width()))?;
    let channels = side("out_channels of the transformer", config.latent_channels());
    fit::equal(source, channels, vae.side("the latent channels of the autoencoder", vae.channels()))?;
    vae.exactly("pixels to a latent", vae.factor(), SIDE / 2)?;
    encoder.check(source, &MARKS)
}

/// A language model, for the tokens of the prompt; and in edits, what sees pictures for it.
struct QwenEncoder {
    language: LanguageEncoder,
    eye: Option<Eye>,
}

impl Networks for QwenEncoder {
    fn networks(&self) -> Vec<Network<'_>> {
        let mut networks = self.language.part.networks();
        networks.extend(self.eye.iter().flat_map(Networks::networks));
        networks
    }
}

impl QwenEncoder {
    /// How many of the first tokens the denoiser is not given.
    fn dropped(&self) -> usize {
        if self.eye.is_some() { edit::DROPPED } else { DROPPED }
    }
}

impl Encoders for QwenEncoder {
    fn readers(&self) -> Vec<Reader> {
        vec![self.language.reader(LANGUAGE_MODEL, self.dropped() + TOKENS)]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        let (before, seen) = match &self.eye {
            Some(eye) => (eye.before(settings)?, eye.tokens(settings)?),
            None => (BEFORE.to_owned(), 0),
        };
        let most = self.dropped() + seen + settings.max_sequence_length;
        Ok(vec![self.language.tokenize_within([&before, AFTER], text, most)?])
    }

    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            let all: usize = self.tokenize(text, settings)?.iter().map(|encoded| encoded.used).sum();
            tokens.push(all.saturating_sub(self.dropped()));
        }
        Ok(tokens)
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        let mut subjects = self.eye.as_ref().map_or(Vec::new(), |eye| eye.subjects(settings));
        subjects.push(self.language.subject(
            LANGUAGE_MODEL,
            self.dropped() + settings.most_text_tokens(),
            texts(settings),
        ));
        subjects
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        vec![ArraySpec { name: "hidden", dims: vec![self.language.width(), tokens] }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        self.encode_seeing(run, settings, texts, &[])
    }

    fn see(&self) -> bool {
        self.eye.is_some()
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
        let seen = match &self.eye {
            Some(eye) => Some(eye.look(run, settings, towers, pictures)?),
            None => None,
        };
        let dropped = self.dropped();
        let tokens = dropped + settings.most_text_tokens();
        let reading = Reading { tokens, dropped, seen: seen.as_ref(), without_pictures: false };
        self.language.prompts(run, subject, texts, reading)
    }
}

/// The sizes of a request.
fn sizes(settings: &Settings) -> Sizes {
    let mut pictures = vec![[settings.height / SIDE, settings.width / SIDE]];
    pictures.extend(settings.references.iter().map(|[width, height]| [height / SIDE, width / SIDE]));
    Sizes { batch: settings.batch, pictures, texts: settings.text_tokens[..settings.passes()].to_vec() }
}

/// The transformer.
struct QwenImageDenoiser(Part<QwenImage>);

impl Networks for QwenImageDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.0.networks()
    }
}

impl QwenImageDenoiser {
    /// Fills the ports of the ControlNets.
    fn fill_controls(&self, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let net = &self.0.net;
        let pictures: Vec<usize> = (0..given.pictures).collect();
        self.follow(session, (given.controls, given.settings.batch), &pictures)?;
        for (ports, control) in net.controls.iter().zip(&given.settings.controls) {
            let mut factors = Vec::with_capacity(given.evaluations.len() + 1);
            for evaluation in given.evaluations.clone() {
                factors.push(control.factor(evaluation, given.levels.len()));
            }
            if net.config().zero_cond_t {
                factors.push(0.0);
            }
            session.set(ports.scale, &factors)?;
        }
        Ok(())
    }
}

impl Denoiser for QwenImageDenoiser {
    fn subjects(&self, settings: &Settings, _: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let sizes = sizes(settings);
        let mut dims = sizes.dims(evaluations + usize::from(self.0.net.config().zero_cond_t));
        if !self.0.net.controls.is_empty() {
            dims = sizes.control_dims(dims).with_spans(controls::spans(settings, evaluations));
        }
        vec![subject(&self.0, TRANSFORMER.name, Phase::Denoise, dims, Runs::of_steps(evaluations))]
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.0.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.prediction, condition: ports.condition }
    }

    fn conditions_are_times(&self) -> bool {
        true
    }

    fn guided_width(&self) -> Option<usize> {
        Some(self.0.net.config().in_channels)
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, sizes) = (&self.0.net, sizes(given.settings));
        let ports = &net.ports;
        let mut times = Vec::new();
        for &time in &given.levels.times[given.evaluations.clone()] {
            times.extend(sinusoid(time));
        }
        if net.config().zero_cond_t {
            times.extend(sinusoid(0.0));
        }
        session.set(ports.time, &times)?;
        session.set(ports.text, &given.filled_prompt(net.config().joint_attention_dim, sizes.text_tokens())?)?;
        self.fill_controls(session, given)?;
        let (cos, sin) = net.rotary(&sizes)?;
        session.set(ports.cos, &cos)?;
        session.set(ports.sin, &sin)
    }

    fn follow(
        &self,
        session: &mut Session<'_>,
        (followed, batch): (&[Vec<f32>], usize),
        pictures: &[usize],
    ) -> Result<()> {
        for (ports, followed) in self.0.net.controls.iter().zip(followed) {
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
        let (config, sizes) = (self.0.net.config(), sizes(settings));
        let tokens = sizes.image_tokens().saturating_add(sizes.text_tokens());
        // The rotary tables, cosine and sine, and the prompts, filled up.
        let tables = tokens.saturating_mul(2 * config.attention_head_dim);
        let items = sizes.batch * sizes.texts.len();
        let prompts = items.saturating_mul(sizes.text_tokens()).saturating_mul(config.joint_attention_dim);
        tables.saturating_add(prompts).saturating_mul(size_of::<f32>())
    }

    fn pack_followed(&self, latents: &[f32], mask: Option<&[f32]>, dims: [usize; 5]) -> Result<Vec<f32>> {
        let [w, h, _, channels, _] = dims;
        let mut planes = reserve::repeat("the latents", latents, 1)?;
        // The mask says what is left of the picture.
        planes.extend(mask.unwrap_or_default().iter().map(|masked| 1.0 - masked));
        pack_latents(&planes, w, h, channels + usize::from(mask.is_some()))
    }

    fn pack(&self, latents: &[f32], [w, h, _, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        pack_latents(latents, w, h, channels)
    }

    fn unpack(&self, packed: &[f32], [w, h, _, channels, _]: [usize; 5]) -> Result<Vec<f32>> {
        unpack_latents(packed, w, h, channels)
    }
}
