//! How much of the file stays in host memory: arithmetic over a plan.
//!
//! Weights come through the file's map, and its pages stay until the system wants them back. If they do not all fit, the system
//! would drop the oldest first. In a cyclic scan, that page is always the one that is needed next, so every step would read the whole
//! model. So a prefix of the stages stays, and the pages of the others are given back right after their use: every step reads
//! only what does not fit.

use super::{Component, ComponentPlan, HostBound, HostLimit, HostUse, Plan};

/// Says which stages' pages stay, so that `plan`, which fits with two stages' pages at a time, keeps to `limit`. If all pages fit,
/// all may stay.
pub(super) fn bound(plan: &mut Plan, components: &[Component], limit: &HostLimit) {
    if limit.bound != HostBound::Memory {
        return;
    }
    let held = |plan: &ComponentPlan, component: &Component| {
        let device = if limit.shared { plan.parts.total() } else { 0 };
        let graphs = component.variants.get(plan.placement.variant).map_or(0, |variant| variant.graphs);
        [component.beside, plan.host, device, limit.graph.saturating_mul(graphs)]
            .into_iter()
            .fold(limit.process, usize::saturating_add)
    };
    let all = components.iter().map(Component::pages).fold(0, usize::saturating_add);
    let each = plan.components.iter().zip(components).map(|(plan, component)| held(plan, component));
    let peak = each.max().unwrap_or(0).saturating_add(all);
    plan.host = Some(HostUse { peak, limit: limit.bytes });
    if peak <= limit.bytes {
        return;
    }
    let mut peak = 0;
    for (plan, component) in plan.components.iter_mut().zip(components) {
        let held = held(plan, component);
        let least = held.saturating_add(component.least_pages());
        plan.placement.dropped = dropped(component, plan, limit.bytes.saturating_sub(least));
        plan.pages = component.least_pages() + kept(component, &plan.placement.dropped);
        let read_each_run = read_each_run(component, &plan.placement.dropped);
        plan.read_each_step = read_each_run.saturating_mul(plan.batch.parts_each_step() * plan.way.bands());
        peak = held.saturating_add(plan.pages).max(peak);
    }
    plan.host = Some(HostUse { peak, limit: limit.bytes });
}

/// All but the longest prefix, of the stages that are read again, that takes at most `available`.
fn dropped(component: &Component, plan: &ComponentPlan, available: usize) -> Vec<bool> {
    let (mut left, runs) = (Some(available), plan.way.runs(plan.batch.runs(component.runs)));
    let stages = component.stages.iter().zip(&plan.placement.slot_of);
    stages
        .map(|(stage, slot)| {
            let again = runs.of(stage.cadence) > 1 && (slot.is_some() || stage.mapped > 0);
            if !again {
                return true;
            }
            left = left.and_then(|left| left.checked_sub(stage.file));
            left.is_none()
        })
        .collect()
}

fn kept(component: &Component, dropped: &[bool]) -> usize {
    component.stages.iter().zip(dropped).filter(|(_, dropped)| !**dropped).map(|(stage, _)| stage.file).sum()
}

fn read_each_run(component: &Component, dropped: &[bool]) -> usize {
    let stages = component.stages.iter().zip(dropped);
    let dropped = stages.filter(|(stage, dropped)| **dropped && stage.cadence.is_of_steps());
    dropped.map(|(stage, _)| stage.file).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{Batch, Limits, Offload, Refusal, Runs, StageBytes, Variant, Way, budget};
    use crate::stage::Cadence;

    fn component(sizes: &[usize]) -> Component {
        let stages = sizes.iter().map(|&file| StageBytes {
            name: String::new(),
            cadence: Cadence::Step,
            weights: 0,
            mapped: file,
            file,
            stays: false,
            idle: 0,
            idle_apart: 0,
        });
        let batch = Batch::default();
        let variants = vec![
            Variant { way: Way::Whole, batch, host: 0, ports: 10, activations: 20, scratch: 0, graphs: 0 },
            Variant { way: Way::Tokens(1), batch, host: 0, ports: 10, activations: 5, scratch: 0, graphs: 0 },
        ];
        Component {
            name: "c",
            phase: crate::plan::Phase::Encode,
            stages: stages.collect(),
            variants,
            runs: Runs::of_steps(4),
            beside: 7,
            company: 0,
            own: Vec::new(),
            share: crate::stage::TokenShare::ALL,
            work: crate::plan::Work::default(),
        }
    }

    fn bounded(components: &[Component], bytes: usize) -> Result<Plan, Refusal> {
        let limit = HostLimit { bound: HostBound::Memory, bytes, process: 5, graph: 0, shared: true };
        let limits = Limits { host: true, of_host: [Some(limit), None], ..Limits::default() };
        budget::plan(components, Offload::Auto, &limits)
    }

    #[test]
    fn a_prefix_stays() {
        let components = [component(&[100, 50, 60, 40])];
        // 12 of the process and beside, 30 of the plan, two stages of 100, and what stays.
        let kept = |bytes| bounded(&components, bytes).map(|plan| plan.components[0].placement.dropped.clone());
        assert_eq!(kept(242).unwrap(), [true; 4]);
        let plan = bounded(&components, 242).unwrap();
        assert_eq!((plan.components[0].way, plan.components[0].read_each_step), (Way::Whole, 250));
        assert_eq!(plan.host, Some(HostUse { peak: 242, limit: 242 }));
        // All 250 fit beside the 42: nothing is dropped.
        assert_eq!(kept(292).unwrap(), [false; 0]);
        let two = [component(&[100, 50, 60, 40]), component(&[300])];
        let dropped = |bytes| bounded(&two, bytes).unwrap().components.iter().any(|c| !c.placement.dropped.is_empty());
        assert_eq!([dropped(592), dropped(591)], [false, true]);
    }

    #[test]
    fn the_host_has_a_leaner_way_and_a_least() {
        let components = [component(&[100, 50, 60, 40])];
        let plan = bounded(&components, 241).unwrap();
        assert_eq!(plan.components[0].way, Way::Tokens(1));
        let refusal = bounded(&components, 226).unwrap_err();
        let bound = Some(HostBound::Memory);
        assert_eq!(refusal, Refusal { component: "c", bound, least: 227, given: 226 });
        assert!(bounded(&components, 227).is_ok());
    }

    proptest! {
        #[test]
        fn what_stays_fits(sizes in prop::collection::vec(prop::collection::vec(0usize..100, 1..8), 1..4), bytes in 0usize..1500) {
            let components: Vec<Component> = sizes.iter().map(|sizes| component(sizes)).collect();
            match bounded(&components, bytes) {
                Ok(plan) => {
                    prop_assert!(plan.host.unwrap().peak <= bytes);
                    for component in plan.components.iter().filter(|c| !c.placement.dropped.is_empty()) {
                        prop_assert!(12 + component.parts.total() + component.pages <= bytes);
                    }
                }
                Err(refusal) => prop_assert!(bounded(&components, refusal.least).is_ok() && refusal.least > bytes),
            }
        }
    }
}
