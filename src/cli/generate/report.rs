//! What `generate` says when it is done: on stdout, on stderr, and inside the pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pinhole::entries::Entries;
use pinhole::ggml::{AttentionMode, Device};
use pinhole::image::{Thresholds, parameters_text};
use pinhole::memory::PeakMemory;
use pinhole::pipeline::{
    ControlSettings, Generated, JoinedSettings, Origin, Phase, PhaseMemory, Preprocess, Settings, Timings, TinyUse,
    model_name, named_parts, skipped, skipped_in_words,
};
use serde::Serialize;

use super::Args;
use super::films::WrittenFilm;
use super::names::PngText;
use super::outputs::Written;
use crate::cli::failure::Failure;
use crate::cli::lora::{Lora, Weighted};
use crate::cli::plan::PlanReport;
use crate::cli::printer::Printer;
use crate::cli::step_cache::{CacheReport, Computed};
use crate::cli::units;
use crate::cli::{stable_diffusion, video};

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
    pub(super) device: Device,
    pub(super) threads: usize,
}

/// The settings in JSON, in reports and in pictures.
#[derive(Serialize)]
struct Parameters<'a> {
    prompt: &'a str,
    negative_prompt: Option<&'a str>,
    width: usize,
    height: usize,
    steps: usize,
    guidance: Option<f32>,
    cfg_scale: f32,
    sampler: &'static str,
    schedule: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigmas: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shift: Option<f32>,
    #[serde(skip_serializing_if = "is_zero")]
    rescale_cfg: f32,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    loras: &'a [Lora],
    #[serde(flatten)]
    stable_diffusion: stable_diffusion::Parameters<'a>,
    #[serde(flatten)]
    video: video::Parameters<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clip_skip: Option<usize>,
    /// The file of `--image`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    image: Option<&'a PathBuf>,
    /// The files of `--reference`.
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "units::paths")]
    references: &'a [PathBuf],
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_cond_t: Option<bool>,
    /// The file of `--control-image`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    control_image: Option<&'a PathBuf>,
    /// The ControlNets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    controls: Vec<ControlParameters<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    control_guess: bool,
    /// The files of `--id-embedding` and `--id-projector`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    id_embedding: Option<&'a PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    id_projector: Option<&'a PathBuf>,
    /// What was made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    control_preprocess: Option<&'static str>,
    /// The lower and the upper threshold of its edges.
    #[serde(skip_serializing_if = "Option::is_none")]
    canny_thresholds: Option<[f32; 2]>,
    /// How closely the result follows the picture that is changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_cfg_scale: Option<f32>,
    /// The file of `--mask`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    mask: Option<&'a PathBuf>,
    /// The file of `--redux`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    redux: Option<&'a PathBuf>,
    /// The pictures of `--redux-image`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    redux_images: &'a [Weighted],
    /// The file of `--ip-adapter`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    ip_adapter: Option<&'a PathBuf>,
    /// The files of `--ip-image`.
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "units::paths")]
    ip_images: &'a [PathBuf],
    /// How much these count.
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_scale: Option<f32>,
    /// The files of `--image-encoder`.
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "units::paths")]
    image_encoders: &'a [PathBuf],
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    posterior: Option<&'static str>,
    /// What a tiny autoencoder was used for.
    #[serde(skip_serializing_if = "Option::is_none")]
    tiny_vae: Option<&'static str>,
    /// What becomes of pictures that the safety checker flags, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    safety: Option<&'static str>,
    /// The file of `--upscaler`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    upscaler: Option<&'a PathBuf>,
    max_sequence_length: usize,
    /// The file of `--noise`.
    #[serde(serialize_with = "units::path_if_any")]
    noise: Option<&'a PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CacheReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<&'static str>,
}

