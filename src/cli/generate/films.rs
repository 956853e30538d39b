//! The films that a request writes: begun before the work, and grown as frames are decoded.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use pinhole::image::{Image, PARAMETERS, PINHOLE};
use pinhole::pipeline::{Generated, Opened, PictureTexts, Settings};
use pinhole::video::{Film, Kind, Rate, Shape};
use pinhole::{Error, Result};

use super::names::{given_names, numbered};

/// What the standard output is called.
pub(super) const STDOUT: &str = "-";

/// A film that was written.
pub(super) struct WrittenFilm {
    /// `None` for the standard output.
    pub(super) path: Option<PathBuf>,
    pub(super) seed: u64,
    pub(super) frames: usize,
    pub(super) fps: f32,
}

/// Films under construction, one for each of the batch.
pub(super) struct Films {
    films: Vec<(Film, u64)>,
    fps: f32,
    frames: usize,
    to_stdout: bool,
    /// Whether frames are what they will be when they are decoded: nothing else is made of them.
    grow: bool,
}

impl Films {
    /// Whether a request with these `settings` makes films: one of a single frame is a picture, if its name is one's.
    pub(super) fn are_made(settings: &Settings, output: Option<&Path>) -> bool {
        let is_no_picture = output.is_some_and(|path| pinhole::image::Format::of(path).is_err());
        settings.fps.is_some() && (settings.frames > 1 || is_no_picture)
    }

    /// The names of the films, if they have one.
    ///
    /// # Errors
    /// Those of [`Kind::of`]; [`Error::Option`] for several films on the standard output.
    pub(super) fn names(output: Option<&Path>, batch: usize) -> Result<Vec<PathBuf>> {
        let Some(output) = output else { return Ok(Vec::new()) };
        let kind = Kind::of(output)?;
        if output == Path::new(STDOUT) && batch > 1 {
            let expected = "the name of a file or a folder, since there is more than one film";
            return Err(Error::option("--output", expected, STDOUT));
        }
        let is_folder = matches!(kind, Kind::Frames(_)) && !output.to_string_lossy().contains('%');
        Ok(match is_folder && batch > 1 {
            // A folder has numbers behind its whole name.
            true => (1..=batch).map(|number| output.with_file_name(numbered_folder(output, number))).collect(),
            false => given_names(output, batch),
        })
    }

    /// Begins a film for each of `names`, or one with a name of its own.
    ///
    /// # Errors
    /// Those of [`Film::create`]; [`Error::Option`] for a terminal as the output.
    pub(super) fn create(names: &[PathBuf], model: &Opened, settings: &Settings) -> Result<Films> {
        let last = settings.last();
        let (fps, frames) = (last.fps.unwrap_or_default(), last.frames);
        let [width, height] = match &model.upscaler {
            Some(upscaler) => upscaler.size([last.width, last.height], None)?,
            None => [last.width, last.height],
        };
        let rate = Rate::of(fps.into());
        let rate = rate.ok_or_else(|| Error::option("--fps", "more than 0, at most 1000", fps.to_string()))?;
        let shape = Shape { width, height, frames, rate };
        let to_stdout = names.first().is_some_and(|name| name == Path::new(STDOUT));
        let mut films = Vec::with_capacity(settings.batch);
        for i in 0..settings.batch {
            let seed = settings.seed.wrapping_add(i as u64);
            let film = match names.get(i) {
                Some(_) if to_stdout && io::stdout().is_terminal() => {
                    let error =
                        Error::option("--output", "a file, a folder, or a pipe to another program", "a terminal");
                    return Err(error.with_hint("`| ffmpeg -i - FILM` behind the command takes the film"));
                }
                Some(_) if to_stdout => Film::to_stream(io::stdout(), shape)?,
                Some(name) => Film::create(name, shape)?,
                None => Film::create_free((1..=u32::MAX).map(move |attempt| free_name(seed, attempt)), shape)?,
            };
            films.push((film, seed));
        }
        let grow = model.safety.is_none() && model.upscaler.is_none() && settings.second.is_none();
        Ok(Films { films, fps, frames, to_stdout, grow })
    }

    /// Says what is in the films.
    pub(super) fn describe(&mut self, about: impl Fn(usize, u64) -> PictureTexts) {
        let frames = self.frames;
        for (i, (film, seed)) in self.films.iter_mut().enumerate() {
            let PictureTexts { parameters, json } = about(i * frames, *seed);
            film.set_text(&[(PARAMETERS, parameters.as_str()), (PINHOLE, json.as_str())]);
        }
    }

    /// Takes a frame of film `index` as soon as it is decoded.
    ///
    /// # Errors
    /// Those of [`Film::push`].
    pub(super) fn grow(&mut self, index: usize, image: &Image) -> Result<()> {
        match self.films.get_mut(index) {
            Some((film, _)) if self.grow => film.push(image),
            _ => Ok(()),
        }
    }

    /// Ends the films, with the frames of `generated` that they do not have yet.
    ///
    /// # Errors
    /// Those of [`Film::push`] and [`Film::finish`].
    pub(super) fn finish(&mut self, generated: &Generated) -> Result<Vec<WrittenFilm>> {
        let mut written = Vec::with_capacity(self.films.len());
        for (i, (mut film, seed)) in self.films.drain(..).enumerate() {
            if !self.grow {
                for image in generated.images.iter().skip(i * self.frames).take(self.frames) {
                    film.push(image)?;
                }
            }
            // Says so if frames are missing.
            let path = film.finish()?;
            let path = (!self.to_stdout).then_some(path);
            written.push(WrittenFilm { path, seed, frames: self.frames, fps: self.fps });
        }
        Ok(written)
    }
}

/// `OUT-1/`, `OUT-2/`, ... for more than one.
fn numbered_folder(output: &Path, number: usize) -> std::ffi::OsString {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{number}{}", std::path::MAIN_SEPARATOR));
    name
}

/// What a film without a given name is called in the working directory: `pinhole-SEED.mp4`, or `pinhole-SEED-2.mp4`, ... if that is
/// taken.
fn free_name(seed: u64, attempt: u32) -> PathBuf {
    let stem = format!("pinhole-{seed}");
    match attempt {
        1 => format!("{stem}.mp4").into(),
        _ => numbered(stem.as_ref(), attempt as usize, "mp4".as_ref()).into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_films_is_numbered() {
        for (output, wanted) in
            [("a/b.mp4", "a/b-2.mp4"), ("a/b/", "a/b-2/"), ("a/b.c/", "a/b.c-2/"), ("a/f%03d.png", "a/f%03d-2.png")]
        {
            assert_eq!(Films::names(Some(Path::new(output)), 2).unwrap()[1].to_str(), Some(wanted));
            assert_eq!(Films::names(Some(Path::new(output)), 1).unwrap(), [Path::new(output)]);
        }
        assert!(Films::names(Some(Path::new("-")), 2).is_err() && Films::names(Some(Path::new("-")), 1).is_ok());
        assert_eq!([1, 2].map(|i| free_name(7, i)), ["pinhole-7.mp4", "pinhole-7-2.mp4"].map(PathBuf::from));
    }
}
