//! Latents as tokens, and back.

use crate::{Result, reserve};

/// The places of a patch: rows and columns.
const PLACES: [[usize; 2]; 4] = [[0, 0], [0, 1], [1, 0], [1, 1]];

/// The positions in `[w, h, F, C]` of all numbers by token: for each, its channels one after the other, and of each its places.
fn for_each_packed([w, h, frames, channels]: [usize; 4], mut visit: impl FnMut(usize)) {
    for frame in 0..frames {
        for row in (0..h).step_by(2) {
            for column in (0..w).step_by(2) {
                for channel in 0..channels {
                    for [down, right] in PLACES {
                        visit(((channel * frames + frame) * h + row + down) * w + column + right);
                    }
                }
            }
        }
    }
}

/// Latents `[w, h, F, C]` as tokens `[4 C, (w/2)(h/2) F]`: each holds, channel by channel, a patch of 2x2. Sides are even.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn pack_latents(latents: &[f32], dims: [usize; 4]) -> Result<Vec<f32>> {
    let mut tokens = reserve::room("the latents", latents.len())?;
    for_each_packed(dims, |at| tokens.push(latents[at]));
    Ok(tokens)
}

/// Latents `[w, h, F, C]` of a prediction. Each of its tokens holds all channels of its patch, place by place.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn unpack_prediction(tokens: &[f32], dims: [usize; 4]) -> Result<Vec<f32>> {
    let [.., channels] = dims;
    let mut latents = reserve::zeros("the latents", tokens.len())?;
    let (mut token, mut i) = (0, 0);
    for_each_packed(dims, |at| {
        let (channel, place) = (i / PLACES.len(), i % PLACES.len());
        latents[at] = tokens[token + place * channels + channel];
        i += 1;
        if i == channels * PLACES.len() {
            (token, i) = (token + i, 0);
        }
    });
    Ok(latents)
}

/// Tokens of `width` numbers, each with that of `beside` behind it.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn joined(tokens: &[f32], beside: &[f32], width: usize) -> Result<Vec<f32>> {
    let count = (tokens.len() / width).max(1);
    let mut joined = reserve::room("the latents", tokens.len() + beside.len())?;
    for (token, beside) in tokens.chunks_exact(width).zip(beside.chunks_exact(beside.len() / count)) {
        joined.extend_from_slice(token);
        joined.extend_from_slice(beside);
    }
    Ok(joined)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_has_its_channels_last() {
        // Two frames of 4x2, two channels.
        let dims = [4, 2, 2, 2];
        let latents: Vec<f32> = (0..32u8).map(f32::from).collect();
        let packed = pack_latents(&latents, dims).unwrap();
        assert_eq!(packed[..8], [0.0, 1.0, 4.0, 5.0, 16.0, 17.0, 20.0, 21.0]);
        assert_eq!(packed[8..12], [2.0, 3.0, 6.0, 7.0]);
        assert_eq!(packed[16], 8.0);
        let mut by_place = Vec::new();
        for token in packed.chunks_exact(8) {
            by_place.extend((0..8).map(|i| token[i % 2 * 4 + i / 2]));
        }
        assert_eq!(unpack_prediction(&by_place, dims).unwrap(), latents);
    }

    #[test]
    fn what_stands_beside_is_behind_each_token() {
        assert_eq!(joined(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0], 2).unwrap(), [1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
    }
}
