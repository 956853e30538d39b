//! Animated WebP (RFC 9649): each frame is a picture that the crate `image` encodes without loss, and takes the place of the one before.

use std::io::{self, Write};

use ::image::codecs::webp::WebPEncoder;
use ::image::{ExtendedColorType, ImageEncoder, ImageError};

use super::body::{Body, Shape, Text};
use super::sink::Sink;
use crate::image::{Image, exif};

/// The most pixels of a side.
pub(super) const MOST_SIDE: usize = 16384;

/// Units of time in a second.
const UNITS: u32 = 1000;

/// Flags of the file: there is an animation, and EXIF data.
const ANIMATION: u8 = 0x02;
const EXIF: u8 = 0x08;
/// The flag of a frame that is not laid over the one before.
const REPLACES: u8 = 0x02;

/// Bytes before the first chunk of a file: `RIFF`, the size and `WEBP`. Of a chunk: its name and its size.
const FILE_HEADER: usize = 12;
const HEADER: usize = 8;

/// A film in WebP.
pub(super) struct WebP {
    sink: Sink,
    shape: Shape,
    made: usize,
    /// Whether EXIF data will follow the frames.
    is_described: bool,
}

impl WebP {
    pub(super) fn new(sink: Sink, shape: Shape) -> WebP {
        WebP { sink, shape, made: 0, is_described: false }
    }
}

impl Body for WebP {
    fn begin(&mut self, text: &Text) -> io::Result<()> {
        let Shape { width, height, .. } = self.shape;
        self.is_described = !text.is_empty();
        let flags = if self.is_described { ANIMATION | EXIF } else { ANIMATION };
        let mut extended = vec![flags, 0, 0, 0];
        put_three(&mut extended, width - 1);
        put_three(&mut extended, height - 1);
        // The size follows in the end.
        let mut start = b"RIFF\0\0\0\0WEBP".to_vec();
        put(&mut start, b"VP8X", &extended);
        // Behind the frames it is black, and they are shown again and again.
        put(&mut start, b"ANIM", &[0, 0, 0, 255, 0, 0]);
        self.sink.write_all(&start)
    }

    fn push(&mut self, image: &Image) -> io::Result<()> {
        let Shape { width, height, rate, .. } = self.shape;
        let mut alone = Vec::new();
        let encoder = WebPEncoder::new_lossless(&mut alone);
        encoder.write_image(image.rgb(), width as u32, height as u32, ExtendedColorType::Rgb8).map_err(failed)?;
        // The file of a picture without anything else has one chunk.
        let picture = alone.get(FILE_HEADER..).filter(|chunk| chunk.starts_with(b"VP8L"));
        let Some(picture) = picture else { return Err(io::Error::other("the encoder of WebP made no such picture")) };
        let mut about = vec![0; 6];
        put_three(&mut about, width - 1);
        put_three(&mut about, height - 1);
        // Frames begin at the nearest unit, so that errors do not add up.
        put_three(&mut about, (rate.begin(self.made + 1, UNITS) - rate.begin(self.made, UNITS)) as usize);
        about.push(REPLACES);
        let mut chunk = Vec::with_capacity(HEADER + about.len());
        put_header(&mut chunk, b"ANMF", about.len() + picture.len());
        chunk.extend(about);
        self.sink.write_all(&chunk)?;
        self.sink.write_all(picture)?;
        self.made += 1;
        Ok(())
    }

    fn end(&mut self, text: &Text) -> io::Result<()> {
        if self.is_described {
            let text: Vec<_> = text.iter().map(|(keyword, text)| (keyword.as_str(), text.as_str())).collect();
            let mut chunk = Vec::new();
            put(&mut chunk, b"EXIF", &exif::of(&text, usize::MAX));
            self.sink.write_all(&chunk)?;
        }
        let size = self.sink.written() - HEADER as u64;
        let size = u32::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.sink.rewrite(4, &size.to_le_bytes())
    }

    fn cut(&mut self, _: usize) -> bool {
        true
    }
}

/// Appends a chunk. One of an odd length is followed by a zero.
fn put(bytes: &mut Vec<u8>, name: &[u8; 4], content: &[u8]) {
    put_header(bytes, name, content.len());
    bytes.extend(content);
    bytes.extend(&[0][..content.len() % 2]);
}

fn put_header(bytes: &mut Vec<u8>, name: &[u8; 4], length: usize) {
    bytes.extend(name);
    bytes.extend((length as u32).to_le_bytes());
}

/// A number of three bytes.
fn put_three(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend(&(number as u32).to_le_bytes()[..3]);
}

fn failed(error: ImageError) -> io::Error {
    match error {
        ImageError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
