//! What a user asks for, and which names are safe.

use std::fmt;

use crate::error::{Error, Result};
use crate::settings::{HUGGING_FACE, Settings};
use crate::url::{Url, decoded};

/// The most characters of a repository's owner or name on Hugging Face.
const LONGEST_NAME: usize = 96;
/// The most bytes of a path, and of a name in it: those of Linux' file systems, with room for endings.
const LONGEST_PATH: usize = 1024;
const LONGEST_STEP: usize = 200;

/// Where repositories are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// Hugging Face, or a mirror of it.
    HuggingFace,
    /// ModelScope.
    ModelScope,
}

impl Site {
    /// What stands before a repository's name.
    pub fn prefix(self) -> &'static str {
        match self {
            Site::HuggingFace => "hf:",
            Site::ModelScope => "ms:",
        }
    }

    /// The revision that is meant if none is named.
    pub fn branch(self) -> &'static str {
        match self {
            Site::HuggingFace => "main",
            Site::ModelScope => "master",
        }
    }
}

/// A repository of models. Both names are safe in paths and addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Where it is.
    pub site: Site,
    owner: String,
    name: String,
}

/// What a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A model of the catalogue, in one of its types: `NAME` or `NAME:TYPE`.
    Model {
        /// Its name.
        name: String,
        /// The type, in small letters, if one is named.
        dtype: Option<String>,
    },
    /// A repository or a file of it: `hf:OWNER/NAME[@REVISION][:FILE]`, and `ms:` for ModelScope.
    Repository {
        /// Which.
        repository: Repository,
        /// A branch, tag or commit, if one is named.
        revision: Option<String>,
        /// The file, if one is named.
        file: Option<String>,
    },
    /// A file anywhere.
    Address(Url),
}

impl Repository {
    /// The repository `owner/name`.
    ///
    /// # Errors
    /// [`Error::Name`] for anything that could not be one.
    pub fn parse(site: Site, text: &str) -> Result<Repository> {
        let wrong = || Error::name(text, "expected OWNER/NAME, in letters, digits and `-`, `_`, `.`");
        let (owner, name) = text.split_once('/').ok_or_else(wrong)?;
        if [owner, name].into_iter().all(is_repository_name) {
            Ok(Repository { site, owner: owner.to_owned(), name: name.to_owned() })
        } else {
            Err(wrong())
        }
    }

    /// `OWNER/NAME`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// Its folder in the cache.
    pub fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }

    /// The repository with that folder in the cache, if it is one of models.
    pub fn of_folder(site: Site, folder: &str) -> Option<Repository> {
        let (owner, name) = folder.strip_prefix("models--")?.split_once("--")?;
        Repository::parse(site, &format!("{owner}/{name}")).ok()
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.site.prefix(), self.id())
    }
}

impl Asked {
    /// Reads what a user writes.
    ///
    /// # Errors
    /// [`Error::Name`] for what is none of the three.
    pub fn parse(text: &str, settings: &Settings) -> Result<Asked> {
        for site in [Site::HuggingFace, Site::ModelScope] {
            if let Some(rest) = text.strip_prefix(site.prefix()) {
                return in_repository(site, text, rest);
            }
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            let url = Url::parse(text).map_err(|_| {
                Error::name(text, "expected an address with a host, and without a name or password before it")
            })?;
            return Ok(of_hub(&url, settings).unwrap_or(Asked::Address(url)));
        }
        if text.contains("://") {
            return Err(Error::name(text, "expected an address that begins with https:// or http://"));
        }
        let (name, dtype) = match text.split_once(':') {
            Some((name, dtype)) => (name, Some(dtype.to_ascii_lowercase())),
            None => (text, None),
        };
        if name.contains('/') {
            return Err(Error::name(text, "no model of the catalogue has such a name")
                .with_hint(format!("a repository of Hugging Face is hf:{name}")));
        }
        Ok(Asked::Model { name: name.to_owned(), dtype })
    }
}

