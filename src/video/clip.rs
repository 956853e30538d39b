//! Films that somebody gives.

use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use ::image::ImageFormat;

use super::Rate;
use super::animation::Animation;
use super::frames::{self, MAX_FRAMES};
use super::y4m_reader::{self, Y4mReader};
use crate::image::{CHANNELS, Image, Picture};
use crate::size::Size;
use crate::{Error, Result, file};

/// The most bytes that its frames may have in memory (4 GiB).
const MAX_BYTES: u64 = 4 << 30;

/// A film that somebody gave: frames of one size, 8-bit RGB without transparency.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    name: PathBuf,
    frames: Vec<Image>,
    rate: Option<Rate>,
    is_cut: bool,
    notes: Vec<String>,
}

impl Clip {
    /// Reads the first frames, at most `most` of them, of what is at `path`: an animation in GIF, WebP or PNG, a film in Y4M, or a folder of
    /// pictures, which are taken in the order of their names, with numbers as numbers. A file's content and not its name says what it is.
    ///
    /// Transparent pixels are laid over white. Y4M is taken as BT.709.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Mismatch`] if it is no film, is damaged, has frames of different sizes, or takes more than
    /// 4 GiB in memory, [`Error::OutOfMemory`].
    pub fn open(path: &Path, most: usize) -> Result<Clip> {
        let mut clip = Clip { name: path.to_owned(), frames: Vec::new(), rate: None, is_cut: false, notes: Vec::new() };
        let most = most.min(MAX_FRAMES);
        if file::is_directory(path)? {
            clip.read_folder(most)?;
        } else {
            clip.read_file(most)?;
        }
        if clip.frames.is_empty() {
            return Err(Error::mismatch(path, "film", "at least one frame", "none").with_hint("give a film"));
        }
        Ok(clip)
    }

    /// The film with these frames.
    ///
    /// # Errors
    /// [`Error::Option`] if there are none, or they differ in size.
    pub fn of(frames: Vec<Image>, rate: Option<Rate>) -> Result<Clip> {
        let size = frames.first().map(|frame| (frame.width(), frame.height()));
        let Some((width, height)) = size else { return Err(Error::option("video", "at least one frame", "none")) };
        for (i, frame) in frames.iter().enumerate() {
            if (frame.width(), frame.height()) != (width, height) {
                let found = format!("frame {} of {}x{}", i + 1, frame.width(), frame.height());
                return Err(Error::option("video", format!("frames of {width}x{height}, as the first"), found));
            }
        }
        Ok(Clip { name: "video".into(), frames, rate, is_cut: false, notes: Vec::new() })
    }

    /// Its file or folder, or what else it is called in messages.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The frames.
    pub fn frames(&self) -> &[Image] {
        &self.frames
    }

    /// How many are shown in a second, if the file says so.
    pub fn rate(&self) -> Option<Rate> {
        self.rate
    }

