//! Methods with two evaluations for each step; the second one begins again where the step began.

use super::Noise;
use super::clip::Clip;
use super::euler::{derivative, down_and_up};
use super::levels::Levels;
use super::solver::{Solver, check_lengths, draw};
use crate::{Result, reserve};

/// Heun's method, as diffusers' `HeunDiscreteScheduler` and `FlowMatchHeunDiscreteScheduler` do it: Euler's, and then from
/// the same latents along the mean of the derivatives at both ends. Karras et al., 2022, algorithm 1.
#[derive(Clone, Debug)]
pub(super) struct Heun {
    clip: Clip,
    /// The latents and the derivatives at the begin of the step.
    begin: Option<[Vec<f32>; 2]>,
}

impl Heun {
    pub(super) fn new(clip: Clip) -> Heun {
        Heun { clip, begin: None }
    }
}

impl Solver for Heun {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths("heun", output, x)?;
        let [sigma, next] = levels.pair(i)?;
        let clean = x.iter().zip(output).map(|(x, out)| levels.predicts.clean(sigma, *out, *x));
        let mut derivatives = reserve::collect("derivatives", x.len(), clean)?;
        self.clip.cut("heun", &mut derivatives, noise.batch())?;
        derivatives.iter_mut().zip(&*x).for_each(|(clean, x)| *clean = (x - *clean) / sigma);
        let Some([begin, first]) = self.begin.take() else {
            let begin = reserve::repeat("the latents", x, 1)?;
            let dt = next - sigma;
            x.iter_mut().zip(&derivatives).for_each(|(x, d)| *x += d * dt);
            self.begin = Some([begin, derivatives]);
            return Ok(());
        };
        check_lengths("heun", &begin, x)?;
        let [from, _] = levels.pair(i.wrapping_sub(1))?;
        let dt = sigma - from;
        for (((x, begin), first), second) in x.iter_mut().zip(&begin).zip(&first).zip(&derivatives) {
            *x = begin + (first + second) / 2.0 * dt;
        }
        Ok(())
    }
}

/// DPM-Solver of second order as k-diffusion writes it, in diffusers' `KDPM2DiscreteScheduler` and
/// `KDPM2AncestralDiscreteScheduler`: along the derivative in the middle of the step, which is that of the logarithms.
/// The ancestral one aims below the next sigma, and goes up to it with fresh noise. Karras et al., 2022, algorithm 2.
#[derive(Clone, Debug)]
pub(super) struct Kdpm2 {
    is_ancestral: bool,
    /// The latents at the begin of the step.
    begin: Option<Vec<f32>>,
}

impl Kdpm2 {
    pub(super) fn new(is_ancestral: bool) -> Kdpm2 {
        Kdpm2 { is_ancestral, begin: None }
    }
}

impl Solver for Kdpm2 {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        const NAME: &str = "kdpm2";
        check_lengths(NAME, output, x)?;
        let at = levels.at(i)?;
        let Some(begin) = self.begin.take() else {
            self.begin = Some(reserve::repeat("the latents", x, 1)?);
            let dt = levels.at(i + 1)? - at;
            for (x, out) in x.iter_mut().zip(output) {
                *x += derivative(levels.predicts, at, *out, *x) * dt;
            }
            return Ok(());
        };
        check_lengths(NAME, &begin, x)?;
        let ([sigma, _], [next, _]) = (levels.pair(i.wrapping_sub(1))?, levels.pair(i)?);
        let [to, up] = if self.is_ancestral { down_and_up(sigma, next) } else { [next, 0.0] };
        let dt = to - sigma;
        for ((x, out), begin) in x.iter_mut().zip(output).zip(&begin) {
            *x = begin + derivative(levels.predicts, at, *out, *x) * dt;
        }
        if self.is_ancestral {
            let fresh = draw(NAME, noise, x)?;
            x.iter_mut().zip(&fresh).for_each(|(x, fresh)| *x += fresh * up);
        }
        Ok(())
    }
}
