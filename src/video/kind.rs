//! Kinds of film files.

use std::fmt;
use std::path::Path;

use crate::image::Format;
use crate::{Error, Result};

/// A kind of film, by which its frames are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `.mp4`: H.264, which plays everywhere; pixels nearly as they are.
    Mp4,
    /// `.gif`: 256 colours in each frame.
    Gif,
    /// `.webp`: animated, every pixel as it is.
    WebP,
    /// `.apng` or `.png`: animated, every pixel as it is.
    Apng,
    /// `.y4m`, or `-` for the standard output: not compressed, for other programs.
    Y4m,
    /// A folder, or a name with `%04d` in it: each frame is a picture of this format.
    Frames(Format),
}

/// What the standard output is called.
pub(super) const STDOUT: &str = "-";

/// The names that films may have.
const NAMES: &str = "a name that ends in .mp4, .webp, .gif, .apng, .png or .y4m, a folder (NAME/), a name with %04d in it, or - for Y4M";

/// How the names of films end that other programs make.
const OTHERS: [&str; 6] = ["webm", "mkv", "mov", "avi", "mpg", "ts"];

impl Kind {
    /// The kind of film that the name of an output asks for.
    ///
    /// # Errors
    /// [`Error::Option`] for a name that films do not have.
    pub fn of(path: &Path) -> Result<Kind> {
        if path == Path::new(STDOUT) {
            return Ok(Kind::Y4m);
        }
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let refused = |found: String| {
            let error = Error::option("--output", NAMES, found);
            Err(match extension.to_str().is_some_and(|end| OTHERS.contains(&end)) {
                true => error.with_hint("`-o - | ffmpeg -i - FILM` makes a film of another type"),
                false => error.with_hint("the name's end chooses the type of the film"),
            })
        };
        if is_folder(path) {
            return Ok(Kind::Frames(Format::Png));
        }
        if Numbered::of(path).is_some() {
            return match Format::of(path) {
                Ok(format) => Ok(Kind::Frames(format)),
                Err(_) => refused(format!("{}, whose frames would be no pictures", path.display())),
            };
        }
        match extension.to_str() {
            Some("mp4" | "m4v") => Ok(Kind::Mp4),
            Some("gif") => Ok(Kind::Gif),
            Some("webp") => Ok(Kind::WebP),
            Some("apng" | "png") => Ok(Kind::Apng),
            Some("y4m") => Ok(Kind::Y4m),
            _ => refused(path.display().to_string()),
        }
    }
}

/// Whether `path` is a folder, or is written as one.
pub(super) fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.to_string_lossy().ends_with(std::path::is_separator)
}

/// A name with the place of a number in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    before: String,
    digits: usize,
    after: String,
}

impl Numbered {
    /// The name of `path` with its place, `%d` or `%04d`. `None` if there is none, or more than one.
    pub(super) fn of(path: &Path) -> Option<Numbered> {
        let name = path.file_name()?.to_str()?;
        let (before, rest) = name.split_once('%')?;
        let (digits, after) = rest.split_once('d')?;
        let digits = match digits.strip_prefix('0') {
            Some(digits) => digits.parse().ok().filter(|&digits| digits <= 9)?,
            None if digits.is_empty() => 1,
            None => return None,
        };
        (!after.contains('%')).then(|| Numbered { before: before.to_owned(), digits, after: after.to_owned() })
    }

    /// The frames of a folder.
    pub(super) fn plain() -> Numbered {
        Numbered { before: String::new(), digits: 5, after: ".png".to_owned() }
    }

    /// The name with `number`.
    pub(super) fn name(&self, number: usize) -> String {
        format!("{}{number:0digits$}{}", self.before, self.after, digits = self.digits)
    }

    /// The number in `name`, if it is one of these names.
    pub(super) fn number(&self, name: &str) -> Option<usize> {
        let digits = name.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
        let number = digits.parse().ok()?;
        (self.name(number) == name).then_some(number)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Mp4 => f.write_str("MP4"),
            Kind::Gif => f.write_str("GIF"),
            Kind::WebP => f.write_str("WebP"),
            Kind::Apng => f.write_str("APNG"),
            Kind::Y4m => f.write_str("Y4M"),
            Kind::Frames(format) => write!(f, "{format} files"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_kind() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there.mp4");
        std::fs::create_dir(&there).unwrap();
        let png = Kind::Frames(Format::Png);
        assert_eq!(Kind::of(&there).unwrap(), png);
        for (name, kind) in [
            ("a.mp4", Kind::Mp4),
            ("b/a.b.M4V", Kind::Mp4),
            ("a.gif", Kind::Gif),
            ("a.WEBP", Kind::WebP),
            ("a.png", Kind::Apng),
            ("a.apng", Kind::Apng),
            ("a.y4m", Kind::Y4m),
            ("-", Kind::Y4m),
            ("a/", png),
            ("a.mp4/", png),
            ("a/f-%04d.png", png),
            ("%d.jpg", Kind::Frames(Format::Jpeg)),
            ("100%.mp4", Kind::Mp4),
            ("100%/a.gif", Kind::Gif),
        ] {
            assert_eq!(Kind::of(Path::new(name)).unwrap(), kind, "{name}");
        }
        for name in ["a", "a.avi", "a.jpg", "a.webm", "", ".mp4", "%04d.mp4", "f%d", "a.mp4 "] {
            let error = Kind::of(Path::new(name)).unwrap_err().to_string();
            assert!(error.contains(".mp4, .webp, .gif, .apng, .png or .y4m"), "{name}: {error}");
        }
        let hint = |name: &str| Kind::of(Path::new(name)).unwrap_err().hint().unwrap_or_default().to_owned();
        assert!(hint("a.webm").contains("ffmpeg -i -") && hint("a.MKV").contains("ffmpeg -i -"));
        assert!(hint("a.jpg").contains("the name's end"));
    }

    #[test]
    fn numbers_have_a_place() {
        let numbered = Numbered::of(Path::new("a/f%03d-x.png")).unwrap();
        assert_eq!([1, 81, 1234].map(|number| numbered.name(number)), ["f001-x.png", "f081-x.png", "f1234-x.png"]);
        assert_eq!(numbered.number("f081-x.png"), Some(81));
        for other in ["f81-x.png", "f081.png", "081-x.png", "f+81-x.png", "f0081-x.png"] {
            assert_eq!(numbered.number(other), None, "{other}");
        }
    }
}
