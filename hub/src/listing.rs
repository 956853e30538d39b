//! Which files a repository has.

use serde::Deserialize;
use ureq::http::header;

use crate::checksum::Checksum;
use crate::client::{Answer, Client, Identity};
use crate::error::{Error, Result, quoted};
use crate::name::{Repository, Site, is_commit, is_safe_path};
use crate::patience::Trouble;
use crate::settings::Settings;
use crate::url::{Url, encoded};

/// The most pages of a list, and the most files: ten times what the largest repositories have.
const MOST_PAGES: usize = 200;
const MOST_FILES: usize = 100_000;
/// The most bytes of a file that is believed: 16 TiB, as the largest files of common file systems.
const LARGEST_FILE: u64 = 16 << 40;

/// A file of a repository, as the hub describes it. Its path is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its path in the repository.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// What it is known by.
    pub checksum: Checksum,
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Which.
    pub repository: Repository,
    /// The revision that was asked for.
    pub revision: String,
    /// What its snapshot is called: the commit, or for ModelScope, which names none, the revision.
    pub commit: String,
    /// Its files, sorted by path.
    pub files: Vec<Listed>,
}

impl Listing {
    /// The file at `path`.
    ///
    /// # Errors
    /// [`Error::Name`] with the nearest ones.
    pub fn file(&self, path: &str) -> Result<&Listed> {
        if let Some(file) = self.files.iter().find(|file| file.path == path) {
            return Ok(file);
        }
        let error = Error::name(&format!("{}:{path}", self.repository), "the repository has no such file");
        let mut nearest = crate::name::nearest(path, self.files.iter().map(|file| file.path.as_str()));
        if nearest.is_empty() {
            nearest = self.weights().map(|file| file.path.as_str()).take(5).collect();
        }
        Err(error.with_hint(format!("it has {}", nearest.join(", "))))
    }

    /// Its files with weights.
    pub fn weights(&self) -> impl Iterator<Item = &Listed> {
        const ENDINGS: [&str; 7] = [".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin"];
        self.files.iter().filter(|file| ENDINGS.iter().any(|ending| file.path.ends_with(ending)))
    }

    /// Where the file at `path` is given.
    pub(crate) fn address(&self, settings: &Settings, path: &str) -> Url {
        let (id, path) = (self.repository.id(), encoded(path, &['/']));
        match self.repository.site {
            // By the commit: a branch may move while its files are fetched.
            Site::HuggingFace => settings.endpoint.with(&format!("/{id}/resolve/{}/{path}", self.commit)),
            Site::ModelScope => {
                settings.modelscope.with(&format!("/models/{id}/resolve/{}/{path}", encoded(&self.revision, &[])))
            }
        }
    }

    /// Checks what a hub lists: safe paths, believable sizes, no path twice.
    fn checked(mut self, url: &Url) -> Result<Listing> {
        let wrong = |found: String| Error::answer(url.without_query(), "a list of files", found);
        if self.files.len() > MOST_FILES {
            return Err(wrong(format!("{} files", self.files.len())));
        }
        for file in &self.files {
            if !is_safe_path(&file.path) {
                return Err(wrong(format!("a file called `{}`", quoted(&file.path))));
            }
            if file.size > LARGEST_FILE {
                return Err(wrong(format!("{} with {} bytes", quoted(&file.path), file.size)));
            }
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        for pair in self.files.windows(2) {
            let [one, other] = pair else { continue };
            if one.path == other.path || other.path.starts_with(&format!("{}/", one.path)) {
                return Err(wrong(format!("{} twice", quoted(&one.path))));
            }
        }
        Ok(self)
    }
}

/// Asks for the files of `repository` at `revision`.
pub(crate) fn list(
    client: &Client,
    settings: &Settings,
    repository: &Repository,
    revision: Option<&str>,
) -> Result<Listing, Trouble> {
    let revision = revision.unwrap_or(repository.site.branch());
    match repository.site {
        Site::HuggingFace => hugging_face(client, settings, repository, revision),
        Site::ModelScope => modelscope(client, settings, repository, revision),
    }
}

/// Who asks at the site of a repository.
pub(crate) fn identity(settings: &Settings, site: Site) -> Identity {
    match site {
        Site::HuggingFace => Identity { origin: settings.endpoint.clone(), token: settings.token.clone() },
        Site::ModelScope => Identity { origin: settings.modelscope.clone(), token: settings.modelscope_token.clone() },
    }
}

/// The answer to `/api/models/ID/revision/REVISION`.
#[derive(Deserialize)]
struct Revision {
    sha: String,
}

/// An entry of the answer to `/api/models/ID/tree/COMMIT`.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Large>,
}

/// What stands in the place of a large file.
#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

fn hugging_face(
    client: &Client,
    settings: &Settings,
    repository: &Repository,
    revision: &str,
) -> Result<Listing, Trouble> {
    let identity = identity(settings, repository.site);
    let api = settings.endpoint.with(&format!("/api/models/{}", repository.id()));
    let url = api.with(&format!("/revision/{}", encoded(revision, &[])));
    let Revision { sha } = client.get(&url, &identity, None, None)?.json()?;
    if !is_commit(&sha) {
        return Err(Error::answer(url.as_str(), "the hash of a commit", sha).into());
    }
    let mut files = Vec::new();
    let mut next = Some(api.with(&format!("/tree/{sha}?recursive=true")));
    for _ in 0..MOST_PAGES {
        let Some(url) = next.take() else { break };
        let answer = client.get(&url, &identity, None, None)?;
        next = next_page(&answer, &settings.endpoint)?;
        for entry in answer.json::<Vec<Entry>>()? {
            if entry.kind == "file" {
                files.push(entry.listed(&url)?);
            }
        }
    }
    if let Some(url) = next {
        return Err(Error::answer(url.as_str(), "a list of files", format!("more than {MOST_PAGES} pages")).into());
    }
    let listing = Listing { repository: repository.clone(), revision: revision.to_owned(), commit: sha, files };
    Ok(listing.checked(&api)?)
}

