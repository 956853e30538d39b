//! What language models see pictures with that stand between the words of a text: their vision towers.

use std::path::{Path, PathBuf};

use super::opened::Additions;
use crate::models::qwen_vl::Grid;
use crate::source::slot::{IMAGE_ENCODER, TEXT_ENCODER};
use crate::source::{Component, Place, Source, beside, kinds_in};
use crate::{Error, Result};

/// Around the tokens of a picture, and what stands for each of these.
pub(super) const START: &str = "<|vision_start|>";
pub(super) const END: &str = "<|vision_end|>";
pub(super) const MARK: &str = "<|image_pad|>";

/// How long a side may be beside the other.
const MOST_LONG: usize = 200;

/// What a tower is called in a plan for each picture. Sizes differ.
pub(super) const TOWERS: [&str; 10] = [
    "vision tower",
    "vision tower 2",
    "vision tower 3",
    "vision tower 4",
    "vision tower 5",
    "vision tower 6",
    "vision tower 7",
    "vision tower 8",
    "vision tower 9",
    "vision tower 10",
];

/// A picture of `grid` in a text.
pub(super) fn marked(grid: Grid) -> String {
    format!("{START}{}{END}", MARK.repeat(grid.tokens()))
}

/// Refuses a picture that is far longer than wide.
///
/// # Errors
/// [`Error::Option`].
pub(super) fn check_shape([width, height]: [usize; 2]) -> Result<()> {
    if width.max(height) > MOST_LONG * width.min(height) {
        let expected = format!("a picture that is at most {MOST_LONG} times as long as wide");
        return Err(Error::option("--reference", expected, format!("{width}x{height}")));
    }
    Ok(())
}

/// The component that the tower at `place` of a model of `source` is in: given, in its place, in the file of the text encoder, or in one
/// that lies beside it. `None` if there is none.
///
/// # Errors
/// What opening its file returns.
pub(super) fn component(source: &Source, additions: &Additions, place: &Place) -> Result<Option<Component>> {
    if let Some(path) = additions.image_encoders.first() {
        return beside(path, place).map(Some);
    }
    if let Ok(own) = source.component(&IMAGE_ENCODER) {
        return Ok(Some(own.clone()));
    }
    let reader = source.component(&TEXT_ENCODER)?;
    let own = kinds_in(&reader.index).find(|(kind, _)| *kind == place.kind);
    if let Some((_, prefix)) = own {
        return Ok(Some(Component { slot: &IMAGE_ENCODER, prefix, ..reader.clone() }));
    }
    match &projectors(&reader.origin)[..] {
        [only] => beside(only, place).map(Some),
        _ => Ok(None),
    }
}

/// The files beside `reader` that are called `mmproj`, as llama.cpp has it.
fn projectors(reader: &Path) -> Vec<PathBuf> {
    let Some(entries) = reader.parent().and_then(|folder| std::fs::read_dir(folder).ok()) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if name.contains("mmproj") && name.ends_with(".gguf") {
            found.push(entry.path());
        }
    }
    found
}

/// The error for a model whose text encoder `reader` has no tower.
pub(super) fn missing(reader: &Path) -> Error {
    let folder = reader.parent().unwrap_or(reader).display();
    Error::NotAModel {
        path: reader.to_owned(),
        found: "it has no vision tower, which this model sees its pictures with".to_owned(),
        hint: Some(format!("give one with --image-encoder: looked for one file in {folder} with `mmproj` in its name")),
    }
}
