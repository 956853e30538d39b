//! Edges of a picture by John Canny's method, with the numbers of OpenCV's `cvtColor` and `Canny` (apertures of 3 by 3, lengths of
//! gradients as sums of absolute values): the pictures that models of edges were trained with.

use super::{CHANNELS, Image};
use crate::{Error, Result, reserve};

/// From which gradients on there is an edge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// An edge goes on as long as its gradients are above this.
    pub low: f32,
    /// An edge has a gradient above this.
    pub high: f32,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds { low: 100.0, high: 200.0 }
    }
}

impl Thresholds {
    /// Refuses thresholds that are below 0, no numbers, or in the wrong order. `option` gave them.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn check(self, option: &'static str) -> Result<()> {
        let Thresholds { low, high } = self;
        // An infinite one is as good as the largest gradient there is.
        if low >= 0.0 && high >= low {
            return Ok(());
        }
        let error = Error::option(option, "two numbers from 0 on, the lower first", format!("{low} and {high}"));
        Err(error.with_hint("the largest gradient is 2040; 100,200 suits most pictures"))
    }
}

/// Weights of red, green and blue in gray, with 15 fractional bits (OpenCV's `RY15`, `GY15` and `BY15`).
const GRAY: [u32; CHANNELS] = [9798, 19235, 3735];
const GRAY_BITS: u32 = 15;

/// The tangent of 22.5 degrees with 15 fractional bits.
const TANGENT: i32 = 13573;
const TANGENT_BITS: u32 = 15;

/// What a pixel is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Pixel {
    #[default]
    Plain,
    /// Part of an edge, if it belongs to one.
    Weak,
    Edge,
}

impl Image {
    /// The edges of this picture, in white on black.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn canny(&self, thresholds: Thresholds) -> Result<Image> {
        let (width, height) = (self.width(), self.height());
        let edges = edges(&gray(self)?, width, height, thresholds)?;
        let mut rgb = reserve::room("a picture", edges.len() * CHANNELS)?;
        for pixel in edges {
            rgb.extend([if pixel == Pixel::Edge { u8::MAX } else { 0 }; CHANNELS]);
        }
        Image::new(width, height, rgb).ok_or_else(|| Error::graph("canny", format!("{width}x{height}")))
    }
}

fn gray(image: &Image) -> Result<Vec<u8>> {
    let pixels = image.rgb.chunks_exact(CHANNELS);
    let count = pixels.len();
    let luma = pixels.map(|pixel| {
        let sum: u32 = pixel.iter().zip(GRAY).map(|(value, weight)| u32::from(*value) * weight).sum();
        // The weights add up to 1, so that this is at most 255.
        ((sum + (1 << (GRAY_BITS - 1))) >> GRAY_BITS) as u8
    });
    reserve::collect("a picture", count, luma)
}

/// What each pixel of `gray` is, once no weak one is left that belongs to an edge.
fn edges(gray: &[u8], width: usize, height: usize, thresholds: Thresholds) -> Result<Vec<Pixel>> {
    // As OpenCV does it with whole numbers; the cast keeps what is too large for them at the largest.
    let [low, high] = [thresholds.low, thresholds.high].map(|threshold| threshold.floor() as i32);
    let gradients = gradients(gray, width, height)?;
    let mut pixels = reserve::zeros("a picture", gray.len())?;
    let mut edge = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let gradient = gradients[y * width + x];
            if gradient.length() <= low {
                continue;
            }
            let is_peak = gradient.is_peak(|[dx, dy]| match (x.checked_add_signed(dx), y.checked_add_signed(dy)) {
                (Some(x), Some(y)) if x < width && y < height => gradients[y * width + x].length(),
                _ => 0,
            });
            if is_peak {
                let is_edge = gradient.length() > high;
                pixels[y * width + x] = if is_edge { Pixel::Edge } else { Pixel::Weak };
                if is_edge {
                    edge.push((x, y));
                }
            }
        }
    }
    while let Some((x, y)) = edge.pop() {
        for y in y.saturating_sub(1)..height.min(y + 2) {
            for x in x.saturating_sub(1)..width.min(x + 2) {
                let pixel = &mut pixels[y * width + x];
                if *pixel == Pixel::Weak {
                    *pixel = Pixel::Edge;
                    edge.push((x, y));
                }
            }
        }
    }
    Ok(pixels)
}

/// How fast a picture brightens to the right and downwards, in 8ths of a step between pixels.
#[derive(Clone, Copy, Debug, Default)]
struct Gradient {
    x: i16,
    y: i16,
}

impl Gradient {
    fn length(self) -> i32 {
        i32::from(self.x).abs() + i32::from(self.y).abs()
    }

    /// Whether it is longer than the next ones on either side, whose lengths `length` gives. Of two equal ones in a row or
    /// column, the first is.
    fn is_peak(self, length: impl Fn([isize; 2]) -> i32) -> bool {
        let (x, y) = (i32::from(self.x).abs(), i32::from(self.y).abs() << TANGENT_BITS);
        let flat = x * TANGENT;
        if y < flat {
            return self.length() > length([-1, 0]) && self.length() >= length([1, 0]);
        }
        // The tangent of 67.5 degrees is that of 22.5 degrees and 2.
        if y > flat + (x << (TANGENT_BITS + 1)) {
            return self.length() > length([0, -1]) && self.length() >= length([0, 1]);
        }
        let side = if (self.x < 0) != (self.y < 0) { -1 } else { 1 };
        self.length() > length([-side, -1]) && self.length() > length([side, 1])
    }
}

/// Sobel's operator at each pixel; beyond the border, pixels are those at the border.
fn gradients(gray: &[u8], width: usize, height: usize) -> Result<Vec<Gradient>> {
    let mut gradients = reserve::room("a picture's edges", gray.len())?;
    for y in 0..height {
        let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|y| &gray[y * width..][..width]);
        for x in 0..width {
            let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
            let [above, here, below] = rows.map(|row| columns.map(|x| i16::from(row[x])));
            let across = |row: [i16; 3]| row[2] - row[0];
            let smooth = |row: [i16; 3]| row[0] + 2 * row[1] + row[2];
            let x = across(above) + 2 * across(here) + across(below);
            gradients.push(Gradient { x, y: smooth(below) - smooth(above) });
        }
    }
    Ok(gradients)
}
