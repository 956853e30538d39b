//! The samplers by name, and what each can do.

use std::fmt;
use std::str::FromStr;

use super::names::plain;
use super::{Prediction, Schedule};
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
    /// The same along the stochastic equation, with fresh noise in each step.
    Dpm2mSde,
    /// DPM-Solver++ of second order, singlestep: two evaluations make a step of twice the length.
    Dpm2s,
    /// DPM-Solver++ of second order along the stochastic equation, with the noise of a Brownian tree.
    DpmSde,
    /// Denoising diffusion probabilistic models (Ho, Jain and Abbeel, 2020).
    Ddpm,
    /// Linear multistep: the integral of the polynomial through up to four derivatives.
    Lms,
    /// Heun's method: Euler's, and the mean of the derivatives at both ends.
    Heun,
    /// DPM-Solver of second order as Karras et al., 2022, write it: the derivative in the middle of a step.
    Kdpm2,
    /// The same, with fresh noise after each step.
    Kdpm2Ancestral,
    /// Diffusion exponential integrator sampler (Zhang and Chen, 2022), in the logarithm of rho.
    Deis,
    /// Unified predictor-corrector (Zhao et al., 2023), the one that Wan is published with.
    UniPc,
    /// Latent consistency models (Luo et al., 2023), for models that were distilled for it.
    Lcm,
    /// Trajectory consistency distillation (Zheng et al., 2024), for models that were distilled for it.
    Tcd,
    /// Euler's method over the preconditioning of Karras et al., 2022, for models that were trained with it.
    EdmEuler,
}

use Schedule::{Ays, Beta, Exponential, Karras, Lu, Normal, SgmUniform};

/// What is known of a sampler.
struct Row {
    sampler: Sampler,
    /// Its name on the command line.
    name: &'static str,
    /// Its name in AUTOMATIC1111's web UI, as far as that has it.
    label: &'static str,
    /// Other spellings, in the form of [`plain`].
    others: &'static [&'static str],
    /// diffusers' class over discrete timesteps, and the schedules that it can follow.
    discrete: (&'static str, &'static [Schedule]),
    /// diffusers' class along a flow, and the schedules that it can follow.
    flow: (&'static str, &'static [Schedule]),
    /// Model evaluations for each step, by which img2img counts the evaluations that it skips.
    order: usize,
    /// Whether it draws fresh noise.
    draws: bool,
    /// Whether there is a rule for a model that predicts pictures.
    takes_pictures: bool,
    /// The largest eta, for samplers that have one.
    eta: Option<f32>,
}

/// Of samplers that can be told sigmas.
const TOLD: &[Schedule] = &[Normal, Karras, Exponential, Beta, SgmUniform];
const TOLD_AND_AYS: &[Schedule] = &[Normal, Karras, Exponential, Beta, SgmUniform, Ays];
const NONE: (&str, &[Schedule]) = ("", &[]);

/// What most samplers are.
const PLAIN: Row = Row {
    sampler: Sampler::Euler,
    name: "euler",
    label: "Euler",
    others: &[],
    discrete: ("EulerDiscreteScheduler", TOLD_AND_AYS),
    flow: ("FlowMatchEulerDiscreteScheduler", &[Normal, Karras, Exponential, Beta]),
    order: 1,
    draws: false,
    takes_pictures: true,
    eta: None,
};

