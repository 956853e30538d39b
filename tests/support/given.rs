//! The picture and the mask that requests begin with, pixel for pixel those of `tests/reference/given.py`.

use std::sync::Arc;

use pinhole::image::Picture;

/// Waves of another length for each colour, and a rectangle with hard edges.
pub(crate) fn picture(width: usize, height: usize) -> Arc<Picture> {
    drawn(width, height, |x, y, c| {
        let inside = (width / 5..width / 2).contains(&x) && (height / 4..height * 3 / 5).contains(&y);
        let wave = ((x * (5 + 2 * c) + y * (3 + 4 * c) + 90 * c) % 510).abs_diff(255);
        if inside { 250 - 110 * c } else { wave }
    })
}

/// The picture with left and right exchanged.
pub(crate) fn turned(width: usize, height: usize) -> Arc<Picture> {
    let picture = picture(width, height);
    let rows = picture.image().rgb().chunks_exact(3 * width);
    let turned: Vec<u8> = rows.flat_map(|row| row.chunks_exact(3).rev().flatten().copied()).collect();
    Arc::new(Picture::from_rgb8(width, height, &turned).unwrap())
}

/// A white rectangle whose edges do not lie between two latents, with some of the darkest gray that counts as white, and around
/// it the lightest gray that counts as black.
pub(crate) fn mask(width: usize, height: usize) -> Arc<Picture> {
    let (left, right) = ((width * 4 / 11) | 1, (width * 8 / 9) | 1);
    let (top, bottom) = ((height / 7) | 1, (height * 5 / 8) | 1);
    drawn(width, height, |x, y, _| {
        let ring = (left..right + 10).contains(&(x + 5)) && (top..bottom + 10).contains(&(y + 5));
        let inside = (left..right).contains(&x) && (top..bottom).contains(&y);
        let deep = inside && x >= left + 9 && y >= top + 9;
        match (deep, inside, ring) {
            (true, ..) => 255,
            (_, true, _) => 128,
            (_, _, true) => 127,
            _ => 0,
        }
    })
}

fn drawn(width: usize, height: usize, value: impl Fn(usize, usize, usize) -> usize) -> Arc<Picture> {
    let values = (0..width * height * 3).map(|i| value(i / 3 % width, i / 3 / width, i % 3) as u8);
    let rgb: Vec<u8> = values.collect();
    Arc::new(Picture::from_rgb8(width, height, &rgb).unwrap())
}
