//! A denoiser with random inputs at one size: what benches compute.

use std::time::{Duration, Instant};

use pinhole::bind::Bound;
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{AttentionMode, Backend, CancelFlag, Device, Ledger};
use pinhole::pipeline::{self, OpenedWith, Pass, Preprocess, PromptSyntax, SafetyMode, Settings};
use pinhole::plan::measure::Subject;
use pinhole::plan::{Component, Placement, Runs};
use pinhole::sample::{Sampler, randn};
use pinhole::source::Source;
use pinhole::stage::{Cadence, Dims, Lifetime, Model, Port};
use pinhole::trace::{Exposure, Trace};
use pinhole::{Error, Result};
use pinhole_quant::DType;

/// Pixels of a picture to a side of a latent.
const FACTOR: usize = 8;

/// What is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
    /// As many as the family's prompts have, if `None`.
    pub(super) text_tokens: Option<usize>,
}

/// Refuses sides that do not fall into the image tokens of the models measured here.
pub(super) fn check_size(width: usize, height: usize) -> Result<()> {
    for (option, pixels) in [("--width", width), ("--height", height)] {
        if pixels == 0 || !pixels.is_multiple_of(2 * FACTOR) {
            return Err(Error::option(option, "a multiple of 16", pixels.to_string()));
        }
    }
    Ok(())
}

/// A denoiser, its weights found, and how it is computed: one picture in one pass.
pub(super) struct Denoiser {
    denoiser: Box<dyn pipeline::Denoiser>,
    settings: Settings,
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
    /// The uploads that computations waited for, in all of them.
    pub(super) exposure: Exposure,
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
        let (family, denoiser) = pipeline::denoiser(source)?;
        let settings = Settings {
            width: size.width,
            height: size.height,
            steps: 1,
            seed: 0,
            guidance: None,
            cfg_scale: 1.0,
            negative_prompt: None,
            negative_is_zero: false,
            original_size: [size.width, size.height],
            crop: [0, 0],
            sampling: Sampler::Euler.into(),
            rescale_cfg: 0.0,
            max_sequence_length: size.text_tokens.unwrap_or(family.tokens),
            batch: 1,
            strength: None,
            masked: false,
            image_cfg_scale: None,
            encoded_pictures: 0,
            references: Vec::new(),
            reference_sources: Vec::new(),
            control_preprocess: Preprocess::None,
            controls: Vec::new(),
            control_guess: false,
            id_tokens: 0,
            id_projected: false,
            embedded: false,
            text_tokens: vec![size.text_tokens.unwrap_or(family.tokens)],
            guided_above: 1.0,
            redux: Vec::new(),
            redux_tokens: 0,
            prompt_is_zero: false,
            ip_images: 0,
            ip_scale: 0.0,
            cache: None,
            attention: AttentionMode::default(),
            previewed: false,
            tiny_vae: None,
            tiny_encodes: false,
            told: OpenedWith::default(),
            prompt_syntax: PromptSyntax::Plain,
            taught: Vec::new(),
            safety: SafetyMode::Off,
            aesthetic: None,
            pass: Pass::Only,
            upscale: None,
            second: None,
            frames: 1,
            fps: None,
            experts: None,
            given_frames: [false; 2],
            kept: None,
            front_frames: 0,
            encoded_alone: 0,
            guide_scale: None,
        };
        Ok(Denoiser { denoiser, settings, threads, cancel })
    }

    /// Tokens of the prompt.
    pub(super) fn text_tokens(&self) -> usize {
        self.settings.max_sequence_length
    }

    /// What computes a step. A model of several is measured by the first.
    fn subject(&self) -> Result<Subject<'_>> {
        let latents = [self.settings.width / FACTOR, self.settings.height / FACTOR, self.settings.frames, 0, 1];
        let first = self.denoiser.subjects(&self.settings, latents, 1).into_iter().next();
        first.ok_or_else(|| Error::graph("measure", "a denoiser that computes nothing"))
    }

    /// What it takes on `device` for `steps` steps.
    pub(super) fn component(&self, device: Device, steps: usize) -> Result<Component> {
        let subject = Subject { runs: Runs::of_steps(steps), ..self.subject()? };
        subject.measure(&self.backend(device)?)
    }

    /// Runs one step that is not counted, and `steps` that are, with the stages placed as `placement` says.
    pub(super) fn run(&self, device: Device, placement: &Placement, steps: usize) -> Result<Steps> {
        let Subject { model, bound, dims, .. } = self.subject()?;
        let (mut backend, ledger) = (self.backend(device)?, Ledger::new());
        let runs = Runs::of_steps(steps + 1);
        let trace = Trace::new();
        let _recorded = trace.enter();
        let weights = DeviceWeights::place(model, bound, device, &ledger, placement, runs)?;
        let mut session = Session::new(model, &weights, &dims, &backend, &ledger)?;
        self.fill(&mut session)?;
        session.run(&mut backend, Cadence::Request, |_, _| self.cancel.check())?;
        let mut times = Vec::with_capacity(steps + 1);
        for _ in 0..=steps {
            let start = Instant::now();
            session.run(&mut backend, Cadence::Step, |_, _| self.cancel.check())?;
            times.push(start.elapsed());
        }
        times.remove(0);
        let exposure = Exposure::of(&trace.spans());
        Ok(Steps { times, waited: weights.waited(), peak: ledger.usage().peak, exposure })
    }

    /// Has attention computed as `mode` says.
    pub(super) fn set_attention(&mut self, mode: AttentionMode) {
        self.settings.attention = mode;
    }

    pub(super) fn backend(&self, device: Device) -> Result<Backend> {
        let backend = Backend::new(device, self.threads, self.cancel.clone())?;
        backend.set_attention(self.settings.attention);
        Ok(backend)
    }

    pub(super) fn model(&self) -> Result<&Model> {
        Ok(self.subject()?.model)
    }

    pub(super) fn bound(&self) -> Result<&Bound> {
        Ok(self.subject()?.bound)
    }

    pub(super) fn dims(&self) -> Result<Dims> {
        Ok(self.subject()?.dims)
    }

    pub(super) fn cancel(&self) -> &CancelFlag {
        &self.cancel
    }

    /// Fills all that the host fills with random numbers of a usual size.
    pub(super) fn fill(&self, session: &mut Session<'_>) -> Result<()> {
        for port in session.inputs().to_vec() {
            self.fill_port(session, port)?;
        }
        Ok(())
    }

    /// The inputs of one step.
    pub(super) fn fill_step(&self, session: &mut Session<'_>) -> Result<()> {
        for port in session.inputs().to_vec() {
            if self.model()?.ports()[port.index()].lifetime == Lifetime::Pass {
                self.fill_port(session, port)?;
            }
        }
        Ok(())
    }

    fn fill_port(&self, session: &mut Session<'_>, port: Port) -> Result<()> {
        let Subject { model, dims, .. } = self.subject()?;
        let spec = &model.ports()[port.index()];
        let count = spec.shape(&dims)?.elements();
        match spec.dtype {
            // The only condition.
            DType::I32 => session.set_indices(port, &vec![0; count]),
            _ => session.set(port, &randn(port.index() as u64, count)?),
        }
    }
}
