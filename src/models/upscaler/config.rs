//! The settings of networks that make pictures larger, and how a picture is given to them and taken from them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::models::config::{self as settings, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;
use crate::{Error, Result, reserve};

/// Colours of a picture.
pub(super) const COLOURS: usize = 3;

/// By how much any network makes a picture larger, at most.
const MOST_FACTOR: usize = 16;

/// How often a map is doubled, at most.
const MOST_DOUBLINGS: usize = 4;

/// The settings, which the shapes of the weights tell.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "architecture", rename_all = "snake_case")]
pub enum Config {
    /// ESRGAN's network, `RRDBNet`.
    Dense(Dense),
    /// Real-ESRGAN's compact network, `SRVGGNetCompact`.
    Compact(Compact),
}

/// The settings of ESRGAN's network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Dense {
    /// `F`.
    pub features: usize,
    /// `G`.
    pub growth: usize,
    /// How many blocks there are, of three dense blocks each.
    pub blocks: usize,
    /// `D`.
    pub doublings: usize,
    /// `U`.
    pub unshuffled: usize,
}

/// The settings of the compact network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Compact {
    /// `F`.
    pub features: usize,
    /// How many convolutions there are between the first and the last.
    pub convolutions: usize,
    /// `S`.
    pub factor: usize,
}

