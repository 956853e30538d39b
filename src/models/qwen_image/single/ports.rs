//! The ports of the model, and the sizes of a request.

use pinhole_quant::DType;

use super::config::Config;
use crate::models::qwen_image::declare::{carried, input};
use crate::models::qwen_image::ports::{TIME_WIDTH, TIMES};
use crate::stage::{Dims, Extent, Lifetime, Model, Port, Symbol};

/// Tokens of the text of each pass. The longest is [`Symbol::TEXT_TOKENS`].
pub const TEXT_OF_PASSES: [Symbol; 2] =
    [Symbol::new("tokens of the first pass's prompt"), Symbol::new("tokens of the second pass's prompt")];

/// The ports that carry the request into the model, and the prediction out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[256, times]`: [`sinusoid`](super::sinusoid) of each time, and behind them that of time 0.
    pub time: Port,
    /// `[J, Tt, B]`: the prompt's hidden states, zeros behind them.
    pub text: Port,
    /// `[Tt, Tt]`: a [causal mask](crate::models::language_model::causal_mask) for the prompt.
    pub mask: Port,
    /// `[d, 1, T, tables]`: see [`SingleStream::rotary`](super::SingleStream::rotary).
    pub cos: Port,
    /// `[d, 1, T, tables]`: see [`SingleStream::rotary`](super::SingleStream::rotary).
    pub sin: Port,
    /// `[B]`, I32: which time each item of the batch is computed at in this step.
    pub condition: Port,
    /// `[C, Ti, B]`: packed latents.
    pub latents: Port,
    /// `[C, Ti, B]`: the velocity.
    pub prediction: Port,
}

/// Declares where a request is put.
pub(super) fn declare_ports(model: &mut Model, config: &Config) -> Ports {
    let (batch, text) = (Extent::from(Symbol::BATCH), Extent::from(Symbol::TEXT_TOKENS));
    let table = [config.attention_head_dim.into(), 1.into(), Symbol::JOINT_TOKENS.into(), Symbol::TABLES.into()];
    Ports {
        time: input(model, "time", &[TIME_WIDTH.into(), TIMES.into()]),
        text: input(model, "text", &[config.context_in_dim.into(), text, batch]),
        mask: input(model, "mask", &[text, text]),
        cos: input(model, "cos", &table),
        sin: input(model, "sin", &table),
        condition: model.port("condition", &[batch], DType::I32, Lifetime::Pass),
        latents: carried(model, "latents", config.in_channels, Symbol::IMAGE_TOKENS),
        prediction: carried(model, "prediction", config.in_channels, Symbol::IMAGE_TOKENS),
    }
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
        self.image[0].saturating_mul(self.image[1])
    }

    /// `Tt`
    pub fn text_tokens(&self) -> usize {
        self.texts.iter().copied().max().unwrap_or(0)
    }

    /// Whether texts have different lengths.
    fn differ(&self) -> bool {
        self.texts.iter().any(|&tokens| tokens != self.text_tokens())
    }

    /// How many rotary tables there are: one, or one for each item of the batch if texts have different lengths, since the picture
    /// stands behind the text.
    pub fn tables(&self) -> usize {
        if self.differ() { self.batch * self.texts.len() } else { 1 }
    }

    /// The sizes for so many `evaluations`. There is one time more, time 0.
    pub fn dims(&self, evaluations: usize) -> Dims {
        let passes = self.texts.len();
        let (image, text) = (self.image_tokens(), self.text_tokens());
        let mut dims = Dims::new()
            .with(Symbol::PASSES, passes)
            .with(Symbol::BATCH, self.batch * passes)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(Symbol::TEXT_TOKENS, text)
            .with(Symbol::JOINT_TOKENS, image.saturating_add(text))
            .with(TIMES, evaluations + 1)
            .with(Symbol::TABLES, self.tables());
        for (pass, (symbol, &tokens)) in TEXT_OF_PASSES.into_iter().zip(&self.texts).enumerate() {
            dims = dims.with(symbol, tokens);
            if self.differ() {
                dims = dims.with_in_pass(pass, TEXT_OF_PASSES[0], tokens);
            }
        }
        dims
    }
}
