//! Read-only bytes of a file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::error::{Error, Result};

/// What the first byte of a [`Map`] is aligned to in memory, at least: as much as any backend asks of a host pointer.
pub const MAP_ALIGNMENT: usize = 64;

/// The bytes of one file, mapped into memory and never written to.
///
/// The map sees the file as it was when it was opened, as long as nobody changes it. Bytes that another process
/// overwrites may change under the reader, which can make weights wrong and nothing worse: headers are validated and
/// copied once. Where another process **truncates** the file, touching the missing pages ends this process with
/// `SIGBUS` (on Unix). Replacing a file by a rename, as pinhole writes its own, does neither: the map keeps the old one.
#[derive(Debug)]
pub struct Map {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl Map {
    /// Maps the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where there is no such file, it cannot be read, or it is no regular file.
    pub fn open(path: &Path) -> Result<Arc<Map>> {
        let fail = |source| Error::io("open", path, source);
        // Looked at before it is opened: opening a pipe would wait for its writer.
        let metadata = fs::metadata(path).map_err(fail)?;
        if metadata.is_dir() {
            return Err(fail(io::ErrorKind::IsADirectory.into()));
        }
        if !metadata.is_file() {
            return Err(fail(io::Error::other("not a regular file")));
        }
        let file = File::open(path).map_err(fail)?;
        let bytes = if metadata.len() == 0 { Bytes::Static(&[]) } else { map(&file).map_err(fail)? };
        Ok(Arc::new(Map { path: path.to_owned(), bytes }))
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
        Ok(Arc::new(Map { path, bytes }))
    }

    /// Bytes of this program as if they were the file `name`. They are used where they are when they are aligned to
    /// [`MAP_ALIGNMENT`], and copied otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where there is no memory for the copy.
    pub fn from_static(name: impl Into<PathBuf>, bytes: &'static [u8]) -> Result<Arc<Map>> {
        if bytes.as_ptr().addr().is_multiple_of(MAP_ALIGNMENT) {
            return Ok(Arc::new(Map { path: name.into(), bytes: Bytes::Static(bytes) }));
        }
        Map::from_bytes(name, bytes)
    }

    /// The file, or the name that bytes in memory were given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file. Nothing is read before it is touched.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the mapping is read-only and private to `Map`, which hands out shared slices only. What can break them
    // is another process that writes to the file or truncates it. Every structure read from the bytes is copied before
    // it is checked, and weights are plain numbers of which any pattern is valid, so changed bytes cannot break an
    // invariant; a truncated file means SIGBUS, which `Map` documents.
    Ok(Bytes::Mapped(unsafe { Mmap::map(file) }?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
