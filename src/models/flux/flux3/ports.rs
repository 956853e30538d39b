//! Where a request is put, and its sizes.

use pinhole_quant::DType;

use super::config::Config;
use crate::models::flux::ports::{carried, input};
use crate::stage::{Dims, Lifetime, Model, Port, Symbol};

/// The tokens of the picture that is drawn. [`Symbol::IMAGE_TOKENS`] has those of all pictures.
pub const DRAWN_TOKENS: Symbol = Symbol::new("tokens of the picture that is drawn");

/// The tokens of the pictures that the model looks at.
pub const REFERENCE_TOKENS: Symbol = Symbol::new("tokens of the pictures that are looked at");

/// How many times there are: evaluations, since modulation depends on nothing else.
pub const TIMES: Symbol = Symbol::new("times");

/// Tokens of the text of each pass. The longest is [`Symbol::TEXT_TOKENS`].
pub const TEXT_OF_PASSES: [Symbol; 2] =
    [Symbol::new("tokens of the first pass's text"), Symbol::new("tokens of the second pass's text")];

/// The ports that carry the request into the model, and the velocity out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[S, N]`: [`Flux3::sinusoid`](super::Flux3::sinusoid) of each time.
    pub time: Port,
    /// `[S, 1]`: [`Flux3::sinusoid`](super::Flux3::sinusoid) of 0.
    pub zero: Port,
    /// `[S, N]`: [`Flux3::sinusoid`](super::Flux3::sinusoid) of where each time's step leads; absent in base.
    pub target: Option<Port>,
    /// `[J, Tt, B]`: the prompt's hidden states, zeros behind them.
    pub text: Port,
    /// `[d, 1, T]`: see [`Flux3::rotary`](super::Flux3::rotary).
    pub cos: Port,
    /// `[d, 1, T]`: see [`Flux3::rotary`](super::Flux3::rotary).
    pub sin: Port,
    /// `[B]`, I32: which time each item of the batch is computed at in this step.
    pub condition: Port,
    /// `[C, Ti, B]`: packed latents, and behind them those of the pictures that the model looks at.
    pub latents: Port,
    /// `[C, Ti, B]`: the velocity. What stands behind the tokens of the picture that is drawn means nothing.
    pub velocity: Port,
}

impl Ports {
    pub(super) fn declare(model: &mut Model, config: &Config) -> Ports {
        let width = config.timestep_channels;
        let embedded = [width.into(), TIMES.into()];
        let text = [config.joint_attention_dim.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()];
        let rotary = [config.attention_head_dim.into(), 1.into(), Symbol::JOINT_TOKENS.into()];
        Ports {
            time: input(model, "time", &embedded),
            zero: input(model, "zero", &[width.into(), 1.into()]),
            target: config.flow_map.then(|| input(model, "target", &embedded)),
            text: input(model, "text", &text),
            cos: input(model, "cos", &rotary),
            sin: input(model, "sin", &rotary),
            condition: model.port("condition", &[Symbol::BATCH.into()], DType::I32, Lifetime::Pass),
            latents: carried(model, "latents", config.in_channels, Symbol::IMAGE_TOKENS, Symbol::BATCH),
            velocity: carried(model, "velocity", config.in_channels, Symbol::IMAGE_TOKENS, Symbol::BATCH),
        }
    }
}

/// The sizes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Pictures that are drawn.
    pub batch: usize,
    /// Rows and columns of tokens of the picture that is drawn, and of each that the model looks at.
    pub pictures: Vec<[usize; 2]>,
    /// Tokens of each pass's prompt.
    pub texts: Vec<usize>,
}

impl Sizes {
    /// Tokens of `pictures`.
    fn tokens_of(pictures: &[[usize; 2]]) -> usize {
        pictures.iter().fold(0, |sum, [rows, columns]| sum.saturating_add(rows.saturating_mul(*columns)))
    }

    /// `Ti`
    pub fn image_tokens(&self) -> usize {
        Sizes::tokens_of(&self.pictures)
    }

    /// `Tt`
    pub fn text_tokens(&self) -> usize {
        self.texts.iter().copied().max().unwrap_or(0)
    }

    /// The sizes for so many `evaluations`.
    pub fn dims(&self, evaluations: usize) -> Dims {
        let passes = self.texts.len();
        let (image, text) = (self.image_tokens(), self.text_tokens());
        let drawn = Sizes::tokens_of(self.pictures.get(..1).unwrap_or_default());
        Dims::new()
            .with(Symbol::PASSES, passes)
            .with(Symbol::BATCH, self.batch * passes)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(DRAWN_TOKENS, drawn)
            .with(REFERENCE_TOKENS, image - drawn)
            .with(Symbol::TEXT_TOKENS, text)
            .with(Symbol::JOINT_TOKENS, image.saturating_add(text))
            .with(TIMES, evaluations)
            .with_texts(&TEXT_OF_PASSES, &self.texts)
    }
}
