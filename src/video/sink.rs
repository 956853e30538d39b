//! Where a film's bytes go: a file under construction, or a stream.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pinhole_quant::output::AtomicFile;

use crate::{Error, Result};

/// Where a film's bytes go. Encoders take one of their own, and all of them lead to the same place.
#[derive(Clone)]
pub(super) struct Sink(Arc<Mutex<Place>>);

struct Place {
    target: Target,
    written: u64,
    /// Whether a write failed: some encoders finish without a word of it when they are dropped.
    has_failed: Option<io::ErrorKind>,
}

impl Place {
    /// Writes `bytes`, as far as the target takes them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.target {
            Target::File(file) => file.write(bytes)?,
            Target::Stream(stream) => stream.write(bytes)?,
            Target::Closed => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::File(file) => file.flush(),
            Target::Stream(stream) => stream.flush(),
            Target::Closed => Ok(()),
        }
    }
}

enum Target {
    File(AtomicFile),
    Stream(Box<dyn Write + Send>),
    /// The film is finished, or has been given up.
    Closed,
}

impl Sink {
    /// Into a file, which may be there already.
    ///
    /// # Errors
    /// Those of [`AtomicFile::create`].
    pub(super) fn create(path: &Path) -> Result<Sink> {
        Ok(Sink::new(Target::File(AtomicFile::create(path, true).map_err(Error::output)?)))
    }

    /// Into a file for `path` or another name beside it, which is chosen in the end.
    ///
    /// # Errors
    /// Those of [`AtomicFile::create_beside`].
    pub(super) fn beside(path: &Path) -> Result<Sink> {
        Ok(Sink::new(Target::File(AtomicFile::create_beside(path).map_err(Error::output)?)))
    }

    /// Into `stream`.
    pub(super) fn stream(stream: Box<dyn Write + Send>) -> Sink {
        Sink::new(Target::Stream(stream))
    }

    fn new(target: Target) -> Sink {
        Sink(Arc::new(Mutex::new(Place { target, written: 0, has_failed: None })))
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes were written.
    pub(super) fn written(&self) -> u64 {
        self.place().written
    }

    /// Writes `bytes` over those from `at` on.
    ///
    /// # Errors
    /// What the system reports; for a stream, which cannot go back.
    pub(super) fn rewrite(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match &mut self.place().target {
            Target::File(file) => {
                file.seek(SeekFrom::Start(at))?;
                file.write_all(bytes)?;
                file.seek(SeekFrom::End(0)).map(|_| ())
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Gives up what lies behind the first `length` bytes.
    ///
    /// # Errors
    /// As [`rewrite`](Sink::rewrite).
    pub(super) fn truncate(&self, length: u64) -> io::Result<()> {
        let mut place = self.place();
        match &mut place.target {
            Target::File(file) => file.truncate(length)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        (place.written, place.has_failed) = (length, None);
        Ok(())
    }

    /// Gives the file its name: its own, or the first of `names` that is free. Nothing is written afterwards.
    ///
    /// # Errors
    /// Those of [`AtomicFile::commit`].
    pub(super) fn commit(&self, names: Option<&mut dyn Iterator<Item = PathBuf>>) -> Result<Option<PathBuf>> {
        let target = std::mem::replace(&mut self.place().target, Target::Closed);
        match (target, names) {
            (Target::File(file), Some(names)) => file.commit_to_first_free(names).map(Some).map_err(Error::output),
            (Target::File(file), None) => file.commit().map(|()| None).map_err(Error::output),
            _ => Ok(None),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut place = self.place();
        place.write(bytes).inspect_err(|error| place.has_failed = Some(error.kind()))
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut place = self.place();
        match place.has_failed {
            Some(kind) => Err(kind.into()),
            None => place.flush().inspect_err(|error| place.has_failed = Some(error.kind())),
        }
    }
}
