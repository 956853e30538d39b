//! What fits: pure arithmetic over measured components.
//!
//! A component is **resident** (all its stages stay on the device while it runs) or **streamed**: some stages stay, the
//! others go round a ring of slots, each as large as the largest streamed stage.

use super::place::{Streamed, bytes_of, moved, place};
use super::{Component, ComponentPlan, Limits, Offload, Parts, Phase, Placement, Plan, Refusal, host};

/// The fastest plan that `offload` allows and that fits; everything resident before one component at a time before streaming.
/// Of a component's variants it takes the first for which a placement fits, and of the placements the one that moves
/// the fewest bytes. Says of the pages of files, too, which of them stay.
///
/// # Errors
/// [`Refusal`] if nothing fits.
pub fn plan(components: &[Component], offload: Offload, limits: &Limits) -> Result<Plan, Refusal> {
    let mut plan = placed(components, offload, limits)?;
    for limit in limits.of_host.iter().flatten() {
        host::bound(&mut plan, components, limit);
    }
    Ok(plan)
}

/// As [`plan`], where `company` takes its room at the same time as the components of its phase, all of its weights on the device: in
/// the first of its variants for which the others fit.
///
/// # Errors
/// As [`plan`].
pub fn plan_in_company(
    components: &[Component],
    company: Option<&Component>,
    offload: Offload,
    limits: &Limits,
) -> Result<Plan, Refusal> {
    let Some(company) = company else { return plan(components, offload, limits) };
    let last = company.variants.len().saturating_sub(1);
    let mut refused = plan(&in_company(components, company, last), offload, limits).err();
    for variant in 0..company.variants.len() {
        match plan(&in_company(components, company, variant), offload, limits) {
            Ok(mut plan) => {
                let nothing = vec![false; company.stages.len()];
                let at = plan.components.iter().rposition(|component| component.phase == company.phase);
                let own = component_plan(company, variant, (nothing, 0), 0, limits);
                plan.components.insert(at.map_or(plan.components.len(), |at| at + 1), own);
                return Ok(plan);
            }
            Err(refusal) => refused = refused.or(Some(refusal)),
        }
    }
    match refused {
        Some(refusal) => Err(refusal),
        None => plan(components, offload, limits),
    }
}

/// `components`, those of its phase in the company of `company`, which is computed as its variant number `variant`.
pub(crate) fn in_company(components: &[Component], company: &Component, variant: usize) -> Vec<Component> {
    components
        .iter()
        .map(|component| match component.phase == company.phase {
            true => component.beside(company, variant),
            false => component.clone(),
        })
        .collect()
}

/// The plan without what pages of files take.
fn placed(components: &[Component], offload: Offload, limits: &Limits) -> Result<Plan, Refusal> {
    // Of two that denoise, each has the device while it does.
    let denoisers = components.iter().filter(|component| component.phase == Phase::Denoise).count();
    // In host memory the map is there anyway: to keep converted weights as well would only take more.
    if offload == Offload::None || (offload == Offload::Auto && !limits.host && denoisers < 2) {
        let resident = all_resident(components, limits);
        if resident.is_ok() || offload == Offload::None {
            return resident;
        }
    }
    let fitted = components.iter().map(|component| {
        component.variants.iter().enumerate().find_map(|(i, variant)| {
            let available = limits.left(component, variant)?;
            let placed = place(&component.in_variant(i), offload, available)?;
            Some(component_plan(component, i, placed, 0, limits))
        })
    });
    match fitted.collect() {
        Some(plans) => Ok(Plan { components: plans, limit: limits.bytes, ..Plan::default() }),
        None => Err(limits.refusal(components, offload)),
    }
}

/// Every component's weights on the device throughout.
fn all_resident(components: &[Component], limits: &Limits) -> Result<Plan, Refusal> {
    let all = components.iter().map(Component::weights).fold(0, usize::saturating_add);
    let fitted = components.iter().map(|component| {
        let variant = component
            .variants
            .iter()
            .position(|variant| limits.left(component, variant).is_some_and(|left| all <= left))?;
        let nothing = vec![false; component.stages.len()];
        Some(component_plan(component, variant, (nothing, 0), all - component.weights(), limits))
    });
    match fitted.collect() {
        Some(plans) => Ok(Plan { components: plans, all_resident: true, limit: limits.bytes, ..Plan::default() }),
        None => Err(limits.refusal(components, Offload::None)),
    }
}

/// The least budget of the device, in bytes, for which [`plan`] finds a plan, whatever `limits` allow now.
pub fn least(components: &[Component], offload: Offload, limits: &Limits) -> usize {
    limits.least(components, offload)
}

