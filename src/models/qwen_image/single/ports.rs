//! The ports of the model, and the sizes of a request.

use pinhole_quant::DType;

use super::config::Config;
use crate::models::qwen_image::declare::{carried, input};
use crate::models::qwen_image::ports::{TIME_WIDTH, TIMES};
use crate::stage::{Dims, Extent, Lifetime, Model, Port, Symbol};

/// How many pictures are looked at, at most.
pub const MOST_REFERENCES: usize = 10;

/// How many pictures are looked at.
pub(super) const REFERENCES: Symbol = Symbol::new("pictures that are looked at");

/// The tokens of these pictures and of the prompt, and those of these pictures and of the one that is drawn.
pub(super) const PREFIX_TOKENS: Symbol = Symbol::new("tokens of the prompt and of the pictures that are looked at");
const LATENT_TOKENS: Symbol = Symbol::new("tokens of all pictures");

/// A picture between the words of a prompt.
#[derive(Clone, Copy)]
pub(super) struct Between {
    /// Its tokens.
    pub(super) picture: Symbol,
    /// Those of the text between it and the picture before.
    pub(super) text: Symbol,
}

impl Between {
    const fn new(picture: &'static str, text: &'static str) -> Between {
        Between { picture: Symbol::new(picture), text: Symbol::new(text) }
    }
}

pub(super) const BETWEEN: [Between; MOST_REFERENCES] = [
    Between::new("tokens of picture 1", "text tokens before picture 1"),
    Between::new("tokens of picture 2", "text tokens before picture 2"),
    Between::new("tokens of picture 3", "text tokens before picture 3"),
    Between::new("tokens of picture 4", "text tokens before picture 4"),
    Between::new("tokens of picture 5", "text tokens before picture 5"),
    Between::new("tokens of picture 6", "text tokens before picture 6"),
    Between::new("tokens of picture 7", "text tokens before picture 7"),
    Between::new("tokens of picture 8", "text tokens before picture 8"),
    Between::new("tokens of picture 9", "text tokens before picture 9"),
    Between::new("tokens of picture 10", "text tokens before picture 10"),
];

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
    /// `[Tp, Tt]`: see [`SingleStream::mask`](super::SingleStream::mask).
    pub mask: Port,
    /// `[d, 1, T, tables]`: see [`SingleStream::rotary`](super::SingleStream::rotary).
    pub cos: Port,
    /// `[d, 1, T, tables]`: see [`SingleStream::rotary`](super::SingleStream::rotary).
    pub sin: Port,
    /// `[B]`, I32: which time each item of the batch is computed at in this step.
    pub condition: Port,
    /// `[C, Ti + Tr, B]`: packed latents, and behind them those of the pictures that the model looks at.
    pub latents: Port,
    /// `[C, Ti, B]`: the velocity.
    pub prediction: Port,
}

/// Declares where a request is put.
pub(super) fn declare_ports(model: &mut Model, config: &Config) -> Ports {
    let (batch, text) = (Extent::from(Symbol::BATCH), Extent::from(Symbol::TEXT_TOKENS));
    let prefix = Extent::from(PREFIX_TOKENS);
    let table = [config.attention_head_dim.into(), 1.into(), Symbol::JOINT_TOKENS.into(), Symbol::TABLES.into()];
    Ports {
        time: input(model, "time", &[TIME_WIDTH.into(), TIMES.into()]),
        text: input(model, "text", &[config.context_in_dim.into(), text, batch]),
        mask: input(model, "mask", &[prefix, text]),
        cos: input(model, "cos", &table),
        sin: input(model, "sin", &table),
        condition: model.port("condition", &[batch], DType::I32, Lifetime::Pass),
        latents: carried(model, "latents", config.in_channels, LATENT_TOKENS),
        prediction: carried(model, "prediction", config.in_channels, Symbol::IMAGE_TOKENS),
    }
}

/// Tokens of one kind in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// So many tokens of the text.
    Text(usize),
    /// A picture of so many rows and columns.
    Picture([usize; 2]),
}

impl Run {
    pub(super) fn tokens(self) -> usize {
        match self {
            Run::Text(tokens) => tokens,
            Run::Picture([rows, columns]) => rows.saturating_mul(columns),
        }
    }
}

/// The sizes of a request: `batch` pictures, of `image` tokens each, and the prompt of each pass, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Pictures.
    pub batch: usize,
    /// Rows and columns of tokens of a picture.
    pub image: [usize; 2],
    /// The same of each picture that the model looks at.
    pub references: Vec<[usize; 2]>,
    /// How many tokens of the text stand before each of these, behind the one before.
    pub gaps: Vec<usize>,
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

    /// `Tr`
    pub fn reference_tokens(&self) -> usize {
        self.references.iter().fold(0, |sum, [rows, columns]| sum.saturating_add(rows.saturating_mul(*columns)))
    }

    /// `Tp`
    pub fn prefix_tokens(&self) -> usize {
        self.text_tokens().saturating_add(self.reference_tokens())
    }

    /// The runs of tokens before the picture that is drawn, with room for a text of `room` tokens.
    pub(super) fn runs(&self, room: usize) -> Vec<Run> {
        let (mut runs, mut text) = (Vec::with_capacity(2 * self.references.len() + 1), 0);
        for (&picture, &gap) in self.references.iter().zip(&self.gaps) {
            runs.extend([Run::Text(gap), Run::Picture(picture)]);
            text += gap;
        }
        runs.push(Run::Text(room.saturating_sub(text)));
        runs
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
        let (image, text, prefix) = (self.image_tokens(), self.text_tokens(), self.prefix_tokens());
        let mut dims = Dims::new()
            .with(REFERENCES, self.references.len())
            .with(PREFIX_TOKENS, prefix)
            .with(LATENT_TOKENS, image.saturating_add(self.reference_tokens()));
        for ((&[rows, columns], &gap), between) in self.references.iter().zip(&self.gaps).zip(BETWEEN) {
            dims = dims.with(between.picture, rows.saturating_mul(columns)).with(between.text, gap);
        }
        dims.with(Symbol::PASSES, passes)
            .with(Symbol::BATCH, self.batch * passes)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(Symbol::TEXT_TOKENS, text)
            .with(Symbol::JOINT_TOKENS, image.saturating_add(prefix))
            .with(TIMES, evaluations + 1)
            .with(Symbol::TABLES, self.tables())
            .with_texts(&TEXT_OF_PASSES, &self.texts)
    }
}
