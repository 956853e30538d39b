//! Pictures: 8-bit RGB, from files, to and from an autoencoder's numbers, and to files.
//!
//! [`Picture`] is what somebody gives, [`Image`] is the pixels, [`Mask`] says which of them are painted anew, [`Format`] is how a file
//! holds them. Decoding goes through the crate `image`. PNG is written by the crate `png`, which writes text, too.

mod canny;
mod content;
mod decode;
pub(crate) mod exif;
mod format;
mod patches;
mod picture;
mod prepare;
mod preprocessor;
mod reflect;
mod resize;

pub use canny::Thresholds;
pub(crate) use decode::over_white;
pub use decode::{MAX_DECODED, MAX_SIDE};
pub use format::{Format, check_replaced};
pub use patches::View;
pub use picture::{MAX_FILE, Picture};
pub use prepare::Mask;
pub(crate) use prepare::luma;
pub use reflect::Mirror;
pub use resize::Filter;

use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::Path;

use png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, Transformations};

use crate::{Error, Result, file, reserve};

/// The most pixels that a PNG may have to be read (8192 x 8192, 192 MiB): a file of a few bytes can claim any size.
pub const MAX_PIXELS: usize = 1 << 26;

/// Bytes of a pixel.
pub(crate) const CHANNELS: usize = 3;

/// A picture of 8-bit RGB, row by row from the top, three bytes a pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({}x{})", self.width, self.height)
    }
}

impl Image {
    /// The picture with these bytes, or `None` where they are not `width * height * 3`, or a side is 0 or over 2^31 -
    /// 1.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Option<Image> {
        let side = |extent: usize| u32::try_from(extent).ok().filter(|&extent| extent > 0 && extent <= i32::MAX as u32);
        let bytes = width.checked_mul(height)?.checked_mul(CHANNELS)?;
        (rgb.len() == bytes).then_some(Image { width: side(width)?, height: side(height)?, rgb })
    }

    /// The picture that the autoencoder's decoder gave: `samples` is `[width, height, 3]`, -1 for black and 1 for
    /// full. Rounded as diffusers' `VaeImageProcessor` does it: `x / 2 + 0.5`, clamped to 0..=1, times 255, halves to
    /// even, all in f32.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] where a sample is not a number or infinite (diffusers would draw it as black or white),
    /// [`Error::Graph`] where there are not `width * height * 3` samples.
    pub fn from_samples(width: usize, height: usize, samples: &[f32]) -> Result<Image> {
        let mismatch = || Error::graph("picture", format!("{} samples for {width}x{height}", samples.len()));
        if !samples.iter().all(|sample| sample.is_finite()) {
            let hint = "the weights are damaged, or a number format overflowed: try another type";
            return Err(Error::NotFinite { at: "the decoded picture".into(), hint: Some(hint.into()) });
        }
        let pixels = width.checked_mul(height).filter(|&pixels| pixels > 0).ok_or_else(mismatch)?;
        let mut rgb = reserve::zeros("a picture", samples.len())?;
        for (channel, plane) in samples.chunks(pixels).enumerate().take(CHANNELS) {
            for (pixel, &sample) in rgb.chunks_mut(CHANNELS).zip(plane) {
                // A last pixel that is not whole has no such channel; `new` refuses the picture then.
                if let Some(byte) = pixel.get_mut(channel) {
                    *byte = to_byte(sample);
                }
            }
        }
        Image::new(width, height, rgb).ok_or_else(mismatch)
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height as usize
    }

    /// The bytes, three a pixel.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Writes a PNG with `text`, pairs of a keyword and a text, in chunks before the pixels: `tEXt` where the text is
    /// ASCII, which every tool reads, and `iTXt` (UTF-8) where it is not.
    ///
    /// # Errors
    ///
    /// What `writer` reports, and [`io::ErrorKind::Other`] for a keyword that is empty, longer than 79 letters or
    /// outside Latin-1.
    pub fn write_png(&self, writer: impl Write, text: &[(&str, &str)]) -> io::Result<()> {
        let mut encoder = Encoder::new(writer, self.width, self.height);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        for &(keyword, text) in text {
            let (keyword, text) = (keyword.to_owned(), text.to_owned());
            match text.is_ascii() {
                true => encoder.add_text_chunk(keyword, text)?,
                false => encoder.add_itxt_chunk(keyword, text)?,
            }
        }
        // In chunks of this size: in one piece, the encoder would hold the compressed picture, in memory that it does not ask for.
        let mut writer = encoder.write_header()?;
        let mut pixels = writer.stream_writer_with_size(1 << 15)?;
        pixels.write_all(&self.rgb)?;
        pixels.finish()?;
        Ok(writer.finish()?)
    }

    /// Reads the PNG at `path`, of any kind: gray and palette become RGB, 16 bits lose the lower 8, transparency is
    /// dropped, as Pillow's `convert("RGB")` does it. Of an animation, the first frame.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the file cannot be read, [`Error::Malformed`] where it is no PNG, is damaged, or has more
    /// than [`MAX_PIXELS`].
    pub fn open_png(path: &Path) -> Result<Image> {
        Image::read_png(BufReader::new(file::open(path)?.0), path)
    }

    /// Reads a PNG as [`open_png`](Image::open_png) does. `origin`, the file that the bytes came from, is for messages.
    ///
    /// # Errors
    ///
    /// As [`open_png`](Image::open_png).
    pub fn read_png(reader: impl BufRead + Seek, origin: &Path) -> Result<Image> {
        let failed = |error| decoding_error(error, origin);
        let mut decoder = Decoder::new(reader);
        decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let mut reader = decoder.read_info().map_err(failed)?;
        let (width, height) = (reader.info().width as usize, reader.info().height as usize);
        if width.saturating_mul(height) > MAX_PIXELS {
            let (expected, found) = (format!("at most {MAX_PIXELS} pixels"), format!("{width}x{height}"));
            return Err(Error::malformed(origin, "picture", expected, found));
        }
        let samples = reader.output_color_type().0.samples();
        reserve::probe("a PNG's decoder", png_decoder_bytes(width))?;
        let mut bytes = reserve::zeros("a picture", width * height * samples)?;
        reader.next_frame(&mut bytes).map_err(failed)?;
        let rgb = if samples == CHANNELS { bytes } else { to_rgb(&bytes, samples)? };
        Image::new(width, height, rgb)
            .ok_or_else(|| Error::malformed(origin, "picture", "8-bit samples", format!("{samples} samples a pixel")))
    }
}

