//! `scheduler_config.json` of any model, and the samplers that go with it.

use std::path::Path;

use super::{DiscreteConfig, FlowMatchConfig, Levels, Sampler, python};
use crate::{Error, Result};

/// The class of flow-matching models.
const FLOW: &str = "FlowMatchEulerDiscreteScheduler";

/// Classes with discrete timesteps, and the sampler that does what they do. Without one, their settings are read and a
/// sampler must be named.
const DISCRETE: [(&str, Option<Sampler>); 14] = [
    ("DDIMScheduler", Some(Sampler::Ddim)),
    ("PNDMScheduler", Some(Sampler::Pndm)),
    ("EulerDiscreteScheduler", Some(Sampler::Euler)),
    ("EulerAncestralDiscreteScheduler", Some(Sampler::EulerAncestral)),
    ("DPMSolverMultistepScheduler", Some(Sampler::Dpm2m)),
    ("DDPMScheduler", None),
    ("DEISMultistepScheduler", None),
    ("DPMSolverSDEScheduler", None),
    ("DPMSolverSinglestepScheduler", None),
    ("HeunDiscreteScheduler", None),
    ("KDPM2AncestralDiscreteScheduler", None),
    ("KDPM2DiscreteScheduler", None),
    ("LMSDiscreteScheduler", None),
    ("UniPCMultistepScheduler", None),
];

/// How a model was trained to denoise.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheduler {
    /// Along straight lines from noise to picture.
    Flow(FlowMatchConfig),
    /// On discrete timesteps.
    Discrete(DiscreteConfig),
}

impl Scheduler {
    /// Reads the text of a `scheduler_config.json`, with `NaN` and the infinities as Python writes them. `origin`, the
    /// file that the text came from, is for messages. Keys that mean nothing here are passed over; a `null` stands for
    /// the default.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the text is no JSON object, names no class or a value has another type;
    /// [`Error::Mismatch`] if it names a class that is not known, switches on what is not supported, or holds a number
    /// that no schedule can come of.
    pub fn from_json(text: &str, origin: &Path) -> Result<Scheduler> {
        let settings = python::settings(text, origin)?;
        let class = settings.get("_class_name").and_then(|class| class.as_str());
        match class {
            Some(FLOW) => Ok(Scheduler::Flow(FlowMatchConfig::from_settings(settings, origin)?)),
            Some(class) if DISCRETE.iter().any(|(known, _)| *known == class) => {
                Ok(Scheduler::Discrete(DiscreteConfig::from_settings(settings, origin)?))
            }
            Some(class) => Err(Error::mismatch(origin, "_class_name", known_classes(), class)),
            None => Err(Error::malformed(origin, "_class_name", known_classes(), "no text")),
        }
    }

    /// The samplers that can be used.
    pub fn samplers(&self) -> &'static [Sampler] {
        match self {
            Scheduler::Flow(_) => Sampler::FLOW,
            Scheduler::Discrete(_) => Sampler::DISCRETE,
        }
    }

    /// The sampler that was `asked` for, or the one that the configuration names.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if the model cannot be sampled by it, or none was asked for and the configuration names one
    /// that is not built.
    pub fn sampler(&self, asked: Option<Sampler>) -> Result<Sampler> {
        let refuse = |found| Err(Error::option("--sampler", Sampler::list(self.samplers()), found));
        match (asked, self) {
            (Some(sampler), _) if self.samplers().contains(&sampler) => Ok(sampler),
            (Some(sampler), _) => refuse(format!("`{sampler}`")),
            (None, Scheduler::Flow(_)) => Ok(Sampler::Euler),
            (None, Scheduler::Discrete(config)) => match named(config) {
                Ok(sampler) => Ok(sampler),
                Err(what) => refuse(format!("none, and the model's own {what} is not built")),
            },
        }
    }

    /// The levels of a request. `image_tokens` is how many tokens the denoiser has for the picture, by which a flow may
    /// be shifted.
    ///
    /// # Errors
    ///
    /// As [`Scheduler::sampler`], [`FlowMatchConfig::sigmas`] and [`DiscreteConfig::levels`].
    pub fn levels(&self, sampler: Sampler, steps: usize, image_tokens: usize) -> Result<Levels> {
        let sampler = self.sampler(Some(sampler))?;
        match self {
            Scheduler::Flow(config) => config.levels(steps, image_tokens),
            Scheduler::Discrete(config) => config.levels(sampler, steps),
        }
    }
}

