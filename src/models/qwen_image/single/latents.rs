//! Latents as tokens, and back: each latent is one.

use crate::Result;
use crate::models::transposed::transposed;

/// Latents `[places, channels]` as tokens `[channels, places]`.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn pack_latents(latents: &[f32], channels: usize) -> Result<Vec<f32>> {
    transposed(latents, latents.len() / channels.max(1))
}

/// The inverse of [`pack_latents`].
///
/// # Errors
/// As [`pack_latents`].
pub fn unpack_latents(tokens: &[f32], channels: usize) -> Result<Vec<f32>> {
    transposed(tokens, channels)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_all_channels_of_a_latent() {
        let latents: Vec<f32> = (0..6 * 4).map(|i| i as f32).collect();
        let tokens = pack_latents(&latents, 4).unwrap();
        assert_eq!(tokens[..5], [0.0, 6.0, 12.0, 18.0, 1.0]);
        assert_eq!(unpack_latents(&tokens, 4).unwrap(), latents);
    }
}
