//! One picture by stable-diffusion.cpp.

use std::path::PathBuf;

use anyhow::Result;
use diffusion_rs::api::{ConfigBuilder, ModelConfigBuilder, SampleMethod, gen_img};

use crate::process::Phase;
use crate::said;

/// Of the hidden subcommand.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A whole model
    #[arg(long, conflicts_with_all = ["transformer", "clip", "llm", "vae"])]
    checkpoint: Option<PathBuf>,
    #[arg(long, required_unless_present = "checkpoint")]
    transformer: Option<PathBuf>,
    #[arg(long)]
    clip: Option<PathBuf>,
    #[arg(long)]
    llm: Option<PathBuf>,
    #[arg(long, required_unless_present = "checkpoint")]
    vae: Option<PathBuf>,
    #[arg(long)]
    output: PathBuf,
    #[arg(long)]
    width: u16,
    #[arg(long)]
    height: u16,
    #[arg(long)]
    steps: u16,
    #[arg(long)]
    threads: u16,
    /// Above 1, each step has a second pass
    #[arg(long)]
    cfg_scale: f32,
    /// Weights are read into memory, not mapped
    #[arg(long)]
    read: bool,
    /// Convolutions of the autoencoder without im2col
    #[arg(long)]
    direct: bool,
}

/// In its log.
pub(crate) const DENOISE: Phase = Phase { begin: "generating image: 1/1", end: "sampling completed" };

/// In its log.
pub(crate) const DECODE: Phase = Phase { begin: "decoding 1 latents", end: "decode_first_stage completed" };

/// What the line begins with that says what it was compiled with.
pub(crate) const SYSTEM: &str = "System Info:";

/// Draws, and says on stderr what is done.
pub(crate) fn run(args: &Args) -> Result<()> {
    said::listen();
    eprintln!("{}", said::system());
    let mut model = ModelConfigBuilder::default();
    if let Some(path) = &args.checkpoint {
        model.model(path.clone());
    }
    if let Some(path) = &args.transformer {
        model.diffusion_model(path.clone());
    }
    if let Some(path) = &args.clip {
        model.clip_l(path.clone());
    }
    if let Some(path) = &args.llm {
        model.llm(path.clone());
    }
    if let Some(path) = &args.vae {
        model.vae(path.clone());
    }
    let mut model = model
        .n_threads(args.threads.into())
        .diffusion_flash_attention(true)
        .flash_attention(true)
        .vae_conv_direct(args.direct)
        .enable_mmap(!args.read)
        // No cutting of graphs into segments, which is for cards.
        .max_vram(0.0)
        .build()?;
    let request = ConfigBuilder::default()
        .prompt("a lighthouse at dusk")
        .output(args.output.clone())
        .width(i32::from(args.width))
        .height(i32::from(args.height))
        .steps(i32::from(args.steps))
        .sampling_method(SampleMethod::EULER_SAMPLE_METHOD)
        .cfg_scale(args.cfg_scale)
        .guidance(3.5)
        .seed(1)
        .build()?;
    Ok(gen_img(&request, &mut model)?)
}
