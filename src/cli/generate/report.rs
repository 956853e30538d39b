//! What `generate` says when it is done: on stdout, on stderr, and inside the pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pinhole::entries::Entries;
use pinhole::ggml::Device;
use pinhole::memory::PeakMemory;
use pinhole::pipeline::{
    Computed, ControlParameters, DeviceMemory, Generated, Made, Origin, Parameters, Phase, PhaseMemory, PictureTexts,
    Settings, Timings, WeightedPicture, model_name, skipped,
};
use serde::Serialize;

use super::Args;
use super::films::WrittenFilm;
use super::outputs::Written;
use crate::cli::failure::Failure;
use crate::cli::lora;
use crate::cli::plan::PlanReport;
use crate::cli::printer::Printer;
use crate::cli::request::device_names;
use crate::cli::units::{self, path_text, path_texts};

/// Where the time went.
pub(super) struct Clock {
    start: Instant,
    lap: Instant,
    phases: Vec<(&'static str, Duration)>,
}

impl Clock {
    pub(super) fn start() -> Clock {
        let now = Instant::now();
        Clock { start: now, lap: now, phases: Vec::new() }
    }

    /// The time since the last lap was that of `phase`.
    pub(super) fn lap(&mut self, phase: &'static str) {
        self.phases.push((phase, self.lap.elapsed()));
        self.lap = Instant::now();
    }

    /// The phases that the pipeline timed, in the order in which they run.
    pub(super) fn add(&mut self, timings: &Timings) {
        let known = Phase::ALL.iter().map(|phase| phase.name());
        self.phases.extend(known.filter_map(|phase| timings.get_key_value(phase)).map(|(&phase, &time)| (phase, time)));
    }

    /// Begins a lap now.
    pub(super) fn resume(&mut self) {
        self.lap = Instant::now();
    }

    fn seconds(&self) -> Entries<f64> {
        let all = self.phases.iter().copied().chain([("total", self.start.elapsed())]);
        all.map(|(phase, time)| (phase, time.as_secs_f64())).collect()
    }
}

/// What made the pictures.
pub(super) struct Run<'a> {
    pub(super) args: &'a Args,
    /// The name of the model's family.
    pub(super) family: &'static str,
    /// Where its parts come from, if they come from several files.
    pub(super) origins: Vec<Origin>,
    pub(super) settings: &'a Settings,
    /// For each pass, which evaluations were computed.
    pub(super) computed: &'a [Vec<bool>],
    /// Whether each picture was flagged; none without a safety checker.
    pub(super) flagged: &'a [bool],
    pub(super) devices: &'a [Device],
    pub(super) threads: usize,
}

impl Run<'_> {
    /// The names of its devices.
    fn devices(&self) -> String {
        device_names(self.devices)
    }

    fn parameters(&self) -> Parameters<'_> {
        let request = &self.args.request;
        let parameters = Parameters {
            prompt: self.args.prompt.as_deref().unwrap_or_default(),
            loras: lora::in_json(&request.loras),
            clip_skip: request.clip_skip,
            image: path_text(request.image.as_ref()),
            references: path_texts(&request.references),
            zero_cond_t: request.zero_cond_t,
            control_image: path_text(request.control.image.as_ref()),
            controls: self.controls(),
            id_embedding: path_text(request.id_embedding.as_ref()),
            id_projector: path_text(request.id_projector.as_ref()),
            mask: path_text(request.mask.as_ref()),
            redux: path_text(request.redux.as_ref()),
            redux_images: request.redux_images.iter().map(|it| WeightedPicture::new(&it.path, it.weight)).collect(),
            ip_adapter: path_text(request.ip_adapter.as_ref()),
            ip_images: path_texts(&request.ip_images),
            image_encoders: path_texts(&request.image_encoders),
            upscaler: path_text(request.upscaler.as_ref()),
            noise: path_text(self.args.noise.as_ref()),
            ..Parameters::of(self.settings, request.posterior, !self.flagged.is_empty())
        };
        request.video.tell(request.stable_diffusion.tell(parameters))
    }

    fn controls(&self) -> Vec<ControlParameters> {
        let mut all = Vec::new();
        for (net, settings) in self.args.request.control.nets.iter().zip(&self.settings.controls) {
            all.push(ControlParameters::new(settings, &net.path, net.images.iter().map(PathBuf::as_path)));
        }
        all
    }

    /// The texts inside picture `index`, that of `seed`.
    pub(super) fn texts(&self, index: usize, seed: u64) -> PictureTexts {
        let made = Made {
            model: &model_name(self.args.model_name()),
            parts: &self.origins,
            settings: self.settings,
            computed: self.computed,
            flagged: self.flagged.get(index).copied(),
            seed,
        };
        made.texts(&self.parameters())
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    model: ModelReport<'a>,
    device: String,
    threads: usize,
    images: Vec<ImageReport<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    films: Vec<FilmReport<'a>>,
    #[serde(serialize_with = "units::path_if_any")]
    latents: Option<&'a PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    trace: Option<&'a PathBuf>,
    /// The files of `--preview`.
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "units::paths")]
    previews: &'a [PathBuf],
    parameters: Parameters<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    computed: Option<Computed<'a>>,
    /// Whether the safety checker flagged each picture.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    flagged: &'a [bool],
    /// By phase.
    seconds: Entries<f64>,
    memory: Memory<'a>,
    plan: PlanReport,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct ModelReport<'a> {
    #[serde(serialize_with = "units::path")]
    path: &'a Path,
    architecture: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    parts: &'a [Origin],
}