/// A ControlNet in JSON.
#[derive(Serialize)]
struct ControlParameters<'a> {
    /// The file of `--control`.
    #[serde(serialize_with = "units::path")]
    control: &'a PathBuf,
    /// The file of its `--control-image`.
    #[serde(serialize_with = "units::path_if_any")]
    image: Option<&'a PathBuf>,
    scale: f32,
    start: f64,
    end: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<usize>,
    /// What was made of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    preprocess: Option<&'static str>,
    /// The lower and the upper threshold of its edges.
    #[serde(skip_serializing_if = "Option::is_none")]
    canny_thresholds: Option<[f32; 2]>,
    /// The pictures that it follows besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    more: Vec<JoinedParameters<'a>>,
}

/// One picture more that a ControlNet follows.
#[derive(Serialize)]
struct JoinedParameters<'a> {
    /// The file of its `--control-image`.
    #[serde(serialize_with = "units::path")]
    image: &'a PathBuf,
    scale: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<usize>,
    /// What was made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    preprocess: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canny_thresholds: Option<[f32; 2]>,
}

impl<'a> JoinedParameters<'a> {
    fn new((settings, image): (&JoinedSettings, &'a PathBuf)) -> JoinedParameters<'a> {
        let JoinedSettings { scale, mode, preprocess, .. } = *settings;
        let made = (preprocess != Preprocess::None).then(|| preprocess.name());
        JoinedParameters { image, scale, mode, preprocess: made, canny_thresholds: thresholds(preprocess) }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_zero(number: &f32) -> bool {
    *number == 0.0
}

/// The thresholds of edges, if these are made of a picture.
fn thresholds(preprocess: Preprocess) -> Option<[f32; 2]> {
    match preprocess {
        Preprocess::None | Preprocess::Inpaint => None,
        Preprocess::Canny(Thresholds { low, high }) => Some([low, high]),
    }
}

impl Run<'_> {
    fn parameters(&self) -> Parameters<'_> {
        let Settings { width, height, steps, guidance, cfg_scale, rescale_cfg, strength, max_sequence_length, .. } =
            *self.settings;
        let sampling = &self.settings.sampling;
        let thresholds = thresholds(self.settings.control_preprocess);
        Parameters {
            prompt: self.args.prompt.as_deref().unwrap_or_default(),
            negative_prompt: self.settings.negative_prompt.as_deref(),
            width,
            height,
            steps,
            guidance,
            cfg_scale,
            sampler: sampling.sampler.name(),
            schedule: sampling.schedule.name(),
            sigmas: sampling.sigmas.as_deref(),
            eta: sampling.eta,
            shift: sampling.shift,
            rescale_cfg,
            loras: &self.args.request.loras,
            stable_diffusion: self.args.request.stable_diffusion.parameters(self.settings),
            video: self.args.request.video.parameters(self.settings),
            clip_skip: self.args.request.clip_skip,
            image: self.args.request.image.as_ref(),
            references: &self.args.request.references,
            zero_cond_t: self.args.request.zero_cond_t,
            control_image: self.args.request.control.image.as_ref(),
            controls: self.controls(),
            control_guess: self.settings.control_guess,
            id_embedding: self.args.request.id_embedding.as_ref(),
            id_projector: self.args.request.id_projector.as_ref(),
            control_preprocess: thresholds.map(|_| self.settings.control_preprocess.name()),
            canny_thresholds: thresholds,
            image_cfg_scale: self.settings.image_cfg_scale,
            mask: self.args.request.mask.as_ref(),
            redux: self.args.request.redux.as_ref(),
            redux_images: &self.args.request.redux_images,
            ip_adapter: self.args.request.ip_adapter.as_ref(),
            ip_images: &self.args.request.ip_images,
            ip_scale: (self.settings.ip_images > 0).then_some(self.settings.ip_scale),
            image_encoders: &self.args.request.image_encoders,
            strength,
            posterior: (self.settings.encoded_pictures > 0 && !self.settings.tiny_encodes)
                .then(|| self.args.request.posterior.name()),
            tiny_vae: self.settings.tiny_vae.map(TinyUse::name),
            safety: (!self.flagged.is_empty()).then(|| self.settings.safety.name()),
            upscaler: self.args.request.upscaler.as_ref(),
            max_sequence_length,
            noise: self.args.noise.as_ref(),
            cache: self.settings.cache.map(CacheReport::new),
            attention: (self.settings.attention != AttentionMode::default()).then(|| self.settings.attention.name()),
        }
    }

    fn controls(&self) -> Vec<ControlParameters<'_>> {
        let mut all = Vec::new();
        for (net, settings) in self.args.request.control.nets.iter().zip(&self.settings.controls) {
            let ControlSettings { scale, start, end, mode, preprocess, .. } = *settings;
            let thresholds = thresholds(preprocess);
            let others = settings.more.iter().zip(net.images.iter().skip(1));
            all.push(ControlParameters {
                control: &net.path,
                image: net.images.first(),
                more: others.map(JoinedParameters::new).collect(),
                scale,
                start,
                end,
                mode,
                preprocess: (preprocess != Preprocess::None).then(|| preprocess.name()),
                canny_thresholds: thresholds,
            });
        }
        all
    }

    /// The texts inside picture `index`, that of `seed`.
    pub(super) fn png_text(&self, index: usize, seed: u64) -> PngText {
        let flagged = self.flagged.get(index).copied();
        let parameters = self.parameters();
        let model = model_name(self.args.model_name());
        let noise = parameters.noise.map(|noise| noise.display().to_string());
        let mut pairs = self.settings.named(seed, noise.as_deref());
        pairs.extend(skipped_in_words(self.computed).map(|numbers| ("Skipped evaluations", numbers)));
        pairs.extend(flagged.map(|flagged| ("Safety checker", self.settings.safety.described(flagged).to_owned())));
        pairs.extend(parameters.upscaler.map(|path| ("Hires upscaler", model_name(path))));
        pairs.extend(named_parts(model.clone(), &self.origins));
        pairs.push(("Version", concat!("pinhole ", env!("CARGO_PKG_VERSION")).to_owned()));
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();

        #[derive(Serialize)]
        struct Inside<'a> {
            version: &'static str,
            model: &'a str,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            parts: &'a [Origin],
            seed: u64,
            #[serde(flatten)]
            parameters: &'a Parameters<'a>,
            #[serde(skip_serializing_if = "Option::is_none")]
            computed: Option<Computed<'a>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            flagged: Option<bool>,
        }
        let (version, computed) = (env!("CARGO_PKG_VERSION"), Computed::of(self.computed));
        let inside =
            Inside { version, model: &model, parts: &self.origins, seed, parameters: &parameters, computed, flagged };
        PngText {
            parameters: parameters_text(parameters.prompt, parameters.negative_prompt, &pairs),
            // Numbers and texts alone: JSON has all of them.
            json: serde_json::to_string(&inside).unwrap_or_default(),
        }
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
}

impl PhaseReport {
    fn new(phase: &PhaseMemory) -> PhaseReport {
        PhaseReport {
            planned_peak_bytes: phase.planned,
            measured_peak_bytes: phase.measured.peak,
            allocated_peak_bytes: phase.allocated,
            moved_bytes: phase.moved,
            waited_seconds: phase.waited.as_secs_f64(),
        }
    }
}

#[derive(Serialize)]
struct Memory<'a> {
    /// The most that pinhole held on the device at once.
    device_peak_bytes: usize,
    /// What that consisted of, by purpose.
    device_bytes: &'a BTreeMap<&'static str, usize>,
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

/// What a phase is called, with the number of its pass if that is the second.
fn phase_name(phase: &PhaseMemory) -> String {
    let name = phase.phase.name();
    if phase.second { format!("{name}_2") } else { name.to_owned() }
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
        phases: generated.phases.iter().map(|phase| (phase_name(phase), PhaseReport::new(phase))).collect(),
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
        device: run.device.name(),
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
        plan: PlanReport::new(&generated.plan),
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
    printer.note(&format!("{} held {device} at most; {mapped} of weights stayed in the file", run.device.name()));
}
