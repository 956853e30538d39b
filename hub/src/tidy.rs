//! What lies here: listed and removed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cache::{self, Folder, PART};
use crate::catalogue::{Catalogue, Contents, Entry, Kind, PlacedFile, Variant};
use crate::error::{Error, Result};
use crate::name::{Repository, Site};
use crate::settings::Settings;

/// A blob that nothing links to may be one that another process is about to link to, if it is younger than this.
const SETTLED: Duration = Duration::from_secs(600);
/// What folders with links to files that are on their way are called, in the folder of conversions. Each goes with the process that made it, unless
/// that is killed.
pub const ARRIVING: &str = "arriving-";
/// The ending of bundles.
const BUNDLE: &str = ".gguf";

/// A model of the catalogue in one type, as it lies here.
#[derive(Debug)]
pub struct Pulled {
    /// Its entry.
    pub entry: &'static Entry,
    /// The type.
    pub dtype: &'static str,
    /// Its files by place, if it has such.
    pub files: Vec<(String, PathBuf)>,
    /// Its directory, if it is one.
    pub directory: Option<PathBuf>,
    /// How many bytes it has here, those included that it shares with others.
    pub bytes: u64,
}

/// Something that can be removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Removable {
    /// A file, a link, or a folder.
    pub path: PathBuf,
    /// The bytes that are free without it.
    pub bytes: u64,
    /// Why it is not needed.
    pub reason: &'static str,
}

