//! Making pictures larger.

use std::ffi::{c_char, c_void};
use std::mem::size_of;
use std::path::Path;
use std::ptr;

use pinhole::ggml::Device;
use pinhole::pipeline::{MemoryOptions, PictureTexts, UpscaleModel, Upscaler};

use crate::cancel::{self, Cancel};
use crate::error::{Error, Failure};
use crate::image::Image;
use crate::input::Input;
use crate::options::{self, versioned};
use crate::progress::{Callbacks, ProgressFn, WarningFn, Watch};
use crate::{entry, handle, session, text};

/// `pinhole_upscale_options`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, private_interfaces, reason = "the header says what they are")]
pub struct UpscaleOptions {
    pub struct_size: usize,
    pub model: *const c_char,
    pub input: *const Input,
    pub outscale: f64,
    pub device: *const c_char,
    pub vram: u64,
    pub host_memory: u64,
    pub offload: i32,
    pub threads: i32,
    pub cancel: *mut Cancel,
    pub progress: ProgressFn,
    pub warning: WarningFn,
    pub user_data: *mut c_void,
}

const DEFAULT: UpscaleOptions = UpscaleOptions {
    struct_size: size_of::<UpscaleOptions>(),
    model: ptr::null(),
    input: ptr::null(),
    outscale: 0.0,
    device: ptr::null(),
    vram: 0,
    host_memory: 0,
    offload: 0,
    threads: 0,
    cancel: ptr::null_mut(),
    progress: None,
    warning: None,
    user_data: ptr::null_mut(),
};
versioned!(UpscaleOptions, "pinhole_upscale_options", size_of::<UpscaleOptions>(), DEFAULT);

impl UpscaleOptions {
    /// # Safety
    /// The header's contract for every member.
    unsafe fn run(&self) -> Result<Image, Failure> {
        // SAFETY: the caller's promise.
        let (path, device, picture, cancel) = unsafe {
            let path = Path::new(text::required(self.model, "model")?);
            let device = text::optional(self.device, "device")?.unwrap_or("auto");
            let picture = options::read(self.input)?.picture("input")?;
            (path, device, picture, cancel::flag(self.cancel))
        };
        let memory = MemoryOptions {
            vram: session::budget(self.vram),
            offload: session::offload(self.offload)?,
            host: session::budget(self.host_memory),
        };
        let (device, threads) = (Device::by_name(device)?, session::threads(self.threads)?);
        let callbacks = Callbacks::without_pictures(self.progress, self.warning, self.user_data);
        let mut watch = Watch::new(callbacks, cancel.clone());
        for note in picture.notes() {
            watch.warn(note.clone())?;
        }
        let mut upscaler = Upscaler::with_threads(UpscaleModel::open(path)?, device, threads, cancel)?;
        upscaler.set_memory(memory);
        // As with other members, a struct of zeros asks for nothing.
        let outscale = (self.outscale != 0.0).then_some(self.outscale);
        let upscaled = upscaler.upscale_watched(picture.image(), outscale, &mut watch)?;
        Ok(Image::new(upscaled.image, PictureTexts::default()))
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_upscale_options_init(options: *mut UpscaleOptions, struct_size: usize) -> i32 {
    // SAFETY: the header's contract.
    unsafe { options::init(options, struct_size) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_upscale(
    options: *const UpscaleOptions,
    out: *mut *mut Image,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        unsafe {
            handle::clear(out, "out")?;
            handle::give(out, options::read(options)?.run()?)
        }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_image_free(image: *mut Image) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(image) });
}
