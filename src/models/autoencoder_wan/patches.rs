//! Pictures in patches, whose pixels are channels, and pictures with an opacity.

use super::Config;
use super::config::COLOURS;
use crate::{Error, Result, reserve};

impl Config {
    /// A picture `[W, H, 3]` that is `width` wide, as the encoder takes it: in patches, or with an opacity, which is full.
    ///
    /// # Errors
    /// [`Error::Graph`] for a picture that is not made of whole patches; [`Error::OutOfMemory`].
    pub fn taken(&self, mut samples: Vec<f32>, width: usize) -> Result<Vec<f32>> {
        if self.colours() > COLOURS {
            let with_opacity = samples.len() / COLOURS * self.colours();
            reserve::resize("a picture", &mut samples, with_opacity)?;
            samples[with_opacity / self.colours() * COLOURS..].fill(1.0);
        }
        match self.patch() {
            1 => Ok(samples),
            side => patched(&samples, width, self.colours(), side),
        }
    }

    /// The picture `[W, H, 3]`, which is `width` wide, of what the decoder gave for it. What is not opaque lies over white.
    ///
    /// # Errors
    /// As [`taken`](Config::taken).
    pub fn given(&self, samples: Vec<f32>, width: usize) -> Result<Vec<f32>> {
        let samples = match self.patch() {
            1 => samples,
            side => unpatched(&samples, width, self.colours(), side)?,
        };
        Ok(if self.colours() > COLOURS { over_white(samples, self.colours()) } else { samples })
    }
}

/// The colours of a picture `[W, H, channels]`, the last of whose channels is its opacity, from -1 to 1, over white.
fn over_white(mut samples: Vec<f32>, channels: usize) -> Vec<f32> {
    let count = samples.len() / channels * (channels - 1);
    let (colours, opacity) = samples.split_at_mut(count);
    for colour in colours.chunks_exact_mut(opacity.len().max(1)) {
        for (colour, opacity) in colour.iter_mut().zip(&*opacity) {
            let share = (opacity.clamp(-1.0, 1.0) + 1.0) / 2.0;
            *colour = colour.clamp(-1.0, 1.0) * share + (1.0 - share);
        }
    }
    samples.truncate(count);
    samples
}

/// `samples [W, H, c]` of a picture that is `width` wide, in patches of `side` by `side`: `[W / side, H / side, c * side^2]`. Of the
/// pixels of a patch, those of a column follow each other.
fn patched(samples: &[f32], width: usize, colours: usize, side: usize) -> Result<Vec<f32>> {
    let [columns, rows] = patches(samples.len(), width, colours, side)?;
    let mut patched = reserve::room("a picture in patches", samples.len())?;
    let plane = columns * side * rows * side;
    for colour in samples.chunks_exact(plane) {
        for (column, row) in pixels(side) {
            for line in colour.chunks_exact(columns * side).skip(row).step_by(side) {
                patched.extend(line.iter().skip(column).step_by(side));
            }
        }
    }
    Ok(patched)
}

/// The way back from [`patched`].
fn unpatched(patched: &[f32], width: usize, colours: usize, side: usize) -> Result<Vec<f32>> {
    let [columns, rows] = patches(patched.len(), width, colours, side)?;
    let mut samples = reserve::zeros("a picture", patched.len())?;
    let plane = columns * side * rows * side;
    for (samples, patched) in samples.chunks_exact_mut(plane).zip(patched.chunks_exact(plane)) {
        for ((column, row), patched) in pixels(side).zip(patched.chunks_exact(columns * rows)) {
            let lines = samples.chunks_exact_mut(columns * side).skip(row).step_by(side);
            for (line, patched) in lines.zip(patched.chunks_exact(columns)) {
                line.iter_mut().skip(column).step_by(side).zip(patched).for_each(|(to, &from)| *to = from);
            }
        }
    }
    Ok(samples)
}

/// Columns and rows of patches of a picture of so many numbers.
fn patches(numbers: usize, width: usize, colours: usize, side: usize) -> Result<[usize; 2]> {
    let height = numbers / (width * colours).max(1);
    let whole = width.is_multiple_of(side) && height.is_multiple_of(side) && width * height * colours == numbers;
    if !whole || numbers == 0 {
        let message = format!("{numbers} numbers, {width} columns and {colours} colours in patches of {side}");
        return Err(Error::graph("patches", message));
    }
    Ok([width / side, height / side])
}

/// Columns and rows of the pixels of a patch.
fn pixels(side: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..side).flat_map(move |column| (0..side).map(move |row| (column, row)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_opaque_lies_over_white() {
        let config = Config::of_qwen_image_21();
        let picture = vec![-1.0, 0.5, 1.0, -1.0, 0.0, 0.0];
        let taken = config.taken(picture.clone(), 2).unwrap();
        assert_eq!(taken, [-1.0, 0.5, 1.0, -1.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(config.given(taken, 2).unwrap(), picture);
        let half = vec![-1.0, 0.5, 1.0, -1.0, 0.0, 0.0, 0.0, -3.0];
        assert_eq!(config.given(half, 2).unwrap(), [0.0, 1.0, 1.0, 1.0, 0.5, 1.0]);
    }

    #[test]
    fn columns_of_a_patch_follow_each_other() {
        let picture: Vec<f32> = (0..16).map(|number| number as f32).collect();
        let patches = patched(&picture, 4, 2, 2).unwrap();
        assert_eq!(patches[..8], [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
        assert_eq!(unpatched(&patches, 4, 2, 2).unwrap(), picture);
        assert_eq!(patched(&picture, 4, 1, 1).unwrap(), picture);
        assert!(patched(&picture, 3, 1, 2).is_err() && unpatched(&[], 4, 1, 2).is_err());
    }
}
