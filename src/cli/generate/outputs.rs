//! The files that a request writes: named and created before the work, filled after it.

use std::path::{Path, PathBuf};

use pinhole::Error;
use pinhole::image::{Format, Image, PARAMETERS, PINHOLE};
use pinhole::pipeline::{Generated, Opened, PictureTexts, Settings};
use pinhole::trace::Trace;
use pinhole::video;
use pinhole_quant::output::AtomicFile;

use super::destinations::{self, Kind, Named};
use super::films::{Films, WrittenFilm};
use super::latents;
use super::names::given_names;
use crate::cli::failure::Failure;
use crate::cli::preview::Previews;

/// Files under construction. Dropped, they leave nothing behind.
pub(super) struct Outputs {
    pictures: Vec<(AtomicFile, u64)>,
    /// In the place of pictures.
    films: Option<Films>,
    /// The names that were given. Without, each gets the first that is free in the end.
    names: Vec<PathBuf>,
    format: Format,
    /// With the name that was given.
    latents: Option<(AtomicFile, PathBuf)>,
    /// The same.
    trace: Option<(AtomicFile, PathBuf)>,
    previews: Previews,
}

/// The names of files beside the pictures.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    pub(super) latents: Option<&'a Path>,
    pub(super) preview: Option<&'a Path>,
    pub(super) trace: Option<&'a Path>,
}

/// What was written.
pub(super) struct Written {
    /// Each picture with its seed.
    pub(super) pictures: Vec<(PathBuf, u64)>,
    pub(super) films: Vec<WrittenFilm>,
    /// The file of `--save-latents`.
    pub(super) latents: Option<PathBuf>,
    /// The file of `--trace`.
    pub(super) trace: Option<PathBuf>,
    /// The files of `--preview`, one for each picture.
    pub(super) previews: Vec<PathBuf>,
}

impl Outputs {
    /// Creates every file that `settings` will fill. Refuses to create one that is among `inputs`.
    ///
    /// # Errors
    /// Where one cannot be written, or would replace something else.
    pub(super) fn create(
        output: Option<&Path>,
        Beside { latents, preview, trace }: Beside<'_>,
        inputs: &[Named],
        (model, settings): (&Opened, &Settings),
    ) -> Result<Outputs, Failure> {
        let films = Films::are_made(settings, output);
        let (names, format, kind) = match films {
            true => (Films::names(output, settings.batch)?, Format::Png, Kind::Film),
            false => {
                let format = output.map_or(Ok(Format::Png), picture_format)?;
                (output.map(|output| given_names(output, settings.batch)).unwrap_or_default(), format, Kind::Picture)
            }
        };
        let mut places = Vec::new();
        for path in &names {
            places.push((Named { option: "--output", path: path.clone() }, kind));
        }
        if let Some(path) = latents {
            places.push((Named { option: "--save-latents", path: path.to_owned() }, Kind::Latents));
        }
        if let Some(path) = trace {
            places.push((Named { option: "--trace", path: path.to_owned() }, Kind::Trace));
        }
        let previews = preview.map(|preview| given_names(preview, settings.batch)).unwrap_or_default();
        for path in &previews {
            places.push((Named { option: "--preview", path: path.clone() }, Kind::Picture));
        }
        destinations::check(&places, inputs)?;
        let films = films.then(|| Films::create(&names, model, settings)).transpose()?;
        let mut pictures = Vec::with_capacity(settings.batch);
        for i in (0..settings.batch).filter(|_| films.is_none()) {
            let seed = settings.seed.wrapping_add(i as u64);
            let file = match names.get(i) {
                Some(name) => AtomicFile::create(name, true)?,
                None => AtomicFile::create_beside(&free_name(seed, 1))?,
            };
            pictures.push((file, seed));
        }
        let create = |path: Option<&Path>| match path {
            Some(path) => AtomicFile::create(path, true).map(|file| Some((file, path.to_owned()))),
            None => Ok(None),
        };
        let (latents, trace) = (create(latents)?, create(trace)?);
        Ok(Outputs { pictures, films, names, format, latents, trace, previews: Previews::create(previews)? })
    }