/// The most that PNG's decoder takes itself, without asking, for rows of `width` pixels: a window that slides over four rows, or over
/// 128 KiB, and doubles as it grows; the row before; its tables. A pixel has 8 bytes at most.
fn png_decoder_bytes(width: usize) -> usize {
    (1 << 20) + 16 * (8 * width)
}

fn to_byte(sample: f32) -> u8 {
    // In 0..=255 after the clamp, so the cast cuts nothing off.
    ((sample * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// Pixels of one (gray), two (gray, alpha), three or four (RGB, alpha) samples, as RGB.
fn to_rgb(bytes: &[u8], samples: usize) -> Result<Vec<u8>> {
    let rgb = bytes
        .chunks_exact(samples)
        .flat_map(|pixel| if samples < CHANNELS { [pixel[0]; 3] } else { [pixel[0], pixel[1], pixel[2]] });
    reserve::collect("a picture", bytes.len() / samples * CHANNELS, rgb)
}

fn decoding_error(error: DecodingError, origin: &Path) -> Error {
    match error {
        DecodingError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
            Error::io("read", origin, source)
        }
        DecodingError::IoError(_) => Error::malformed(origin, "picture", "a whole PNG", "its end too early"),
        other => Error::malformed(origin, "picture", "a PNG", other.to_string()),
    }
}

/// The keyword under which other tools look for what [`parameters_text`] writes.
pub const PARAMETERS: &str = "parameters";

/// The keyword of a chunk with the parameters as one JSON object.
pub const PINHOLE: &str = "pinhole";

/// What made a picture, in the layout that AUTOMATIC1111's web UI writes and other tools read back: the prompt, a
/// line for the negative prompt, and a line of `Name: value` pairs. `settings` are those pairs, such as `("Steps",
/// "20")`; a value with a comma, colon, quote or control character is quoted as JSON.
///
/// A line of a prompt that begins as a line of that layout does gets a space before its colon, and control characters other than
/// line breaks become spaces: those who read the text back would take them for something else.
pub fn parameters_text(prompt: &str, negative_prompt: Option<&str>, settings: &[(&str, &str)]) -> String {
    let (prompt, negative) = (plain(prompt), negative_prompt.map(plain));
    let negative = negative.map(|text| format!("\nNegative prompt: {text}")).unwrap_or_default();
    let settings: Vec<_> = settings.iter().map(|(name, value)| format!("{name}: {}", quoted(value))).collect();
    format!("{prompt}{negative}\n{}", settings.join(", "))
}

/// How lines begin that are not a prompt's own, in small letters, without their colons.
const MARKS: [&str; 2] = ["negative prompt", "steps"];

/// The prompt, changed so that none of its lines looks like another part of [`parameters_text`].
fn plain(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        lines.push(match line.split_once(':') {
            Some((name, rest)) if MARKS.contains(&name.trim().to_lowercase().as_str()) => format!("{name} :{rest}"),
            _ => line,
        });
    }
    lines.join("\n")
}

/// A value of a setting.
fn quoted(value: &str) -> String {
    if value.contains(|c: char| matches!(c, ',' | ':' | '"' | '\\') || c.is_control()) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Image> {
        Image::read_png(Cursor::new(bytes), Path::new("picture.png"))
    }

    fn png(width: u32, color: ColorType, depth: BitDepth, pixels: &[u8], palette: Option<(&[u8], &[u8])>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, width, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if let Some((colours, alpha)) = palette {
            encoder.set_palette(colours);
            encoder.set_trns(alpha);
        }
        encoder.write_header().unwrap().write_image_data(pixels).unwrap();
        bytes
    }

    fn gradient(width: usize, height: usize) -> Image {
        Image::new(width, height, (0..width * height * 3).map(|i| (i * 7) as u8).collect()).unwrap()
    }

    /// Every second sample lies half-way between two bytes. Bytes of diffusers 0.42.1,
    /// `VaeImageProcessor().postprocess`.
    #[test]
    fn samples_round_as_in_diffusers() {
        let samples = [
            -0.4941176,
            0.00784314,
            0.99607855,
            0.98823524,
            -1.0,
            1.0,
            -1.5,
            7.0,
            0.0,
            -0.0,
            0.003921569,
            -0.9960785,
            0.99607843,
            0.00000001,
            0.0,
        ];
        let planes = [64, 128, 254, 254, 0, 255, 0, 255, 128, 128, 128, 0, 254, 128, 128];
        let image = Image::from_samples(5, 1, &samples).unwrap();
        for (i, byte) in planes.into_iter().enumerate() {
            assert_eq!(image.rgb()[i % 5 * 3 + i / 5], byte, "sample {i}, {}", samples[i]);
        }
        assert_eq!((image.width(), image.height()), (5, 1));
    }

    #[test]
    fn samples_that_make_no_picture_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(matches!(Image::from_samples(1, 1, &[0.0, bad, 0.0]), Err(Error::NotFinite { .. })));
        }
        for (width, height, n) in [(2, 2, 11), (2, 2, 13), (2, 2, 0), (0, 2, 0), (usize::MAX, 3, 9)] {
            assert!(Image::from_samples(width, height, &vec![0.0; n]).is_err(), "{width}x{height}, {n}");
        }
        assert_eq!(Image::new(0, 0, vec![]), None);
        assert_eq!(Image::new(2, 1, vec![0; 5]), None);
    }

    #[test]
    fn pixels_and_text_survive_a_png() {
        let (image, mut bytes) = (gradient(37, 5), Vec::new());
        let unicode = "un chat 🐱\nNegative prompt: flou";
        image.write_png(&mut bytes, &[(PARAMETERS, unicode), (PINHOLE, r#"{"seed":1}"#)]).unwrap();
        assert_eq!(read(&bytes).unwrap(), image);
        let reader = Decoder::new(Cursor::new(&bytes)).read_info().unwrap();
        let (ascii, utf8) = (&reader.info().uncompressed_latin1_text, &reader.info().utf8_text);
        assert_eq!((ascii.len(), ascii[0].keyword.as_str(), ascii[0].text.as_str()), (1, PINHOLE, r#"{"seed":1}"#));
        assert_eq!((utf8.len(), utf8[0].keyword.as_str()), (1, PARAMETERS));
        assert_eq!(utf8[0].get_text().unwrap(), unicode);
    }

    #[test]
    fn a_keyword_that_png_has_not_is_an_error() {
        for keyword in ["", "ключ", &"k".repeat(80)] {
            assert!(gradient(1, 1).write_png(io::sink(), &[(keyword, "text")]).is_err(), "{keyword}");
        }
    }

    #[test]
    fn a_writer_that_fails_is_an_error() {
        let mut short = [0; 20];
        assert!(gradient(9, 9).write_png(&mut short[..], &[]).is_err());
    }

    #[test]
    fn every_kind_of_png_becomes_rgb() {
        use ColorType::{Grayscale, GrayscaleAlpha, Indexed, Rgb, Rgba};
        let check = |bytes: Vec<u8>, wanted: &[u8]| assert_eq!(read(&bytes).unwrap().rgb(), wanted);
        check(png(2, Grayscale, BitDepth::Eight, &[7, 9], None), &[7, 7, 7, 9, 9, 9]);
        check(png(2, Grayscale, BitDepth::One, &[0b0100_0000], None), &[0, 0, 0, 255, 255, 255]);
        check(png(2, Grayscale, BitDepth::Sixteen, &[1, 255, 2, 0], None), &[1, 1, 1, 2, 2, 2]);
        check(png(1, GrayscaleAlpha, BitDepth::Eight, &[7, 128], None), &[7, 7, 7]);
        check(png(1, Rgba, BitDepth::Eight, &[1, 2, 3, 0], None), &[1, 2, 3]);
        check(png(1, Rgba, BitDepth::Sixteen, &[1, 9, 2, 9, 3, 9, 0, 9], None), &[1, 2, 3]);
        check(png(1, Rgb, BitDepth::Sixteen, &[1, 9, 2, 9, 3, 9], None), &[1, 2, 3]);
        let palette: (&[u8], &[u8]) = (&[1, 2, 3, 4, 5, 6], &[255, 0]);
        check(png(2, Indexed, BitDepth::One, &[0b0100_0000], Some(palette)), &[1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_no_png_is_refused() {
        let mut bytes = Vec::new();
        gradient(33, 33).write_png(&mut bytes, &[(PARAMETERS, "a star")]).unwrap();
        // The last chunk carries nothing but the end.
        for length in 0..bytes.len() - 12 {
            assert!(matches!(read(&bytes[..length]), Err(Error::Malformed { .. })), "{length} bytes");
        }
        for i in [0, 12, 20, 30, bytes.len() - 20] {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x10;
            assert!(matches!(read(&damaged), Err(Error::Malformed { .. })), "byte {i}");
        }
        let error = Image::open_png(Path::new("no/such.png")).unwrap_err();
        assert!(matches!(error, Error::Io { action: "open", .. }));
    }

    #[test]
    fn a_picture_too_large_is_refused_before_it_is_read() {
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes, 1 << 14, 1 << 13).write_header().unwrap().write_chunk(png::chunk::IDAT, &[0]).unwrap();
        let message = read(&bytes).unwrap_err().to_string();
        assert_eq!(message, "picture.png: picture: expected at most 67108864 pixels, found 16384x8192");
    }

    #[test]
    fn parameters_read_like_the_web_uis() {
        let settings = [("Steps", "20"), ("Sampler", "euler"), ("Size", "128x96"), ("Model", "a, b: \"c\"")];
        assert_eq!(
            parameters_text("a star\nor two", Some("blur"), &settings),
            "a star\nor two\nNegative prompt: blur\nSteps: 20, Sampler: euler, Size: 128x96, Model: \"a, b: \\\"c\\\"\""
        );
        assert_eq!(parameters_text("", None, &[("Seed", "1")]), "\nSeed: 1");
        // As other tools read it: the first line that begins so ends the prompt.
        let prompt = "Negative prompt: a\r\nnegative prompt : b\n  Steps: 3, Seed: 4\u{1b}[2J\0\nmy steps: c";
        let expected = "Negative prompt : a\nnegative prompt  : b\n  Steps : 3, Seed: 4 [2J \nmy steps: c\
                        \nNegative prompt: Steps : 5\nModel: \"\\\"a\\\"\"";
        assert_eq!(parameters_text(prompt, Some("Steps: 5"), &[("Model", "\"a\"")]), expected);
    }
}
