//! PNG, JPEG and WebP to 8-bit RGB, through the crate `image`.

use std::io::{Cursor, ErrorKind};
use std::path::Path;

use ::image::codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder};
use ::image::metadata::Orientation;
use ::image::{ColorType, ImageDecoder, ImageError, ImageResult, Limits};

use super::{CHANNELS, Format, Image};
use crate::size::Size;
use crate::{Error, Result, reserve};

/// The most pixels that a side may have.
pub const MAX_SIDE: usize = 16384;

/// The most bytes that a picture may have when it is decoded, before it becomes 8-bit RGB (1 GiB).
pub const MAX_DECODED: u64 = 1 << 30;

/// How many times the decoded picture a decoder takes itself, without asking, at most: JPEG's has the coefficients of a progressive
/// picture in 16 bits, and planes before they become RGB; WebP's has planes and an alpha channel. Beside that its tables.
const DECODER_COPIES: usize = 4;
const DECODER_BYTES: usize = 2 << 20;

/// The picture in `bytes` and notes on how it was read.
pub(super) fn decode(format: Format, bytes: &[u8], path: &Path) -> Result<(Image, Vec<String>)> {
    let failed = |error| decoding_error(error, format, path);
    let is_whole = match format {
        Format::Png => true,
        Format::Jpeg => jpeg_is_whole(bytes),
        Format::WebP => webp_is_whole(bytes),
    };
    if !is_whole {
        // PNG's decoder says so itself. The others would make up the rest.
        return Err(damaged(format, path, CUT_OFF));
    }
    let (mut decoder, is_animated) = open(format, bytes).map_err(failed)?;
    check_size(&*decoder, path)?;
    let orientation = orientation(&mut *decoder).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let bytes = decoder.total_bytes() as usize;
    reserve::probe("a picture's decoder", bytes.saturating_mul(DECODER_COPIES).saturating_add(DECODER_BYTES))?;
    let mut samples = reserve::zeros("a picture", bytes)?;
    decoder.read_image(&mut samples).map_err(failed)?;

    let (rgb, is_transparent) = to_rgb(&samples, color)?;
    let image = Image::new(width as usize, height as usize, rgb)
        .ok_or_else(|| Error::malformed(path, "picture", "8-bit or 16-bit samples", format!("{color:?}")))?;
    Ok((upright(image, orientation)?, notes(path, (width, height), is_transparent, is_animated)))
}

fn open<'a>(format: Format, bytes: &'a [u8]) -> ImageResult<(Box<dyn ImageDecoder + 'a>, bool)> {
    let bytes = Cursor::new(bytes);
    match format {
        Format::Png => {
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(MAX_DECODED);
            let decoder = PngDecoder::with_limits(bytes, limits)?;
            let is_animated = decoder.is_apng()?;
            Ok((Box::new(decoder), is_animated))
        }
        Format::Jpeg => Ok((Box::new(JpegDecoder::new(bytes)?), false)),
        Format::WebP => {
            let decoder = WebPDecoder::new(bytes)?;
            let is_animated = decoder.has_animation();
            Ok((Box::new(decoder), is_animated))
        }
    }
}

/// Refuses what is too large, before anything is decoded: a file of a few bytes can claim any size.
fn check_size(decoder: &dyn ImageDecoder, path: &Path) -> Result<()> {
    let (width, height) = decoder.dimensions();
    let error = if width.max(height) as usize > MAX_SIDE {
        let expected = format!("at most {MAX_SIDE} pixels a side");
        Error::mismatch(path, "picture", expected, format!("{width}x{height}"))
    } else if decoder.total_bytes() > MAX_DECODED {
        let expected = format!("at most {} when it is decoded", Size(MAX_DECODED));
        let found = format!("{}, {width}x{height}", Size(decoder.total_bytes()));
        Error::mismatch(path, "picture", expected, found)
    } else {
        return Ok(());
    };
    Err(error.with_hint("make the picture smaller"))
}

fn notes(path: &Path, size: (u32, u32), is_transparent: bool, is_animated: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if is_animated {
        notes.push(format!("{} is animated: the first frame is used", path.display()));
    }
    if is_transparent {
        notes.push(format!("{} has transparency: it is laid over white", path.display()));
    }
    if size == (1, 1) {
        notes.push(format!("{} is a single pixel: it makes a picture of one colour", path.display()));
    }
    notes
}

