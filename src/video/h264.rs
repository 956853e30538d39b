//! Frames as H.264 (ITU-T H.264), through the crate `openh264`.

use std::io;

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, Profile, QpRange, RateControlMode,
    VuiConfig,
};
use openh264::formats::YUVSource;

use super::Rate;
use super::yuv::Yuv;

/// How coarsely the numbers of a frame are taken, of 51: at 18, the difference is hardly seen.
const COARSENESS: u8 = 18;

/// How many bits a second have, for the level that the stream asks of players. The coarseness decides how many it really has.
const NOMINAL_BITS: u32 = 10_000_000;

/// The most seconds between frames that a player can begin with.
const SECONDS_TO_A_WHOLE: f64 = 2.0;

/// The most pixels of the longer and of the shorter side that the encoder takes.
pub(super) const MOST: [usize; 2] = [3840, 2160];

/// The least pixels of a side that it takes.
pub(super) const LEAST: usize = 16;

/// An encoder of H.264.
pub(super) struct H264 {
    encoder: Encoder,
    /// What frames refer to: the sets of parameters of the sequence and of its pictures.
    pub(super) sets: Option<[Vec<u8>; 2]>,
}

/// A frame.
pub(super) struct Frame {
    /// Its units, each behind its length in four bytes.
    pub(super) bytes: Vec<u8>,
    /// Whether a player can begin with it.
    pub(super) is_whole: bool,
}

/// Types of units (table 7-1).
const SEQUENCE_SET: u8 = 7;
const PICTURE_SET: u8 = 8;

impl H264 {
    /// An encoder of frames at `rate`.
    ///
    /// # Errors
    /// If it does not start.
    pub(super) fn new(rate: Rate) -> io::Result<H264> {
        let whole = (rate.fps() * SECONDS_TO_A_WHOLE).ceil().max(1.0);
        // "Bufferbased" is the way to one coarseness for all frames, without any that are left out.
        let config = EncoderConfig::new()
            .rate_control_mode(RateControlMode::Bufferbased)
            .qp(QpRange::new(COARSENESS, COARSENESS))
            .bitrate(BitRate::from_bps(NOMINAL_BITS))
            .max_frame_rate(FrameRate::from_hz((rate.fps() as f32).clamp(1.0, 60.0)))
            .intra_frame_period(IntraFramePeriod::from_num_frames(whole as u32))
            .skip_frames(false)
            .scene_change_detect(false)
            .adaptive_quantization(false)
            .background_detection(false)
            // The one that it makes without being told. Told, it does not warn of that on the standard error.
            .profile(Profile::Baseline)
            .vui(VuiConfig::bt709())
            // The bytes do not depend on the machine.
            .num_threads(1);
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config).map_err(failed)?;
        Ok(H264 { encoder, sets: None })
    }

    /// Encodes the next frame.
    ///
    /// # Errors
    /// If the encoder fails or leaves the frame out.
    pub(super) fn encode(&mut self, frame: &Yuv) -> io::Result<Frame> {
        let stream = self.encoder.encode(frame).map_err(failed)?;
        let is_whole = match stream.frame_type() {
            FrameType::IDR => true,
            FrameType::I | FrameType::P => false,
            other => return Err(io::Error::other(format!("the encoder of H.264 made a frame of the type {other:?}"))),
        };
        let (mut bytes, mut sequence, mut picture) = (Vec::new(), None, None);
        for layer in (0..stream.num_layers()).filter_map(|number| stream.layer(number)) {
            for unit in (0..layer.nal_count()).filter_map(|number| layer.nal_unit(number)) {
                let unit = without_start(unit);
                match unit.first().map(|first| first & 0x1f) {
                    None => {}
                    Some(SEQUENCE_SET) => sequence = Some(unit.to_vec()),
                    Some(PICTURE_SET) => picture = Some(unit.to_vec()),
                    Some(_) => {
                        bytes.extend((unit.len() as u32).to_be_bytes());
                        bytes.extend(unit);
                    }
                }
            }
        }
        if self.sets.is_none() {
            self.sets = sequence.zip(picture).map(<[_; 2]>::from);
        }
        Ok(Frame { bytes, is_whole })
    }
}

/// A unit without the zeros and the one before it (annex B).
fn without_start(unit: &[u8]) -> &[u8] {
    let zeros = unit.iter().take_while(|&&byte| byte == 0).count();
    unit.get(zeros + 1..).unwrap_or_default()
}

fn failed(error: openh264::Error) -> io::Error {
    io::Error::other(format!("the encoder of H.264 failed: {error}"))
}

impl YUVSource for Yuv {
    fn dimensions(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn strides(&self) -> (usize, usize, usize) {
        self.strides().into()
    }

    fn y(&self) -> &[u8] {
        &self.planes[0]
    }

    fn u(&self) -> &[u8] {
        &self.planes[1]
    }

    fn v(&self) -> &[u8] {
        &self.planes[2]
    }
}