fn component_plan(
    component: &Component,
    variant: usize,
    (streamed, most_slots): (Streamed, usize),
    others: usize,
    limits: &Limits,
) -> ComponentPlan {
    let (resident_bytes, slots, slot_bytes) = bytes_of(component, &streamed, most_slots);
    let [once, moved_in_some_steps, moved_each_run] = moved(&component.in_variant(variant), &streamed);
    let chosen = &component.variants[variant];
    let parts = Parts {
        weights: resident_bytes,
        slots: slots.saturating_mul(slot_bytes),
        others: others.saturating_add(component.company),
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
        batch: chosen.batch,
        host: chosen.host,
        placement: Placement {
            variant,
            slot_of,
            slots,
            slot_bytes,
            resident_bytes,
            dropped: Vec::new(),
            own: component.own.clone(),
            share: component.share,
        },
        runs: component.runs,
        parts,
        mapped: component.stages.iter().map(|stage| stage.mapped).fold(0, usize::saturating_add),
        pages: component.stages.iter().map(|stage| stage.file).fold(0, usize::saturating_add),
        read_each_step: 0,
        copied_stages: component.stages.iter().filter(|stage| stage.weights > 0).count(),
        moved_once: once.saturating_add(moved_in_some_steps),
        moved_in_some_steps,
        moved_each_step: moved_each_run.saturating_mul(chosen.batch.parts_each_step() * chosen.way.bands()),
        work: component.work,
    }
}