/// Samples of the crate `image` as 8-bit RGB, and whether some were transparent: 16 bits, in this machine's byte order, lose the
/// lower 8; transparency is laid over white.
fn to_rgb(samples: &[u8], color: ColorType) -> Result<(Vec<u8>, bool)> {
    let channels = usize::from(color.channel_count());
    let bytes = usize::from(color.bytes_per_pixel()) / channels;
    let high = if cfg!(target_endian = "little") { bytes - 1 } else { 0 };
    let mut rgb = reserve::room("a picture", samples.len() / (channels * bytes) * CHANNELS)?;
    let mut is_transparent = false;
    for pixel in samples.chunks_exact(channels * bytes) {
        let sample = |channel: usize| pixel[channel * bytes + high];
        let colours = if channels < CHANNELS { [sample(0); CHANNELS] } else { [sample(0), sample(1), sample(2)] };
        let alpha = if color.has_alpha() { sample(channels - 1) } else { u8::MAX };
        is_transparent |= alpha < u8::MAX;
        rgb.extend(colours.map(|colour| over_white(colour, alpha)));
    }
    Ok((rgb, is_transparent))
}

/// `colour` with `alpha` over white, rounded to the nearest, as Pillow's `paste` rounds.
pub(crate) fn over_white(colour: u8, alpha: u8) -> u8 {
    let (colour, alpha) = (u32::from(colour), u32::from(alpha));
    // A mean of two bytes.
    ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn orientation(decoder: &mut dyn ImageDecoder) -> ImageResult<Orientation> {
    let exif = decoder.exif_metadata()?.unwrap_or_default();
    // In PNG and WebP there should be none of this, but there is.
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
    Ok(Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms))
}

/// `image`, turned and mirrored as its camera says it has to be.
fn upright(image: Image, orientation: Orientation) -> Result<Image> {
    use Orientation::*;
    let (width, height) = (image.width(), image.height());
    let to_width = match orientation {
        NoTransforms => return Ok(image),
        Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => height,
        _ => width,
    };
    let mut rgb = reserve::room("a picture", image.rgb.len())?;
    for target in 0..width * height {
        let (x, y) = (target % to_width, target / to_width);
        let (column, row) = match orientation {
            NoTransforms => (x, y),
            FlipHorizontal => (width - 1 - x, y),
            FlipVertical => (x, height - 1 - y),
            Rotate180 => (width - 1 - x, height - 1 - y),
            Rotate90 => (y, height - 1 - x),
            Rotate270 => (width - 1 - y, x),
            Rotate90FlipH => (y, x),
            Rotate270FlipH => (width - 1 - y, height - 1 - x),
        };
        rgb.extend_from_slice(&image.rgb[(row * width + column) * CHANNELS..][..CHANNELS]);
    }
    Image::new(to_width, width * height / to_width, rgb)
        .ok_or_else(|| Error::graph("picture", format!("{width}x{height} turned")))
}

/// Whether a JPEG goes on to the marker of its end (ITU-T T.81, annex B).
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    let mut at = 2;
    loop {
        // To the next marker: 0xff and a code. In between lie a scan's numbers, in which 0xff is followed by 0 or by the code of a
        // restart; further 0xff before the code are padding.
        let Some(&[0xff, code]) = bytes.get(at..at + 2) else {
            if at >= bytes.len() {
                return false;
            }
            at += 1;
            continue;
        };
        match code {
            END => return true,
            0xff => at += 1,
            0 | 0x01 | 0xd0..=0xd8 => at += 2,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                let length = usize::from(u16::from_be_bytes([high, low])).max(2);
                at += 2 + length;
            }
        }
    }
}

/// Whether a WebP has as many bytes as its header says (RFC 9649, section 2.4).
fn webp_is_whole(bytes: &[u8]) -> bool {
    let length = bytes.get(4..8).and_then(|length| length.try_into().ok()).map(u32::from_le_bytes);
    length.is_some_and(|length| bytes.len() as u64 >= u64::from(length) + 8)
}

const CUT_OFF: &str = "its end too early";

fn damaged(format: Format, path: &Path, found: &str) -> Error {
    let error = Error::mismatch(path, "picture", format!("a whole {format}"), found);
    error.with_hint("the file is cut off or damaged: copy or download it again")
}

fn decoding_error(error: ImageError, format: Format, path: &Path) -> Error {
    match error {
        ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => damaged(format, path, CUT_OFF),
        ImageError::Unsupported(error) => {
            let expected = format!("a {format} that the decoder knows");
            Error::mismatch(path, "picture", expected, error.to_string()).with_hint("save it as an 8-bit RGB picture")
        }
        ImageError::Limits(error) => {
            let expected = format!("a {format} of at most {} when it is decoded", Size(MAX_DECODED));
            Error::mismatch(path, "picture", expected, error.to_string()).with_hint("make the picture smaller")
        }
        other => damaged(format, path, &other.to_string()),
    }
}
