//! DEIS: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2022, over the logarithm of rho.

use super::Noise;
use super::dpm::multistep_order;
use super::history::History;
use super::levels::Levels;
use super::log_snr::{Point, Step, converted};
use super::method::{Algorithm, Rule};
use super::rounding::log;
use super::solver::Solver;
use crate::Result;

const NAME: &str = "deis";

/// The multistep solver of up to third order, as diffusers' `DEISMultistepScheduler` does it.
#[derive(Clone, Debug)]
pub(super) struct Deis {
    rule: Rule,
    history: History,
}

impl Deis {
    pub(super) fn new(rule: Rule) -> Deis {
        Deis { rule, history: History::new(rule.order) }
    }
}

impl Solver for Deis {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        let mut clean = converted(NAME, (i, levels), (output, x), self.rule.clip, false, noise)?;
        let [from, to] = [Point::of(levels, i)?, Point::of(levels, i + 1)?];
        clean.iter_mut().zip(&*x).for_each(|(clean, x)| *clean = (x - from.alpha * *clean) / from.spread);
        self.history.push(clean);
        let order = multistep_order(&self.rule, i, levels, self.history.len());
        let len = x.len();
        let m = |back| self.history.ago(NAME, back, len);
        if order == 1 {
            let step = Step::new(Algorithm::Dpm, self.rule.solver_type, 1, [from, to]);
            for (x, m0) in x.iter_mut().zip(m(0)?) {
                *x = step.keep * *x + step.of_first * m0;
            }
            return Ok(());
        }
        let rho = |point: Point| point.spread / point.alpha;
        let earlier = |back: usize| -> Result<f32> { Ok(rho(Point::of(levels, i - back)?)) };
        let (m0, m1, ends, rho1) = (m(0)?, m(1)?, [rho(from), rho(to)], earlier(1)?);
        if order == 2 {
            let c0 = between(ends, |t| line(t, ends[0], rho1));
            let c1 = between(ends, |t| line(t, rho1, ends[0]));
            for ((x, m0), m1) in x.iter_mut().zip(m0).zip(m1) {
                *x = to.alpha * (*x / from.alpha + c0 * m0 + c1 * m1);
            }
            return Ok(());
        }
        let (m2, rho2) = (m(2)?, earlier(2)?);
        let c0 = between(ends, |t| parabola(t, [ends[0], rho1, rho2]));
        let c1 = between(ends, |t| parabola(t, [rho1, rho2, ends[0]]));
        let c2 = between(ends, |t| parabola(t, [rho2, ends[0], rho1]));
        for (((x, m0), m1), m2) in x.iter_mut().zip(m0).zip(m1).zip(m2) {
            *x = to.alpha * (*x / from.alpha + c0 * m0 + c1 * m1 + c2 * m2);
        }
        Ok(())
    }
}

/// The difference of an integral at both ends.
fn between([from, to]: [f32; 2], integral: impl Fn(f32) -> f32) -> f32 {
    integral(to) - integral(from)
}

/// The integral, up to `t`, of the straight line in the logarithm of rho that is 1 at `b` and 0 at `c`.
fn line(t: f32, b: f32, c: f32) -> f32 {
    t * (-log(c) + log(t) - 1.0) / (log(b) - log(c))
}

/// The integral, up to `t`, of the parabola in the logarithm of rho that is 1 at `b` and 0 at `c` and `d`.
fn parabola(t: f32, [b, c, d]: [f32; 3]) -> f32 {
    let log_t = log(t);
    let above = t * (log(c) * (log(d) - log_t + 1.0) - log(d) * log_t + log(d) + log_t * log_t - 2.0 * log_t + 2.0);
    above / ((log(b) - log(c)) * (log(b) - log(d)))
}