const ROWS: &[Row] = &[
    PLAIN,
    Row {
        sampler: Sampler::EulerAncestral,
        name: "euler_a",
        label: "Euler a",
        discrete: ("EulerAncestralDiscreteScheduler", &[Normal, SgmUniform]),
        flow: ("LTXEulerAncestralRFScheduler", &[Normal]),
        draws: true,
        takes_pictures: false,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Ddim,
        name: "ddim",
        label: "DDIM",
        discrete: ("DDIMScheduler", &[Normal, SgmUniform]),
        flow: NONE,
        eta: Some(1.0),
        ..PLAIN
    },
    Row {
        sampler: Sampler::Pndm,
        name: "pndm",
        label: "PLMS",
        discrete: ("PNDMScheduler", &[Normal, SgmUniform]),
        flow: NONE,
        takes_pictures: false,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Dpm2m,
        name: "dpm++_2m",
        label: "DPM++ 2M",
        discrete: ("DPMSolverMultistepScheduler", &[Normal, Karras, Exponential, Beta, SgmUniform, Ays, Lu]),
        flow: ("DPMSolverMultistepScheduler", &[Normal]),
        ..PLAIN
    },
    Row {
        sampler: Sampler::Dpm2mSde,
        name: "dpm++_2m_sde",
        label: "DPM++ 2M SDE",
        discrete: ("DPMSolverMultistepScheduler", &[Normal, Karras, Exponential, Beta, SgmUniform, Ays, Lu]),
        flow: ("DPMSolverMultistepScheduler", &[Normal]),
        draws: true,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Dpm2s,
        name: "dpm++_2s",
        label: "DPM++ 2S",
        discrete: ("DPMSolverSinglestepScheduler", &[Normal, Karras, Exponential, Beta, Ays]),
        flow: ("DPMSolverSinglestepScheduler", &[Normal]),
        ..PLAIN
    },
    Row {
        sampler: Sampler::DpmSde,
        name: "dpm++_sde",
        label: "DPM++ SDE",
        discrete: ("DPMSolverSDEScheduler", TOLD),
        flow: NONE,
        order: 2,
        draws: true,
        takes_pictures: false,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Ddpm,
        name: "ddpm",
        label: "DDPM",
        discrete: ("DDPMScheduler", &[Normal, SgmUniform, Ays]),
        flow: NONE,
        draws: true,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Lms,
        name: "lms",
        label: "LMS",
        discrete: ("LMSDiscreteScheduler", TOLD),
        flow: NONE,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Heun,
        name: "heun",
        label: "Heun",
        discrete: ("HeunDiscreteScheduler", TOLD_AND_AYS),
        flow: ("FlowMatchHeunDiscreteScheduler", &[Normal]),
        order: 2,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Kdpm2,
        name: "kdpm2",
        label: "DPM2",
        discrete: ("KDPM2DiscreteScheduler", TOLD),
        flow: NONE,
        order: 2,
        takes_pictures: false,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Kdpm2Ancestral,
        name: "kdpm2_a",
        label: "DPM2 a",
        discrete: ("KDPM2AncestralDiscreteScheduler", TOLD),
        flow: NONE,
        order: 2,
        draws: true,
        takes_pictures: false,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Deis,
        name: "deis",
        label: "DEIS",
        discrete: ("DEISMultistepScheduler", TOLD),
        flow: ("DEISMultistepScheduler", &[Normal]),
        ..PLAIN
    },
    Row {
        sampler: Sampler::UniPc,
        name: "unipc",
        label: "UniPC",
        discrete: ("UniPCMultistepScheduler", TOLD),
        flow: ("UniPCMultistepScheduler", &[Normal, Karras]),
        ..PLAIN
    },
    Row {
        sampler: Sampler::Lcm,
        name: "lcm",
        label: "LCM",
        discrete: ("LCMScheduler", &[Normal]),
        flow: ("FlowMatchLCMScheduler", &[Normal, Karras, Exponential, Beta]),
        draws: true,
        ..PLAIN
    },
    Row {
        sampler: Sampler::Tcd,
        name: "tcd",
        label: "TCD",
        discrete: ("TCDScheduler", &[Normal]),
        flow: NONE,
        draws: true,
        eta: Some(1.0),
        ..PLAIN
    },
    Row {
        sampler: Sampler::EdmEuler,
        name: "edm_euler",
        label: "EDM Euler",
        discrete: ("EDMEulerScheduler", &[Karras, Exponential]),
        flow: NONE,
        takes_pictures: false,
        ..PLAIN
    },
];

/// Classes along a flow alone, and their samplers.
pub(super) const FLOW_CLASSES: [(&str, Sampler); 4] = [
    ("FlowMatchEulerDiscreteScheduler", Sampler::Euler),
    ("FlowMatchHeunDiscreteScheduler", Sampler::Heun),
    ("FlowMatchLCMScheduler", Sampler::Lcm),
    ("LTXEulerAncestralRFScheduler", Sampler::EulerAncestral),
];

/// Classes along a flow if `use_flow_sigmas` is on, and their samplers.
pub(super) const FLOW_SIGMAS: [(&str, Sampler); 4] = [
    ("UniPCMultistepScheduler", Sampler::UniPc),
    ("DPMSolverMultistepScheduler", Sampler::Dpm2m),
    ("DPMSolverSinglestepScheduler", Sampler::Dpm2s),
    ("DEISMultistepScheduler", Sampler::Deis),
];

