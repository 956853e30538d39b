//! `scheduler_config.json` of any model, and the samplers that go with it.

use std::path::Path;

use serde_json::{Map, Value};

use super::flow::FlowMatchConfig;
use super::sampler::FLOW_CLASSES;
use super::{AYS, Chosen, DiscreteConfig, EdmConfig, Levels, Prediction, Sampler, Sampling, Schedule, python};
use crate::{Error, Result};

/// The class of models with the preconditioning of Karras et al.
const EDM: &str = "EDMEulerScheduler";

/// Classes with discrete timesteps, and the sampler that does what they do.
const DISCRETE: [(&str, Sampler); 16] = [
    ("DDIMScheduler", Sampler::Ddim),
    ("PNDMScheduler", Sampler::Pndm),
    ("EulerDiscreteScheduler", Sampler::Euler),
    ("EulerAncestralDiscreteScheduler", Sampler::EulerAncestral),
    ("DPMSolverMultistepScheduler", Sampler::Dpm2m),
    ("DDPMScheduler", Sampler::Ddpm),
    ("DEISMultistepScheduler", Sampler::Deis),
    ("DPMSolverSDEScheduler", Sampler::DpmSde),
    ("DPMSolverSinglestepScheduler", Sampler::Dpm2s),
    ("HeunDiscreteScheduler", Sampler::Heun),
    ("KDPM2AncestralDiscreteScheduler", Sampler::Kdpm2Ancestral),
    ("KDPM2DiscreteScheduler", Sampler::Kdpm2),
    ("LMSDiscreteScheduler", Sampler::Lms),
    ("UniPCMultistepScheduler", Sampler::UniPc),
    ("LCMScheduler", Sampler::Lcm),
    ("TCDScheduler", Sampler::Tcd),
];

/// How a model was trained to denoise.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scheduler {
    /// Along straight lines from noise to picture.
    Flow(FlowMatchConfig),
    /// On discrete timesteps.
    Discrete(DiscreteConfig),
    /// On levels of noise, with the preconditioning of Karras et al., 2022.
    Edm(EdmConfig),
}

/// What says where a refiner begins.
const REFINER_START: &str = "--refiner-start";

/// Which evaluations of a request one of two models makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// Those before this part of the steps.
    Until(f64),
    /// Those from this part of the steps on.
    From(f64),
}

