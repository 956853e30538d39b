//! DPM-Solver and DPM-Solver++: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
//! Around 10 Steps" and "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022.

use std::sync::Arc;

use super::Noise;
use super::history::History;
use super::levels::Levels;
use super::log_snr::{Point, Step, converted};
use super::method::{Rule, SolverType};
use super::solver::{Solver, check_lengths, draw};
use crate::{Error, Result, reserve};

/// With fewer steps than this, the last ones are of lower order.
const FEW: usize = 15;

const NAME: &str = "dpm++";

/// The order of the step of evaluation `i`, after `kept` predictions, this one's included.
pub(super) fn multistep_order(rule: &Rule, i: usize, levels: &Levels, kept: usize) -> usize {
    let few = rule.lower_order_final && levels.untruncated() < FEW;
    let left = levels.len() - i;
    if left == 1 && (few || rule.first_order_last) {
        return 1;
    }
    let most = if left == 2 && few { 2 } else { rule.order };
    most.min(kept).min(i + 1)
}

/// The multistep solver of up to third order, as diffusers' `DPMSolverMultistepScheduler` does it.
#[derive(Clone, Debug)]
pub(super) struct Multistep {
    rule: Rule,
    history: History,
}

impl Multistep {
    pub(super) fn new(rule: Rule) -> Multistep {
        Multistep { rule, history: History::new(rule.order) }
    }
}

impl Solver for Multistep {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        let Rule { algorithm, solver_type, clip, .. } = self.rule;
        let as_noise = algorithm.follows_noise();
        self.history.push(converted(NAME, (i, levels), (output, x), clip, as_noise, noise)?);
        let fresh = if algorithm.draws() { Some(draw(NAME, noise, x)?) } else { None };
        let order = multistep_order(&self.rule, i, levels, self.history.len());
        let [from, to] = [Point::of(levels, i)?, Point::of(levels, i + 1)?];
        let step = Step::new(algorithm, solver_type, order, [from, to]);
        let len = x.len();
        let m = |back| self.history.ago(NAME, back, len);
        let m0 = m(0)?;
        let h = to.lambda - from.lambda;
        let r = |back: usize| -> Result<f32> {
            Ok((Point::of(levels, i - back + 1)?.lambda - Point::of(levels, i - back)?.lambda) / h)
        };
        match order {
            1 => first_order(step, m0, x),
            2 => {
                let (m1, r0) = (m(1)?, r(1)?);
                for ((x, m0), m1) in x.iter_mut().zip(m0).zip(m1) {
                    *x = step.keep * *x + step.of_first * m0 + step.of_second * (1.0 / r0 * (m0 - m1));
                }
            }
            _ => {
                let (m1, m2, r0, r1) = (m(1)?, m(2)?, r(1)?, r(2)?);
                for (((x, m0), m1), m2) in x.iter_mut().zip(m0).zip(m1).zip(m2) {
                    let [near, far] = [1.0 / r0 * (m0 - m1), 1.0 / r1 * (m1 - m2)];
                    let first = near + r0 / (r0 + r1) * (near - far);
                    let second = 1.0 / (r0 + r1) * (near - far);
                    *x = step.keep * *x + step.of_first * m0 + step.of_second * first + step.of_third * second;
                }
            }
        }
        add_noise(step, fresh.as_deref(), x);
        Ok(())
    }
}

fn first_order(step: Step, m: &[f32], x: &mut [f32]) {
    for (x, m) in x.iter_mut().zip(m) {
        *x = step.keep * *x + step.of_first * m;
    }
}

fn add_noise(step: Step, fresh: Option<&[f32]>, x: &mut [f32]) {
    for (x, fresh) in x.iter_mut().zip(fresh.unwrap_or_default()) {
        *x += step.fresh * fresh;
    }
}

/// The singlestep solver of up to third order, as diffusers' `DPMSolverSinglestepScheduler` does it: a step of second
/// order begins again where the one of first order before it began.
#[derive(Clone, Debug)]
pub(super) struct Singlestep {
    rule: Rule,
    orders: Arc<[usize]>,
    history: History,
    /// The latents that steps begin with.
    begin: Vec<f32>,
}

impl Singlestep {
    pub(super) fn new(rule: Rule, orders: Arc<[usize]>) -> Singlestep {
        Singlestep { rule, orders, history: History::new(rule.order), begin: Vec::new() }
    }

    /// The order of the step of evaluation `i`.
    fn order(&self, i: usize, levels: &Levels) -> Result<usize> {
        let order = self.orders.get(levels.skipped + i).copied();
        let order = order.ok_or_else(|| Error::graph(NAME, format!("evaluation {i} of {}", levels.len())))?;
        Ok(order.min(self.history.len()).min(i + 1))
    }
}