    /// Shows `image` of picture number `index`, as it looks so far.
    ///
    /// # Errors
    /// Where its file cannot be written.
    pub(super) fn show(&self, index: usize, image: &Image) -> Result<(), Error> {
        self.previews.show(index, image)
    }

    /// Says what is in the films, if there are any; pictures are told when they are written.
    pub(super) fn describe(&mut self, about: impl Fn(usize, u64) -> PictureTexts) {
        if let Some(films) = &mut self.films {
            films.describe(about);
        }
    }

    /// Takes a frame of film `index`.
    ///
    /// # Errors
    /// Where its file cannot be written.
    pub(super) fn grow(&mut self, index: usize, image: &Image) -> Result<(), Error> {
        self.films.as_mut().map_or(Ok(()), |films| films.grow(index, image))
    }

    /// Writes the pictures or films, with what `about` says inside, the latents, and `trace`.
    ///
    /// # Errors
    /// Where one cannot be written; those before it stay.
    pub(super) fn write(
        &mut self,
        generated: &Generated,
        trace: Option<&Trace>,
        about: impl Fn(usize, u64) -> PictureTexts,
    ) -> Result<Written, Failure> {
        // Once more: some films say it behind the frames, when more is known.
        self.describe(&about);
        let films = self.films.as_mut().map(|films| films.finish(generated)).transpose()?.unwrap_or_default();
        let mut pictures = Vec::with_capacity(self.pictures.len());
        for (i, ((mut file, seed), image)) in self.pictures.drain(..).zip(&generated.images).enumerate() {
            let PictureTexts { parameters, json } = about(i, seed);
            // The file's own target is where a link leads.
            let name = self.names.get(i);
            let path = name.map_or(file.target(), PathBuf::as_path).to_owned();
            let text = [(PARAMETERS, parameters.as_str()), (PINHOLE, json.as_str())];
            image.write(self.format, &mut file, &text).map_err(|error| Error::io("write", &path, error))?;
            let path = match name {
                Some(_) => file.commit().map(|()| path)?,
                None => file.commit_to_first_free((1..=u32::MAX).map(|i| free_name(seed, i)))?,
            };
            pictures.push((path, seed));
        }
        let latents = self.latents.take().map(|(file, path)| write_latents(generated, file, path)).transpose()?;
        let traced = self.trace.take().zip(trace);
        let trace = traced.map(|((file, path), trace)| write_trace(trace, file, path)).transpose()?;
        Ok(Written { pictures, films, latents, trace, previews: self.previews.paths().to_vec() })
    }
}

fn write_trace(trace: &Trace, mut file: AtomicFile, path: PathBuf) -> Result<PathBuf, Failure> {
    trace.write(&mut file).map_err(|error| Error::io("write", &path, error))?;
    file.commit()?;
    Ok(path)
}

fn write_latents(generated: &Generated, mut file: AtomicFile, path: PathBuf) -> Result<PathBuf, Failure> {
    latents::write(generated, &mut file).map_err(|error| Error::io("write", &path, error))?;
    file.commit()?;
    Ok(path)
}

/// The format of a picture of this name.
///
/// # Errors
/// [`Error::Option`] for other names, those of films among them.
fn picture_format(output: &Path) -> Result<Format, Error> {
    Format::of(output).map_err(|error| match video::Kind::of(output) {
        Ok(kind) => error.with_hint(format!("that is a name of films ({kind}), and this model makes pictures")),
        Err(_) => error,
    })
}

/// What a picture without a given name is called in the working directory: `pinhole-SEED.png`, or `pinhole-SEED-2.png`, ... if
/// that is taken.
fn free_name(seed: u64, attempt: u32) -> PathBuf {
    match attempt {
        1 => format!("pinhole-{seed}.png").into(),
        _ => format!("pinhole-{seed}-{attempt}.png").into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_given_count_on() {
        assert_eq!(
            [1, 2, 3].map(|i| free_name(7, i)),
            ["pinhole-7.png", "pinhole-7-2.png", "pinhole-7-3.png"].map(PathBuf::from)
        );
    }
}
