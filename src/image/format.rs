//! Formats of picture files, and writing them.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use ::image::codecs::{jpeg::JpegEncoder, webp::WebPEncoder};
use ::image::{ExtendedColorType, ImageEncoder, ImageError};
use pinhole_quant::output::AtomicFile;

use super::{Image, exif};
use crate::{Error, Result};

/// A format of picture files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.png`: every pixel as it is.
    Png,
    /// `.jpg`: small, pixels nearly as they are (quality 95, colours at full resolution).
    Jpeg,
    /// `.webp`: every pixel as it is, smaller than PNG.
    WebP,
}

/// The quality of a JPEG, of 100.
const JPEG_QUALITY: u8 = 95;

impl Format {
    /// The format that the name of an output asks for.
    ///
    /// # Errors
    /// [`Error::Option`] if it ends in none of `.png`, `.jpg`, `.jpeg` and `.webp`.
    pub fn of(path: &Path) -> Result<Format> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("png") => Ok(Format::Png),
            Some("jpg" | "jpeg") => Ok(Format::Jpeg),
            Some("webp") => Ok(Format::WebP),
            _ => {
                let error =
                    Error::option("--output", "a name that ends in .png, .jpg or .webp", path.display().to_string());
                Err(error.with_hint("the name's end chooses the format of the picture"))
            }
        }
    }
}

/// Refuses to put a picture in the place of something else. What is at `path` may be a picture, an empty file, or nothing; what is
/// no file is for [`AtomicFile::create`] to refuse.
///
/// # Errors
/// [`Error::Exists`].
pub fn check_replaced(path: &Path) -> Result<()> {
    if is_picture(path) || !fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() > 0) {
        return Ok(());
    }
    let hint = "it is no picture, so it is not replaced: choose another name";
    Err(Error::Exists { path: path.to_owned(), hint: Some(hint.into()) })
}

/// Whether there is a file that begins as those of PNG, JPEG and WebP do.
fn is_picture(path: &Path) -> bool {
    if !fs::metadata(path).is_ok_and(|about| about.is_file()) {
        return false;
    }
    let mut first = Vec::new();
    let read = File::open(path).and_then(|file| file.take(12).read_to_end(&mut first));
    read.is_ok()
        && (first.starts_with(b"\x89PNG\r\n\x1a\n")
            || first.starts_with(b"\xff\xd8\xff")
            || (first.starts_with(b"RIFF") && first.ends_with(b"WEBP")))
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Png => "PNG",
            Format::Jpeg => "JPEG",
            Format::WebP => "WebP",
        })
    }
}

impl Image {
    /// Writes the picture in `format` with `text`, pairs of a keyword and a text: in PNG as [`write_png`](Image::write_png) does
    /// it, in the others as EXIF data, in which [`PARAMETERS`](super::PARAMETERS) is the user's comment, as AUTOMATIC1111's web UI
    /// writes it, [`PINHOLE`](super::PINHOLE) is the maker's note, and other keywords have no place. In a JPEG there is room for
    /// 64 KiB: a longer maker's note is left out, then a longer comment.
    ///
    /// # Errors
    /// What `writer` reports, and [`io::ErrorKind::Other`] if the format holds no picture of this size (a JPEG's side is at
    /// most 65535 pixels, a WebP's 16384) or no such keyword.
    pub fn write(&self, format: Format, mut writer: impl Write, text: &[(&str, &str)]) -> io::Result<()> {
        let (width, height) = (self.width, self.height);
        match format {
            Format::Png => return self.write_png(writer, text),
            Format::Jpeg => {
                let mut encoder = JpegEncoder::new_with_quality(&mut writer, JPEG_QUALITY);
                encoder.set_exif_metadata(exif::of(text, exif::JPEG_ROOM)).map_err(io::Error::other)?;
                encoder.write_image(&self.rgb, width, height, ExtendedColorType::Rgb8)
            }
            Format::WebP => {
                let mut encoder = WebPEncoder::new_lossless(&mut writer);
                encoder.set_exif_metadata(exif::of(text, usize::MAX)).map_err(io::Error::other)?;
                encoder.write_image(&self.rgb, width, height, ExtendedColorType::Rgb8)
            }
        }
        .map_err(|error| match error {
            ImageError::IoError(error) => error,
            other => io::Error::other(other),
        })
    }

    /// Writes the file at `path` in the format that its name ends in: PNG, JPEG or WebP. The file appears whole or not at all,
    /// and replaces a picture that is there.
    ///
    /// # Errors
    /// Those of [`Format::of`]; [`Error::Exists`] if something else than a picture is there; [`Error::Io`] if the file cannot be
    /// written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path.as_ref(), &[])
    }

    /// As [`save`](Image::save), with `text` inside as [`write`](Image::write) has it.
    ///
    /// # Errors
    /// As [`save`](Image::save).
    pub fn save_with(&self, path: &Path, text: &[(&str, &str)]) -> Result<()> {
        let format = Format::of(path)?;
        check_replaced(path)?;
        let mut file = AtomicFile::create(path, true).map_err(Error::output)?;
        self.write(format, &mut file, text).map_err(|error| Error::io("write", path, error))?;
        file.commit().map_err(Error::output)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_format() {
        for (name, format) in [
            ("a.png", Format::Png),
            ("a.b.PNG", Format::Png),
            ("a.jpg", Format::Jpeg),
            ("a/b.JPEG", Format::Jpeg),
            ("a.WebP", Format::WebP),
        ] {
            assert_eq!(Format::of(Path::new(name)).unwrap(), format, "{name}");
        }
        for name in ["a", "a.gif", "a/", "png", ".png", "", "a.png/b", "a.pngx", "a."] {
            assert!(matches!(Format::of(Path::new(name)), Err(Error::Option { .. })), "{name}");
        }
    }

    #[test]
    fn a_picture_replaces_a_picture_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let image = Image::new(1, 1, vec![7; 3]).unwrap();
        fs::write(at("empty.png"), "").unwrap();
        fs::write(at("model.png"), "GGUF").unwrap();
        fs::write(at("other.png"), b"RIFF....WEBPVP8 ").unwrap();
        for name in ["new.png", "new.png", "empty.png", "other.png", "new.jpg"] {
            image.save(at(name)).unwrap();
        }
        let error = image.save(at("model.png")).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }) && error.hint().is_some_and(|hint| hint.contains("no picture")));
        assert_eq!(fs::read(at("model.png")).unwrap(), b"GGUF");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("model.png"), at("link.png")).unwrap();
            assert!(matches!(image.save(at("link.png")), Err(Error::Exists { .. })));
        }
    }
}
