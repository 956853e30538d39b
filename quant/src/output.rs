//! Output files that appear whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

/// What temporary names have between the output's name and six random characters.
const MARK: &str = ".pinhole-";
/// How temporary names end.
const SUFFIX: &str = ".part";
/// How many random characters there are.
const RANDOM: usize = 6;
/// How much of the output's own name goes into the temporary one, in bytes: names end at 255 on most systems.
const MAX_STEM: usize = 200;

/// Why an output file cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// A file is there already, and the caller did not ask to replace it.
    #[error("{} exists already", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb: `create`, `write`, `rename`, ...
        action: &'static str,
        /// The output, or its directory.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
}

impl OutputError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> OutputError {
        OutputError::Io { action, path: path.to_owned(), source }
    }
}

/// An output file under construction: a temporary file beside it, `.NAME.pinhole-XXXXXX.part`, that
/// [`commit`](AtomicFile::commit) gives its name.
///
/// Dropped without a commit, it is removed. The file is locked while it is written, so that the next start can tell
/// what a killed process left behind, and removes it.
#[derive(Debug)]
pub struct AtomicFile {
    /// Removes the file when it is dropped, which is before the lock goes.
    temporary: TempPath,
    file: BufWriter<File>,
    target: PathBuf,
    overwrite: bool,
}

impl AtomicFile {
    /// Creates the temporary file for `target`, after removing those that dead processes left for the same target.
    /// A symbolic link is followed: what it names is replaced, and not the link.
    ///
    /// # Errors
    ///
    /// [`OutputError::Exists`] where there is a file and `overwrite` is false; [`OutputError::Io`] where `target` is a
    /// directory or a device, or its directory is missing or not writable.
    pub fn create(target: &Path, overwrite: bool) -> Result<AtomicFile, OutputError> {
        let target = resolve(target, overwrite)?;
        let directory = directory_of(&target);
        let stem = stem_of(&target)?;
        remove_stale(directory, &stem);
        let (file, temporary) =
            create_locked(directory, &stem).map_err(|source| OutputError::io("create", &target, source))?.into_parts();
        Ok(AtomicFile { temporary, file: BufWriter::new(file), target, overwrite })
    }

    /// The file that [`commit`](AtomicFile::commit) makes.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes everything to the disk and gives the file its name.
    ///
    /// # Errors
    ///
    /// [`OutputError::Io`] where the disk is full or the rename fails, [`OutputError::Exists`] where somebody else made
    /// the file meanwhile and `overwrite` is false. The temporary file is gone then.
    pub fn commit(self) -> Result<(), OutputError> {
        let AtomicFile { temporary, file, target, overwrite } = self;
        let fail = |action, source| OutputError::io(action, &target, source);
        // The handle, and with it the lock, lives until the file has its name: else it could pass for a stale one.
        let file = file.into_inner().map_err(|error| fail("write", error.into_error()))?;
        // Some file systems report a full disk only here.
        file.sync_all().map_err(|source| fail("write", source))?;
        let renamed = if overwrite { temporary.persist(&target) } else { temporary.persist_noclobber(&target) };
        match renamed.map_err(|error| error.error) {
            Ok(()) => Ok(()),
            Err(error) if !overwrite && error.kind() == io::ErrorKind::AlreadyExists => {
                Err(OutputError::Exists { path: target })
            }
            Err(source) => Err(fail("rename", source)),
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The path to rename to, once it is known that a regular file may be there.
fn resolve(target: &Path, overwrite: bool) -> Result<PathBuf, OutputError> {
    let existing = match fs::metadata(target) {
        Ok(existing) => existing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(target.to_owned()),
        Err(error) => return Err(OutputError::io("create", target, error)),
    };
    if existing.is_dir() {
        return Err(OutputError::io("write", target, io::ErrorKind::IsADirectory.into()));
    }
    // A rename would replace /dev/null by a regular file.
    if !existing.is_file() {
        return Err(OutputError::io("write", target, io::Error::other("not a regular file")));
    }
    if !overwrite {
        return Err(OutputError::Exists { path: target.to_owned() });
    }
    fs::canonicalize(target).map_err(|source| OutputError::io("resolve", target, source))
}

fn directory_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// The temporary name up to its random characters: `.NAME.pinhole-`.
fn stem_of(target: &Path) -> Result<OsString, OutputError> {
    let no_name = || OutputError::io("create", target, io::Error::new(io::ErrorKind::InvalidInput, "no file name"));
    let name = target.file_name().ok_or_else(no_name)?;
    let mut stem = OsString::from(".");
    match name.to_str() {
        Some(text) => stem.push(shortened(text)),
        None => stem.push(name),
    }
    stem.push(MARK);
    Ok(stem)
}

/// `name` without what lies behind [`MAX_STEM`] bytes.
fn shortened(name: &str) -> &str {
    let end = (0..=MAX_STEM.min(name.len())).rev().find(|&end| name.is_char_boundary(end));
    &name[..end.unwrap_or(0)]
}

/// Creates and locks a temporary file.
fn create_locked(directory: &Path, stem: &OsStr) -> io::Result<NamedTempFile> {
    // Between creating and locking, another process may take the file for a stale one. It then holds the lock, or has
    // removed the file: either way the next attempt has a new name.
    const ATTEMPTS: usize = 16;
    for _ in 0..ATTEMPTS {
        let file = create_temporary(directory, stem)?;
        match file.as_file().try_lock() {
            Err(TryLockError::WouldBlock) => continue,
            // A file system without locks: its stale files stay, since no process can lock them either.
            Err(TryLockError::Error(_)) => return Ok(file),
            Ok(()) if fs::exists(file.path())? => return Ok(file),
            Ok(()) => continue,
        }
    }
    Err(io::Error::other("other processes keep removing the temporary file"))
}

fn create_temporary(directory: &Path, stem: &OsStr) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(stem).suffix(SUFFIX).rand_bytes(RANDOM);
    // Outputs are as readable as any other new file; the umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory).map_err(plain)
}

/// The system's own error, where `tempfile` has put the temporary file's path around it.
fn plain(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|wrapped| wrapped.source());
    let code = inner.and_then(|inner| inner.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    code.map_or(error, io::Error::from_raw_os_error)
}

/// Removes the temporary files of `stem` that no process holds a lock on. Whatever fails is left for the next start.
fn remove_stale(directory: &Path, stem: &OsStr) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if is_temporary(&entry.file_name(), stem) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            remove_if_unlocked(&entry.path());
        }
    }
}