/// The entry `name` in the type `dtype`, or without one in the first type that lies here whole; `None` if none does.
///
/// # Errors
/// [`Error::Name`] for an entry or a type that there is not.
pub fn pulled(settings: &Settings, name: &str, dtype: Option<&str>) -> Result<Option<Pulled>> {
    let entry = Catalogue::built_in().entry(name)?;
    if dtype.is_some() {
        return in_type(settings, entry, entry.variant(dtype)?);
    }
    for variant in &entry.types {
        if let Some(found) = in_type(settings, entry, variant)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// All entries of the catalogue that lie here whole.
///
/// # Errors
/// Those of a catalogue that contradicts itself.
pub fn all_pulled(settings: &Settings) -> Result<Vec<Pulled>> {
    let mut found = Vec::new();
    for entry in &Catalogue::built_in().entries {
        for variant in &entry.types {
            found.extend(in_type(settings, entry, variant)?);
        }
    }
    Ok(found)
}

fn in_type(settings: &Settings, entry: &'static Entry, variant: &'static Variant) -> Result<Option<Pulled>> {
    let (mut files, mut directory, mut bytes) = (Vec::new(), None, 0);
    match Catalogue::built_in().contents(variant)? {
        Contents::Directory { repository, variant } => {
            let Some(snapshot) = whole_directory(settings, &repository, variant.as_deref()) else { return Ok(None) };
            bytes = size_of_folder(&snapshot);
            directory = Some(snapshot);
        }
        Contents::Files(placed) => {
            for PlacedFile { place, repository, file } in placed {
                let found = Folder::of(settings, &repository).find(None, repository.site.branch(), &file);
                let Some(path) = found else { return Ok(None) };
                bytes += fs::metadata(&path).map_or(0, |found| found.len());
                files.push((place, path));
            }
        }
    }
    Ok(Some(Pulled { entry, dtype: &variant.dtype, files, directory, bytes }))
}

/// The snapshot of a diffusers directory that has a model: a list of its parts, and in each of its folders that has a configuration,
/// weights or texts that belong to the variant.
fn whole_directory(settings: &Settings, repository: &Repository, variant: Option<&str>) -> Option<PathBuf> {
    let snapshot = Folder::of(settings, repository).snapshot(repository.site.branch())?;
    let index = fs::read_to_string(snapshot.join("model_index.json")).ok()?;
    let index: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&index).ok()?;
    for (part, class) in &index {
        // What is [null, null] is not there by intention.
        let is_meant = class.as_array().is_some_and(|class| class.iter().any(|word| !word.is_null()));
        let is_optional =
            ["safety_checker", "feature_extractor", "image_encoder", "image_processor"].contains(&part.as_str());
        if is_meant && !part.starts_with('_') && !is_optional && !has_content(&snapshot.join(part), variant) {
            return None;
        }
    }
    Some(snapshot)
}

/// Whether a folder of a diffusers directory has all that its index names, and weights if it has a configuration of a network.
fn has_content(folder: &Path, variant: Option<&str>) -> bool {
    let names: Vec<String> = names(folder);
    let is_network = names.iter().any(|name| name == "config.json");
    let mut has_weights = false;
    for name in &names {
        let is_weights = name.ends_with(".safetensors") || name.ends_with(".bin");
        if !is_weights || variant.is_some_and(|variant| !name.contains(&format!(".{variant}"))) {
            continue;
        }
        has_weights = true;
        // Links whose blob is gone are not there.
        if !folder.join(name).is_file() || !has_all_shards(name, &names) {
            return false;
        }
    }
    !names.is_empty() && (!is_network || has_weights)
}

/// Whether `names` have as many shards as the file `name` says that it is one of.
fn has_all_shards(name: &str, names: &[String]) -> bool {
    let Some((_, count)) = shards(name) else { return true };
    names.iter().filter(|other| shards(other).is_some_and(|(_, of)| of == count)).count() >= count
}

/// Which of how many shards a file is: `model-00001-of-00002.safetensors`.
fn shards(name: &str) -> Option<(usize, usize)> {
    let (before, after) = name.split_once("-of-")?;
    let number = before.rsplit('-').next()?.parse().ok()?;
    let count: String = after.chars().take_while(char::is_ascii_digit).collect();
    Some((number, count.parse().ok()?))
}

/// The repositories that lie here, with their bytes.
pub fn repositories(settings: &Settings) -> Vec<(Repository, u64)> {
    let mut found = Vec::new();
    for site in [Site::HuggingFace, Site::ModelScope] {
        let root = cache::root(settings, site);
        for name in names(&root) {
            if let Some(repository) = Repository::of_folder(site, &name) {
                let bytes = size_of_folder(&root.join(name).join("blobs"));
                found.push((repository, bytes));
            }
        }
    }
    found.sort();
    found
}

/// Where converted models lie.
pub fn converted_folder(settings: &Settings) -> PathBuf {
    settings.home.join("models")
}

/// The converted model `name` in the type `dtype`.
pub fn converted(settings: &Settings, name: &str, dtype: &str) -> PathBuf {
    converted_folder(settings).join(format!("{}-{dtype}{BUNDLE}", name.to_ascii_lowercase().replace('/', "--")))
}

/// The conversions of the model `name` that lie here, with their types.
pub fn conversions(settings: &Settings, name: &str) -> Vec<(String, PathBuf)> {
    let folder = converted_folder(settings);
    let start = format!("{}-", name.to_ascii_lowercase());
    let mut found = Vec::new();
    for file in names(&folder) {
        let dtype = file.strip_prefix(&start).and_then(|rest| rest.strip_suffix(BUNDLE));
        // What begins a name may be the beginning of a longer one; no type has a `-`.
        if let Some(dtype) = dtype.filter(|dtype| !dtype.contains('-')) {
            found.push((dtype.to_owned(), folder.join(&file)));
        }
    }
    found
}

/// Bundles that were converted here, and files from elsewhere, with their bytes.
pub fn own_files(settings: &Settings) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let files = settings.home.join("files");
    let folders = names(&files).into_iter().map(|host| files.join(host));
    for folder in std::iter::once(converted_folder(settings)).chain(folders) {
        for name in names(&folder) {
            let path = folder.join(&name);
            if let Ok(metadata) = fs::metadata(&path)
                && metadata.is_file()
                && !name.starts_with('.')
            {
                found.push((path, metadata.len()));
            }
        }
    }
    found.sort();
    found
}

