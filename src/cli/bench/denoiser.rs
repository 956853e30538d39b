//! A denoiser with random inputs at one size: what benches compute.

use std::time::{Duration, Instant};

use pinhole::Result;
use pinhole::bind::Bound;
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::flux::{Flux, sinusoid};
use pinhole::plan::measure::Subject;
use pinhole::plan::{Component, Phase, Placement, Runs};
use pinhole::sample::randn;
use pinhole::source::slot::TRANSFORMER;
use pinhole::source::{Part, Source, networks};
use pinhole::stage::{Cadence, Dims, Model, Symbol};

/// Pixels of a picture to a side of an image token.
const SIDE: usize = 16;

/// What is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) text_tokens: usize,
}

impl Size {
    fn rows(self) -> usize {
        self.height / SIDE
    }

    fn columns(self) -> usize {
        self.width / SIDE
    }

    fn dims(self) -> Dims {
        let image = self.rows() * self.columns();
        Dims::new()
            .with(Symbol::BATCH, 1)
            .with(Symbol::CONDITIONS, 1)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(Symbol::TEXT_TOKENS, self.text_tokens)
            .with(Symbol::JOINT_TOKENS, self.text_tokens + image)
    }
}

/// A transformer, its weights found, and how it is computed.
pub(super) struct Denoiser {
    part: Part<Flux>,
    size: Size,
    threads: usize,
    cancel: CancelFlag,
}

/// What some steps took.
pub(super) struct Steps {
    /// Each of them.
    pub(super) times: Vec<Duration>,
    /// How long computations waited for weights, in all of them and the first, which is not in `times`.
    pub(super) waited: Duration,
    /// The most that was allocated on the device.
    pub(super) peak: usize,
}

impl Steps {
    /// The time of a step.
    pub(super) fn median(&self) -> Duration {
        let mut times = self.times.clone();
        times.sort();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }
}

impl Denoiser {
    pub(super) fn open(source: &Source, size: Size, threads: usize, cancel: CancelFlag) -> Result<Denoiser> {
        let part = networks::flux(source.component(&TRANSFORMER)?)?;
        Ok(Denoiser { part, size, threads, cancel })
    }

    /// What it takes on `device` for `steps` steps.
    pub(super) fn component(&self, device: Device, steps: usize) -> Result<Component> {
        let Denoiser { part, size, .. } = self;
        let subject = Subject {
            name: "transformer",
            phase: Phase::Denoise,
            model: &part.net.model,
            bound: &part.bound,
            dims: size.dims(),
            runs: Runs { request: 1, steps },
        };
        subject.measure(&self.backend(device)?)
    }

    /// Runs one step that is not counted, and `steps` that are, with the stages placed as `placement` says.
    pub(super) fn run(&self, device: Device, placement: &Placement, steps: usize) -> Result<Steps> {
        let Denoiser { part, size, .. } = self;
        let (mut backend, ledger, model) = (self.backend(device)?, Ledger::new(), &part.net.model);
        let runs = Runs { request: 1, steps: steps + 1 };
        let weights = DeviceWeights::place(model, &part.bound, device, &ledger, placement, runs)?;
        let mut session = Session::new(model, &weights, &size.dims(), &backend, &ledger)?;
        self.fill(&mut session)?;
        session.run(&mut backend, Cadence::Request, |_, _| self.cancel.check())?;
        let mut times = Vec::with_capacity(steps + 1);
        for _ in 0..=steps {
            let start = Instant::now();
            session.run(&mut backend, Cadence::Step, |_, _| self.cancel.check())?;
            times.push(start.elapsed());
        }
        times.remove(0);
        Ok(Steps { times, waited: weights.waited(), peak: ledger.usage().peak })
    }

    pub(super) fn backend(&self, device: Device) -> Result<Backend> {
        Backend::new(device, self.threads, self.cancel.clone())
    }

    pub(super) fn model(&self) -> &Model {
        &self.part.net.model
    }

    pub(super) fn bound(&self) -> &Bound {
        &self.part.bound
    }

    pub(super) fn dims(&self) -> Dims {
        self.size.dims()
    }

    pub(super) fn cancel(&self) -> &CancelFlag {
        &self.cancel
    }

    /// Random inputs of a usual size.
    pub(super) fn fill(&self, session: &mut Session<'_>) -> Result<()> {
        let Denoiser { part: Part { net, .. }, size, .. } = self;
        let (config, ports) = (net.config(), &net.ports);
        session.set(ports.time, &sinusoid(700.0))?;
        if let Some(guidance) = ports.guidance {
            session.set(guidance, &sinusoid(3500.0))?;
        }
        session.set(ports.pooled, &randn(1, config.pooled_projection_dim)?)?;
        session.set(ports.text, &randn(2, config.joint_attention_dim * size.text_tokens)?)?;
        let (cos, sin) = net.rotary(size.text_tokens, size.rows(), size.columns())?;
        session.set(ports.cos, &cos)?;
        session.set(ports.sin, &sin)?;
        self.fill_step(session)
    }

    /// The inputs of one step.
    pub(super) fn fill_step(&self, session: &mut Session<'_>) -> Result<()> {
        let Denoiser { part: Part { net, .. }, size, .. } = self;
        let image = size.rows() * size.columns();
        session.set(net.ports.latents, &randn(3, net.config().in_channels * image)?)?;
        session.set_indices(net.ports.condition, &[0])
    }
}
