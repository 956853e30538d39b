//! The samplers by name.

use std::fmt;
use std::str::FromStr;

use super::Prediction;
use crate::{Error, Result};

/// The samplers that `--sampler` can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sampler {
    /// Euler's method, the one that most models are published with.
    #[default]
    Euler,
    /// Euler's method, with fresh noise after each step.
    EulerAncestral,
    /// Denoising diffusion implicit models (Song, Meng and Ermon, 2020).
    Ddim,
    /// Pseudo linear multistep (Liu et al., 2022), the one that Stable Diffusion 1 is published with.
    Pndm,
    /// DPM-Solver++ of second order, multistep (Lu et al., 2022).
    Dpm2m,
    /// [`Sampler::Dpm2m`] over the sigmas of Karras et al., 2022.
    Dpm2mKarras,
}

/// A sampler, its name, its name in AUTOMATIC1111's web UI, and other spellings without case, spaces, `-` and `_`.
type Row = (Sampler, &'static str, &'static str, &'static [&'static str]);

const ROWS: &[Row] = &[
    (Sampler::Euler, "euler", "Euler", &["keuler", "eulerdiscrete"]),
    (Sampler::EulerAncestral, "euler_a", "Euler a", &["keulera", "eulerancestral", "keulerancestral"]),
    (Sampler::Ddim, "ddim", "DDIM", &[]),
    (Sampler::Pndm, "pndm", "PLMS", &[]),
    (Sampler::Dpm2m, "dpm++_2m", "DPM++ 2M", &["dpmpp2m", "kdpmpp2m", "kdpm++2m"]),
    (
        Sampler::Dpm2mKarras,
        "dpm++_2m_karras",
        "DPM++ 2M Karras",
        &["dpmpp2mkarras", "kdpmpp2mkarras", "kdpm++2mkarras", "dpm++2mk", "dpmpp2mk"],
    ),
];

impl Sampler {
    /// Every sampler.
    pub const ALL: &[Sampler] =
        &[Sampler::Euler, Sampler::EulerAncestral, Sampler::Ddim, Sampler::Pndm, Sampler::Dpm2m, Sampler::Dpm2mKarras];

    /// The samplers of flow-matching models, the default first.
    pub const FLOW: &[Sampler] = &[Sampler::Euler];

    /// The samplers of models that were trained on discrete timesteps.
    pub const DISCRETE: &[Sampler] = Sampler::ALL;

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

    /// Model evaluations for each step, by which img2img counts the evaluations that it skips.
    pub(super) fn order(self) -> usize {
        1
    }

    /// Whether there is a rule for what the model predicts.
    pub(super) fn takes(self, prediction: Prediction) -> bool {
        prediction != Prediction::Sample || !matches!(self, Sampler::Pndm | Sampler::EulerAncestral)
    }

    /// The names of `samplers`, for messages.
    pub(super) fn list(samplers: &[Sampler]) -> String {
        let names: Vec<&str> = samplers.iter().map(|sampler| sampler.name()).collect();
        format!("one of: {}", names.join(", "))
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Sampler {
    type Err = Error;

    /// Reads [`Sampler::name`], [`Sampler::label`] and spellings of other tools. Case, spaces, `-` and `_` do not count.
    fn from_str(name: &str) -> Result<Sampler> {
        let plain = plain(name);
        for (sampler, own, label, others) in ROWS {
            if plain == self::plain(own) || plain == self::plain(label) || others.contains(&plain.as_str()) {
                return Ok(*sampler);
            }
        }
        Err(Error::option("--sampler", Sampler::list(Sampler::ALL), format!("`{name}`")))
    }
}

fn plain(name: &str) -> String {
    name.to_lowercase().replace([' ', '-', '_'], "")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        assert_eq!(ROWS.len(), Sampler::ALL.len());
        for (row, &sampler) in ROWS.iter().zip(Sampler::ALL) {
            assert_eq!(row.0, sampler);
            assert_eq!(sampler.to_string().parse::<Sampler>().unwrap(), sampler);
            assert_eq!(sampler.label().parse::<Sampler>().unwrap(), sampler);
        }
        assert_eq!("Euler".parse::<Sampler>().unwrap(), Sampler::default());
    }

    #[test]
    fn usual_spellings_are_read() {
        for (name, sampler) in [
            ("k_euler_a", Sampler::EulerAncestral),
            ("Euler Ancestral", Sampler::EulerAncestral),
            ("plms", Sampler::Pndm),
            ("DPM++2M", Sampler::Dpm2m),
            ("dpmpp_2m", Sampler::Dpm2m),
            ("dpmpp-2m-karras", Sampler::Dpm2mKarras),
        ] {
            assert_eq!(name.parse::<Sampler>().unwrap(), sampler, "{name}");
        }
    }

    #[test]
    fn spellings_are_of_one_sampler_each() {
        let mut all: Vec<String> = Vec::new();
        for (_, name, label, others) in ROWS {
            let mut own = vec![plain(name), plain(label)];
            own.dedup();
            all.extend(own);
            all.extend(others.iter().map(|&other| other.to_owned()));
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "{all:?}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "dpm++".parse::<Sampler>().unwrap_err();
        let known = "euler, euler_a, ddim, pndm, dpm++_2m, dpm++_2m_karras";
        assert_eq!(error.to_string(), format!("--sampler: expected one of: {known}, found `dpm++`"));
    }
}
