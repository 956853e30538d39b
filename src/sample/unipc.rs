//! UniPC: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023.

use super::Noise;
use super::history::History;
use super::levels::Levels;
use super::log_snr::{Point, converted};
use super::method::{Rule, UniPcRule};
use super::rounding::exp_m1;
use super::solver::{Solver, check_lengths};
use crate::{Result, reserve};

const NAME: &str = "unipc";

/// The predictor and corrector of any order, as diffusers' `UniPCMultistepScheduler` does them. What an evaluation says of
/// the latents that the predictor gave first corrects these, and then predicts the next ones.
#[derive(Clone, Debug)]
pub(super) struct UniPc {
    rule: Rule,
    own: UniPcRule,
    history: History,
    /// The latents before the last predictor, and its order.
    last: Option<(Vec<f32>, usize)>,
}

/// A step of UniPC without its combination of differences: `keep x - main m0 - scale (..)`.
struct Step {
    keep: f32,
    main: f32,
    scale: f32,
    /// Where earlier predictions lie, in units of the step; then 1.
    places: Vec<f32>,
    /// What the weighted powers of `places` must add up to.
    sums: Vec<f32>,
}

impl UniPc {
    pub(super) fn new(rule: Rule, own: UniPcRule) -> UniPc {
        UniPc { rule, own, history: History::new(rule.order), last: None }
    }

    /// The step of `order` from evaluation `i` to the next. The formulas of the paper's section 3 in diffusers' order of
    /// operations.
    fn unified(&self, i: usize, levels: &Levels, order: usize) -> Result<Step> {
        let [from, to] = [Point::of(levels, i)?, Point::of(levels, i + 1)?];
        let h = to.lambda - from.lambda;
        let signed = if self.own.predict_x0 { -h } else { h };
        let phi_1 = exp_m1(signed);
        let b_h = if self.own.is_bh2 { phi_1 } else { signed };
        let mut places = Vec::new();
        for back in 1..order {
            places.push((Point::of(levels, i - back)?.lambda - from.lambda) / h);
        }
        places.push(1.0);
        let (mut sums, mut phi, mut factorial) = (Vec::new(), phi_1 / signed - 1.0, 1.0);
        for k in 1..=order {
            sums.push(phi * factorial / b_h);
            factorial *= (k + 1) as f32;
            phi = phi / signed - 1.0 / factorial;
        }
        let [keep, share] =
            if self.own.predict_x0 { [to.spread / from.spread, to.alpha] } else { [to.alpha / from.alpha, to.spread] };
        Ok(Step { keep, main: share * phi_1, scale: share * b_h, places, sums })
    }

    /// The latents of evaluation `i`, corrected by what the model says of them, `now`.
    fn correct(&self, i: usize, levels: &Levels, now: &[f32], x: &mut [f32]) -> Result<()> {
        let at = levels.skipped + i;
        let Some((before, order)) = self.last.as_ref().filter(|_| i > 0 && at > 0) else { return Ok(()) };
        if self.own.disable_corrector.contains(&(at - 1)) {
            return Ok(());
        }
        check_lengths(NAME, before, x)?;
        let step = self.unified(i - 1, levels, *order)?;
        let weights = if *order == 1 { vec![0.5] } else { solved(&step.places, &step.sums) };
        let m0 = self.history.ago(NAME, 0, x.len())?;
        let differences = self.differences(&step, x.len())?;
        for (j, x) in x.iter_mut().enumerate() {
            let sum = weighted(&weights, &differences, j, m0[j]);
            let newest = weights[*order - 1] * (now[j] - m0[j]);
            *x = step.keep * before[j] - step.main * m0[j] - step.scale * (sum + newest);
        }
        Ok(())
    }

    /// Earlier predictions, with where they lie.
    fn differences(&self, step: &Step, len: usize) -> Result<Vec<(&[f32], f32)>> {
        let mut found = Vec::new();
        for (back, &place) in step.places[..step.places.len() - 1].iter().enumerate() {
            found.push((self.history.ago(NAME, back + 1, len)?, place));
        }
        Ok(found)
    }

    fn order(&self, i: usize, levels: &Levels) -> usize {
        let left = if self.rule.lower_order_final { levels.len() - i } else { usize::MAX };
        self.rule.order.min(left).min(self.history.len()).min(i + 1)
    }
}

impl Solver for UniPc {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        let now = converted(NAME, (i, levels), (output, x), self.rule.clip, !self.own.predict_x0, noise)?;
        self.correct(i, levels, &now, x)?;
        self.history.push(now);
        let order = self.order(i, levels);
        self.last = Some((reserve::repeat("the latents", x, 1)?, order));
        let step = self.unified(i, levels, order)?;
        let weights = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solved(&step.places[..order - 1], &step.sums),
        };
        let m0 = self.history.ago(NAME, 0, x.len())?;
        let differences = self.differences(&step, x.len())?;
        for (j, x) in x.iter_mut().enumerate() {
            let begun = step.keep * *x - step.main * m0[j];
            *x = if weights.is_empty() {
                begun
            } else {
                begun - step.scale * weighted(&weights, &differences, j, m0[j])
            };
        }
        Ok(())
    }
}

/// The sum of the differences between earlier predictions and `m0` at number `j`.
fn weighted(weights: &[f32], differences: &[(&[f32], f32)], j: usize, m0: f32) -> f32 {
    let mut sum = 0.0;
    for (weight, (earlier, place)) in weights.iter().zip(differences) {
        sum += weight * ((earlier[j] - m0) / place);
    }
    sum
}

/// The weights whose sums with the powers 0, 1, .. of `places` are `sums`: Gauss's elimination in f32, largest pivots
/// first, as LAPACK does it.
fn solved(places: &[f32], sums: &[f32]) -> Vec<f32> {
    let n = places.len();
    let mut rows = Vec::with_capacity(n);
    for (power, &sum) in (0i32..).zip(sums).take(n) {
        let mut row: Vec<f32> = places.iter().map(|place| place.powi(power)).collect();
        row.push(sum);
        rows.push(row);
    }
    for column in 0..n {
        let mut pivot = column;
        for row in column + 1..n {
            if rows[row][column].abs() > rows[pivot][column].abs() {
                pivot = row;
            }
        }
        rows.swap(column, pivot);
        let (above, below) = rows.split_at_mut(column + 1);
        for row in below {
            let factor = row[column] / above[column][column];
            for (x, pivot) in row.iter_mut().zip(&above[column]).skip(column) {
                *x -= factor * pivot;
            }
        }
    }
    let mut weights = vec![0.0; n];
    for row in (0..n).rev() {
        let mut rest = rows[row][n];
        for k in row + 1..n {
            rest -= rows[row][k] * weights[k];
        }
        weights[row] = rest / rows[row][row];
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up() {
        let (places, sums) = ([-2.0, -1.0, 1.0], [1.0, 0.5, -0.25]);
        let weights = solved(&places, &sums);
        for (power, sum) in (0i32..).zip(sums) {
            let found: f32 = weights.iter().zip(places).map(|(weight, place)| weight * place.powi(power)).sum();
            assert!((found - sum).abs() < 1e-6, "{found} for {sum}");
        }
    }
}
