//! FLUX.3 Image klein, distilled and base: diffusers' `Flux3DistilledModularPipeline` and `Flux3ModularPipeline`. A language model reads
//! the prompt inside a template, and what fills it up.

use super::fit::{self, Side};
use super::language_model::{LanguageEncoder, Reading};
use super::opened::{Additions, Denoiser, Encoders, Family, Given, Opened, Parts, Reader, StepPorts, subject, texts};
use super::prompts::{ArraySpec, Prompt};
use super::request::Settings;
use super::rules::{Cropped, Defaults, GuidanceScale, Padded, References, Rules, Starts, Use};
use super::run::Run;
use super::safety;
use super::vae::Vae;
use crate::bind::alias;
use crate::exec::Session;
use crate::models::flux::flux3::{Flux3, Sizes, pack_latents, unpack_latents};
use crate::models::language_model::{QWEN3_VL, Taps};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::{FlowMatchConfig, Levels};
use crate::source::networks;
use crate::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};
use crate::source::{Network, Networks, Part, Place, Source};
use crate::text::Encoded;
use crate::{Error, Result};

/// FLUX.3 Image klein and klein base.
pub(super) static FLUX3: Family = Family {
    name: "flux3",
    classes: &["Flux3ModularPipeline", "Flux3DistilledModularPipeline"],
    places: &[
        Place::needed(&TRANSFORMER, &alias::FLUX3, |component| Ok(Box::new(networks::flux3(component)?))),
        Place::needed(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, |component| {
            Ok(Box::new(networks::language_model(component, taps)?.0))
        }),
        Place::needed(&VAE, &alias::AUTOENCODER_KL, |component| Ok(Box::new(networks::autoencoder_kl(component)?))),
        safety::PLACE,
    ],
    beside: &[],
    marks: &[],
    tokens: USUAL_TOKENS,
    denoiser: |source| Ok(Box::new(Flux3Denoiser(networks::flux3(source.component(&TRANSFORMER)?)?))),
    open,
};

/// Pixels of an image token, in both directions: 8 pixels a latent, 2 latents a token.
const SIDE: usize = 16;

/// The most tokens of a prompt, with its template and what fills it up; and how many a long caption has.
const MOST_TOKENS: usize = 8192;
const USUAL_TOKENS: usize = 640;

/// What prompts are filled up to a multiple of, in tokens.
const MULTIPLE: usize = 80;

/// Where what fills up a prompt stands, as in training.
const FILLED_AT: usize = 1;

/// What fills it up.
const PAD: &str = "<|endoftext|>";

/// What stands before and behind a prompt: a user's turn and the beginning of the answer.
const BEFORE: &str = "<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";
const MARKS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// The names of its subject, and of what reads.
const LANGUAGE_MODEL: &str = "language model";

/// What times are multiplied by before they are embedded.
const TIME_SCALE: f32 = 1000.0;

/// What it looks at: pictures of any shape. One alone is kept whole, up to four megapixels with what is around it; several have up to one
/// each.
const REFERENCES: References = References {
    most: 10,
    sizes: &[],
    cropped: Some(Cropped {
        area: 1024 * 1024,
        least_side: SIDE,
        most_quotient: usize::MAX,
        alone: Some(Padded { area: 4 * 1024 * 1024, least_side: 64, most_side: 4096 }),
    }),
    area: None,
    needed: false,
};

/// The hidden states that are read of a language model.
fn taps(_: usize) -> Taps {
    Taps { after: vec![4, 8, 12, 16, 20, 24, 28, 32], normalised: false }
}

