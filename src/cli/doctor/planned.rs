//! The plan of a model of real size, which need not be here.

use pinhole::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::{self, Pipeline, Request};
use pinhole::plan::Plan;
use pinhole::synthetic::{self, Architecture, Options};
use pinhole_quant::recipe::FileType;
use serde::Serialize;

use crate::cli::plan::PlanReport;
use crate::cli::units;

/// What a request with the model's defaults takes here.
#[derive(Serialize)]
pub(super) struct Planned {
    model: String,
    device: String,
    width: usize,
    height: usize,
    steps: usize,
    /// All of the model's file.
    pub(super) model_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanReport>,
    #[serde(skip)]
    pub(super) whole: Option<Plan>,
    /// Why there is no plan, and what would do.
    pub(super) refusal: Option<String>,
    pub(super) hint: Option<String>,
}

impl Planned {
    /// Plans the model on `device`.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and what is no answer: a device that fails.
    pub(super) fn new(
        (architecture, file_type): (Architecture, FileType),
        device: Device,
        threads: usize,
        cancel: &CancelFlag,
    ) -> Result<Planned, Error> {
        let options = Options { architecture, file_type, blocks: None, hollow: true, only: None };
        let mut planned = Planned {
            model: format!("{} in {file_type}", architecture.name()),
            device: device.name(),
            model_bytes: synthetic::total_bytes(&options)?,
            ..Planned::nothing()
        };
        let outcome = synthetic::imagined(&options).and_then(|source| {
            let model = pipeline::open(&source)?;
            let pipeline = Pipeline::with_threads(model, device, threads, cancel.clone())?;
            let settings = pipeline.settings(&Request::default())?;
            (planned.width, planned.height, planned.steps) = (settings.width, settings.height, settings.steps);
            pipeline.plan(&Request::default())
        });
        match outcome {
            Ok(plan) => {
                planned.plan = Some(PlanReport::new(&plan, &[]));
                planned.whole = Some(plan);
            }
            // That it does not fit is an answer, and so is that there is no room for the model's addresses.
            Err(error @ (Error::OverBudget { .. } | Error::OutOfMemory { .. } | Error::Io { .. })) => {
                planned.hint = error.hint().map(str::to_owned);
                planned.refusal = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        Ok(planned)
    }

    /// Of no model.
    pub(super) fn nothing() -> Planned {
        Planned {
            model: String::new(),
            device: String::new(),
            width: 0,
            height: 0,
            steps: 0,
            model_bytes: 0,
            plan: None,
            whole: None,
            refusal: None,
            hint: None,
        }
    }

    /// What is planned, in words.
    pub(super) fn heading(&self) -> String {
        let Planned { model, device, width, height, steps, .. } = self;
        let bytes = units::bytes(self.model_bytes);
        if self.whole.is_none() && *width == 0 {
            return format!("plan of {model} ({bytes}) on {device}");
        }
        format!("plan of {model} ({bytes}) on {device}, {width}x{height}, {}", units::counted(*steps, "step"))
    }

    /// How it ended, in words.
    pub(super) fn outcome(&self) -> String {
        match &self.whole {
            Some(plan) => format!("{} at most", units::bytes(plan.peak() as u64)),
            None => "which does not fit".to_owned(),
        }
    }

    /// What each step reads from the disk, since host memory is short.
    pub(super) fn read_each_step(&self) -> usize {
        let components = self.whole.iter().flat_map(|plan| &plan.components);
        components.map(|component| component.read_each_step).sum()
    }
}
