//! Folders as people and download tools leave them.

use std::fs::DirEntry;
use std::io::Read;
use std::path::{Component as Step, Path, PathBuf};

use super::component::list;
use crate::safetensors::{self, Set};
use crate::{Error, Result, file, pickle};

/// What files with weights usually end in.
const ENDINGS: [&str; 3] = [".safetensors", ".sft", ".gguf"];

/// What lies at the top of a diffusers directory: of a pipeline, or of one that is made of blocks.
pub(super) const MODEL_INDEXES: [&str; 2] = ["model_index.json", "modular_model_index.json"];

/// Whether the directory `path` is one of diffusers.
pub(crate) fn is_model(path: &Path) -> bool {
    MODEL_INDEXES.iter().any(|index| file::is_there(&path.join(index)))
}

/// The folder that `path` stands for: of a download of Hugging Face's tools, the snapshot that `refs/main` names, or the only one.
///
/// # Errors
/// [`Error::NotAModel`] if there are several snapshots and none is named, or none at all.
pub(crate) fn of(path: &Path) -> Result<PathBuf> {
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() || is_model(path) {
        return Ok(path.to_owned());
    }
    // Such a download has folders only, and what is hidden.
    if names(path)?.iter().any(|name| !name.starts_with('.') && path.join(name).is_file()) {
        return Ok(path.to_owned());
    }
    // What cannot be read names none.
    if let Ok(Some(named)) = file::text_if_there(&path.join("refs").join("main")) {
        let named = Path::new(named.trim());
        let is_name = matches!(named.components().collect::<Vec<_>>()[..], [Step::Normal(_)]);
        if is_name && snapshots.join(named).is_dir() {
            return Ok(snapshots.join(named));
        }
    }
    let mut folders = names(&snapshots)?;
    folders.retain(|name| snapshots.join(name).is_dir());
    folders.sort();
    let (found, hint) = match &folders[..] {
        [only] => return Ok(snapshots.join(only)),
        [] => ("a download with nothing in its `snapshots`".into(), "download it again".into()),
        [first, ..] => {
            let names: Vec<&str> = folders.iter().map(String::as_str).collect();
            let found = format!("a download with several snapshots ({}) and no refs/main that names one", list(&names));
            (found, format!("give the folder of one: {}", snapshots.join(first).display()))
        }
    };
    Err(Error::NotAModel { path: path.to_owned(), found, hint: Some(hint) })
}

/// The files in `dir` that have weights, by their names or by how they begin, as they belong together. What is hidden, or goes
/// on behind the usual ending as unfinished downloads do, is passed over.
pub(super) fn sets(dir: &Path) -> Result<Vec<Set>> {
    let (mut named, mut unnamed) = (Vec::new(), Vec::new());
    for entry in entries(dir)? {
        let path = entry.path();
        match entry.file_name().into_string() {
            Ok(name) if name.starts_with('.') => {}
            _ if path.is_dir() => {}
            Ok(name) => named.push(name),
            // What is no text in UTF-8 is no name of a shard.
            Err(_) => unnamed.push(Set::File(path)),
        }
    }
    let mut sets = safetensors::sets(dir, named);
    sets.append(&mut unnamed);
    sets.retain(|set| match set {
        Set::File(path) => has_weights(path),
        Set::Index(_) | Set::Shards(..) => true,
    });
    Ok(sets)
}

/// Whether a file has weights, or says so.
fn has_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        return true;
    }
    !ENDINGS.iter().any(|ending| name.contains(&format!("{ending}."))) && begins_with_weights(path, &name)
}

/// Whether a file called `name` begins as one with weights does.
fn begins_with_weights(path: &Path, name: &str) -> bool {
    let Ok((mut file, metadata)) = file::open(path) else { return false };
    let mut start = [0; 9];
    if file.read_exact(&mut start).is_err() {
        return false;
    }
    // Archives and pickles of all kinds begin as PyTorch's do.
    let is_pickle = pickle::is_named(name) && pickle::begins(&start);
    is_pickle || start.starts_with(b"GGUF") || safetensors::begins(&start, metadata.len())
}

/// The names in `dir`, those of links to nothing included.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    Ok(entries(dir)?.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn entries(dir: &Path) -> Result<impl Iterator<Item = DirEntry> + use<>> {
    Ok(std::fs::read_dir(dir).map_err(|source| Error::io("open", dir, source))?.flatten())
}
