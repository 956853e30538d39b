//! DPM-Solver++ along the stochastic equation: Lu et al., 2022, in the form of k-diffusion's `sample_dpmpp_sde`.

use super::Noise;
use super::brownian::BrownianTree;
use super::euler::down_and_up;
use super::levels::Levels;
use super::rounding::{exp, exp_m1, log};
use super::solver::{Solver, check_lengths, each};
use crate::{Result, reserve};

const NAME: &str = "dpm++_sde";

/// As diffusers' `DPMSolverSDEScheduler` does it, with a Brownian tree for each picture, seeded as the picture's noise is.
/// diffusers seeds one by `noise_sampler_seed`, and at random without it.
#[derive(Clone, Debug)]
pub(super) struct DpmSde {
    /// The seed of one tree over all pictures.
    seed: Option<u64>,
    trees: Vec<BrownianTree>,
    /// The latents at the begin of the step.
    begin: Option<Vec<f32>>,
}

impl DpmSde {
    pub(super) fn new(seed: Option<u64>) -> DpmSde {
        DpmSde { seed, trees: Vec::new(), begin: None }
    }

    fn plant(&mut self, levels: &Levels, x: &[f32], noise: &Noise) -> Result<()> {
        let all = || levels.earlier.iter().chain(&levels.sigmas).copied().filter(|&sigma| sigma > 0.0);
        let ends = [all().fold(f32::INFINITY, f32::min), all().fold(0.0, f32::max)];
        let each = each(NAME, noise, x)?;
        self.trees = match self.seed {
            Some(seed) => vec![BrownianTree::new(seed, x.len(), ends)?],
            None => noise.seeds().map(|seed| BrownianTree::new(seed, each, ends)).collect::<Result<_>>()?,
        };
        Ok(())
    }

    /// Adds `up` times the noise of all pictures between two levels to `x`.
    fn add_noise(&self, [from, to]: [f32; 2], up: f32, x: &mut [f32]) -> Result<()> {
        let each = x.len() / self.trees.len().max(1);
        for (x, tree) in x.chunks_exact_mut(each.max(1)).zip(&self.trees) {
            let noise = tree.noise(from, to)?;
            x.iter_mut().zip(&noise).for_each(|(x, noise)| *x += noise * up);
        }
        Ok(())
    }
}

impl Solver for DpmSde {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths(NAME, output, x)?;
        if self.trees.is_empty() {
            self.plant(levels, x, noise)?;
        }
        let begin = self.begin.take();
        let [sigma, next] =
            if begin.is_some() { [levels.pair(i.wrapping_sub(1))?[0], levels.pair(i)?[0]] } else { levels.pair(i)? };
        let asked = levels.at(i)?;
        let clean = x.iter().zip(output).map(|(x, out)| levels.predicts.clean(asked, *out, *x));
        let clean = reserve::collect("predicted latents", x.len(), clean)?;
        if next == 0.0 {
            for (x, clean) in x.iter_mut().zip(&clean) {
                *x += (*x - clean) / sigma * (next - sigma);
            }
            return Ok(());
        }
        let is_first = begin.is_none();
        match begin {
            None => self.begin = Some(reserve::repeat("the latents", x, 1)?),
            Some(begin) => {
                check_lengths(NAME, &begin, x)?;
                x.copy_from_slice(&begin);
            }
        }
        let time = -log(sigma);
        let aim = if is_first { middle(sigma, next) } else { -log(next) };
        let [from, to] = [exp(-time), exp(-aim)];
        let up = down_and_up(from, to)[1].min(to);
        let down = -log((to * to - up * up).sqrt());
        let (keep, adds) = (exp(-down) / exp(-time), -(exp_m1(time - down)));
        for (x, clean) in x.iter_mut().zip(&clean) {
            *x = keep * *x + adds * clean;
        }
        self.add_noise([from, to], up, x)
    }
}

/// The negative logarithm of the sigma in the middle of a step.
fn middle(sigma: f32, next: f32) -> f32 {
    let (time, next) = (-log(sigma), -log(next));
    time + (next - time) * 0.5
}

/// The sigma in the middle of a step, which its second evaluation is asked about.
pub(super) fn middle_sigma(sigma: f32, next: f32) -> f32 {
    exp(-middle(sigma, next))
}
