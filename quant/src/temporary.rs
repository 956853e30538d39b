//! Files under construction, which have not got their name yet.
//!
//! On Linux, a file system may have files without any name: whatever ends the process, nothing is left of them. Elsewhere a
//! file has a temporary name, `.NAME.pinhole-XXXXXX.part`, and is locked while it is written, so that the next start can tell
//! what a killed process left behind, and removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::{NamedTempFile, TempPath};

/// What temporary names have between the output's name and six random characters.
const MARK: &str = ".pinhole-";
/// How temporary names end.
const SUFFIX: &str = ".part";
/// How many random characters there are.
const RANDOM: usize = 6;
/// How much of the output's own name goes into the temporary one, in bytes: names end at 255 on most systems.
const MAX_STEM: usize = 200;

/// The temporary names that there are in this process.
static NAMES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the temporary files of this process, for one that ends at once. What is written afterwards is lost.
pub(crate) fn remove_all() {
    for path in NAMES.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // Whatever fails is left for the next start.
        let _ = fs::remove_file(path);
    }
}

/// Their paths, for tests.
#[cfg(test)]
pub(crate) fn known() -> Vec<PathBuf> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A file under construction. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Temporary {
    /// Removes the file when it is dropped. `None` for a file without a name, and for one that got its own.
    path: Option<TempPath>,
    stem: OsString,
}

impl Temporary {
    /// Creates one that is to become `target`, after removing those that dead processes left for the same target.
    pub(crate) fn create(target: &Path, mode: u32) -> io::Result<(File, Temporary)> {
        let (directory, stem) = (directory_of(target), stem_of(target)?);
        remove_stale(directory, &stem);
        if let Some(file) = unnamed(directory, mode) {
            return Ok((file, Temporary { path: None, stem }));
        }
        let (file, path) = create_locked(directory, &stem, mode)?.into_parts();
        NAMES.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_path_buf());
        Ok((file, Temporary { path: Some(path), stem }))
    }

    /// Gives `file` the name `target`, in the place of a file that is there if it may `overwrite` one. What fails may be tried
    /// again with another name in the same directory.
    pub(crate) fn place(&mut self, file: &File, target: &Path, overwrite: bool) -> io::Result<()> {
        let Some(path) = self.path.take() else { return link(file, target, &self.stem, overwrite) };
        let name = path.to_path_buf();
        let placed = if overwrite { path.persist(target) } else { path.persist_noclobber(target) };
        match placed {
            Ok(()) => {
                forget(&name);
                Ok(())
            }
            Err(error) => {
                self.path = Some(error.path);
                Err(error.error)
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let name = path.to_path_buf();
            drop(path);
            forget(&name);
        }
    }
}

fn forget(name: &Path) {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| known != name);
}

/// A file without a name, if the file system of `directory` has such files and can name them later.
#[cfg(target_os = "linux")]
fn unnamed(directory: &Path, mode: u32) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};
    #[cfg(test)]
    if tests::WITH_NAMES.get() {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(open(directory, flags, Mode::from_raw_mode(mode)).ok()?);
    // Where /proc is not mounted, it could never get a name.
    fs::exists(way_to(&file)).ok()?.then_some(file)
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path, _: u32) -> Option<File> {
    None
}

/// A path that leads to an open file, whether or not it has a name.
#[cfg(target_os = "linux")]
fn way_to(file: &File) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Gives a file without a name its first one.
#[cfg(target_os = "linux")]
fn link(file: &File, target: &Path, stem: &OsStr, overwrite: bool) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    let name = |to: &Path| linkat(CWD, way_to(file), CWD, to, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from);
    if !overwrite {
        return name(target);
    }
    // A first name never replaces anything, and a second one does.
    let mut builder = tempfile::Builder::new();
    builder.prefix(stem).suffix(SUFFIX).rand_bytes(RANDOM);
    let named = builder.make_in(directory_of(target), |path| name(path))?;
    named.into_temp_path().persist(target).map_err(|error| error.error)
}

/// There are none.
#[cfg(not(target_os = "linux"))]
fn link(_: &File, _: &Path, _: &OsStr, _: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The directory of a file.
pub(crate) fn directory_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// The temporary name up to its random characters: `.NAME.pinhole-`.
fn stem_of(target: &Path) -> io::Result<OsString> {
    let name = target.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
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
fn create_locked(directory: &Path, stem: &OsStr, mode: u32) -> io::Result<NamedTempFile> {
    // Between creating and locking, another process may take the file for a stale one. It then holds the lock, or has
    // removed the file: either way the next attempt has a new name.
    const ATTEMPTS: usize = 16;
    for _ in 0..ATTEMPTS {
        let file = create_temporary(directory, stem, mode)?;
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

fn create_temporary(directory: &Path, stem: &OsStr, mode: u32) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(stem).suffix(SUFFIX).rand_bytes(RANDOM);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder.tempfile_in(directory).map_err(plain)
}

/// The system's own error. `tempfile` puts the temporary file's path behind its text, and keeps its code to itself.
fn plain(error: io::Error) -> io::Error {
    match error.to_string().split_once(" at path \"") {
        Some((own, _)) if error.raw_os_error().is_none() => io::Error::new(error.kind(), own),
        _ => error,
    }
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
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// Whether this thread's files have temporary names where they need none.
        pub(crate) static WITH_NAMES: Cell<bool> = const { Cell::new(false) };
    }
}
