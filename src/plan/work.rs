//! What a device has to do in a step of a component, and how long that takes at a given speed.

use super::measure::Subject;
use super::{Batch, ComponentPlan, DryRun, Held, Pull, Rows};
use crate::Result;
use crate::stage::{Cadence, Model, Touched};

/// What a device has to do in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Multiplications and additions of products and of attention.
    pub arithmetic: u64,
    /// Bytes of tokens that it takes from other devices, and that others take from it.
    pub taken: usize,
    /// See [`taken`](Work::taken).
    pub given: usize,
    /// How often the devices wait for each other.
    pub meetings: usize,
}

/// How fast a device is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Multiplications and additions a second.
    pub arithmetic: f64,
    /// Bytes a second between host and device.
    pub link: f64,
}

/// Seconds that devices wait for each other beside what they copy: threads wake up.
const MEETING: f64 = 5e-5;

impl Work {
    /// Bytes of tokens that pass between host and device.
    pub fn exchanged(&self) -> usize {
        self.taken.saturating_add(self.given)
    }

    /// Seconds that it takes where nothing streams. What comes from another device passes that device's link first.
    pub fn seconds(&self, speed: Speed) -> f64 {
        let exchange = 2.0 * self.taken as f64 / speed.link + self.meetings as f64 * MEETING;
        self.arithmetic as f64 / speed.arithmetic + exchange
    }
}

impl ComponentPlan {
    /// About how many seconds a request takes for it on a device that is so fast. Weights come while others compute.
    pub fn seconds(&self, speed: Speed) -> f64 {
        let moved = self.moved_each_step as f64 / speed.link;
        self.runs.steps as f64 * self.work.seconds(speed).max(moved) + self.moved_once as f64 / speed.link
    }
}

/// What each of several devices has to do in a step, which have the tokens among them: `runs` says what each was found to do in a pass of
/// `batch` over the stages of `subject`.
pub(super) fn among(subject: &Subject<'_>, batch: Batch, runs: &[DryRun]) -> Result<Vec<Work>> {
    let Subject { model, ref dims, .. } = *subject;
    let dims = batch.dims(dims);
    let mut held = Held::new(runs.len(), model.ports().len());
    let mut heights = Vec::with_capacity(model.ports().len());
    for spec in model.ports() {
        heights.push(spec.shape(&dims)?);
    }
    let mut all = vec![Work::default(); runs.len()];
    // What a step leaves to the next counts in the second.
    for (cadence, counts) in [(Cadence::Request, false), (Cadence::Step, false), (Cadence::Step, true)] {
        for stage in model.at(cadence).filter(|&stage| model.stages()[stage].cadence != Cadence::Instead) {
            let touched: Vec<&Touched> = runs.iter().map(|run| run.touched(stage)).collect();
            let before = held.before(&touched, |port| heights[port.index()].dims()[1]);
            let gathered = Held::gathered(&touched);
            held.after(&touched);
            for pulls in [&before, &gathered].into_iter().filter(|pulls| counts && !pulls.is_empty()) {
                all.iter_mut().for_each(|work| work.meetings += 2);
                for pull in pulls {
                    let bytes = bytes_of(pull, &touched, |port| heights[port].dims());
                    all[pull.to].taken = all[pull.to].taken.saturating_add(bytes);
                    all[pull.from].given = all[pull.from].given.saturating_add(bytes);
                }
            }
        }
    }
    let parts = batch.parts_each_step();
    for (work, run) in all.iter_mut().zip(runs) {
        let arithmetic = run.arithmetic(model).saturating_mul(parts as u64);
        let [taken, given, meetings] = [work.taken, work.given, work.meetings].map(|count| count.saturating_mul(parts));
        *work = Work { arithmetic, taken, given, meetings };
    }
    Ok(all)
}

/// How many bytes `pull` is.
fn bytes_of(pull: &Pull, touched: &[&Touched], port: impl Fn(usize) -> [usize; 4]) -> usize {
    let [width, second, third, last] = match pull.rows {
        Rows::Port(of) => port(of.index()),
        Rows::Gathered(number) => touched[pull.to].gathered[number].place.shape().dims(),
    };
    let each = match pull.rows {
        Rows::Port(_) => width * third * last,
        Rows::Gathered(_) => width * second * last,
    };
    size_of::<f32>() * each * pull.tokens.len()
}

impl DryRun {
    /// Multiplications and additions in one pass over the stages of a step.
    pub(super) fn arithmetic(&self, model: &Model) -> u64 {
        let steps = model.at(Cadence::Step).filter(|&stage| model.stages()[stage].cadence != Cadence::Instead);
        steps.map(|stage| self.arithmetic_of(stage)).fold(0, u64::saturating_add)
    }
}
