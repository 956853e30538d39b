//! Resizing as Pillow does it (`Image.resize` of an 8-bit RGB picture, `src/libImaging/Resample.c` and `Geometry.c`), equal to the
//! byte, because diffusers resizes its pictures with it.
//!
//! Written here because no crate gives Pillow's bytes: `fast_image_resize` keeps its coefficients in 16 bits as Pillow-SIMD
//! does, and `image` computes in floating point.

use std::f64::consts::PI;

use super::{CHANNELS, Image};
use crate::{Error, Result, reserve};

/// How a picture is resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The pixel that the centre falls into.
    Nearest,
    /// A triangle, one pixel to each side.
    Bilinear,
    /// Keys' cubic with `a` = -0.5, two pixels to each side.
    Bicubic,
    /// A windowed sinc, three pixels to each side. diffusers' `VaeImageProcessor` uses it.
    Lanczos,
}

/// Fractional bits of a weight: 32, less 8 for a byte, less 2, because weights can add up to more than 1 or to less than 0.
const PRECISION: u32 = 32 - 8 - 2;

impl Filter {
    /// Pixels to each side that count when a picture is enlarged.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The weight of a pixel at the distance `x` from the centre.
    fn weight(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            Filter::Nearest => 1.0,
            Filter::Bilinear => (1.0 - distance).max(0.0),
            Filter::Bicubic => cubic(distance),
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x {
        ..1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        1.0..2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

/// The pixels of a row or column that make one pixel of the result.
struct Taps {
    first: usize,
    /// With [`PRECISION`] fractional bits.
    weights: Vec<i32>,
}

impl Image {
    /// This picture with `width` by `height` pixels. As in Pillow, the whole picture is stretched to the new size: rows and
    /// columns one after the other, rounded to bytes in between. If a side gets smaller, the filter widens by the same factor.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and [`Error::Graph`] if a side is 0 or more than 2^31 - 1.
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Result<Image> {
        if (width, height) == (self.width(), self.height()) {
            return self.copied();
        }
        let no_size = || Error::graph("resize", format!("no picture has {width}x{height} pixels"));
        let bytes = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(CHANNELS)).ok_or_else(no_size)?;
        if width.min(height) == 0 || width.max(height) > i32::MAX as usize {
            return Err(no_size());
        }
        if filter == Filter::Nearest {
            let rgb = nearest(self, width, height, bytes)?;
            return Image::new(width, height, rgb).ok_or_else(no_size);
        }
        let rgb = if columns_first(self, width, height) {
            let columns = self.resized_columns(height, filter)?;
            columns.resized_rows(width, filter)?.rgb
        } else {
            let rows = self.resized_rows(width, filter)?;
            rows.resized_columns(height, filter)?.rgb
        };
        Image::new(width, height, rgb).ok_or_else(no_size)
    }

    fn resized_rows(&self, width: usize, filter: Filter) -> Result<Image> {
        if width == self.width() {
            return self.copied();
        }
        let taps = taps(self.width(), width, filter)?;
        let mut rgb = reserve::zeros("a picture", width.saturating_mul(self.height()).saturating_mul(CHANNELS))?;
        let sources = self.rgb.chunks_exact(self.width() * CHANNELS);
        for (target, source) in rgb.chunks_exact_mut(width * CHANNELS).zip(sources) {
            for (pixel, taps) in target.chunks_exact_mut(CHANNELS).zip(&taps) {
                let mut sums = [HALF; CHANNELS];
                for (tap, &weight) in source[taps.first * CHANNELS..].chunks_exact(CHANNELS).zip(&taps.weights) {
                    for (sum, &byte) in sums.iter_mut().zip(tap) {
                        *sum += i32::from(byte) * weight;
                    }
                }
                for (byte, sum) in pixel.iter_mut().zip(sums) {
                    *byte = to_byte(sum);
                }
            }
        }
        Ok(Image { width: width as u32, height: self.height, rgb })
    }

    fn resized_columns(&self, height: usize, filter: Filter) -> Result<Image> {
        if height == self.height() {
            return self.copied();
        }
        let stride = self.width() * CHANNELS;
        let mut rgb = reserve::zeros("a picture", stride.saturating_mul(height))?;
        let mut sums: Vec<i32> = reserve::zeros("a row of a picture", stride)?;
        for (target, taps) in rgb.chunks_exact_mut(stride).zip(taps(self.height(), height, filter)?) {
            sums.fill(HALF);
            for (row, &weight) in self.rgb[taps.first * stride..].chunks_exact(stride).zip(&taps.weights) {
                for (sum, &byte) in sums.iter_mut().zip(row) {
                    *sum += i32::from(byte) * weight;
                }
            }
            for (byte, &sum) in target.iter_mut().zip(&sums) {
                *byte = to_byte(sum);
            }
        }
        Ok(Image { width: self.width, height: height as u32, rgb })
    }

    fn copied(&self) -> Result<Image> {
        let rgb = reserve::collect("a picture", self.rgb.len(), self.rgb.iter().copied())?;
        Ok(Image { width: self.width, height: self.height, rgb })
    }
}

/// The taps of every pixel of `to` in a row or column of `from`.
fn taps(from: usize, to: usize, filter: Filter) -> Result<Vec<Taps>> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let mut all = reserve::room("a filter", to)?;
    for pixel in 0..to {
        let centre = (pixel as f64 + 0.5) * scale;
        // The casts round towards zero, and what lies before the picture becomes 0.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let mut weights = reserve::room("a filter", end - first)?;
        for tap in first..end {
            weights.push(filter.weight((tap as f64 - centre + 0.5) * (1.0 / stretch)));
        }
        all.push(Taps { first, weights: fixed_point(&weights)? });
    }
    Ok(all)
}

/// The weights, scaled to the sum 1, with [`PRECISION`] fractional bits, halves rounded away from zero.
fn fixed_point(weights: &[f64]) -> Result<Vec<i32>> {
    let sum: f64 = weights.iter().sum();
    let one = f64::from(1 << PRECISION);
    let mut fixed = reserve::room("a filter", weights.len())?;
    for &weight in weights {
        let weight = if sum == 0.0 { weight } else { weight / sum };
        let half = if weight < 0.0 { -0.5 } else { 0.5 };
        fixed.push((half + weight * one) as i32);
    }
    Ok(fixed)
}

fn to_byte(sum: i32) -> u8 {
    // In 0..=255 after the clamp, so the cast cuts nothing off.
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Half of a byte's last place, so that the shift rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// Whether columns are resized before rows. Pillow 13.0.0 was found to follow this rule, with every filter, in 800 random sizes and
/// at the rule's edge. Older versions began with the rows always.
fn columns_first(image: &Image, width: usize, height: usize) -> bool {
    let fewer_rows = image.height().saturating_sub(height);
    let fewer_columns = image.width().saturating_sub(width);
    fewer_rows > 2 * fewer_columns
}

fn nearest(image: &Image, width: usize, height: usize, bytes: usize) -> Result<Vec<u8>> {
    let (columns, rows) = (nearest_indices(image.width(), width)?, nearest_indices(image.height(), height)?);
    let mut rgb = reserve::zeros("a picture", bytes)?;
    for (target, row) in rgb.chunks_exact_mut(width * CHANNELS).zip(rows) {
        for (pixel, &column) in target.chunks_exact_mut(CHANNELS).zip(&columns) {
            pixel.copy_from_slice(&image.rgb[(row * image.width() + column) * CHANNELS..][..CHANNELS]);
        }
    }
    Ok(rgb)
}

/// The pixel of `from` at the centre of each pixel of `to`. Pillow adds the step up pixel by pixel, with the rounding of that.
fn nearest_indices(from: usize, to: usize) -> Result<Vec<usize>> {
    let step = from as f64 / to as f64;
    let mut at = step * 0.5;
    let mut indices = reserve::room("a filter", to)?;
    for _ in 0..to {
        indices.push((at as usize).min(from - 1));
        at += step;
    }
    Ok(indices)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILTERS: [Filter; 4] = [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

    proptest! {
        #[test]
        fn a_flat_picture_stays_flat(
            (width, height) in (1usize..70, 1usize..70),
            (to_width, to_height) in (1usize..70, 1usize..70),
            byte: u8,
            filter in 0..FILTERS.len(),
        ) {
            let image = Image::new(width, height, vec![byte; width * height * 3]).unwrap();
            let resized = image.resized(to_width, to_height, FILTERS[filter]).unwrap();
            prop_assert_eq!((resized.width(), resized.height()), (to_width, to_height));
            prop_assert!(resized.rgb().iter().all(|&found| found == byte));
        }

        #[test]
        fn no_sum_overflows(rgb in proptest::collection::vec(prop_oneof![Just(0u8), Just(255u8)], 3 * 40), to in 1usize..90) {
            for filter in FILTERS {
                let image = Image::new(40, 1, rgb.clone()).unwrap();
                prop_assert_eq!(image.resized(to, 1, filter).unwrap().width(), to);
                let image = Image::new(1, 40, rgb.clone()).unwrap();
                prop_assert_eq!(image.resized(1, to, filter).unwrap().height(), to);
            }
        }
    }

    #[test]
    fn a_size_that_no_picture_has_is_refused() {
        let image = Image::new(2, 2, vec![7; 12]).unwrap();
        for (width, height) in [(0, 2), (2, 0), (usize::MAX, 2), (1 << 31, 1)] {
            for filter in FILTERS {
                assert!(matches!(image.resized(width, height, filter), Err(Error::Graph { .. })), "{width}x{height}");
            }
        }
    }
}
