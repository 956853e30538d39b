//! Latents as tokens, and back.

use super::ports::filled_up;
use crate::{Result, reserve};

/// Latents `[w, h, channels]` as tokens `[4 channels, (w/2)(h/2)]`: each token holds a 2x2 patch, place by place with all channels.
/// Zeros fill them up.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn pack_latents(latents: &[f32], width: usize, height: usize, channels: usize) -> Result<Vec<f32>> {
    let numbers = filled_up(width / 2 * (height / 2)) * 4 * channels;
    let mut tokens = reserve::room("the latents", numbers)?;
    for_each_packed(width, height, channels, |at| tokens.push(latents[at]));
    tokens.resize(numbers, 0.0);
    Ok(tokens)
}

/// The inverse of [`pack_latents`].
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn unpack_latents(tokens: &[f32], width: usize, height: usize, channels: usize) -> Result<Vec<f32>> {
    let mut latents = reserve::zeros("the latents", width * height * channels)?;
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
            for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for channel in 0..channels {
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
    fn patches_have_all_channels_of_a_place_side_by_side() {
        let latents: Vec<f32> = (0..4 * 6 * 3).map(|i| i as f32).collect();
        let tokens = pack_latents(&latents, 4, 6, 3).unwrap();
        assert_eq!(tokens.len(), 32 * 12);
        assert_eq!(tokens[..12], [0., 24., 48., 1., 25., 49., 4., 28., 52., 5., 29., 53.]);
        assert!(tokens[6 * 12..].iter().all(|&number| number == 0.0));
        assert_eq!(unpack_latents(&tokens, 4, 6, 3).unwrap(), latents);
    }
}
