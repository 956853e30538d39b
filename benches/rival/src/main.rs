//! pinhole and stable-diffusion.cpp draw with the same weights, in turn, each in a process of its own: time of a step, time
//! of a decode, and peak memory, side by side. README.md says how it is run and what is compared.

mod contest;
mod draw;
mod film;
mod gguf;
mod models;
mod process;
mod report;
mod said;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

/// A model that both draw with.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Arch {
    /// FLUX.1-dev, with as many blocks as --double and --single say
    #[value(name = "flux-dev")]
    Flux,
    /// Stable Diffusion 1.5, whole, with classifier-free guidance
    #[value(name = "sd1.5")]
    Sd,
    /// Stable Diffusion XL, whole, with classifier-free guidance
    #[value(name = "sdxl")]
    SdXl,
    /// Z-Image-Turbo, with as many layers as --layers says
    #[value(name = "z-image")]
    ZImage,
    /// Wan 2.1 of 1.3 billion parameters, whole, films of --frames frames
    #[value(name = "wan-1.3b")]
    Wan,
}

/// What each of two draws: the model, and the picture.
#[derive(clap::Args, Clone, Debug, serde::Serialize)]
struct Work {
    /// The model
    #[arg(long, value_name = "NAME", default_value = "flux-dev")]
    arch: Arch,
    /// Double blocks of the transformer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=19))]
    double: u16,
    /// Single blocks of the transformer
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=38))]
    single: u16,
    /// Layers of Z-Image, beside its refiners
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=30))]
    layers: u16,
    /// Pixels across, a multiple of 16
    #[arg(long, value_name = "W", default_value_t = 512)]
    width: u16,
    /// Pixels down, a multiple of 16
    #[arg(long, value_name = "H", default_value_t = 512)]
    height: u16,
    /// Frames of a film, one more than a multiple of 4
    #[arg(long, value_name = "N", default_value_t = 17, value_parser = clap::value_parser!(u16).range(1..))]
    frames: u16,
    /// Steps of a picture
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Threads of each [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<u16>,
    /// What pinhole may allocate, as for its `generate`: stable-diffusion.cpp has no such ceiling on the CPU
    #[arg(long, value_name = "SIZE")]
    vram: Option<String>,
    /// What pinhole may have of the host's memory, mapped files among it
    #[arg(long, value_name = "SIZE")]
    host_memory: Option<String>,
}

/// Measure pinhole beside stable-diffusion.cpp, on the CPU
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    work: Work,
    /// The program `pinhole` [default: what `cargo build --release` left in pinhole's own target directory]
    #[arg(long, value_name = "PATH")]
    pinhole: Option<PathBuf>,
    /// Types of the denoiser
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', default_value = "q4_k_s,q6_k,q8_0,q4_1")]
    types: Vec<String>,
    /// Times that each draws with each type
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Where models are made, about 10 GB [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Leave the models there, and use them again
    #[arg(long, requires = "cache")]
    keep: bool,
    /// Stop before the decode: nothing is measured of it, and memory is the denoiser's
    #[arg(long)]
    steps_only: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// One run of stable-diffusion.cpp, in this process
    #[command(hide = true)]
    Draw(draw::Args),
    /// One run of stable-diffusion.cpp that makes a film, in this process
    #[command(hide = true)]
    Film(film::Args),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Some(Command::Draw(args)) => draw::run(args),
        Some(Command::Film(args)) => film::run(args),
        None => contest::run(&cli),
    }
}
