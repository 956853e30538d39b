//! How much of the file stays in host memory: arithmetic over a plan.
//!
//! Weights come through the file's map, and its pages stay until the system wants them back. If they do not all fit, the system
//! would drop the oldest first. In a cyclic scan, that page is always the one that is needed next, so every step would read the whole
//! model. So a prefix of the stages stays, and the pages of the others are given back right after their use: every step reads
//! only what does not fit.

use super::{Component, ComponentPlan, Plan, StageBytes};

/// Memory of the host that a plan has to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// The most bytes at once, anonymous memory and resident pages of files together.
    pub bytes: usize,
    /// Bytes that the process holds already.
    pub process: usize,
    /// Whether the device's memory is host memory too.
    pub shared: bool,
    /// Whether the user set the limit. If so, a plan that cannot keep to it is refused; otherwise it keeps as little as it can.
    pub strict: bool,
}

/// Even with one stage in memory at a time, it does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRefusal {
    /// The component that needs most.
    pub component: &'static str,
    /// The least that works.
    pub least: usize,
}

/// Says which stages' pages stay, so that `plan` keeps to `limits`. A plan that fits as it is stays as it is.
///
/// # Errors
/// [`HostRefusal`] if the limits are strict and nothing fits.
pub fn bound(plan: &mut Plan, components: &[Component], limits: &HostLimits) -> Result<(), HostRefusal> {
    let held = |plan: &ComponentPlan| {
        let device = if limits.shared { plan.parts.total() } else { 0 };
        limits.process.saturating_add(plan.host).saturating_add(device)
    };
    let all: usize =
        components.iter().map(|component| component.stages.iter().map(|stage| stage.file).sum::<usize>()).sum();
    let most_held = plan.components.iter().map(held).max().unwrap_or(0);
    if most_held.saturating_add(all) <= limits.bytes {
        return Ok(());
    }
    let mut refusal: Option<HostRefusal> = None;
    for (plan, component) in plan.components.iter_mut().zip(components) {
        let least = held(plan).saturating_add(two_largest(component));
        if least > limits.bytes && limits.strict {
            if refusal.as_ref().is_none_or(|refusal| refusal.least < least) {
                refusal = Some(HostRefusal { component: component.name, least });
            }
            continue;
        }
        let available = limits.bytes.saturating_sub(least);
        plan.placement.dropped = dropped(component, plan, available);
        plan.pages = two_largest(component) + kept(component, &plan.placement.dropped);
        plan.read_each_step = read_each_step(component, &plan.placement.dropped);
    }
    refusal.map_or(Ok(()), Err)
}

/// The stage that computes and the one that is read meanwhile.
fn two_largest(component: &Component) -> usize {
    component.stages.iter().map(|stage| stage.file).max().unwrap_or(0).saturating_mul(2)
}

/// All but the longest prefix, of the stages that are read again, that takes at most `available`.
fn dropped(component: &Component, plan: &ComponentPlan, available: usize) -> Vec<bool> {
    let mut left = Some(available);
    let stages = component.stages.iter().zip(&plan.placement.slot_of);
    let drop = |(stage, slot): (&StageBytes, &Option<usize>)| {
        let again = component.runs.of(stage.cadence) > 1 && (slot.is_some() || stage.mapped > 0);
        if !again {
            return true;
        }
        left = left.and_then(|left| left.checked_sub(stage.file));
        left.is_none()
    };
    stages.map(drop).collect()
}

fn kept(component: &Component, dropped: &[bool]) -> usize {
    component.stages.iter().zip(dropped).filter(|(_, dropped)| !**dropped).map(|(stage, _)| stage.file).sum()
}

fn read_each_step(component: &Component, dropped: &[bool]) -> usize {
    let each_step = |stage: &StageBytes| stage.cadence == crate::stage::Cadence::Step;
    let dropped = component.stages.iter().zip(dropped).filter(|(stage, dropped)| **dropped && each_step(stage));
    dropped.map(|(stage, _)| stage.file).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::Way;
    use crate::plan::{Limits, Offload, Runs, Variant, budget};
    use crate::stage::Cadence;

    fn component(sizes: &[usize]) -> Component {
        let stage = |&file: &usize| StageBytes {
            name: String::new(),
            cadence: Cadence::Step,
            weights: 0,
            mapped: file,
            file,
            shared: false,
        };
        let variants = vec![Variant { way: Way::Whole, host: 0, ports: 10, activations: 20, scratch: 0 }];
        Component {
            name: "c",
            phase: crate::plan::Phase::Encode,
            stages: sizes.iter().map(stage).collect(),
            variants,
            runs: Runs { request: 1, steps: 4 },
        }
    }

    fn bounded(components: &[Component], bytes: usize) -> Result<Plan, HostRefusal> {
        let limits = Limits { host: true, ..Limits::default() };
        let mut plan = budget::plan(components, Offload::Auto, &limits).unwrap();
        bound(&mut plan, components, &HostLimits { bytes, process: 5, shared: true, strict: true }).map(|()| plan)
    }

    #[test]
    fn a_prefix_stays() {
        let components = [component(&[100, 50, 60, 40])];
        // 5 of the process, 30 of the plan, two stages of 100, and what stays.
        let kept = |bytes| bounded(&components, bytes).map(|plan| plan.components[0].placement.dropped.clone());
        assert_eq!(kept(234).unwrap_err(), HostRefusal { component: "c", least: 235 });
        assert_eq!(kept(235).unwrap(), [true; 4]);
        assert_eq!(bounded(&components, 235).unwrap().components[0].read_each_step, 250);
        // All 250 fit beside the 35: nothing is dropped.
        assert_eq!(kept(285).unwrap(), [false; 0]);
        let two = [component(&[100, 50, 60, 40]), component(&[300])];
        let plan = bounded(&two, 585).unwrap();
        assert!(plan.components.iter().all(|component| component.placement.dropped.is_empty()));
        assert_eq!(bounded(&two, 584).unwrap_err().least, 635);
    }

    proptest! {
        #[test]
        fn what_stays_fits(sizes in prop::collection::vec(prop::collection::vec(0usize..100, 1..8), 1..4), bytes in 0usize..1500) {
            let components: Vec<Component> = sizes.iter().map(|sizes| component(sizes)).collect();
            match bounded(&components, bytes) {
                Ok(plan) => for component in plan.components.iter().filter(|c| !c.placement.dropped.is_empty()) {
                    prop_assert!(5 + component.parts.total() + component.pages <= bytes);
                },
                Err(refusal) => prop_assert!(bounded(&components, refusal.least).is_ok() && refusal.least > bytes),
            }
        }
    }
}