    /// Whether there were more frames than were asked for.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// What the user should know about how it was read, each a sentence without its end.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn read_folder(&mut self, most: usize) -> Result<()> {
        let (paths, others) = frames::of(&self.name)?;
        self.is_cut = paths.len() > most;
        if others > 0 {
            self.notes
                .push(format!("{} has {others} files that are no frames: they are left out", self.name.display()));
        }
        for path in paths.iter().take(most) {
            let picture = Picture::open(path)?;
            self.notes.extend(picture.notes().iter().cloned());
            self.push(picture.into_image(), path, &paths[0])?;
        }
        Ok(())
    }

    fn read_file(&mut self, most: usize) -> Result<()> {
        let path = self.name.clone();
        let (file, about) = file::open(&path)?;
        let mut reader = BufReader::new(file);
        let mut first = Vec::new();
        let begun = reader.by_ref().take(16).read_to_end(&mut first).and_then(|_| reader.rewind());
        begun.map_err(|source| Error::io("read", &path, source))?;
        if first.starts_with(y4m_reader::MAGIC) {
            let mut film = Y4mReader::open(reader, &path)?;
            self.rate = film.rate;
            // What is in the file decides, and not what its header claims.
            let (width, height) = film.size();
            check_bytes(&path, film.most_frames(about.len()).clamp(1, most as u64), (width, height))?;
            return self.take(most, |_| film.next());
        }
        let format = format(&first, &path)?;
        if format == ImageFormat::WebP {
            require_whole_webp(&first, about.len(), &path)?;
        }
        let mut animation = Animation::open(format, reader, &path)?;
        self.take(most, |clip| {
            let frame = animation.next()?;
            clip.rate = animation.rate;
            Ok(frame)
        })?;
        if animation.is_transparent {
            self.notes.push(format!("{} has transparency: it is laid over white", path.display()));
        }
        Ok(())
    }

    /// Takes at most `most` frames from `next`.
    fn take(&mut self, most: usize, mut next: impl FnMut(&mut Clip) -> Result<Option<Image>>) -> Result<()> {
        let path = self.name.clone();
        while let Some(frame) = next(self)? {
            if self.frames.len() == most {
                self.is_cut = true;
                break;
            }
            self.push(frame, &path, &path)?;
        }
        Ok(())
    }

    /// Adds a frame from `path`, of the size of that from `first`.
    fn push(&mut self, frame: Image, path: &Path, first: &Path) -> Result<()> {
        let size = (frame.width(), frame.height());
        if let Some(before) = self.frames.first() {
            let wanted = (before.width(), before.height());
            if size != wanted {
                let expected = format!("{}x{} pixels, as {} has", wanted.0, wanted.1, first.display());
                let error = Error::mismatch(path, "frame", expected, format!("{}x{}", size.0, size.1));
                return Err(error.with_hint("the frames of a film have one size: resize or crop them alike"));
            }
        }
        check_bytes(&self.name, self.frames.len() as u64 + 1, size)?;
        self.frames.push(frame);
        Ok(())
    }
}

/// Refuses films that take too much memory.
fn check_bytes(path: &Path, frames: u64, (width, height): (usize, usize)) -> Result<()> {
    let bytes = frames.saturating_mul((width * height * CHANNELS) as u64);
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    let expected = format!("at most {} in memory", Size(MAX_BYTES));
    let error =
        Error::mismatch(path, "film", expected, format!("{frames} frames of {width}x{height}, {}", Size(bytes)));
    Err(error.with_hint("make it shorter or smaller"))
}

/// The format of an animation, by its first bytes.
fn format(first: &[u8], path: &Path) -> Result<ImageFormat> {
    const EXPECTED: &str = "a folder of pictures, a film in Y4M, or an animation in GIF, WebP or PNG";
    const CONVERT: &str = "`ffmpeg -i FILM NEW.y4m` converts it";
    let (found, hint) = match ::image::guess_format(first) {
        Ok(format @ (ImageFormat::Gif | ImageFormat::WebP | ImageFormat::Png)) => return Ok(format),
        Ok(ImageFormat::Jpeg) => ("a picture in JPEG", "--image takes pictures"),
        _ if first.is_empty() => ("an empty file", "copy or make it again"),
        _ if first.get(4..8) == Some(b"ftyp".as_slice()) => ("MP4 or a film like it", CONVERT),
        _ if first.starts_with(b"\x1a\x45\xdf\xa3") => ("Matroska or WebM", CONVERT),
        _ if first.starts_with(b"RIFF") => ("AVI or a file like it", CONVERT),
        _ => ("something else", CONVERT),
    };
    Err(Error::mismatch(path, "film", EXPECTED, found).with_hint(hint))
}

/// Refuses a WebP that is shorter than it says: the decoder would make up the rest (RFC 9649, section 2.4).
fn require_whole_webp(first: &[u8], length: u64, path: &Path) -> Result<()> {
    let said = first.get(4..8).and_then(|said| said.try_into().ok()).map_or(0, u32::from_le_bytes);
    let expected = u64::from(said) + 8;
    if length >= expected {
        return Ok(());
    }
    let error =
        Error::mismatch(path, "film", format!("{expected} bytes, as it says itself"), format!("{length} bytes"));
    Err(error.with_hint("the file is cut off: copy or download it again"))
}
