//! Prompts as the denoiser takes them.

use crate::text::PromptSyntax;
use crate::{Result, reserve};

/// A prompt as the denoiser takes it: the numbers of each of `Encoders::arrays`.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt(pub Vec<Vec<f32>>);

impl Prompt {
    /// A prompt of zeros.
    pub(super) fn zeros(arrays: &[ArraySpec]) -> Result<Prompt> {
        let zeros = arrays.iter().map(|array| reserve::repeat("a prompt", &[0.0], array.elements()));
        Ok(Prompt(zeros.collect::<Result<_>>()?))
    }
}

/// An array of a [`Prompt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArraySpec {
    /// Its name in files.
    pub name: &'static str,
    /// Its extents in ggml order.
    pub dims: Vec<usize>,
}

impl ArraySpec {
    /// How many numbers it has.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// A prompt, with a negative one where there is one, as the denoiser takes it. Requests that are given it need no text
/// encoder, and draw what they would have drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    /// The prompt, and behind it the negative one.
    pub(super) prompts: Vec<Prompt>,
    /// The text of the negative prompt.
    pub(super) negative: Option<String>,
    /// Whether zeros stand for it.
    pub(super) negative_is_zero: bool,
    /// Whether zeros stand for the prompt.
    pub(super) is_zero: bool,
    /// Tokens that were read of each prompt, at most.
    pub(super) tokens: usize,
    /// Tokens of each prompt.
    pub(super) lengths: Vec<usize>,
    /// How their texts were read.
    pub(super) syntax: PromptSyntax,
    /// The digest of the text encoders that made them, if they go from one pipeline to another.
    pub(super) encoders: Option<[u8; 32]>,
}
