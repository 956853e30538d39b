//! One film by stable-diffusion.cpp, through its own C interface: `diffusion-rs` makes pictures only.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use anyhow::{Result, ensure};
use diffusion_rs_sys::{
    free_sd_ctx, generate_video, new_sd_ctx, sample_method_t, sd_ctx_params_init, sd_ctx_params_t, sd_image_t,
    sd_vid_gen_params_init, sd_vid_gen_params_t,
};

use crate::process::Phase;
use crate::said;

/// Of the hidden subcommand.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    transformer: PathBuf,
    #[arg(long)]
    vae: PathBuf,
    /// Taken, and not written: a film has no file here
    #[arg(long)]
    output: PathBuf,
    #[arg(long)]
    width: u16,
    #[arg(long)]
    height: u16,
    #[arg(long)]
    frames: u16,
    #[arg(long)]
    steps: u16,
    #[arg(long)]
    threads: u16,
}

/// In its log.
pub(crate) const DENOISE: Phase = Phase { begin: "generate_video ", end: "sampling completed" };

/// In its log.
pub(crate) const DECODE: Phase = Phase { begin: "sampling completed", end: "decode_first_stage completed" };

/// Makes the film, and says on stderr what is done.
pub(crate) fn run(args: &Args) -> Result<()> {
    said::listen();
    eprintln!("{}", said::system());
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let (transformer, vae, prompt) = (text(&args.transformer)?, text(&args.vae)?, c"a lighthouse at dusk");
    // SAFETY: both are C structs of numbers and pointers, and zeros are values of these.
    let (mut model, mut request) =
        unsafe { (std::mem::zeroed::<sd_ctx_params_t>(), std::mem::zeroed::<sd_vid_gen_params_t>()) };
    // SAFETY: both point to structs that live through the calls.
    unsafe {
        sd_ctx_params_init(&mut model);
        sd_vid_gen_params_init(&mut request);
    }
    model.diffusion_model_path = transformer.as_ptr();
    model.vae_path = vae.as_ptr();
    model.n_threads = args.threads.into();
    model.flash_attn = true;
    model.diffusion_flash_attn = true;
    model.enable_mmap = true;
    model.max_vram = 0.0;
    request.prompt = prompt.as_ptr();
    request.negative_prompt = c"".as_ptr();
    request.width = args.width.into();
    request.height = args.height.into();
    request.video_frames = args.frames.into();
    request.seed = 1;
    request.sample_params.sample_method = sample_method_t::EULER_SAMPLE_METHOD;
    request.sample_params.sample_steps = args.steps.into();
    request.sample_params.guidance.txt_cfg = 1.0;
    // SAFETY: the texts that `model` points to live until the end of this function.
    let context = unsafe { new_sd_ctx(&model) };
    ensure!(!context.is_null(), "stable-diffusion.cpp does not take the model");
    let (mut frames, mut count): (*mut sd_image_t, i32) = (null_mut(), 0);
    // SAFETY: the context is a live one, and all that `request` points to lives until the end of this function. The frames that come
    // out are left to the end of the process.
    let made = unsafe { generate_video(context, &request, &mut frames, &mut count, null_mut()) };
    // SAFETY: nothing uses it afterwards.
    unsafe { free_sd_ctx(context) };
    ensure!(made && count > 0, "stable-diffusion.cpp makes no film");
    Ok(())
}
