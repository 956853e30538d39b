//! Frames that tests make, and films of them.

use std::fs;
use std::path::Path;

use pinhole::image::{Image, PARAMETERS, PINHOLE};
use pinhole::video::{Film, Rate, Shape};

pub(crate) const WIDTH: usize = 48;
pub(crate) const HEIGHT: usize = 32;
pub(crate) const TEXT: [(&str, &str); 2] = [(PARAMETERS, "ein Häuschen\nSteps: 4"), (PINHOLE, r#"{"seed":7}"#)];

/// Slow changes of strong colours, which move.
pub(crate) fn frame(width: usize, height: usize, number: usize) -> Image {
    let mut rgb = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let across = 255 * x / width.max(2);
            let down = (255 * y / height.max(2) + 20 * number) % 512;
            rgb.extend([across, 255 - across, down.min(511 - down)].map(|colour| colour as u8));
        }
    }
    Image::new(width, height, rgb).unwrap()
}

/// Every pixel by chance.
pub(crate) fn noise(width: usize, height: usize, mut state: u32) -> Image {
    let mut rgb = Vec::new();
    for _ in 0..width * height * 3 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        rgb.push((state >> 24) as u8);
    }
    Image::new(width, height, rgb).unwrap()
}

pub(crate) fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

pub(crate) fn shape(frames: usize, fps: &str) -> Shape {
    Shape { width: WIDTH, height: HEIGHT, frames, rate: rate(fps) }
}

/// A film of `shape` at `path`, and its frames.
pub(crate) fn write(path: &Path, shape: Shape) -> Vec<Image> {
    let frames: Vec<Image> = (0..shape.frames).map(|number| frame(shape.width, shape.height, number)).collect();
    let is_new = !path.exists();
    let mut film = Film::create(path, shape).unwrap();
    film.set_text(&TEXT);
    for frame in &frames {
        assert!(!is_new || path.is_dir() || !path.exists());
        film.push(frame).unwrap();
    }
    assert_eq!(film.finish().unwrap(), path);
    frames
}

/// The worst and the mean square difference of two pictures' bytes.
pub(crate) fn difference(one: &[u8], other: &[u8]) -> (u8, f64) {
    assert_eq!(one.len(), other.len());
    let differences = || one.iter().zip(other).map(|(&a, &b)| a.abs_diff(b));
    let squares: f64 = differences().map(|difference| f64::from(difference).powi(2)).sum();
    (differences().max().unwrap(), squares / one.len() as f64)
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
