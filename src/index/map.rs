//! Read-only bytes of a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, MmapMut, MmapOptions};

use super::arriving::{self, Arriving};
use super::lost;
use super::stamp::Stamp;
use crate::error::{Error, Result};
use crate::{file, reserve};

/// What the first byte of a [`Map`] is aligned to in memory, at least: as much as any backend asks of a host pointer.
pub const MAP_ALIGNMENT: usize = 64;

/// What headers, configurations and tokenizers take, about, once they are read: in many small pieces, by code that does not ask
/// whether there is memory. Where there is not so much, a file is not opened.
const READ: usize = 16 << 20;

/// The bytes of one file, mapped into memory and never written to.
///
/// The map sees the file as it was when it was opened, as long as no one changes it. Bytes that another process
/// overwrites may change under the reader, which can make weights wrong and nothing worse: headers are validated and
/// copied once. Where another process **truncates** the file, touching the missing pages ends this process with
/// `SIGBUS` (on Unix). [`populate`](Map::populate) and [`read`](Map::read) notice it before, and a program that calls
/// [`on_lost_page`](super::on_lost_page) can still say which file it was. Replacing a file by a rename, as pinhole writes its own,
/// does neither: the map keeps the old one.
#[derive(Debug)]
pub struct Map {
    path: PathBuf,
    bytes: Bytes,
    /// What is there of it, where it is on its way.
    arriving: Option<Arc<dyn Arriving>>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    /// With the file, whose pages can be given back.
    File(Mmap, File),
    Static(&'static [u8]),
}

impl Map {
    /// Maps the file at `path`; of one that the thread [expects](super::expect), what it will be.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where there is no such file, it cannot be read, or it is no regular file; [`Error::OutOfMemory`] where there is
    /// no room for what is read of it.
    pub fn open(path: &Path) -> Result<Arc<Map>> {
        let (file, metadata) = file::open(path)?;
        let (size, arriving) = match arriving::at(path) {
            Some(expected) => (expected.size.min(metadata.len()), Some(expected.arriving)),
            None => (metadata.len(), None),
        };
        let bytes = match usize::try_from(size).unwrap_or(usize::MAX) {
            0 => Bytes::Static(&[]),
            size => map(file, size).map_err(|source| Error::io("open", path, source))?,
        };
        reserve::probe("what is read of a file", READ)?;
        let map = Map { path: path.to_owned(), bytes, arriving };
        lost::mapped(map.bytes(), path);
        Ok(Arc::new(map))
    }

    /// Bytes in memory as if they were the file `name`; they are copied once, to an aligned place.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where there is no memory for the copy.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: &[u8]) -> Result<Arc<Map>> {
        let path = name.into();
        let fail = |source| Error::io("hold", &path, source);
        // An anonymous map begins at a page, which a vector of bytes need not.
        let mut copy = MmapMut::map_anon(bytes.len()).map_err(fail)?;
        copy.copy_from_slice(bytes);
        let bytes = Bytes::Mapped(copy.make_read_only().map_err(fail)?);
        Ok(Arc::new(Map { path, bytes, arriving: None }))
    }

    /// A file `name` of `len` bytes that begins with `start` and is zero from there on, as a file with a hole is. It takes addresses, and
    /// memory only for what is touched.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the system has no such addresses.
    ///
    /// # Panics
    /// Where `start` is longer than that.
    pub fn hollow(name: impl Into<PathBuf>, start: &[u8], len: usize) -> Result<Arc<Map>> {
        let path = name.into();
        let fail = |source| Error::io("hold", &path, source);
        let mut map = MmapOptions::new().len(len).no_reserve_swap().map_anon().map_err(fail)?;
        map[..start.len()].copy_from_slice(start);
        let bytes = Bytes::Mapped(map.make_read_only().map_err(fail)?);
        Ok(Arc::new(Map { path, bytes, arriving: None }))
    }

    /// Bytes of this program as if they were the file `name`. They are used where they are when they are aligned to
    /// [`MAP_ALIGNMENT`], and copied otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where there is no memory for the copy.
    pub fn from_static(name: impl Into<PathBuf>, bytes: &'static [u8]) -> Result<Arc<Map>> {
        if bytes.as_ptr().addr().is_multiple_of(MAP_ALIGNMENT) {
            return Ok(Arc::new(Map { path: name.into(), bytes: Bytes::Static(bytes), arriving: None }));
        }
        Map::from_bytes(name, bytes)
    }

    /// The file, or the name that bytes in memory were given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the bytes in `range` are there, if the file is on its way.
    ///
    /// # Errors
    ///
    /// They will never be.
    pub fn wait(&self, range: &Range<usize>) -> Result<()> {
        let Some(arriving) = &self.arriving else { return Ok(()) };
        arriving.wait(range.start as u64..range.end as u64)
    }

