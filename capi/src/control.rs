//! `pinhole_control`: how a ControlNet follows its picture.

use std::ffi::c_char;
use std::mem::{offset_of, size_of};
use std::ptr;
use std::sync::Arc;

use pinhole::Error as E;
use pinhole::image::{Picture, Thresholds};
use pinhole::pipeline::{self, Preprocess};

use crate::error::Failure;
use crate::options::{self, versioned};
use crate::text;

/// `pinhole_control`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct Control {
    pub struct_size: usize,
    pub start: f64,
    pub end: f64,
    pub scale: f32,
    pub preprocess: i32,
    pub mode: *const c_char,
    pub canny_low: f32,
    pub canny_high: f32,
    pub joins: i32,
    pub reserved: i32,
}

const DEFAULT: Control = Control {
    struct_size: size_of::<Control>(),
    start: 0.0,
    end: 1.0,
    scale: 1.0,
    preprocess: 0,
    mode: ptr::null(),
    canny_low: 0.0,
    canny_high: 0.0,
    joins: 0,
    reserved: 0,
};
versioned!(Control, "pinhole_control", offset_of!(Control, joins), DEFAULT);

/// The pictures of a request that are followed.
#[derive(Default)]
pub(crate) struct Followed {
    /// Of a request without ControlNets.
    pub(crate) image: Option<Arc<Picture>>,
    /// Of each ControlNet.
    pub(crate) controls: Vec<pipeline::Control>,
}

impl Followed {
    /// What `count` structs at `controls` say of `pictures`.
    ///
    /// # Safety
    /// The header's contract for `controls` and all that it points to.
    pub(crate) unsafe fn read(
        pictures: Vec<Arc<Picture>>,
        controls: *const *const Control,
        count: usize,
    ) -> Result<Followed, Failure> {
        if controls.is_null() && count > 0 {
            return Err(Failure::null("controls"));
        }
        let mut pictures = pictures.into_iter();
        if count == 0 && pictures.len() == 1 {
            return Ok(Followed { image: pictures.next(), ..Followed::default() });
        }
        if count != 0 && count != pictures.len() {
            let message = format!("controls: expected one for each picture, {}, found {count}", pictures.len());
            return Err(Failure::argument(message, "give as many inputs with use PINHOLE_INPUT_CONTROL"));
        }
        let mut followed = Followed::default();
        for (i, picture) in pictures.enumerate() {
            let control = pipeline::Control::new(picture);
            if count == 0 {
                followed.controls.push(control);
                continue;
            }
            // SAFETY: the caller promises `count` pointers, each of them to a struct.
            let given = unsafe { options::read(*controls.add(i)) }?;
            // SAFETY: the caller's promise for what the struct points to.
            let mode = unsafe { text::optional(given.mode, "mode") }?.map(str::to_owned);
            let Control { start, end, scale, canny_low, canny_high, .. } = given;
            let preprocess = preprocess(given.preprocess, canny_low, canny_high)?;
            let joins = given.joins != 0;
            if joins && i == 0 {
                let hint = "set it for the pictures behind the first of a ControlNet";
                return Err(Failure::argument("controls: the first joins no other".to_owned(), hint));
            }
            followed.controls.push(pipeline::Control { start, end, scale, mode, preprocess, joins, ..control });
        }
        Ok(followed)
    }
}

/// Thresholds that are both 0, as in a struct of zeros, are the usual ones.
pub(crate) fn preprocess(given: i32, low: f32, high: f32) -> Result<Preprocess, Failure> {
    match given {
        0 => Ok(Preprocess::None),
        1 if low == 0.0 && high == 0.0 => Ok(Preprocess::Canny(Thresholds::default())),
        1 => Ok(Preprocess::Canny(Thresholds { low, high })),
        2 => Ok(Preprocess::Inpaint),
        _ => {
            let expected = "PINHOLE_CONTROL_PREPROCESS_NONE (0), PINHOLE_CONTROL_PREPROCESS_CANNY (1) or \
                            PINHOLE_CONTROL_PREPROCESS_INPAINT (2)";
            Err(E::option("--control-preprocess", expected, given.to_string()).into())
        }
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_control_init(control: *mut Control, struct_size: usize) -> i32 {
    // SAFETY: the header's contract.
    unsafe { options::init(control, struct_size) }
}