impl Config {
    /// Reads the settings off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a weight is missing, or if the sizes make no such network.
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        match shapes.has("conv_first.weight") || !shapes.has("body.1.weight") {
            true => Dense::from_shapes(&shapes, origin).map(Config::Dense),
            false => Compact::from_shapes(&shapes, origin).map(Config::Compact),
        }
    }

    /// Pixels of the picture to a pixel of the maps that blocks work on, each way.
    pub fn unshuffled(&self) -> usize {
        match self {
            Config::Dense(dense) => dense.unshuffled,
            Config::Compact(_) => 1,
        }
    }

    /// By how much a picture becomes larger.
    pub fn factor(&self) -> usize {
        match self {
            Config::Dense(dense) => (1 << dense.doublings) / dense.unshuffled,
            Config::Compact(compact) => compact.factor,
        }
    }

    /// Extents of the maps that blocks work on, for a picture of these: what makes no whole pixel of a map is filled up.
    pub fn extents(&self, [width, height]: [usize; 2]) -> [usize; 2] {
        [width, height].map(|side| side.div_ceil(self.unshuffled()))
    }

    /// The numbers that the network takes: of the picture `rgb` of `width` by `height` pixels. Beyond its right and its lower edge it goes
    /// on as in a mirror, as far as it has to.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Graph`] if there are not `width * height` pixels.
    pub fn taken(&self, rgb: &[u8], [width, height]: [usize; 2]) -> Result<Vec<f32>> {
        if width.checked_mul(height).and_then(|pixels| pixels.checked_mul(COLOURS)) != Some(rgb.len()) || rgb.is_empty()
        {
            return Err(Error::graph("upscale", format!("{} bytes for {width}x{height}", rgb.len())));
        }
        let (unshuffled, [w, h]) = (self.unshuffled(), self.extents([width, height]));
        let mut numbers = reserve::room("a picture's samples", w * h * unshuffled * unshuffled * COLOURS)?;
        for channel in 0..COLOURS * unshuffled * unshuffled {
            let (colour, down, right) =
                (channel / (unshuffled * unshuffled), channel / unshuffled % unshuffled, channel % unshuffled);
            for y in 0..h {
                let row = mirrored(y * unshuffled + down, height) * width;
                for x in 0..w {
                    let pixel = row + mirrored(x * unshuffled + right, width);
                    numbers.push(f32::from(rgb[pixel * COLOURS + colour]) / 255.0);
                }
            }
        }
        Ok(numbers)
    }

    /// The larger picture, as bytes, of what the network gave for the picture `rgb`: clamped to 0..=1, times 255, halves to even.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Graph`] if there are not as many numbers as the network gives.
    pub fn given(&self, numbers: &[f32], rgb: &[u8], [width, height]: [usize; 2]) -> Result<Vec<u8>> {
        let [w, h] = self.extents([width, height]);
        let factor = self.factor();
        // Of the compact network, a pixel has the numbers of all that come of it.
        let (columns, rows, shuffled) = match self {
            Config::Dense(dense) => (w << dense.doublings, h << dense.doublings, 1),
            Config::Compact(_) => (w, h, factor),
        };
        if numbers.len() != columns * rows * COLOURS * shuffled * shuffled {
            return Err(Error::graph("upscale", format!("{} numbers for {columns}x{rows}", numbers.len())));
        }
        let (across, down) = (width * factor, height * factor);
        let mut bytes = reserve::room("a picture", across * down * COLOURS)?;
        for y in 0..down {
            for x in 0..across {
                for colour in 0..COLOURS {
                    let channel = (colour * shuffled + y % shuffled) * shuffled + x % shuffled;
                    let mut sample = numbers[(channel * rows + y / shuffled) * columns + x / shuffled];
                    if let Config::Compact(_) = self {
                        let pixel = y / factor * width + x / factor;
                        sample += f32::from(rgb[pixel * COLOURS + colour]) / 255.0;
                    }
                    // From 0 to 255.
                    bytes.push((sample.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
                }
            }
        }
        Ok(bytes)
    }
}

/// The position of `at` in a row of `length`, which goes on beyond its end as in a mirror at its last pixel.
fn mirrored(at: usize, length: usize) -> usize {
    let period = (2 * length - 2).max(1);
    let at = at % period;
    if at < length { at } else { period - at }
}

impl Dense {
    fn from_shapes(shapes: &Shapes<'_>, origin: &Path) -> Result<Dense> {
        let [_, _, taken, features] = shapes.dims("conv_first.weight")?;
        let [_, _, _, growth] = shapes.dims("body.0.rdb1.conv1.weight")?;
        let [_, _, _, given] = shapes.dims("conv_last.weight")?;
        let blocks = shapes.count(|i| format!("body.{i}.rdb1.conv1.weight"));
        let doublings = shapes.count(|i| format!("conv_up{}.weight", i + 1));
        settings::limit(origin, "number of conv_up", doublings, 0..=MOST_DOUBLINGS)?;
        let unshuffled = (taken / COLOURS).isqrt();
        let whole = taken == COLOURS * unshuffled * unshuffled && unshuffled > 0;
        settings::require(
            origin,
            "conv_first.weight",
            whole,
            || "3, 12 or 48 channels: a picture in colour, whole or folded".into(),
            taken,
        )?;
        settings::limit(origin, "conv_last.weight", given, COLOURS..=COLOURS)?;
        settings::limit(origin, "features", features, 1..=MOST_WIDTH)?;
        settings::limit(origin, "growth", growth, 1..=MOST_WIDTH)?;
        let larger = (1usize << doublings).is_multiple_of(unshuffled);
        settings::require(
            origin,
            "conv_first.weight",
            larger,
            || format!("a picture that is not smaller than before, with {doublings} doublings"),
            format!("one folded by {unshuffled}"),
        )?;
        Ok(Dense { features, growth, blocks, doublings, unshuffled })
    }
}

impl Compact {
    fn from_shapes(shapes: &Shapes<'_>, origin: &Path) -> Result<Compact> {
        let [_, _, taken, features] = shapes.dims("body.0.weight")?;
        // Each convolution except the last is followed by its slopes.
        let slopes = (0..MOST_LAYERS).take_while(|i| shapes.has(&format!("body.{}.weight", 2 * i + 1))).count();
        let last = format!("body.{}.weight", 2 * slopes);
        let [_, _, _, given] = shapes.dims(&last)?;
        settings::limit(origin, "body.0.weight", taken, COLOURS..=COLOURS)?;
        settings::limit(origin, "features", features, 1..=MOST_WIDTH)?;
        let factor = (given / COLOURS).isqrt();
        let square = given == COLOURS * factor * factor && (1..=MOST_FACTOR).contains(&factor);
        settings::require(origin, &last, square, || "three times a square number of channels".into(), given)?;
        let convolutions = slopes.saturating_sub(1);
        Ok(Compact { features, convolutions, factor })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::models::upscaler::Upscaler;

    fn dense(unshuffled: usize) -> Config {
        Config::Dense(Dense { features: 8, growth: 4, blocks: 2, doublings: 2, unshuffled })
    }

    fn compact(factor: usize) -> Config {
        Config::Compact(Compact { features: 8, convolutions: 3, factor })
    }

    #[test]
    fn settings_are_read_off_the_shapes() {
        for config in [dense(1), dense(2), dense(4), compact(4), compact(1)] {
            let model = Upscaler::new(&config).unwrap().model;
            let mut shapes: HashMap<String, Shape> =
                model.manifest().iter().map(|(_, weight)| (weight.name.clone(), weight.shape)).collect();
            let found = Config::from_shapes(|name| shapes.get(name).copied(), Path::new("x4.pth")).unwrap();
            assert_eq!((found.factor(), &found), (config.factor(), &config));
            shapes.retain(|name, _| !name.starts_with("conv_last") && !name.starts_with("body.8"));
            assert!(Config::from_shapes(|name| shapes.get(name).copied(), Path::new("f")).is_err());
        }
        let factors = [dense(1), dense(2), dense(4), compact(3)].map(|config| config.factor());
        assert_eq!(factors, [4, 2, 1, 3]);
    }

    #[test]
    fn a_picture_is_folded_and_unfolded() {
        let rgb: Vec<u8> = (0..3 * 3).flat_map(|pixel| [pixel, pixel + 50, pixel + 100]).collect();
        let taken = dense(2).taken(&rgb, [3, 3]).unwrap();
        let red: Vec<f32> = taken[..16].iter().map(|x| (x * 255.0).round()).collect();
        // Of the third row and column, the one before comes again.
        assert_eq!(red, [0.0, 2.0, 6.0, 8.0, 1.0, 1.0, 7.0, 7.0, 3.0, 5.0, 3.0, 5.0, 4.0, 4.0, 4.0, 4.0]);
        // The compact network adds to the picture.
        let nothing = vec![0.0; 9 * 3 * 4];
        let larger = compact(2).given(&nothing, &rgb, [3, 3]).unwrap();
        assert_eq!(larger.chunks_exact(3).take(6).map(|pixel| pixel[0]).collect::<Vec<_>>(), [0, 0, 1, 1, 2, 2]);
        assert_eq!((larger.len(), larger[35 * 3 + 2]), (36 * 3, 108));
        let mut one = nothing;
        one[9 + 4] = 1.0;
        let larger = compact(2).given(&one, &rgb, [3, 3]).unwrap();
        // The second number of the middle pixel is the right one above.
        assert_eq!(larger.chunks_exact(3).position(|pixel| pixel[0] == 255), Some(2 * 6 + 3));
        assert!(dense(1).given(&[0.0; 5], &rgb, [3, 3]).is_err() && dense(1).taken(&rgb, [2, 3]).is_err());
    }

    #[test]
    fn small_pictures_are_mirrored_more_than_once() {
        assert_eq!((0..4).map(|at| mirrored(at, 1)).collect::<Vec<_>>(), [0, 0, 0, 0]);
        assert_eq!((0..5).map(|at| mirrored(at, 2)).collect::<Vec<_>>(), [0, 1, 0, 1, 0]);
        assert_eq!((0..8).map(|at| mirrored(at, 5)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 3, 2, 1]);
    }
}
