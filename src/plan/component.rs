//! What a plan is made from: the bytes of a component's stages and of the ways to compute it.

use super::{Batch, Phase, Runs, Way, Work};
use crate::stage::{Cadence, TokenShare};

/// The weights of one stage, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageBytes {
    /// Its name.
    pub name: String,
    /// When it runs.
    pub cadence: Cadence,
    /// On the device, in the device's formats and aligned.
    pub weights: usize,
    /// Used where they lie in the file.
    pub mapped: usize,
    /// All of them in the file.
    pub file: usize,
    /// Whether its weights have to stay: another stage uses them too, or it runs in steps that skip others.
    pub stays: bool,
    /// In how many steps it does not run, and its weights do not move.
    pub idle: usize,
    /// The same in all passes together, if these are computed one after the other.
    pub idle_apart: usize,
}

/// A way to compute a component: the same result for less memory and more time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What it is.
    pub way: Way,
    /// How much of the batch is computed at once.
    pub batch: Batch,
    /// Bytes of all ports, packed, or of what a strip exchanges with them.
    pub ports: usize,
    /// Bytes of ports that are in host memory beside the device's, or wait there for their turn.
    pub host: usize,
    /// Bytes of the largest stage's intermediate results.
    pub activations: usize,
    /// Bytes that the backend takes beside, for the stage that needs most.
    pub scratch: usize,
    /// How many graphs there are.
    pub graphs: usize,
}

impl Variant {
    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.ports.saturating_add(self.activations).saturating_add(self.scratch)
    }
}

/// What a component takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Its name.
    pub name: &'static str,
    /// The phase in which it runs.
    pub phase: Phase,
    /// Its stages in the order in which they run.
    pub stages: Vec<StageBytes>,
    /// The ways to compute it, fastest first; at least one.
    pub variants: Vec<Variant>,
    /// How often its stages run if all is computed at once.
    pub runs: Runs,
    /// Bytes of host memory that the request takes beside it at the same time: numbers on their way to its ports and from there.
    pub beside: usize,
    /// Bytes on the device that something else takes at the same time: what makes previews.
    pub company: usize,
    /// By stage: whether the device computes it; empty if it computes all. Stages of other devices have no bytes here.
    pub own: Vec<bool>,
    /// Which tokens the device computes.
    pub share: TokenShare,
    /// What it has to do in a step.
    pub work: Work,
}

impl Component {
    /// The same where its variant number `variant` is computed: its stages run as often as that takes.
    pub(super) fn in_variant(&self, variant: usize) -> Component {
        let mut component = self.clone();
        if let Some(variant) = self.variants.get(variant) {
            component.runs = variant.way.runs(variant.batch.runs(self.runs));
            for stage in &mut component.stages {
                stage.idle = variant.batch.idle([stage.idle, stage.idle_apart]);
            }
        }
        component
    }

    /// The same beside `other`, computed as its variant number `variant` with all of its weights on the device.
    pub(super) fn beside(&self, other: &Component, variant: usize) -> Component {
        let Some(chosen) = other.variants.get(variant) else { return self.clone() };
        let mut variants = self.variants.clone();
        for own in &mut variants {
            own.graphs = own.graphs.saturating_add(chosen.graphs);
        }
        let of_host = [self.beside, other.beside, other.pages(), chosen.host];
        Component {
            variants,
            company: self.company.saturating_add(other.weights()).saturating_add(chosen.bytes()),
            beside: of_host.into_iter().fold(0, usize::saturating_add),
            ..self.clone()
        }
    }

    /// All its pages of files, in bytes.
    pub(super) fn pages(&self) -> usize {
        self.stages.iter().map(|stage| stage.file).fold(0, usize::saturating_add)
    }

    /// Those that are resident at least: of the stage that computes and of the one that is read meanwhile, if there are two.
    pub(super) fn least_pages(&self) -> usize {
        let largest = self.stages.iter().map(|stage| stage.file).max().unwrap_or(0);
        largest.saturating_mul(2).min(self.pages())
    }

    /// How often `stage` runs in a request.
    pub(super) fn runs_of(&self, stage: &StageBytes) -> usize {
        self.runs.of(stage.cadence).saturating_sub(stage.idle)
    }

    /// Bytes of all its weights that are copied.
    pub(super) fn weights(&self) -> usize {
        self.stages.iter().map(|stage| stage.weights).fold(0, usize::saturating_add)
    }
}
