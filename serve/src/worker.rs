//! The one that owns the device: a thread that draws one job after the other, or several of equal size at once.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use pinhole::ggml::CancelFlag;
use pinhole::image::parameters_text;
use pinhole::memory;
use pinhole::pipeline::{Event, Generated, Observer, Request};
use pinhole::plan::Plan;
use pinhole::sample::Noise;
use pinhole::{Error, Result as PinholeResult};
use tracing::{error, info, warn};

use crate::fault::Fault;
use crate::job::{DeviceOutcome, Job, Outcome, Status};
use crate::jobs::{End, Jobs, Next, Order};
use crate::metrics::Metrics;
use crate::pictures;
use crate::shelf::{Resident, Residents, Shelf};

/// What the thread has.
struct Worker {
    jobs: Arc<Jobs>,
    metrics: Arc<Metrics>,
    shelf: Arc<Shelf>,
    residents: Residents,
}

/// Starts the thread. After `idle` without work it unloads everything.
///
/// # Errors
/// What the system says if there is no thread to be had.
pub fn start(
    jobs: Arc<Jobs>,
    metrics: Arc<Metrics>,
    shelf: Arc<Shelf>,
    idle: Option<Duration>,
) -> std::io::Result<JoinHandle<()>> {
    let residents = Residents::new(Arc::clone(&shelf));
    let worker = Worker { jobs, metrics, shelf, residents };
    thread::Builder::new().name("device".into()).spawn(move || worker.run(idle))
}

impl Worker {
    fn run(mut self, idle: Option<Duration>) {
        loop {
            match self.jobs.next(idle.filter(|_| !self.residents.is_empty())) {
                Next::Draw(orders) => self.draw(orders),
                Next::Idle => self.unload("idle"),
                Next::Stop => break,
            }
        }
        self.unload("stop");
    }

    fn unload(&mut self, why: &'static str) {
        let count = self.residents.clear();
        self.unloaded(count, why);
    }

    fn unloaded(&self, count: usize, why: &'static str) {
        if count > 0 {
            self.metrics.add_of("pinhole_models_unloaded_total", "why", why, count as f64);
            let held: usize = self.shelf.held().iter().sum();
            info!(count, why, held, "unloaded");
        }
        self.show_memory();
    }

    fn show_memory(&self) {
        self.metrics.set("pinhole_models_loaded", self.residents.len() as f64);
        self.metrics.set("pinhole_held_bytes", self.shelf.held().iter().sum::<usize>() as f64);
        if let Some(resident) = memory::resident() {
            self.metrics.set("pinhole_resident_bytes", resident.total as f64);
        }
    }

    /// Draws `orders` together if that has a plan, and one after the other if not.
    fn draw(&mut self, orders: Vec<Order>) {
        let together = match orders.len() {
            0 | 1 => None,
            _ => self.together(&orders).ok(),
        };
        if let Some((request, plan)) = together {
            return self.draw_as_one(&orders, &request, plan);
        }
        for order in orders {
            if order.job.cancel.is_raised() {
                self.jobs.end_stopped(&order.job);
                continue;
            }
            let request = order.asked.request.clone();
            let plan = order.planned.plan.clone();
            self.draw_as_one(&[order], &request, plan);
        }
    }

    /// One request for all, with the noise of each, and its plan.
    fn together(&mut self, orders: &[Order]) -> Result<(Request, Plan), Fault> {
        let first = orders.first().ok_or_else(|| Fault::internal("no job"))?;
        let batch = orders.iter().map(|order| order.asked.request.batch).sum();
        let mut noise = Vec::new();
        for order in orders {
            let [w, h, frames, channels, batch] = first.planned.model.autoencoder.latents(&order.planned.settings);
            noise.extend(Noise::new(order.asked.request.seed, batch).draw(w * h * frames * channels)?);
        }
        let request = Request { batch, noise: Some(noise), ..first.asked.request.clone() };
        let (resident, _) = self.residents.bring(&first.asked.key)?;
        let plan = resident.pipeline.plan(&request)?;
        Ok((request, plan))
    }

    fn draw_as_one(&mut self, orders: &[Order], request: &Request, plan: Plan) {
        let began = SystemTime::now();
        for Order { job, .. } in orders {
            job.change(|snapshot| (snapshot.status, snapshot.began) = (Status::Running, Some(began)));
            let waited = began.duration_since(job.created).unwrap_or_default().as_secs_f64();
            self.metrics.add("pinhole_wait_seconds_sum", waited);
            self.metrics.add("pinhole_wait_seconds_count", 1.0);
        }
        // The library catches its own panics. One of ours ends the jobs that met it, and not the server.
        let drawn = catch_unwind(AssertUnwindSafe(|| self.generate(orders, request, plan)));
        let drawn = drawn.unwrap_or_else(|_| {
            self.residents.drop_last();
            Err(Fault::internal("the server met a bug while it drew"))
        });
        self.residents.weigh();
        self.show_memory();
        match drawn {
            Ok((generated, warnings)) => self.hand_out(orders, &generated, &warnings),
            Err(fault) => {
                for Order { job, .. } in orders {
                    match job.cancel.is_raised() {
                        true => self.jobs.end_stopped(job),
                        false => self.fail(job, fault.clone()),
                    }
                }
            }
        }
    }

