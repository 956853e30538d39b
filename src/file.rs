//! The only way to a file that somebody names: it has to be a regular one, and a text has to end.
//!
//! A path in a model's directory may be anything: a pipe, which waits for a writer, a device, which never ends, a link to
//! nothing. Nothing of that is waited for or read.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use crate::{Error, Result};

/// The most bytes of a configuration, a tokenizer or another text.
pub const MOST_TEXT: u64 = 64 << 20;

/// Opens the regular file at `path` for reading.
///
/// # Errors
/// [`Error::Io`] if there is no such file, it is not a regular one, or the system refuses to open it.
pub fn open(path: &Path) -> Result<(File, Metadata)> {
    let fail = |source| Error::io("open", path, source);
    // Looked at before it is opened: opening some devices does something.
    regular(&metadata(path)?).map_err(fail)?;
    let file = unwaiting().open(path).map_err(fail)?;
    // And again, because another file may have come to its place.
    let metadata = file.metadata().map_err(fail)?;
    regular(&metadata).map_err(fail)?;
    Ok((file, metadata))
}

/// The text in the regular file at `path`, of at most [`MOST_TEXT`] bytes.
///
/// # Errors
/// As [`open()`]; [`Error::Malformed`] if it is longer, [`Error::Io`] if it is no UTF-8.
pub fn text(path: &Path) -> Result<String> {
    let read = bytes(path)?;
    String::from_utf8(read)
        .map_err(|_| Error::io("read", path, io::Error::new(io::ErrorKind::InvalidData, "it is no text in UTF-8")))
}

/// The bytes of the regular file at `path`, at most [`MOST_TEXT`] of them.
///
/// # Errors
/// As [`open()`]; [`Error::Malformed`] if it is longer.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    let (file, metadata) = open(path)?;
    let too_long = |length: u64| {
        Err(Error::malformed(path, "file", format!("at most {MOST_TEXT} bytes"), format!("{length} bytes")))
    };
    if metadata.len() > MOST_TEXT {
        return too_long(metadata.len());
    }
    let mut bytes = Vec::new();
    // A file may grow meanwhile, and some of the system's own have no length.
    file.take(MOST_TEXT + 1).read_to_end(&mut bytes).map_err(|source| Error::io("read", path, source))?;
    if bytes.len() as u64 > MOST_TEXT {
        return too_long(bytes.len() as u64);
    }
    Ok(bytes)
}

/// As [`text`], or `None` if there is nothing at `path`. A link to nothing is something.
///
/// # Errors
/// As [`text`].
pub fn text_if_there(path: &Path) -> Result<Option<String>> {
    if is_there(path) { text(path).map(Some) } else { Ok(None) }
}

/// Whether there is anything at `path`, be it a link to nothing or something that may not be looked at: opening it says
/// what is wrong.
pub fn is_there(path: &Path) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    !matches!(fs::symlink_metadata(path), Err(error) if matches!(error.kind(), NotFound | NotADirectory))
}

/// Whether a directory, and not a file, is at `path`.
///
/// # Errors
/// [`Error::Io`] if there is nothing.
pub fn is_directory(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_dir())
}

/// What is at `path`, with links followed.
fn metadata(path: &Path) -> Result<Metadata> {
    fs::metadata(path).map_err(|source| Error::io("open", path, dangling(path).unwrap_or(source)))
}

/// The error for a link whose target is gone; `None` if `path` is none.
fn dangling(path: &Path) -> Option<io::Error> {
    let target = fs::read_link(path).ok()?;
    if fs::metadata(path).err()?.kind() != io::ErrorKind::NotFound {
        return None;
    }
    let message = format!(
        "it is a link to {}, which is not there (an unfinished download, or a file that was moved)",
        target.display()
    );
    Some(io::Error::new(io::ErrorKind::NotFound, message))
}

fn regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(())
}

/// How files are opened: if a pipe comes between a look and the opening, opening it returns at once.
fn unwaiting() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    options
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_are_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        assert!(!is_there(&path) && text_if_there(&path).unwrap().is_none());
        fs::write(&path, "é").unwrap();
        assert_eq!(text_if_there(&path).unwrap().as_deref(), Some("é"));
        assert!(is_directory(directory.path()).unwrap() && !is_directory(&path).unwrap());
        // Something under a file is nothing.
        assert!(!is_there(&path.join("text")));
        fs::write(&path, [0xff]).unwrap();
        assert!(text(&path).unwrap_err().to_string().ends_with("text: it is no text in UTF-8"));
    }

    #[test]
    fn texts_have_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        File::create(&path).unwrap().set_len(MOST_TEXT + 1).unwrap();
        let message = bytes(&path).unwrap_err().to_string();
        assert!(message.ends_with("expected at most 67108864 bytes, found 67108865 bytes"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        use std::os::unix::{fs::symlink, net::UnixListener};
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let pipe = at("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink(&pipe, at("link")).unwrap();
        for name in ["pipe", "socket", "zero", "link"] {
            let message = text_if_there(&at(name)).unwrap_err().to_string();
            assert!(message.ends_with(&format!("{name}: not a regular file")), "{message}");
        }
        // Without the look before: a pipe that has taken a file's place is not waited for.
        assert!(unwaiting().open(&pipe).is_ok());
        assert!(bytes(directory.path()).unwrap_err().to_string().contains("is a directory"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_is_called_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::os::unix::fs::symlink("../blobs/0123", &path).unwrap();
        assert!(is_there(&path));
        for error in [text_if_there(&path).unwrap_err(), is_directory(&path).unwrap_err()] {
            let message = error.to_string();
            assert!(message.contains("config.json: it is a link to ../blobs/0123, which is not there"), "{message}");
        }
    }
}
