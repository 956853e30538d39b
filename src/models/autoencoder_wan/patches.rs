//! Pictures in patches, whose pixels are channels.

use super::Config;
use crate::{Error, Result, reserve};

impl Config {
    /// A picture `[W, H, 3]` that is `width` wide, as the encoder takes it.
    ///
    /// # Errors
    /// [`Error::Graph`] for a picture that is not made of whole patches; [`Error::OutOfMemory`].
    pub fn taken(&self, samples: Vec<f32>, width: usize) -> Result<Vec<f32>> {
        match self.patch() {
            1 => Ok(samples),
            side => patched(&samples, width, self.colours(), side),
        }
    }

    /// The picture `[W, H, 3]`, which is `width` wide, of what the decoder gave for it.
    ///
    /// # Errors
    /// As [`taken`](Config::taken).
    pub fn given(&self, samples: Vec<f32>, width: usize) -> Result<Vec<f32>> {
        match self.patch() {
            1 => Ok(samples),
            side => unpatched(&samples, width, self.colours(), side),
        }
    }
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
    fn columns_of_a_patch_follow_each_other() {
        let picture: Vec<f32> = (0..16).map(|number| number as f32).collect();
        let patches = patched(&picture, 4, 2, 2).unwrap();
        assert_eq!(patches[..8], [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
        assert_eq!(unpatched(&patches, 4, 2, 2).unwrap(), picture);
        assert_eq!(patched(&picture, 4, 1, 1).unwrap(), picture);
        assert!(patched(&picture, 3, 1, 2).is_err() && unpatched(&[], 4, 1, 2).is_err());
    }
}
