//! The ports of the model, and the sizes of a request.

use crate::stage::{Dims, Port, Symbol};

/// Width of the sinusoidal embedding of time.
pub const TIME_WIDTH: usize = 256;

/// The epsilon of every norm.
pub(super) const EPS: f32 = 1e-6;

/// How many times there are: evaluations, since modulation depends on nothing else, and one more if something is modulated as at time
/// 0.
pub const TIMES: Symbol = Symbol::new("times");

/// Tokens of the text of each pass. The longest is [`Symbol::TEXT_TOKENS`].
pub const TEXT_OF_PASSES: [Symbol; 2] =
    [Symbol::new("tokens of the first pass's text"), Symbol::new("tokens of the second pass's text")];

/// The tokens of a picture that is drawn. [`Symbol::IMAGE_TOKENS`] has those of all pictures.
pub const DRAWN_TOKENS: Symbol = Symbol::new("tokens of the picture that is drawn");

/// The tokens of the prompt, in every pass; and those of the picture and the prompt.
const PROMPT_TOKENS: Symbol = Symbol::new("tokens of the prompt");
const PROMPT_JOINT: Symbol = Symbol::new("tokens of the picture and the prompt");

/// What blocks are as large as. Their image has [`Symbol::IMAGE_TOKENS`].
#[derive(Clone, Copy)]
pub(super) struct Extents {
    /// Items side by side: the first of the batch.
    pub(super) items: Symbol,
    /// Tokens of the text.
    pub(super) text: Symbol,
    /// Tokens of image and text.
    pub(super) joint: Symbol,
}

impl Extents {
    /// The model's own.
    pub(super) const OWN: Extents =
        Extents { items: Symbol::BATCH, text: Symbol::TEXT_TOKENS, joint: Symbol::JOINT_TOKENS };

    /// Those of ControlNets, which compute for the prompt alone.
    pub(super) const PROMPT: Extents = Extents { items: Symbol::PICTURES, text: PROMPT_TOKENS, joint: PROMPT_JOINT };
}

/// The ports that carry the request into the model, and the prediction out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[256, times]`: [`sinusoid`](super::sinusoid) of each time.
    pub time: Port,
    /// `[J, Tt, B]`: the prompt's hidden states, zeros behind them.
    pub text: Port,
    /// `[d, 1, T]`: see [`QwenImage::rotary`](super::QwenImage::rotary).
    pub cos: Port,
    /// `[d, 1, T]`: see [`QwenImage::rotary`](super::QwenImage::rotary).
    pub sin: Port,
    /// `[B]`, I32: which time each item of the batch is computed at in this step.
    pub condition: Port,
    /// `[C, Ti, B]`: packed latents, and behind them those of the pictures that the model looks at.
    pub latents: Port,
    /// `[C, Ti, B]`: the velocity. What stands behind the tokens of the picture that is drawn means nothing.
    pub prediction: Port,
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
    /// Tokens of one picture.
    fn tokens_of([rows, columns]: [usize; 2]) -> usize {
        rows.saturating_mul(columns)
    }

    /// Tokens of the picture that is drawn.
    pub fn drawn_tokens(&self) -> usize {
        self.pictures.first().map_or(0, |&picture| Sizes::tokens_of(picture))
    }

    /// `Ti`
    pub fn image_tokens(&self) -> usize {
        self.pictures.iter().fold(0, |sum, &picture| sum.saturating_add(Sizes::tokens_of(picture)))
    }

    /// `Tt`
    pub fn text_tokens(&self) -> usize {
        self.texts.iter().copied().max().unwrap_or(0)
    }

    /// The sizes that ControlNets need beside the model's.
    pub fn control_dims(&self, dims: Dims) -> Dims {
        let (image, prompt) = (self.image_tokens(), self.texts.first().copied().unwrap_or(0));
        dims.with(Symbol::PICTURES, self.batch)
            .with(PROMPT_TOKENS, prompt)
            .with(PROMPT_JOINT, image.saturating_add(prompt))
    }

    /// The sizes for so many `times`.
    pub fn dims(&self, times: usize) -> Dims {
        let passes = self.texts.len();
        let (image, text) = (self.image_tokens(), self.text_tokens());
        Dims::new()
            .with(Symbol::PASSES, passes)
            .with(Symbol::BATCH, self.batch * passes)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(DRAWN_TOKENS, self.drawn_tokens())
            .with(Symbol::TEXT_TOKENS, text)
            .with(Symbol::JOINT_TOKENS, image.saturating_add(text))
            .with(TIMES, times)
            .with_texts(&TEXT_OF_PASSES, &self.texts)
    }
}
