//! Gaussian noise as PyTorch's CPU generator draws it.
//!
//! The rules are those of `aten/src/ATen/native/cpu/DistributionTemplates.h` (`normal_fill`) and
//! `aten/src/ATen/core/DistributionsHelper.h` (`normal_distribution`): MT19937 seeded with the low 32 bits of the seed,
//! then Box-Muller, with one recipe for fewer than [`GROUP`] numbers and another for the rest.
//!
//! The integers are PyTorch's to the bit. The last digits of the floats are not, and cannot be: PyTorch itself gives
//! other ones on other processors, since its AVX2 build takes polynomials for `ln`, `cos` and `sin`, and its plain
//! build the C library's. Here each number is computed in double precision and rounded once. Against PyTorch 2.15
//! with AVX2 the difference over a million numbers is at most 4.8e-7, one unit in the last place of the largest;
//! against its plain build, which also rounds the angle elsewhere, at most 2.5e-6.

use std::f64::consts;

use rand_mt::Mt;

use crate::{Error, Result};

/// How many numbers PyTorch turns by Box-Muller at once: the first half are radii, the second half angles.
const GROUP: usize = 16;
const HALF: usize = GROUP / 2;

/// `n` numbers of a standard normal distribution: `torch.manual_seed(seed); torch.randn(n)` in float32 on a CPU, to
/// 1e-6.
///
/// A tensor of any shape takes them in row-major order. Only the low 32 bits of `seed` count, as in PyTorch.
///
/// # Errors
///
/// [`Error::OutOfMemory`] where `n` numbers cannot be allocated.
pub fn randn(seed: u64, n: usize) -> Result<Vec<f32>> {
    Noise::new(seed, 1).draw(n)
}

/// A generator of noise for each picture of a batch, as `[torch.Generator().manual_seed(seed + i), ...]`, that goes on
/// from draw to draw.
#[derive(Clone, Debug)]
pub struct Noise {
    generators: Vec<Generator>,
    seed: u64,
}

/// PyTorch's CPU generator.
#[derive(Clone, Debug)]
struct Generator {
    engine: Mt,
    /// The second of two normals that were made together, if only the first was asked for. Only a draw of fewer than
    /// [`GROUP`] numbers leaves one, and only such a draw takes it.
    spare: Option<f32>,
}

impl Noise {
    /// Generators for `batch` pictures: picture `i` has the seed `seed + i`.
    pub fn new(seed: u64, batch: usize) -> Noise {
        // Truncation is the rule: PyTorch's engine keeps 32 bits of the seed.
        let engines = (0..batch).map(|i| Mt::new(seed.wrapping_add(i as u64) as u32));
        Noise { generators: engines.map(|engine| Generator { engine, spare: None }).collect(), seed }
    }

    /// How many pictures there are.
    pub fn batch(&self) -> usize {
        self.generators.len()
    }

    /// The seed of each picture.
    pub(super) fn seeds(&self) -> impl Iterator<Item = u64> {
        (0..self.batch()).map(|i| self.seed.wrapping_add(i as u64))
    }

    /// The next `each` numbers of every picture, one picture behind the other: `torch.randn(each, generator=...)` for
    /// each, to 1e-6.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] where the numbers cannot be allocated.
    pub fn draw(&mut self, each: usize) -> Result<Vec<f32>> {
        let mut noise = zeros(each.saturating_mul(self.batch()))?;
        if each > 0 {
            for (generator, noise) in self.generators.iter_mut().zip(noise.chunks_exact_mut(each)) {
                generator.fill(noise);
            }
        }
        Ok(noise)
    }
}

impl Generator {
    fn fill(&mut self, noise: &mut [f32]) {
        if noise.len() < GROUP {
            self.fill_one_by_one(noise);
        } else {
            fill_in_groups(&mut self.engine, noise);
        }
    }

    /// `n < 16`: double precision, two normals from two uniforms, the angle drawn before the radius.
    fn fill_one_by_one(&mut self, noise: &mut [f32]) {
        for number in noise {
            *number = match self.spare.take() {
                Some(spare) => spare,
                None => {
                    let (sin, cos) = (consts::TAU * uniform_f64(&mut self.engine)).sin_cos();
                    let radius = (-2.0 * (-uniform_f64(&mut self.engine)).ln_1p()).sqrt();
                    self.spare = Some((radius * sin) as f32);
                    (radius * cos) as f32
                }
            };
        }
    }
}

