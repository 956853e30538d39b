//! What a request says of sampling.

use super::{Sampler, Schedule};
use crate::{Error, Result};

/// The ten timesteps that Sabour et al., "Align Your Steps", 2024, found for Stable Diffusion 1.5.
pub const AYS: [u16; 10] = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24];

/// The ten timesteps that they found for Stable Diffusion XL.
pub const AYS_XL: [u16; 10] = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13];

/// The most sigmas that a request may name.
const MOST_SIGMAS: usize = 1000;

/// The largest shift that a request may name: beyond, all steps but the last are at noise alone.
const MOST_SHIFT: f32 = 1000.0;

/// What a request says of sampling; `None` is as the model was published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// How steps are taken.
    pub sampler: Option<Sampler>,
    /// Which levels of noise are visited.
    pub schedule: Option<Schedule>,
    /// The levels of noise themselves, the largest first. A last one of 0 may be left out.
    pub sigmas: Option<Vec<f32>>,
    /// The share of fresh noise in each step, for samplers that have one.
    pub eta: Option<f32>,
    /// How a flow is bent towards noise, whatever the size of the picture: `k sigma / (1 + (k - 1) sigma)`, and no end but 0.
    pub shift: Option<f32>,
}

/// What holds for a request: [`Sampling`] with the model's own choices filled in, which
/// [`Scheduler::choose`](super::Scheduler::choose) does.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// How steps are taken.
    pub sampler: Sampler,
    /// Which levels of noise are visited; without effect if there are `sigmas`.
    pub schedule: Schedule,
    /// The levels of noise themselves, without the 0 that they end in.
    pub sigmas: Option<Vec<f32>>,
    /// The share of fresh noise in each step, for samplers that have one. `None` is 0, as in diffusers' pipelines.
    pub eta: Option<f32>,
    /// A shift in the place of the model's own.
    pub shift: Option<f32>,
    /// The timesteps of [`Schedule::Ays`], which differ from model to model.
    pub ays: [u16; 10],
}

impl From<Sampler> for Chosen {
    /// The sampler over timesteps as the model's configuration spaces them.
    fn from(sampler: Sampler) -> Chosen {
        Chosen { sampler, schedule: Schedule::Normal, sigmas: None, eta: None, shift: None, ays: AYS }
    }
}

impl Sampling {
    /// Refuses numbers that cannot be, whatever the model is.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(eta) = self.eta.filter(|eta| !(0.0..=1.0).contains(eta)) {
            return Err(Error::option("--eta", "0 to 1", eta.to_string()));
        }
        if let Some(shift) = self.shift.filter(|shift| !(shift.is_finite() && *shift > 0.0 && *shift <= MOST_SHIFT)) {
            return Err(Error::option(
                "--shift",
                format!("a number above 0, and at most {MOST_SHIFT}"),
                shift.to_string(),
            ));
        }
        self.sigmas.as_deref().map_or(Ok(()), check_sigmas)
    }

    /// The sigmas without the 0 that they may end in.
    pub(super) fn sigmas(&self) -> Option<Vec<f32>> {
        let sigmas = self.sigmas.as_deref()?;
        Some(sigmas.strip_suffix(&[0.0]).unwrap_or(sigmas).to_vec())
    }
}

/// Refuses sigmas that are no numbers above 0, or do not fall.
fn check_sigmas(sigmas: &[f32]) -> Result<()> {
    let refuse = |expected: String, found: String| Err(Error::option("--sigmas", expected, found));
    let sigmas = sigmas.strip_suffix(&[0.0]).unwrap_or(sigmas);
    if !(1..=MOST_SIGMAS).contains(&sigmas.len()) {
        return refuse(format!("1 to {MOST_SIGMAS} numbers above 0"), sigmas.len().to_string());
    }
    if let Some(sigma) = sigmas.iter().find(|sigma| !(sigma.is_finite() && **sigma > 0.0)) {
        return refuse("numbers above 0, and at most a 0 at the end".into(), sigma.to_string());
    }
    match sigmas.windows(2).find(|pair| pair[1] >= pair[0]) {
        Some(pair) => refuse("numbers that fall".into(), format!("{} after {}", pair[1], pair[0])),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sigmas(sigmas: &[f32]) -> Sampling {
        Sampling { sigmas: Some(sigmas.to_vec()), ..Sampling::default() }
    }

    #[test]
    fn a_last_zero_may_be_left_out() {
        for list in [&[14.0, 1.0][..], &[14.0, 1.0, 0.0]] {
            sigmas(list).check().unwrap();
            assert_eq!(sigmas(list).sigmas().unwrap(), [14.0, 1.0]);
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        for (list, found) in [
            (&[][..], "found 0"),
            (&[0.0], "found 0"),
            (&[1.0, 2.0], "expected numbers that fall, found 2 after 1"),
            (&[1.0, 1.0], "expected numbers that fall, found 1 after 1"),
            (&[1.0, 0.0, 0.0], "found 0"),
            (&[1.0, -0.5], "found -0.5"),
            (&[f32::NAN, 0.5], "found NaN"),
            (&[f32::INFINITY, 0.5], "found inf"),
        ] {
            let error = sigmas(list).check().unwrap_err().to_string();
            assert!(error.starts_with("--sigmas: ") && error.ends_with(found), "{list:?}: {error}");
        }
        for eta in [-0.1, 1.1, f32::NAN] {
            let error = Sampling { eta: Some(eta), ..Sampling::default() }.check().unwrap_err().to_string();
            assert_eq!(error, format!("--eta: expected 0 to 1, found {eta}"));
        }
        for shift in [0.0, -1.0, 1000.5, f32::NAN] {
            let error = Sampling { shift: Some(shift), ..Sampling::default() }.check().unwrap_err().to_string();
            assert_eq!(error, format!("--shift: expected a number above 0, and at most 1000, found {shift}"));
        }
    }
}
