//! Who draws when.
//!
//! In a round each of the two draws once with each type, and who begins changes from round to round. A step is the time in the
//! denoiser over the number of steps, and so holds a share of what is done once: weights that are mapped, graphs that are
//! built, and pinhole's modulation, which it computes ahead for all steps.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::draw;
use crate::film;
use crate::models::Models;
use crate::process::{self, Phase, Run};
use crate::report::{self, Report};
use crate::{Arch, Cli, Work};

/// What one of the two took in a round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) step_seconds: f64,
    /// Of all threads together.
    pub(crate) step_processor_seconds: f64,
    /// Where pictures are decoded.
    pub(crate) decode_seconds: Option<f64>,
    pub(crate) decode_processor_seconds: Option<f64>,
    pub(crate) peak_resident_bytes: f64,
    pub(crate) peak_anonymous_bytes: f64,
}

/// What both took in a round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) pinhole: Sample,
    pub(crate) rival: Sample,
}

/// pinhole says which phase has ended.
const DENOISE: Phase = Phase { begin: "encode ", end: "denoise " };
const DECODE: Phase = Phase { begin: "denoise ", end: "decode " };

/// The two, with what they need.
struct Contest<'a> {
    work: &'a Work,
    threads: u16,
    pinhole: &'a Path,
    /// This program, which draws with stable-diffusion.cpp.
    rival: PathBuf,
    picture: PathBuf,
    decodes: bool,
}

/// Measures, and prints.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/pinhole");
    let pinhole = cli.pinhole.as_deref().unwrap_or(&built);
    ensure!(pinhole.exists(), "{} is not there: `cargo build --release` makes it", pinhole.display());
    let temporary = tempfile::tempdir()?;
    let directory = cli.cache.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
    let cores = std::thread::available_parallelism()?.get();
    let threads = cli.work.threads.unwrap_or(u16::try_from(cores)?);
    let rival = std::env::current_exe()?;
    let name = if cli.work.arch == Arch::Wan { "film.y4m" } else { "picture.png" };
    let (picture, decodes) = (temporary.path().join(name), !cli.steps_only);
    let contest = Contest { work: &cli.work, threads, pinhole, rival, picture, decodes };
    let all = cli.types.iter().map(|file_type| Models::make(pinhole, directory, file_type, &cli.work));
    let all: Vec<Models> = all.collect::<Result<_>>()?;
    let mut report = Report::new(&cli.work, threads, &cli.types);
    for round in 0..cli.rounds {
        for (models, of_type) in all.iter().zip(&mut report.types) {
            let round = contest.round(models, round % 2 == 0, &mut report.system)?;
            eprintln!("{}: {}", of_type.file_type, serde_json::to_string(&round)?);
            of_type.rounds.push(round);
        }
    }
    if !cli.keep {
        all.iter().try_for_each(Models::remove)?;
    }
    report::print(&mut report, cli.json)
}

impl Contest<'_> {
    fn round(&self, models: &Models, pinhole_first: bool, system: &mut String) -> Result<Round> {
        // The first to begin shall find the files in the system's cache, too.
        for path in models.files() {
            io::copy(&mut File::open(path)?, &mut io::sink())?;
        }
        let mut rival = || {
            let (sample, compiled) = self.draw_with_rival(models)?;
            *system = compiled;
            Ok::<Sample, anyhow::Error>(sample)
        };
        Ok(if pinhole_first {
            Round { pinhole: self.draw_with_pinhole(models)?, rival: rival()? }
        } else {
            let rival = rival()?;
            Round { pinhole: self.draw_with_pinhole(models)?, rival }
        })
    }

    fn draw_with_pinhole(&self, models: &Models) -> Result<Sample> {
        let mut command = Command::new(self.pinhole);
        command.args(["generate", "--device", "cpu", "--seed", "1", "--prompt", "a lighthouse at dusk"]);
        // Z-Image counts from 0, as its publisher does: at 1, there would be a second pass.
        let scale = if self.work.arch == Arch::ZImage { "0" } else { self.cfg_scale() };
        command.args(["--sampler", "euler", "--cfg-scale", scale]);
        if self.work.arch == Arch::Flux {
            // As many tokens as stable-diffusion.cpp gives to FLUX.
            command.args(["--guidance", "3.5", "--max-sequence-length", "256"]);
        }
        if self.work.arch == Arch::Wan {
            command.args(["--frames", &self.work.frames.to_string()]);
        }
        for (option, limit) in [("--vram", &self.work.vram), ("--host-memory", &self.work.host_memory)] {
            if let Some(limit) = limit {
                command.args([option, limit]);
            }
        }
        let run = self.run(command.arg("--model").arg(&models.bundle), &DENOISE)?;
        self.sample(&run, &DENOISE, &DECODE)
    }

    fn draw_with_rival(&self, models: &Models) -> Result<(Sample, String)> {
        let mut command = Command::new(&self.rival);
        let is_film = self.work.arch == Arch::Wan;
        if is_film {
            command.args(["film", "--frames", &self.work.frames.to_string()]);
        } else {
            command.args(["draw", "--cfg-scale", self.cfg_scale()]);
        }
        for (option, path) in &models.rival {
            command.arg(option).arg(path);
        }
        let (denoise, decode) = if is_film { (&film::DENOISE, &film::DECODE) } else { (&draw::DENOISE, &draw::DECODE) };
        let run = self.run(&mut command, denoise)?;
        Ok((self.sample(&run, denoise, decode)?, run.text(draw::SYSTEM)?.to_owned()))
    }

    /// FLUX.1-dev takes guidance as an input, and so has no second pass, as Z-Image-Turbo. Wan's second pass is as long as the first.
    fn cfg_scale(&self) -> &'static str {
        match self.work.arch {
            Arch::Flux | Arch::ZImage | Arch::Wan => "1",
            Arch::Sd | Arch::SdXl => "7.5",
        }
    }

    fn sample(&self, run: &Run, denoise: &Phase, decode: &Phase) -> Result<Sample> {
        let (steps, denoised) = (f64::from(self.work.steps), run.took(denoise)?);
        let decoded = self.decodes.then(|| run.took(decode)).transpose()?;
        Ok(Sample {
            step_seconds: denoised.seconds / steps,
            step_processor_seconds: denoised.processor_seconds / steps,
            decode_seconds: decoded.as_ref().map(|took| took.seconds),
            decode_processor_seconds: decoded.as_ref().map(|took| took.processor_seconds),
            peak_resident_bytes: run.peak_resident as f64,
            peak_anonymous_bytes: run.peak_anonymous as f64,
        })
    }

    /// Runs `command` with the options that both have, to its end or that of `denoise`.
    fn run(&self, command: &mut Command, denoise: &Phase) -> Result<Run> {
        let Work { width, height, steps, .. } = *self.work;
        let numbers = [("--width", width), ("--height", height), ("--steps", steps), ("--threads", self.threads)];
        for (option, number) in numbers {
            command.arg(option).arg(number.to_string());
        }
        process::run(command.arg("--output").arg(&self.picture), (!self.decodes).then_some(denoise.end))
    }
}