/// Streamed stages go round the slots in order.
fn slots_round(streamed: &[bool], slots: usize) -> Vec<Option<usize>> {
    let mut next = 0;
    streamed
        .iter()
        .map(|&streams| {
            let slot = streams.then_some(next % slots.max(1));
            next += usize::from(streams);
            slot
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::place::{MOST_SLOTS, SLOTS};
    use super::super::{Batch, HostBound, HostLimit, Runs, StageBytes, Variant, Way, Work};
    use super::*;
    use crate::stage::{Cadence, TokenShare};

    fn stages() -> impl Strategy<Value = Vec<StageBytes>> {
        let sizes = prop_oneof![Just(0usize), Just(300), Just(1000), 1usize..2000];
        let stage = (sizes, any::<bool>(), prop::bool::weighted(0.1));
        prop::collection::vec(stage, 1..20).prop_map(|mut stages| {
            // A model lists all of a cadence one after the other.
            stages.sort_by_key(|&(_, step, _)| step);
            stages
                .into_iter()
                .enumerate()
                .map(|(i, (weights, step, stays))| StageBytes {
                    name: format!("{i}"),
                    cadence: if step { Cadence::Step } else { Cadence::Request },
                    weights,
                    mapped: 0,
                    file: weights,
                    stays,
                    idle: 0,
                    idle_apart: 0,
                })
                .collect()
        })
    }

    fn components() -> impl Strategy<Value = Vec<Component>> {
        let variant = (0usize..500, 0usize..3000, 0usize..200).prop_map(|(ports, activations, scratch)| Variant {
            way: Way::Whole,
            batch: Batch::default(),
            host: 0,
            ports,
            activations,
            scratch,
            graphs: 0,
        });
        let component = (stages(), prop::collection::vec(variant, 1..3), 1usize..3, 1usize..5);
        let component = component.prop_map(|(stages, variants, request, steps)| Component {
            name: "c",
            phase: crate::plan::Phase::Encode,
            stages,
            variants,
            runs: Runs { request, ..Runs::of_steps(steps) },
            beside: 0,
            company: 0,
            own: Vec::new(),
            share: TokenShare::ALL,
            work: Work::default(),
        });
        prop::collection::vec(component, 1..4)
    }

    fn check(plan: &Plan, components: &[Component]) -> Result<(), TestCaseError> {
        prop_assert!(plan.limit.is_none_or(|limit| plan.peak() <= limit));
        for (plan, component) in plan.components.iter().zip(components) {
            let placement = &plan.placement;
            for (stage, slot) in component.stages.iter().zip(&placement.slot_of) {
                if let Some(slot) = slot {
                    prop_assert!(stage.weights > 0 && stage.weights <= placement.slot_bytes && !stage.stays);
                    prop_assert!(*slot < placement.slots);
                }
            }
            let slots = SLOTS.min(plan.streamed())..=MOST_SLOTS.min(plan.streamed());
            prop_assert!(slots.contains(&placement.slots));
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
            let limits = |bytes| Limits { bytes, host, overhead, ..Limits::default() };
            let with = |limit| plan(&components, offload, &limits(Some(limit)));
            match with(limit) {
                Ok(plan) => check(&plan, &components)?,
                Err(refusal) => {
                    prop_assert!(refusal.least > limit);
                    prop_assert_eq!(refusal.least, least(&components, offload, &limits(None)));
                    let enough = with(refusal.least);
                    prop_assert!(enough.is_ok(), "{refusal:?}");
                    check(&enough.unwrap(), &components)?;
                    prop_assert!(with(refusal.least - 1).is_err());
                }
            }
        }

        #[test]
        fn a_plan_keeps_to_the_host_s_memory_too(
            components in components(), limit in 0usize..30_000, memory in 0usize..30_000, addresses in 0usize..30_000,
            beside in 0usize..500, mode in 0usize..4, shared: bool
        ) {
            let components: Vec<Component> = components.into_iter().map(|c| Component { beside, ..c }).collect();
            let offload = Offload::ALL[mode];
            let of_host = [(HostBound::Memory, memory), (HostBound::Addresses, addresses)]
                .map(|(bound, bytes)| Some(HostLimit { bound, bytes, process: 50, graph: 0, shared }));
            let mut limits = Limits { bytes: Some(limit), host: shared, overhead: 0, of_host };
            // As often as there are bounds, a refusal may name the next.
            for _ in 0..4 {
                match plan(&components, offload, &limits) {
                    Ok(plan) => {
                        check(&plan, &components)?;
                        let used = plan.host.unwrap();
                        prop_assert!(used.peak <= used.limit, "{used:?}");
                        return Ok(());
                    }
                    Err(refusal) => {
                        prop_assert!(refusal.least > refusal.given);
                        match refusal.bound {
                            None => limits.bytes = Some(refusal.least),
                            Some(HostBound::Memory) => limits.of_host[0].as_mut().unwrap().bytes = refusal.least,
                            Some(HostBound::Addresses) => limits.of_host[1].as_mut().unwrap().bytes = refusal.least,
                        }
                    }
                }
            }
            prop_assert!(false, "no plan for {limits:?}");
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

    /// A stage for every request and then `step` for every step, of so many bytes, in requests of ten steps.
    fn component(step: &[usize]) -> Component {
        let stage = |weights, cadence| StageBytes {
            name: String::new(),
            cadence,
            weights,
            mapped: 0,
            file: weights,
            stays: false,
            idle: 0,
            idle_apart: 0,
        };
        let mut stages = vec![stage(500, Cadence::Request)];
        stages.extend(step.iter().map(|&weights| stage(weights, Cadence::Step)));
        let variants = vec![Variant {
            way: Way::Whole,
            batch: Batch::default(),
            host: 0,
            ports: 10,
            activations: 20,
            scratch: 5,
            graphs: 0,
        }];
        Component {
            name: "c",
            phase: crate::plan::Phase::Encode,
            stages,
            variants,
            runs: Runs::of_steps(10),
            beside: 0,
            company: 0,
            own: Vec::new(),
            share: TokenShare::ALL,
            work: Work::default(),
        }
    }

    fn within(component: &Component, offload: Offload, bytes: usize) -> Result<ComponentPlan, Refusal> {
        let limits = Limits { bytes: Some(bytes), ..Limits::default() };
        Ok(plan(std::slice::from_ref(component), offload, &limits)?.components.remove(0))
    }

    #[test]
    fn larger_stages_stay_first_and_slots_shrink() {
        let component = component(&[1000, 1000, 500, 500, 500, 500]);
        let auto = |bytes| within(&component, Offload::Auto, bytes);
        // Both large ones and two slots of 500: the slots are half of what they would be.
        let streamed = auto(3035).unwrap();
        assert_eq!((streamed.placement.slot_bytes, streamed.moved_each_step), (500, 2000));
        assert_eq!(streamed.parts.total(), 3035);
        assert_eq!(streamed.placement.slot_of, [Some(0), None, None, Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(auto(4535).unwrap().streamed(), 0);
        assert_eq!(auto(100).unwrap_err().least, 35 + 2000);
    }

    #[test]
    fn a_ring_is_larger_where_that_moves_hardly_more() {
        let component = component(&[500; 60]);
        // 35 beside the weights; 61 stages, the first of them once a request.
        let found = [2, 3, 4, 5, 8, 60].map(|slots| {
            let plan = within(&component, Offload::Auto, 35 + slots * 500).unwrap();
            (plan.placement.slots, plan.moved_each_step / 500)
        });
        // The last stage of a step and the first of the next have different slots.
        assert_eq!(found, [(2, 60), (3, 60), (4, 60), (4, 59), (4, 56), (2, 2)]);
        assert_eq!(within(&component, Offload::Sequential, 8 * 500).unwrap().placement.slots, 2);
    }

    #[test]
    fn stages_move_in_the_steps_in_which_they_run() {
        let mut component = component(&[1000, 900, 500]);
        (component.stages[1].idle, component.stages[1].idle_apart) = (4, 8);
        let plan = within(&component, Offload::Sequential, 2035).unwrap();
        assert_eq!((plan.streamed(), plan.moved_once, plan.moved_each_step), (4, 500 + 6 * 1000, 1400));
        component.variants[0].batch = Batch { passes: 2, at_once: Some(1), ..Batch::default() };
        let plan = within(&component, Offload::Sequential, 2035).unwrap();
        assert_eq!((plan.moved_once, plan.moved_each_step), (2 * 500 + 12 * 1000, 2800));
    }

    #[test]
    fn small_stages_stay_where_they_fit() {
        let component = component(&[100, 1000, 900, 1000, 900, 120]);
        let sequential = |bytes| within(&component, Offload::Sequential, bytes).unwrap().placement.slot_of;
        // The large ones go round: the last of a step computes while the first of the next is brought.
        assert_eq!(sequential(2255), [Some(0), None, Some(1), Some(0), Some(1), Some(0), None]);
        assert_eq!(sequential(2154), [Some(0), None, Some(1), Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!(sequential(2035), [Some(0), Some(1), Some(0), Some(1), Some(0), Some(1), Some(0)]);
        assert!(within(&component, Offload::Sequential, 2034).is_err());
    }
}
