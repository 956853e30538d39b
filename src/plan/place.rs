//! Which stages of a component stay, and which stream.
//!
//! The best placement is the one that moves the fewest bytes. A large stage that stays can make all slots smaller, so every
//! size of slot is tried. For each size, [`place`] starts with everything streamed that fits into such a slot, and takes three
//! steps. Their order matters:
//!
//! 1. [`keep_small`] lets small stages stay. It comes before `grow`, which would spend their few bytes on a larger stage.
//! 2. [`grow`] spends the room that is left on the stages that run most often, the largest first.
//! 3. [`even_out`] sees to it that the first stage of a pass has another slot than the last one of the pass before. It comes last, because
//!    either of the other two would change that again.
//!
//! None of the steps makes a slot larger, so that a placement that fits still fits after each. All of this is done for a ring of
//! [`SLOTS`], and for larger ones: the largest is taken that moves hardly more bytes.

use std::cmp::Reverse;

use super::{Component, Offload};
use crate::stage::Cadence;

/// Slots of a ring at least: one computes while the other fills.
pub(super) const SLOTS: usize = 2;

/// Slots of a ring at most. Stages of the same size may take very different times, as the feed-forward layers of an image and of its text do: if
/// there are more slots, the copies for a short stage and for the one behind it are made while a long one computes.
pub(super) const MOST_SLOTS: usize = 4;

/// The part of all moved bytes that may move beside, for a larger ring: what is spent on slots holds no stages that stay.
const WORTH: usize = 16;

/// Which stages stream.
pub(super) type Streamed = Vec<bool>;

