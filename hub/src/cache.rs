//! Where files lie: folders as Hugging Face's tools keep them, so that all tools share what one of them fetched.
//!
//! ```text
//! models--OWNER--NAME/blobs/CHECKSUM              contents, each once
//! models--OWNER--NAME/snapshots/COMMIT/PATH       links to them
//! models--OWNER--NAME/refs/BRANCH                 the commit that a branch is at
//! .locks/models--OWNER--NAME/CHECKSUM.lock        held while a blob is written
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::name::{Repository, Site, is_revision, is_safe_path};
use crate::patience;
use crate::settings::Settings;

/// What the name of an unfinished blob ends in.
pub(crate) const PART: &str = ".pinhole-part";
/// What the name of a link or a reference begins with before it is in its place.
const BESIDE: &str = ".pinhole-";
/// How often a lock that another process holds is tried.
const LOOK: Duration = Duration::from_millis(200);
/// A file of `refs` is one line.
const REFERENCE_BYTES: u64 = 1024;

/// The folder of a repository.
#[derive(Clone, Debug)]
pub struct Folder {
    /// `models--OWNER--NAME`
    pub path: PathBuf,
    locks: PathBuf,
}

/// Held while a blob is written. Let go of with the value, or with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Option<File>,
}

/// The folder that has all repositories of `site`.
pub fn root(settings: &Settings, site: Site) -> PathBuf {
    match site {
        Site::HuggingFace => settings.cache.clone(),
        // Its own tools have another layout, without checksums.
        Site::ModelScope => settings.home.join("modelscope"),
    }
}

impl Folder {
    /// That of `repository`. It may not be there.
    pub fn of(settings: &Settings, repository: &Repository) -> Folder {
        let (root, name) = (root(settings, repository.site), repository.folder());
        Folder { path: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// The file at `path` of `revision`: in the commit that the branch was at, or else in the newest snapshot that has it.
    pub fn find(&self, revision: Option<&str>, branch: &str, path: &str) -> Option<PathBuf> {
        if !is_safe_path(path) {
            return None;
        }
        let in_snapshot = |snapshot: &PathBuf| Some(snapshot.join(path)).filter(|found| found.is_file());
        if let Some(found) = self.snapshot(revision.unwrap_or(branch)).as_ref().and_then(in_snapshot) {
            return Some(found);
        }
        // A revision that is named is meant.
        if revision.is_some() { None } else { self.snapshots().iter().find_map(in_snapshot) }
    }

    /// The snapshot of `revision`, a branch, a tag or a commit, as far as it is here.
    pub fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        if !is_revision(revision) {
            return None;
        }
        let reference = self.path.join("refs").join(revision);
        let is_short = fs::metadata(&reference).is_ok_and(|found| found.is_file() && found.len() <= REFERENCE_BYTES);
        let commit =
            if is_short { fs::read_to_string(&reference).ok()?.trim().to_owned() } else { revision.to_owned() };
        let is_step = is_safe_path(&commit) && !commit.contains('/');
        Some(self.path.join("snapshots").join(commit)).filter(|snapshot| is_step && snapshot.is_dir())
    }

    /// All snapshots, the newest first.
    pub fn snapshots(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> = fs::read_dir(self.path.join("snapshots")).into_iter().flatten().flatten().collect();
        found.sort_by_key(|entry| std::cmp::Reverse(entry.metadata().and_then(|entry| entry.modified()).ok()));
        found.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    /// Where the content with this checksum lies, or is to lie.
    pub(crate) fn blob(&self, checksum: &Checksum) -> PathBuf {
        self.path.join("blobs").join(checksum.digits())
    }

    /// Where it is while it is not whole.
    pub(crate) fn part(&self, checksum: &Checksum) -> PathBuf {
        self.path.join("blobs").join(format!("{}{PART}", checksum.digits()))
    }

    /// The file at `path` of the snapshot `commit`.
    pub(crate) fn link(&self, commit: &str, path: &str) -> PathBuf {
        self.path.join("snapshots").join(commit).join(path)
    }

    /// Waits until no other process writes this blob. `waits` is told once, if it takes any waiting.
    pub(crate) fn lock(
        &self,
        checksum: &Checksum,
        cancelled: &dyn Fn() -> bool,
        waits: &mut dyn FnMut(),
    ) -> Result<Lock> {
        lock(&self.locks.join(format!("{}.lock", checksum.digits())), cancelled, waits)
    }

    /// Whether somebody writes the blob with these digits.
    pub(crate) fn is_locked(&self, digits: &str) -> bool {
        let file = File::open(self.locks.join(format!("{digits}.lock")));
        file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Makes `path` of the snapshot `commit` a link to the blob.
    pub(crate) fn place(&self, commit: &str, path: &str, checksum: &Checksum) -> Result<PathBuf> {
        let link = self.link(commit, path);
        let ups = "../".repeat(path.split('/').count() + 1);
        let target = PathBuf::from(format!("{ups}blobs/{}", checksum.digits()));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(link);
        }
        let mut folder = self.path.join("snapshots").join(commit);
        make_folder(&folder)?;
        let (above, _) = path.rsplit_once('/').unwrap_or_default();
        for step in above.split('/').filter(|step| !step.is_empty()) {
            folder = folder.join(step);
            make_folder(&folder)?;
            // A link in its place would lead out of the cache.
            let is_real = fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir());
            if !is_real {
                return Err(Error::io("write to", &folder, io::Error::other("it is a link")));
            }
        }
        let made = beside().make_in(&folder, |path| link_to(&target, &self.blob(checksum), path));
        made.and_then(|made| Ok(made.persist(&link)?)).map_err(|error| Error::io("link", &link, error))?;
        Ok(link)
    }

    /// Notes that `revision` is at `commit`.
    pub(crate) fn refer(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let reference = self.path.join("refs").join(revision);
        if let Some(folder) = reference.parent() {
            make_folder(folder)?;
        }
        // Not made in `refs`, which is for names of branches alone.
        self.write_reference(&reference, commit).map_err(|error| Error::io("write", &reference, error))
    }

    fn write_reference(&self, reference: &Path, commit: &str) -> io::Result<()> {
        let mut file = beside().make_in(&self.path, |path| File::create_new(path))?;
        file.write_all(commit.as_bytes())?;
        file.persist(reference)?;
        Ok(())
    }
}

/// How a file is made that is renamed to its place when it is whole: its name is neither another process's nor another thread's, and if it does
/// not get to its place, it goes.
fn beside() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(BESIDE);
    builder
}

