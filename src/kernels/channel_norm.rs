//! Norms over the channels of a pixel where channels are planes, and SiLU of what they give: without planes becoming pixels and pixels
//! planes again.

use super::Kernel;
use super::nonlinearity::silu;

/// Pixels that are normalised together at most: their sums stay on the stack.
pub const PIXELS: usize = 256;

/// For some pixels, at most [`PIXELS`]: their channels' root mean square is brought to 1, each channel multiplied with its `gamma`, and
/// SiLU taken. `read` gives a channel's numbers, all as many; `write` takes what becomes of them, channel after channel.
///
/// A `kernel` that the processor does not have is taken for [`Kernel::Portable`]. Every kernel gives the same bits, and no pixel knows of
/// another.
///
/// # Panics
/// Where there are more pixels, or channels differ in length.
pub fn channel_norm_silu<'a>(
    kernel: Kernel,
    gamma: &[f32],
    eps: f32,
    read: impl Fn(usize) -> &'a [f32],
    write: impl FnMut(usize, &[f32]),
) {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 | Kernel::AvxVnni if kernel.is_available() => {
            // SAFETY: the processor has the instructions, as was just seen.
            unsafe { by_avx2(gamma, eps, read, write) }
        }
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Vnni if kernel.is_available() => {
            // SAFETY: as above.
            unsafe { by_avx512(gamma, eps, read, write) }
        }
        _ => by_any(gamma, eps, read, write),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn by_avx2<'a>(gamma: &[f32], eps: f32, read: impl Fn(usize) -> &'a [f32], write: impl FnMut(usize, &[f32])) {
    by_any(gamma, eps, read, write);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn by_avx512<'a>(gamma: &[f32], eps: f32, read: impl Fn(usize) -> &'a [f32], write: impl FnMut(usize, &[f32])) {
    by_any(gamma, eps, read, write);
}

// Inlined where the instructions are enabled, as everything is that it calls.
#[inline(always)]
fn by_any<'a>(gamma: &[f32], eps: f32, read: impl Fn(usize) -> &'a [f32], mut write: impl FnMut(usize, &[f32])) {
    let (mut squares, mut scales, mut made) = ([0f64; PIXELS], [0f32; PIXELS], [0f32; PIXELS]);
    let mut len = 0;
    for channel in 0..gamma.len() {
        let numbers = read(channel);
        len = numbers.len();
        let sums = squares[..len].iter_mut().zip(numbers);
        // As ggml's norm of rows sums.
        sums.for_each(|(sum, number)| *sum += f64::from(number * number));
    }
    for (scale, square) in scales[..len].iter_mut().zip(&squares) {
        *scale = 1.0 / ((square / gamma.len() as f64) as f32 + eps).sqrt();
    }
    for (channel, gamma) in gamma.iter().enumerate() {
        let numbers = read(channel).iter().zip(&scales[..len]);
        for (made, (number, scale)) in made.iter_mut().zip(numbers) {
            *made = silu(number * scale * gamma);
        }
        write(channel, &made[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(kernel: Kernel, gamma: &[f32], planes: &[f32], pixels: usize) -> Vec<f32> {
        let mut result = vec![f32::NAN; planes.len()];
        for first in (0..pixels).step_by(PIXELS) {
            let len = PIXELS.min(pixels - first);
            channel_norm_silu(
                kernel,
                gamma,
                1e-24,
                |channel| &planes[channel * pixels + first..][..len],
                |channel, numbers| {
                    result[channel * pixels + first..][..len].copy_from_slice(numbers);
                },
            );
        }
        result
    }

    #[test]
    fn every_kernel_is_near_double_precision_and_gives_the_same_bits() {
        for (channels, pixels) in [(1, 1), (3, 5), (96, 300), (384, 257)] {
            let gamma: Vec<f32> = (0..channels).map(|i| 1.0 + (i as f32).sin()).collect();
            let planes: Vec<f32> = (1..=channels * pixels).map(|i| 3.0 * (i as f32 * 0.7).sin()).collect();
            let found = made(Kernel::Portable, &gamma, &planes, pixels);
            for (i, found) in found.iter().enumerate() {
                let mean = (0..channels)
                    .map(|channel: usize| f64::from(planes[channel * pixels + i % pixels]).powi(2))
                    .sum::<f64>()
                    / channels as f64;
                let x = f64::from(planes[i]) / mean.sqrt() * f64::from(gamma[i / pixels]);
                let expected = x / (1.0 + (-x).exp());
                assert!((f64::from(*found) - expected).abs() < 1e-6 * (1.0 + x.abs()), "{i}: {found}, not {expected}");
            }
            for kernel in Kernel::available() {
                assert!(made(kernel, &gamma, &planes, pixels) == found, "{}", kernel.name());
            }
        }
    }

    #[test]
    fn a_pixel_of_zeros_stays_so() {
        assert_eq!(made(Kernel::Portable, &[1.0, 2.0], &[0.0; 6], 3), [0.0; 6]);
    }
}
