//! Reads YUV4MPEG2, frame by frame.

use std::io::{self, BufRead, Read};
use std::path::Path;

use super::Rate;
use super::yuv::{Layout, Sited};
use crate::image::{Image, MAX_SIDE};
use crate::{Error, Result, reserve};

/// The first bytes of a file.
pub(super) const MAGIC: &[u8] = b"YUV4MPEG2 ";
/// The first bytes of a frame.
const FRAME: &[u8] = b"FRAME";

/// The most bytes of a line.
const MOST_LINE: u64 = 4096;

/// The least bytes of a frame: its line.
const LEAST_FRAME: usize = 6;

/// A film that is read.
pub(super) struct Y4mReader<'a, R> {
    reader: R,
    path: &'a Path,
    width: usize,
    height: usize,
    layout: Layout,
    pub(super) rate: Option<Rate>,
    frames: usize,
}

impl<'a, R: BufRead> Y4mReader<'a, R> {
    /// The film in `reader`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if its header is damaged, or says what cannot be read.
    pub(super) fn open(mut reader: R, path: &'a Path) -> Result<Y4mReader<'a, R>> {
        let line = line(&mut reader, path)?.unwrap_or_default();
        let line = String::from_utf8_lossy(line.get(MAGIC.len()..).unwrap_or_default()).into_owned();
        let mut film =
            Y4mReader { reader, path, width: 0, height: 0, layout: layout("420jpeg", path)?, rate: None, frames: 0 };
        let mut is_full_range = false;
        for field in line.split_ascii_whitespace() {
            let mut letters = field.chars();
            match (letters.next(), letters.as_str()) {
                (Some('W'), number) => film.width = side(number, path)?,
                (Some('H'), number) => film.height = side(number, path)?,
                (Some('F'), rate) => film.rate = rate.parse().ok(),
                (Some('C'), name) => film.layout = layout(name, path)?,
                (Some('I'), order @ ("t" | "b" | "m")) => {
                    let found = format!("`I{order}`, rows of two moments in one frame");
                    return Err(Error::mismatch(path, "film", "whole frames", found).with_hint("deinterlace it first"));
                }
                (Some('X'), "COLORRANGE=FULL") => is_full_range = true,
                _ => {}
            }
        }
        film.layout.is_full_range = is_full_range;
        if film.width == 0 || film.height == 0 {
            return Err(damaged(path, "a header with W and H, its sides", format!("`{line}`")));
        }
        Ok(film)
    }

    /// How large its frames are.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// How many frames a file of `bytes` has at most.
    pub(super) fn most_frames(&self, bytes: u64) -> u64 {
        let frame = self.layout.sizes(self.width, self.height).iter().sum::<usize>() + LEAST_FRAME;
        bytes / frame as u64
    }

    /// The next frame; `None` behind the last.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the file is damaged, [`Error::Io`] if it cannot be read, [`Error::OutOfMemory`].
    pub(super) fn next(&mut self) -> Result<Option<Image>> {
        let Some(line) = line(&mut self.reader, self.path)? else { return Ok(None) };
        let number = self.frames + 1;
        if !line.starts_with(FRAME) || !matches!(line.get(FRAME.len()), None | Some(b' ')) {
            return Err(damaged(
                self.path,
                "a line that begins with FRAME",
                format!("something else as frame {number}"),
            ));
        }
        let mut bytes = reserve::zeros("a frame", self.layout.sizes(self.width, self.height).iter().sum())?;
        self.reader.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                damaged(self.path, "a whole film", format!("its end in the middle of frame {number}"))
            }
            _ => Error::io("read", self.path, error),
        })?;
        self.frames += 1;
        let rgb = self.layout.rgb(&bytes, self.width, self.height)?;
        Ok(Image::new(self.width, self.height, rgb))
    }
}

/// The next line, without its end; `None` at the end of the file.
fn line(reader: &mut impl BufRead, path: &Path) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(MOST_LINE).read_until(b'\n', &mut line).map_err(|error| Error::io("read", path, error))?;
    if line.is_empty() {
        return Ok(None);
    }
    match line.pop() {
        Some(b'\n') => Ok(Some(line)),
        _ => Err(damaged(path, format!("a line of at most {MOST_LINE} bytes"), "one without an end")),
    }
}

fn side(text: &str, path: &Path) -> Result<usize> {
    let number = text.parse().ok().filter(|number| (1..=MAX_SIDE).contains(number));
    number.ok_or_else(|| {
        let error = Error::mismatch(path, "film", format!("sides of 1 to {MAX_SIDE} pixels"), format!("`{text}`"));
        error.with_hint("make the film smaller")
    })
}

/// What the planes mean, by the name of the layout.
fn layout(name: &str, path: &Path) -> Result<Layout> {
    let colours = match name {
        "420jpeg" => Some([Sited::Between, Sited::Between]),
        "420" | "420mpeg2" => Some([Sited::First, Sited::Between]),
        "420paldv" => Some([Sited::First, Sited::First]),
        "422" => Some([Sited::First, Sited::Full]),
        "444" => Some([Sited::Full, Sited::Full]),
        "mono" => None,
        _ => {
            let error = Error::mismatch(path, "film", "420, 422, 444 or mono, 8 bits each", format!("`C{name}`"));
            return Err(error.with_hint("`ffmpeg -i FILM -pix_fmt yuv420p NEW.y4m` converts it"));
        }
    };
    Ok(Layout { colours, is_full_range: false })
}

fn damaged(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Error {
    let error = Error::mismatch(path, "film", expected, found);
    error.with_hint("the file is cut off or damaged: copy or make it again")
}
