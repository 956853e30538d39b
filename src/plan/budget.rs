//! What fits: pure arithmetic over measured components.
//!
//! A component is **resident** (all its stages stay on the device while it runs) or **streamed**: some stages stay, the
//! others go round a ring of slots, each as large as the largest streamed stage. Which stages stay is chosen so that the
//! fewest bytes move; a larger stage that stays can make all slots smaller, so every size of slot is tried.

use std::str::FromStr;

use super::Way;
use crate::stage::Cadence;

/// Slots of a ring: one computes while the other fills. What more slots would take is better spent on stages that stay.
const SLOTS: usize = 2;

/// How a request shares a device that is smaller than the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// The fastest that fits.
    #[default]
    Auto,
    /// All components stay on the device.
    None,
    /// One component at a time on the device.
    Model,
    /// Streamed stage by stage: the smallest footprint.
    Sequential,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 4] = [Offload::Auto, Offload::None, Offload::Model, Offload::Sequential];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Offload::Auto => "auto",
            Offload::None => "none",
            Offload::Model => "model",
            Offload::Sequential => "sequential",
        }
    }
}

impl FromStr for Offload {
    type Err = String;

    fn from_str(name: &str) -> Result<Offload, String> {
        let found = Offload::ALL.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| format!("`{name}` is not auto, none, model or sequential"))
    }
}

/// How often the stages of a component run in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Those of [`Cadence::Request`].
    pub request: usize,
    /// Those of [`Cadence::Step`].
    pub steps: usize,
}

impl Runs {
    /// Of `cadence`.
    pub fn of(self, cadence: Cadence) -> usize {
        match cadence {
            Cadence::Request => self.request,
            Cadence::Step => self.steps,
        }
    }
}

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
    /// Whether another stage uses its weights too: then they stay.
    pub shared: bool,
}

/// A way to compute a component: the same result for less memory and more time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What it is.
    pub way: Way,
    /// Bytes of all ports, packed, or of what a strip exchanges with them.
    pub ports: usize,
    /// Bytes of ports that are in host memory, where that is not the device's.
    pub host: usize,
    /// Bytes of the largest stage's intermediate results.
    pub activations: usize,
    /// Bytes that the backend takes beside, for the stage that needs most.
    pub scratch: usize,
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
    pub phase: &'static str,
    /// Its stages in the order in which they run.
    pub stages: Vec<StageBytes>,
    /// The ways to compute it, fastest first; at least one.
    pub variants: Vec<Variant>,
    /// How often its stages run.
    pub runs: Runs,
}

impl Component {
    /// Bytes of all its weights that are copied.
    fn weights(&self) -> usize {
        self.stages.iter().map(|stage| stage.weights).fold(0, usize::saturating_add)
    }
}

/// What a plan has to keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes at once; `None` where nobody asked.
    pub bytes: Option<usize>,
    /// Whether the device computes in host memory, where weights that stay in the map cost nothing.
    pub host: bool,
    /// What the backend takes before anything is allocated: its context, staging on the device.
    pub overhead: usize,
}

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
}

/// What the bytes of a peak are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Weights that stay on the device while the component runs.
    pub weights: usize,
    /// The ring.
    pub slots: usize,
    /// Weights of other components that stay meanwhile.
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
    pub phase: &'static str,
    /// The way it is computed.
    pub way: Way,
    /// Bytes of its ports that are in host memory, where that is not the device's.
    pub host: usize,
    /// Where its stages go.
    pub placement: Placement,
    /// How often its stages run.
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
    /// Bytes that move to the device once a request.
    pub moved_once: usize,
    /// Bytes that move to the device in every step.
    pub moved_each_step: usize,
}

impl ComponentPlan {
    /// How many stages stream.
    pub fn streamed(&self) -> usize {
        self.placement.slot_of.iter().flatten().count()
    }

    /// Bytes that move to the device in one request.
    pub fn moved(&self) -> usize {
        self.moved_once.saturating_add(self.moved_each_step.saturating_mul(self.runs.steps))
    }
}

