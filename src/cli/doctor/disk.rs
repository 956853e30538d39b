//! How fast a disk reads what the system has not in memory: what streaming costs where the host's memory is smaller than a model.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pinhole::ggml::CancelFlag;
use pinhole::size::Size;
use pinhole::{Error, Result};
use serde::Serialize;

use crate::cli::units;

/// What is read and written at once.
const PIECE: usize = 4 << 20;
/// What is written to be read, at most: long enough for a disk to be up to speed.
const WRITTEN: usize = 128 << 20;
/// What is read of a file, at most.
const READ: usize = 1 << 30;
/// Longer than this nothing is written, and then nothing is read: slow disks are slow soon.
const PATIENCE: Duration = Duration::from_secs(2);

/// A disk.
#[derive(Serialize)]
pub(super) struct Disk {
    #[serde(serialize_with = "units::path")]
    pub(super) path: PathBuf,
    #[serde(flatten, serialize_with = "measured")]
    pub(super) measured: Result<Speed, String>,
}

/// What was measured.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Speed {
    pub(super) bytes: u64,
    pub(super) bytes_per_second: u64,
}

/// The speed, or why there is none.
fn measured<S: serde::Serializer>(measured: &Result<Speed, String>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Either<'a> {
        Speed(Speed),
        Not { not_measured: &'a str },
    }
    match measured {
        Ok(speed) => Either::Speed(*speed),
        Err(why) => Either::Not { not_measured: why },
    }
    .serialize(serializer)
}

impl Disk {
    /// Reads from the file or folder `path`.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none; [`Error::Cancelled`]. A folder that cannot be written to is told.
    pub(super) fn measure(path: &Path, cancel: &CancelFlag) -> Result<Disk> {
        let is_folder = path.metadata().map_err(|error| Error::io("open", path, error))?.is_dir();
        let file = if is_folder { written(path, cancel)? } else { File::open(path) };
        let measured = match file.and_then(|file| read(file, cancel)) {
            Ok(speed) => speed.ok_or_else(|| "there is nothing to read".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        cancel.check()?;
        Ok(Disk { path: path.to_owned(), measured })
    }
}

/// A file in `folder` that has no name, so that nothing is left of it, whatever happens.
fn written(folder: &Path, cancel: &CancelFlag) -> Result<io::Result<File>> {
    let mut file = match tempfile::tempfile_in(folder) {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    let (begun, mut state) = (Instant::now(), 1);
    for _ in 0..WRITTEN / PIECE {
        cancel.check()?;
        if begun.elapsed() > PATIENCE {
            break;
        }
        // A disk that compresses would be faster with less.
        let numbers: Vec<u8> = (0..PIECE / 8).flat_map(|_| next(&mut state).to_le_bytes()).collect();
        // What does not fit on the disk is not read.
        if file.write_all(&numbers).is_err() {
            break;
        }
    }
    Ok(file.sync_all().map(|()| file))
}

/// Marsaglia's xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Reads `file` from its start, after the system has let go of it.
fn read(mut file: File, cancel: &CancelFlag) -> io::Result<Option<Speed>> {
    forget(&file);
    file.rewind()?;
    let (begun, mut piece, mut bytes) = (Instant::now(), vec![0; PIECE], 0);
    while bytes < READ && begun.elapsed() < PATIENCE && !cancel.is_raised() {
        match file.read(&mut piece)? {
            0 => break,
            count => bytes += count,
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let bytes_per_second = (bytes as f64 / seconds) as u64;
    Ok((bytes > 0 && bytes_per_second > 0).then_some(Speed { bytes: bytes as u64, bytes_per_second }))
}

/// Has the system drop what it keeps of `file` in memory, where it can.
fn forget(file: &File) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.measured {
            Ok(speed) => write!(f, "{}: reads {}/s", self.path.display(), Size(speed.bytes_per_second)),
            Err(why) => write!(f, "{}: not measured: {why}", self.path.display()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_files_have_a_speed_and_keep_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::measure(folder.path(), &CancelFlag::new()).unwrap();
        assert!(disk.measured.unwrap().bytes_per_second > 0);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        let file = folder.path().join("model");
        std::fs::write(&file, vec![1; 3 * PIECE / 2]).unwrap();
        let disk = Disk::measure(&file, &CancelFlag::new()).unwrap();
        assert_eq!(disk.measured.unwrap().bytes, 3 * PIECE as u64 / 2);
        std::fs::write(&file, "").unwrap();
        assert!(Disk::measure(&file, &CancelFlag::new()).unwrap().measured.is_err());
        assert!(matches!(Disk::measure(&folder.path().join("none"), &CancelFlag::new()), Err(Error::Io { .. })));
    }

    #[test]
    fn a_stop_is_heard() {
        let (folder, cancel) = (tempfile::tempdir().unwrap(), CancelFlag::new());
        cancel.raise();
        assert!(matches!(Disk::measure(folder.path(), &cancel), Err(Error::Cancelled)));
    }
}
