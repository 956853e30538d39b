//! A file that is not yet whole: its content, and behind that a byte for each grain, a megabyte, that says whether it is there.
//!
//! Content and account lie in one file, so that neither is ever taken for that of another. A grain's byte is written after its content:
//! a process that is killed loses the grains that it was at, and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::arriving::Arriving;
use crate::client::Range;
use crate::error::{Error, Result};

/// What the account begins with.
const MAGIC: &[u8; 8] = b"pinhole\x01";
/// The magic and the bytes of a grain.
const HEAD: u64 = 16;
/// What the byte of a grain that is there has.
const THERE: u8 = 1;
/// How long the reader of grains waits before it looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// An unfinished file, which several threads write.
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    size: u64,
    grain: u64,
    there: Mutex<Vec<bool>>,
    changed: Condvar,
    /// Who else is told what is there.
    arriving: Option<Arc<Arriving>>,
}

impl Part {
    /// Opens the part at `path` of a file of `size` bytes, whose account has a byte for each `grain` bytes. What is there and does not fit is
    /// thrown away.
    pub(crate) fn open(path: &Path, size: u64, grain: u64) -> Result<Part> {
        let mut file = open_file(path)?;
        let count = size.div_ceil(grain) as usize;
        let whole = size + HEAD + count as u64;
        let wrong = |error| Error::io("write", path, error);
        let there = match account(&mut file, size, grain).map_err(|error| Error::io("read", path, error))? {
            Some(there) => there,
            None => {
                // What was there goes first, so that no old content is taken for new.
                file.set_len(0).and_then(|()| file.set_len(whole)).map_err(wrong)?;
                let mut head = MAGIC.to_vec();
                head.extend(grain.to_le_bytes());
                write_at(&file, &head, size).map_err(wrong)?;
                vec![false; count]
            }
        };
        let (there, changed) = (Mutex::new(there), Condvar::new());
        Ok(Part { path: path.to_owned(), file, size, grain, there, changed, arriving: None })
    }

    /// The same, whose grains `arriving` is told of.
    pub(crate) fn telling(mut self, arriving: Option<&Arc<Arriving>>) -> Part {
        if let Some(arriving) = arriving {
            arriving.begin(self.grain, self.there.get_mut().unwrap_or_else(PoisonError::into_inner));
        }
        self.arriving = arriving.map(Arc::clone);
        self
    }

    /// The bytes that the part at `path` has of a file of `size` bytes.
    pub(crate) fn kept(path: &Path, size: u64, grain: u64) -> u64 {
        let Ok(mut file) = File::open(path) else { return 0 };
        let Ok(Some(there)) = account(&mut file, size, grain) else { return 0 };
        let kept = (0..there.len()).filter(|&i| there[i]).map(|i| length(&grain_of(i, size, grain)));
        kept.sum()
    }

    /// The grains that are not there.
    pub(crate) fn missing(&self) -> Vec<usize> {
        let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        (0..there.len()).filter(|&i| !there[i]).collect()
    }

    /// Where grain `i` lies.
    pub(crate) fn grain(&self, i: usize) -> Range {
        grain_of(i, self.size, self.grain)
    }

    /// Writes `bytes` at `at`.
    pub(crate) fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        write_at(&self.file, bytes, at).map_err(|error| Error::io("write", &self.path, error))
    }

    /// Notes that grain `i` is there.
    pub(crate) fn finish_grain(&self, i: usize) -> Result<()> {
        self.write(&[THERE], self.size + HEAD + i as u64)?;
        self.there.lock().unwrap_or_else(PoisonError::into_inner)[i] = true;
        self.changed.notify_all();
        if let Some(arriving) = &self.arriving {
            arriving.add(i);
        }
        Ok(())
    }

    /// The first bytes of a file that has them.
    pub(crate) fn start<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        read_at(&self.file, &mut bytes, 0).map_err(|error| Error::io("read", &self.path, error))?;
        Ok(bytes)
    }

    /// Gives the content to `take` in order, a piece at a time, as it comes. `false` if `stopped` says so before the end.
    pub(crate) fn read(&self, stopped: &dyn Fn() -> bool, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let count = self.size.div_ceil(self.grain) as usize;
        let mut piece = vec![0; crate::checksum::PIECE];
        for i in 0..count {
            let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
            while !there[i] {
                if stopped() {
                    return Ok(false);
                }
                there = self.changed.wait_timeout(there, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(there);
            let Range { mut from, to } = self.grain(i);
            while from < to {
                if stopped() {
                    return Ok(false);
                }
                let length = (to - from).min(piece.len() as u64) as usize;
                let read = read_at(&self.file, &mut piece[..length], from);
                read.map_err(|error| Error::io("read", &self.path, error))?;
                take(&piece[..length]);
                from += length as u64;
            }
        }
        Ok(true)
    }

    /// Takes the account away: what is left is the file.
    pub(crate) fn finish(&self) -> Result<()> {
        let done = self.file.set_len(self.size).and_then(|()| self.file.sync_data());
        done.map_err(|error| Error::io("write", &self.path, error))
    }
}

/// Opens a file to be written, and never what a link leads to.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        crate::cache::make_folder(folder)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(Error::io("write", path, io::Error::other("it is a link or a folder")));
    }
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|error| Error::io("open", path, error))
}

