//! All of it together: from what a user asks for to files.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use ureq::http::header;

use crate::cache::{self, Folder, PART, make_folder};
use crate::catalogue::{Catalogue, Contents};
use crate::checksum::Checksum;
use crate::client::{Client, Identity, REPOSITORYS_PAGE, Range, is_page};
use crate::error::{Error, Result};
use crate::fetch::{Download, Event, Fetcher};
use crate::listing::{self, Listed, Listing};
use crate::name::{Asked, Repository, Site, is_safe_path, last_step};
use crate::part::Part;
use crate::patience::{Patience, Trouble, wait};
use crate::settings::Settings;
use crate::url::{Url, decoded};

/// Room on a disk that is left to others.
const MARGIN: u64 = 64 << 20;
/// What lies at the top of a diffusers directory.
const MODEL_INDEX: &str = "model_index.json";
/// The folders of diffusers directories that models are read from.
const FOLDERS: [&str; 15] = [
    "transformer",
    "transformer_2",
    "unet",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "vae",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "scheduler",
    "image_encoder",
    "feature_extractor",
    "processor",
    "safety_checker",
];

/// Fetches files from hubs.
pub struct Hub {
    /// Where from, and where to.
    pub settings: Settings,
    client: Client,
}

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
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    /// A file of a repository at a revision.
    Repository { folder: Folder, revision: String, commit: String, url: Url },
    /// A file anywhere, and the tag of its version.
    Address { url: Url, tag: Option<String> },
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
        self.refuse_full_disk(wanted)?;
        let mut fetcher = Fetcher { client: &self.client, settings: &self.settings, cancelled, listen, before: 0 };
        for file in wanted {
            self.fetch_one(file, &mut fetcher).map_err(|error| self.with_page(error, file))?;
        }
        for file in wanted {
            if let Origin::Repository { folder, revision, commit, .. } = &file.origin {
                folder.refer(revision, commit)?;
            }
        }
        Ok(wanted.iter().map(|file| file.path.clone()).collect())
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
        let mut go_on = || if cancelled() { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) };
        let found = expected.of(&mut file, &mut go_on);
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
        Ok(Wanted { name, place: None, size, checksum: None, repository: None, directory: None, path, origin })
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
            Origin::Repository { folder, commit, url, .. } => {
                let Some(checksum) = &wanted.checksum else { return Ok(()) };
                let _lock = folder
                    .lock(checksum, fetcher.cancelled, &mut || (fetcher.listen)(Event::Waiting { file: name }))?;
                if !wanted.is_there() {
                    let site = wanted.repository.as_ref().map_or(Site::HuggingFace, |repository| repository.site);
                    let identity = listing::identity(&self.settings, site);
                    self.bring(wanted, url.clone(), identity, &folder.blob(checksum), fetcher)?;
                }
                folder.place(commit, name, checksum)?;
            }
            Origin::Address { url, .. } => {
                let lock = wanted.path.with_file_name(format!(".{name}.lock"));
                let _lock =
                    cache::lock(&lock, fetcher.cancelled, &mut || (fetcher.listen)(Event::Waiting { file: name }))?;
                if !wanted.is_there() {
                    let identity = Identity { origin: url.clone(), token: None };
                    self.bring(wanted, url.clone(), identity, &wanted.path, fetcher)?;
                }
            }
        }
        Ok(())
    }

    /// Fetches a file to `path`.
    fn bring(
        &self,
        wanted: &Wanted,
        url: Url,
        identity: Identity,
        path: &Path,
        fetcher: &mut Fetcher<'_>,
    ) -> Result<()> {
        let Some(part) = wanted.part() else { return Ok(()) };
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        let tag = match &wanted.origin {
            Origin::Address { tag, .. } => tag.as_deref(),
            Origin::Repository { .. } => None,
        };
        (fetcher.listen)(Event::Begin { file: &wanted.name });
        let (name, size, checksum) = (wanted.name.as_str(), wanted.size, wanted.checksum.as_ref());
        fetcher.get(&Download { name, url, identity, size, checksum, tag, part: part.clone() })?;
        fs::rename(&part, path).map_err(|error| Error::io("write", path, error))?;
        (fetcher.listen)(Event::Done { file: &wanted.name });
        Ok(())
    }
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
    fn blob(&self) -> PathBuf {
        match (&self.origin, &self.checksum) {
            (Origin::Repository { folder, .. }, Some(checksum)) => folder.blob(checksum),
            _ => self.path.clone(),
        }
    }

    /// Where it is while it is not whole.
    fn part(&self) -> Option<PathBuf> {
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

/// The files of a repository that a model is read from.
fn chosen<'a>(listing: &'a Listing, variant: Option<&str>) -> Result<Vec<&'a Listed>> {
    if listing.files.iter().any(|file| file.path == MODEL_INDEX) {
        let mut chosen: Vec<&Listed> = listing.files.iter().filter(|file| file.path == MODEL_INDEX).collect();
        for folder in FOLDERS {
            chosen.extend(of_folder(listing, &format!("{folder}/"), variant));
        }
        return Ok(chosen);
    }
    let weights: Vec<&Listed> = listing.weights().collect();
    let is_part = listing.files.iter().any(|file| file.path == "config.json");
    if is_part {
        let chosen = of_folder(listing, "", variant);
        if chosen.iter().any(|file| weights.contains(file)) {
            return Ok(chosen);
        }
    }
    match weights[..] {
        [only] => Ok(vec![only]),
        [] => Err(Error::name(
            &listing.repository.to_string(),
            "the repository has no weights that a model could be read from",
        )),
        _ => {
            let some: Vec<&str> = weights.iter().take(12).map(|file| file.path.as_str()).collect();
            let more = weights.len() - some.len();
            let more = if more == 0 { String::new() } else { format!(", and {more} more") };
            let problem = format!("the repository has {} files with weights", weights.len());
            Err(Error::name(&listing.repository.to_string(), problem).with_hint(format!(
                "name one: {}:FILE, of {}{more}",
                listing.repository,
                some.join(", ")
            )))
        }
    }
}

