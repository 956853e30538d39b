//! Writing films.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use super::apng::Apng;
use super::body::{Body, Shape};
use super::folder::Folder;
use super::gif::{self, Gif};
use super::h264;
use super::kind::{Kind, STDOUT};
use super::mp4::Mp4;
use super::sink::Sink;
use super::webp::{self, WebP};
use super::y4m::Y4m;
use crate::image::{Image, MAX_SIDE};
use crate::{Error, Result};

/// The most frames of a film.
const MOST_FRAMES: usize = 1 << 20;

/// A film under construction. A file appears whole when it is [finished](Film::finish); dropped before, nothing is left of it. In a folder,
/// every frame is there from when it was pushed.
///
/// ```
/// use pinhole::image::Image;
/// use pinhole::video::{Film, Rate, Shape};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("night.webp");
/// let rate = Rate::new(16, 1).unwrap();
/// let mut film = Film::create(&path, Shape { width: 32, height: 16, frames: 2, rate })?;
/// for shade in [0, 20] {
///     film.push(&Image::new(32, 16, vec![shade; 32 * 16 * 3]).unwrap())?;
/// }
/// film.finish()?;
/// # Ok::<(), pinhole::Error>(())
/// ```
pub struct Film {
    /// As it was given.
    path: PathBuf,
    kind: Kind,
    shape: Shape,
    text: Vec<(String, String)>,
    made: usize,
    output: Output,
}

/// Where the frames go.
enum Output {
    File(Content),
    Folder(Folder),
}

/// A film in one file.
struct Content {
    sink: Sink,
    body: Box<dyn Body>,
    /// Where each frame ends.
    ends: Vec<u64>,
    /// Where it has no name of its own, it gets the first of these that is free.
    names: Option<Names>,
}

type Names = Peekable<Box<dyn Iterator<Item = PathBuf> + Send>>;

impl Film {
    /// Begins a film at `path`, whose end chooses the kind. A film or a picture that is there is replaced.
    ///
    /// # Errors
    /// Those of [`Kind::of`]; [`Error::Option`] if this kind holds no film of this `shape`; [`Error::Exists`] if something else than a film
    /// or a picture is there; [`Error::Io`] if the file cannot be made.
    pub fn create(path: &Path, shape: Shape) -> Result<Film> {
        let kind = Kind::of(path)?;
        check(kind, shape)?;
        if path == Path::new(STDOUT) {
            return Err(Error::option("--output", "the name of a file or a folder", STDOUT));
        }
        let output = match kind {
            Kind::Frames(format) => Output::Folder(Folder::create(path, format, shape.frames)?),
            _ => {
                check_replaced(path)?;
                Output::File(Content::new(kind, Sink::create(path)?, shape, None, path)?)
            }
        };
        Ok(Film { path: path.to_owned(), kind, shape, text: Vec::new(), made: 0, output })
    }

    /// Begins a film that gets the first of `names` that is free in the end. All are names of one kind in one folder.
    ///
    /// # Errors
    /// As [`create`](Film::create); for a folder, which is no file.
    pub fn create_free(names: impl Iterator<Item = PathBuf> + Send + 'static, shape: Shape) -> Result<Film> {
        let names: Box<dyn Iterator<Item = PathBuf> + Send> = Box::new(names);
        let mut names = names.peekable();
        let path = names.peek().cloned().unwrap_or_default();
        let kind = Kind::of(&path)?;
        check(kind, shape)?;
        let content = Content::new(kind, Sink::beside(&path)?, shape, Some(names), &path)?;
        Ok(Film { path, kind, shape, text: Vec::new(), made: 0, output: Output::File(content) })
    }

    /// Begins a film that is written to `stream` as Y4M.
    ///
    /// # Errors
    /// As [`create`](Film::create).
    pub fn to_stream(stream: impl Write + Send + 'static, shape: Shape) -> Result<Film> {
        check(Kind::Y4m, shape)?;
        let path = Path::new(STDOUT);
        let content = Content::new(Kind::Y4m, Sink::stream(Box::new(stream)), shape, None, path)?;
        Ok(Film { path: path.into(), kind: Kind::Y4m, shape, text: Vec::new(), made: 0, output: Output::File(content) })
    }

