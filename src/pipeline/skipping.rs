//! Which evaluations a step cache skips: decided on the host, by the same numbers wherever weights are, so that what streams skips what
//! stays skips. Each pass of an evaluation is decided by itself; pictures of a batch are decided together, as diffusers does it.

use std::collections::BTreeMap;
use std::ops::Range;

use super::step_cache::{Cache, CacheKind, Caches, Rescaling};
use crate::{Result, reserve};

/// How many evaluations TaylorSeer computes before it skips any: `disable_cache_before_step` of diffusers' configuration.
const WARM_UP: usize = 3;

/// The share of the first evaluations that MagCache computes, and how many it skips in a row at most: `retention_ratio` and
/// `max_skip_steps` of diffusers' configuration.
const RETAINED: f64 = 0.2;
const MOST_IN_A_ROW: usize = 3;

/// The cache of one request.
pub(super) struct Skipping {
    cache: Cache,
    evaluations: usize,
    /// That of each pass.
    deciders: Vec<Decider>,
    /// What the evaluations are extrapolated from, of all passes.
    series: Series,
    /// For each pass, which evaluations were computed.
    pub(super) computed: Vec<Vec<bool>>,
    /// What the skipped stages added when they were computed last, for each part of a batch that is computed in parts, by its first item.
    pub(super) kept: BTreeMap<usize, Vec<f32>>,
}

/// What one pass is decided by.
enum Decider {
    FirstBlock(FirstBlock),
    TeaCache(TeaCache),
    MagCache(MagCache),
    TaylorSeer,
}

impl Skipping {
    /// For `evaluations` evaluations in `passes` passes.
    pub(super) fn new(cache: Cache, evaluations: usize, passes: usize) -> Skipping {
        let computed = vec![Vec::new(); passes];
        Skipping {
            cache,
            evaluations,
            deciders: Vec::new(),
            series: Series::default(),
            computed,
            kept: BTreeMap::new(),
        }
    }

    /// Another network begins, for which these `caches` are defined: nothing is known of it.
    pub(super) fn begin(&mut self, caches: &Caches) -> Result<()> {
        let ratios = ratios(caches.magcache.unwrap_or_default(), self.evaluations)?;
        self.deciders = (0..self.computed.len())
            .map(|_| match self.cache.kind {
                CacheKind::FirstBlock => Decider::FirstBlock(FirstBlock::default()),
                CacheKind::TeaCache => Decider::TeaCache(TeaCache::new(caches.teacache.unwrap_or_default())),
                CacheKind::MagCache => Decider::MagCache(MagCache::new(ratios.clone())),
                CacheKind::TaylorSeer => Decider::TaylorSeer,
            })
            .collect();
        (self.series, self.kept) = (Series::default(), BTreeMap::new());
        Ok(())
    }

    /// Which of `passes` of `evaluation` are computed, if the model's lead gave `probe`, in equal parts for each of them.
    pub(super) fn decide(&mut self, evaluation: usize, passes: Range<usize>, probe: &[f32]) -> Result<Vec<bool>> {
        let threshold = self.cache.threshold;
        let is_last = evaluation + 1 == self.evaluations;
        let each = probe.len() / passes.len().max(1);
        let mut decided = Vec::with_capacity(passes.len());
        for (at, pass) in passes.enumerate() {
            let probe = &probe[at * each..(at + 1) * each];
            let Some((decider, computed)) = self.deciders.get_mut(pass).zip(self.computed.get_mut(pass)) else {
                continue;
            };
            let computes = match decider {
                Decider::FirstBlock(first_block) => first_block.computes(probe, threshold)?,
                Decider::TeaCache(teacache) => teacache.computes(probe, threshold, is_last)?,
                Decider::MagCache(magcache) => magcache.computes(threshold),
                Decider::TaylorSeer => Series::computes(evaluation, threshold),
            };
            computed.push(computes);
            decided.push(computes);
        }
        Ok(decided)
    }

    /// Whether predictions are extrapolated, so that nothing of a model runs in evaluations that are skipped.
    pub(super) fn extrapolates(&self) -> bool {
        self.cache.kind == CacheKind::TaylorSeer
    }

    /// The model has predicted this in `evaluation`.
    pub(super) fn learn(&mut self, evaluation: usize, prediction: &[f32]) -> Result<()> {
        self.series.learn(evaluation, prediction)
    }

    /// What it would predict in `evaluation`.
    pub(super) fn extrapolated(&self, evaluation: usize) -> Result<Vec<f32>> {
        self.series.at(evaluation)
    }
}