impl Solver for Singlestep {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        let Rule { algorithm, solver_type, clip, .. } = self.rule;
        let as_noise = algorithm.follows_noise();
        self.history.push(converted(NAME, (i, levels), (output, x), clip, as_noise, noise)?);
        let fresh = if algorithm.draws() { Some(draw(NAME, noise, x)?) } else { None };
        let order = self.order(i, levels)?;
        if order == 1 {
            self.begin = reserve::repeat("the latents", x, 1)?;
        }
        check_lengths(NAME, &self.begin, x)?;
        x.copy_from_slice(&self.begin);
        let [from, to] = [Point::of(levels, i + 1 - order)?, Point::of(levels, i + 1)?];
        let step = Step::new(algorithm, solver_type, order, [from, to]);
        let len = x.len();
        let m = |back| self.history.ago(NAME, back, len);
        let h = to.lambda - from.lambda;
        let r = |back: usize| -> Result<f32> { Ok((Point::of(levels, i - back)?.lambda - from.lambda) / h) };
        match order {
            1 => first_order(step, m(0)?, x),
            2 => {
                let (m0, m1, r0) = (m(0)?, m(1)?, r(0)?);
                for ((x, m0), m1) in x.iter_mut().zip(m0).zip(m1) {
                    *x = step.keep * *x + step.of_first * m1 + step.of_second * (1.0 / r0 * (m0 - m1));
                }
            }
            _ => {
                let (m0, m1, m2, r0, r1) = (m(0)?, m(1)?, m(2)?, r(0)?, r(1)?);
                for (((x, m0), m1), m2) in x.iter_mut().zip(m0).zip(m1).zip(m2) {
                    let [near, far] = [1.0 / r1 * (m1 - m2), 1.0 / r0 * (m0 - m2)];
                    *x = step.keep * *x + step.of_first * m2;
                    if solver_type == SolverType::Midpoint {
                        *x += step.of_second * far;
                    } else {
                        let first = (r0 * near - r1 * far) / (r0 - r1);
                        let second = 2.0 * (far - near) / (r0 - r1);
                        *x = *x + step.of_second * first + step.of_third * second;
                    }
                }
            }
        }
        add_noise(step, fresh.as_deref(), x);
        Ok(())
    }
}

/// The order of each of `steps` steps of the singlestep solver: diffusers' `get_order_list`.
pub(super) fn singlestep_orders(rule: &Rule, steps: usize) -> Vec<usize> {
    let order = rule.order;
    // diffusers switches it on if steps of full length do not come out even, or end without noise.
    let lower = rule.lower_order_final || !steps.is_multiple_of(order) || rule.first_order_last;
    let mut orders = Vec::with_capacity(steps);
    for i in 0..steps {
        orders.push(i % order + 1);
    }
    if lower && steps.is_multiple_of(order) && order > 1 {
        // Where the last step would be a whole one, two smaller ones take its place.
        let last = steps - order;
        let ends: &[usize] = if order == 3 { &[1, 2, 1] } else { &[1, 1] };
        orders.splice(last.., ends.iter().copied());
    }
    if rule.first_order_last
        && let Some(last) = orders.last_mut()
    {
        *last = 1;
    }
    orders
}

#[cfg(test)]
mod tests {
    use super::super::clip::Clip;
    use super::super::method::Algorithm;
    use super::*;

    #[test]
    fn the_orders_of_steps_are_those_of_diffusers() {
        let orders = |order, lower_order_final, first_order_last, steps| {
            let (algorithm, solver_type, clip) = (Algorithm::DpmPlus, SolverType::Midpoint, Clip::None);
            let rule = Rule { algorithm, solver_type, order, first_order_last, lower_order_final, clip };
            singlestep_orders(&rule, steps)
        };
        assert_eq!(orders(2, false, false, 4), [1, 2, 1, 2]);
        assert_eq!(orders(2, false, false, 5), [1, 2, 1, 2, 1]);
        assert_eq!(orders(2, true, false, 4), [1, 2, 1, 1]);
        assert_eq!(orders(2, false, true, 2), [1, 1]);
        assert_eq!(orders(3, false, false, 6), [1, 2, 3, 1, 2, 3]);
        assert_eq!(orders(3, true, false, 6), [1, 2, 3, 1, 2, 1]);
        assert_eq!(orders(3, true, false, 7), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(orders(3, true, false, 8), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(orders(3, true, true, 8), [1, 2, 3, 1, 2, 3, 1, 1]);
        assert_eq!(orders(1, true, true, 3), [1, 1, 1]);
        assert_eq!((orders(2, true, true, 1), orders(3, false, true, 2)), (vec![1], vec![1, 1]));
    }
}
