//! What a plan says: where stages go, what a peak consists of, what moves.

use super::{Batch, Phase, Runs, Speed, Way, Work};
use crate::stage::TokenShare;

/// Where the stages of a component go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Which of the component's variants is computed.
    pub variant: usize,
    /// By stage: its slot; `None` for one that stays, or has nothing to copy.
    pub slot_of: Vec<Option<usize>>,
    /// How many slots the ring has.
    pub slots: usize,
    /// Bytes of each.
    pub slot_bytes: usize,
    /// Bytes of the stages that stay.
    pub resident_bytes: usize,
    /// By stage: whether the host gives the pages of the file back after each use. Empty where all of them may stay.
    pub dropped: Vec<bool>,
    /// By stage: whether the device computes it. Empty where it computes all of them.
    pub own: Vec<bool>,
    /// Which tokens the device computes.
    pub share: TokenShare,
}

impl Placement {
    /// Whether the device computes stage number `stage`.
    pub fn owns(&self, stage: usize) -> bool {
        self.own.get(stage).copied().unwrap_or(self.own.is_empty())
    }
}

/// What the bytes of a peak are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Weights that stay on the device while the component runs.
    pub weights: usize,
    /// The ring.
    pub slots: usize,
    /// What others take meanwhile: weights of other components that stay, and all of what makes previews.
    pub others: usize,
    /// Tensors between stages.
    pub ports: usize,
    /// Intermediate results.
    pub activations: usize,
    /// What the backend takes on the way.
    pub scratch: usize,
    /// What the backend takes always.
    pub overhead: usize,
}

impl Parts {
    /// All of them.
    pub fn total(&self) -> usize {
        let Parts { weights, slots, others, ports, activations, scratch, overhead } = *self;
        [weights, slots, others, ports, activations, scratch, overhead].into_iter().fold(0, usize::saturating_add)
    }

    /// Each with its name.
    pub fn named(&self) -> [(&'static str, usize); 7] {
        [
            ("weights", self.weights),
            ("slots", self.slots),
            ("others", self.others),
            ("ports", self.ports),
            ("activations", self.activations),
            ("scratch", self.scratch),
            ("overhead", self.overhead),
        ]
    }
}

/// The plan of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentPlan {
    /// Its name.
    pub name: &'static str,
    /// The phase in which it runs.
    pub phase: Phase,
    /// The way it is computed.
    pub way: Way,
    /// How much of the batch is computed at once.
    pub batch: Batch,
    /// Bytes of its ports that are in host memory beside the device's, or wait there for their turn.
    pub host: usize,
    /// Where its stages go.
    pub placement: Placement,
    /// How often its stages run if all is computed at once.
    pub runs: Runs,
    /// What its peak consists of.
    pub parts: Parts,
    /// Weights that are used where they lie in the file.
    pub mapped: usize,
    /// Pages of the file, in bytes, that are resident at most.
    pub pages: usize,
    /// Bytes that are read from the disk in every step, because host memory has no room for them.
    pub read_each_step: usize,
    /// How many stages have weights that are copied.
    pub copied_stages: usize,
    /// Bytes that move to the device in a request beside those of each step.
    pub moved_once: usize,
    /// Those of them that move in some of the steps.
    pub moved_in_some_steps: usize,
    /// Bytes that move to the device in every step that skips nothing.
    pub moved_each_step: usize,
    /// What the device has to do in a step.
    pub work: Work,
}

impl ComponentPlan {
    /// How many stages the device computes.
    pub fn stages(&self) -> usize {
        (0..self.placement.slot_of.len()).filter(|&stage| self.placement.owns(stage)).count()
    }

    /// About how many seconds a request takes for it on a device that is so fast. Weights come while others compute.
    pub fn seconds(&self, speed: Speed) -> f64 {
        let moved = self.moved_each_step as f64 / speed.link;
        self.runs.steps as f64 * self.work.seconds(speed).max(moved) + self.moved_once as f64 / speed.link
    }

    /// How many stages stream.
    pub fn streamed(&self) -> usize {
        self.placement.slot_of.iter().flatten().count()
    }

    /// Bytes that move to the device in one request: at most, if steps may skip some.
    pub fn moved(&self) -> usize {
        self.moved_once.saturating_add(self.moved_each_step.saturating_mul(self.runs.steps))
    }
}

/// What will be where, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its components in the order in which they run.
    pub components: Vec<ComponentPlan>,
    /// Whether all components' weights are on the device throughout.
    pub all_resident: bool,
    /// The most bytes that were allowed.
    pub limit: Option<usize>,
    /// What it takes of the host's memory, if that is bounded.
    pub host: Option<HostUse>,
    /// That of a second pass, which begins when this one's is over.
    pub second: Option<Box<Plan>>,
    /// What is on each of the other devices, in their order, if there are several. A component that several compute together is in the
    /// plan of each.
    pub others: Vec<Plan>,
}

/// What a plan takes of the host's memory, all that the process holds counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostUse {
    /// The most bytes at once.
    pub peak: usize,
    /// The most bytes that were allowed.
    pub limit: usize,
}

impl Plan {
    /// That of each device, in their order.
    pub fn devices(&self) -> impl Iterator<Item = &Plan> {
        std::iter::once(self).chain(&self.others)
    }

    /// The most bytes at once, in both passes if there are two; of several devices, on the first.
    pub fn peak(&self) -> usize {
        self.peak_on(0)
    }

    /// The same on device number `device`.
    pub fn peak_on(&self, device: usize) -> usize {
        let here = self.devices().nth(device).map_or(&[][..], |plan| &plan.components);
        let own = here.iter().map(|component| component.parts.total()).max().unwrap_or(0);
        own.max(self.second.as_ref().map_or(0, |second| second.peak_on(device)))
    }

    /// The most bytes at once in `phase`; of several devices, on the first.
    pub fn phase_peak(&self, phase: Phase) -> usize {
        let phase = self.components.iter().filter(|component| component.phase == phase);
        phase.map(|component| component.parts.total()).max().unwrap_or(0)
    }

    /// The plan of the component `name` on this device; of several, on the first.
    pub fn here(&self, name: &str) -> Option<&ComponentPlan> {
        self.components.iter().find(|component| component.name == name)
    }

    /// The plan of the component `name` on each device that computes it, and the number of the device.
    pub fn shares(&self, name: &str) -> Vec<(usize, &ComponentPlan)> {
        let all = self.devices().enumerate();
        all.filter_map(|(device, plan)| plan.here(name).map(|component| (device, component))).collect()
    }

    /// About how many seconds what denoises takes in a request, on devices that are so fast. Those that have its stages among them compute in
    /// turn, and all others at the same time.
    pub fn seconds(&self, speeds: &[Speed]) -> f64 {
        let mut names: Vec<&'static str> = Vec::new();
        for component in self.devices().flat_map(|plan| &plan.components) {
            if component.phase == Phase::Denoise && !names.contains(&component.name) {
                names.push(component.name);
            }
        }
        let mut all = 0.0;
        for name in names {
            let (mut together, mut in_turn): (f64, f64) = (0.0, 0.0);
            for (device, component) in self.shares(name) {
                let own = speeds.get(device).map_or(0.0, |speed| component.seconds(*speed));
                match component.placement.own.is_empty() {
                    true => together = together.max(own),
                    false => in_turn += own,
                }
            }
            all += together + in_turn;
        }
        all
    }

    /// The plan of the component `name`, on the first device that computes it.
    pub fn component(&self, name: &str) -> Option<&ComponentPlan> {
        self.devices().find_map(|plan| plan.here(name))
    }
}
