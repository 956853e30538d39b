//! The ports of the model, and the sizes of a request.

use crate::stage::{Dims, Port, Symbol};

/// Width of the sinusoidal embedding of time.
pub const TIME_WIDTH: usize = 256;

/// What picture and prompt are filled up to a multiple of, in tokens.
pub const MULTIPLE: usize = 32;

/// The epsilon of queries' and keys' norms.
pub(super) const HEAD_EPS: f32 = 1e-5;

/// The epsilon of the last norm.
pub(super) const FINAL_EPS: f32 = 1e-6;

/// Tokens of the text of each pass, filled up. The longest is [`Symbol::TEXT_TOKENS`].
pub const TEXT_OF_PASSES: [Symbol; 2] =
    [Symbol::new("text tokens of the first pass"), Symbol::new("text tokens of the second pass")];

/// `tokens` filled up to a multiple of [`MULTIPLE`].
pub fn filled_up(tokens: usize) -> usize {
    tokens.div_ceil(MULTIPLE).saturating_mul(MULTIPLE)
}

/// The ports that carry the request into the model, and the prediction out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[256, N]`: [`sinusoid`](super::sinusoid) of each condition's time.
    pub time: Port,
    /// `[J, Tt, B]`: the prompt's hidden states, zeros behind them.
    pub text: Port,
    /// `[1, Tt, B]`: 1 for tokens of the prompt, 0 for those behind them.
    pub text_kept: Port,
    /// `[1, Ti]`: 1 for tokens of the picture, 0 for those behind them.
    pub image_kept: Port,
    /// `[d, 1, T, tables]`: see [`ZImage::rotary`](super::ZImage::rotary).
    pub cos: Port,
    /// `[d, 1, T, tables]`: see [`ZImage::rotary`](super::ZImage::rotary).
    pub sin: Port,
    /// `[B]`, I32: which condition each item of the batch is computed under in this step.
    pub condition: Port,
    /// `[C, Ti, B]`: packed latents, zeros behind them.
    pub latents: Port,
    /// `[C, Ti, B]`: the negated velocity. What stands behind the picture's tokens means nothing.
    pub prediction: Port,
}

/// The sizes of a request: `batch` pictures, of `image` tokens each, and the prompt of each pass, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Pictures.
    pub batch: usize,
    /// Rows and columns of tokens of a picture.
    pub image: [usize; 2],
    /// Tokens of each pass's prompt.
    pub texts: Vec<usize>,
}

impl Sizes {
    /// `Ti`
    pub fn image_tokens(&self) -> usize {
        filled_up(self.image[0].saturating_mul(self.image[1]))
    }

    /// `Tt`
    pub fn text_tokens(&self) -> usize {
        self.texts.iter().map(|&tokens| filled_up(tokens)).max().unwrap_or(0)
    }

    /// Whether texts have different lengths.
    fn differ(&self) -> bool {
        self.texts.iter().any(|&tokens| filled_up(tokens) != self.text_tokens())
    }

    /// How many rotary tables there are: one, or one for each item of the batch if texts have different lengths, since the picture
    /// stands behind the text.
    pub fn tables(&self) -> usize {
        if self.differ() { self.batch * self.texts.len() } else { 1 }
    }

    /// The sizes for `evaluations` evaluations.
    pub fn dims(&self, evaluations: usize) -> Dims {
        let passes = self.texts.len();
        let (image, text) = (self.image_tokens(), self.text_tokens());
        let texts: Vec<usize> = self.texts.iter().map(|&tokens| filled_up(tokens)).collect();
        Dims::new()
            .with(Symbol::PASSES, passes)
            .with(Symbol::BATCH, self.batch * passes)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(Symbol::TEXT_TOKENS, text)
            .with(Symbol::JOINT_TOKENS, image.saturating_add(text))
            .with(Symbol::CONDITIONS, evaluations * passes)
            .with(Symbol::TABLES, self.tables())
            .with_texts(&TEXT_OF_PASSES, &texts)
    }
}