/// What stands behind `hf:` or `ms:`, in `text`.
fn in_repository(site: Site, text: &str, rest: &str) -> Result<Asked> {
    let (rest, file) = match rest.split_once(':') {
        Some((rest, file)) => (rest, Some(file)),
        None => (rest, None),
    };
    let (id, revision) = match rest.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (rest, None),
    };
    if let Some(revision) = revision.filter(|revision| !is_revision(revision)) {
        return Err(Error::name(text, format!("`{revision}` can be no branch, tag or commit")));
    }
    if let Some(file) = file.filter(|file| !is_safe_path(file)) {
        return Err(Error::name(text, format!("`{file}` can be no file of a repository")));
    }
    let repository = Repository::parse(site, id)?;
    Ok(Asked::Repository { repository, revision: revision.map(str::to_owned), file: file.map(str::to_owned) })
}

/// The file of Hugging Face, or of its mirror, that `url` shows or gives: `/OWNER/NAME/resolve/REVISION/FILE`.
fn of_hub(url: &Url, settings: &Settings) -> Option<Asked> {
    let own = Url::parse(HUGGING_FACE).ok()?;
    let endpoint = if url.is_same_origin(&settings.endpoint) { &settings.endpoint } else { &own };
    if !url.is_same_origin(endpoint) {
        return None;
    }
    let path = url.path();
    let path = path.strip_prefix(endpoint.path().trim_end_matches('/'))?;
    let steps: Vec<&str> = path.trim_start_matches('/').splitn(5, '/').collect();
    let [owner, name, "resolve" | "blob", revision, file] = steps[..] else { return None };
    let (revision, file) = (decoded(revision)?, decoded(file)?);
    let repository = Repository::parse(Site::HuggingFace, &format!("{owner}/{name}")).ok()?;
    let is_safe = is_revision(&revision) && is_safe_path(&file);
    is_safe.then_some(Asked::Repository { repository, revision: Some(revision), file: Some(file) })
}

/// Whether `name` can be a repository's owner or name. `--` would be ambiguous in the cache.
fn is_repository_name(name: &str) -> bool {
    let is_made_of = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let is_edged = name.starts_with(['-', '.']) || name.ends_with(['-', '.']);
    let is_ambiguous = name.contains("--") || name.contains("..");
    (1..=LONGEST_NAME).contains(&name.len()) && is_made_of && !is_edged && !is_ambiguous
}

/// Whether `revision` can be a branch, a tag or a commit, and is safe as a path.
pub(crate) fn is_revision(revision: &str) -> bool {
    let is_made_of = revision.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+/".contains(&byte));
    is_made_of && !revision.starts_with('-') && is_safe_path(revision)
}

/// Whether `text` is the whole hash of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether `path` stays in the folder that it begins in, on every system, and is a name that a file may have.
pub fn is_safe_path(path: &str) -> bool {
    path.len() <= LONGEST_PATH && path.split('/').all(is_safe_step)
}

fn is_safe_step(step: &str) -> bool {
    let is_plain = !step.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c));
    // Windows drops dots and spaces at the end of a name.
    (1..=LONGEST_STEP).contains(&step.len()) && is_plain && !step.ends_with(['.', ' '])
}

/// The last step of a path.
pub(crate) fn last_step(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Those of `names` that are most like `name`: at most three, the nearest first.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let name = name.to_lowercase();
    let mut found: Vec<(usize, &str)> = Vec::new();
    for other in names {
        // A part of a name means all names that have it.
        let has_it = name.len() >= 3 && (other.contains(&name) || name.contains(other));
        let distance = if has_it { 0 } else { distance(&name, other) };
        if distance <= 1 + name.chars().count() / 4 {
            found.push((distance, other));
        }
    }
    found.sort();
    found.truncate(3);
    found.into_iter().map(|(_, other)| other).collect()
}