/// What a model was published with, which is told where steps lead to if it `is_distilled`.
fn rules(is_distilled: bool) -> Rules {
    let (steps, cfg_scale) = if is_distilled { (16, 1.0) } else { (50, 4.0) };
    Rules {
        multiple: SIDE,
        most_pixels: 16384,
        tokens: 1..=MOST_TOKENS,
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

fn open(source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_image_prompts()?;
    additions.refuse_controls()?;
    additions.refuse_what_goes_with_clip()?;
    source.require_configurations()?;
    let mut transformer = networks::flux3(source.component(&TRANSFORMER)?)?;
    let mut encoder = LanguageEncoder::open_beside(&source, &TEXT_ENCODER, taps, Some(QWEN3_VL))?;
    encoder.filled_at = Some(FILLED_AT);
    let vae = Vae::open(&source, None)?;
    let scheduler = super::flux::scheduler(&source, schedule())?;
    let rules = rules(transformer.net.config().flow_map).read(&source, GuidanceScale::Free)?;
    check(&source, &transformer, &encoder, &vae)?;
    let loras = additions.apply(&mut [transformer.target(), encoder.part.target()])?;
    let parts: Parts = (Box::new(Flux3Encoder(encoder)), Box::new(Flux3Denoiser(transformer)), vae.boxed());
    Ok(Opened::new(&FLUX3, source, parts, (scheduler, rules, loras)))
}

/// As published: one shift for all sizes.
fn schedule() -> FlowMatchConfig {
    FlowMatchConfig { shift: 6.93, ..FlowMatchConfig::default() }
}

/// Whether the parts fit together.
fn check(source: &Source, transformer: &Part<Flux3>, encoder: &LanguageEncoder, vae: &Vae) -> Result<()> {
    const HINT: &str = "this transformer was trained with Qwen3-VL-4B: give that with --text-encoder";
    let config = transformer.net.config();
    let side = |what, number| Side::of(transformer, what, number);
    if !encoder.config.is_like(QWEN3_VL) {
        let found = encoder.config.model_type.clone();
        return Err(Error::mismatch(encoder.part.bound.origin(), "model_type", QWEN3_VL, found).with_hint(HINT));
    }
    let text = side("joint_attention_dim of the transformer", config.joint_attention_dim);
    let tapped = Side::of(&encoder.part, "the width of the eight layers of the language model", encoder.width());
    fit::equal(source, text, tapped).map_err(|error| error.with_hint(HINT))?;
    let channels = side("in_channels of the transformer", config.in_channels);
    fit::equal(source, channels, vae.side("channels of a patch of the autoencoder's latents", vae.channels()))?;
    vae.exactly("pixels to a patch of latents", vae.factor(), SIDE)?;
    encoder.check(source, &MARKS)
}

/// A language model, for the tokens of the prompt and what fills them up.
struct Flux3Encoder(LanguageEncoder);

impl Networks for Flux3Encoder {
    fn networks(&self) -> Vec<Network<'_>> {
        self.0.part.networks()
    }
}

impl Encoders for Flux3Encoder {
    fn readers(&self) -> Vec<Reader> {
        vec![self.0.reader(LANGUAGE_MODEL, MOST_TOKENS)]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        let (template, most) = ([BEFORE, AFTER], settings.max_sequence_length);
        let read = self.0.tokenize_within(template, text, most)?;
        let filled = read.used.next_multiple_of(MULTIPLE).min(most);
        let filled = self.0.tokenize_filled_within(template, text, (filled, PAD))?;
        Ok(vec![Encoded { cut: read.cut, ..filled }])
    }

    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            tokens.push(self.tokenize(text, settings)?.iter().map(|encoded| encoded.ids.len()).sum());
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
    let mut pictures = vec![[settings.height / SIDE, settings.width / SIDE]];
    pictures.extend(settings.references.iter().map(|[width, height]| [height / SIDE, width / SIDE]));
    Sizes { batch: settings.batch, pictures, texts: settings.text_tokens[..settings.passes()].to_vec() }
}

/// The time that evaluation `i` leads to: that of the next one, and 0 behind the last.
fn target(levels: &Levels, i: usize) -> f32 {
    levels.times.get(i + 1).copied().unwrap_or(0.0)
}

/// The transformer.
struct Flux3Denoiser(Part<Flux3>);

impl Networks for Flux3Denoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.0.networks()
    }
}

impl Denoiser for Flux3Denoiser {
    fn subjects(&self, settings: &Settings, _: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let dims = sizes(settings).dims(evaluations);
        vec![subject(&self.0, TRANSFORMER.name, Phase::Denoise, dims, Runs::of_steps(evaluations))]
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.0.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.velocity, condition: ports.condition }
    }

    fn conditions_are_times(&self) -> bool {
        true
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, sizes) = (&self.0.net, sizes(given.settings));
        let ports = &net.ports;
        let (mut times, mut targets) = (Vec::new(), Vec::new());
        for evaluation in given.evaluations.clone() {
            times.extend(net.sinusoid(given.levels.times[evaluation] * TIME_SCALE));
            targets.extend(net.sinusoid(target(given.levels, evaluation) * TIME_SCALE));
        }
        session.set(ports.time, &times)?;
        session.set(ports.zero, &net.sinusoid(0.0))?;
        if let Some(port) = ports.target {
            session.set(port, &targets)?;
        }
        session.set(ports.text, &given.filled_prompt(net.config().joint_attention_dim, sizes.text_tokens())?)?;
        let (cos, sin) = net.rotary(&sizes)?;
        session.set(ports.cos, &cos)?;
        session.set(ports.sin, &sin)
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        let (config, sizes) = (self.0.net.config(), sizes(settings));
        // The rotary tables, cosine and sine, and the positions that they are made from.
        let axes = &config.axes_dims_rope;
        let each = 2 * size_of::<f32>() * axes.iter().sum::<usize>() + size_of::<f64>() * axes.len();
        let tables = sizes.image_tokens().saturating_add(sizes.text_tokens()).saturating_mul(each);
        // The prompts, filled up.
        let items = sizes.batch * sizes.texts.len();
        let prompts = items.saturating_mul(sizes.text_tokens()).saturating_mul(config.joint_attention_dim);
        tables.saturating_add(prompts.saturating_mul(size_of::<f32>()))
    }

    fn pack(&self, latents: &[f32], [w, h, ..]: [usize; 5]) -> Result<Vec<f32>> {
        pack_latents(latents, w * h)
    }

    fn unpack(&self, packed: &[f32], [w, h, ..]: [usize; 5]) -> Result<Vec<f32>> {
        unpack_latents(packed, w * h)
    }
}