    /// All bytes of the file. Nothing is read before it is touched. Of one that is on its way, only those that were
    /// [waited for](Map::wait) are what they will be.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) | Bytes::File(map, _) => map,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// What tells the file, as it is now, from every other. `None` for bytes in memory, and where the system cannot say.
    pub fn stamp(&self) -> Option<Stamp> {
        #[cfg(unix)]
        if let Bytes::File(_, file) = &self.bytes {
            return file.metadata().ok().as_ref().map(Stamp::of);
        }
        None
    }

    /// Copies the bytes from `start` on to `out`, past the map: where the file was cut short, that is an error and no signal,
    /// and no page of the map stays in memory.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the bytes cannot be read, or are not there any more.
    ///
    /// # Panics
    /// Where they were not in the file when it was opened.
    pub fn read(&self, start: usize, out: &mut [u8]) -> Result<()> {
        let range = start..start + out.len();
        assert!(range.end <= self.bytes().len(), "{range:?} of {}", self.bytes().len());
        self.wait(&range)?;
        #[cfg(any(unix, windows))]
        if let Bytes::File(_, file) = &self.bytes {
            return read_at(file, start as u64, out).map_err(|error| self.lost(&range, error));
        }
        out.copy_from_slice(&self.bytes()[range]);
        Ok(())
    }

    /// The error for a file whose bytes in `range` cannot be read.
    #[cfg(any(unix, windows))]
    fn lost(&self, range: &Range<usize>, error: io::Error) -> Error {
        let now = match &self.bytes {
            Bytes::File(_, file) => file.metadata().map_or(u64::MAX, |about| about.len()),
            _ => u64::MAX,
        };
        if now < range.end as u64 {
            let found = format!("{now}: it was cut short while it was in use");
            return Error::malformed(&self.path, "size", format!("{} bytes", self.bytes().len()), found);
        }
        Error::io("read", &self.path, error)
    }