/// What is read of a folder, whose path ends in a slash: configurations, tokenizers, and one set of weights.
fn of_folder<'a>(listing: &'a Listing, folder: &str, variant: Option<&str>) -> Vec<&'a Listed> {
    let inside = |file: &&&'a Listed| file.path.strip_prefix(folder).is_some_and(|rest| !rest.contains('/'));
    let files: Vec<&Listed> = listing.files.iter().filter(|file| inside(&file)).collect();
    let of = |ending: &str, variant: Option<&str>| -> Vec<&'a Listed> {
        let is_one =
            |file: &&&Listed| weights_variant(last_step(&file.path), ending) == Some(variant.map(str::to_owned));
        files.iter().filter(is_one).copied().collect()
    };
    // The variant, or else all of it; PyTorch's own files where there is nothing else.
    let sets = [of(".safetensors", variant), of(".safetensors", None), of(".bin", variant), of(".bin", None)];
    let weights = sets.into_iter().find(|set| !set.is_empty()).unwrap_or_default();
    let mut chosen: Vec<&Listed> = files.into_iter().filter(|file| is_text(&file.path)).collect();
    chosen.extend(weights);
    chosen
}

/// Whether a file configures a part, or is a tokenizer.
fn is_text(path: &str) -> bool {
    let is_index = path.ends_with(".index.json");
    !is_index && [".json", ".txt", ".model", ".jinja"].iter().any(|ending| path.ends_with(ending))
}

