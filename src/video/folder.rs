//! A film as a picture for each frame.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pinhole_quant::output::{AtomicFile, OutputError};

use super::body::Text;
use super::kind::{self, Numbered};
use crate::image::{self, Format, Image};
use crate::{Error, Result};

/// A folder under construction. Every frame is there from when it was pushed.
pub(super) struct Folder {
    folder: PathBuf,
    names: Numbered,
    format: Format,
    /// Whether it was made for this film.
    is_new: bool,
}

impl Folder {
    /// The folder that `path` names, which is made if it is not there, for `frames` pictures.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be made or is no folder; [`Error::Exists`] if it has more of such pictures, or something else than a
    /// picture is called as one will be.
    pub(super) fn create(path: &Path, format: Format, frames: usize) -> Result<Folder> {
        let (folder, names) = match Numbered::of(path) {
            Some(names) if !kind::is_folder(path) => (path.parent().unwrap_or(Path::new("")).to_owned(), names),
            _ => (path.to_owned(), Numbered::plain()),
        };
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        let is_new = !folder.exists();
        if is_new {
            fs::create_dir(&folder).map_err(|source| Error::io("create", &folder, source))?;
        }
        // From here on, what was made is removed again if something fails.
        let made = Folder { folder, names, format, is_new };
        made.check(frames)?;
        // Whether something can be written there.
        drop(AtomicFile::create(&made.path(0), true).map_err(Error::output)?);
        Ok(made)
    }

    fn check(&self, frames: usize) -> Result<()> {
        let failed = |source| Error::io("read", &self.folder, source);
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(number) = name.to_str().and_then(|name| self.names.number(name)) else { continue };
            if number > frames {
                let hint = format!(
                    "a frame of a film that is longer than {frames} would stay: remove the old frames, or choose another folder"
                );
                return Err(Error::Exists { path: self.folder.join(name), hint: Some(hint) });
            }
            image::check_replaced(&self.folder.join(name))?;
        }
        Ok(())
    }

    /// The file of frame number `index`, counted from 0.
    pub(super) fn path(&self, index: usize) -> PathBuf {
        self.folder.join(self.names.name(index + 1))
    }

    /// Writes frame number `index`.
    ///
    /// # Errors
    /// What the system reports.
    pub(super) fn push(&mut self, index: usize, image: &Image, text: &Text) -> io::Result<()> {
        let path = self.path(index);
        let text: Vec<_> = text.iter().map(|(keyword, text)| (keyword.as_str(), text.as_str())).collect();
        let mut file = AtomicFile::create(&path, true).map_err(cause)?;
        image.write(self.format, &mut file, &text)?;
        file.commit().map_err(cause)?;
        self.is_new = false;
        Ok(())
    }
}

/// What the system said.
fn cause(error: OutputError) -> io::Error {
    match error {
        OutputError::Io { source, .. } => source,
        other => io::Error::other(other),
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_new {
            // What somebody else has put there meanwhile keeps it.
            let _ = fs::remove_dir(&self.folder);
        }
    }
}