    /// Has the system read `range` from the disk, before somebody touches it. Returns once that is under way; where the
    /// system cannot, the first touch reads.
    pub fn will_read(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::File(map, _) = &self.bytes
            && range.end <= map.len()
            // What is on its way may not be on the disk yet.
            && self.arriving.is_none()
        {
            // Advice: whether it is taken changes no result.
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Reads `range` from the disk, as far as it is not in memory, and returns when all of it is there: where the file was cut short
    /// or the disk fails, that is an error, and a touch would have been a signal. Where the system cannot say, the touch will.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for a file that was cut short, [`Error::Io`] where it cannot be read.
    pub fn populate(&self, range: Range<usize>) -> Result<()> {
        self.wait(&range)?;
        #[cfg(target_os = "linux")]
        if let Bytes::File(map, _) = &self.bytes
            && range.end <= map.len()
            && let Err(error) = map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len())
        {
            let error = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::INVAL);
            // Others are of systems and file systems that cannot.
            if matches!(error, rustix::io::Errno::FAULT | rustix::io::Errno::HWPOISON | rustix::io::Errno::IO) {
                return Err(self.lost(&range, error.into()));
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
        Ok(())
    }

    /// Lets go of all whole pages of `range`: they count no longer as this process's, and stay in the system's cache as long as that
    /// has room. Does nothing where the system cannot.
    pub fn let_go(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Bytes::File(map, _) = &self.bytes
            && range.end <= map.len()
        {
            let_go(map, whole_pages(range));
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    /// Gives the memory of all whole pages of `range` back to the system, which reads them from the disk again when
    /// somebody touches them. Does nothing where the system cannot.
    pub fn give_back(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Bytes::File(map, file) = &self.bytes
            && range.end <= map.len()
        {
            give_back(map, file, whole_pages(range));
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if let Bytes::File(map, _) = &self.bytes {
            lost::unmapped(map);
        }
    }
}

/// The pages that lie in `range` whole: the others hold somebody else's bytes too.
#[cfg(target_os = "linux")]
fn whole_pages(range: Range<usize>) -> Range<usize> {
    let page = rustix::param::page_size();
    let start = range.start.next_multiple_of(page);
    start..(range.end / page * page).max(start)
}

#[cfg(unix)]
fn read_at(file: &File, start: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, start)
}

/// Moves the file's position, which no one else asks for.
#[cfg(windows)]
fn read_at(file: &File, mut start: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_read(file, out, start)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (out, start) = (&mut out[count..], start + count as u64);
    }
    Ok(())
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn let_go(map: &Mmap, range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    // SAFETY: the map is of a file, shared with it and never written to: pages that are dropped come back with the file's
    // bytes, so no slice of the map changes.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
}

#[cfg(target_os = "linux")]
fn give_back(map: &Mmap, file: &File, range: Range<usize>) {
    let Some(len) = std::num::NonZeroU64::new(range.len() as u64) else { return };
    let_go(map, range.clone());
    // Only what no process has mapped leaves the system's cache, hence after the first.
    let _ = rustix::fs::fadvise(file, range.start as u64, Some(len), rustix::fs::Advice::DontNeed);
}

#[allow(unsafe_code)]
fn map(file: File, size: usize) -> io::Result<Bytes> {
    // SAFETY: the mapping is read-only and private to `Map`, which hands out shared slices only. What can break them
    // is another process that writes to the file or truncates it. Every structure read from the bytes is copied before
    // it is checked, and weights are plain numbers, where any pattern is valid, so changed bytes cannot break an
    // invariant; a truncated file means SIGBUS, which `Map` documents.
    let map = unsafe { MmapOptions::new().len(size).map(&file) }?;
    Ok(Bytes::File(map, file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn files_are_mapped_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for bytes in [&b""[..], b"x", &[7; 10_000]] {
            fs::write(&path, bytes).unwrap();
            let map = Map::open(&path).unwrap();
            assert_eq!(map.bytes(), bytes);
            assert_eq!(map.path(), path);
        }
    }

    #[test]
    fn what_is_given_back_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let map = Map::open(&path).unwrap();
        assert_eq!(map.bytes(), bytes);
        for range in [0..100_000, 5..6, 4096..8192, 99_999..100_000, 7..7, 0..100_001] {
            map.give_back(range.clone());
            map.will_read(range);
            assert_eq!(map.bytes(), bytes);
        }
        Map::from_bytes("memory", &bytes).unwrap().give_back(0..bytes.len());
    }

    #[test]
    fn bytes_are_read_past_the_map() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, b"0123456789").unwrap();
        let (map, memory) = (Map::open(&path).unwrap(), Map::from_bytes("memory", b"0123456789").unwrap());
        for map in [&map, &memory] {
            let mut four = [0; 4];
            map.read(3, &mut four).unwrap();
            assert_eq!(&four, b"3456");
        }
        assert!(memory.stamp().is_none());
        #[cfg(unix)]
        {
            assert!(map.stamp().is_some());
            File::options().write(true).open(&path).unwrap().set_len(6).unwrap();
            let error = map.read(3, &mut [0; 4]).unwrap_err().to_string();
            assert!(
                error.ends_with("size: expected 10 bytes, found 6: it was cut short while it was in use"),
                "{error}"
            );
            map.read(2, &mut [0; 4]).unwrap();
        }
        // Whole pages that are gone; the rest of the last page that is there reads as zeros.
        #[cfg(target_os = "linux")]
        {
            let page = rustix::param::page_size();
            fs::write(&path, vec![1; 4 * page]).unwrap();
            let map = Map::open(&path).unwrap();
            map.populate(0..4 * page).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(page as u64 + 6).unwrap();
            map.populate(0..2 * page).unwrap();
            let error = map.populate(page..3 * page).unwrap_err().to_string();
            assert!(error.contains("it was cut short while it was in use"), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_whole_pages_are_given_back() {
        let page = rustix::param::page_size();
        assert_eq!(whole_pages(0..page), 0..page);
        assert_eq!(whole_pages(1..3 * page + 1), page..3 * page);
        assert!(whole_pages(1..page + 1).is_empty());
    }

    #[test]
    fn memory_passes_for_a_file() {
        static STATIC: [u8; 300] = [3; 300];
        for length in [0, 1, 299] {
            let copied = Map::from_bytes("memory", &STATIC[..length]).unwrap();
            assert_eq!(copied.bytes(), &STATIC[..length]);
            assert!(copied.bytes().as_ptr().addr().is_multiple_of(MAP_ALIGNMENT));
            // At least one of the two is not aligned.
            for skip in [0, 1] {
                let map = Map::from_static("static", &STATIC[skip..][..length]).unwrap();
                assert_eq!(map.bytes(), &STATIC[skip..][..length]);
                assert!(map.bytes().as_ptr().addr().is_multiple_of(MAP_ALIGNMENT));
            }
        }
    }

    #[test]
    fn what_is_no_file_is_an_io_error() {
        let directory = tempfile::tempdir().unwrap();
        let message = |path: &Path| match Map::open(path) {
            Err(error @ Error::Io { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
        let missing = message(&directory.path().join("missing.gguf"));
        assert!(missing.starts_with("cannot open ") && missing.contains("missing.gguf"), "{missing}");
        assert!(message(directory.path()).contains("is a directory"));
        #[cfg(unix)]
        assert!(message(Path::new("/dev/zero")).contains("not a regular file"));
    }
}
