//! Animations of GIF, WebP and PNG, frame by frame, through the crate `image`.

use std::io::{BufRead, Seek};
use std::path::Path;

use ::image::codecs::gif::GifDecoder;
use ::image::codecs::png::PngDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::{AnimationDecoder, Frames, ImageDecoder, ImageError, ImageFormat, ImageResult, Limits};

use super::Rate;
use crate::image::{Image, MAX_DECODED, MAX_SIDE, over_white};
use crate::size::Size;
use crate::{Error, Result, quiet, reserve};

/// An animation that is read.
pub(super) struct Animation<'a> {
    /// `None` once it has ended or failed.
    frames: Option<Frames<'a>>,
    path: &'a Path,
    /// As the first frame has it.
    pub(super) rate: Option<Rate>,
    pub(super) is_transparent: bool,
}

impl<'a> Animation<'a> {
    /// The animation in `reader`, which holds a file of `format`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it is damaged, too large, or a picture that does not move.
    pub(super) fn open(format: ImageFormat, reader: impl BufRead + Seek + 'a, path: &'a Path) -> Result<Animation<'a>> {
        let opened =
            quiet::caught(|| open(format, reader, path)).unwrap_or_else(|| Err(damaged(path, "something else")));
        Ok(Animation { frames: Some(opened?), path, rate: None, is_transparent: false })
    }

    /// The next frame; `None` behind the last.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the file is damaged, [`Error::OutOfMemory`].
    pub(super) fn next(&mut self) -> Result<Option<Image>> {
        let Some(frames) = &mut self.frames else { return Ok(None) };
        let frame = match quiet::caught(|| frames.next()) {
            Some(Some(Ok(frame))) => frame,
            Some(None) => {
                self.frames = None;
                return Ok(None);
            }
            failed => {
                self.frames = None;
                let found = match failed {
                    Some(Some(Err(error))) => error.to_string(),
                    _ => "something else".to_owned(),
                };
                return Err(damaged(self.path, &found));
            }
        };
        if self.rate.is_none() {
            let (milliseconds, of) = frame.delay().numer_denom_ms();
            self.rate = of.checked_mul(1000).and_then(|per_second| Rate::new(per_second, milliseconds));
        }
        let pixels = frame.into_buffer();
        let (width, height) = pixels.dimensions();
        let mut rgb = reserve::room("a frame", width as usize * height as usize * 3)?;
        for &[red, green, blue, alpha] in pixels.as_raw().as_chunks::<4>().0 {
            self.is_transparent |= alpha < u8::MAX;
            rgb.extend([red, green, blue].map(|colour| over_white(colour, alpha)));
        }
        Image::new(width as usize, height as usize, rgb)
            .ok_or_else(|| damaged(self.path, "a frame without pixels"))
            .map(Some)
    }
}

fn open<'a>(format: ImageFormat, reader: impl BufRead + Seek + 'a, path: &'a Path) -> Result<Frames<'a>> {
    let failed = |error: ImageError| damaged(path, &error.to_string());
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED);
    match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(reader).map_err(failed)?;
            check_size(&decoder, path)?;
            decoder.set_limits(limits).map_err(failed)?;
            Ok(decoder.into_frames())
        }
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(reader).map_err(failed)?;
            check_size(&decoder, path)?;
            require_animation(decoder.has_animation(), path)?;
            Ok(decoder.into_frames())
        }
        _ => {
            let decoder = PngDecoder::with_limits(reader, limits).map_err(failed)?;
            check_size(&decoder, path)?;
            require_animation(decoder.is_apng().map_err(failed)?, path)?;
            let frames: ImageResult<_> = decoder.apng().map(AnimationDecoder::into_frames);
            frames.map_err(failed)
        }
    }
}

fn require_animation(is_animated: bool, path: &Path) -> Result<()> {
    if is_animated {
        return Ok(());
    }
    let error = Error::mismatch(path, "film", "an animation", "a picture that does not move");
    Err(error.with_hint("--image takes pictures"))
}

/// Refuses what is too large, before anything is decoded. A decoder holds a frame, the one before, and what it makes of both.
fn check_size(decoder: &dyn ImageDecoder, path: &Path) -> Result<()> {
    const COPIES: usize = 4;
    let (width, height) = decoder.dimensions();
    let bytes = u64::from(width) * u64::from(height) * 4;
    if width.max(height) as usize > MAX_SIDE || bytes > MAX_DECODED {
        let expected = format!("sides of at most {MAX_SIDE} pixels and frames of at most {}", Size(MAX_DECODED));
        let error = Error::mismatch(path, "film", expected, format!("{width}x{height}, {}", Size(bytes)));
        return Err(error.with_hint("make the film smaller"));
    }
    reserve::probe("a film's decoder", (bytes as usize).saturating_mul(COPIES))
}

fn damaged(path: &Path, found: &str) -> Error {
    let error = Error::mismatch(path, "film", "a whole animation", found);
    error.with_hint("the file is cut off or damaged: copy or download it again")
}