/// What will be where, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its components in the order in which they run.
    pub components: Vec<ComponentPlan>,
    /// Whether all components' weights are on the device throughout.
    pub all_resident: bool,
    /// The most bytes that were allowed.
    pub limit: Option<usize>,
}

impl Plan {
    /// The most bytes at once.
    pub fn peak(&self) -> usize {
        self.components.iter().map(|component| component.parts.total()).max().unwrap_or(0)
    }

    /// The most bytes at once in `phase`.
    pub fn phase_peak(&self, phase: &str) -> usize {
        let phase = self.components.iter().filter(|component| component.phase == phase);
        phase.map(|component| component.parts.total()).max().unwrap_or(0)
    }

    /// The plan of the component `name`.
    pub fn component(&self, name: &str) -> Option<&ComponentPlan> {
        self.components.iter().find(|component| component.name == name)
    }
}

/// No placement fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The component that needs most.
    pub component: &'static str,
    /// The least budget that works.
    pub least: usize,
    /// The budget that was given.
    pub given: usize,
}

/// The fastest plan that `offload` allows and that fits; everything resident before one component at a time before streaming.
/// Of a component's variants it takes the first for which a placement fits, and of the placements the one that moves
/// the fewest bytes.
///
/// # Errors
/// [`Refusal`] where nothing fits.
pub fn plan(components: &[Component], offload: Offload, limits: &Limits) -> Result<Plan, Refusal> {
    // In host memory the map is there anyway: to keep converted weights as well would only take more.
    if offload == Offload::None || (offload == Offload::Auto && !limits.host) {
        let resident = all_resident(components, limits);
        if resident.is_ok() || offload == Offload::None {
            return resident;
        }
    }
    let most = limits.bytes.unwrap_or(usize::MAX);
    let fitted = components.iter().map(|component| {
        component.variants.iter().enumerate().find_map(|(i, variant)| {
            let available = most.checked_sub(variant.bytes().saturating_add(limits.overhead))?;
            Some(component_plan(component, i, place(component, offload, available)?, 0, limits))
        })
    });
    match fitted.collect() {
        Some(plans) => Ok(Plan { components: plans, all_resident: false, limit: limits.bytes }),
        None => Err(refusal(components, offload, limits)),
    }
}

/// Every component's weights on the device throughout.
fn all_resident(components: &[Component], limits: &Limits) -> Result<Plan, Refusal> {
    let most = limits.bytes.unwrap_or(usize::MAX);
    let all = components.iter().map(Component::weights).fold(0, usize::saturating_add);
    let fitted = components.iter().map(|component| {
        let fixed = all.saturating_add(limits.overhead);
        let variant = component.variants.iter().position(|variant| variant.bytes().saturating_add(fixed) <= most)?;
        let nothing = vec![false; component.stages.len()];
        Some(component_plan(component, variant, nothing, all - component.weights(), limits))
    });
    match fitted.collect() {
        Some(plans) => Ok(Plan { components: plans, all_resident: true, limit: limits.bytes }),
        None => Err(refusal(components, Offload::None, limits)),
    }
}

/// The least budget, in bytes, for which [`plan`] finds a plan, whatever `limits` allow now.
pub fn least(components: &[Component], offload: Offload, limits: &Limits) -> usize {
    refusal(components, offload, limits).least
}

/// What there is to say where nothing fits: the component that needs most decides.
fn refusal(components: &[Component], offload: Offload, limits: &Limits) -> Refusal {
    let all = components.iter().map(Component::weights).fold(0, usize::saturating_add);
    let least = |component: &Component| {
        let weights = if offload == Offload::None { all } else { least_weights(component, offload) };
        let leanest = component.variants.iter().map(Variant::bytes).min().unwrap_or(0);
        leanest.saturating_add(weights).saturating_add(limits.overhead)
    };
    let most_needed =
        components.iter().map(|component| (least(component), component.name)).max_by_key(|(least, _)| *least);
    let (least, component) = most_needed.unwrap_or_default();
    Refusal { component, least, given: limits.bytes.unwrap_or(usize::MAX) }
}

/// Which stages stream.
type Streamed = Vec<bool>;

