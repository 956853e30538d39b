//! Pictures as vision towers take them: what transformers' `SiglipImageProcessor` and `CLIPImageProcessor` make of them, cut into
//! patches.

use super::decode::MAX_SIDE;
use super::{CHANNELS, Filter, Image};
use crate::{Error, Result, reserve};

/// What a byte is multiplied by, as transformers writes it down.
pub(super) const RESCALE: f64 = 0.003_921_568_627_450_98;

/// How a vision tower sees a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Pixels of the sides that it sees.
    pub side: usize,
    /// Pixels of a patch's sides. What makes no whole patch is not seen.
    pub patch: usize,
    /// Pixels of the shorter side of the picture from which a square is cut out. Without, the picture is stretched.
    pub shorter: Option<usize>,
    /// How it gets that size.
    pub filter: Filter,
    /// What a byte is multiplied by.
    pub rescale: f64,
    /// What is taken from each colour, in 0..=1.
    pub mean: [f32; CHANNELS],
    /// What each colour is divided by then.
    pub deviation: [f32; CHANNELS],
}

impl View {
    /// SigLIP's.
    pub const fn siglip(side: usize, patch: usize) -> View {
        let (filter, rescale) = (Filter::Bicubic, RESCALE);
        View { side, patch, shorter: None, filter, rescale, mean: [0.5; CHANNELS], deviation: [0.5; CHANNELS] }
    }

    /// CLIP's.
    pub const fn clip(side: usize, patch: usize) -> View {
        let (mean, deviation) = ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);
        View { side, patch, shorter: Some(side), filter: Filter::Bicubic, rescale: RESCALE, mean, deviation }
    }
}

impl Image {
    /// The numbers of its patches, row by row: of each its colours one after the other, and of each colour its pixels row by row.
    ///
    /// # Errors
    /// Those of [`Image::resized`]; [`Error::Option`] for a picture so long that its short side at full size would make it larger
    /// than pictures may be.
    pub fn patches(&self, view: &View) -> Result<Vec<f32>> {
        let image = self.seen(view)?;
        let (left, top) = ((image.width() - view.side) / 2, (image.height() - view.side) / 2);
        let (patch, count) = (view.patch, view.side / view.patch);
        let mut numbers = reserve::room("a picture's patches", count * count * patch * patch * CHANNELS)?;
        for at in 0..count * count {
            let (row, column) = (top + at / count * patch, left + at % count * patch);
            for channel in 0..CHANNELS {
                for y in row..row + patch {
                    let line = &image.rgb[(y * image.width() + column) * CHANNELS..][..patch * CHANNELS];
                    for byte in line.iter().skip(channel).step_by(CHANNELS) {
                        let value = (f64::from(*byte) * view.rescale) as f32;
                        numbers.push((value - view.mean[channel]) / view.deviation[channel]);
                    }
                }
            }
        }
        Ok(numbers)
    }

    /// The picture at the size of `view`: what of it is cut off comes last.
    fn seen(&self, view: &View) -> Result<Image> {
        let Some(shorter) = view.shorter else { return self.resized(view.side, view.side, view.filter) };
        let (short, long) = (self.width().min(self.height()), self.width().max(self.height()));
        let longer = shorter * long / short;
        if longer > MAX_SIDE {
            let expected = format!("a picture at most {} times as long as it is wide", MAX_SIDE / shorter);
            return Err(Error::option("picture", expected, format!("{}x{}", self.width(), self.height())));
        }
        match self.width() <= self.height() {
            true => self.resized(shorter, longer, view.filter),
            false => self.resized(longer, shorter, view.filter),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every byte of the picture says where it is.
    fn numbered(width: usize, height: usize) -> Image {
        Image::new(width, height, (0..width * height * CHANNELS).map(|i| i as u8).collect()).unwrap()
    }

    #[test]
    fn patches_come_row_by_row() {
        let plain = View { mean: [0.0; 3], deviation: [(1.0 / 255.0) as f32; 3], ..View::siglip(4, 2) };
        let bytes: Vec<f32> = numbered(4, 4).patches(&plain).unwrap().into_iter().map(f32::round).collect();
        assert_eq!(bytes[..12], [0.0, 3.0, 12.0, 15.0, 1.0, 4.0, 13.0, 16.0, 2.0, 5.0, 14.0, 17.0]);
        assert_eq!(bytes[12..16], [6.0, 9.0, 18.0, 21.0]);
        assert_eq!(bytes[24..28], [24.0, 27.0, 36.0, 39.0]);
        // A patch that is not whole is not seen.
        assert_eq!(numbered(5, 5).patches(&View { side: 5, ..plain }).unwrap().len(), 48);
    }

    #[test]
    fn ends_that_stick_out_are_cut_off() {
        let plain = View { mean: [0.0; 3], deviation: [(1.0 / 255.0) as f32; 3], ..View::clip(2, 2) };
        let first = |image: Image| image.patches(&plain).unwrap()[0].round();
        assert_eq!(first(numbered(7, 2)), 6.0);
        assert_eq!(first(numbered(2, 7)), 12.0);
        assert!(numbered(1, 30_000).patches(&plain).is_err());
    }

    #[test]
    fn colours_are_normalised() {
        let white = Image::new(3, 3, vec![255; 27]).unwrap();
        assert_eq!(white.patches(&View::siglip(3, 3)).unwrap(), [1.0; 27]);
        let black = Image::new(1, 1, vec![0; 3]).unwrap().patches(&View::clip(1, 1)).unwrap();
        assert_eq!(black[0], -0.481_454_66 / 0.268_629_54);
    }
}
