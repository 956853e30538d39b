//! Animated PNG (PNG specification, third edition), through the crate `png`.

use std::io;

use png::{BitDepth, ColorType, Encoder, Writer};

use super::Rate;
use super::body::{Body, Shape, Text};
use super::sink::Sink;
use crate::image::Image;
use crate::reserve;

/// A film in PNG.
pub(super) struct Apng {
    sink: Sink,
    shape: Shape,
    /// Taken in the end.
    writer: Option<Writer<Sink>>,
}

impl Apng {
    pub(super) fn new(sink: Sink, shape: Shape) -> Apng {
        Apng { sink, shape, writer: None }
    }
}

impl Body for Apng {
    fn begin(&mut self, text: &Text) -> io::Result<()> {
        let Shape { width, height, frames, rate } = self.shape;
        let mut encoder = Encoder::new(self.sink.clone(), width as u32, height as u32);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        // Shown again and again.
        encoder.set_animated(frames as u32, 0)?;
        let (seconds, of) = delay(rate);
        encoder.set_frame_delay(seconds, of)?;
        for (keyword, text) in text {
            match text.is_ascii() {
                true => encoder.add_text_chunk(keyword.clone(), text.clone())?,
                false => encoder.add_itxt_chunk(keyword.clone(), text.clone())?,
            }
        }
        self.writer = Some(encoder.write_header()?);
        Ok(())
    }

    fn push(&mut self, image: &Image) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Err(io::ErrorKind::BrokenPipe.into()) };
        // A frame is filtered and compressed in one piece.
        reserve::probe("a PNG's encoder", 2 * image.rgb().len()).map_err(io::Error::other)?;
        Ok(writer.write_image_data(image.rgb())?)
    }

    fn end(&mut self, _: &Text) -> io::Result<()> {
        self.writer.take().map_or(Ok(()), Writer::finish)?;
        Ok(())
    }

    /// How many frames there are stands before the first.
    fn cut(&mut self, _: usize) -> bool {
        false
    }
}

/// How long a frame is shown, as a ratio of numbers of 16 bits.
fn delay(rate: Rate) -> (u16, u16) {
    const MANY: u32 = 60_000;
    match (u16::try_from(rate.seconds()), u16::try_from(rate.frames())) {
        (Ok(seconds), Ok(frames)) => (seconds, frames),
        // Less than one in 65535 is shown a bit too early.
        _ if rate.fps() >= 1.0 => (rate.begin(1, MANY) as u16, MANY as u16),
        _ => (rate.begin(1, 1) as u16, 1),
    }
}