    fn fail(&self, job: &Arc<Job>, fault: Fault) {
        error!(job = %job.id, "{fault}");
        self.jobs.end(job, End::Without(Status::Failed, fault));
    }

    fn generate(&mut self, orders: &[Order], request: &Request, plan: Plan) -> Result<(Generated, Vec<String>), Fault> {
        let first = orders.first().ok_or_else(|| Fault::internal("no job"))?;
        let (resident, is_new) = self.residents.bring(&first.asked.key)?;
        // A model that was replaced since has another plan.
        let plan = match Arc::ptr_eq(&resident.model, &first.planned.model) {
            true => plan,
            false => resident.pipeline.plan(request)?,
        };
        if is_new {
            self.metrics.add("pinhole_models_loaded_total", 1.0);
            info!(model = first.asked.key.model, "loaded");
        }
        let unloaded = self.residents.make_room(&plan);
        self.unloaded(unloaded, "room");
        self.metrics.set("pinhole_planned_peak_bytes", plan.peak() as f64);
        if let Some(limit) = plan.limit {
            self.metrics.set("pinhole_budget_bytes", limit as f64);
        }
        let Some(Resident { pipeline, .. }) = self.residents.last() else {
            return Err(Fault::internal("no model"));
        };
        let cancel = match orders {
            [one] => one.job.cancel.clone(),
            _ => CancelFlag::new(),
        };
        pipeline.set_cancel(cancel);
        let mut watch = Watch { orders, metrics: &self.metrics, moved: 0, previews: 0, warnings: Vec::new() };
        let generated = pipeline.generate_as(plan, request, &mut watch)?;
        let warnings = watch.warnings;
        self.measure(&generated);
        Ok((generated, warnings))
    }

    fn measure(&self, generated: &Generated) {
        let metrics = &self.metrics;
        metrics.add("pinhole_runs_total", 1.0);
        metrics.add("pinhole_pictures_total", generated.images.len() as f64);
        for (phase, time) in &generated.timings {
            metrics.add_of("pinhole_phase_seconds_sum", "phase", phase, time.as_secs_f64());
            metrics.add_of("pinhole_phase_seconds_count", "phase", phase, 1.0);
        }
        let peak = peak(generated);
        metrics.set("pinhole_measured_peak_bytes", peak as f64);
        metrics.raise("pinhole_highest_peak_bytes", peak as f64);
        if peak > generated.plan.peak() {
            warn!(planned = generated.plan.peak(), measured = peak, "more than planned");
        }
        for held in held(generated) {
            let device = &held.device;
            metrics.set_of("pinhole_device_planned_peak_bytes", "device", device, held.planned_bytes as f64);
            metrics.set_of("pinhole_device_measured_peak_bytes", "device", device, held.measured_bytes as f64);
            metrics.add_of("pinhole_device_moved_bytes_total", "device", device, held.moved_bytes as f64);
            metrics.add_of("pinhole_device_exchanged_bytes_total", "device", device, held.exchanged_bytes as f64);
            if let Some(limit) = held.limit_bytes {
                metrics.set_of("pinhole_device_budget_bytes", "device", device, limit as f64);
            }
        }
    }

    /// Gives each job its own pictures.
    fn hand_out(&self, orders: &[Order], generated: &Generated, warnings: &[String]) {
        let mut images = &generated.images[..];
        let all: usize = orders.iter().map(|order| order.asked.request.batch).sum();
        let each = images.len() / all.max(1);
        for order in orders {
            let count = (order.asked.request.batch * each).min(images.len());
            let (own, others) = images.split_at(count);
            images = others;
            if order.job.cancel.is_raised() {
                self.jobs.end_stopped(&order.job);
                continue;
            }
            match finished(order, own, generated, warnings, orders.len()) {
                Ok((outcome, pictures)) => {
                    self.jobs.end(&order.job, End::Done(outcome, pictures));
                }
                Err(fault) => self.fail(&order.job, fault),
            }
        }
    }
}

