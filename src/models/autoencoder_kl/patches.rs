//! Latents of autoencoders that are normalised in patches of 2x2: each patch is one latent of four times as many channels.

use crate::{Result, reserve};

/// The side of a patch.
pub const PATCH: usize = 2;

/// The patches `[w, h, 4 C]` of latents `[2 w, 2 h, C]`. Of each channel, four stand for the places in a patch, row by row.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn patched(latents: &[f32], [w, h]: [usize; 2]) -> Result<Vec<f32>> {
    let mut patches = reserve::room("the latents", latents.len())?;
    for_each_patched(latents.len(), [w, h], |at| patches.push(latents[at]));
    Ok(patches)
}

/// The way back from [`patched`].
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn unpatched(patches: &[f32], [w, h]: [usize; 2]) -> Result<Vec<f32>> {
    let mut latents = reserve::zeros("the latents", patches.len())?;
    let mut all = patches.iter();
    for_each_patched(patches.len(), [w, h], |at| {
        if let Some(&value) = all.next() {
            latents[at] = value;
        }
    });
    Ok(latents)
}

/// Calls `visit` with the position in `[2 w, 2 h, C]` of every number, `count` of them, in the order of patches.
fn for_each_patched(count: usize, [w, h]: [usize; 2], mut visit: impl FnMut(usize)) {
    let plane = PATCH * w * PATCH * h;
    for channel in 0..count / plane.max(1) {
        for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for y in 0..h {
                for x in 0..w {
                    visit(channel * plane + (PATCH * y + dy) * PATCH * w + PATCH * x + dx);
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
    fn patching_is_undone() {
        let latents: Vec<f32> = (0..6 * 4 * 3).map(|i| i as f32).collect();
        let patches = patched(&latents, [3, 2]).unwrap();
        assert_eq!(patches[..7], [0.0, 2.0, 4.0, 12.0, 14.0, 16.0, 1.0]);
        assert_eq!(patches[4 * 6], 24.0); // the second channel
        assert_eq!(unpatched(&patches, [3, 2]).unwrap(), latents);
    }
}
