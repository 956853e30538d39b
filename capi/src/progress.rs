//! From the pipeline's events to the callbacks of a request.

use std::ffi::{c_char, c_void};
use std::mem::size_of;
use std::time::Instant;

use pinhole::ggml::CancelFlag;
use pinhole::pipeline::{Event, Observer, Phase};
use pinhole::{Error, Result};

use crate::image::Image;
use crate::text;

/// `pinhole_progress`
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct Progress {
    pub struct_size: usize,
    pub phase: i32,
    pub step: i32,
    pub steps: i32,
    pub stage: i32,
    pub stages: i32,
    pub reserved: i32,
    pub bytes_moved: u64,
    pub bytes_total: u64,
    pub seconds: f64,
    pub seconds_left: f64,
}

/// `pinhole_progress_fn`
pub(crate) type ProgressFn = Option<unsafe extern "C" fn(*const Progress, *mut c_void) -> i32>;
/// `pinhole_warning_fn`
pub(crate) type WarningFn = Option<unsafe extern "C" fn(*const c_char, *mut c_void) -> i32>;
/// `pinhole_preview_fn`
pub(crate) type PreviewFn = Option<unsafe extern "C" fn(*const Image, i32, i32, i32, *mut c_void) -> i32>;

/// `pinhole_frame_fn`
pub(crate) type FrameFn = Option<unsafe extern "C" fn(*const Image, i32, i32, i32, *mut c_void) -> i32>;

/// The header's numbers of phases.
pub(crate) const PREPARE: i32 = 0;
pub(crate) const CONVERT: i32 = 4;

/// The header's number of a phase.
pub(crate) fn number(phase: Phase) -> i32 {
    match phase {
        Phase::Encode => 1,
        Phase::Denoise => 2,
        Phase::Decode => 3,
        Phase::Condition => 5,
        Phase::Safety => 6,
        Phase::Upscale => 7,
        _ => PREPARE,
    }
}

/// The callbacks of a request.
#[derive(Clone, Copy)]
pub(crate) struct Callbacks {
    pub(crate) progress: ProgressFn,
    pub(crate) warning: WarningFn,
    pub(crate) preview: PreviewFn,
    pub(crate) frame: FrameFn,
    pub(crate) user_data: *mut c_void,
}

impl Callbacks {
    /// Those of work that draws nothing.
    pub(crate) fn without_pictures(progress: ProgressFn, warning: WarningFn, user_data: *mut c_void) -> Callbacks {
        Callbacks { progress, warning, preview: None, frame: None, user_data }
    }
}

/// Tells the callbacks how far a request is.
pub(crate) struct Watch {
    callbacks: Callbacks,
    cancel: CancelFlag,
    now: Progress,
    started: Instant,
    phase_started: Instant,
}

impl Watch {
    pub(crate) fn new(callbacks: Callbacks, cancel: CancelFlag) -> Watch {
        let now = Progress {
            struct_size: size_of::<Progress>(),
            phase: PREPARE,
            step: 0,
            steps: 0,
            stage: 0,
            stages: 0,
            reserved: 0,
            bytes_moved: 0,
            bytes_total: 0,
            seconds: 0.0,
            seconds_left: -1.0,
        };
        let started = Instant::now();
        Watch { callbacks, cancel, now, started, phase_started: started }
    }

    /// A phase begins.
    pub(crate) fn begin(&mut self, phase: i32, stages: usize, steps: usize) -> Result<()> {
        let [stages, steps] = [stages, steps].map(|count| i32::try_from(count).unwrap_or(i32::MAX));
        self.now = Progress { phase, stages, steps, stage: 0, step: 0, bytes_moved: 0, bytes_total: 0, ..self.now };
        self.phase_started = Instant::now();
        self.tell()
    }

    /// `done` bytes of `total` are converted.
    pub(crate) fn bytes(&mut self, done: u64, total: u64) -> Result<()> {
        self.now = Progress { bytes_moved: done, bytes_total: total, ..self.now };
        self.tell()
    }

    /// How much of the phase is done, from 0 to 1.
    fn done(&self) -> f64 {
        match self.now {
            Progress { bytes_total: total @ 1.., bytes_moved, .. } => bytes_moved as f64 / total as f64,
            Progress { stages: total @ 1.., stage, .. } => f64::from(stage) / f64::from(total),
            _ => 0.0,
        }
    }

    fn tell(&mut self) -> Result<()> {
        let done = self.done();
        let spent = self.phase_started.elapsed().as_secs_f64();
        self.now.seconds = self.started.elapsed().as_secs_f64();
        self.now.seconds_left = if done > 0.0 { spent / done * (1.0 - done) } else { -1.0 };
        // SAFETY: the header's contract for the callback; the struct lives through the call.
        let answer = self.callbacks.progress.map(|tell| unsafe { tell(&self.now, self.callbacks.user_data) });
        self.heed(answer)
    }

    /// Warns of `message`.
    pub(crate) fn warn(&mut self, message: String) -> Result<()> {
        let Some(warn) = self.callbacks.warning else { return self.heed(None) };
        let message = text::owned(message);
        // SAFETY: the header's contract for the callback; the text lives through the call.
        let answer = unsafe { warn(message.as_ptr(), self.callbacks.user_data) };
        self.heed(Some(answer))
    }

    /// Gives `show`, the callback for previews or that for frames, picture `index` behind `done` of `all`.
    fn show(&self, show: PreviewFn, image: pinhole::image::Image, [index, done, all]: [usize; 3]) -> Result<()> {
        let image = &Image::preview(image);
        let [index, step, steps] = [index, done, all].map(|count| i32::try_from(count).unwrap_or(i32::MAX));
        // SAFETY: the header's contract for the callback; the image lives through the call.
        let answer = show.map(|show| unsafe { show(image, index, step, steps, self.callbacks.user_data) });
        self.heed(answer)
    }

    /// What a callback answered, and whether somebody asked for a stop meanwhile.
    fn heed(&self, answer: Option<i32>) -> Result<()> {
        match answer {
            None | Some(0) => self.cancel.check(),
            Some(_) => Err(Error::Cancelled),
        }
    }
}

impl Observer for Watch {
    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Planned(_) => self.begin(PREPARE, 0, 0),
            Event::Begin { phase, stages, steps } => self.begin(number(phase), stages, steps),
            Event::Stage => {
                self.now.stage = self.now.stage.saturating_add(1);
                self.tell()
            }
            Event::Step { done, .. } => {
                self.now.step = i32::try_from(done).unwrap_or(i32::MAX);
                self.tell()
            }
            Event::Moved { bytes } => {
                self.now.bytes_moved = bytes;
                Ok(())
            }
            Event::Warning(message) => self.warn(message),
            Event::Preview { image, index, done, steps } => {
                self.show(self.callbacks.preview, image, [index, done, steps])
            }
            Event::Frame { image, index, frame, frames } => {
                self.show(self.callbacks.frame, image, [index, frame, frames])
            }
            _ => self.heed(None),
        }
    }
}
