//! One file that is to be there: where it comes from, where it will lie, and where it is until it is whole.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::arriving::Arriving;
use crate::cache::{Folder, PART};
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::name::{Repository, is_safe_path, last_step};
use crate::url::{Url, decoded};

/// A file that is to be there.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What to call it: its path in the repository, or the last step of its address.
    pub name: String,
    /// The place that it takes in a model, if the catalogue says so.
    pub place: Option<String>,
    /// Its bytes, if the server says so.
    pub size: Option<u64>,
    /// What it is known by.
    pub checksum: Option<Checksum>,
    /// The repository that has it.
    pub repository: Option<Repository>,
    /// The folder of its whole repository, if that was asked for.
    pub directory: Option<PathBuf>,
    /// Where it will lie.
    pub path: PathBuf,
    /// What is there of it, if it was [begun](crate::Hub::begin).
    pub arriving: Option<Arc<Arriving>>,
    pub(crate) origin: Origin,
}

#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// A file of a repository at a revision.
    Repository { folder: Folder, revision: String, commit: String, url: Url },
    /// A file anywhere, and the tag of its version.
    Address { url: Url, tag: Option<String> },
}

impl Wanted {
    /// Whether its content is there, by its size.
    pub fn is_there(&self) -> bool {
        let found = fs::metadata(self.blob());
        self.size.is_some() && found.is_ok_and(|found| found.is_file() && Some(found.len()) == self.size)
    }

    /// What it has to be, if no hub says so.
    pub fn expect(&mut self, checksum: Checksum) {
        self.checksum = Some(checksum);
    }

    /// Where its content lies.
    pub(crate) fn blob(&self) -> PathBuf {
        match (&self.origin, &self.checksum) {
            (Origin::Repository { folder, .. }, Some(checksum)) => folder.blob(checksum),
            _ => self.path.clone(),
        }
    }

    /// Where it is while it is not whole.
    pub(crate) fn part(&self) -> Option<PathBuf> {
        match &self.origin {
            Origin::Repository { folder, .. } => self.checksum.as_ref().map(|checksum| folder.part(checksum)),
            Origin::Address { url, tag } => {
                // Parts of different versions are different files.
                let version = format!("{url}\n{}\n{:?}", tag.as_deref().unwrap_or_default(), self.size);
                let mut hasher = Checksum::Sha256(String::new()).hasher(0);
                hasher.update(version.as_bytes());
                let version = hasher.finish();
                Some(self.path.with_file_name(format!(".{}{PART}", &version.digits()[..32])))
            }
        }
    }
}

/// What to call a file: what the server says, or the last step of its address.
pub(crate) fn named(disposition: &str, url: &Url) -> Result<String> {
    let said = disposition.split(';').find_map(|part| part.trim().strip_prefix("filename="));
    let said = said.map(|name| name.trim_matches('"').to_owned());
    let path = url.path();
    let last = decoded(last_step(&path)).unwrap_or_default();
    let is_name = |name: &String| is_safe_path(name) && !name.contains('/') && !name.starts_with('.');
    let name = said.filter(is_name).or(Some(last).filter(is_name));
    name.ok_or_else(|| Error::name(url.without_query(), "neither the address nor the server gives the file a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_servers_stay_in_their_folder() {
        let url = Url::parse("https://a.example/x/y%20z.gguf?token=1").unwrap();
        assert_eq!(named("", &url).unwrap(), "y z.gguf");
        assert_eq!(named("attachment; filename=\"m.safetensors\"", &url).unwrap(), "m.safetensors");
        for hostile in ["../../x", "/etc/passwd", ".bashrc", "a\\b", ""] {
            assert_eq!(named(&format!("attachment; filename=\"{hostile}\""), &url).unwrap(), "y z.gguf", "{hostile}");
        }
        for nameless in ["https://a.example/", "https://a.example/..%2F..", "https://a.example/.hidden"] {
            assert!(named("", &Url::parse(nameless).unwrap()).is_err(), "{nameless}");
        }
    }
}