/// What goes if `gone` goes: links, and the blobs that nothing else links to. Files that another model of the catalogue has stay.
///
/// # Errors
/// Those of a catalogue that contradicts itself.
pub fn removable(settings: &Settings, gone: &[Pulled]) -> Result<Vec<Removable>> {
    let (mut kept, mut kept_folders) = (HashSet::new(), HashSet::new());
    for other in all_pulled(settings)? {
        let goes = gone.iter().any(|gone| gone.entry.name == other.entry.name && gone.dtype == other.dtype);
        // A part is there for models: it goes with the last one that has it.
        if !goes && other.entry.kind != Kind::Part {
            kept.extend(other.files.into_iter().map(|(_, path)| path));
            kept_folders.extend(other.directory);
        }
    }
    let mut links: Vec<PathBuf> = Vec::new();
    for gone in gone {
        links.extend(gone.files.iter().map(|(_, path)| path.clone()));
        if let Some(folder) = gone.directory.as_ref().filter(|folder| !kept_folders.contains(*folder)) {
            links.extend(files_below(folder));
        }
    }
    links.retain(|link| !kept.contains(link));
    let mut removable = Vec::new();
    for link in links {
        removable.extend(with_blob(&link, "no other model of the catalogue has it"));
    }
    removable.sort();
    removable.dedup();
    Ok(removable)
}

