//! What devices give each other that have the tokens of a model's stages among them.
//!
//! Each device knows, of every port, which tokens its stages read and write. If a stage reads tokens that another device has computed, they are
//! copied from there before the stage. Keys and values are copied of all tokens that are not the device's own.

use std::ops::Range;

use super::{DryRun, Work};
use crate::Result;
use crate::stage::{Cadence, Dims, Model, Port, Spans, Touched};

/// Where tokens are that one device takes from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// A port.
    Port(Port),
    /// Number so many of what the stage gathers.
    Gathered(usize),
}

/// Tokens that device `to` takes from device `from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pull {
    pub(crate) rows: Rows,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) tokens: Range<usize>,
}

/// Which tokens of each port every device has as they are. All of them, unless a stage has written some on another device.
#[derive(Clone)]
pub(crate) struct Held {
    /// By device and port.
    spans: Vec<Vec<Spans>>,
}

impl Held {
    /// So many devices that have all of so many ports.
    pub(crate) fn new(devices: usize, ports: usize) -> Held {
        Held { spans: vec![vec![Spans::all(); ports]; devices] }
    }

    /// The host has filled `port` of a device.
    pub(crate) fn fill(&mut self, device: usize, port: Port) {
        self.spans[device][port.index()] = Spans::all();
    }

    /// What has to come before a stage that touches this on each device, so that each has what it reads there. `tokens` says how many a
    /// port has.
    pub(crate) fn before(&mut self, touched: &[&Touched], tokens: impl Fn(Port) -> usize) -> Vec<Pull> {
        let mut pulls = Vec::new();
        for (to, touched) in touched.iter().enumerate() {
            for (port, wanted) in &touched.reads {
                let wanted = wanted.and(&Spans::one(0..tokens(*port)));
                pulls.extend(self.missing(to, *port, &wanted));
            }
        }
        self.come(&pulls);
        pulls
    }

    /// What has to come so that device `to` has all `tokens` tokens of `port`.
    pub(crate) fn all_of(&mut self, to: usize, port: Port, tokens: usize) -> Vec<Pull> {
        let pulls = self.missing(to, port, &Spans::one(0..tokens));
        self.come(&pulls);
        pulls
    }

    /// The tokens that device `to` wants and does not have, and the devices that have them now.
    fn missing(&self, to: usize, port: Port, wanted: &Spans) -> Vec<Pull> {
        let (mut pulls, mut missing) = (Vec::new(), wanted.without(&self.spans[to][port.index()]));
        for from in (0..self.spans.len()).filter(|&from| from != to) {
            let there = missing.and(&self.spans[from][port.index()]);
            for tokens in there.ranges() {
                pulls.push(Pull { rows: Rows::Port(port), from, to, tokens: tokens.clone() });
            }
            missing = missing.without(&there);
        }
        pulls
    }

    /// All `pulls` have come, at the same time.
    fn come(&mut self, pulls: &[Pull]) {
        for pull in pulls {
            if let Rows::Port(port) = pull.rows {
                self.spans[pull.to][port.index()].add(pull.tokens.clone());
            }
        }
    }

    /// What each device takes of the keys and values that a stage gathers.
    pub(crate) fn gathered(touched: &[&Touched]) -> Vec<Pull> {
        let mut pulls = Vec::new();
        for (to, own) in touched.iter().enumerate() {
            for (number, gathered) in own.gathered.iter().enumerate() {
                let mut there = gathered.own.clone();
                for (from, other) in touched.iter().enumerate() {
                    let Some(of_other) = other.gathered.get(number) else { continue };
                    for tokens in of_other.own.without(&there).ranges() {
                        pulls.push(Pull { rows: Rows::Gathered(number), from, to, tokens: tokens.clone() });
                        there.add(tokens.clone());
                    }
                }
            }
        }
        pulls
    }

    /// A stage has run that touches this on each device.
    pub(crate) fn after(&mut self, touched: &[&Touched]) {
        for (device, spans) in self.spans.iter_mut().enumerate() {
            for (by, touched) in touched.iter().enumerate() {
                for (port, written) in touched.writes.iter().filter(|_| by != device) {
                    spans[port.index()] = spans[port.index()].without(written);
                }
            }
            for (port, written) in touched.get(device).into_iter().flat_map(|touched| &touched.writes) {
                for tokens in written.ranges() {
                    spans[port.index()].add(tokens.clone());
                }
            }
        }
    }
}

/// What each of several devices has to do in a step, which have the tokens among them: `runs` says what each was found to do in
/// one of `parts` passes over the stages of `model`, of sizes `dims`.
pub(super) fn works(model: &Model, dims: &Dims, parts: usize, runs: &[DryRun]) -> Result<Vec<Work>> {
    let mut held = Held::new(runs.len(), model.ports().len());
    let mut heights = Vec::with_capacity(model.ports().len());
    for spec in model.ports() {
        heights.push(spec.shape(dims)?);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole_quant::DType;

    use super::*;
    use crate::stage::Lifetime;

    fn touched(reads: &[(Port, Range<usize>)], writes: &[(Port, Range<usize>)]) -> Touched {
        let spans =
            |list: &[(Port, Range<usize>)]| list.iter().map(|(port, at)| (*port, Spans::one(at.clone()))).collect();
        Touched { reads: spans(reads), writes: spans(writes), ..Touched::default() }
    }

    #[test]
    fn a_device_takes_what_it_reads_and_another_has_written() {
        let mut model = Model::new();
        let [a, b] = ["a", "b"].map(|name| model.port(name, &[4.into(), 10.into()], DType::F32, Lifetime::Pass));
        let mut held = Held::new(2, 2);
        let halves = [touched(&[(a, 0..5)], &[(b, 0..5)]), touched(&[(a, 5..10)], &[(b, 5..10)])];
        let step = [&halves[0], &halves[1]];
        // The host has filled both.
        assert_eq!(held.before(&step, |_| 10), []);
        held.after(&step);
        // Each goes on with its own.
        let next = [touched(&[(b, 0..5)], &[]), touched(&[(b, 5..10)], &[])];
        assert_eq!(held.before(&[&next[0], &next[1]], |_| 10), []);
        // One reads everything, the other a little more than its own.
        let more = [touched(&[(b, 0..usize::MAX)], &[(a, 0..usize::MAX)]), touched(&[(b, 4..10)], &[])];
        let found = held.before(&[&more[0], &more[1]], |_| 10);
        let pull = |from, to, tokens| Pull { rows: Rows::Port(b), from, to, tokens };
        assert_eq!(found, [pull(1, 0, 5..10), pull(0, 1, 4..5)]);
        assert_eq!(held.before(&[&more[0], &more[1]], |_| 10), []);
        held.after(&[&more[0], &more[1]]);
        assert_eq!(held.all_of(1, a, 10), [Pull { rows: Rows::Port(a), from: 0, to: 1, tokens: 0..10 }]);
        assert_eq!(held.all_of(0, a, 10), []);
        held.after(&[&more[0], &more[1]]);
        held.fill(1, a);
        assert_eq!(held.all_of(1, a, 10), []);
    }
}
