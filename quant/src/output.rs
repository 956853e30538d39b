//! Output files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::temporary::{self, Temporary};

/// The mode of outputs: as readable as any other new file, since the umask still applies.
const PUBLIC: u32 = 0o666;
/// The mode of files that only this user may read.
const PRIVATE: u32 = 0o600;

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

/// An output file under construction: on Linux a file without a name, if the file system has such, elsewhere a temporary file
/// beside it, `.NAME.pinhole-XXXXXX.part`. [`commit`](AtomicFile::commit) gives it its name.
///
/// Dropped without a commit, it is gone. A temporary file is locked while it is written, so that the next start can tell what a
/// killed process left behind, and removes it.
#[derive(Debug)]
pub struct AtomicFile {
    /// Removes the file when it is dropped, which is before the lock goes.
    temporary: Temporary,
    file: BufWriter<File>,
    target: PathBuf,
    overwrite: bool,
}

/// Removes the temporary files of this process, for one that ends at once. What is written to an [`AtomicFile`] afterwards is
/// lost.
pub fn remove_temporary_files() {
    temporary::remove_all();
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
        AtomicFile::begin(resolve(target, overwrite)?, overwrite, PUBLIC)
    }

    /// Creates a file that only this user may read. [`commit`](AtomicFile::commit) puts it in the place of whatever has the name
    /// of `target`: of a symbolic link itself, and not of what it names.
    ///
    /// # Errors
    ///
    /// [`OutputError::Io`] where the directory is missing or not writable.
    pub fn create_private(target: &Path) -> Result<AtomicFile, OutputError> {
        AtomicFile::begin(target.to_owned(), true, PRIVATE)
    }

    /// Creates a file for `target` or another name beside it, which is chosen with
    /// [`commit_to_first_free`](AtomicFile::commit_to_first_free). What has the name of `target` now does not matter.
    ///
    /// # Errors
    ///
    /// [`OutputError::Io`] where the directory is missing or not writable.
    pub fn create_beside(target: &Path) -> Result<AtomicFile, OutputError> {
        AtomicFile::begin(target.to_owned(), false, PUBLIC)
    }

    fn begin(target: PathBuf, overwrite: bool, mode: u32) -> Result<AtomicFile, OutputError> {
        let (file, temporary) =
            Temporary::create(&target, mode).map_err(|source| OutputError::io("create", &target, source))?;
        Ok(AtomicFile { temporary, file: BufWriter::new(file), target, overwrite })
    }

    /// The file that [`commit`](AtomicFile::commit) makes.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the file end after its first `length` bytes, and goes on there. What was written before and did not reach the disk, because
    /// that is full, is given up if it lies behind them.
    ///
    /// # Errors
    /// What the system reports.
    pub fn truncate(&mut self, length: u64) -> io::Result<()> {
        let again = BufWriter::new(self.file.get_ref().try_clone()?);
        // Dropped as it is, the old writer would try once more to write what it holds.
        let (mut file, _) = std::mem::replace(&mut self.file, again).into_parts();
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length)).map(|_| ())
    }

    /// Flushes everything to the disk and gives the file its name.
    ///
    /// # Errors
    ///
    /// [`OutputError::Io`] where the disk is full or the rename fails, [`OutputError::Exists`] where somebody else made
    /// the file meanwhile and `overwrite` is false. The temporary file is gone then.
    pub fn commit(self) -> Result<(), OutputError> {
        let target = self.target.clone();
        self.commit_as(std::iter::once(target)).map(|_| ())
    }

    /// As [`commit`](AtomicFile::commit), with the first of `names` that no file has: choosing and taking it is one step, so that
    /// of two processes which choose at the same time both get one. All are names in the target's directory. Returns the name.
    ///
    /// # Errors
    ///
    /// [`OutputError::Io`] where the disk is full or the file cannot be named, [`OutputError::Exists`] where all are taken.
    pub fn commit_to_first_free(self, names: impl Iterator<Item = PathBuf>) -> Result<PathBuf, OutputError> {
        AtomicFile { overwrite: false, ..self }.commit_as(names)
    }

    fn commit_as(self, names: impl Iterator<Item = PathBuf>) -> Result<PathBuf, OutputError> {
        let AtomicFile { mut temporary, file, target, overwrite } = self;
        // The handle, and with it the lock, lives until the file has its name: else it could pass for a stale one.
        let file = file.into_inner().map_err(|error| OutputError::io("write", &target, error.into_error()))?;
        // Some file systems report a full disk only here.
        file.sync_all().map_err(|source| OutputError::io("write", &target, source))?;
        for name in names {
            match temporary.place(&file, &name, overwrite) {
                Ok(()) => return Ok(name),
                Err(error) if !overwrite && error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(OutputError::io("rename", &name, source)),
            }
        }
        Err(OutputError::Exists { path: target })
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

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The path to rename to, once it is known that a regular file may be there.
fn resolve(target: &Path, overwrite: bool) -> Result<PathBuf, OutputError> {
    let existing = match fs::metadata(target) {
        Ok(existing) => existing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(linked(target)),
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
    // On Windows a resolved path looks like `\\?\C:\..`: it is hard to read in a message, and Wine refuses it if it is long. Only a link
    // needs it.
    if cfg!(windows) && !fs::symlink_metadata(target).is_ok_and(|about| about.is_symlink()) {
        return Ok(target.to_owned());
    }
    fs::canonicalize(target).map_err(|source| OutputError::io("resolve", target, source))
}

/// The most links in a row: Linux follows as many.
const MOST_LINKS: usize = 40;

/// Where a link to a file that is not there leads; `target` itself, if it is no link.
fn linked(target: &Path) -> PathBuf {
    let mut path = target.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(next) = fs::read_link(&path) else { break };
        path = path.with_file_name("").join(next);
    }
    path
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::temporary::tests::WITH_NAMES;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs `test` with files that have no name before they have their own, where there are such, and with temporary names.
    fn both_ways(test: impl Fn()) {
        for with_names in [false, true] {
            WITH_NAMES.set(with_names);
            test();
        }
        WITH_NAMES.set(false);
    }

    #[test]
    fn the_file_appears_with_the_commit() {
        both_ways(|| {
            let directory = tempfile::tempdir().unwrap();
            let target = directory.path().join("out.gguf");
            let mut file = AtomicFile::create(&target, false).unwrap();
            file.write_all(b"pinhole").unwrap();
            assert!(!target.exists());
            match names(directory.path()).pop() {
                None => assert!(!WITH_NAMES.get()),
                Some(name) => assert!(name.starts_with(".out.gguf.pinhole-") && name.ends_with(".part"), "{name}"),
            }
            file.commit().unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"pinhole");
            assert_eq!(names(directory.path()), ["out.gguf"]);
        });
    }

    #[test]
    fn what_was_written_can_be_changed_and_cut_off() {
        both_ways(|| {
            let directory = tempfile::tempdir().unwrap();
            let target = directory.path().join("out");
            let mut file = AtomicFile::create(&target, false).unwrap();
            file.write_all(b"pinhole, and more").unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.write_all(b"P").unwrap();
            file.seek(SeekFrom::End(0)).unwrap();
            file.flush().unwrap();
            file.write_all(b"lost").unwrap();
            file.truncate(7).unwrap();
            file.write_all(b"!").unwrap();
            file.commit().unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"Pinhole!");
        });
    }

    #[test]
    fn messages_name_the_output_alone() {
        let directory = tempfile::tempdir().unwrap();
        let error = AtomicFile::create(&directory.path().join("none/out.png"), false).unwrap_err();
        let message = error.to_string();
        let end = if cfg!(windows) { "(os error 3)" } else { "none/out.png: No such file or directory (os error 2)" };
        assert!(message.ends_with(end) && !message.contains(".pinhole-"), "{message}");
    }

    #[test]
    fn a_drop_leaves_nothing() {
        both_ways(|| {
            let directory = tempfile::tempdir().unwrap();
            let mut file = AtomicFile::create(&directory.path().join("out.png"), false).unwrap();
            file.write_all(b"half").unwrap();
            drop(file);
            assert_eq!(names(directory.path()), [""; 0]);
        });
    }

    /// As a process does that has no time to drop anything.
    #[test]
    fn temporary_files_can_be_removed_from_outside() {
        WITH_NAMES.set(true);
        let directory = tempfile::tempdir().unwrap();
        let file = AtomicFile::create(&directory.path().join("out.png"), false).unwrap();
        let name = directory.path().join(names(directory.path()).pop().unwrap());
        // Only this one: other tests have theirs.
        assert!(temporary::known().contains(&name));
        drop(file);
        assert!(!temporary::known().contains(&name));
        let file = AtomicFile::create(&directory.path().join("out.png"), false).unwrap();
        file.commit().unwrap();
        assert!(!temporary::known().iter().any(|known| known.starts_with(directory.path())));
    }

    /// Sixteen at once, who all want the same name.
    #[test]
    fn everybody_gets_a_name_of_their_own() {
        for with_names in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let target = directory.path().join("out.png");
            let numbered =
                |i: usize| directory.path().join(if i == 1 { "out.png".into() } else { format!("out-{i}.png") });
            let (target, numbered) = (&target, &numbered);
            std::thread::scope(|scope| {
                for i in 0..16 {
                    scope.spawn(move || {
                        WITH_NAMES.set(with_names);
                        let mut file = AtomicFile::create_beside(target).unwrap();
                        file.write_all(&[i]).unwrap();
                        file.commit_to_first_free((1..=16).map(numbered)).unwrap()
                    });
                }
            });
            let mut found: Vec<u8> = (1..=16).map(|i| fs::read(numbered(i)).unwrap()[0]).collect();
            found.sort_unstable();
            assert_eq!(found, (0..16).collect::<Vec<u8>>());
            let full = AtomicFile::create_beside(target).unwrap().commit_to_first_free((1..=16).map(numbered));
            assert!(matches!(full, Err(OutputError::Exists { .. })));
            assert_eq!(names(directory.path()).len(), 16);
        }
    }

    #[test]
    fn overwriting_has_to_be_asked_for() {
        both_ways(overwriting);
    }

    fn overwriting() {
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
        both_ways(meanwhile);
    }

    fn meanwhile() {
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
        WITH_NAMES.set(true);
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
        both_ways(long_names);
    }

    fn long_names() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("ż".repeat(127));
        AtomicFile::create(&target, false).unwrap().commit().unwrap();
        assert!(target.exists());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_modes_are_usual() {
        both_ways(links_and_modes);
    }

    #[cfg(unix)]
    fn links_and_modes() {
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
        // One that leads to nothing yet says where the file is to be.
        let (later, chain) = (directory.path().join("later"), directory.path().join("chain"));
        symlink("later", &chain).unwrap();
        let mut file = AtomicFile::create(&chain, false).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(fs::symlink_metadata(&chain).unwrap().is_symlink() && fs::read(&later).unwrap() == b"new");
        fs::remove_file(&chain).unwrap();
        fs::remove_file(&later).unwrap();
        symlink("no/such/folder", &chain).unwrap();
        assert!(AtomicFile::create(&chain, true).is_err());
        fs::remove_file(&chain).unwrap();

        // A private file takes the place of a link, and leaves alone what the link leads to.
        let mut file = AtomicFile::create_private(&link).unwrap();
        file.write_all(b"mine").unwrap();
        file.commit().unwrap();
        let about = fs::symlink_metadata(&link).unwrap();
        assert_eq!((about.is_file(), about.permissions().mode() & 0o777), (true, 0o600));
        assert_eq!((fs::read(&real).unwrap(), fs::read(&link).unwrap()), (b"new".to_vec(), b"mine".to_vec()));
    }
}
