//! Latents as tokens, and back.

use crate::{Result, reserve};

/// Pixels of a latent, in both directions.
const PIXELS: usize = 8;

/// Latents `[w, h, channels]` as tokens `[4 channels, (w/2)(h/2)]`: each token holds, channel by channel, a 2x2 patch.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn pack_latents(latents: &[f32], width: usize, height: usize, channels: usize) -> Result<Vec<f32>> {
    let mut tokens = reserve::room("the latents", latents.len())?;
    for_each_packed(width, height, channels, |at| tokens.push(latents[at]));
    Ok(tokens)
}

/// A mask for pixels, `[8 width, 8 height]`, as tokens `[256, (width/2)(height/2)]`: the pixels of each latent count as its channels, row
/// by row. Of the latents there are `width` by `height`.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn pack_mask(mask: &[f32], width: usize, height: usize) -> Result<Vec<f32>> {
    let mut by_latent = reserve::room("the mask", mask.len())?;
    for (dy, dx) in (0..PIXELS).flat_map(|dy| (0..PIXELS).map(move |dx| (dy, dx))) {
        for row in mask.chunks_exact(PIXELS * width).skip(dy).step_by(PIXELS) {
            by_latent.extend(row.iter().skip(dx).step_by(PIXELS));
        }
    }
    pack_latents(&by_latent, width, height, PIXELS * PIXELS)
}

/// The inverse of [`pack_latents`].
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn unpack_latents(tokens: &[f32], width: usize, height: usize, channels: usize) -> Result<Vec<f32>> {
    let mut latents = reserve::zeros("the latents", tokens.len())?;
    let mut packed = tokens.iter();
    for_each_packed(width, height, channels, |at| {
        if let Some(&value) = packed.next() {
            latents[at] = value;
        }
    });
    Ok(latents)
}

/// Calls `visit` with the position in `[w, h, channels]` of every number of the packed order. Sides are even.
fn for_each_packed(width: usize, height: usize, channels: usize, mut visit: impl FnMut(usize)) {
    for y in (0..height).step_by(2) {
        for x in (0..width).step_by(2) {
            for channel in 0..channels {
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    visit((channel * height + y + dy) * width + x + dx);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_its_pixels_in_the_token_above_them() {
        let mask: Vec<f32> = (0..32 * 16).map(|i| i as f32).collect();
        let tokens = pack_mask(&mask, 4, 2).unwrap();
        assert_eq!(tokens.len(), 32 * 16);
        // Pixel (0, 0) of the four latents of the first token, then pixel (1, 0) of them.
        assert_eq!(tokens[..5], [0.0, 8.0, 256.0, 264.0, 1.0]);
        // The second token begins with the third latent.
        assert_eq!(tokens[256], 16.0);
    }

    #[test]
    fn packing_is_undone() {
        let latents: Vec<f32> = (0..6 * 4 * 3).map(|i| i as f32).collect();
        let tokens = pack_latents(&latents, 6, 4, 3).unwrap();
        assert_eq!(tokens[..4], [0.0, 1.0, 6.0, 7.0]);
        assert_eq!(tokens[4], 24.0); // the second channel of the first patch
        assert_eq!(unpack_latents(&tokens, 6, 4, 3).unwrap(), latents);
    }
}
