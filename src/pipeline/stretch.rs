//! Larger pictures in two passes: latents or pixels of the first are stretched, and denoised again.

use crate::{Error, Result, reserve};

/// How a second pass makes the picture larger.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Upscale {
    /// How much larger, across and down: 1 to 8.
    pub factor: f32,
    /// How far from the first pass the second may be, in 0..=1.
    pub strength: f32,
    /// What is stretched, and how.
    pub space: UpscaleSpace,
    /// Denoising steps of the second pass; it takes the share of them that `strength` says. `None` is as many as the first.
    pub steps: Option<usize>,
}

impl Upscale {
    /// How far from the first pass the second is, if no one says.
    pub const STRENGTH: f32 = 0.4;

    /// `factor` times as large, with everything else as it is if no one says.
    pub fn new(factor: f32) -> Upscale {
        Upscale { factor, strength: Upscale::STRENGTH, space: UpscaleSpace::default(), steps: None }
    }
}

/// What is stretched between two passes, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpscaleSpace {
    /// Latents, bilinearly: `torch.nn.functional.interpolate` with its defaults.
    #[default]
    Latent,
    /// Latents, each taken several times: the same with `nearest-exact`.
    LatentNearest,
    /// The picture, with Pillow's Lanczos filter: it goes through the autoencoder and back.
    Pixel,
}

impl UpscaleSpace {
    /// All of them.
    pub const ALL: [UpscaleSpace; 3] = [UpscaleSpace::Latent, UpscaleSpace::LatentNearest, UpscaleSpace::Pixel];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            UpscaleSpace::Latent => "latent",
            UpscaleSpace::LatentNearest => "latent-nearest",
            UpscaleSpace::Pixel => "pixel",
        }
    }

    /// What the web UI calls it.
    pub(super) fn label(self) -> &'static str {
        match self {
            UpscaleSpace::Latent => "Latent",
            UpscaleSpace::LatentNearest => "Latent (nearest-exact)",
            UpscaleSpace::Pixel => "Lanczos",
        }
    }
}

/// Which of the passes of a request its settings are of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Pass {
    /// The only one.
    #[default]
    Only,
    /// The first of two, up to this part of the steps.
    Begun(f64),
    /// The first of two, all steps of it. The second begins with what it gives.
    Whole {
        /// Whether that is pictures, and not latents.
        decodes: bool,
    },
    /// The second, of a refiner that goes on from this part of the steps.
    Refined(f64),
    /// The second, which denoises what was stretched.
    Redrawn(UpscaleSpace),
}

impl Pass {
    /// Whether pictures come of it.
    pub fn decodes(self) -> bool {
        !matches!(self, Pass::Begun(_) | Pass::Whole { decodes: false })
    }

    /// Whether prompts go through text encoders for it.
    pub(super) fn reads_prompts(self) -> bool {
        !matches!(self, Pass::Redrawn(_))
    }

    /// Whether another goes before.
    pub(super) fn is_second(self) -> bool {
        matches!(self, Pass::Refined(_) | Pass::Redrawn(_))
    }
}

/// The planes of `latents`, each `from` across and down, stretched to `to`.
pub(super) fn stretched(space: UpscaleSpace, latents: &[f32], from: [usize; 2], to: [usize; 2]) -> Result<Vec<f32>> {
    let [each, wanted] = [from, to].map(|[w, h]| w * h);
    if each == 0 || !latents.len().is_multiple_of(each) {
        return Err(Error::graph("upscale", format!("{} latents in planes of {each}", latents.len())));
    }
    let mut all = reserve::room("the latents", latents.len() / each * wanted)?;
    let columns: Vec<Tap> = (0..to[0]).map(|at| Tap::new(at, from[0], to[0])).collect();
    for plane in latents.chunks_exact(each) {
        for y in 0..to[1] {
            let row = Tap::new(y, from[1], to[1]);
            for (x, column) in columns.iter().enumerate() {
                all.push(match space {
                    UpscaleSpace::LatentNearest => {
                        plane[nearest(y, from[1], to[1]) * from[0] + nearest(x, from[0], to[0])]
                    }
                    _ => row.mixed(|y| column.mixed(|x| plane[y * from[0] + x])),
                });
            }
        }
    }
    Ok(all)
}

/// Which of `from` numbers is taken at place `at` of `to`.
fn nearest(at: usize, from: usize, to: usize) -> usize {
    let scale = from as f32 / to as f32;
    (((at as f32 + 0.5) * scale) as usize).min(from - 1)
}

/// Two neighbours, and how much the second counts.
struct Tap {
    first: usize,
    second: usize,
    share: f32,
}

impl Tap {
    /// Those at place `at` of `to`, among `from` numbers whose middles have the same places.
    fn new(at: usize, from: usize, to: usize) -> Tap {
        let scale = from as f32 / to as f32;
        let place = ((at as f32 + 0.5) * scale - 0.5).max(0.0);
        let first = (place as usize).min(from - 1);
        Tap { first, second: (first + 1).min(from - 1), share: place - first as f32 }
    }

    fn mixed(&self, number: impl Fn(usize) -> f32) -> f32 {
        (1.0 - self.share) * number(self.first) + self.share * number(self.second)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Numbers of PyTorch 2.15: `interpolate(torch.arange(6.).reshape(1, 1, 2, 3), (3, 5), mode=..)`.
    #[test]
    fn planes_are_stretched_as_torch_stretches_them() {
        let plane = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let bilinear = stretched(UpscaleSpace::Latent, &plane, [3, 2], [5, 3]).unwrap();
        let expected = [0.0, 0.4, 1.0, 1.6, 2.0, 1.5, 1.9, 2.5, 3.1, 3.5, 3.0, 3.4, 4.0, 4.6, 5.0];
        assert!(bilinear.iter().zip(expected).all(|(found, wanted)| (found - wanted).abs() < 1e-6), "{bilinear:?}");
        let nearest = stretched(UpscaleSpace::LatentNearest, &plane, [3, 2], [5, 3]).unwrap();
        assert_eq!(nearest, [0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 5.0, 5.0, 3.0, 3.0, 4.0, 5.0, 5.0]);
        assert_eq!(stretched(UpscaleSpace::Latent, &plane, [3, 2], [3, 2]).unwrap(), plane);
        assert!(stretched(UpscaleSpace::Latent, &plane, [2, 2], [4, 4]).is_err());
    }
}