#[derive(Serialize)]
struct ImageReport<'a> {
    #[serde(serialize_with = "units::path")]
    path: &'a PathBuf,
    seed: u64,
}

#[derive(Serialize)]
struct FilmReport<'a> {
    #[serde(serialize_with = "units::path_if_any")]
    path: Option<&'a PathBuf>,
    seed: u64,
    frames: usize,
    fps: f32,
}

impl FilmReport<'_> {
    fn new(film: &WrittenFilm) -> FilmReport<'_> {
        FilmReport { path: film.path.as_ref(), seed: film.seed, frames: film.frames, fps: film.fps }
    }
}

#[derive(Serialize)]
struct PhaseReport {
    planned_peak_bytes: usize,
    measured_peak_bytes: usize,
    /// On a GPU: by the account of its backend's own allocators.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_peak_bytes: Option<usize>,
    /// Weights that were brought to the device.
    moved_bytes: u64,
    /// How long the computation waited for them.
    waited_seconds: f64,
    /// Other numbers that went to the device and came from there.
    exchanged_bytes: u64,
}

impl PhaseReport {
    fn new(phase: &PhaseMemory) -> PhaseReport {
        PhaseReport {
            planned_peak_bytes: phase.planned,
            measured_peak_bytes: phase.measured.peak,
            allocated_peak_bytes: phase.allocated,
            moved_bytes: phase.moved,
            waited_seconds: phase.waited.as_secs_f64(),
            exchanged_bytes: phase.exchanged,
        }
    }
}

/// What one of several devices held.
#[derive(Serialize)]
struct DeviceReport<'a> {
    device: &'a str,
    limit_bytes: Option<usize>,
    planned_peak_bytes: usize,
    device_peak_bytes: usize,
    device_bytes: &'a BTreeMap<&'static str, usize>,
}

impl DeviceReport<'_> {
    fn new(held: &DeviceMemory) -> DeviceReport<'_> {
        DeviceReport {
            device: &held.device,
            limit_bytes: held.limit,
            planned_peak_bytes: held.planned,
            device_peak_bytes: held.measured.peak,
            device_bytes: &held.measured.at_peak,
        }
    }
}

#[derive(Serialize)]
struct Memory<'a> {
    /// The most that pinhole held on the device at once.
    device_peak_bytes: usize,
    /// What that consisted of, by purpose.
    device_bytes: &'a BTreeMap<&'static str, usize>,
    /// Each of several devices; the numbers above are those of the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<DeviceReport<'a>>,
    /// What each phase was planned to take and took.
    phases: Entries<PhaseReport>,
    /// Weights that were used where they lie in the file.
    mapped_bytes: usize,
    /// The process's heap, stacks and buffers; `None` where the system does not say.
    process_peak_anonymous_bytes: Option<u64>,
    /// Resident pages of mapped files, the program's own among them.
    process_peak_file_bytes: Option<u64>,
    /// The most of both together at one moment.
    process_peak_total_bytes: Option<u64>,
}

