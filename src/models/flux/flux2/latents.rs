//! Latents as tokens, and back: each latent, which is a patch already, is a token.

use crate::Result;
use crate::models::transposed::transposed;

/// Latents `[tokens, channels]` as tokens `[channels, tokens]`.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn pack_latents(latents: &[f32], tokens: usize) -> Result<Vec<f32>> {
    transposed(latents, tokens)
}

/// The inverse of [`pack_latents`].
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn unpack_latents(packed: &[f32], tokens: usize) -> Result<Vec<f32>> {
    transposed(packed, packed.len() / tokens.max(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_undone() {
        let latents: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let tokens = pack_latents(&latents, 4).unwrap();
        assert_eq!(tokens[..4], [0.0, 4.0, 8.0, 1.0]);
        assert_eq!(unpack_latents(&tokens, 4).unwrap(), latents);
    }
}