/// The sampler that a configuration names, or in words what it names instead.
fn named(config: &DiscreteConfig) -> Result<Sampler, String> {
    let class = config.class_name.as_str();
    let found = DISCRETE.iter().find(|(known, _)| *known == class).and_then(|(_, sampler)| *sampler);
    match found {
        Some(Sampler::Pndm) if !config.skip_prk_steps => Err(format!("{class} without skip_prk_steps")),
        Some(Sampler::Dpm2m) if !["dpmsolver++", "deis"].contains(&config.algorithm_type.as_str()) => {
            Err(format!("{class} with algorithm_type {}", config.algorithm_type))
        }
        Some(Sampler::Dpm2m) if config.solver_order != 2 => {
            Err(format!("{class} with solver_order {}", config.solver_order))
        }
        Some(Sampler::Dpm2m) if config.use_karras_sigmas => Ok(Sampler::Dpm2mKarras),
        Some(sampler) => Ok(sampler),
        None => Err(class.to_owned()),
    }
}

fn known_classes() -> String {
    let classes: Vec<&str> = DISCRETE.iter().map(|(class, _)| *class).collect();
    format!("one of: {FLOW}, {}", classes.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Scheduler> {
        Scheduler::from_json(text, Path::new("scheduler_config.json"))
    }

    fn class(class: &str, more: &str) -> Result<Scheduler> {
        read(&format!(r#"{{"_class_name": "{class}"{more}}}"#))
    }

    #[test]
    fn classes_name_their_samplers() {
        for (name, more, sampler) in [
            ("FlowMatchEulerDiscreteScheduler", "", Sampler::Euler),
            ("EulerDiscreteScheduler", r#", "use_karras_sigmas": true"#, Sampler::Euler),
            ("EulerAncestralDiscreteScheduler", "", Sampler::EulerAncestral),
            ("DDIMScheduler", "", Sampler::Ddim),
            ("PNDMScheduler", r#", "skip_prk_steps": true"#, Sampler::Pndm),
            ("DPMSolverMultistepScheduler", r#", "lambda_min_clipped": -Infinity"#, Sampler::Dpm2m),
            ("DPMSolverMultistepScheduler", r#", "use_karras_sigmas": true"#, Sampler::Dpm2mKarras),
            ("DPMSolverMultistepScheduler", r#", "algorithm_type": "deis""#, Sampler::Dpm2m),
        ] {
            assert_eq!(class(name, more).unwrap().sampler(None).unwrap(), sampler, "{name} {more}");
        }
    }

    #[test]
    fn what_is_not_built_is_named_and_other_samplers_work() {
        for (name, more, named) in [
            ("UniPCMultistepScheduler", "", "UniPCMultistepScheduler"),
            ("DDPMScheduler", "", "DDPMScheduler"),
            ("PNDMScheduler", "", "PNDMScheduler without skip_prk_steps"),
            (
                "DPMSolverMultistepScheduler",
                r#", "algorithm_type": "sde-dpmsolver++""#,
                "DPMSolverMultistepScheduler with algorithm_type sde-dpmsolver++",
            ),
            (
                "DPMSolverMultistepScheduler",
                r#", "solver_order": 3"#,
                "DPMSolverMultistepScheduler with solver_order 3",
            ),
        ] {
            let scheduler = class(name, more).unwrap();
            let error = scheduler.sampler(None).unwrap_err().to_string();
            let known = Sampler::list(Sampler::DISCRETE);
            let wanted = format!("--sampler: expected {known}, found none, and the model's own {named} is not built");
            assert_eq!(error, wanted);
            assert_eq!(scheduler.sampler(Some(Sampler::Ddim)).unwrap(), Sampler::Ddim);
        }
    }

    #[test]
    fn a_flow_has_samplers_of_its_own() {
        let flow = class("FlowMatchEulerDiscreteScheduler", "").unwrap();
        let error = flow.levels(Sampler::Pndm, 4, 64).unwrap_err();
        assert_eq!(error.to_string(), "--sampler: expected one of: euler, found `pndm`");
    }

    #[test]
    fn unknown_classes_and_texts_without_one_are_refused() {
        let error = class("EDMEulerScheduler", "").unwrap_err();
        assert!(
            matches!(&error, Error::Mismatch { at, found, .. } if at == "_class_name" && found == "EDMEulerScheduler")
        );
        for text in ["{}", r#"{"_class_name": 3}"#, "", "[]", r#"{"_class_name": "DDIMScheduler""#] {
            assert!(matches!(read(text), Err(Error::Malformed { .. })), "{text}");
        }
    }
}