fn is_temporary(name: &OsStr, stem: &OsStr) -> bool {
    name.as_encoded_bytes()
        .strip_prefix(stem.as_encoded_bytes())
        .and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()))
        .is_some_and(|random| random.len() == RANDOM && random.iter().all(u8::is_ascii_alphanumeric))
}

fn remove_if_unlocked(path: &Path) {
    // Removed while the lock is held, so that its creator, if it is alive and about to lock it, notices.
    if let Ok(file) = File::options().write(true).open(path)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_file_appears_with_the_commit() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out.gguf");
        let mut file = AtomicFile::create(&target, false).unwrap();
        file.write_all(b"pinhole").unwrap();
        assert!(!target.exists());
        let temporary = names(directory.path()).pop().unwrap();
        assert!(temporary.starts_with(".out.gguf.pinhole-") && temporary.ends_with(".part"), "{temporary}");
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"pinhole");
        assert_eq!(names(directory.path()), ["out.gguf"]);
    }

    #[test]
    fn a_drop_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&directory.path().join("out.png"), false).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn overwriting_has_to_be_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        fs::write(&target, "old").unwrap();
        assert!(matches!(AtomicFile::create(&target, false), Err(OutputError::Exists { path }) if path == target));
        let mut file = AtomicFile::create(&target, true).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        let file = AtomicFile::create(&target, false).unwrap();
        fs::write(&target, "theirs").unwrap();
        assert!(matches!(file.commit(), Err(OutputError::Exists { .. })));
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn only_stale_files_of_the_same_output_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let kept = [".other.pinhole-abc123.part", ".out.pinhole-abc12.part", ".out.pinhole-abc-23.part", "out.part"];
        kept.iter().for_each(|name| fs::write(path(name), "").unwrap());
        fs::write(path(".out.pinhole-Stale1.part"), "left").unwrap();
        let alive = AtomicFile::create(&path("out"), false).unwrap();
        assert!(!path(".out.pinhole-Stale1.part").exists());
        let second = AtomicFile::create(&path("out"), false).unwrap();
        assert_eq!(names(directory.path()).len(), kept.len() + 2);
        drop(second);
        alive.commit().unwrap();
        assert!(kept.iter().all(|name| path(name).exists()));
        assert!(path("out").exists());
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let message = |path: &Path| AtomicFile::create(path, true).unwrap_err().to_string();
        assert!(message(directory.path()).contains("is a directory"));
        assert!(message(&directory.path().join("missing").join("out")).starts_with("cannot create "));
        assert!(message(Path::new("..")).contains("is a directory"));
        #[cfg(unix)]
        assert!(message(Path::new("/dev/null")).ends_with("not a regular file"));
    }

    #[test]
    fn long_names_have_short_temporaries() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("ż".repeat(127));
        AtomicFile::create(&target, false).unwrap().commit().unwrap();
        assert!(target.exists());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_modes_are_usual() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        File::create(&real).unwrap();
        let usual = fs::metadata(&real).unwrap().permissions().mode();
        symlink(&real, &link).unwrap();
        let mut file = AtomicFile::create(&link, true).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode(), usual);
    }
}
