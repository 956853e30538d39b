//! What comes back of a request.

use std::collections::BTreeMap;
use std::time::Duration;

use super::request::Settings;
use crate::ggml::Usage;
use crate::image::Image;
use crate::models::safety_checker::Verdict;
use crate::plan::{Phase, Plan};

/// What a phase was planned to take and took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PhaseMemory {
    /// The phase.
    pub phase: Phase,
    /// The number of the device.
    pub device: usize,
    /// Whether it is one of the second pass.
    pub second: bool,
    /// The planned peak in bytes.
    pub planned: usize,
    /// What was allocated at most.
    pub measured: Usage,
    /// On a GPU: the most bytes that its backend had allocated, by its own allocators' account.
    pub allocated: Option<usize>,
    /// Bytes of weights that were brought.
    pub moved: u64,
    /// How long the computation waited for them.
    pub waited: Duration,
    /// Bytes of numbers that went to the device and came from there beside weights. What one device gives another comes this way.
    pub exchanged: u64,
}

/// What a device was planned to hold in a request and held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Its name.
    pub device: String,
    /// The most bytes that were allowed.
    pub limit: Option<usize>,
    /// The planned peak in bytes.
    pub planned: usize,
    /// What was allocated, with its peak.
    pub measured: Usage,
}

/// How long each phase took.
pub type Timings = BTreeMap<&'static str, Duration>;

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The pictures. Of videos, all frames of the first, then those of the second: as many as the settings say.
    pub images: Vec<Image>,
    /// The latents after the last step, in the denoiser's space: `[w/8, h/8, F, C, batch]`.
    pub latents: Vec<f32>,
    /// The extents of `latents`, in ggml order.
    pub latent_dims: [usize; 5],
    /// The settings that made them.
    pub settings: Settings,
    /// How long each phase took.
    pub timings: Timings,
    /// What was allocated on the device, with its peak; of several, on the first.
    pub memory: Usage,
    /// The same for each device.
    pub devices: Vec<DeviceMemory>,
    /// The same for each phase on each device that had a part in it, beside what was planned.
    pub phases: Vec<PhaseMemory>,
    /// The plan that was followed.
    pub plan: Plan,
    /// Bytes of weights that were used where they lie in the file.
    pub mapped_bytes: usize,
    /// With a step cache, for each pass, which evaluations were computed; empty without one.
    pub computed: Vec<Vec<bool>>,
    /// What the safety checker says of each picture; empty without one.
    pub verdicts: Vec<Verdict>,
}

impl Generated {
    /// The extents of the latents as they are published: without the frames where there is one, `[w/8, h/8, C, batch]`.
    pub fn latent_extents(&self) -> Vec<usize> {
        published_extents(self.latent_dims)
    }

    /// How long `phase` took.
    pub fn time(&self, phase: Phase) -> Duration {
        self.timings.get(phase.name()).copied().unwrap_or_default()
    }

    /// Whether the safety checker flagged each picture; empty without one.
    pub fn flagged(&self) -> Vec<bool> {
        self.verdicts.iter().map(|verdict| verdict.flagged).collect()
    }
}

/// The extents `dims` of latents as they are published: a picture has no frames.
pub fn published_extents([w, h, frames, channels, batch]: [usize; 5]) -> Vec<usize> {
    match frames {
        1 => vec![w, h, channels, batch],
        _ => vec![w, h, frames, channels, batch],
    }
}
