//! The ports of the model, and the sizes of a request.

use crate::stage::{Dims, Port, Symbol};

/// How many times there are: evaluations, and one more if the tokens of a given frame have their own.
pub const TIMES: Symbol = Symbol::new("times");

/// The tokens of a given frame, which are at time 0.
pub const GIVEN_TOKENS: Symbol = Symbol::new("tokens of the given frame");

/// The tokens of a picture that is referred to, which stand before those of the video.
pub const REFERENCE_TOKENS: Symbol = Symbol::new("tokens of the picture that is referred to");

/// All tokens that look at each other: those of the video, with what stands before them.
pub const ALL_TOKENS: Symbol = Symbol::new("tokens of the video, with what stands before them");

/// The tokens of what a vision tower sees of all pictures.
pub const SEEN_TOKENS: Symbol = Symbol::new("tokens of the pictures that are seen");

/// The ports that carry the request into the model, and the prediction out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[freq_dim, times]`: the sinusoidal embedding of each time.
    pub time: Port,
    /// `[J, Tt, B]`: the prompt's hidden states, zeros behind them.
    pub text: Port,
    /// `[V, Ts, B]`: what a vision tower sees, for models that look at it.
    pub seen: Option<Port>,
    /// `[4 O, Tr, B]`: packed latents of a picture, for models that refer to one.
    pub reference: Option<Port>,
    /// `[d, 1, Tr + T]`: see [`Wan::rotary`](super::Wan::rotary).
    pub cos: Port,
    /// `[d, 1, Tr + T]`: see [`Wan::rotary`](super::Wan::rotary).
    pub sin: Port,
    /// `[1]`: how strongly the film beside the latents works, in models of VACE.
    pub guide_scale: Option<Port>,
    /// `[B]`, I32: which time each item of the batch is computed at in this step.
    pub condition: Port,
    /// `[4 C, T, B]`: packed latents, with what stands beside them, and the film behind that.
    pub latents: Port,
    /// `[4 O, T, B]`: the velocity, packed in another order.
    pub prediction: Port,
}

/// The sizes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Videos times guidance passes, and these.
    pub batch: usize,
    /// Guidance passes.
    pub passes: usize,
    /// Frames, rows and columns of tokens of the video.
    pub grid: [usize; 3],
    /// Whether tokens of a picture stand before them, as if it were one more frame.
    pub refers: bool,
    /// `Tt`
    pub text_tokens: usize,
    /// `Ts`; 0 for models that look at no pictures.
    pub seen_tokens: usize,
    /// Whether the first frame is given, and at time 0.
    pub gives_first: bool,
}

impl Sizes {
    /// `T`
    pub fn tokens(&self) -> usize {
        self.grid.iter().copied().fold(1, usize::saturating_mul)
    }

    /// Tokens of the given frame.
    pub fn given_tokens(&self) -> usize {
        if self.gives_first { self.frame_tokens() } else { 0 }
    }

    /// `Tr`
    pub fn reference_tokens(&self) -> usize {
        if self.refers { self.frame_tokens() } else { 0 }
    }

    fn frame_tokens(&self) -> usize {
        let [_, rows, columns] = self.grid;
        rows.saturating_mul(columns)
    }

    /// Frames, rows and columns of all tokens.
    pub fn whole_grid(&self) -> [usize; 3] {
        let [frames, rows, columns] = self.grid;
        [frames + usize::from(self.refers), rows, columns]
    }

    /// The sizes for so many `evaluations`.
    pub fn dims(&self, evaluations: usize) -> Dims {
        Dims::new()
            .with(Symbol::PASSES, self.passes)
            .with(Symbol::BATCH, self.batch)
            .with(Symbol::IMAGE_TOKENS, self.tokens())
            .with(REFERENCE_TOKENS, self.reference_tokens())
            .with(ALL_TOKENS, self.tokens().saturating_add(self.reference_tokens()))
            .with(Symbol::TEXT_TOKENS, self.text_tokens)
            .with(SEEN_TOKENS, self.seen_tokens)
            .with(GIVEN_TOKENS, self.given_tokens())
            .with(TIMES, evaluations + usize::from(self.gives_first))
    }
}
