//! YUV4MPEG2 (the manual page yuv4mpeg(5) of mjpegtools): frames that are not compressed, for other programs.

use std::io::{self, Write};

use super::body::{Body, Shape, Text};
use super::sink::Sink;
use super::yuv::Yuv;
use crate::image::Image;

/// A film in YUV4MPEG2.
pub(super) struct Y4m {
    sink: Sink,
    shape: Shape,
}

impl Y4m {
    pub(super) fn new(sink: Sink, shape: Shape) -> Y4m {
        Y4m { sink, shape }
    }
}

impl Body for Y4m {
    fn begin(&mut self, _: &Text) -> io::Result<()> {
        let Shape { width, height, rate, .. } = self.shape;
        let (frames, seconds) = (rate.frames(), rate.seconds());
        // Rows in order, square pixels, colours on the left of two pixels.
        writeln!(
            self.sink,
            "YUV4MPEG2 W{width} H{height} F{frames}:{seconds} Ip A1:1 C420mpeg2 XYSCSS=420MPEG2 XCOLORRANGE=LIMITED"
        )
    }

    fn push(&mut self, image: &Image) -> io::Result<()> {
        let yuv = Yuv::of(image).map_err(io::Error::other)?;
        self.sink.write_all(b"FRAME\n")?;
        for plane in &yuv.planes {
            self.sink.write_all(plane)?;
        }
        Ok(())
    }

    fn end(&mut self, _: &Text) -> io::Result<()> {
        Ok(())
    }

    fn cut(&mut self, _: usize) -> bool {
        true
    }
}
