//! Brownian motion that can be asked for the increment of any interval, in any order, and always answers the same: what
//! torchsde's `BrownianInterval` answers with `halfway_tree`, as diffusers' `DPMSolverSDEScheduler` makes it.
//!
//! The interval is halved again and again, to a millionth. Each half's increment is drawn from the whole's (a Brownian
//! bridge), by a generator that is seeded from the entropy and the place in the tree. Li et al., "Scalable Gradients for
//! Stochastic Differential Equations", 2020, and Kidger et al., "Efficient and Accurate Gradients for Neural SDEs", 2021.

use super::noise::randn;
use super::seed_sequence;
use crate::{Result, reserve};

/// Digits behind the point to which torchsde rounds times: its `tol` of 1e-6.
const DIGITS: usize = 6;

/// No interval of doubles is halved more often.
const MOST_DEPTH: u64 = 64;

/// The Brownian motion of one picture.
#[derive(Clone, Debug)]
pub(super) struct BrownianTree {
    seed: u64,
    /// How many numbers each increment has.
    len: usize,
    ends: [f64; 2],
    /// Of the whole interval.
    increment: Vec<f32>,
}

/// A piece of the interval.
struct Node<'a> {
    ends: [f64; 2],
    /// Its place in its row of the tree, and the row.
    key: [u64; 2],
    increment: &'a [f32],
}

impl BrownianTree {
    /// Motion of `len` numbers from `start` to `end`.
    pub(super) fn new(seed: u64, len: usize, [start, end]: [f32; 2]) -> Result<BrownianTree> {
        let [start, end] = [start, end].map(f64::from);
        let mut increment = randn(u64::from(seed_sequence::state::<1>(seed, &[])[0]), len)?;
        let deviation = (end - start).sqrt() as f32;
        increment.iter_mut().for_each(|x| *x *= deviation);
        Ok(BrownianTree { seed, len, ends: [start, end].map(rounded), increment })
    }

    /// The increment from `from` to `to`, divided by the square root of the time between: standard normal. Towards
    /// smaller times its sign is the other one.
    pub(super) fn noise(&self, from: f32, to: f32) -> Result<Vec<f32>> {
        let held = |time: f32| rounded(f64::from(time).clamp(self.ends[0], self.ends[1]));
        let (low, high) = if from < to { (from, to) } else { (to, from) };
        let mut sum = reserve::zeros("noise", self.len)?;
        let whole = Node { ends: self.ends, key: [0, 0], increment: &self.increment };
        let [low, high] = [held(low), held(high)];
        if low < high {
            self.add(&whole, [low, high], &mut sum)?;
        }
        let deviation = (to - from).abs().sqrt() * if from < to { 1.0 } else { -1.0 };
        sum.iter_mut().for_each(|x| *x /= deviation);
        Ok(sum)
    }

    /// Adds the increment of what `node` and the interval between `from` and `to` have in common to `sum`, from the left to
    /// the right.
    fn add(&self, node: &Node<'_>, [from, to]: [f64; 2], sum: &mut [f32]) -> Result<()> {
        let [start, end] = node.ends;
        if from >= end || to <= start {
            return Ok(());
        }
        let middle = rounded(0.5 * (end + start));
        let is_smallest = node.key[1] >= MOST_DEPTH || middle <= start || middle >= end;
        if (from <= start && to >= end) || is_smallest {
            sum.iter_mut().zip(node.increment).for_each(|(sum, x)| *sum += x);
            return Ok(());
        }
        let [row, depth] = node.key;
        let seed = seed_sequence::state::<1>(self.seed, &node.key)[0];
        let [before, after] = [middle - start, end - middle];
        let whole = 1.0 / (end - start);
        let mut left = randn(u64::from(seed), self.len)?;
        let deviation = (before * after * whole).sqrt() as f32;
        for (x, w) in left.iter_mut().zip(node.increment) {
            *x = before as f32 * w * whole as f32 + deviation * *x;
        }
        self.add(&Node { ends: [start, middle], key: [2 * row, depth + 1], increment: &left }, [from, to], sum)?;
        left.iter_mut().zip(node.increment).for_each(|(x, w)| *x = w - *x);
        self.add(&Node { ends: [middle, end], key: [2 * row + 1, depth + 1], increment: &left }, [from, to], sum)
    }
}

/// Python's `round` to [`DIGITS`].
fn rounded(time: f64) -> f64 {
    format!("{time:.DIGITS$}").parse().unwrap_or(time)
}
