//! The files that a request writes: named and created before the work, filled after it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use pinhole::Error;
use pinhole::image::{Format, Image, PARAMETERS, PINHOLE};
use pinhole::pipeline::{Generated, Settings};
use pinhole_quant::output::AtomicFile;

use super::destinations::{self, Kind, Named};
use super::latents;
use crate::cli::failure::Failure;
use crate::cli::preview::Previews;

/// Files under construction. Dropped, they leave nothing behind.
pub(super) struct Outputs {
    pictures: Vec<(AtomicFile, u64)>,
    /// The names that were given. Without, each gets the first that is free in the end.
    names: Vec<PathBuf>,
    format: Format,
    /// With the name that was given.
    latents: Option<(AtomicFile, PathBuf)>,
    previews: Previews,
}

/// What was written.
pub(super) struct Written {
    /// Each picture with its seed.
    pub(super) pictures: Vec<(PathBuf, u64)>,
    /// The file of `--save-latents`.
    pub(super) latents: Option<PathBuf>,
    /// The files of `--preview`, one for each picture.
    pub(super) previews: Vec<PathBuf>,
}

/// The two texts that a picture carries.
pub(super) struct PngText {
    /// What made it, as other tools write it.
    pub(super) parameters: String,
    /// The same as JSON.
    pub(super) json: String,
}

impl Outputs {
    /// Creates every file that `settings` will fill. Refuses to create one that is among `inputs`.
    ///
    /// # Errors
    /// Where one cannot be written, or would replace something else.
    pub(super) fn create(
        output: Option<&Path>,
        (latents, preview): (Option<&Path>, Option<&Path>),
        inputs: &[Named],
        settings: &Settings,
    ) -> Result<Outputs, Failure> {
        let format = output.map_or(Ok(Format::Png), Format::of)?;
        let names = output.map(|output| given_names(output, settings.batch)).unwrap_or_default();
        let mut places = Vec::new();
        for path in &names {
            places.push((Named { option: "--output", path: path.clone() }, Kind::Picture));
        }
        if let Some(path) = latents {
            places.push((Named { option: "--save-latents", path: path.to_owned() }, Kind::Latents));
        }
        let previews = preview.map(|preview| given_names(preview, settings.batch)).unwrap_or_default();
        for path in &previews {
            places.push((Named { option: "--preview", path: path.clone() }, Kind::Picture));
        }
        destinations::check(&places, inputs)?;
        let mut pictures = Vec::with_capacity(settings.batch);
        for i in 0..settings.batch {
            let seed = settings.seed.wrapping_add(i as u64);
            let file = match names.get(i) {
                Some(name) => AtomicFile::create(name, true)?,
                None => AtomicFile::create_beside(&free_name(seed, 1))?,
            };
            pictures.push((file, seed));
        }
        let latents = match latents {
            Some(path) => Some((AtomicFile::create(path, true)?, path.to_owned())),
            None => None,
        };
        Ok(Outputs { pictures, names, format, latents, previews: Previews::create(previews)? })
    }

    /// Shows `image` of picture number `index`, as it looks so far.
    ///
    /// # Errors
    /// Where its file cannot be written.
    pub(super) fn show(&self, index: usize, image: &Image) -> Result<(), Error> {
        self.previews.show(index, image)
    }

    /// Writes the pictures, with what `about` says inside, and the latents.
    ///
    /// # Errors
    /// Where one cannot be written; those before it stay.
    pub(super) fn write(
        &mut self,
        generated: &Generated,
        about: impl Fn(usize, u64) -> PngText,
    ) -> Result<Written, Failure> {
        let mut pictures = Vec::with_capacity(self.pictures.len());
        for (i, ((mut file, seed), image)) in self.pictures.drain(..).zip(&generated.images).enumerate() {
            let PngText { parameters, json } = about(i, seed);
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
        Ok(Written { pictures, latents, previews: self.previews.paths().to_vec() })
    }
}

fn write_latents(generated: &Generated, mut file: AtomicFile, path: PathBuf) -> Result<PathBuf, Failure> {
    latents::write(generated, &mut file).map_err(|error| Error::io("write", &path, error))?;
    file.commit()?;
    Ok(path)
}

/// `OUT.png`, or `OUT-1.png`, `OUT-2.png`, ... for more than one.
fn given_names(output: &Path, batch: usize) -> Vec<PathBuf> {
    let (stem, extension) = (output.file_stem().unwrap_or_default(), output.extension().unwrap_or_default());
    match batch {
        1 => vec![output.to_owned()],
        _ => (1..=batch).map(|i| output.with_file_name(numbered(stem, i, extension))).collect(),
    }
}

fn numbered(stem: &OsStr, number: usize, extension: &OsStr) -> OsString {
    let mut name = stem.to_owned();
    name.push(format!("-{number}."));
    name.push(extension);
    name
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
    fn a_batch_is_numbered() {
        assert_eq!(given_names(Path::new("a/b.PNG"), 1), [Path::new("a/b.PNG")]);
        assert_eq!(given_names(Path::new("a/b.c.jpg"), 2), [Path::new("a/b.c-1.jpg"), Path::new("a/b.c-2.jpg")]);
    }

    #[test]
    fn names_that_are_not_given_count_on() {
        assert_eq!(
            [1, 2, 3].map(|i| free_name(7, i)),
            ["pinhole-7.png", "pinhole-7-2.png", "pinhole-7-3.png"].map(PathBuf::from)
        );
    }
}