/// The sizes that slots can have, and 0: with that, everything stays.
fn slot_sizes(component: &Component) -> Vec<usize> {
    let mut sizes: Vec<usize> = component.stages.iter().map(|stage| stage.weights).chain([0]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// The placement that streams every stage that fits into a slot of `size` bytes.
fn streamed_up_to(component: &Component, size: usize) -> Streamed {
    component.stages.iter().map(|stage| stage.weights > 0 && stage.weights <= size && !stage.stays).collect()
}

/// Bytes of the stages that stay, number of slots, `most` at most, bytes of each.
pub(super) fn bytes_of(component: &Component, streamed: &[bool], most: usize) -> (usize, usize, usize) {
    let (mut resident, mut count, mut slot) = (0usize, 0, 0);
    for (stage, streams) in component.stages.iter().zip(streamed) {
        match streams {
            true => (count, slot) = (count + 1, slot.max(stage.weights)),
            false => resident = resident.saturating_add(stage.weights),
        }
    }
    (resident, most.min(count), slot)
}

fn footprint(component: &Component, streamed: &[bool], slots: usize) -> usize {
    let (resident, slots, slot) = bytes_of(component, streamed, slots);
    resident.saturating_add(slot.saturating_mul(slots))
}

/// Bytes that move in a request: once a request; in all for stages that some steps do without; and in each step that skips nothing.
pub(super) fn moved(component: &Component, streamed: &[bool]) -> [usize; 3] {
    let (mut once, mut some, mut each_step) = (0usize, 0usize, 0usize);
    for (stage, streams) in component.stages.iter().zip(streamed) {
        match (streams, stage.cadence) {
            (true, Cadence::Request) => {
                once = once.saturating_add(stage.weights.saturating_mul(component.runs.request))
            }
            (true, _) if stage.idle == 0 => each_step = each_step.saturating_add(stage.weights),
            (true, _) => some = some.saturating_add(stage.weights.saturating_mul(component.runs_of(stage))),
            (false, _) => once = once.saturating_add(stage.weights),
        }
    }
    [once, some, each_step]
}

fn all_moved(component: &Component, streamed: &[bool]) -> usize {
    let [once, some, each_step] = moved(component, streamed);
    once.saturating_add(some).saturating_add(each_step.saturating_mul(component.runs.steps))
}

pub(super) fn least_weights(component: &Component, offload: Offload) -> usize {
    let sizes = if offload == Offload::Model { vec![0] } else { slot_sizes(component) };
    let each = sizes.into_iter().map(|size| footprint(component, &streamed_up_to(component, size), SLOTS));
    each.min().unwrap_or(0)
}

/// The best placement whose weights and slots take at most `available` bytes, and how many slots there are at most.
pub(super) fn place(component: &Component, offload: Offload, available: usize) -> Option<(Streamed, usize)> {
    match offload {
        // As little as possible, so nothing grows.
        Offload::Sequential => {
            let fitting = candidates(component, available, SLOTS);
            let mut streamed = fitting.min_by_key(|streamed| footprint(component, streamed, SLOTS))?;
            keep_small(component, &mut streamed, (available, SLOTS));
            Some((streamed, SLOTS))
        }
        Offload::Model => {
            let whole = candidates(component, available, SLOTS).find(|streamed| !streamed.contains(&true))?;
            Some((whole, SLOTS))
        }
        Offload::Auto | Offload::None => {
            let streamed = place_in(component, available, SLOTS)?;
            let moved = all_moved(component, &streamed);
            for slots in (SLOTS + 1..=MOST_SLOTS).rev() {
                let larger = place_in(component, available, slots);
                let larger =
                    larger.filter(|larger| all_moved(component, larger) <= moved.saturating_add(moved / WORTH));
                if let Some(larger) = larger {
                    return Some((larger, slots));
                }
            }
            Some((streamed, SLOTS))
        }
    }
}

/// The placements to begin with that fit, for slots of every size.
fn candidates(component: &Component, available: usize, slots: usize) -> impl Iterator<Item = Streamed> {
    let all = slot_sizes(component).into_iter().map(|size| streamed_up_to(component, size));
    all.filter(move |streamed| footprint(component, streamed, slots) <= available)
}

/// The placement that moves the fewest bytes, with a ring of so many `slots` at most.
fn place_in(component: &Component, available: usize, slots: usize) -> Option<Streamed> {
    let room = (available, slots);
    let improved = candidates(component, available, slots).map(|mut streamed| {
        keep_small(component, &mut streamed, room);
        grow(component, &mut streamed, room);
        even_out(component, &mut streamed, room);
        streamed
    });
    improved.min_by_key(|streamed| {
        let moved = all_moved(component, streamed);
        (moved, streamed.contains(&true), footprint(component, streamed, slots))
    })
}

/// Bytes that are available, and slots of a ring at most.
type Room = (usize, usize);

/// Lets stage `i`, which streams, stay if the placement then still fits.
fn stay_if_it_fits(component: &Component, streamed: &mut Streamed, i: usize, (available, slots): Room) {
    streamed[i] = false;
    if footprint(component, streamed, slots) > available {
        streamed[i] = true;
    }
}

/// A stage is small if it takes at most this part of a slot.
const SMALL: usize = 8;

/// Lets small stages stay that run more than once, as long as they fit. The time that such a stage computes is too short to
/// hide a copy, and streamed it would take a slot from a copy that a large stage could hide.
fn keep_small(component: &Component, streamed: &mut Streamed, room: Room) {
    let (_, _, slot) = bytes_of(component, streamed, SLOTS);
    for (i, stage) in component.stages.iter().enumerate() {
        let is_small = stage.weights <= slot / SMALL;
        if streamed[i] && is_small && component.runs_of(stage) > 1 {
            stay_if_it_fits(component, streamed, i, room);
        }
    }
}

/// Lets stages stay that run more than once, as long as they fit: first those that run most often, and of these the largest
/// first.
fn grow(component: &Component, streamed: &mut Streamed, room: Room) {
    let runs = |i: usize| component.runs_of(&component.stages[i]);
    let mut order: Vec<usize> = (0..streamed.len()).filter(|&i| streamed[i] && runs(i) > 1).collect();
    order.sort_by_key(|&i| (Reverse(runs(i)), Reverse(component.stages[i].weights), i));
    for i in order {
        stay_if_it_fits(component, streamed, i, room);
    }
}

/// Changes how many stages stream in a pass, if the first of them would have the slot of the last one of the pass before: it could not be brought
/// before that was computed. Either the smallest streamed stage stays too; or, if that does not fit, the smallest that stayed streams. If neither
/// can be done, nothing changes.
fn even_out(component: &Component, streamed: &mut Streamed, room: Room) {
    let size = |i: &usize| component.stages[*i].weights;
    for cadence in [Cadence::Step, Cadence::Request] {
        let of_pass: Vec<usize> = (0..streamed.len())
            .filter(|&i| component.stages[i].cadence.is_of_steps() == cadence.is_of_steps())
            .collect();
        let count = of_pass.iter().filter(|&&i| streamed[i]).count();
        let (_, slots, slot) = bytes_of(component, streamed, room.1);
        if component.runs.of(cadence) < 2 || slots < SLOTS || count % slots != 1 {
            continue;
        }
        // At least one stage of this pass streams.
        if let Some(smallest) = of_pass.iter().copied().filter(|&i| streamed[i]).min_by_key(size) {
            stay_if_it_fits(component, streamed, smallest, room);
            if !streamed[smallest] {
                continue;
            }
        }
        let stayed = of_pass
            .iter()
            .copied()
            .filter(|&i| !streamed[i])
            .filter(|i| size(i) > 0 && size(i) <= slot && !component.stages[*i].stays);
        if let Some(smallest) = stayed.min_by_key(size) {
            streamed[smallest] = true;
        }
    }
}