impl Entry {
    fn listed(self, url: &Url) -> Result<Listed> {
        let (size, checksum) = match &self.lfs {
            Some(large) => (large.size, Checksum::sha256(&large.oid)),
            None => (self.size, Checksum::git(&self.oid)),
        };
        let Some(checksum) = checksum else {
            return Err(Error::answer(url.as_str(), format!("a checksum of {}", quoted(&self.path)), "none"));
        };
        Ok(Listed { path: self.path, size, checksum })
    }
}

/// The next page of a list, by the header `Link`. It has to be of the same hub, which gets the token.
fn next_page(answer: &Answer, endpoint: &Url) -> Result<Option<Url>> {
    let Some(links) = answer.header(header::LINK) else { return Ok(None) };
    for link in links.split(',') {
        let Some((target, relation)) = link.split_once(';') else { continue };
        if !relation.contains("rel=\"next\"") {
            continue;
        }
        let target = target.trim().trim_start_matches('<').trim_end_matches('>');
        if let Some(url) = answer.url.join(target).ok().filter(|url| url.is_same_origin(endpoint)) {
            return Ok(Some(url));
        }
        // A mirror hands on the hub's own links: what they ask for is asked of the mirror.
        let query = target.split_once("/api/").map(|(_, rest)| endpoint.with(&format!("/api/{rest}")));
        return match query.and_then(|url| Url::parse(url.as_str()).ok()) {
            Some(url) => Ok(Some(url)),
            None => Err(Error::answer(answer.url.as_str(), "the next page of a list", quoted(target))),
        };
    }
    Ok(None)
}

/// The answer to `/api/v1/models/ID/repo/files`.
#[derive(Deserialize)]
struct ScopeAnswer {
    #[serde(rename = "Data")]
    data: Option<ScopeData>,
    #[serde(rename = "Message", default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct ScopeData {
    #[serde(rename = "Files", default)]
    files: Vec<ScopeFile>,
}

#[derive(Deserialize)]
struct ScopeFile {
    #[serde(rename = "Path")]
    path: String,
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(rename = "Size", default)]
    size: u64,
    #[serde(rename = "Sha256", default)]
    sha256: String,
}

fn modelscope(
    client: &Client,
    settings: &Settings,
    repository: &Repository,
    revision: &str,
) -> Result<Listing, Trouble> {
    let identity = identity(settings, repository.site);
    let query = format!("Revision={}&Recursive=true", encoded(revision, &[]));
    let url = settings.modelscope.with(&format!("/api/v1/models/{}/repo/files?{query}", repository.id()));
    let answer: ScopeAnswer = client.get(&url, &identity, None, None)?.json()?;
    let Some(data) = answer.data else {
        let said = answer.message.unwrap_or_else(|| "nothing".into());
        return Err(Error::answer(url.without_query(), "a list of files", said).with_hint("is the name right?").into());
    };
    let mut files = Vec::new();
    for file in data.files.into_iter().filter(|file| file.kind != "tree") {
        let Some(checksum) = Checksum::sha256(&file.sha256) else {
            let expected = format!("a SHA-256 of {}", quoted(&file.path));
            return Err(Error::answer(url.without_query(), expected, "none").into());
        };
        files.push(Listed { path: file.path, size: file.size, checksum });
    }
    // No commit is named: the snapshot is called as the revision.
    let (revision, commit) = (revision.to_owned(), revision.replace('/', "--"));
    Ok(Listing { repository: repository.clone(), revision, commit, files }.checked(&url)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(paths: &[&str], size: u64) -> Result<Listing> {
        let checksum = Checksum::sha256(&"a".repeat(64)).unwrap();
        let mut files = Vec::new();
        for path in paths {
            files.push(Listed { path: (*path).to_owned(), size, checksum: checksum.clone() });
        }
        let repository = Repository::parse(Site::HuggingFace, "a/b").unwrap();
        let (revision, commit) = ("main".to_owned(), "c".repeat(40));
        let listing = Listing { repository, revision, commit, files };
        listing.checked(&Url::parse("https://h.example").unwrap())
    }

    #[test]
    fn hostile_lists_are_refused() {
        assert_eq!(listing(&["b", "a/c"], 1).unwrap().files[0].path, "a/c");
        for paths in [&["../a"][..], &["/etc/passwd"], &["a", "a"], &["a", "a/b"], &["a\\..\\b"], &["a/.."]] {
            assert!(listing(paths, 1).is_err(), "{paths:?}");
        }
        assert!(listing(&["a"], u64::MAX).is_err());
    }

    #[test]
    fn a_missing_file_has_neighbours() {
        let listing = listing(&["x-Q4_K_S.gguf", "x-Q8_0.gguf", "README.md"], 1).unwrap();
        let error = listing.file("x-Q4_K_M.gguf").unwrap_err();
        assert!(error.hint().unwrap().starts_with("it has x-Q4_K_S.gguf"), "{error:?}");
    }
}