/// The mean of the magnitudes of `a - b` over that of `b`. Sums are in double precision and in one order.
fn relative_change(a: &[f32], b: &[f32]) -> f64 {
    let (mut change, mut magnitude) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        // The difference as diffusers rounds it.
        change += f64::from((a - b).abs());
        magnitude += f64::from(b.abs());
    }
    change / magnitude
}

/// `numbers` in the place of what `kept` holds.
fn replace(kept: &mut Vec<f32>, numbers: &[f32]) -> Result<()> {
    if kept.len() != numbers.len() {
        *kept = reserve::zeros("a step cache", numbers.len())?;
    }
    kept.copy_from_slice(numbers);
    Ok(())
}

/// First-block cache: diffusers' `FBCHeadBlockHook`.
#[derive(Default)]
struct FirstBlock {
    /// What the first block added when the others were computed last.
    kept: Vec<f32>,
}

impl FirstBlock {
    fn computes(&mut self, probe: &[f32], threshold: f32) -> Result<bool> {
        let computes = self.kept.is_empty() || relative_change(probe, &self.kept) > f64::from(threshold);
        if computes {
            replace(&mut self.kept, probe)?;
        }
        Ok(computes)
    }
}

/// TeaCache, as its authors' script for transformers of diffusers has it.
struct TeaCache {
    coefficients: [f64; 5],
    /// What changed since the blocks were computed last.
    sum: f64,
    /// The input in the evaluation before.
    last: Vec<f32>,
}

impl TeaCache {
    fn new(Rescaling { coefficients, .. }: Rescaling) -> TeaCache {
        TeaCache { coefficients, sum: 0.0, last: Vec::new() }
    }

    fn computes(&mut self, probe: &[f32], threshold: f32, is_last: bool) -> Result<bool> {
        let mut computes = self.last.is_empty() || is_last;
        if !computes {
            let change = relative_change(probe, &self.last);
            self.sum += self.coefficients.iter().fold(0.0, |sum, coefficient| sum * change + coefficient);
            computes = self.sum.is_nan() || self.sum >= f64::from(threshold);
        }
        if computes {
            self.sum = 0.0;
        }
        replace(&mut self.last, probe)?;
        Ok(computes)
    }
}

/// MagCache: diffusers' `MagCacheHeadHook`. All of it is in single precision, as there.
struct MagCache {
    /// That of each evaluation.
    ratios: Vec<f32>,
    evaluation: usize,
    ratio: f32,
    error: f32,
    in_a_row: usize,
}

impl MagCache {
    fn new(ratios: Vec<f32>) -> MagCache {
        MagCache { ratios, evaluation: 0, ratio: 1.0, error: 0.0, in_a_row: 0 }
    }

    fn computes(&mut self, threshold: f32) -> bool {
        let (evaluation, evaluations) = (self.evaluation, self.ratios.len());
        self.evaluation += 1;
        let retained = (RETAINED * evaluations as f64 + 0.5) as usize;
        if evaluation < retained {
            return true;
        }
        self.ratio *= self.ratios.get(evaluation).copied().unwrap_or(1.0);
        self.in_a_row += 1;
        self.error += (1.0 - self.ratio).abs();
        if evaluation > 0 && self.error <= threshold && self.in_a_row <= MOST_IN_A_ROW {
            return false;
        }
        (self.ratio, self.error, self.in_a_row) = (1.0, 0.0, 0);
        true
    }
}

/// As many of `ratios` as there are evaluations, each the nearest: `nearest_interp` of diffusers.
fn ratios(ratios: &[f32], evaluations: usize) -> Result<Vec<f32>> {
    let Some((last, _)) = ratios.split_last() else { return Ok(Vec::new()) };
    if evaluations == 1 {
        return reserve::repeat("the magnitudes", &[*last], 1);
    }
    let mut nearest = reserve::room("the magnitudes", evaluations)?;
    for i in 0..evaluations {
        let scale = (ratios.len() - 1) as f64 / (evaluations - 1) as f64;
        nearest.push(ratios[((i as f32 * scale as f32).round_ties_even() as usize).min(ratios.len() - 1)]);
    }
    Ok(nearest)
}

/// The last prediction and how it changed, which is extrapolated: diffusers' `TaylorSeerState` of order 1.
#[derive(Default)]
struct Series {
    /// When it was learned.
    evaluation: usize,
    value: Vec<f32>,
    /// The change from one evaluation to the next; empty if only one was learned.
    slope: Vec<f32>,
}