fn zeros(n: usize) -> Result<Vec<f32>> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(n).map_err(|_| Error::OutOfMemory {
        what: format!("{n} numbers of noise"),
        bytes: n.saturating_mul(size_of::<f32>()),
        hint: None,
    })?;
    numbers.resize(n, 0.0);
    Ok(numbers)
}

/// `n >= 16`: uniforms for the whole tensor first, then Box-Muller in place. Where 16 does not divide the length, the
/// last 16 numbers are drawn again, over what groups before them left.
fn fill_in_groups(engine: &mut Mt, noise: &mut [f32]) {
    noise.fill_with(|| uniform_f32(engine));
    let (groups, rest) = noise.as_chunks_mut::<GROUP>();
    groups.iter_mut().for_each(box_muller);
    if !rest.is_empty()
        && let Some(tail) = noise.last_chunk_mut::<GROUP>()
    {
        tail.fill_with(|| uniform_f32(engine));
        box_muller(tail);
    }
}

/// 24 random bits as a number in `0..1`.
fn uniform_f32(engine: &mut Mt) -> f32 {
    const BITS: u32 = f32::MANTISSA_DIGITS;
    (engine.next_u32() & ((1 << BITS) - 1)) as f32 / (1u32 << BITS) as f32
}

/// Sixteen uniforms become sixteen normals. `1 - u` keeps zero out of the logarithm; the angle is rounded to f32
/// because PyTorch's is, and an angle's rounding weighs more than all later ones.
fn box_muller(group: &mut [f32; GROUP]) {
    for j in 0..HALF {
        let radius = (-2.0 * f64::from(1.0 - group[j]).ln()).sqrt();
        let (sin, cos) = f64::from(consts::TAU as f32 * group[j + HALF]).sin_cos();
        group[j] = (radius * cos) as f32;
        group[j + HALF] = (radius * sin) as f32;
    }
}

/// 53 random bits as a number in `0..1`. The engine's first word is the high one.
fn uniform_f64(engine: &mut Mt) -> f64 {
    const BITS: u32 = f64::MANTISSA_DIGITS;
    let (high, low) = (engine.next_u32(), engine.next_u32());
    let word = u64::from(high) << 32 | u64::from(low);
    (word & ((1 << BITS) - 1)) as f64 / (1u64 << BITS) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::reference::NOISE;
    use super::*;

    #[test]
    fn every_seed_and_length_equals_torch() {
        for &(seed, n, stride, wanted) in NOISE {
            let noise = randn(seed, n).unwrap();
            assert_eq!(noise.len(), n);
            let found: Vec<f32> = noise.into_iter().step_by(stride).collect();
            assert_eq!(found.len(), wanted.len(), "seed {seed}, {n} numbers");
            for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                assert!(
                    (found - wanted).abs() <= 1e-6,
                    "seed {seed}, {n} numbers, {}: {found} for {wanted}",
                    i * stride
                );
            }
        }
    }

    #[test]
    fn only_the_low_half_of_a_seed_counts() {
        assert_eq!(randn(1 << 63, 40).unwrap(), randn(0, 40).unwrap());
        assert_ne!(randn(5, 40).unwrap(), randn(6, 40).unwrap());
    }

    #[test]
    fn a_tail_overwrites_the_end_of_the_last_group() {
        let (whole, longer) = (randn(3, 32).unwrap(), randn(3, 35).unwrap());
        assert_eq!(whole[..19], longer[..19]);
        assert_ne!(whole[19..], longer[19..32]);
    }

    #[test]
    fn noise_is_finite_and_normal() {
        let noise = randn(1, 1 << 18).unwrap();
        let moment = |power| noise.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / noise.len() as f64;
        assert!(noise.iter().all(|x| x.is_finite()));
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01 && (moment(4) - 3.0).abs() < 0.1);
    }

    #[test]
    fn no_numbers_and_too_many() {
        assert!(randn(0, 0).unwrap().is_empty());
        for n in [usize::MAX, usize::MAX / 8] {
            assert!(matches!(randn(0, n), Err(Error::OutOfMemory { .. })));
        }
    }
}
