//! All of it together: from what a user asks for to files.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::http::header;

use crate::arriving::Arriving;
use crate::cache::{self, Folder, make_folder};
use crate::catalogue::{Catalogue, Contents};
use crate::chosen::chosen;
use crate::client::{Client, Identity, REPOSITORYS_PAGE, Range, is_page};
use crate::error::{Error, Result};
use crate::fetch::{Download, Event, Fetcher};
use crate::listing::{self, Listed, Listing};
use crate::name::{Asked, Repository, Site};
use crate::part::Part;
use crate::patience::{Patience, Trouble, wait};
use crate::settings::Settings;
use crate::url::Url;
use crate::wanted::{Origin, Wanted, named};

/// A safetensors file begins with the length of its header, of so many bytes.
const HEADER_LENGTH: u64 = 8;

/// The longest header that the format allows.
const MOST_HEADER: u64 = 100_000_000;

/// Room on a disk that is left to others.
const MARGIN: u64 = 64 << 20;

/// Fetches files from hubs.
pub struct Hub {
    /// Where from, and where to.
    pub settings: Settings,
    client: Client,
}

impl Hub {
    /// A hub with these settings.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Name`] for a file of certificates that cannot be read.
    pub fn new(settings: Settings) -> Result<Hub> {
        Ok(Hub { client: Client::new(&settings)?, settings })
    }

