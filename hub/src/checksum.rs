//! What says that a file is the right one.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// How much of a file is read at a time.
pub(crate) const PIECE: usize = 1 << 20;

/// What a file is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// SHA-256 of the content, in small hexadecimal digits: large files of Hugging Face (LFS), and all of ModelScope.
    Sha256(String),
    /// SHA-1 of a header and the content, as git has it: small files of Hugging Face.
    Git(String),
}

/// Computes a [`Checksum`] piece by piece.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Checksum {
    /// A SHA-256 in `text`; `None` if it is none.
    pub fn sha256(text: &str) -> Option<Checksum> {
        hex(text, 64).map(Checksum::Sha256)
    }

    /// A SHA-1 of git in `text`; `None` if it is none.
    pub fn git(text: &str) -> Option<Checksum> {
        hex(text, 40).map(Checksum::Git)
    }

    /// Its digits, which name the file's blob.
    pub fn digits(&self) -> &str {
        match self {
            Checksum::Sha256(digits) | Checksum::Git(digits) => digits,
        }
    }

    /// What computes one of this kind, of a content of `size` bytes.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Checksum::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Checksum::Git(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {size}\0"));
                Hasher::Git(hasher)
            }
        }
    }

    /// The checksum of this kind that `file` has, which is read from where it stands.
    ///
    /// # Errors
    /// The system's own, and that of `go_on`, which is asked before every piece.
    pub(crate) fn of(&self, file: &mut File, go_on: &mut dyn FnMut() -> io::Result<()>) -> io::Result<Checksum> {
        let mut hasher = self.hasher(file.metadata()?.len());
        let mut piece = vec![0; PIECE];
        loop {
            go_on()?;
            match file.read(&mut piece)? {
                0 => return Ok(hasher.finish()),
                count => hasher.update(&piece[..count]),
            }
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checksum::Sha256(digits) => write!(f, "SHA-256 {digits}"),
            Checksum::Git(digits) => write!(f, "git's SHA-1 {digits}"),
        }
    }
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Git(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Checksum {
        match self {
            Hasher::Sha256(hasher) => Checksum::Sha256(digits(&hasher.finalize())),
            Hasher::Git(hasher) => Checksum::Git(digits(&hasher.finalize())),
        }
    }
}

/// Bytes in small hexadecimal digits.
fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `text` in small letters, if it is as many hexadecimal digits.
fn hex(text: &str, count: usize) -> Option<String> {
    let is_hex = text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn of(checksum: &Checksum, content: &[u8]) -> Checksum {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        checksum.of(&mut file, &mut || Ok(())).unwrap()
    }

    #[test]
    fn checksums_are_those_of_other_programs() {
        // Of FIPS 180, and of `git hash-object` for an empty file and for "hello\n".
        let sha = Checksum::sha256("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        assert_eq!(of(&sha, b"abc"), sha);
        let git = Checksum::git("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        assert_eq!(of(&git, b"hello\n"), git);
        assert_eq!(of(&git, b"").digits(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }

    #[test]
    fn what_is_no_checksum_names_no_file() {
        for wrong in ["", "../../etc/passwd", "ba7816", &"g".repeat(64), &format!("{}/", "a".repeat(63))] {
            assert_eq!(Checksum::sha256(wrong), None, "{wrong}");
            assert_eq!(Checksum::git(wrong), None, "{wrong}");
        }
    }
}
