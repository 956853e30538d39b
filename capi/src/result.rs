//! `pinhole_result`: what a request gave.

use std::ffi::c_char;
use std::mem::{offset_of, size_of};
use std::path::Path;

use pinhole::pipeline::{Generated, Phase, Request, skipped};
use pinhole::video::{Film, Rate, Shape};

use crate::error::{Error, Failure};
use crate::image::Image;
use crate::made::Made;
use crate::options::{self, versioned};
use crate::{entry, handle, text};

/// `pinhole_result`
pub struct Outcome {
    images: Vec<Image>,
    generated: Generated,
}

/// `pinhole_result_info`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct ResultInfo {
    pub struct_size: usize,
    pub seed: u64,
    pub width: i32,
    pub height: i32,
    pub steps: i32,
    pub batch: i32,
    pub guidance: f32,
    pub cfg_scale: f32,
    pub max_sequence_length: i32,
    pub reserved: i32,
    pub peak_bytes: u64,
    pub planned_peak_bytes: u64,
    pub bytes_moved: u64,
    pub bytes_mapped: u64,
    pub seconds_encode: f64,
    pub seconds_denoise: f64,
    pub seconds_decode: f64,
    pub frames: i32,
    pub fps: f32,
}

const NOTHING: ResultInfo = ResultInfo {
    struct_size: 0,
    seed: 0,
    width: 0,
    height: 0,
    steps: 0,
    batch: 0,
    guidance: 0.0,
    cfg_scale: 0.0,
    max_sequence_length: 0,
    reserved: 0,
    peak_bytes: 0,
    planned_peak_bytes: 0,
    bytes_moved: 0,
    bytes_mapped: 0,
    seconds_encode: 0.0,
    seconds_denoise: 0.0,
    seconds_decode: 0.0,
    frames: 0,
    fps: 0.0,
};
versioned!(ResultInfo, "pinhole_result_info", offset_of!(ResultInfo, frames), NOTHING);

/// `pinhole_result_device`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct ResultDevice {
    pub struct_size: usize,
    pub name: [c_char; 32],
    pub limit_bytes: u64,
    pub planned_peak_bytes: u64,
    pub peak_bytes: u64,
}

const NO_DEVICE: ResultDevice =
    ResultDevice { struct_size: 0, name: [0; 32], limit_bytes: 0, planned_peak_bytes: 0, peak_bytes: 0 };
versioned!(ResultDevice, "pinhole_result_device", size_of::<ResultDevice>(), NO_DEVICE);

impl Outcome {
    /// What `request` gave, of the model that `made` it.
    pub(crate) fn new(mut generated: Generated, request: &Request, made: &Made) -> Outcome {
        let pictures = std::mem::take(&mut generated.images);
        let mut images = Vec::with_capacity(pictures.len());
        for (index, image) in pictures.into_iter().enumerate() {
            images.push(Image::new(image, made.texts(request, index, &generated)));
        }
        Outcome { images, generated }
    }

    /// Writes film `index` of the batch.
    fn write_film(&self, index: usize, path: &Path) -> Result<(), Failure> {
        let settings = &self.generated.settings;
        let Some(fps) = settings.fps else {
            let hint = "this model makes pictures: pinhole_image_write_png writes one";
            return Err(Failure::argument("result: expected films, found pictures".to_owned(), hint));
        };
        let frames = settings.frames;
        let film = self.images.chunks(frames).nth(index).filter(|film| film.len() == frames);
        let Some(images) = film else {
            return Err(Failure::argument(format!("index: expected less than {}, found {index}", settings.batch), ""));
        };
        let rate = Rate::of(fps.into());
        let rate = rate.ok_or_else(|| pinhole::Error::option("fps", "more than 0, at most 1000", fps.to_string()))?;
        let (width, height) = (images[0].picture().width(), images[0].picture().height());
        let mut film = Film::create(path, Shape { width, height, frames, rate })?;
        film.set_text(&images[0].chunks());
        for image in images {
            film.push(image.picture())?;
        }
        film.finish()?;
        Ok(())
    }

