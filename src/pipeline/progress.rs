//! What a request tells while it runs.

use crate::Result;
use crate::image::Image;
use crate::plan::{Phase, Plan};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// What will be on the device, before anything is.
    Planned(Plan),
    /// A phase begins, of `stages` stages in all.
    Begin {
        /// The phase.
        phase: Phase,
        /// How many [`Event::Stage`] will follow.
        stages: usize,
        /// How many steps they make up.
        steps: usize,
    },
    /// A stage of the current phase is done.
    Stage,
    /// Weights were brought to the device.
    Moved {
        /// How many bytes, in this phase so far.
        bytes: u64,
    },
    /// What the latents look like, in an eighth of the picture's size; see [`Request::preview`](super::Request::preview).
    Preview {
        /// The picture.
        image: Image,
        /// Which of the batch.
        index: usize,
        /// Steps that are done.
        done: usize,
        /// Of how many.
        steps: usize,
    },
    /// A frame of a video is decoded.
    Frame {
        /// The frame.
        image: Image,
        /// Which video of the batch.
        index: usize,
        /// Which frame of it.
        frame: usize,
        /// Of how many.
        frames: usize,
    },
    /// A denoising step is done.
    Step {
        /// How many are done.
        done: usize,
        /// Of how many.
        steps: usize,
    },
    /// The current phase is over.
    End {
        /// The phase.
        phase: Phase,
    },
    /// Something that the user should know, and that stops nothing.
    Warning(String),
}

/// Who listens. An error it returns ends the request, so that a listener can cancel.
pub trait Observer {
    /// Hears of `event`.
    ///
    /// # Errors
    /// Any error, [`Error::Cancelled`](crate::Error::Cancelled) usually, to end the request.
    fn event(&mut self, event: Event) -> Result<()>;
}

impl<F: FnMut(Event) -> Result<()>> Observer for F {
    fn event(&mut self, event: Event) -> Result<()> {
        self(event)
    }
}