/// Which grains a part has; `None` if it is not one of this size, or of other grains.
fn account(file: &mut File, size: u64, grain: u64) -> io::Result<Option<Vec<bool>>> {
    let (length, count) = (file.metadata()?.len(), size.div_ceil(grain));
    if length == size && size > 0 {
        // The account was taken away, and then the process was killed.
        return Ok(Some(vec![true; count as usize]));
    }
    if length != size + HEAD + count {
        return Ok(None);
    }
    let mut account = vec![0; (HEAD + count) as usize];
    read_at(file, &mut account, size)?;
    let (head, there) = account.split_at(HEAD as usize);
    let is_same = head.starts_with(MAGIC) && head[MAGIC.len()..] == grain.to_le_bytes();
    Ok(is_same.then(|| there.iter().map(|&byte| byte == THERE).collect()))
}

fn grain_of(i: usize, size: u64, grain: u64) -> Range {
    let from = i as u64 * grain;
    Range { from, to: (from + grain).min(size) }
}

pub(crate) fn length(range: &Range) -> u64 {
    range.to - range.from
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        (bytes, at) = (&bytes[count..], at + count as u64);
    }
    Ok(())
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (bytes, at) = (&mut bytes[count..], at + count as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blobs/x");
        let part = Part::open(&path, 25, 10).unwrap();
        assert_eq!(part.missing(), [0, 1, 2]);
        assert_eq!(part.grain(2), Range { from: 20, to: 25 });
        part.write(b"0123456789", 10).unwrap();
        part.finish_grain(1).unwrap();
        drop(part);
        assert_eq!(Part::kept(&path, 25, 10), 10);
        let part = Part::open(&path, 25, 10).unwrap();
        assert_eq!(part.missing(), [0, 2]);
        for (i, bytes, at) in [(0, &b"abcdefghij"[..], 0), (2, b"ABCDE", 20)] {
            part.write(bytes, at).unwrap();
            part.finish_grain(i).unwrap();
        }
        let mut read = Vec::new();
        assert!(part.read(&|| false, &mut |piece| read.extend_from_slice(piece)).unwrap());
        assert_eq!(read, b"abcdefghij0123456789ABCDE");
        part.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), read);
        // Killed before it is renamed.
        assert_eq!(Part::open(&path, 25, 10).unwrap().missing(), [0; 0]);
    }

    #[test]
    fn a_part_of_another_file_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let part = Part::open(&path, 25, 10).unwrap();
        part.finish_grain(0).unwrap();
        assert_eq!(Part::kept(&path, 25, 10), 10);
        for (size, grain) in [(25, 5), (26, 10), (35, 10)] {
            assert_eq!(Part::kept(&path, size, grain), 0, "{size} {grain}");
        }
        assert_eq!(Part::open(&path, 26, 10).unwrap().missing(), [0, 1, 2]);
        fs::write(&path, "no part").unwrap();
        assert_eq!(Part::open(&path, 25, 10).unwrap().missing(), [0, 1, 2]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "content").unwrap();
        std::os::unix::fs::symlink(dir.path().join("precious"), dir.path().join("x")).unwrap();
        assert!(Part::open(&dir.path().join("x"), 25, 10).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("precious")).unwrap(), "content");
    }
}
