//! What `pull` fetched, by its name.

use std::path::{Path, PathBuf};

use pinhole::source::{Files, Source};
use pinhole::{Error, Result};
use pinhole_hub::cache::Folder;
use pinhole_hub::catalogue::Kind;
use pinhole_hub::name::Repository;
use pinhole_hub::tidy::{self, Pulled};
use pinhole_hub::{Asked, Catalogue, Settings};

/// Whether `name` means something that `pull` fetches, and no file or folder that is there.
pub(super) fn is_one(name: &Path) -> bool {
    !name.exists() && matches!(asked(name), Ok(Some(Asked::Model { .. } | Asked::Repository { .. })))
}

/// Opens the model that was pulled under `name`; `None` if that is no name of the catalogue and of no repository.
///
/// # Errors
/// [`Error::Option`] if it has not been pulled, with the command that does it; those of [`Source::open`].
pub(super) fn open(name: &Path) -> Result<Option<Source>> {
    let settings = settings()?;
    match asked(name)? {
        Some(Asked::Model { name, dtype }) => model(&settings, &name, dtype.as_deref()).map(Some),
        Some(Asked::Repository { repository, revision, file }) => {
            let path = in_repository(&settings, &repository, revision.as_deref(), file.as_deref());
            path.map_or_else(|| Err(not_here(&name.to_string_lossy())), |path| Source::open(&path)).map(Some)
        }
        _ => Ok(None),
    }
}

/// The LoRA that was pulled under `name`; `name` itself if it is a file, or nothing that the catalogue knows.
///
/// # Errors
/// What to say if it has not been pulled.
pub(super) fn lora(name: PathBuf) -> Result<PathBuf, String> {
    let text = name.to_string_lossy();
    let known = Catalogue::built_in().entry(&text).ok().filter(|entry| entry.kind == Kind::Lora && !name.exists());
    let Some(entry) = known else { return Ok(name) };
    let settings = settings().map_err(|error| error.to_string())?;
    let found = tidy::pulled(&settings, &entry.name, None).map_err(|error| error.to_string())?;
    let file = found.and_then(|found| found.files.into_iter().next());
    file.map(|(_, path)| path)
        .ok_or_else(|| format!("it has not been pulled: `pinhole pull {}` fetches it", entry.name))
}

/// The settings of the environment, in this library's words.
///
/// # Errors
/// [`Error::Option`].
fn settings() -> Result<Settings> {
    Settings::from_env().map_err(|error| Error::option("the environment", "settings of a hub", error.to_string()))
}

/// What `name` asks for: a model of the catalogue, or a repository. `None` for everything else.
///
/// # Errors
/// [`Error::Option`] for a name that is almost one of the catalogue's, or a repository's that cannot be one.
fn asked(name: &Path) -> Result<Option<Asked>> {
    let Some(text) = name.to_str() else { return Ok(None) };
    let is_repository = text.starts_with("hf:") || text.starts_with("ms:");
    // What has an ending or a folder is a path.
    let is_path =
        text.contains(['/', '\\']) || [".gguf", ".safetensors", ".json"].iter().any(|ending| text.ends_with(ending));
    if !is_repository && (is_path || text.contains("://")) {
        return Ok(None);
    }
    let unknown = |error: pinhole_hub::Error| {
        let refusal = Error::option("the model", "a file, a folder, or a name that was pulled", text);
        refusal.with_hint(error.hint().map_or_else(|| error.to_string(), str::to_owned))
    };
    let asked = Asked::parse(text, &settings()?).map_err(unknown)?;
    if let Asked::Model { name, .. } = &asked {
        let catalogue = Catalogue::built_in();
        match catalogue.entry(name) {
            Ok(_) => {}
            Err(_) if catalogue.nearest(name).is_empty() => return Ok(None),
            Err(error) => return Err(unknown(error)),
        }
    }
    Ok(Some(asked))
}

/// The model of the catalogue called `name`: converted, or as it was fetched.
fn model(settings: &Settings, name: &str, dtype: Option<&str>) -> Result<Source> {
    let bundles = tidy::conversions(settings, name);
    let as_text = dtype.map_or_else(|| name.to_owned(), |dtype| format!("{name}:{dtype}"));
    let bundle = bundles.iter().find(|(of, _)| dtype.is_none_or(|dtype| dtype == of)).map(|(_, path)| path);
    if let (Some(path), Some(_)) = (bundle, dtype) {
        return Source::open(path);
    }
    let found = tidy::pulled(settings, name, dtype).map_err(|error| {
        let refusal = Error::option("the model", "a type that the catalogue has", as_text.clone());
        refusal.with_hint(error.hint().unwrap_or_default())
    })?;
    match (found, bundle) {
        (Some(found), _) => open_pulled(&found),
        (None, Some(path)) => Source::open(path),
        (None, None) => Err(not_here(&as_text)),
    }
}

/// Opens a model of the catalogue that lies here.
///
/// # Errors
/// Those of [`Source::open`] and [`Source::assemble`].
pub(super) fn open_pulled(found: &Pulled) -> Result<Source> {
    if let Some(directory) = &found.directory {
        return Source::open(directory);
    }
    match (&found.files[..], found.entry.kind) {
        ([(_, only)], Kind::Part | Kind::Lora) => Source::open(only),
        (files, _) => assemble(files),
    }
}

/// Opens a model whose parts lie in these files, each with its place.
///
/// # Errors
/// Those of [`Source::assemble`].
pub(super) fn assemble(placed: &[(String, PathBuf)]) -> Result<Source> {
    let mut files = Files::default();
    for (place, path) in placed {
        files.add(place, path.clone());
    }
    Source::assemble(None, &files)
}

/// The file or the snapshot of a repository that was pulled.
fn in_repository(
    settings: &Settings,
    repository: &Repository,
    revision: Option<&str>,
    file: Option<&str>,
) -> Option<PathBuf> {
    let (folder, branch) = (Folder::of(settings, repository), repository.site.branch());
    match file {
        Some(file) => folder.find(revision, branch, file),
        None => folder.snapshot(revision.unwrap_or(branch)),
    }
}

fn not_here(name: &str) -> Error {
    let error = Error::option("the model", "one that is here", format!("{name}, which has not been pulled"));
    error.with_hint(format!("`pinhole pull {name}` fetches it"))
}