impl Sampler {
    /// Every sampler.
    pub const ALL: &[Sampler] = &[
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Ddim,
        Sampler::Pndm,
        Sampler::Dpm2m,
        Sampler::Dpm2mSde,
        Sampler::Dpm2s,
        Sampler::DpmSde,
        Sampler::Ddpm,
        Sampler::Lms,
        Sampler::Heun,
        Sampler::Kdpm2,
        Sampler::Kdpm2Ancestral,
        Sampler::Deis,
        Sampler::UniPc,
        Sampler::Lcm,
        Sampler::Tcd,
        Sampler::EdmEuler,
    ];

    /// The samplers of flow-matching models, the default first.
    pub const FLOW: &[Sampler] = &[
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Dpm2m,
        Sampler::Dpm2mSde,
        Sampler::Dpm2s,
        Sampler::Heun,
        Sampler::Deis,
        Sampler::UniPc,
        Sampler::Lcm,
    ];

    /// The samplers of models that were trained on discrete timesteps.
    pub const DISCRETE: &[Sampler] = Sampler::ALL.split_at(Sampler::ALL.len() - 1).0;

    /// The samplers of models that were trained with the preconditioning of Karras et al.
    pub const EDM: &[Sampler] = &[Sampler::EdmEuler];

    fn row(self) -> &'static Row {
        // The order of rows is that of variants, which a test holds.
        &ROWS[self as usize]
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The name in AUTOMATIC1111's web UI, for the metadata of pictures.
    pub fn label(self) -> &'static str {
        self.row().label
    }

    /// diffusers' class for models that were trained on discrete timesteps, and for a flow; empty without one.
    pub fn classes(self) -> [&'static str; 2] {
        [self.row().discrete.0, self.row().flow.0]
    }

    /// The schedules that it can follow, over discrete timesteps or along a flow.
    pub fn schedules(self, is_flow: bool) -> &'static [Schedule] {
        if is_flow { self.row().flow.1 } else { self.row().discrete.1 }
    }

    /// Model evaluations for each step, except the last one, which has one. PNDM has one more for all steps together.
    pub fn order(self) -> usize {
        self.row().order
    }

    /// Whether it draws fresh noise, whatever it is told.
    pub fn draws(self) -> bool {
        self.row().draws
    }

    /// How many arrays of the latents' size its solver holds at most, beside those of all solvers.
    pub fn held(self) -> usize {
        match self {
            // One for each time that the interval of its Brownian motion is halved.
            Sampler::DpmSde => 36,
            // The predictions of its largest order.
            Sampler::UniPc => 8,
            _ => 0,
        }
    }

    /// The largest eta, for samplers that have one.
    pub fn most_eta(self) -> Option<f32> {
        self.row().eta
    }

    /// Whether it can be told sigmas: if it can follow Karras's, or takes them along a flow.
    pub fn takes_sigmas(self, is_flow: bool) -> bool {
        if is_flow {
            matches!(self, Sampler::Euler | Sampler::EulerAncestral | Sampler::Lcm | Sampler::UniPc)
        } else {
            self != Sampler::EdmEuler && self.schedules(false).contains(&Karras)
        }
    }

    /// Whether there is a rule for what the model predicts.
    pub fn takes(self, prediction: Prediction) -> bool {
        prediction != Prediction::Sample || self.row().takes_pictures
    }

    /// The names of `samplers`, for messages.
    pub(super) fn list(samplers: &[Sampler]) -> String {
        let names: Vec<&str> = samplers.iter().map(|sampler| sampler.name()).collect();
        format!("one of: {}", names.join(", "))
    }

    /// Reads the name of a sampler, and of the schedule behind it if there is one, as in `DPM++ 2M Karras`.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] for an unknown name.
    pub fn with_schedule(name: &str) -> Result<(Sampler, Option<Schedule>)> {
        let wanted = plain(name);
        if let Some(sampler) = named(&wanted) {
            return Ok((sampler, None));
        }
        for (rest, schedule) in Schedule::at_the_end_of(&wanted) {
            if let Some(sampler) = named(rest) {
                return Ok((sampler, Some(schedule)));
            }
        }
        Err(Error::option("--sampler", Sampler::list(Sampler::ALL), format!("`{name}`")))
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Sampler {
    type Err = Error;

    /// Reads [`Sampler::name`], [`Sampler::label`], diffusers' classes and spellings of other tools. Case and punctuation do
    /// not count.
    fn from_str(name: &str) -> Result<Sampler> {
        named(&plain(name)).ok_or_else(|| Error::option("--sampler", Sampler::list(Sampler::ALL), format!("`{name}`")))
    }
}

/// The sampler of a name in the form of [`plain`].
fn named(wanted: &str) -> Option<Sampler> {
    ROWS.iter().find(|row| spellings(row).iter().any(|spelling| spelling == wanted)).map(|row| row.sampler)
}

fn spellings(row: &Row) -> Vec<String> {
    let mut all = vec![plain(row.name), plain(row.label)];
    all.extend(row.others.iter().map(|&other| other.to_owned()));
    // The stochastic variant has the class of the other one.
    if row.sampler != Sampler::Dpm2mSde {
        for class in [row.discrete.0, row.flow.0].into_iter().filter(|class| !class.is_empty()) {
            let class = plain(class);
            all.extend([class.trim_end_matches("scheduler").to_owned(), class]);
        }
    }
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        assert_eq!(ROWS.len(), Sampler::ALL.len());
        for (row, &sampler) in ROWS.iter().zip(Sampler::ALL) {
            assert_eq!(row.sampler, sampler);
            assert_eq!(sampler.to_string().parse::<Sampler>().unwrap(), sampler);
            assert_eq!(sampler.label().parse::<Sampler>().unwrap(), sampler);
            for schedule in Schedule::ALL {
                for name in [format!("{sampler} {schedule}"), format!("{} {}", sampler.label(), schedule.label())] {
                    assert_eq!(Sampler::with_schedule(&name).unwrap(), (sampler, Some(*schedule)), "{name}");
                }
            }
        }
        assert_eq!("Euler".parse::<Sampler>().unwrap(), Sampler::default());
    }

    #[test]
    fn lists_are_those_of_the_table() {
        let flow: Vec<Sampler> = Sampler::ALL.iter().copied().filter(|s| !s.schedules(true).is_empty()).collect();
        assert_eq!(flow, Sampler::FLOW);
        assert!(!Sampler::DISCRETE.contains(&Sampler::EdmEuler) && Sampler::DISCRETE.len() + 1 == Sampler::ALL.len());
    }

    #[test]
    fn usual_spellings_are_read() {
        for (name, sampler) in [
            ("k_euler_a", Sampler::EulerAncestral),
            ("Euler Ancestral", Sampler::EulerAncestral),
            ("plms", Sampler::Pndm),
            ("DPM++2M", Sampler::Dpm2m),
            ("dpmpp_2m", Sampler::Dpm2m),
            ("k_dpmpp_2m_sde", Sampler::Dpm2mSde),
            ("DPM2 a", Sampler::Kdpm2Ancestral),
            ("k_dpm_2_ancestral", Sampler::Kdpm2Ancestral),
            ("UniPCMultistepScheduler", Sampler::UniPc),
            ("EulerAncestralDiscreteScheduler", Sampler::EulerAncestral),
            ("FlowMatchHeunDiscrete", Sampler::Heun),
            ("uni-pc", Sampler::UniPc),
        ] {
            assert_eq!(name.parse::<Sampler>().unwrap(), sampler, "{name}");
        }
        let karras = (Sampler::Dpm2m, Some(Schedule::Karras));
        for name in ["DPM++ 2M Karras", "dpmpp-2m-karras", "k_dpmpp_2m (Karras)", "dpm++_2m_karras"] {
            assert_eq!(Sampler::with_schedule(name).unwrap(), karras, "{name}");
        }
    }

    #[test]
    fn spellings_are_of_one_sampler_each() {
        let mut all: Vec<String> = ROWS.iter().flat_map(spellings).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "{all:?}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        for name in ["dpm++", "karras", "DPM++ 2S a", ""] {
            let error = Sampler::with_schedule(name).unwrap_err().to_string();
            let known = "euler, euler_a, ddim, pndm, dpm++_2m, dpm++_2m_sde, dpm++_2s, dpm++_sde, ddpm, lms, heun, kdpm2, \
                         kdpm2_a, deis, unipc, lcm, tcd, edm_euler";
            assert_eq!(error, format!("--sampler: expected one of: {known}, found `{name}`"));
        }
    }
}
