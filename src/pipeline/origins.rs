//! What a model is called, and where its parts come from: for the metadata of pictures.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::path::{self, Path};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::source::{Component, Layout, Source};

/// Where the weights of a component come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Its place in the model.
    pub component: &'static str,
    /// The name of the file, or of the folder with its files.
    pub file: String,
    /// The SHA-256 of what stands before the weights in its files, in hexadecimal digits. It tells apart files of one name, and
    /// takes no time; two files may have it in common whose weights differ.
    pub header_sha256: String,
}

/// The name of the model at `path`, for people: that of the file or folder, without what marks its format. A snapshot in
/// Hugging Face's cache has the name of its repository.
pub fn model_name(path: &Path) -> String {
    let absolute = match path.file_name() {
        Some(_) => path::absolute(path),
        None => fs::canonicalize(path),
    };
    let absolute = absolute.unwrap_or_else(|_| path.to_owned());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut folders = absolute.ancestors();
    let (own, parent, above) =
        (folders.next().and_then(name), folders.next().and_then(name), folders.next().and_then(name));
    let own = own.unwrap_or_else(|| path.display().to_string());
    let snapshot = above.filter(|_| parent.as_deref() == Some("snapshots"));
    if let Some(repository) = snapshot.as_deref().and_then(repository).or_else(|| repository(&own)) {
        return repository.to_owned();
    }
    let bare = [".gguf", ".safetensors"].into_iter().find_map(|end| own.strip_suffix(end));
    bare.map(str::to_owned).unwrap_or(own)
}

/// The repository's own name in `models--OWNER--NAME`, as Hugging Face's cache calls its folders.
fn repository(folder: &str) -> Option<&str> {
    folder.strip_prefix("models--")?.split_once("--").map(|(_, name)| name)
}

/// Where each part of `source` comes from, if they come from files that nothing but the user put together; nothing for a bundle
/// and for a diffusers directory, whose name says it all.
pub fn origins(source: &Source) -> Vec<Origin> {
    let components: Vec<&Component> = source.components().collect();
    let files: HashSet<&Path> = components.iter().map(|component| component.origin.as_path()).collect();
    let mixed = components.iter().any(|component| !component.origin.starts_with(&source.path));
    if files.len() < 2 || (source.layout != Layout::Files && !mixed) {
        return Vec::new();
    }
    components.into_iter().map(origin).collect()
}

fn origin(component: &Component) -> Origin {
    let file = component.origin.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut digest = Sha256::new();
    for map in component.index.maps() {
        let inside = component.index.iter().filter(|(_, tensor)| std::sync::Arc::ptr_eq(tensor.map(), map));
        let end = inside.map(|(_, tensor)| tensor.offset()).min().unwrap_or(0);
        digest.update(&map.bytes()[..end]);
    }
    let mut header_sha256 = String::new();
    for byte in digest.finalize() {
        // Writing to a string never fails.
        let _ = write!(header_sha256, "{byte:02x}");
    }
    let file = file.unwrap_or_else(|| component.origin.display().to_string());
    Origin { component: component.slot.name, file, header_sha256 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_what_people_call_it() {
        for (path, name) in [
            ("a/flux1-dev.gguf", "flux1-dev"),
            ("ae.safetensors", "ae"),
            ("models/FLUX.1-schnell/", "FLUX.1-schnell"),
            ("models/FLUX.1-schnell/.", "FLUX.1-schnell"),
            (
                "hub/models--black-forest-labs--FLUX.1-dev/snapshots/0ef5fff789c832c5c7f4e127f94c8b54bbcced44",
                "FLUX.1-dev",
            ),
            ("hub/models--black-forest-labs--FLUX.1-dev", "FLUX.1-dev"),
            ("hub/models--a--b--c/snapshots/x", "b--c"),
            ("snapshots/0ef5fff7", "0ef5fff7"),
        ] {
            assert_eq!(model_name(Path::new(path)), name, "{path}");
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(model_name(Path::new(".")), here.file_name().unwrap().to_str().unwrap());
        let above = here.parent().unwrap();
        assert_eq!(model_name(Path::new("..")), above.file_name().unwrap().to_str().unwrap());
    }
}
