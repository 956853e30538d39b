//! The schedules by name.

use std::fmt;
use std::str::FromStr;

use super::names::plain;
use crate::{Error, Result};

/// Which levels of noise a request visits, of those that its model was trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Schedule {
    /// As the model's own configuration spaces its timesteps, and no sigmas but theirs.
    #[default]
    Normal,
    /// Close together where there is little noise (Karras et al., "Elucidating the Design Space of Diffusion-Based
    /// Generative Models", 2022, equation 5). diffusers' `use_karras_sigmas`.
    Karras,
    /// At equal distances of their logarithms. diffusers' `use_exponential_sigmas`.
    Exponential,
    /// Close together at both ends: the quantiles of a beta distribution (Lee et al., "Beta Sampling is All You Need",
    /// 2024). diffusers' `use_beta_sigmas`.
    Beta,
    /// At equal distances of their timesteps, from the last one down. diffusers' `timestep_spacing` of `trailing`.
    SgmUniform,
    /// The steps of Sabour et al., "Align Your Steps", 2024: ten, and between them along the logarithm of sigma.
    Ays,
    /// At equal distances of half the logarithm of the signal-to-noise ratio (Lu et al., "DPM-Solver", 2022). diffusers'
    /// `use_lu_lambdas`.
    Lu,
}

/// A schedule, its name, its name in AUTOMATIC1111's web UI, and other spellings without case and punctuation.
type Row = (Schedule, &'static str, &'static str, &'static [&'static str]);

const ROWS: &[Row] = &[
    (Schedule::Normal, "normal", "Normal", &["uniform"]),
    (Schedule::Karras, "karras", "Karras", &[]),
    (Schedule::Exponential, "exponential", "Exponential", &[]),
    (Schedule::Beta, "beta", "Beta", &[]),
    (Schedule::SgmUniform, "sgm_uniform", "SGM Uniform", &["sgm", "trailing"]),
    (Schedule::Ays, "ays", "Align Your Steps", &[]),
    (Schedule::Lu, "lu", "Lu", &["lulambdas"]),
];

impl Schedule {
    /// Every schedule.
    pub const ALL: &[Schedule] = &[
        Schedule::Normal,
        Schedule::Karras,
        Schedule::Exponential,
        Schedule::Beta,
        Schedule::SgmUniform,
        Schedule::Ays,
        Schedule::Lu,
    ];

    fn row(self) -> &'static Row {
        // The order of rows is that of variants, which a test holds.
        &ROWS[self as usize]
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The name in AUTOMATIC1111's web UI, for the metadata of pictures.
    pub fn label(self) -> &'static str {
        self.row().2
    }

    /// Whether its sigmas are other ones than those of timesteps.
    pub(super) fn moves_sigmas(self) -> bool {
        !matches!(self, Schedule::Normal | Schedule::SgmUniform | Schedule::Ays)
    }

    /// The names of `schedules`, for messages.
    pub(super) fn list(schedules: &[Schedule]) -> String {
        let names: Vec<&str> = schedules.iter().map(|schedule| schedule.name()).collect();
        format!("one of: {}", names.join(", "))
    }

    /// What a sampler's name, without case and punctuation, says in front of the name of a schedule, for every one that it may
    /// end with.
    pub(super) fn at_the_end_of(name: &str) -> Vec<(&str, Schedule)> {
        let mut found = Vec::new();
        for &(schedule, own, label, others) in ROWS {
            for ending in [plain(own), plain(label)].iter().map(String::as_str).chain(others.iter().copied()) {
                found.extend(name.strip_suffix(ending).map(|rest| (rest, schedule)));
            }
        }
        found
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    /// Reads [`Schedule::name`], [`Schedule::label`] and spellings of other tools. Case and punctuation do not count.
    fn from_str(name: &str) -> Result<Schedule> {
        let wanted = plain(name);
        for (schedule, own, label, others) in ROWS {
            if wanted == plain(own) || wanted == plain(label) || others.contains(&wanted.as_str()) {
                return Ok(*schedule);
            }
        }
        Err(Error::option("--schedule", Schedule::list(Schedule::ALL), format!("`{name}`")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        assert_eq!(ROWS.len(), Schedule::ALL.len());
        for (row, &schedule) in ROWS.iter().zip(Schedule::ALL) {
            assert_eq!(row.0, schedule);
            assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
            assert_eq!(schedule.label().parse::<Schedule>().unwrap(), schedule);
        }
        assert_eq!("S.G.M. uniform".parse::<Schedule>().unwrap(), Schedule::SgmUniform);
        let error = "kl optimal".parse::<Schedule>().unwrap_err().to_string();
        assert!(error.starts_with("--schedule: expected one of: normal, karras,"), "{error}");
    }
}
