//! Pictures and masks as an autoencoder takes them: diffusers' `VaeImageProcessor.preprocess` and what its inpainting
//! pipelines do with a mask, equal to the bit.

use super::{CHANNELS, Filter, Image};
use crate::{Error, Result, reserve};

impl Image {
    /// The numbers that an autoencoder's encoder takes: `[width, height, 3]`, -1 for black and 1 for full. Each byte becomes
    /// `2 * (x / 255) - 1`, in f32.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn to_samples(&self) -> Result<Vec<f32>> {
        let mut samples = reserve::room("a picture's samples", self.rgb.len())?;
        for channel in 0..CHANNELS {
            for pixel in self.rgb.chunks_exact(CHANNELS) {
                samples.push(2.0 * (f32::from(pixel[channel]) / 255.0) - 1.0);
            }
        }
        Ok(samples)
    }
}

impl Image {
    /// The middle of it, `width` by `height` pixels, which are no more than it has. Of an odd rest, the larger part is cut off at the
    /// right and at the bottom, as diffusers does it where it crops and does not resize.
    ///
    /// # Errors
    /// [`Error::Graph`] for a part that is larger; [`Error::OutOfMemory`].
    pub fn center(&self, width: usize, height: usize) -> Result<Image> {
        let (whole_width, whole_height) = (self.width(), self.height());
        let (Some(right), Some(below)) = (whole_width.checked_sub(width), whole_height.checked_sub(height)) else {
            let message = format!("{width}x{height} pixels of {whole_width}x{whole_height}");
            return Err(Error::graph("crop", message));
        };
        let mut rgb = reserve::room("a picture", width * height * CHANNELS)?;
        for row in self.rgb.chunks_exact(whole_width * CHANNELS).skip(below / 2).take(height) {
            rgb.extend_from_slice(&row[right / 2 * CHANNELS..][..width * CHANNELS]);
        }
        Image::new(width, height, rgb).ok_or_else(|| Error::graph("crop", "a part without pixels"))
    }
}

/// Which part of a picture is painted anew: 1 there, 0 in the part that stays.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    width: usize,
    height: usize,
    /// `[width, height]`.
    values: Vec<f32>,
}

impl Mask {
    /// The mask that `image` draws in white on black, for a picture of `width` by `height` pixels: resized, made gray (ITU-R
    /// 601-2, as in Pillow), and 1 from half of full white on. diffusers resizes before it makes gray, too.
    ///
    /// # Errors
    /// Those of [`Image::resized`].
    pub fn new(image: &Image, width: usize, height: usize, filter: Filter) -> Result<Mask> {
        let image = image.resized(width, height, filter)?;
        let mut values = reserve::room("a mask", width * height)?;
        for pixel in image.rgb.chunks_exact(CHANNELS) {
            values.push(if f32::from(luma(pixel)) / 255.0 < 0.5 { 0.0 } else { 1.0 });
        }
        Ok(Mask { width, height, values })
    }

    /// The values, `[width, height]`, each 0 or 1.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The mask for latents that have one value for `factor` by `factor` pixels: `[width / factor, height / factor]`. Each is the
    /// value of the first of those pixels, as `torch.nn.functional.interpolate` has it (`mode="nearest"`).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and [`Error::Graph`] if `factor` does not divide the sides.
    pub fn latents(&self, factor: usize) -> Result<Vec<f32>> {
        if factor == 0 || !self.width.is_multiple_of(factor) || !self.height.is_multiple_of(factor) {
            let message = format!("{}x{} pixels make no whole latents of {factor}x{factor}", self.width, self.height);
            return Err(Error::graph("mask", message));
        }
        let mut latents = reserve::room("a mask", self.values.len() / (factor * factor))?;
        for row in self.values.chunks_exact(self.width).step_by(factor) {
            latents.extend(row.iter().step_by(factor));
        }
        Ok(latents)
    }

    /// The same with the mean of the four pixels in the middle of each latent, as `torch.nn.functional.interpolate` has it with
    /// `mode="bilinear"`.
    ///
    /// # Errors
    /// As [`latents`](Mask::latents); `factor` is even.
    pub fn between(&self, factor: usize) -> Result<Vec<f32>> {
        let first = self.latents(factor)?;
        let (columns, middle) = (self.width / factor, (factor / 2).saturating_sub(1));
        let mut latents = reserve::room("a mask", first.len())?;
        for at in 0..first.len() {
            let corner = (at / columns * factor + middle) * self.width + at % columns * factor + middle;
            let four = [corner, corner + 1, corner + self.width, corner + self.width + 1];
            latents.push(four.iter().map(|&at| self.values[at]).sum::<f32>() / 4.0);
        }
        Ok(latents)
    }

    /// Sets the part of a picture that will be painted anew to -1, which is black: what inpainting ControlNets take beside
    /// the mask. `samples` is `[width, height, 3]`, as [`Image::to_samples`] gives it.
    ///
    /// # Errors
    /// As [`hide`](Mask::hide).
    pub fn blacken(&self, samples: &mut [f32]) -> Result<()> {
        self.hide(samples)?;
        for plane in samples.chunks_exact_mut(self.values.len()) {
            for (sample, &masked) in plane.iter_mut().zip(&self.values) {
                *sample -= masked;
            }
        }
        Ok(())
    }

    /// Sets the part of a picture that will be painted anew to 0, which is middle gray: the "masked image" that inpainting models
    /// take beside the mask. `samples` is `[width, height, 3]`, as [`Image::to_samples`] gives it.
    ///
    /// # Errors
    /// [`Error::Graph`] if there are not `width * height * 3` samples.
    pub fn hide(&self, samples: &mut [f32]) -> Result<()> {
        if samples.len() != self.values.len() * CHANNELS {
            let message = format!("{} samples for {}x{}", samples.len(), self.width, self.height);
            return Err(Error::graph("mask", message));
        }
        for plane in samples.chunks_exact_mut(self.values.len()) {
            for (sample, &masked) in plane.iter_mut().zip(&self.values) {
                *sample *= 1.0 - masked;
            }
        }
        Ok(())
    }
}

/// Pillow's `convert("L")`: the weights 0.299, 0.587 and 0.114 with 16 fractional bits.
pub(crate) fn luma(pixel: &[u8]) -> u8 {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    // The weights add up to 2^16, so that this is at most 255.
    ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_leaves_less_at_the_left_and_above() {
        let rgb: Vec<u8> = (0..5 * 4).flat_map(|pixel| [pixel, 0, 0]).collect();
        let image = Image::new(5, 4, rgb).unwrap();
        let middle = image.center(2, 1).unwrap();
        assert_eq!((middle.width(), middle.height()), (2, 1));
        assert_eq!(middle.rgb(), [6, 0, 0, 7, 0, 0]);
        assert_eq!(image.center(5, 4).unwrap(), image);
        assert!(image.center(6, 4).is_err());
    }

    #[test]
    fn a_mask_between_pixels_is_the_mean_of_the_middle() {
        let mut values = vec![0.0; 8 * 4];
        // Of the first latent, two of the pixels in its middle and one beside them; of the second, all.
        for at in [8 + 1, 2 * 8 + 1, 0, 8 + 5, 8 + 6, 2 * 8 + 5, 2 * 8 + 6] {
            values[at] = 1.0;
        }
        let mask = Mask { width: 8, height: 4, values };
        assert_eq!(mask.between(4).unwrap(), [0.5, 1.0]);
        assert_eq!(mask.latents(4).unwrap(), [1.0, 0.0]);
        assert!(mask.between(3).is_err());
    }
}
