//! MP4: one track of H.264 in the boxes of the ISO base media file format.
//!
//! ISO/IEC 14496-12 (the boxes), 14496-15 (`avc1`, `avcC`); metadata by key as in Apple's QuickTime File Format (`mdta`, `keys`, `ilst`),
//! which ffmpeg writes and reads, too. The frames come first and the index last, so that the file grows by frame.

use std::io::{self, Write};

use super::body::{Body, Shape, Text};
use super::h264::H264;
use super::sink::Sink;
use super::yuv::Yuv;
use crate::image::Image;

/// Bytes of the header of the frames' box, with a size of 64 bits.
const FRAMES_HEADER: u64 = 16;

/// At least so many units of time are in a second: players round to them.
const UNITS: u32 = 10_000;

/// Codes of BT.709 for the primaries, the curve and the matrix (ITU-T H.273).
const BT_709: u16 = 1;

/// 1 in fixed point of 16 bits on each side, and of 2 and 30.
const ONE: u32 = 1 << 16;
const ONE_IN_30: u32 = 1 << 30;

/// Millions of dots: 72 in an inch.
const DOTS: u32 = 72 << 16;

/// A film in MP4.
pub(super) struct Mp4 {
    sink: Sink,
    shape: Shape,
    encoder: H264,
    /// Where the frames' box begins.
    frames_at: u64,
    /// Bytes of each frame.
    sizes: Vec<u32>,
    /// Frames that players can begin with, counted from 1.
    whole: Vec<u32>,
}

impl Mp4 {
    /// # Errors
    /// If the encoder does not start.
    pub(super) fn new(sink: Sink, shape: Shape) -> io::Result<Mp4> {
        let encoder = H264::new(shape.rate)?;
        Ok(Mp4 { sink, shape, encoder, frames_at: 0, sizes: Vec::new(), whole: Vec::new() })
    }

    /// Units of time in a second, and of each frame.
    fn time(&self) -> (u32, u32) {
        let (frames, seconds) = (self.shape.rate.frames(), self.shape.rate.seconds());
        let times = UNITS.div_ceil(frames);
        (frames * times, seconds * times)
    }

    /// How long the film is, in those units.
    fn duration(&self) -> u32 {
        (self.sizes.len() as u32).saturating_mul(self.time().1)
    }

    fn index(&self, text: &Text) -> Vec<u8> {
        let mut index = Vec::new();
        put(&mut index, b"moov", |b| {
            put(b, b"mvhd", |b| self.film_header(b));
            put(b, b"trak", |b| {
                put(b, b"tkhd", |b| self.track_header(b));
                put(b, b"mdia", |b| self.media(b));
            });
            if !text.is_empty() {
                put(b, b"udta", |b| put(b, b"meta", |b| metadata(b, text)));
            }
        });
        index
    }

    fn film_header(&self, b: &mut Vec<u8>) {
        longs(b, &[0, 0, 0, self.time().0, self.duration()]);
        // At normal speed and full volume.
        longs(b, &[ONE, 0x0100_0000, 0, 0]);
        matrix(b);
        longs(b, &[0; 6]);
        // The next track would be this one.
        longs(b, &[2]);
    }

    fn track_header(&self, b: &mut Vec<u8>) {
        const IS_SHOWN: u32 = 3;
        longs(b, &[IS_SHOWN, 0, 0, 1, 0, self.duration()]);
        longs(b, &[0; 4]);
        matrix(b);
        longs(b, &[(self.shape.width as u32) << 16, (self.shape.height as u32) << 16]);
    }

    fn media(&self, b: &mut Vec<u8>) {
        // "und", each letter in five bits.
        const NO_LANGUAGE: u32 = 0x55c4 << 16;
        put(b, b"mdhd", |b| longs(b, &[0, 0, 0, self.time().0, self.duration(), NO_LANGUAGE]));
        put(b, b"hdlr", |b| handler(b, b"vide"));
        put(b, b"minf", |b| {
            put(b, b"vmhd", |b| longs(b, &[1, 0, 0]));
            put(b, b"dinf", |b| {
                put(b, b"dref", |b| {
                    longs(b, &[0, 1]);
                    // In this same file.
                    put(b, b"url ", |b| longs(b, &[1]));
                });
            });
            put(b, b"stbl", |b| self.samples(b));
        });
    }

    fn samples(&self, b: &mut Vec<u8>) {
        let count = self.sizes.len() as u32;
        put(b, b"stsd", |b| {
            longs(b, &[0, 1]);
            put(b, b"avc1", |b| self.description(b));
        });
        put(b, b"stts", |b| longs(b, &[0, 1, count, self.time().1]));
        put(b, b"stss", |b| {
            longs(b, &[0, self.whole.len() as u32]);
            longs(b, &self.whole);
        });
        // All of them are one piece.
        put(b, b"stsc", |b| longs(b, &[0, 1, 1, count, 1]));
        put(b, b"stsz", |b| {
            longs(b, &[0, 0, count]);
            longs(b, &self.sizes);
        });
        put(b, b"stco", |b| longs(b, &[0, 1, (self.frames_at + FRAMES_HEADER) as u32]));
    }