    /// What the film says of itself: pairs of a keyword and a text, as pictures have them. To be set before the first frame. It may be set
    /// again before the end: MP4, GIF and WebP say it there.
    pub fn set_text(&mut self, text: &[(&str, &str)]) {
        self.text = text.iter().map(|&(keyword, text)| (keyword.to_owned(), text.to_owned())).collect();
    }

    /// The kind of film.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Writes the next frame.
    ///
    /// # Errors
    /// [`Error::Graph`] for a frame of another size, or one too many; [`Error::Unfinished`] if it cannot be written, which says what became
    /// of those before. Nothing can be pushed then.
    pub fn push(&mut self, image: &Image) -> Result<()> {
        let Shape { width, height, frames, .. } = self.shape;
        if (image.width(), image.height()) != (width, height) || self.made == frames {
            let found = format!("frame {} of {}x{}", self.made + 1, image.width(), image.height());
            return Err(Error::graph("film", format!("{found} for a film of {frames} frames of {width}x{height}")));
        }
        let written = match &mut self.output {
            Output::File(content) => content.push(self.made, image, &self.text),
            Output::Folder(folder) => folder.push(self.made, image, &self.text),
        };
        match written {
            Ok(()) => self.made += 1,
            Err(source) => return Err(self.broken_off(source)),
        }
        Ok(())
    }

    /// Ends the film, and gives the file its name. Returns the name.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if it cannot be written or frames are missing; [`Error::Io`] if it cannot be named.
    pub fn finish(mut self) -> Result<PathBuf> {
        if self.made < self.shape.frames {
            return Err(self.broken_off(io::Error::other("the frames ended too early")));
        }
        let Output::File(content) = &mut self.output else { return Ok(self.path) };
        if let Err(source) = content.end(&self.text) {
            return Err(self.broken_off(source));
        }
        Ok(content.commit()?.unwrap_or(self.path))
    }

    /// The error for a film that cannot go on. What can be kept is kept.
    fn broken_off(&mut self, source: io::Error) -> Error {
        let (mut path, mut kept) = (self.path.clone(), self.made);
        let hint = match &mut self.output {
            Output::Folder(folder) if kept > 0 => {
                path = folder.path(kept);
                let [first, last] = [0, kept - 1].map(|index| folder.path(index));
                format!("they are kept, from {} to {}", first.display(), last.display())
            }
            Output::Folder(_) => "make room on the disk, or choose another".to_owned(),
            Output::File(content) => match content.rescue(&self.text) {
                Some((frames, name)) => {
                    kept = frames;
                    path = name.unwrap_or(path);
                    format!("{} ends after frame {kept}", path.display())
                }
                None => format!("this {} is lost; of a folder (NAME/), the frames that were made are kept", self.kind),
            },
        };
        Error::Unfinished { path, made: kept, frames: self.shape.frames, source, hint: Some(hint) }
    }
}

impl Content {
    fn new(kind: Kind, sink: Sink, shape: Shape, names: Option<Names>, path: &Path) -> Result<Content> {
        let body: Box<dyn Body> = match kind {
            Kind::Mp4 => Box::new(Mp4::new(sink.clone(), shape).map_err(|error| Error::io("encode", path, error))?),
            Kind::Gif => Box::new(Gif::new(sink.clone(), shape)),
            Kind::WebP => Box::new(WebP::new(sink.clone(), shape)),
            Kind::Apng => Box::new(Apng::new(sink.clone(), shape)),
            Kind::Y4m => Box::new(Y4m::new(sink.clone(), shape)),
            Kind::Frames(_) => {
                return Err(Error::option("--output", "the name of a file", path.display().to_string()));
            }
        };
        Ok(Content { sink, body, ends: Vec::new(), names })
    }

    fn push(&mut self, index: usize, image: &Image, text: &[(String, String)]) -> io::Result<()> {
        if index == 0 {
            self.body.begin(text)?;
        }
        self.body.push(image)?;
        // A full disk shows now, and not in the middle of a later frame.
        self.sink.flush()?;
        self.ends.push(self.sink.written());
        Ok(())
    }

