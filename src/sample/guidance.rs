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
    }
}