/// What a phase is called, with the number of its pass if that is the second, and the device if that is not the first.
fn phase_name(phase: &PhaseMemory, devices: &[DeviceMemory]) -> String {
    let name = format!("{}{}", phase.phase.name(), if phase.second { "_2" } else { "" });
    match devices.get(phase.device).filter(|_| phase.device > 0) {
        Some(DeviceMemory { device, .. }) => format!("{name}@{device}"),
        None => name,
    }
}

/// Says what was made: the paths, or with `--json` everything.
pub(super) fn print(
    printer: &Printer,
    run: &Run<'_>,
    generated: &Generated,
    files: &Written,
    clock: &Clock,
    memory: &PeakMemory,
) -> Result<(), Failure> {
    let peaks = memory.peaks();
    let memory = Memory {
        device_peak_bytes: generated.memory.peak,
        device_bytes: &generated.memory.at_peak,
        devices: match &generated.devices[..] {
            [_] => Vec::new(),
            several => several.iter().map(DeviceReport::new).collect(),
        },
        phases: generated
            .phases
            .iter()
            .map(|phase| (phase_name(phase, &generated.devices), PhaseReport::new(phase)))
            .collect(),
        mapped_bytes: generated.mapped_bytes,
        process_peak_anonymous_bytes: peaks.map(|peaks| peaks.anonymous),
        process_peak_file_bytes: peaks.map(|peaks| peaks.file),
        process_peak_total_bytes: peaks.map(|peaks| peaks.total),
    };
    summarize(printer, run, &memory, clock);
    if !printer.json() {
        let pictures = files.pictures.iter().map(|(path, _)| path);
        let films = files.films.iter().filter_map(|film| film.path.as_ref());
        let paths: String = pictures.chain(films).map(|path| format!("{}\n", path.display())).collect();
        return printer.data(&paths);
    }
    printer.object(&Report {
        version: env!("CARGO_PKG_VERSION"),
        model: ModelReport { path: run.args.model_name(), architecture: run.family, parts: &run.origins },
        device: run.devices(),
        threads: run.threads,
        images: files.pictures.iter().map(|(path, seed)| ImageReport { path, seed: *seed }).collect(),
        films: files.films.iter().map(FilmReport::new).collect(),
        latents: files.latents.as_ref(),
        trace: files.trace.as_ref(),
        previews: &files.previews,
        parameters: run.parameters(),
        computed: Computed::of(run.computed),
        flagged: run.flagged,
        seconds: clock.seconds(),
        memory,
        plan: PlanReport::new(&generated.plan, run.devices),
        warnings: printer.warnings(),
    })
}

fn summarize(printer: &Printer, run: &Run<'_>, memory: &Memory<'_>, clock: &Clock) {
    let Settings { steps, seed, .. } = *run.settings;
    let Settings { width, height, .. } = *run.settings.last();
    let [device, mapped] = [memory.device_peak_bytes, memory.mapped_bytes].map(|bytes| units::bytes(bytes as u64));
    let total = units::time(clock.start.elapsed());
    let steps = units::counted(steps, "step");
    let frames = match run.settings.fps {
        Some(fps) => format!(", {} at {fps} a second", units::counted(run.settings.frames, "frame")),
        None => String::new(),
    };
    let origin = if run.args.noise.is_some() { "given noise".to_owned() } else { format!("seed {seed}") };
    printer.note(&format!("{origin}, {width}x{height}{frames}, {steps}, {total} in all"));
    if let Some(cache) = run.settings.cache {
        let all: usize = run.computed.iter().map(Vec::len).sum();
        printer.note(&format!("{cache} skipped {} of {}", skipped(run.computed), units::counted(all, "evaluation")));
    }
    match &memory.devices[..] {
        [] => printer.note(&format!("{} held {device} at most; {mapped} of weights stayed in the file", run.devices())),
        devices => {
            for DeviceReport { device, device_peak_bytes, .. } in devices {
                printer.note(&format!("{device} held {} at most", units::bytes(*device_peak_bytes as u64)));
            }
            printer.note(&format!("{mapped} of weights stayed in the file"));
        }
    }
}