    fn description(&self, b: &mut Vec<u8>) {
        longs(b, &[0]);
        shorts(b, &[0, 1]);
        longs(b, &[0; 4]);
        shorts(b, &[self.shape.width as u16, self.shape.height as u16]);
        longs(b, &[DOTS, DOTS, 0]);
        // One frame in a sample, no name of the encoder, 24 bits.
        shorts(b, &[1]);
        b.extend([0; 32]);
        shorts(b, &[24, u16::MAX]);
        if let Some([sequence, picture]) = &self.encoder.sets {
            put(b, b"avcC", |b| {
                b.push(1);
                // Profile, compatibility and level.
                b.extend(&sequence[1..4]);
                // Lengths of four bytes, one set of each kind.
                b.extend([0xff, 0xe1]);
                for (i, set) in [sequence, picture].into_iter().enumerate() {
                    b.extend(if i == 0 { &[][..] } else { &[1] });
                    shorts(b, &[set.len() as u16]);
                    b.extend(set);
                }
            });
        }
        put(b, b"colr", |b| {
            b.extend(b"nclx");
            shorts(b, &[BT_709; 3]);
            // In limited range.
            b.push(0);
        });
        put(b, b"pasp", |b| longs(b, &[1, 1]));
    }
}

impl Body for Mp4 {
    fn begin(&mut self, _: &Text) -> io::Result<()> {
        let mut start = Vec::new();
        put(&mut start, b"ftyp", |b| {
            b.extend(b"isom");
            longs(b, &[0x200]);
            b.extend(b"isomiso2avc1mp41");
        });
        self.frames_at = start.len() as u64;
        // The size follows in the end.
        longs(&mut start, &[1]);
        start.extend(b"mdat");
        longs(&mut start, &[0, 0]);
        self.sink.write_all(&start)
    }

    fn push(&mut self, image: &Image) -> io::Result<()> {
        let yuv = Yuv::of(image).map_err(io::Error::other)?;
        let frame = self.encoder.encode(&yuv)?;
        let valid = self.encoder.sets.as_ref().is_some_and(|[sequence, _]| sequence.len() >= 4);
        if !valid {
            return Err(io::Error::other("the encoder of H.264 described no sequence"));
        }
        self.sink.write_all(&frame.bytes)?;
        self.sizes.push(frame.bytes.len() as u32);
        if frame.is_whole {
            self.whole.push(self.sizes.len() as u32);
        }
        Ok(())
    }

    fn end(&mut self, text: &Text) -> io::Result<()> {
        let frames = self.sink.written() - self.frames_at;
        let index = self.index(text);
        self.sink.write_all(&index)?;
        self.sink.rewrite(self.frames_at + 8, &frames.to_be_bytes())
    }

    fn cut(&mut self, frames: usize) -> bool {
        self.sizes.truncate(frames);
        self.whole.retain(|&frame| frame as usize <= frames);
        true
    }
}

/// Appends a box of the type `name`.
fn put(b: &mut Vec<u8>, name: &[u8; 4], fill: impl FnOnce(&mut Vec<u8>)) {
    let start = b.len();
    b.extend([0; 4]);
    b.extend(name);
    fill(b);
    // An index is far from 4 GiB.
    let size = (b.len() - start) as u32;
    b[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

fn longs(b: &mut Vec<u8>, numbers: &[u32]) {
    b.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

fn shorts(b: &mut Vec<u8>, numbers: &[u16]) {
    b.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

/// Neither turned nor moved.
fn matrix(b: &mut Vec<u8>) {
    longs(b, &[ONE, 0, 0, 0, ONE, 0, 0, 0, ONE_IN_30]);
}

/// Says what handles the media or the metadata.
fn handler(b: &mut Vec<u8>, kind: &[u8; 4]) {
    longs(b, &[0, 0]);
    b.extend(kind);
    longs(b, &[0; 3]);
    // No name.
    b.push(0);
}

fn metadata(b: &mut Vec<u8>, text: &Text) {
    const UTF_8: u32 = 1;
    longs(b, &[0]);
    put(b, b"hdlr", |b| handler(b, b"mdta"));
    put(b, b"keys", |b| {
        longs(b, &[0, text.len() as u32]);
        for (keyword, _) in text {
            put(b, b"mdta", |b| b.extend(keyword.as_bytes()));
        }
    });
    put(b, b"ilst", |b| {
        for (i, (_, value)) in text.iter().enumerate() {
            put(b, &(i as u32 + 1).to_be_bytes(), |b| {
                put(b, b"data", |b| {
                    longs(b, &[UTF_8, 0]);
                    b.extend(value.as_bytes());
                });
            });
        }
    });
}