impl Scheduler {
    /// The part of `levels` that `share` is. Both parts together are all of them.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if it is none, or for a schedule without timesteps.
    pub fn shared(&self, levels: Levels, share: Share) -> Result<Levels> {
        let Scheduler::Discrete(config) = self else {
            return Err(Error::option(REFINER_START, "a schedule on discrete timesteps", "another"));
        };
        let (Share::Until(part) | Share::From(part)) = share;
        let all = f64::from(config.num_train_timesteps);
        // As Python rounds.
        let cut = (all - part * all).round_ties_even() as f32;
        match share {
            Share::Until(_) => levels.until(cut, REFINER_START),
            Share::From(_) => levels.from(cut, REFINER_START),
        }
    }

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
            Some(EDM) => Ok(Scheduler::Edm(EdmConfig::from_settings(settings, origin)?)),
            Some(_) if FlowMatchConfig::is_in(&settings) => {
                Ok(Scheduler::Flow(FlowMatchConfig::from_settings(settings, origin)?))
            }
            Some(class) if DISCRETE.iter().any(|(known, _)| *known == class) => {
                refuse_flow(&settings, origin)?;
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
            Scheduler::Edm(_) => Sampler::EDM,
        }
    }

    /// What the output of the model stands for.
    pub fn predicts(&self) -> Prediction {
        match self {
            Scheduler::Flow(_) => Prediction::Velocity,
            Scheduler::Discrete(config) => config.prediction_type,
            Scheduler::Edm(config) => config.prediction_type,
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
        match asked {
            Some(sampler) if self.samplers().contains(&sampler) => Ok(sampler),
            Some(sampler) => refuse(format!("`{sampler}`")),
            None => match self.own_sampler() {
                Ok(sampler) => Ok(sampler),
                Err(what) => refuse(format!("none, and the model's own {what} is not built")),
            },
        }
    }

    /// The sampler that the configuration names, or in words what it names instead.
    fn own_sampler(&self) -> Result<Sampler, &'static str> {
        let config = match self {
            Scheduler::Flow(config) => return Ok(config.sampler()),
            Scheduler::Edm(_) => return Ok(Sampler::EdmEuler),
            Scheduler::Discrete(config) => config,
        };
        let known = DISCRETE.iter().find(|(known, _)| *known == config.class_name);
        match known.map_or(Sampler::Euler, |(_, sampler)| *sampler) {
            Sampler::Pndm if !config.skip_prk_steps => Err("PNDMScheduler without skip_prk_steps"),
            Sampler::Dpm2m if config.algorithm_type.unwrap_or_default().draws() => Ok(Sampler::Dpm2mSde),
            sampler => Ok(sampler),
        }
    }

    /// The schedule that the configuration names for `sampler`, which passes over what it cannot follow.
    fn own_schedule(&self, sampler: Sampler) -> Schedule {
        let config = match self {
            Scheduler::Flow(config) => &config.solver,
            Scheduler::Discrete(config) => config,
            Scheduler::Edm(config) => return config.schedule(),
        };
        let named = if config.use_karras_sigmas {
            Schedule::Karras
        } else if config.use_lu_lambdas && sampler.schedules(false).contains(&Schedule::Lu) {
            Schedule::Lu
        } else if config.use_exponential_sigmas {
            Schedule::Exponential
        } else if config.use_beta_sigmas {
            Schedule::Beta
        } else {
            Schedule::Normal
        };
        let can = sampler.schedules(matches!(self, Scheduler::Flow(_))).contains(&named);
        if can { named } else { Schedule::Normal }
    }

    /// What holds for a request that says `asked`.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] for a number that cannot be, as [`Scheduler::sampler`], and for a schedule or sigmas that the
    /// sampler cannot follow.
    pub fn choose(&self, asked: &Sampling) -> Result<Chosen> {
        asked.check()?;
        let sampler = self.sampler(asked.sampler)?;
        let is_flow = matches!(self, Scheduler::Flow(_));
        let schedules = sampler.schedules(is_flow);
        if let Some(schedule) = asked.schedule.filter(|schedule| !schedules.contains(schedule)) {
            return Err(Error::option(
                "--schedule",
                Schedule::list(schedules),
                format!("`{schedule}` for `{sampler}`"),
            ));
        }
        if asked.sigmas.is_some() {
            if !sampler.takes_sigmas(is_flow) {
                let takers: Vec<Sampler> =
                    self.samplers().iter().copied().filter(|sampler| sampler.takes_sigmas(is_flow)).collect();
                let expected = match takers.is_empty() {
                    true => "nothing, since this model takes no sigmas".to_owned(),
                    false => format!("a --sampler that takes sigmas, {}", Sampler::list(&takers)),
                };
                return Err(Error::option("--sigmas", expected, format!("`{sampler}`")));
            }
            if let Some(schedule) = asked.schedule {
                let found = format!("`{schedule}` and --sigmas");
                return Err(Error::option("--schedule", "a schedule or sigmas", found));
            }
        }
        if let (Some(shift), false) = (asked.shift, is_flow) {
            return Err(Error::option("--shift", "a model that follows a flow", shift.to_string()));
        }
        // Sigmas that are told stay what they are.
        let own = if asked.sigmas.is_some() { Schedule::Normal } else { self.own_schedule(sampler) };
        Ok(Chosen {
            sampler,
            schedule: asked.schedule.unwrap_or(own),
            sigmas: asked.sigmas(),
            eta: asked.eta.filter(|_| sampler.most_eta().is_some()),
            shift: asked.shift,
            ays: AYS,
        })
    }

    /// The levels of a request. `image_tokens` is how many tokens the denoiser has for the picture, by which a flow may
    /// be shifted.
    ///
    /// # Errors
    ///
    /// As [`Scheduler::sampler`], [`FlowMatchConfig::levels`], [`DiscreteConfig::levels`] and [`EdmConfig::levels`].
    pub fn levels(&self, chosen: &Chosen, steps: usize, image_tokens: usize) -> Result<Levels> {
        self.sampler(Some(chosen.sampler))?;
        match self {
            Scheduler::Flow(config) => config.levels(chosen, steps, image_tokens),
            Scheduler::Discrete(config) => config.levels(chosen, steps),
            Scheduler::Edm(config) => config.levels(chosen, steps),
        }
    }
}