    /// Finds out which files are asked for.
    ///
    /// # Errors
    /// Those of names, and of the hub.
    pub fn find(
        &self,
        asked: &Asked,
        catalogue: &Catalogue,
        cancelled: &(dyn Fn() -> bool + Sync),
        listen: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Wanted>> {
        match asked {
            Asked::Model { name, dtype } => {
                let variant = catalogue.entry(name)?.variant(dtype.as_deref())?;
                self.contents(&catalogue.contents(variant)?, cancelled, listen)
            }
            Asked::Repository { repository, revision, file } => {
                let listing = self.list(repository, revision.as_deref(), cancelled, listen)?;
                match file {
                    Some(file) => Ok(vec![self.wanted(&listing, listing.file(file)?)]),
                    None => self.directory(&listing, None),
                }
            }
            Asked::Address(url) => Ok(vec![self.patiently(cancelled, listen, &|| self.look_at(url))?]),
        }
    }

    /// The files of `contents`.
    ///
    /// # Errors
    /// Those of the hub.
    pub fn contents(
        &self,
        contents: &Contents,
        cancelled: &(dyn Fn() -> bool + Sync),
        listen: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Wanted>> {
        let files = match contents {
            Contents::Directory { repository, variant } => {
                let listing = self.list(repository, None, cancelled, listen)?;
                return self.directory(&listing, variant.as_deref());
            }
            Contents::Files(files) => files,
        };
        let mut listings: HashMap<&Repository, Listing> = HashMap::new();
        let mut wanted = Vec::new();
        for file in files {
            if !listings.contains_key(&file.repository) {
                listings.insert(&file.repository, self.list(&file.repository, None, cancelled, listen)?);
            }
            let listing = &listings[&file.repository];
            wanted.push(Wanted { place: Some(file.place.clone()), ..self.wanted(listing, listing.file(&file.file)?) });
        }
        Ok(wanted)
    }

    /// How many bytes of `wanted` are still to be fetched.
    pub fn missing(&self, wanted: &[Wanted]) -> u64 {
        let mut bytes = 0;
        for file in wanted {
            if let Some(size) = file.size.filter(|_| !file.is_there()) {
                bytes += size - file.part().map_or(0, |part| Part::kept(&part, size, self.settings.grain)).min(size);
            }
        }
        bytes
    }

    /// Fetches what is not there yet, and says where everything lies.
    ///
    /// # Errors
    /// What was fetched stays, and the next call goes on from there.
    pub fn fetch(
        &self,
        wanted: &[Wanted],
        cancelled: &(dyn Fn() -> bool + Sync),
        listen: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<PathBuf>> {
        // No one waits for what an error leaves out.
        let _ends = Ends(wanted);
        self.refuse_full_disk(wanted)?;
        let mut fetcher = Fetcher { client: &self.client, settings: &self.settings, cancelled, listen, before: 0 };
        for file in wanted {
            self.fetch_one(file, &mut fetcher).map_err(|error| self.with_page(error, file))?;
            file.arriving.iter().for_each(|arriving| arriving.end());
        }
        for file in wanted {
            if let Origin::Repository { folder, revision, commit, .. } = &file.origin {
                folder.refer(revision, commit)?;
            }
        }
        Ok(wanted.iter().map(|file| file.path.clone()).collect())
    }

    /// Begins those of `wanted` that are safetensors files and not there: fetches their headers. They can be read from then on, by those who
    /// wait for what they read until [`fetch`](Hub::fetch) has brought it; each has an [`Arriving`] then, which says that.
    ///
    /// # Errors
    /// As [`fetch`](Hub::fetch).
    pub fn begin(
        &self,
        wanted: &mut [Wanted],
        cancelled: &(dyn Fn() -> bool + Sync),
        listen: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        self.refuse_full_disk(wanted)?;
        let mut fetcher = Fetcher { client: &self.client, settings: &self.settings, cancelled, listen, before: 0 };
        for file in wanted {
            let begun = self.begin_one(file, &mut fetcher).map_err(|error| self.with_page(error, file))?;
            file.arriving = begun.map(Arc::new);
        }
        Ok(())
    }

    fn begin_one(&self, wanted: &Wanted, fetcher: &mut Fetcher<'_>) -> Result<Option<Arriving>> {
        let (Origin::Repository { folder, .. }, Some(checksum), Some(size)) =
            (&wanted.origin, &wanted.checksum, wanted.size)
        else {
            return Ok(None);
        };
        let is_of_weights = Path::new(&wanted.name).extension().is_some_and(|ending| ending == "safetensors");
        // One that is there at once is not waited for.
        if !is_of_weights || size <= self.settings.grain || wanted.is_there() {
            return Ok(None);
        }
        let name = wanted.name.as_str();
        let _lock =
            folder.lock(checksum, fetcher.cancelled, &mut || (fetcher.listen)(Event::Waiting { file: name }))?;
        let Some(download) = self.download(wanted).filter(|_| !wanted.is_there()) else { return Ok(None) };
        make_folder(&folder.path.join("blobs"))?;
        let Some(start) = fetcher.beginning(&download, HEADER_LENGTH)? else { return Ok(None) };
        let header = u64::from_le_bytes(start.start()?);
        if header > size.min(MOST_HEADER) {
            // The code that opens it says what it is.
            return Ok(None);
        }
        let begun = fetcher.beginning(&download, HEADER_LENGTH + header)?;
        Ok(begun.map(|_| Arriving::new(&download.part, size)))
    }

    /// Reads a file that is there again, and compares its checksum.
    ///
    /// # Errors
    /// [`Error::Checksum`], and the file is gone then, so that it is fetched anew.
    pub fn check(&self, wanted: &Wanted, cancelled: &dyn Fn() -> bool) -> Result<()> {
        let Some(expected) = wanted.checksum.as_ref().filter(|_| wanted.is_there()) else { return Ok(()) };
        let blob = wanted.blob();
        let wrong = |error| Error::io("read", &blob, error);
        let mut file = fs::File::open(&blob).map_err(wrong)?;
        let found = expected.of(&mut file, &mut || match cancelled() {
            true => Err(std::io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        });
        if cancelled() {
            return Err(Error::Cancelled);
        }
        let found = found.map_err(wrong)?;
        if found == *expected {
            return Ok(());
        }
        fs::remove_file(&blob).map_err(|error| Error::io("remove", &blob, error))?;
        Err(Error::Checksum { file: wanted.name.clone(), expected: expected.to_string(), found: found.to_string() })
    }

    fn list(
        &self,
        repository: &Repository,
        revision: Option<&str>,
        cancelled: &(dyn Fn() -> bool + Sync),
        listen: &mut dyn FnMut(Event<'_>),
    ) -> Result<Listing> {
        self.patiently(cancelled, listen, &|| listing::list(&self.client, &self.settings, repository, revision))
    }

    /// Tries until it works or lasts.
    fn patiently<T>(
        &self,
        cancelled: &(dyn Fn() -> bool + Sync),
        listen: &mut dyn FnMut(Event<'_>),
        attempt: &dyn Fn() -> Result<T, Trouble>,
    ) -> Result<T> {
        let mut patience = Patience::new(self.settings.pause);
        loop {
            let trouble = match attempt() {
                Ok(done) => return Ok(done),
                Err(trouble) => trouble,
            };
            let (pause, error) = patience.after(trouble)?;
            listen(Event::Again { error: &error, pause });
            wait(pause, cancelled)?;
        }
    }

    /// A file of a repository.
    fn wanted(&self, listing: &Listing, file: &Listed) -> Wanted {
        let Listing { repository, revision, commit, .. } = listing;
        let folder = Folder::of(&self.settings, repository);
        let path = folder.link(commit, &file.path);
        let url = listing.address(&self.settings, &file.path);
        Wanted {
            name: file.path.clone(),
            place: None,
            size: Some(file.size),
            checksum: Some(file.checksum.clone()),
            repository: Some(repository.clone()),
            directory: None,
            path,
            arriving: None,
            origin: Origin::Repository { folder, revision: revision.clone(), commit: commit.clone(), url },
        }
    }

    /// What a whole repository is read from: a diffusers directory, the folder of a part, or its only file with weights.
    fn directory(&self, listing: &Listing, variant: Option<&str>) -> Result<Vec<Wanted>> {
        let chosen = chosen(listing, variant)?;
        let folder = Folder::of(&self.settings, &listing.repository).link(&listing.commit, "");
        // With the slash that ends an empty path taken away.
        let folder: PathBuf = folder.components().collect();
        let is_folder = chosen.len() > 1;
        let wanted = chosen.into_iter().map(|file| self.wanted(listing, file));
        Ok(wanted.map(|file| Wanted { directory: is_folder.then(|| folder.clone()), ..file }).collect())
    }

    /// Looks at a file anywhere: its size, whether it comes in ranges, what it is called.
    fn look_at(&self, url: &Url) -> Result<Wanted, Trouble> {
        let identity = Identity { origin: url.clone(), token: None };
        let answer = self.client.get(url, &identity, Some(Range { from: 0, to: 1 }), None)?;
        let kind = answer.header(header::CONTENT_TYPE);
        if is_page(kind, b"") {
            let error = Error::answer(url.without_query(), "a file", "a page of HTML");
            return Err(error.with_hint("the address of a file itself is wanted, not of a page that shows it").into());
        }
        let total = answer
            .header(header::CONTENT_RANGE)
            .and_then(|range| range.rsplit_once('/'))
            .and_then(|(_, all)| all.parse().ok());
        let has_ranges = answer.status == 206;
        let size: Option<u64> = if has_ranges { total } else { answer.length() };
        // A weak tag does not promise the same bytes.
        let tag = answer.header(header::ETAG).filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
        let name = named(answer.header(header::CONTENT_DISPOSITION).unwrap_or_default(), url)?;
        let path = self.settings.home.join("files").join(url.host().replace([':', '[', ']'], "-")).join(&name);
        let origin = Origin::Address { url: url.clone(), tag };
        Ok(Wanted {
            name,
            place: None,
            size,
            checksum: None,
            repository: None,
            directory: None,
            path,
            arriving: None,
            origin,
        })
    }

    /// Refuses to begin what a disk has no room for.
    fn refuse_full_disk(&self, wanted: &[Wanted]) -> Result<()> {
        let mut by_folder: HashMap<PathBuf, Vec<Wanted>> = HashMap::new();
        for file in wanted {
            let root = match &file.origin {
                Origin::Repository { .. } => {
                    file.repository.as_ref().map(|repository| cache::root(&self.settings, repository.site))
                }
                Origin::Address { .. } => None,
            };
            by_folder.entry(root.unwrap_or_else(|| self.settings.home.clone())).or_default().push(file.clone());
        }
        for (path, files) in by_folder {
            let needed = self.missing(&files);
            if let Some(available) = room(&path)
                && needed > 0
                && needed.saturating_add(MARGIN) > available
            {
                return Err(Error::NoSpace { path, needed, available });
            }
        }
        Ok(())
    }

    /// Says where the page of a repository is, if the hint sends people there.
    fn with_page(&self, error: Error, wanted: &Wanted) -> Error {
        let Some(hint) = error.hint().filter(|hint| hint.contains(REPOSITORYS_PAGE)) else { return error };
        let Some(repository) = &wanted.repository else { return error };
        let page = match repository.site {
            Site::HuggingFace => self.settings.endpoint.with(&format!("/{}", repository.id())),
            Site::ModelScope => self.settings.modelscope.with(&format!("/models/{}", repository.id())),
        };
        let hint = hint.replace(REPOSITORYS_PAGE, page.as_str());
        error.with_hint(hint)
    }

    fn fetch_one(&self, wanted: &Wanted, fetcher: &mut Fetcher<'_>) -> Result<()> {
        let name = wanted.name.as_str();
        match &wanted.origin {
            Origin::Repository { folder, commit, .. } => {
                let Some(checksum) = &wanted.checksum else { return Ok(()) };
                let _lock = folder
                    .lock(checksum, fetcher.cancelled, &mut || (fetcher.listen)(Event::Waiting { file: name }))?;
                if !wanted.is_there() {
                    self.bring(wanted, &folder.blob(checksum), fetcher)?;
                }
                folder.place(commit, name, checksum)?;
            }
            Origin::Address { .. } => {
                let lock = wanted.path.with_file_name(format!(".{name}.lock"));
                let _lock =
                    cache::lock(&lock, fetcher.cancelled, &mut || (fetcher.listen)(Event::Waiting { file: name }))?;
                if !wanted.is_there() {
                    self.bring(wanted, &wanted.path, fetcher)?;
                }
            }
        }
        Ok(())
    }

    /// How `wanted` is fetched.
    fn download<'a>(&self, wanted: &'a Wanted) -> Option<Download<'a>> {
        let (url, identity, tag) = match &wanted.origin {
            Origin::Address { url, tag } => {
                (url.clone(), Identity { origin: url.clone(), token: None }, tag.as_deref())
            }
            Origin::Repository { url, .. } => {
                let site = wanted.repository.as_ref().map_or(Site::HuggingFace, |repository| repository.site);
                (url.clone(), listing::identity(&self.settings, site), None)
            }
        };
        let (name, size, checksum) = (wanted.name.as_str(), wanted.size, wanted.checksum.as_ref());
        let (part, arriving) = (wanted.part()?, wanted.arriving.as_ref());
        Some(Download { name, url, identity, size, checksum, tag, part, arriving })
    }

    /// Fetches a file to `path`.
    fn bring(&self, wanted: &Wanted, path: &Path, fetcher: &mut Fetcher<'_>) -> Result<()> {
        let Some(download) = self.download(wanted) else { return Ok(()) };
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        (fetcher.listen)(Event::Begin { file: &wanted.name });
        fetcher.get(&download)?;
        fs::rename(&download.part, path).map_err(|error| Error::io("write", path, error))?;
        (fetcher.listen)(Event::Done { file: &wanted.name });
        Ok(())
    }
}

/// Files: once this is gone, no more of them comes.
struct Ends<'a>(&'a [Wanted]);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        for arriving in self.0.iter().filter_map(|file| file.arriving.as_ref()) {
            arriving.give_up();
        }
    }
}

/// What is free on the disk that has `path`, or will have it.
fn room(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let there = path.ancestors().find(|path| path.exists())?;
        let found = rustix::fs::statvfs(there).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}