/// The sizes that slots can have, and 0, with which everything stays.
fn slot_sizes(component: &Component) -> Vec<usize> {
    let mut sizes: Vec<usize> = component.stages.iter().map(|stage| stage.weights).chain([0]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Everything streams that fits into a slot of `size` bytes.
fn streamed_up_to(component: &Component, size: usize) -> Streamed {
    component.stages.iter().map(|stage| stage.weights > 0 && stage.weights <= size && !stage.shared).collect()
}

/// Bytes of the stages that stay, number of slots, bytes of each.
fn bytes_of(component: &Component, streamed: &[bool]) -> (usize, usize, usize) {
    let (mut resident, mut count, mut slot) = (0usize, 0, 0);
    for (stage, streams) in component.stages.iter().zip(streamed) {
        match streams {
            true => (count, slot) = (count + 1, slot.max(stage.weights)),
            false => resident = resident.saturating_add(stage.weights),
        }
    }
    (resident, SLOTS.min(count), slot)
}

fn footprint(component: &Component, streamed: &[bool]) -> usize {
    let (resident, slots, slot) = bytes_of(component, streamed);
    resident.saturating_add(slot.saturating_mul(slots))
}

/// Bytes that move in a request: once a request, and in each step.
fn moved(component: &Component, streamed: &[bool]) -> (usize, usize) {
    let (mut once, mut each_step) = (0usize, 0usize);
    for (stage, streams) in component.stages.iter().zip(streamed) {
        match (streams, stage.cadence) {
            (true, Cadence::Step) => each_step = each_step.saturating_add(stage.weights),
            (true, Cadence::Request) => {
                once = once.saturating_add(stage.weights.saturating_mul(component.runs.request))
            }
            (false, _) => once = once.saturating_add(stage.weights),
        }
    }
    (once, each_step)
}

fn all_moved(component: &Component, streamed: &[bool]) -> usize {
    let (once, each_step) = moved(component, streamed);
    once.saturating_add(each_step.saturating_mul(component.runs.steps))
}

fn least_weights(component: &Component, offload: Offload) -> usize {
    let sizes = if offload == Offload::Model { vec![0] } else { slot_sizes(component) };
    let each = sizes.into_iter().map(|size| footprint(component, &streamed_up_to(component, size)));
    each.min().unwrap_or(0)
}

/// The best placement whose weights and slots take at most `available` bytes.
fn place(component: &Component, offload: Offload, available: usize) -> Option<Streamed> {
    let fits = |streamed: &Streamed| footprint(component, streamed) <= available;
    let candidates = slot_sizes(component).into_iter().map(|size| streamed_up_to(component, size)).filter(fits);
    match offload {
        Offload::Sequential => candidates.min_by_key(|streamed| footprint(component, streamed)),
        Offload::Model => candidates.into_iter().find(|streamed| !streamed.contains(&true)),
        Offload::Auto | Offload::None => {
            let grown = candidates.map(|streamed| even_out(component, grow(component, streamed, available), available));
            grown.min_by_key(|streamed| {
                let moved = all_moved(component, streamed);
                (moved, streamed.contains(&true), footprint(component, streamed))
            })
        }
    }
}

/// Lets stages stay that run more than once, as long as they fit.
fn grow(component: &Component, mut streamed: Streamed, available: usize) -> Streamed {
    let mut order: Vec<usize> = (0..streamed.len()).filter(|&i| streamed[i]).collect();
    order.retain(|&i| component.runs.of(component.stages[i].cadence) > 1);
    order.sort_by_key(|&i| {
        let stage = &component.stages[i];
        (std::cmp::Reverse(component.runs.of(stage.cadence)), std::cmp::Reverse(stage.weights), i)
    });
    for i in order {
        streamed[i] = false;
        if footprint(component, &streamed) > available {
            streamed[i] = true;
        }
    }
    streamed
}

/// Makes the number of stages that stream in a pass a multiple of the slots, so that the order is cyclic and the last slots
/// of one pass can take the first stages of the next. By one more that stays, or one less; as it is where neither fits.
fn even_out(component: &Component, mut streamed: Streamed, available: usize) -> Streamed {
    for cadence in [Cadence::Step, Cadence::Request] {
        let of = |i: &usize| component.stages[*i].cadence == cadence;
        let count = (0..streamed.len()).filter(of).filter(|&i| streamed[i]).count();
        let (_, slots, slot) = bytes_of(component, &streamed);
        if component.runs.of(cadence) < 2 || slots < SLOTS || count.is_multiple_of(SLOTS) {
            continue;
        }
        let size = |i: &usize| component.stages[*i].weights;
        let mut keep = streamed.clone();
        if let Some(smallest) = (0..streamed.len()).filter(of).filter(|&i| streamed[i]).min_by_key(size) {
            keep[smallest] = false;
        }
        let stays = |i: &usize| !streamed[*i] && size(i) > 0 && size(i) <= slot && !component.stages[*i].shared;
        let returned = (0..streamed.len()).filter(of).filter(stays).min_by_key(size);
        if footprint(component, &keep) <= available {
            streamed = keep;
        } else if let Some(returned) = returned {
            streamed[returned] = true;
        }
    }
    streamed
}

fn component_plan(
    component: &Component,
    variant: usize,
    streamed: Streamed,
    others: usize,
    limits: &Limits,
) -> ComponentPlan {
    let (resident_bytes, slots, slot_bytes) = bytes_of(component, &streamed);
    let (moved_once, moved_each_step) = moved(component, &streamed);
    let chosen = &component.variants[variant];
    let parts = Parts {
        weights: resident_bytes,
        slots: slots.saturating_mul(slot_bytes),
        others,
        ports: chosen.ports,
        activations: chosen.activations,
        scratch: chosen.scratch,
        overhead: limits.overhead,
    };
    let slot_of = slots_round(&streamed, slots);
    ComponentPlan {
        name: component.name,
        phase: component.phase,
        way: chosen.way,
        host: chosen.host,
        placement: Placement { variant, slot_of, slots, slot_bytes, resident_bytes, dropped: Vec::new() },
        runs: component.runs,
        parts,
        mapped: component.stages.iter().map(|stage| stage.mapped).fold(0, usize::saturating_add),
        pages: component.stages.iter().map(|stage| stage.file).fold(0, usize::saturating_add),
        read_each_step: 0,
        copied_stages: component.stages.iter().filter(|stage| stage.weights > 0).count(),
        moved_once,
        moved_each_step,
    }
}

/// Streamed stages go round the slots in order.
fn slots_round(streamed: &[bool], slots: usize) -> Vec<Option<usize>> {
    let mut next = 0;
    let slot = |&streams: &bool| {
        let slot = streams.then_some(next % slots.max(1));
        next += usize::from(streams);
        slot
    };
    streamed.iter().map(slot).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stages() -> impl Strategy<Value = Vec<StageBytes>> {
        let sizes = prop_oneof![Just(0usize), Just(300), Just(1000), 1usize..2000];
        let stage = (sizes, any::<bool>(), prop::bool::weighted(0.1));
        prop::collection::vec(stage, 1..20).prop_map(|mut stages| {
            // A model lists all of a cadence one after the other.
            stages.sort_by_key(|&(_, step, _)| step);
            let stage = |(i, (weights, step, shared))| StageBytes {
                name: format!("{i}"),
                cadence: if step { Cadence::Step } else { Cadence::Request },
                weights,
                mapped: 0,
                file: weights,
                shared,
            };
            stages.into_iter().enumerate().map(stage).collect()
        })
    }

    fn components() -> impl Strategy<Value = Vec<Component>> {
        let variant = (0usize..500, 0usize..3000, 0usize..200).prop_map(|(ports, activations, scratch)| Variant {
            way: Way::Whole,
            host: 0,
            ports,
            activations,
            scratch,
        });
        let component = (stages(), prop::collection::vec(variant, 1..3), 1usize..3, 1usize..5);
        let component = component.prop_map(|(stages, variants, request, steps)| Component {
            name: "c",
            phase: "p",
            stages,
            variants,
            runs: Runs { request, steps },
        });
        prop::collection::vec(component, 1..4)
    }

    fn check(plan: &Plan, components: &[Component]) -> Result<(), TestCaseError> {
        prop_assert!(plan.limit.is_none_or(|limit| plan.peak() <= limit));
        for (plan, component) in plan.components.iter().zip(components) {
            let placement = &plan.placement;
            for (stage, slot) in component.stages.iter().zip(&placement.slot_of) {
                if let Some(slot) = slot {
                    prop_assert!(stage.weights > 0 && stage.weights <= placement.slot_bytes && !stage.shared);
                    prop_assert!(*slot < placement.slots);
                }
            }
            prop_assert!(plan.streamed() == 0 || placement.slots == SLOTS.min(plan.streamed()));
            let weights: usize = component.stages.iter().map(|stage| stage.weights).sum();
            prop_assert!(plan.moved() >= weights.min(plan.moved_once + plan.moved_each_step));
            let neighbours: Vec<usize> = placement.slot_of.iter().flatten().copied().collect();
            prop_assert!(placement.slots < 2 || neighbours.windows(2).all(|pair| pair[0] != pair[1]));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_plan_fits_or_the_refusal_says_what_would(
            components in components(), limit in 0usize..30_000, mode in 0usize..4, host: bool, overhead in 0usize..100
        ) {
            let offload = Offload::ALL[mode];
            let with = |limit| plan(&components, offload, &Limits { bytes: Some(limit), host, overhead });
            match with(limit) {
                Ok(plan) => check(&plan, &components)?,
                Err(refusal) => {
                    prop_assert!(refusal.least > limit);
                    prop_assert_eq!(refusal.least, least(&components, offload, &Limits { bytes: None, host, overhead }));
                    let enough = with(refusal.least);
                    prop_assert!(enough.is_ok(), "{refusal:?}");
                    check(&enough.unwrap(), &components)?;
                    prop_assert!(with(refusal.least - 1).is_err());
                }
            }
        }

        #[test]
        fn more_memory_never_moves_more(components in components(), limit in 0usize..30_000, more in 0usize..5000) {
            // With one way to compute each: a faster way leaves less room for weights.
            let components: Vec<Component> =
                components.into_iter().map(|c| Component { variants: c.variants[..1].to_vec(), ..c }).collect();
            let moved = |limit| {
                let plan = plan(&components, Offload::Auto, &Limits { bytes: Some(limit), ..Limits::default() }).ok()?;
                Some(plan.components.iter().map(ComponentPlan::moved).sum::<usize>())
            };
            if let (Some(less), Some(more)) = (moved(limit), moved(limit + more)) {
                // Largest first is no perfect packing; it is never worse by more than the largest stage, once a step.
                let largest = components.iter().flat_map(|c| c.stages.iter().map(|s| s.weights * c.runs.steps.max(c.runs.request)));
                prop_assert!(more <= less + components.len() * 2 * largest.max().unwrap_or(0), "{more} after {less}");
            }
        }
    }

    #[test]
    fn larger_stages_stay_first_and_slots_shrink() {
        let stage = |weights, cadence| StageBytes {
            name: String::new(),
            cadence,
            weights,
            mapped: 0,
            file: weights,
            shared: false,
        };
        let mut stages = vec![stage(500, Cadence::Request)];
        stages.extend([1000, 1000, 500, 500, 500, 500].map(|weights| stage(weights, Cadence::Step)));
        let variants = vec![Variant { way: Way::Whole, host: 0, ports: 10, activations: 20, scratch: 5 }];
        let component = Component { name: "c", phase: "p", stages, variants, runs: Runs { request: 1, steps: 10 } };
        let auto = |bytes| {
            plan(std::slice::from_ref(&component), Offload::Auto, &Limits { bytes: Some(bytes), ..Limits::default() })
        };
        // Both large ones and two slots of 500: the slots are half of what they would be.
        let streamed = auto(3035).unwrap();
        let streamed = &streamed.components[0];
        assert_eq!((streamed.placement.slot_bytes, streamed.moved_each_step), (500, 2000));
        assert_eq!(streamed.parts.total(), 3035);
        assert_eq!(streamed.placement.slot_of, [Some(0), None, None, Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(auto(4535).unwrap().components[0].streamed(), 0);
        assert_eq!(auto(100).unwrap_err().least, 35 + 2000);
    }
}