/// Refuses a flow that is predicted over sigmas that are not those of one.
fn refuse_flow(settings: &Map<String, Value>, origin: &Path) -> Result<()> {
    match settings.get("prediction_type").and_then(Value::as_str) {
        Some("flow_prediction") => {
            let error = Error::mismatch(origin, "use_flow_sigmas", "true with flow_prediction", "false");
            Err(error.with_hint("models that predict a flow are sampled along one"))
        }
        _ => Ok(()),
    }
}

fn known_classes() -> String {
    let discrete = DISCRETE.iter().map(|(class, _)| *class);
    let classes: Vec<&str> = FLOW_CLASSES.iter().map(|(class, _)| *class).chain(discrete).chain([EDM]).collect();
    format!("one of: {}", classes.join(", "))
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
    fn classes_name_their_samplers_and_schedules() {
        let flow = r#", "use_flow_sigmas": true, "prediction_type": "flow_prediction""#;
        for (name, more, sampler, schedule) in [
            ("FlowMatchEulerDiscreteScheduler", "", Sampler::Euler, Schedule::Normal),
            ("FlowMatchEulerDiscreteScheduler", r#", "use_beta_sigmas": true"#, Sampler::Euler, Schedule::Beta),
            ("FlowMatchEulerDiscreteScheduler", r#", "stochastic_sampling": true"#, Sampler::Lcm, Schedule::Normal),
            ("FlowMatchHeunDiscreteScheduler", r#", "use_beta_sigmas": true"#, Sampler::Heun, Schedule::Normal),
            ("EulerDiscreteScheduler", r#", "use_karras_sigmas": true"#, Sampler::Euler, Schedule::Karras),
            (
                "EulerAncestralDiscreteScheduler",
                r#", "use_karras_sigmas": true"#,
                Sampler::EulerAncestral,
                Schedule::Normal,
            ),
            ("DDIMScheduler", "", Sampler::Ddim, Schedule::Normal),
            ("PNDMScheduler", r#", "skip_prk_steps": true"#, Sampler::Pndm, Schedule::Normal),
            ("DPMSolverMultistepScheduler", r#", "lambda_min_clipped": -Infinity"#, Sampler::Dpm2m, Schedule::Normal),
            ("DPMSolverMultistepScheduler", r#", "use_karras_sigmas": true"#, Sampler::Dpm2m, Schedule::Karras),
            ("DPMSolverMultistepScheduler", r#", "use_lu_lambdas": true"#, Sampler::Dpm2m, Schedule::Lu),
            ("DPMSolverMultistepScheduler", r#", "algorithm_type": "deis""#, Sampler::Dpm2m, Schedule::Normal),
            (
                "DPMSolverMultistepScheduler",
                r#", "algorithm_type": "sde-dpmsolver++""#,
                Sampler::Dpm2mSde,
                Schedule::Normal,
            ),
            ("UniPCMultistepScheduler", r#", "use_exponential_sigmas": true"#, Sampler::UniPc, Schedule::Exponential),
            ("UniPCMultistepScheduler", flow, Sampler::UniPc, Schedule::Normal),
            ("DPMSolverMultistepScheduler", flow, Sampler::Dpm2m, Schedule::Normal),
            ("EDMEulerScheduler", r#", "sigma_schedule": "exponential""#, Sampler::EdmEuler, Schedule::Exponential),
        ] {
            let chosen = class(name, more).unwrap().choose(&Sampling::default()).unwrap();
            assert_eq!((chosen.sampler, chosen.schedule), (sampler, schedule), "{name} {more}");
        }
        for (name, sampler) in DISCRETE.iter().chain(&FLOW_CLASSES) {
            let skips = r#", "skip_prk_steps": true"#;
            assert_eq!(class(name, skips).unwrap().sampler(None).unwrap(), *sampler, "{name}");
        }
    }

    #[test]
    fn what_is_not_built_is_named_and_other_samplers_work() {
        let scheduler = class("PNDMScheduler", "").unwrap();
        let error = scheduler.sampler(None).unwrap_err().to_string();
        let known = Sampler::list(Sampler::DISCRETE);
        let own = "none, and the model's own PNDMScheduler without skip_prk_steps is not built";
        assert_eq!(error, format!("--sampler: expected {known}, found {own}"));
        assert_eq!(scheduler.sampler(Some(Sampler::Ddim)).unwrap(), Sampler::Ddim);
    }

    #[test]
    fn settings_that_a_solver_has_no_rule_for_are_refused() {
        for (name, more, wanted) in [
            ("DPMSolverMultistepScheduler", r#", "algorithm_type": "dpmsolver""#, "final_sigmas_type sigma_min, or "),
            ("UniPCMultistepScheduler", r#", "solver_type": "bh1""#, "solver_type bh2, or final_sigmas_type sigma_min"),
            ("UniPCMultistepScheduler", r#", "predict_x0": false"#, "final_sigmas_type sigma_min, or predict_x0"),
            ("UniPCMultistepScheduler", r#", "lower_order_final": false"#, "lower_order_final, or final_sigmas_type"),
        ] {
            let scheduler = class(name, more).unwrap();
            let chosen = scheduler.choose(&Sampling::default()).unwrap();
            let error = scheduler.levels(&chosen, 5, 1).unwrap_err().to_string();
            assert!(error.contains(&format!("a scheduler_config.json with {wanted}")), "{name}: {error}");
            let to_sigma_min = class(name, &format!(r#"{more}, "final_sigmas_type": "sigma_min""#)).unwrap();
            to_sigma_min.levels(&chosen, 5, 1).unwrap();
        }
    }

    #[test]
    fn a_flow_has_samplers_of_its_own() {
        let flow = class("FlowMatchEulerDiscreteScheduler", "").unwrap();
        let error = flow.levels(&Sampler::Pndm.into(), 4, 64).unwrap_err();
        let known = Sampler::list(Sampler::FLOW);
        assert_eq!(error.to_string(), format!("--sampler: expected {known}, found `pndm`"));
    }

    #[test]
    fn schedules_and_sigmas_that_a_sampler_cannot_follow_are_refused() {
        let [discrete, flow, edm] = ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"]
            .map(|name| class(name, "").unwrap());
        let karras =
            |sampler| Sampling { sampler: Some(sampler), schedule: Some(Schedule::Karras), ..Sampling::default() };
        let sigmas = |sampler| Sampling { sampler: Some(sampler), sigmas: Some(vec![0.9, 0.5]), ..Sampling::default() };
        for (scheduler, asked, wanted) in [
            (
                &discrete,
                karras(Sampler::Ddim),
                "--schedule: expected one of: normal, sgm_uniform, found `karras` for `ddim`",
            ),
            (&flow, karras(Sampler::Heun), "--schedule: expected one of: normal, found `karras` for `heun`"),
            (
                &flow,
                sigmas(Sampler::Heun),
                "--sigmas: expected a --sampler that takes sigmas, one of: euler, euler_a, unipc, lcm, found `heun`",
            ),
            (
                &edm,
                sigmas(Sampler::EdmEuler),
                "--sigmas: expected nothing, since this model takes no sigmas, found `edm_euler`",
            ),
            (
                &discrete,
                Sampling { schedule: Some(Schedule::Karras), ..sigmas(Sampler::Euler) },
                "--schedule: expected a schedule or sigmas, found `karras` and --sigmas",
            ),
        ] {
            assert_eq!(scheduler.choose(&asked).unwrap_err().to_string(), wanted);
        }
    }

    #[test]
    fn unknown_classes_and_texts_without_one_are_refused() {
        let error = class("SASolverScheduler", "").unwrap_err();
        assert!(
            matches!(&error, Error::Mismatch { at, found, .. } if at == "_class_name" && found == "SASolverScheduler")
        );
        let error = class("UniPCMultistepScheduler", r#", "prediction_type": "flow_prediction""#).unwrap_err();
        assert!(matches!(&error, Error::Mismatch { at, .. } if at == "use_flow_sigmas"), "{error}");
        for text in ["{}", r#"{"_class_name": 3}"#, "", "[]", r#"{"_class_name": "DDIMScheduler""#] {
            assert!(matches!(read(text), Err(Error::Malformed { .. })), "{text}");
        }
    }
}
