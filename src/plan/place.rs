//! Which stages of a component stay, and which stream.
//!
//! Those that stay are chosen so that the fewest bytes move; a larger stage that stays can make all slots smaller, so every
//! size of slot is tried.

use super::{Component, Offload};
use crate::stage::Cadence;

/// Slots of a ring: one computes while the other fills. What more slots would take is better spent on stages that stay.
pub(super) const SLOTS: usize = 2;

/// Which stages stream.
pub(super) type Streamed = Vec<bool>;

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
pub(super) fn bytes_of(component: &Component, streamed: &[bool]) -> (usize, usize, usize) {
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
pub(super) fn moved(component: &Component, streamed: &[bool]) -> (usize, usize) {
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

pub(super) fn least_weights(component: &Component, offload: Offload) -> usize {
    let sizes = if offload == Offload::Model { vec![0] } else { slot_sizes(component) };
    let each = sizes.into_iter().map(|size| footprint(component, &streamed_up_to(component, size)));
    each.min().unwrap_or(0)
}

/// The best placement whose weights and slots take at most `available` bytes.
pub(super) fn place(component: &Component, offload: Offload, available: usize) -> Option<Streamed> {
    let fits = |streamed: &Streamed| footprint(component, streamed) <= available;
    let candidates = slot_sizes(component).into_iter().map(|size| streamed_up_to(component, size)).filter(fits);
    match offload {
        Offload::Sequential => {
            let smallest = candidates.min_by_key(|streamed| footprint(component, streamed));
            smallest.map(|streamed| keep_small(component, streamed, available))
        }
        Offload::Model => candidates.into_iter().find(|streamed| !streamed.contains(&true)),
        Offload::Auto | Offload::None => {
            let grown = candidates.map(|streamed| {
                let streamed = keep_small(component, streamed, available);
                even_out(component, grow(component, streamed, available), available)
            });
            grown.min_by_key(|streamed| {
                let moved = all_moved(component, streamed);
                (moved, streamed.contains(&true), footprint(component, streamed))
            })
        }
    }
}

/// A stage is small that takes at most this part of a slot.
const SMALL: usize = 8;

/// Lets small stages stay that run more than once, as long as they fit: no copy hides behind the short time that they
/// compute, but each would take a slot from a copy that could hide behind a large one.
fn keep_small(component: &Component, mut streamed: Streamed, available: usize) -> Streamed {
    let (_, _, slot) = bytes_of(component, &streamed);
    for (i, stage) in component.stages.iter().enumerate() {
        let keeps = streamed[i] && stage.weights <= slot / SMALL && component.runs.of(stage.cadence) > 1;
        streamed[i] = streamed[i] && !keeps;
        if keeps && footprint(component, &streamed) > available {
            streamed[i] = true;
        }
    }
    streamed
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
