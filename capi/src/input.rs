//! `pinhole_input`: a picture that a request is given.

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::ptr;
use std::slice;
use std::sync::Arc;

use pinhole::Error as E;
use pinhole::ggml::CancelFlag;
use pinhole::image::{MAX_SIDE, Picture};

use crate::error::Failure;
use crate::options::{self, versioned};
use crate::text;

/// `pinhole_input`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct Input {
    pub struct_size: usize,
    pub use_: i32,
    pub reserved: i32,
    pub path: *const c_char,
    pub data: *const c_void,
    pub size: usize,
    pub pixels: *const u8,
    pub width: i32,
    pub height: i32,
    pub weight: f32,
    pub reserved_2: i32,
}

const DEFAULT: Input = Input {
    struct_size: size_of::<Input>(),
    use_: 0,
    reserved: 0,
    path: ptr::null(),
    data: ptr::null(),
    size: 0,
    pixels: ptr::null(),
    width: 0,
    height: 0,
    weight: 1.0,
    reserved_2: 0,
};
versioned!(Input, "pinhole_input", offset_of!(Input, weight), DEFAULT);

/// The pictures of a request, by what they are for.
#[derive(Default)]
pub(crate) struct Pictures {
    pub(crate) image: Option<Arc<Picture>>,
    pub(crate) mask: Option<Arc<Picture>>,
    pub(crate) controls: Vec<Arc<Picture>>,
    pub(crate) references: Vec<Arc<Picture>>,
    pub(crate) redux: Vec<(Arc<Picture>, f32)>,
    pub(crate) ip_images: Vec<Arc<Picture>>,
    pub(crate) last_image: Option<Arc<Picture>>,
}

impl Pictures {
    /// Reads `count` inputs, unless `cancel` is raised.
    ///
    /// # Safety
    /// The header's contract for `inputs` and all that it points to.
    pub(crate) unsafe fn read(
        inputs: *const *const Input,
        count: usize,
        cancel: &CancelFlag,
    ) -> Result<Pictures, Failure> {
        if inputs.is_null() && count > 0 {
            return Err(Failure::null("inputs"));
        }
        let mut pictures = Pictures::default();
        for i in 0..count {
            cancel.check()?;
            // SAFETY: the caller promises `count` pointers, each of them to a struct.
            let input = unsafe { options::read(*inputs.add(i)) }?;
            // SAFETY: the caller's promise for what the struct points to.
            let read = || unsafe { input.picture(&format!("inputs[{i}]")) }.map(Arc::new);
            let (place, name) = match input.use_ {
                0 => (&mut pictures.image, "PINHOLE_INPUT_IMAGE"),
                1 => (&mut pictures.mask, "PINHOLE_INPUT_MASK"),
                2 => {
                    pictures.controls.push(read()?);
                    continue;
                }
                3 => {
                    pictures.references.push(read()?);
                    continue;
                }
                4 => {
                    // A struct of zeros has no other weight than the usual one.
                    let weight = if input.weight == 0.0 { 1.0 } else { input.weight };
                    pictures.redux.push((read()?, weight));
                    continue;
                }
                5 => {
                    pictures.ip_images.push(read()?);
                    continue;
                }
                6 => (&mut pictures.last_image, "PINHOLE_INPUT_LAST_IMAGE"),
                other => {
                    let expected = "PINHOLE_INPUT_IMAGE (0), PINHOLE_INPUT_MASK (1), PINHOLE_INPUT_CONTROL (2), \
                                    PINHOLE_INPUT_REFERENCE (3), PINHOLE_INPUT_STYLE (4), PINHOLE_INPUT_IP (5) or \
                                    PINHOLE_INPUT_LAST_IMAGE (6)";
                    return Err(E::option("use", expected, other.to_string()).into());
                }
            };
            if place.is_some() {
                return Err(Failure::argument(format!("inputs: expected one {name}, found another at index {i}"), ""));
            }
            *place = Some(read()?);
        }
        Ok(pictures)
    }

    /// What the user should know about how they were read.
    pub(crate) fn notes(&self) -> Vec<String> {
        let several = self.controls.iter().chain(&self.references);
        let several = several.chain(self.redux.iter().map(|(picture, _)| picture)).chain(&self.ip_images);
        let pictures = [&self.image, &self.mask, &self.last_image].into_iter().flatten().chain(several);
        pictures.flat_map(|picture| picture.notes().iter().cloned()).collect()
    }
}

impl Input {
    /// The picture, which is called `name` in messages if it has no path.
    ///
    /// # Safety
    /// The header's contract for every member.
    pub(crate) unsafe fn picture(&self, name: &str) -> Result<Picture, Failure> {
        let sources =
            [("path", !self.path.is_null()), ("data", !self.data.is_null()), ("pixels", !self.pixels.is_null())];
        let given: Vec<&str> = sources.into_iter().filter(|(_, given)| *given).map(|(source, _)| source).collect();
        match given[..] {
            ["path"] => {
                // SAFETY: the caller's promise.
                let path = unsafe { text::required(self.path, "path") }?;
                Ok(Picture::open(Path::new(path))?)
            }
            ["data"] => {
                // SAFETY: the caller's promise, and it is not NULL.
                let bytes = unsafe { self.bytes(name) }?;
                Ok(Picture::from_memory(name, bytes)?)
            }
            // SAFETY: the caller's promise, and it is not NULL.
            ["pixels"] => unsafe { self.rgb8(name) },
            _ => {
                let found = if given.is_empty() { "none".to_owned() } else { given.join(" and ") };
                let message = format!("{name}: expected one of path, data and pixels, found {found}");
                Err(Failure::argument(message, "set the one that the picture comes from, and leave the others NULL"))
            }
        }
    }

    /// # Safety
    /// `data` is readable for `size` bytes, and the result is not kept beyond the call.
    unsafe fn bytes<'a>(&self, name: &str) -> Result<&'a [u8], Failure> {
        let size = self.size;
        if size > isize::MAX as usize {
            return Err(Failure::argument(
                format!("{name}.size: expected bytes that memory can hold, found {size}"),
                "",
            ));
        }
        // SAFETY: the caller's promise.
        Ok(unsafe { slice::from_raw_parts(self.data.cast(), size) })
    }

    /// # Safety
    /// `pixels` is readable for three bytes for each pixel.
    unsafe fn rgb8(&self, name: &str) -> Result<Picture, Failure> {
        let side = |given| usize::try_from(given).ok().filter(|side| (1..=MAX_SIDE).contains(side));
        let (Some(width), Some(height)) = (side(self.width), side(self.height)) else {
            let found = format!("{}x{}", self.width, self.height);
            let message = format!("{name}: expected a width and a height from 1 to {MAX_SIDE}, found {found}");
            return Err(Failure::argument(message, ""));
        };
        // SAFETY: the caller's promise. The limit of a side keeps this below 2^31 bytes.
        let rgb = unsafe { slice::from_raw_parts(self.pixels, width * height * 3) };
        Ok(Picture::from_rgb8(width, height, rgb)?)
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_input_init(input: *mut Input, struct_size: usize) -> i32 {
    // SAFETY: the header's contract.
    unsafe { options::init(input, struct_size) }
}
