//! Classifier-free guidance ("true CFG"): two forwards, one velocity.

use crate::{Error, Result};

/// `conditional = unconditional + scale * (conditional - unconditional)`, element by element in f32, in diffusers'
/// order (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022). A scale of 1 leaves the conditional velocity,
/// up to rounding.
///
/// # Errors
///
/// [`Error::Graph`] where the two differ in length.
pub fn classifier_free_guidance(conditional: &mut [f32], unconditional: &[f32], scale: f32) -> Result<()> {
    if conditional.len() != unconditional.len() {
        let message = format!("{} conditional and {} unconditional", conditional.len(), unconditional.len());
        return Err(Error::graph("classifier-free guidance", message));
    }
    for (cond, uncond) in conditional.iter_mut().zip(unconditional) {
        *cond = uncond + scale * (*cond - uncond);
    }
    Ok(())
}

/// Classifier-free guidance with a picture that is changed, as diffusers' `StableDiffusionInstructPix2PixPipeline` has it: `conditional`
/// becomes the guided prediction, out of itself, a prediction `with_picture` and no prompt, and one `without` either. `scales` are
/// the prompt's and the picture's. See Brooks et al., 2023, equation 3.
///
/// # Errors
/// [`Error::Graph`] where lengths differ.
pub fn guidance_with_picture(
    conditional: &mut [f32],
    with_picture: &[f32],
    without: &[f32],
    [scale, picture_scale]: [f32; 2],
) -> Result<()> {
    if conditional.len() != with_picture.len() || conditional.len() != without.len() {
        return Err(Error::graph("guidance", "predictions of different lengths"));
    }
    for ((all, picture), none) in conditional.iter_mut().zip(with_picture).zip(without) {
        *all = none + scale * (*all - picture) + picture_scale * (picture - none);
    }
    Ok(())
}

/// Gives each picture of `guided`, a prediction after guidance, back so much of the spread that its `conditional` one had: 1
/// is all of it. diffusers' `rescale_noise_cfg` (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are
/// Flawed", 2023, section 3.4). `each` is how many numbers a picture has.
///
/// # Errors
///
/// [`Error::Graph`] where the two differ in length, or no pictures come out.
pub fn rescaled(guided: &mut [f32], conditional: &[f32], each: usize, share: f32) -> Result<()> {
    if guided.len() != conditional.len() || each == 0 || !guided.len().is_multiple_of(each) {
        let message = format!("{} guided and {} conditional, {each} a picture", guided.len(), conditional.len());
        return Err(Error::graph("rescaled guidance", message));
    }
    for (guided, conditional) in guided.chunks_exact_mut(each).zip(conditional.chunks_exact(each)) {
        let ratio = deviation(conditional) / deviation(guided);
        for x in guided {
            *x = share * (*x * ratio) + (1.0 - share) * *x;
        }
    }
    Ok(())
}

/// Gives every `width` neighbouring numbers of `guided`, a prediction after guidance, the length that they had in its `conditional` one,
/// as some pipelines of diffusers have it for each token.
///
/// # Errors
///
/// [`Error::Graph`] where the two differ in length, or no whole tokens come out.
pub fn with_lengths_of(guided: &mut [f32], conditional: &[f32], width: usize) -> Result<()> {
    if guided.len() != conditional.len() || width == 0 || !guided.len().is_multiple_of(width) {
        let message = format!("{} guided and {} conditional, {width} a token", guided.len(), conditional.len());
        return Err(Error::graph("guidance", message));
    }
    for (guided, conditional) in guided.chunks_exact_mut(width).zip(conditional.chunks_exact(width)) {
        let ratio = length(conditional) / length(guided);
        guided.iter_mut().for_each(|x| *x *= ratio);
    }
    Ok(())
}

/// The Euclidean length.
fn length(numbers: &[f32]) -> f32 {
    numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() as f32
}

/// The standard deviation, with Bessel's correction.
fn deviation(numbers: &[f32]) -> f32 {
    let count = numbers.len() as f64;
    let mean = numbers.iter().copied().map(f64::from).sum::<f64>() / count;
    let squares: f64 = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    (squares / (count - 1.0)).sqrt() as f32
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::reference::{GUIDED, OTHER, VELOCITY};
    use super::*;

    #[test]
    fn combination_equals_torch_to_the_bit() {
        let mut velocity = VELOCITY.to_vec();
        classifier_free_guidance(&mut velocity, OTHER, 3.7).unwrap();
        assert_eq!(velocity, GUIDED);
    }

    #[test]
    fn lengths_that_differ_are_refused() {
        assert!(classifier_free_guidance(&mut [0.0; 2], &[0.0; 3], 2.0).is_err());
        assert!(rescaled(&mut [0.0; 2], &[0.0; 3], 1, 0.5).is_err());
        assert!(rescaled(&mut [0.0; 3], &[0.0; 3], 2, 0.5).is_err());
    }

    #[test]
    fn tokens_keep_their_lengths() {
        let (mut guided, conditional) = ([6.0, 8.0, 0.0, -2.0], [3.0, -4.0, 1.0, 0.0]);
        with_lengths_of(&mut guided, &conditional, 2).unwrap();
        assert_eq!(guided, [3.0, 4.0, 0.0, -1.0]);
        assert!(with_lengths_of(&mut guided, &conditional, 3).is_err());
        assert!(with_lengths_of(&mut guided, &conditional[..2], 2).is_err());
    }

    #[test]
    fn the_spread_comes_back() {
        let (mut guided, conditional) = ([1.0, 5.0, 9.0, -4.0, 0.0, 4.0], [1.0, 2.0, 3.0, 0.0, 2.0, 4.0]);
        rescaled(&mut guided, &conditional, 3, 1.0).unwrap();
        assert_eq!(guided, [0.25, 1.25, 2.25, -2.0, 0.0, 2.0]);
        rescaled(&mut guided, &conditional, 3, 0.0).unwrap();
        assert_eq!(guided, [0.25, 1.25, 2.25, -2.0, 0.0, 2.0]);
    }
}
