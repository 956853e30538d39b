//! One picture by stable-diffusion.cpp.

use std::path::PathBuf;

use anyhow::Result;
use diffusion_rs::api::{ConfigBuilder, ModelConfigBuilder, SampleMethod, gen_img};

use crate::process::Phase;
use crate::said;

/// Of the hidden subcommand.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    transformer: PathBuf,
    #[arg(long)]
    clip: PathBuf,
    #[arg(long)]
    vae: PathBuf,
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
    let mut model = ModelConfigBuilder::default()
        .diffusion_model(args.transformer.clone())
        .clip_l(args.clip.clone())
        .vae(args.vae.clone())
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
        // No second pass: FLUX.1-dev takes guidance as an input.
        .cfg_scale(1.0)
        .guidance(3.5)
        .seed(1)
        .build()?;
    Ok(gen_img(&request, &mut model)?)
}
