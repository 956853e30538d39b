//! Films as others decode them: ffmpeg, if it is here, and openh264's decoder.

use std::env;
use std::path::Path;
use std::process::Command;

use openh264::decoder::Decoder;
use openh264::formats::YUVSource;
use pinhole::image::Image;
use serde_json::Value;

/// Whether this machine has ffmpeg.
pub(crate) fn has_ffmpeg() -> bool {
    let found = Command::new("ffprobe").arg("-version").output().is_ok();
    assert!(found || env::var_os("PINHOLE_FFMPEG").is_none(), "ffmpeg is required and not there");
    if !found {
        eprintln!("left out: there is no ffmpeg here");
    }
    found
}

pub(crate) fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What ffprobe says of the film, and its frames in RGB as ffmpeg decodes them.
pub(crate) fn by_ffmpeg(path: &Path) -> (Value, Vec<u8>) {
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"]).arg(path);
    let said = serde_json::from_slice(&output(&mut probe)).unwrap();
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error", "-i"]).arg(path);
    // Every frame once, whatever its time.
    decode.args([
        "-vsync",
        "0",
        "-sws_flags",
        "accurate_rnd+full_chroma_int",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]);
    (said, output(&mut decode))
}

/// The content of the first box of each name in `path`, one inside the other.
fn box_in<'a>(mut bytes: &'a [u8], path: &[&str]) -> &'a [u8] {
    for name in path {
        loop {
            let size = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
            let (header, size) = match size {
                1 => (16, u64::from_be_bytes(bytes[8..16].try_into().unwrap()) as usize),
                size => (8, size),
            };
            if &bytes[4..8] == name.as_bytes() {
                bytes = &bytes[header..size];
                break;
            }
            bytes = &bytes[size..];
        }
    }
    bytes
}

fn long(bytes: &[u8], index: usize) -> u32 {
    u32::from_be_bytes(bytes[4 * index..][..4].try_into().unwrap())
}

/// The frames of an MP4, by its index, as openh264's decoder gives them.
pub(crate) fn decoded_mp4(bytes: &[u8]) -> Vec<Vec<u8>> {
    let samples = ["moov", "trak", "mdia", "minf", "stbl"];
    let table = |name| box_in(bytes, &[&samples[..], &[name]].concat());
    let (sizes, mut at) = (table("stsz"), long(table("stco"), 2) as usize);
    // Behind the header of the table and what all entries for pictures have.
    let sets = box_in(&table("stsd")[8 + 8 + 78..], &["avcC"]);
    let mut decoder = Decoder::new().unwrap();
    let mut stream = Vec::new();
    let mut at_set = 6;
    for _ in 0..2 {
        let length = usize::from(u16::from_be_bytes(sets[at_set..at_set + 2].try_into().unwrap()));
        stream.extend([0, 0, 0, 1]);
        stream.extend(&sets[at_set + 2..][..length]);
        at_set += 3 + length;
    }
    let mut frames = Vec::new();
    for index in 0..long(sizes, 2) as usize {
        let mut sample = &bytes[at..][..long(sizes, 3 + index) as usize];
        at += sample.len();
        while !sample.is_empty() {
            let length = long(sample, 0) as usize;
            stream.extend([0, 0, 0, 1]);
            stream.extend(&sample[4..][..length]);
            sample = &sample[4 + length..];
        }
        let picture = decoder.decode(&stream).unwrap().unwrap();
        let mut luma = Vec::new();
        let (width, height) = picture.dimensions();
        for y in 0..height {
            luma.extend(&picture.y()[y * picture.strides().0..][..width]);
        }
        frames.push(luma);
        stream.clear();
    }
    frames
}

pub(crate) fn luma(image: &Image) -> Vec<u8> {
    let weights = [0.2126, 0.7152, 0.0722];
    let mut luma = Vec::new();
    for pixel in image.rgb().chunks(3) {
        let bright: f64 = pixel.iter().zip(weights).map(|(&c, weight)| f64::from(c) * weight).sum();
        luma.push((16.0 + 219.0 / 255.0 * bright).round() as u8);
    }
    luma
}
