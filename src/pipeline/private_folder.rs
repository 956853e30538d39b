//! A folder that only this user reads and writes: for files that are believed when they are found again.
//!
//! Another user could put anything there if they might write to it. So the folder has to be this user's and closed to
//! others, and so has every file that is read. No link is followed, in either direction.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pinhole_quant::output::AtomicFile;

use crate::{Error, Result, reserve};

/// A folder of this user's own.
#[derive(Debug)]
pub(super) struct PrivateFolder {
    path: PathBuf,
}

/// A file in the folder.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// When it was written or found.
    pub(super) used: SystemTime,
}

impl PrivateFolder {
    /// The folder at `path`. Creates it if it is missing, closed to other users.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be made; [`Error::Mismatch`] if others may write to it.
    pub(super) fn open(path: &Path) -> Result<PrivateFolder> {
        let fail = |error| Error::io("create", path, error);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        match create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
            _ => {}
        }
        let about = fs::metadata(path).map_err(fail)?;
        if !about.is_dir() {
            return Err(fail(io::ErrorKind::NotADirectory.into()));
        }
        check(path, &about, "a folder")?;
        Ok(PrivateFolder { path: path.to_owned() })
    }

    /// Where the file `name` lies.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The bytes of the file `name`, if it is there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Mismatch`] if it is another user's, no regular file, or longer than `most`.
    pub(super) fn read(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>> {
        let path = self.path_of(name);
        let file = match open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let about = file.metadata().map_err(|error| Error::io("open", &path, error))?;
        if !about.is_file() {
            return Err(Error::io("open", &path, io::Error::other("not a regular file")));
        }
        check(&path, &about, "a file")?;
        let len = usize::try_from(about.len()).unwrap_or(usize::MAX);
        if len > most {
            return Err(Error::mismatch(&path, "size", format!("at most {most} bytes"), len.to_string()));
        }
        let mut bytes = reserve::room("a file of the cache", len)?;
        // It may have grown meanwhile.
        (&file).take(len as u64).read_to_end(&mut bytes).map_err(|error| Error::io("read", &path, error))?;
        // If it cannot be marked as used, it goes earlier.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(bytes))
    }

    /// Writes the file `name`, in the place of whatever has that name.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path_of(name);
        let mut file = AtomicFile::create_private(&path).map_err(Error::output)?;
        file.write_all(bytes).map_err(|error| Error::io("write", &path, error))?;
        file.commit().map_err(Error::output)
    }

    /// The regular files whose names `ours` knows.
    pub(super) fn files(&self, ours: impl Fn(&str) -> bool) -> Vec<Entry> {
        let mut files = Vec::new();
        let Ok(entries) = fs::read_dir(&self.path) else { return files };
        for entry in entries.flatten() {
            let name = entry.file_name();
            // Not through links.
            let Ok(about) = entry.metadata() else { continue };
            if let (Some(name), Ok(used)) = (name.to_str(), about.modified())
                && about.is_file()
                && ours(name)
            {
                files.push(Entry { path: entry.path(), bytes: about.len(), used });
            }
        }
        files
    }
}

#[cfg(unix)]
fn create(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path)
}

#[cfg(not(unix))]
fn create(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
}

/// Opens a file without following a link, and without waiting for the other end of a pipe.
#[cfg(target_os = "linux")]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open(path: &Path) -> io::Result<File> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    File::open(path)
}

/// Refuses `what` at `path` if it is another user's, or others may write to it.
#[cfg(target_os = "linux")]
fn check(path: &Path, about: &fs::Metadata, what: &str) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    const OTHERS_WRITE: u32 = 0o022;
    let (owner, user) = (about.uid(), rustix::process::geteuid().as_raw());
    let refuse = |expected: String, found: String, hint: &str| {
        Err(Error::mismatch(path, "permissions", expected, found).with_hint(hint))
    };
    if owner != user {
        let hint = "give a folder of your own: what lies there decides what is drawn";
        return refuse(format!("{what} of user {user}"), format!("one of user {owner}"), hint);
    }
    if about.mode() & OTHERS_WRITE != 0 {
        let found = format!("mode {:o}", about.mode() & 0o7777);
        return refuse(format!("{what} that no other user may write to"), found, "chmod 700 closes a folder to others");
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn check(_: &Path, _: &fs::Metadata, _: &str) -> Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn message<T>(result: Result<T>) -> String {
        result.err().unwrap().to_string()
    }

    #[test]
    fn only_this_user_reads_and_writes_it() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("made/when/needed");
        let folder = PrivateFolder::open(&path).unwrap();
        folder.write("one", b"1").unwrap();
        assert_eq!((mode(&path), mode(&folder.path_of("one"))), (0o700, 0o600));
        assert_eq!(folder.read("one", 1).unwrap().unwrap(), b"1");
        assert!(message(folder.read("one", 0)).ends_with("size: expected at most 0 bytes, found 1"));
        assert!(folder.read("other", 1).unwrap().is_none());
        // A folder of the user's that is not theirs alone.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let found = message(PrivateFolder::open(&path));
        assert!(found.ends_with("expected a folder that no other user may write to, found mode 777"), "{found}");
        fs::set_permissions(folder.path_of("one"), fs::Permissions::from_mode(0o622)).unwrap();
        assert!(message(folder.read("one", 9)).contains("expected a file that no other user may write to"));
        assert!(message(PrivateFolder::open(&folder.path_of("one"))).contains("not a directory"));
    }

    #[test]
    fn files_of_other_users_are_not_believed() {
        let top = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::open(&top.path().join("cache")).unwrap();
        folder.write("one", b"1").unwrap();
        // Only root can give files away.
        if std::os::unix::fs::chown(folder.path_of("one"), Some(12345), None).is_ok() {
            assert!(message(folder.read("one", 9)).ends_with("found one of user 12345"));
            std::os::unix::fs::chown(top.path().join("cache"), Some(12345), None).unwrap();
            assert!(message(PrivateFolder::open(&top.path().join("cache"))).contains("expected a folder of user"));
        }
    }

    #[test]
    fn links_and_pipes_are_neither_read_nor_written_through() {
        let top = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::open(&top.path().join("cache")).unwrap();
        let precious = top.path().join("precious");
        fs::write(&precious, "kept").unwrap();
        symlink(&precious, folder.path_of("link")).unwrap();
        symlink("/dev/zero", folder.path_of("endless")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path_of("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        for name in ["link", "endless", "pipe"] {
            assert!(folder.read(name, 9).is_err(), "{name}");
            assert!(folder.files(|known| known == name).is_empty());
            folder.write(name, b"new").unwrap();
            assert_eq!(folder.read(name, 9).unwrap().unwrap(), b"new");
        }
        assert_eq!(fs::read(precious).unwrap(), b"kept");
    }
}
