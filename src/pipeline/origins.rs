//! Where the parts of a model come from: for the metadata of pictures.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::source::{Component, Layout, Source, model_name};

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

/// What a picture says of the model called `name` and of its parts, as AUTOMATIC1111's web UI writes it: the model, and the files
/// beside that of the denoiser, which comes first in `origins`.
pub fn named_parts(name: String, origins: &[Origin]) -> Vec<(&'static str, String)> {
    const MODULES: [&str; 4] = ["Module 1", "Module 2", "Module 3", "Module 4"];
    let others = origins.iter().skip(1).map(|origin| model_name(Path::new(&origin.file)));
    let mut pairs = vec![("Model", name)];
    pairs.extend(MODULES.into_iter().zip(others));
    pairs
}