/// What no one needs: parts of files that no one is fetching, blobs that nothing links to, and in repositories of the catalogue,
/// files of older versions.
///
/// # Errors
/// Those of a catalogue that contradicts itself.
pub fn superfluous(settings: &Settings) -> Result<Vec<Removable>> {
    let mut found = Vec::new();
    let known = known_repositories()?;
    for (repository, _) in repositories(settings) {
        let folder = Folder::of(settings, &repository);
        if known.contains(&repository) {
            found.extend(superseded(&folder));
        }
        let linked: HashSet<PathBuf> = links(&folder.path).into_keys().collect();
        for name in names(&folder.path.join("blobs")) {
            let path = folder.path.join("blobs").join(&name);
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let digits = name.strip_suffix(PART);
            let is_busy = folder.is_locked(digits.unwrap_or(&name));
            if !metadata.is_file() || is_busy {
                continue;
            }
            if digits.is_some() {
                found.push(Removable { bytes: on_disk(&metadata), path, reason: "it was not fetched to its end" });
            } else if is_settled(&path) && !linked.contains(&path) && !name.contains('.') {
                found.push(Removable { path, bytes: metadata.len(), reason: "nothing links to it" });
            }
        }
    }
    let files = settings.home.join("files");
    for host in names(&files) {
        let folder = files.join(host);
        for name in names(&folder).into_iter().filter(|name| name.ends_with(PART)) {
            let path = folder.join(name);
            let bytes = fs::metadata(&path).map_or(0, |metadata| on_disk(&metadata));
            found.push(Removable { path, bytes, reason: "it was not fetched to its end" });
        }
    }
    for name in names(&settings.home).into_iter().filter(|name| name.starts_with(ARRIVING)) {
        let path = settings.home.join(name);
        if is_settled(&path) {
            found.push(Removable { path, bytes: 0, reason: "the conversion that it was for has ended" });
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Whether nothing at `path` itself has changed for a while.
fn is_settled(path: &Path) -> bool {
    let then = fs::symlink_metadata(path).and_then(|found| found.modified());
    then.is_ok_and(|then| SystemTime::now().duration_since(then).is_ok_and(|age| age > SETTLED))
}

/// Removes a file, a link or a folder, and the folders of a snapshot that are empty then; one that is gone already is no error.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(path: &Path) -> Result<()> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", path, error)),
        _ => {}
    }
    let above = path.ancestors().skip(1).take_while(|folder| !folder.ends_with("snapshots"));
    if path.ancestors().any(|folder| folder.ends_with("snapshots")) {
        for folder in above {
            // One that is not empty stays.
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// The repositories that the catalogue names.
fn known_repositories() -> Result<HashSet<Repository>> {
    let mut known = HashSet::new();
    let catalogue = Catalogue::built_in();
    for variant in catalogue.entries.iter().flat_map(|entry| &entry.types) {
        match catalogue.contents(variant)? {
            Contents::Directory { repository, .. } => known.extend([repository]),
            Contents::Files(files) => known.extend(files.into_iter().map(|file| file.repository)),
        }
    }
    Ok(known)
}

/// The links of snapshots that no reference names, if a newer snapshot has a file in their place, with the blobs that only they link to.
fn superseded(folder: &Folder) -> Vec<Removable> {
    let mut current: Vec<PathBuf> = Vec::new();
    for reference in files_below(&folder.path.join("refs")) {
        let commit = fs::read_to_string(&reference).unwrap_or_default();
        current.extend(folder.snapshots().into_iter().filter(|snapshot| snapshot.ends_with(commit.trim())));
    }
    let mut gone: HashSet<PathBuf> = HashSet::new();
    for old in folder.snapshots().into_iter().filter(|snapshot| !current.contains(snapshot)) {
        for link in files_below(&old) {
            let Ok(inner) = link.strip_prefix(&old) else { continue };
            // `-m` finds a file in an older snapshot, too, if no newer one has it.
            if current.iter().any(|snapshot| snapshot.join(inner).is_file()) {
                gone.insert(link);
            }
        }
    }
    let mut removable = Vec::new();
    for (blob, links) in links(&folder.path) {
        if links.iter().all(|link| gone.contains(link)) && !gone.contains(&blob) {
            let bytes = fs::metadata(&blob).map_or(0, |metadata| metadata.len());
            removable.push(Removable { path: blob, bytes, reason: "only an older version has it" });
        }
    }
    removable.extend(gone.into_iter().map(|path| Removable { path, bytes: 0, reason: "an older version" }));
    removable
}

/// `link`, and the blob behind it if nothing else links to that.
fn with_blob(link: &Path, reason: &'static str) -> Vec<Removable> {
    let mut removable = vec![Removable { path: link.to_owned(), bytes: 0, reason }];
    let (Ok(blob), Some(repository)) = (fs::canonicalize(link), repository_of(link)) else { return removable };
    let links = links(&repository);
    if blob != link && links.get(&blob).is_none_or(|links| links.len() <= 1) {
        let bytes = fs::metadata(&blob).map_or(0, |metadata| metadata.len());
        removable.push(Removable { path: blob, bytes, reason });
    }
    removable
}

/// The folder of the repository that has this link.
fn repository_of(link: &Path) -> Option<PathBuf> {
    for folder in link.ancestors() {
        if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("models--")) {
            return fs::canonicalize(folder).ok();
        }
    }
    None
}

/// The links of a repository's snapshots by what they lead to.
fn links(repository: &Path) -> HashMap<PathBuf, Vec<PathBuf>> {
    let mut links: HashMap<PathBuf, Vec<PathBuf>> = HashMap::new();
    for link in files_below(&repository.join("snapshots")) {
        // As the blob is written in this folder, whatever leads to the folder itself.
        let target = fs::read_link(&link)
            .ok()
            .and_then(|target| target.file_name().map(|name| repository.join("blobs").join(name)));
        links.entry(target.unwrap_or_else(|| link.clone())).or_default().push(link);
    }
    links
}

/// The files and links in a folder and those below; links are not followed.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for name in names(&folder) {
            let path = folder.join(name);
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn size_of_folder(folder: &Path) -> u64 {
    files_below(folder).iter().filter_map(|path| fs::metadata(path).ok()).map(|found| found.len()).sum()
}

/// What a file takes on its disk: a part has holes.
fn on_disk(metadata: &fs::Metadata) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::blocks(metadata) * 512;
    #[cfg(not(unix))]
    metadata.len()
}

/// The names in a folder, sorted; none if it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