    fn end(&mut self, text: &[(String, String)]) -> io::Result<()> {
        self.body.end(text)?;
        self.sink.flush()
    }

    fn commit(&mut self) -> Result<Option<PathBuf>> {
        self.sink.commit(self.names.as_mut().map(|names| names as &mut dyn Iterator<Item = PathBuf>))
    }

    /// Ends the file after the last frame for which there is room, or the one before that, whose room is then free for what comes behind
    /// the frames. Returns how many there are, and the name if it was chosen now. `None` if none can be kept.
    fn rescue(&mut self, text: &[(String, String)]) -> Option<(usize, Option<PathBuf>)> {
        let whole = self.ends.len();
        for frames in (1..=whole).rev().take(2) {
            let ended =
                self.sink.truncate(self.ends[frames - 1]).is_ok() && self.body.cut(frames) && self.end(text).is_ok();
            if ended {
                return self.commit().ok().map(|name| (frames, name));
            }
        }
        None
    }
}

/// Refuses what `kind` cannot hold.
fn check(kind: Kind, shape: Shape) -> Result<()> {
    let Shape { width, height, frames, rate } = shape;
    let size = format!("{width}x{height}");
    let refused = |expected: String, found: String, hint: &str| {
        Err(Error::option("--output", expected, found).with_hint(hint.to_owned()))
    };
    const OTHERS: &str = ".webp, .apng and a folder (NAME/) take any size";
    if width.min(height) == 0 || width.max(height) > MAX_SIDE || !(1..=MOST_FRAMES).contains(&frames) {
        let expected = format!("1 to {MOST_FRAMES} frames with sides of 1 to {MAX_SIDE} pixels");
        return refused(expected, format!("{frames} of {size}"), "make the film smaller");
    }
    match kind {
        Kind::Mp4 => {
            let [longer, shorter] = h264::MOST;
            let least = h264::LEAST;
            if width % 2 + height % 2 > 0 {
                refused(format!("even sides, since two by two pixels of {kind} share a colour"), size, OTHERS)
            } else if width.min(height) < least {
                refused(format!("sides of at least {least} pixels for {kind}"), size, OTHERS)
            } else if width.max(height) > longer || width.min(height) > shorter {
                refused(format!("at most {longer}x{shorter} or {shorter}x{longer} pixels for {kind}"), size, OTHERS)
            } else {
                Ok(())
            }
        }
        Kind::Gif if rate.fps() > f64::from(gif::MOST_FPS) => {
            let expected = format!("at most {} frames in a second for {kind}", gif::MOST_FPS);
            refused(expected, rate.to_string(), ".mp4 and .webp take more")
        }
        Kind::WebP if width.max(height) > webp::MOST_SIDE => {
            refused(format!("sides of at most {} pixels for {kind}", webp::MOST_SIDE), size, "make the film smaller")
        }
        _ => Ok(()),
    }
}

/// Refuses to put a film in the place of something else. What is at `path` may be a film, a picture, an empty file, or nothing; what is no
/// file is for [`Film::create`] to refuse.
///
/// # Errors
/// [`Error::Exists`].
pub fn check_replaced(path: &Path) -> Result<()> {
    if !fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() > 0) || is_film(path) {
        return Ok(());
    }
    crate::image::check_replaced(path).map_err(|error| match error {
        Error::Exists { path, .. } => {
            let hint = "it is no film, so it is not replaced: choose another name";
            Error::Exists { path, hint: Some(hint.into()) }
        }
        other => other,
    })
}

/// Whether the file begins as one of the kinds does. Those that pictures have, too, are not looked for.
fn is_film(path: &Path) -> bool {
    let mut first = Vec::new();
    let read = File::open(path).and_then(|file| file.take(12).read_to_end(&mut first));
    read.is_ok()
        && (first.starts_with(b"GIF8")
            || first.starts_with(b"YUV4MPEG2 ")
            || first.get(4..8) == Some(b"ftyp".as_slice()))
}
