//! What predicted pictures are held within.

use crate::{Error, Result, reserve};

/// How predicted latents are cut before they are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Clip {
    /// Not at all.
    None,
    /// To so much on both sides of 0.
    Range(f32),
    /// Dynamic thresholding (Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
    /// Understanding", 2022, section 2.3): to the quantile `ratio` of each picture's absolute values, which is held between
    /// 1 and `most`, and then divided by it.
    Dynamic {
        /// Which quantile.
        ratio: f32,
        /// The largest value that it may have.
        most: f32,
    },
}

impl Clip {
    /// Cuts `clean`, the predicted latents of so many `pictures`.
    pub(super) fn cut(self, solver: &'static str, clean: &mut [f32], pictures: usize) -> Result<()> {
        match self {
            Clip::None => {}
            Clip::Range(range) => clean.iter_mut().for_each(|x| *x = x.clamp(-range, range)),
            Clip::Dynamic { ratio, most } => {
                if pictures == 0 || !clean.len().is_multiple_of(pictures) {
                    return Err(Error::graph(solver, format!("{} latents for {pictures} pictures", clean.len())));
                }
                for picture in clean.chunks_exact_mut((clean.len() / pictures).max(1)) {
                    threshold(picture, ratio, most)?;
                }
            }
        }
        Ok(())
    }
}

fn threshold(picture: &mut [f32], ratio: f32, most: f32) -> Result<()> {
    let mut sorted = reserve::collect("absolute values", picture.len(), picture.iter().map(|x| x.abs()))?;
    sorted.sort_by(f32::total_cmp);
    let limit = quantile(&sorted, ratio).max(1.0).min(most);
    picture.iter_mut().for_each(|x| *x = x.clamp(-limit, limit) / limit);
    Ok(())
}

/// `torch.quantile` of sorted numbers: a straight line between the two next to the rank.
fn quantile(sorted: &[f32], ratio: f32) -> f32 {
    let last = sorted.len().saturating_sub(1);
    let rank = ratio * last as f32;
    let below = (rank as usize).min(last);
    let (low, high, weight) = (sorted[below], sorted[(below + 1).min(last)], rank - below as f32);
    if weight < 0.5 { low + weight * (high - low) } else { high - (high - low) * (1.0 - weight) }
}
