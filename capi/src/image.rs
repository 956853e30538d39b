//! `pinhole_image`: 8-bit pictures.

use std::ffi::{c_char, c_void};
use std::io::{self, Write};
use std::path::Path;

use pinhole::image::{PARAMETERS, PINHOLE, check_replaced};
use pinhole::pipeline::PictureTexts;
use pinhole_quant::output::AtomicFile;

use crate::buffer::Buffer;
use crate::error::{Error, Failure};
use crate::{entry, handle, text};

/// `pinhole_image`
pub struct Image {
    image: pinhole::image::Image,
    /// What made it; empty for previews.
    texts: PictureTexts,
}

/// How pixels lie in memory: the header's numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Rgb,
    Rgba,
}

impl Format {
    fn read(given: i32) -> Result<Format, Failure> {
        match given {
            0 => Ok(Format::Rgb),
            1 => Ok(Format::Rgba),
            other => Err(pinhole::Error::option("format", "PINHOLE_RGB8 or PINHOLE_RGBA8", other.to_string()).into()),
        }
    }

    /// Bytes of a pixel.
    fn bytes(self) -> usize {
        match self {
            Format::Rgb => 3,
            Format::Rgba => 4,
        }
    }
}

impl Image {
    pub(crate) fn new(image: pinhole::image::Image, texts: PictureTexts) -> Image {
        Image { image, texts }
    }

    pub(crate) fn preview(image: pinhole::image::Image) -> Image {
        Image::new(image, PictureTexts::default())
    }

    pub(crate) fn picture(&self) -> &pinhole::image::Image {
        &self.image
    }

    /// The texts inside its file.
    pub(crate) fn chunks(&self) -> Vec<(&str, &str)> {
        let texts = [(PARAMETERS, self.texts.parameters.as_str()), (PINHOLE, self.texts.json.as_str())];
        texts.into_iter().filter(|(_, text)| !text.is_empty()).collect()
    }

    /// Bytes between the beginnings of two rows, where `stride` was asked for and `size` bytes are there.
    fn layout(&self, format: Format, size: usize, stride: usize) -> Result<usize, Failure> {
        let row = self.image.width() * format.bytes();
        let stride = if stride == 0 { row } else { stride };
        if stride < row {
            let message = format!("stride: expected {row} or more, found {stride}");
            return Err(Failure::argument(message, "a row's pixels must fit before the next row begins"));
        }
        let needed = stride.checked_mul(self.image.height() - 1).and_then(|rows| rows.checked_add(row));
        match needed {
            Some(needed) if needed <= size => Ok(stride),
            needed => {
                let needed =
                    needed.map_or("more than memory can hold".to_owned(), |needed| format!("{needed} or more"));
                Err(Failure::argument(format!("size: expected {needed}, found {size}"), "height x stride is enough"))
            }
        }
    }

    /// # Safety
    /// `pixels` is writable for `size` bytes.
    unsafe fn copy(&self, format: i32, pixels: *mut u8, size: usize, stride: usize) -> Result<(), Failure> {
        let format = Format::read(format)?;
        if pixels.is_null() {
            return Err(Failure::null("pixels"));
        }
        let stride = self.layout(format, size, stride)?;
        let row_bytes = self.image.width() * format.bytes();
        for (y, row) in self.image.rgb().chunks_exact(self.image.width() * 3).enumerate() {
            // SAFETY: `layout` has found that this row ends inside of `size` bytes. Bytes between rows are left alone, and may
            // never have been written to: so each row is a slice of its own.
            let to = unsafe { std::slice::from_raw_parts_mut(pixels.add(y * stride), row_bytes) };
            match format {
                Format::Rgb => to.copy_from_slice(row),
                Format::Rgba => {
                    for (to, &[r, g, b]) in to.as_chunks_mut().0.iter_mut().zip(row.as_chunks().0) {
                        *to = [r, g, b, 255];
                    }
                }
            }
        }
        Ok(())
    }
}

/// Bytes in memory that is asked for before it is used.
struct Reserved(Vec<u8>);

impl Write for Reserved {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One more for the NUL of a buffer.
        self.0.try_reserve(bytes.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_image_width(image: *const Image) -> i32 {
    // SAFETY: the header's contract.
    unsafe { image.as_ref() }.map_or(0, |image| image.image.width() as i32)
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_image_height(image: *const Image) -> i32 {
    // SAFETY: the header's contract.
    unsafe { image.as_ref() }.map_or(0, |image| image.image.height() as i32)
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_image_pixels(image: *const Image) -> *const u8 {
    // SAFETY: the header's contract.
    unsafe { image.as_ref() }.map_or(std::ptr::null(), |image| image.image.rgb().as_ptr())
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_image_copy(
    image: *const Image,
    format: i32,
    pixels: *mut c_void,
    size: usize,
    stride: usize,
    error: *mut *mut Error,
) -> i32 {
    // SAFETY: the header's contract.
    unsafe { entry::call(error, || handle::get(image, "image")?.copy(format, pixels.cast(), size, stride)) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_image_encode_png(
    image: *const Image,
    png: *mut *mut Buffer,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let image = unsafe {
            handle::clear(png, "png")?;
            handle::get(image, "image")?
        };
        let mut bytes = Reserved(Vec::new());
        image
            .image
            .write_png(&mut bytes, &image.chunks())
            .map_err(|source| Failure::io("encode", Path::new("a PNG in memory"), source))?;
        // SAFETY: the header's contract.
        unsafe { handle::give(png, Buffer::new(bytes.0)) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_image_write_png(
    image: *const Image,
    path: *const c_char,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let (image, path) = unsafe { (handle::get(image, "image")?, Path::new(text::required(path, "path")?)) };
        check_replaced(path)?;
        let mut file = AtomicFile::create(path, true)?;
        image.image.write_png(&mut file, &image.chunks()).map_err(|source| Failure::io("write", path, source))?;
        file.commit()?;
        Ok(())
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}