/// How many letters have to be put in, taken out or changed to make `a` of `b` (Levenshtein).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, &b) in b.iter().enumerate() {
            let changed = before + usize::from(a != b);
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Asked> {
        Asked::parse(text, &Settings::from(&|_| None).unwrap())
    }

    #[test]
    fn what_users_write_is_read() {
        let model =
            |name: &str, dtype: Option<&str>| Asked::Model { name: name.into(), dtype: dtype.map(str::to_owned) };
        assert_eq!(asked("z-image-turbo").unwrap(), model("z-image-turbo", None));
        assert_eq!(asked("flux1-dev:Q4_K_S").unwrap(), model("flux1-dev", Some("q4_k_s")));
        let repository = |site, id: &str, revision: Option<&str>, file: Option<&str>| Asked::Repository {
            repository: Repository::parse(site, id).unwrap(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        };
        let hf = Site::HuggingFace;
        assert_eq!(asked("hf:a/b").unwrap(), repository(hf, "a/b", None, None));
        assert_eq!(
            asked("hf:a/b@refs/pr/1:c/d.gguf").unwrap(),
            repository(hf, "a/b", Some("refs/pr/1"), Some("c/d.gguf"))
        );
        assert_eq!(asked("ms:a/b:d.gguf").unwrap(), repository(Site::ModelScope, "a/b", None, Some("d.gguf")));
        assert_eq!(
            asked("https://huggingface.co/a/b/blob/main/c%20d/e.gguf?download=true").unwrap(),
            repository(hf, "a/b", Some("main"), Some("c d/e.gguf"))
        );
        assert!(matches!(asked("https://elsewhere.example/a/b/resolve/main/c").unwrap(), Asked::Address(_)));
        assert!(matches!(asked("https://huggingface.co/a/b/resolve/main/..%2F..%2Fx").unwrap(), Asked::Address(_)));
    }

    #[test]
    fn what_leaves_a_folder_is_refused() {
        for wrong in [
            "hf:../b",
            "hf:a/..",
            "hf:a/b/c",
            "hf:a--b/c",
            "hf:.a/b",
            "hf:a/b@../x",
            "hf:a/b@-x",
            "hf:a/b@",
            "hf:a/b:../x",
            "hf:a/b:/x",
            "hf:a/b:",
            "hf:a",
            "hf:",
            "ms:a/b:c\\d",
            "hf:a/b:c\u{0}",
            "ftp://a.example/b",
            "https://user@a.example/b",
            "https://",
            "black-forest-labs/FLUX.1-dev",
        ] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
        for path in [
            "",
            "/",
            "a//b",
            "a/./b",
            "a/../b",
            "..",
            "C:\\x",
            "a:b",
            "a/b.",
            "a/b ",
            "a\nb",
            &"a/".repeat(600),
            &"a".repeat(201),
        ] {
            assert!(!is_safe_path(path), "{path}");
        }
        for path in ["a", "a/b.c", ".gitattributes", "split_files/vae/ae.safetensors", "a b/ü.json", "..a"] {
            assert!(is_safe_path(path), "{path}");
        }
    }

    #[test]
    fn folders_and_repositories_belong_together() {
        let repository = Repository::parse(Site::HuggingFace, "Tongyi-MAI/Z-Image-Turbo").unwrap();
        assert_eq!(repository.folder(), "models--Tongyi-MAI--Z-Image-Turbo");
        assert_eq!(Repository::of_folder(Site::HuggingFace, &repository.folder()), Some(repository));
        for wrong in ["datasets--a--b", "models--a", "models--..--b", "models--a--b--c"] {
            assert_eq!(Repository::of_folder(Site::HuggingFace, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn near_names_are_found() {
        assert_eq!(distance("kitten", "sitting"), 3);
        let names = ["flux1-dev", "flux1-schnell", "sdxl", "z-image-turbo"];
        assert_eq!(nearest("flux1-schnel", names), ["flux1-schnell"]);
        assert_eq!(nearest("flux1", names), ["flux1-dev", "flux1-schnell"]);
        assert_eq!(nearest("zimage-turbo", names), ["z-image-turbo"]);
        assert_eq!(nearest("stable-cascade-xyz", names), [""; 0]);
    }
}