/// Which variant of weights a file called `name` belongs to, as a shard, an index or by itself: `Some(None)` for those without a
/// variant, `None` if it has none with this ending.
fn weights_variant(name: &str, ending: &str) -> Option<Option<String>> {
    let stem = name.strip_suffix(".index.json").unwrap_or(name).strip_suffix(ending)?;
    let is_known = ["diffusion_pytorch_model", "model", "pytorch_model"].iter().any(|start| stem.starts_with(start));
    // model-00001-of-00002.fp16 and model.fp16-00001-of-00002 are both in use.
    let mut plain = String::new();
    for (i, piece) in stem.split('-').enumerate() {
        let rest = piece.trim_start_matches(|c: char| c.is_ascii_digit());
        if i == 0 {
            plain += piece;
        } else if rest != "of" && !rest.is_empty() {
            plain += rest;
        }
    }
    let variant = plain.split_once('.').map(|(_, variant)| variant.to_owned());
    is_known.then_some(variant)
}

/// What to call a file: what the server says, or the last step of its address.
fn named(disposition: &str, url: &Url) -> Result<String> {
    let said = disposition.split(';').find_map(|part| part.trim().strip_prefix("filename="));
    let said = said.map(|name| name.trim_matches('"').to_owned());
    let path = url.path();
    let last = decoded(last_step(&path)).unwrap_or_default();
    let is_name = |name: &String| is_safe_path(name) && !name.contains('/') && !name.starts_with('.');
    let name = said.filter(is_name).or(Some(last).filter(is_name));
    name.ok_or_else(|| Error::name(url.without_query(), "neither the address nor the server gives the file a name"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(paths: &[&str]) -> Listing {
        let checksum = Checksum::sha256(&"a".repeat(64)).unwrap();
        let file = |path: &&str| Listed { path: (*path).to_owned(), size: 1, checksum: checksum.clone() };
        let repository = Repository::parse(Site::HuggingFace, "a/b").unwrap();
        Listing { repository, revision: "main".into(), commit: "c".repeat(40), files: paths.iter().map(file).collect() }
    }

    fn names(paths: &[&str], variant: Option<&str>) -> Result<Vec<String>> {
        let listing = listing(paths);
        chosen(&listing, variant).map(|files| files.into_iter().map(|file| file.path.clone()).collect())
    }

    #[test]
    fn variants_are_told_apart() {
        let of = |name: &str| weights_variant(name, ".safetensors");
        let fp16 = Some(Some("fp16".to_owned()));
        for plain in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "diffusion_pytorch_model.safetensors",
        ] {
            assert_eq!(of(plain), Some(None), "{plain}");
        }
        for half in
            ["model.fp16.safetensors", "model-00001-of-00002.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"]
        {
            assert_eq!(of(half), fp16, "{half}");
        }
        for other in ["model.bin", "config.json", "openvino_model.bin", "lora.safetensors"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_diffusers_directory_has_each_weight_once() {
        let paths = [
            "README.md",
            "model_index.json",
            "sd_xl_base_1.0.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/flax_model.msgpack",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.onnx",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "vae_1_0/config.json",
            "assets/model.safetensors",
        ];
        let plain = names(&paths, None).unwrap();
        let expected = [
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "scheduler/scheduler_config.json",
        ];
        assert_eq!(plain, expected);
        let half = names(&paths, Some("fp16")).unwrap();
        assert!(
            half.contains(&"unet/diffusion_pytorch_model.fp16.safetensors".into())
                && !half.iter().any(|name| name.contains("-of-"))
        );
        assert!(
            half.contains(&"text_encoder/model.fp16.safetensors".into())
                && !half.contains(&"text_encoder/model.safetensors".into())
        );
    }

    #[test]
    fn of_many_files_one_has_to_be_named() {
        assert_eq!(names(&["README.md", "only.gguf"], None).unwrap(), ["only.gguf"]);
        let part = ["config.json", "diffusion_pytorch_model.safetensors", "other.safetensors"];
        assert_eq!(names(&part, None).unwrap(), part[..2]);
        let error = names(&["x-Q4.gguf", "x-Q8.gguf"], None).unwrap_err();
        assert!(error.hint().unwrap().starts_with("name one: hf:a/b:FILE, of x-Q4.gguf, x-Q8.gguf"), "{error:?}");
        assert!(names(&["README.md"], None).is_err());
    }

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
