//! Pictures that are made larger by what they reflect, as `numpy.pad` does it.

use super::{CHANNELS, Image};
use crate::{Error, Result, reserve};

/// What stands beside the edge of a reflection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// The neighbours of the pixels at the edge: numpy's `reflect`.
    WithoutEdge,
    /// The pixels at the edge once more: numpy's `symmetric`.
    WithEdge,
}

impl Mirror {
    /// Which of `count` pixels in a row is seen at `at`, which may be before the first and behind the last.
    fn seen(self, at: isize, count: usize) -> usize {
        let (last, period) = match self {
            Mirror::WithoutEdge => (2 * count.saturating_sub(1), (2 * count.saturating_sub(1)).max(1)),
            Mirror::WithEdge => (2 * count - 1, 2 * count),
        };
        let at = at.rem_euclid(period as isize) as usize;
        if at < count { at } else { last - at }
    }
}

impl Image {
    /// It in the middle of `width` by `height` pixels, which are no fewer than it has, and around it what it reflects. Of an odd rest,
    /// the larger part is at the right and at the bottom.
    ///
    /// # Errors
    /// [`Error::Graph`] for a size that is smaller; [`Error::OutOfMemory`].
    pub fn reflected(&self, width: usize, height: usize, mirror: Mirror) -> Result<Image> {
        let (own_width, own_height) = (self.width(), self.height());
        let (Some(beside), Some(below)) = (width.checked_sub(own_width), height.checked_sub(own_height)) else {
            let message = format!("{own_width}x{own_height} pixels within {width}x{height}");
            return Err(Error::graph("reflect", message));
        };
        let (left, top) = (beside / 2, below / 2);
        let mut rgb = reserve::room("a picture", width * height * CHANNELS)?;
        for y in 0..height {
            let row = mirror.seen(y as isize - top as isize, own_height) * own_width;
            for x in 0..width {
                let pixel = row + mirror.seen(x as isize - left as isize, own_width);
                rgb.extend_from_slice(&self.rgb[pixel * CHANNELS..][..CHANNELS]);
            }
        }
        Image::new(width, height, rgb).ok_or_else(|| Error::graph("reflect", "a picture without pixels"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reflections_are_those_of_numpy() {
        let row = |image: &Image| image.rgb.chunks_exact(CHANNELS).map(|pixel| pixel[0]).collect::<Vec<_>>();
        let image = Image::new(3, 1, vec![1, 1, 1, 2, 2, 2, 3, 3, 3]).unwrap();
        // numpy.pad([1, 2, 3], (4, 5), "reflect") and "symmetric".
        let without = image.reflected(12, 1, Mirror::WithoutEdge).unwrap();
        assert_eq!(row(&without), [1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]);
        let with = image.reflected(12, 1, Mirror::WithEdge).unwrap();
        assert_eq!(row(&with), [3, 3, 2, 1, 1, 2, 3, 3, 2, 1, 1, 2]);
        assert_eq!(image.reflected(3, 1, Mirror::WithEdge).unwrap(), image);
        assert!(image.reflected(2, 1, Mirror::WithEdge).is_err());
        let one = Image::new(1, 1, vec![7; 3]).unwrap();
        assert_eq!(row(&one.reflected(3, 1, Mirror::WithoutEdge).unwrap()), [7, 7, 7]);
    }
}
