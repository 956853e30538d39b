//! GIF (GIF89a), through the crate `gif`: 256 colours of its own for each frame.

use std::io;

use gif::{AnyExtension, Encoder, EncodingError, Extension, Frame, Repeat};

use super::body::{Body, Shape, Text};
use super::sink::Sink;
use crate::image::{Image, PARAMETERS, PINHOLE};
use crate::reserve;

/// The most frames in a second: browsers show a frame that is to stand for less than two hundredths of a second for ten.
pub(super) const MOST_FPS: u32 = 50;

/// Units of time in a second.
const UNITS: u32 = 100;

/// Of how many pixels the colours of a frame are chosen, if it has as many.
const LOOKED_AT: usize = 1 << 16;

/// The crate looks at one pixel of so many, at most.
const MOST_HASTE: usize = 10;

/// The name of the application in whose extension the JSON lies: eight letters, and three to be sure.
const APPLICATION: &[u8; 11] = b"pinhole 1.0";

/// A film in GIF.
pub(super) struct Gif {
    shape: Shape,
    /// Taken in the end.
    encoder: Option<Encoder<Sink>>,
    sink: Sink,
    made: usize,
}

impl Gif {
    pub(super) fn new(sink: Sink, shape: Shape) -> Gif {
        Gif { shape, encoder: None, sink, made: 0 }
    }
}

impl Body for Gif {
    fn begin(&mut self, _: &Text) -> io::Result<()> {
        let Shape { width, height, .. } = self.shape;
        let mut encoder = Encoder::new(self.sink.clone(), width as u16, height as u16, &[]).map_err(failed)?;
        encoder.set_repeat(Repeat::Infinite).map_err(failed)?;
        self.encoder = Some(encoder);
        Ok(())
    }

    fn push(&mut self, image: &Image) -> io::Result<()> {
        let Some(encoder) = &mut self.encoder else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let Shape { width, height, rate, .. } = self.shape;
        // Its pixels with transparency, and as numbers of colours; the rest is small.
        reserve::probe("a GIF's encoder", width * height * 6).map_err(io::Error::other)?;
        let haste = (width * height / LOOKED_AT).clamp(1, MOST_HASTE);
        let mut frame = Frame::from_rgb_speed(width as u16, height as u16, image.rgb(), haste as i32);
        // Frames begin at the nearest unit, so that errors do not add up.
        frame.delay = (rate.begin(self.made + 1, UNITS) - rate.begin(self.made, UNITS)) as u16;
        encoder.write_frame(&frame).map_err(failed)?;
        self.made += 1;
        Ok(())
    }

    fn end(&mut self, text: &Text) -> io::Result<()> {
        let Some(mut encoder) = self.encoder.take() else { return Ok(()) };
        for (keyword, text) in text {
            match keyword.as_str() {
                PARAMETERS => {
                    let comment = AnyExtension::from(Extension::Comment);
                    encoder.write_raw_extension(comment, &[text.as_bytes()]).map_err(failed)?;
                }
                PINHOLE => {
                    let application = AnyExtension::from(Extension::Application);
                    encoder.write_raw_extension(application, &[APPLICATION, text.as_bytes()]).map_err(failed)?;
                }
                _ => {}
            }
        }
        encoder.into_inner().map(|_| ()).map_err(failed)
    }

    fn cut(&mut self, _: usize) -> bool {
        true
    }
}

fn failed(error: EncodingError) -> io::Error {
    match error {
        EncodingError::Io(error) => error,
        other => io::Error::other(other),
    }
}