impl Series {
    /// Whether `evaluation` is computed: diffusers' `_measure_should_compute`.
    fn computes(evaluation: usize, interval: f32) -> bool {
        // It was checked: a whole number from 1 on.
        let interval = (interval as usize).max(1);
        evaluation < WARM_UP || (evaluation - WARM_UP + interval - 1).is_multiple_of(interval)
    }

    fn learn(&mut self, evaluation: usize, prediction: &[f32]) -> Result<()> {
        if !self.value.is_empty() {
            let distance = (evaluation - self.evaluation) as f32;
            let slope = prediction.iter().zip(&self.value).map(|(new, old)| (new - old) / distance);
            self.slope = reserve::collect("a step cache", prediction.len(), slope)?;
        }
        self.evaluation = evaluation;
        replace(&mut self.value, prediction)
    }

    fn at(&self, evaluation: usize) -> Result<Vec<f32>> {
        let distance = (evaluation - self.evaluation) as f32;
        if self.slope.is_empty() {
            return reserve::repeat("a step cache", &self.value, 1);
        }
        let numbers = self.value.iter().zip(&self.slope).map(|(value, slope)| value + slope * distance);
        reserve::collect("a step cache", self.value.len(), numbers)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn marks(computed: impl IntoIterator<Item = bool>) -> String {
        computed.into_iter().map(|computed| if computed { 'x' } else { '.' }).collect()
    }

    #[test]
    fn intervals() {
        let series = |interval| marks((0..14).map(|evaluation| Series::computes(evaluation, interval)));
        assert_eq!(series(5.0), "xxx.x....x....");
        assert_eq!(series(2.0), "xxx.x.x.x.x.x.");
        assert_eq!(series(1.0), "xxxxxxxxxxxxxx");
        let mut series = Series::default();
        series.learn(0, &[1.0, 2.0]).unwrap();
        assert_eq!(series.at(3).unwrap(), [1.0, 2.0]);
        series.learn(2, &[2.0, 0.0]).unwrap();
        assert_eq!(series.at(5).unwrap(), [3.5, -3.0]);
    }

    #[test]
    fn magnitudes() {
        let quotients = [1.0, 1.5, 1.01, 1.02, 0.99, 0.9];
        assert_eq!(ratios(&quotients, 3).unwrap(), [1.0, 1.01, 0.9]);
        assert_eq!(ratios(&quotients, 1).unwrap(), [0.9]);
        assert!(ratios(&quotients, 0).unwrap().is_empty());
        let decided = |count, threshold| {
            let mut cache = MagCache::new(ratios(&quotients, count).unwrap());
            marks((0..count).map(|_| cache.computes(threshold)))
        };
        assert_eq!(decided(6, 0.1), "xx...x");
        // Three in a row are the most.
        assert_eq!(decided(11, 100.0), "xx...x...x.");
        assert_eq!(decided(6, 0.0), "xxxxxx");
        assert_eq!(decided(1, 100.0), "x");
    }

    #[test]
    fn changes_that_add_up() {
        let mut cache = TeaCache::new(Rescaling { coefficients: [0.0, 0.0, 0.0, 2.0, 0.1], threshold: 0.5 });
        let mut decide = |probe: f32, is_last| cache.computes(&[probe, -probe], 0.5, is_last).unwrap();
        assert!(decide(1.0, false));
        // 2 * 0.1 + 0.1, and 2 * 0.1 / 1.1 + 0.1 more.
        assert!(!decide(1.1, false));
        assert!(decide(1.2, false));
        assert!(!decide(1.2, false));
        assert!(decide(1.2, true));
    }

    #[test]
    fn passes_are_decided_each_by_itself() {
        let caches = Caches { first_block: true, ..Caches::NONE };
        let cache = Cache { kind: CacheKind::FirstBlock, threshold: 0.25 };
        let mut skipping = Skipping::new(cache, 4, 2);
        skipping.begin(&caches).unwrap();
        let mut decide = |evaluation, probe: [f32; 4]| skipping.decide(evaluation, 0..2, &probe).unwrap();
        assert_eq!(decide(0, [1.0, 1.0, 1.0, 1.0]), [true, true]);
        assert_eq!(decide(1, [1.5, 1.0, 2.0, 1.0]), [false, true]);
        // Compared with what was computed last.
        assert_eq!(decide(2, [1.6, 1.0, 2.0, 1.0]), [true, false]);
        assert_eq!(decide(3, [1.6, 1.0, 2.0, 1.9]), [false, true]);
        assert_eq!(skipping.computed, [[true, false, true, false], [true, true, false, true]]);
    }
}