/// Waits until no other process holds the lock at `path`.
pub(crate) fn lock(path: &Path, cancelled: &dyn Fn() -> bool, waits: &mut dyn FnMut()) -> Result<Lock> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = opened.map_err(|error| Error::io("open", path, error))?;
    let mut is_first = true;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => {
                if std::mem::take(&mut is_first) {
                    waits();
                }
                patience::wait(LOOK, cancelled)?;
            }
            // Some network file systems have no locks: then two processes fetch the same twice, each into its own view of the file.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(Lock { _file: None });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
        }
    }
}

/// Makes a folder, and those above it, where they are not there.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| Error::io("make", path, error))
}

/// Makes `at` a link: to `target` from where it is, or, where there are no such links, to `file` itself.
fn link_to(target: &Path, file: &Path, at: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        match std::os::unix::fs::symlink(target, at) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            made => return made,
        }
    }
    #[cfg(not(unix))]
    let _ = target;
    fs::hard_link(file, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(dir: &Path) -> Folder {
        Folder { path: dir.join("models--a--b"), locks: dir.join(".locks/models--a--b") }
    }

    fn checksum() -> Checksum {
        Checksum::sha256(&"ab".repeat(32)).unwrap()
    }

    #[test]
    fn a_file_is_found_by_branch_commit_or_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        fs::create_dir_all(folder.path.join("blobs")).unwrap();
        fs::write(folder.blob(&checksum()), "content").unwrap();
        let commit = "c".repeat(40);
        let link = folder.place(&commit, "x/y.gguf", &checksum()).unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "content");
        assert!(fs::read_link(&link).unwrap().starts_with("../../../blobs"));
        assert_eq!(folder.find(Some(&commit), "main", "x/y.gguf"), Some(link.clone()));
        // A branch that is not noted does not lead there, except if none was asked for.
        assert_eq!(folder.find(Some("main"), "main", "x/y.gguf"), None);
        assert_eq!(folder.find(None, "main", "x/y.gguf"), Some(link.clone()));
        folder.refer("main", &commit).unwrap();
        assert_eq!(folder.find(Some("main"), "main", "x/y.gguf"), Some(link));
        for wrong in ["../y.gguf", "x/z.gguf", "x"] {
            assert_eq!(folder.find(None, "main", wrong), None, "{wrong}");
        }
    }

    #[test]
    fn references_do_not_lead_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        fs::create_dir_all(folder.path.join("refs")).unwrap();
        fs::create_dir_all(dir.path().join("outside")).unwrap();
        fs::create_dir_all(folder.path.join("snapshots")).unwrap();
        fs::write(folder.path.join("refs/main"), "../../outside").unwrap();
        assert_eq!(folder.snapshot("main"), None);
        assert_eq!(folder.snapshot("../outside"), None);
    }

    #[test]
    fn threads_note_and_link_the_same_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        fs::create_dir_all(folder.path.join("blobs")).unwrap();
        fs::write(folder.blob(&checksum()), "content").unwrap();
        let commit = "c".repeat(40);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for i in 0..50 {
                        folder.refer("main", &commit).unwrap();
                        folder.place(&commit, &format!("file-{i}"), &checksum()).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_to_string(folder.path.join("refs/main")).unwrap(), commit);
        assert_eq!(fs::read_dir(folder.path.join("snapshots").join(&commit)).unwrap().count(), 50);
        // Nothing lies beside it that was not put in its place.
        assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_a_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let snapshot = folder.path.join("snapshots").join("c".repeat(40));
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(dir.path().join("outside")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), snapshot.join("x")).unwrap();
        assert!(folder.place(&"c".repeat(40), "x/y", &checksum()).is_err());
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn one_process_waits_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let held = folder.lock(&checksum(), &|| false, &mut || panic!("no one holds it")).unwrap();
        assert!(folder.is_locked(checksum().digits()));
        let mut told = 0;
        let refused = folder.lock(&checksum(), &|| true, &mut || told += 1);
        assert!(matches!(refused, Err(Error::Cancelled)) && told == 1);
        drop(held);
        assert!(!folder.is_locked(checksum().digits()));
        folder.lock(&checksum(), &|| true, &mut || panic!("no one holds it")).unwrap();
    }
}
