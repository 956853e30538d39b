//! The files that a request writes: named and created before the work, filled after it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use pinhole::Error;
use pinhole::image::{Format, PARAMETERS, PINHOLE};
use pinhole::pipeline::{Generated, Settings};
use pinhole_quant::output::{AtomicFile, OutputError};

use super::latents;
use crate::cli::failure::Failure;

/// Files under construction. Dropped, they leave nothing behind.
pub(super) struct Outputs {
    pictures: Vec<(AtomicFile, u64)>,
    format: Format,
    latents: Option<AtomicFile>,
}

/// What was written.
pub(super) struct Written {
    /// Each picture with its seed.
    pub(super) pictures: Vec<(PathBuf, u64)>,
    /// The file of `--save-latents`.
    pub(super) latents: Option<PathBuf>,
}

/// The two texts that a picture carries.
pub(super) struct PngText {
    /// What made it, as other tools write it.
    pub(super) parameters: String,
    /// The same as JSON.
    pub(super) json: String,
}

impl Outputs {
    /// Creates every file that `settings` will fill.
    ///
    /// # Errors
    /// Where one cannot be written.
    pub(super) fn create(
        output: Option<&Path>,
        latents: Option<&Path>,
        settings: &Settings,
    ) -> Result<Outputs, Failure> {
        let seeds = (0..settings.batch as u64).map(|i| settings.seed.wrapping_add(i));
        let format = output.map_or(Ok(Format::Png), Format::of)?;
        let names: Vec<PathBuf> = match output {
            Some(output) => given_names(output, settings.batch),
            None => seeds.clone().map(|seed| free_name(seed, |path| path.exists())).collect(),
        };
        let create = |(name, seed): (PathBuf, u64)| Ok((AtomicFile::create(&name, true)?, seed));
        Ok(Outputs {
            pictures: names.into_iter().zip(seeds).map(create).collect::<Result<_, OutputError>>()?,
            format,
            latents: latents.map(|path| AtomicFile::create(path, true)).transpose()?,
        })
    }

    /// Writes the pictures, with what `about` says inside, and the latents.
    ///
    /// # Errors
    /// Where one cannot be written; those before it stay.
    pub(super) fn write(&mut self, generated: &Generated, about: impl Fn(u64) -> PngText) -> Result<Written, Failure> {
        let mut pictures = Vec::with_capacity(self.pictures.len());
        for ((mut file, seed), image) in self.pictures.drain(..).zip(&generated.images) {
            let PngText { parameters, json } = about(seed);
            let path = file.target().to_owned();
            let text = [(PARAMETERS, parameters.as_str()), (PINHOLE, json.as_str())];
            image.write(self.format, &mut file, &text).map_err(|error| Error::io("write", &path, error))?;
            file.commit()?;
            pictures.push((path, seed));
        }
        let latents = self.latents.take().map(|file| write_latents(generated, file)).transpose()?;
        Ok(Written { pictures, latents })
    }
}

fn write_latents(generated: &Generated, mut file: AtomicFile) -> Result<PathBuf, Failure> {
    let path = file.target().to_owned();
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

/// `pinhole-SEED.png` in the working directory, or `pinhole-SEED-2.png`, ... where that exists: a picture that nobody
/// named is none to replace.
fn free_name(seed: u64, exists: impl Fn(&Path) -> bool) -> PathBuf {
    let first = PathBuf::from(format!("pinhole-{seed}.png"));
    if !exists(&first) {
        return first;
    }
    let next = (2..=u32::MAX).map(|i| PathBuf::from(format!("pinhole-{seed}-{i}.png")));
    next.into_iter().find(|path| !exists(path)).unwrap_or(first)
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
    fn a_name_that_nobody_chose_is_free() {
        assert_eq!(free_name(7, |_| false), Path::new("pinhole-7.png"));
        let taken = ["pinhole-7.png", "pinhole-7-2.png"];
        assert_eq!(free_name(7, |path| taken.iter().any(|name| path == Path::new(name))), Path::new("pinhole-7-3.png"));
    }
}