/// What each device was planned to hold and held, and what came and went.
fn held(generated: &Generated) -> Vec<DeviceOutcome> {
    let mut all = Vec::with_capacity(generated.devices.len());
    for (number, device) in generated.devices.iter().enumerate() {
        let phases = || generated.phases.iter().filter(|phase| phase.device == number);
        all.push(DeviceOutcome {
            device: device.device.clone(),
            limit_bytes: device.limit.map(|limit| limit as u64),
            planned_bytes: device.planned as u64,
            measured_bytes: device.measured.peak as u64,
            moved_bytes: phases().map(|phase| phase.moved).sum(),
            exchanged_bytes: phases().map(|phase| phase.exchanged).sum(),
        });
    }
    all
}

/// The highest peak of all phases, in bytes; of several devices, on the first.
fn peak(generated: &Generated) -> usize {
    let mut peak = 0;
    for phase in generated.phases.iter().filter(|phase| phase.device == 0) {
        peak = peak.max(phase.measured.peak).max(phase.allocated.unwrap_or(0));
    }
    peak
}

/// What `order` gets of what was drawn.
fn finished(
    order: &Order,
    images: &[pinhole::image::Image],
    generated: &Generated,
    warnings: &[String],
    drawn_together: usize,
) -> Result<(Outcome, Vec<Bytes>), Fault> {
    let drawing = &order.job.drawing;
    let settings = generated.settings.last();
    let (mut seeds, mut texts, mut pngs) = (Vec::new(), Vec::new(), Vec::new());
    let json = serde_json::to_string(drawing).map_err(|error| Fault::internal(error.to_string()))?;
    for (at, image) in (0..).zip(images) {
        let seed = order.asked.request.seed.wrapping_add(at / settings.frames.max(1) as u64);
        let mut pairs = settings.named(seed, None);
        pairs.push(("Model", order.asked.key.model.clone()));
        if !order.asked.key.loras.is_empty() {
            let loras: Vec<_> = order.asked.key.loras.iter().map(|(name, by)| format!("{name}: {by}")).collect();
            pairs.push(("Loras", loras.join(", ")));
        }
        pairs.push(("Version", concat!("pinhole ", env!("CARGO_PKG_VERSION")).to_owned()));
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let text = parameters_text(&drawing.prompt, settings.negative_prompt.as_deref(), &pairs);
        pngs.push(pictures::png(image, &text, &json)?);
        seeds.push(seed);
        texts.push(text);
    }
    let size = images.first().map_or([0, 0], |image| [image.width(), image.height()]);
    let seconds: BTreeMap<String, f64> =
        generated.timings.iter().map(|(phase, time)| ((*phase).to_owned(), time.as_secs_f64())).collect();
    let outcome = Outcome {
        seeds,
        parameters: texts,
        size,
        steps: settings.steps,
        seconds,
        planned_bytes: generated.plan.peak() as u64,
        measured_bytes: peak(generated) as u64,
        devices: held(generated),
        drawn_together,
        warnings: warnings.to_vec(),
    };
    Ok((outcome, pngs))
}

/// Tells jobs how far they are, and stops when no one wants them.
struct Watch<'a> {
    orders: &'a [Order],
    metrics: &'a Metrics,
    /// Bytes that were brought in this phase.
    moved: u64,
    previews: u64,
    warnings: Vec<String>,
}

impl Watch<'_> {
    fn tell(&self, change: impl Fn(&mut crate::job::Snapshot)) {
        self.orders.iter().for_each(|order| order.job.change(&change));
    }

    /// The job that picture `index` of the batch is of, if it is the first of that job.
    fn first_picture(&self, index: usize) -> Option<&Order> {
        let mut first = 0;
        for order in self.orders {
            if index == first {
                return Some(order);
            }
            first += order.asked.request.batch;
        }
        None
    }
}

impl Observer for Watch<'_> {
    fn event(&mut self, event: Event) -> PinholeResult<()> {
        match event {
            Event::Begin { phase, steps, .. } => {
                self.moved = 0;
                self.tell(|snapshot| {
                    snapshot.phase = Some(phase.name());
                    if steps > 0 {
                        (snapshot.step, snapshot.steps) = (0, steps);
                    }
                });
            }
            Event::Step { done, steps } => {
                self.tell(|snapshot| (snapshot.step, snapshot.steps) = (done, steps));
            }
            Event::Moved { bytes } => {
                self.metrics.add("pinhole_moved_bytes_total", bytes.saturating_sub(self.moved) as f64);
                self.moved = bytes;
            }
            Event::Preview { image, index, .. } => {
                self.previews += 1;
                let number = self.previews;
                if let (Some(order), Some(png)) = (self.first_picture(index), pictures::preview(&image)) {
                    order.job.change(|snapshot| snapshot.preview = Some((number, png)));
                }
            }
            Event::Warning(text) => self.warnings.push(text),
            _ => {}
        }
        let all_stopped = self.orders.iter().all(|order| order.job.cancel.is_raised());
        if all_stopped { Err(Error::Cancelled) } else { Ok(()) }
    }
}