    fn info(&self) -> ResultInfo {
        let Generated { settings, memory, plan, phases, mapped_bytes, .. } = &self.generated;
        let seconds = |phase| self.generated.time(phase).as_secs_f64();
        ResultInfo {
            seed: settings.seed,
            width: settings.last().width as i32,
            height: settings.last().height as i32,
            steps: settings.steps as i32,
            batch: settings.batch as i32,
            guidance: settings.guidance.unwrap_or_default(),
            cfg_scale: settings.cfg_scale,
            max_sequence_length: settings.max_sequence_length as i32,
            peak_bytes: memory.peak as u64,
            planned_peak_bytes: plan.peak() as u64,
            bytes_moved: phases.iter().map(|phase| phase.moved).sum(),
            bytes_mapped: *mapped_bytes as u64,
            seconds_encode: seconds(Phase::Encode),
            seconds_denoise: seconds(Phase::Denoise),
            seconds_decode: seconds(Phase::Decode),
            frames: settings.frames as i32,
            fps: settings.fps.unwrap_or_default(),
            ..NOTHING
        }
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_get_info(
    result: *const Outcome,
    info: *mut ResultInfo,
    error: *mut *mut Error,
) -> i32 {
    // SAFETY: the header's contract.
    unsafe { entry::call(error, || options::write(info, handle::get(result, "result")?.info())) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_get_device(
    result: *const Outcome,
    index: usize,
    out: *mut ResultDevice,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let devices = &unsafe { handle::get(result, "result") }?.generated.devices;
        let Some(held) = devices.get(index) else {
            return Err(Failure::argument(format!("index: expected less than {}, found {index}", devices.len()), ""));
        };
        let device = ResultDevice {
            name: text::fixed(&held.device),
            limit_bytes: held.limit.unwrap_or(0) as u64,
            planned_peak_bytes: held.planned as u64,
            peak_bytes: held.measured.peak as u64,
            ..NO_DEVICE
        };
        // SAFETY: the header's contract.
        unsafe { options::write(out, device) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_image_count(result: *const Outcome) -> usize {
    // SAFETY: the header's contract.
    unsafe { result.as_ref() }.map_or(0, |result| result.images.len())
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_image(result: *const Outcome, index: usize) -> *const Image {
    // SAFETY: the header's contract.
    let image = unsafe { result.as_ref() }.and_then(|result| result.images.get(index));
    image.map_or(std::ptr::null(), std::ptr::from_ref)
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_latents(result: *const Outcome, extents: *mut [usize; 4]) -> *const f32 {
    // SAFETY: the header's contract.
    let (Some(result), extents) = (unsafe { result.as_ref() }, unsafe { extents.as_mut() }) else {
        return std::ptr::null();
    };
    if let Some(extents) = extents {
        // The pipeline's are in ggml's order, fastest first. The frames of a channel are channels here.
        let [w, h, frames, channels, batch] = result.generated.latent_dims;
        *extents = [batch, channels * frames, h, w];
    }
    result.generated.latents.as_ptr()
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_write_film(
    result: *const Outcome,
    index: usize,
    path: *const c_char,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let (result, path) = unsafe { (handle::get(result, "result")?, Path::new(text::required(path, "path")?)) };
        result.write_film(index, path)
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_skipped(result: *const Outcome) -> usize {
    // SAFETY: the header's contract.
    unsafe { result.as_ref() }.map_or(0, |result| skipped(&result.generated.computed))
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_flagged(result: *const Outcome, index: usize) -> i32 {
    // SAFETY: the header's contract.
    let verdict = unsafe { result.as_ref() }.and_then(|result| result.generated.verdicts.get(index));
    verdict.map_or(-1, |verdict| i32::from(verdict.flagged))
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_result_free(result: *mut Outcome) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(result) });
}
