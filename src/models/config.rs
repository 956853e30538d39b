//! What the models' configurations share: how they are read, from JSON or off the shapes in a file, and how far they
//! are believed.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::tensor::{MAX_DIMS, Shape};
use crate::{Error, Result, json};

/// More layers than any model has: nothing is counted or believed beyond.
pub(super) const MOST_LAYERS: usize = 512;

/// A longer row than any weight has.
pub(super) const MOST_WIDTH: usize = 1 << 20;

/// Reads the settings in `text`, a JSON object that `origin` holds. Keys that `C` does not have are ignored.
pub(super) fn from_json<C: DeserializeOwned>(text: &str, origin: &Path) -> Result<C> {
    let malformed = |error: serde_json::Error| {
        Error::malformed(origin, "configuration", "a JSON object of settings that pinhole knows", error.to_string())
    };
    // Through a map, since serde would take an array for a struct.
    let settings: serde_json::Map<_, _> = json::read(text).map_err(malformed)?;
    C::deserialize(serde_json::Value::Object(settings)).map_err(malformed)
}

/// Refuses a `value` of `key` outside `range`.
pub(super) fn limit(origin: &Path, key: &str, value: usize, range: RangeInclusive<usize>) -> Result<()> {
    require(
        origin,
        key,
        range.contains(&value),
        || match (range.start(), range.end()) {
            (only, last) if only == last => only.to_string(),
            (first, last) => format!("{first} to {last}"),
        },
        value,
    )
}

/// Refuses `found` of `key` where it does not `hold`.
pub(super) fn require(
    origin: &Path,
    key: &str,
    holds: bool,
    expected: impl FnOnce() -> String,
    found: impl ToString,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::mismatch(origin, key, expected(), found.to_string())) }
}

/// The shapes in a file, from which a configuration is read where none is given.
pub(super) struct Shapes<'a> {
    shape_of: &'a dyn Fn(&str) -> Option<Shape>,
    origin: &'a Path,
}

impl<'a> Shapes<'a> {
    /// Of the file `origin`, where `shape_of` finds the shape of a canonical name.
    pub(super) fn new(shape_of: &'a dyn Fn(&str) -> Option<Shape>, origin: &'a Path) -> Shapes<'a> {
        Shapes { shape_of, origin }
    }

    /// Whether the file has `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        (self.shape_of)(name).is_some()
    }

    /// The extents of `name` in ggml order, or [`Error::Mismatch`] where the file lacks it.
    pub(super) fn dims(&self, name: &str) -> Result<[usize; MAX_DIMS]> {
        let shape = (self.shape_of)(name);
        shape.map(|shape| shape.dims()).ok_or_else(|| Error::mismatch(self.origin, name, TENSOR, NONE))
    }

    /// How many of `name(0)`, `name(1)`, ... the file has, up to the last. One between them that it lacks is counted, so that it
    /// is missed later.
    pub(super) fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..MOST_LAYERS).rev().find(|&i| self.has(&name(i))).map_or(0, |last| last + 1)
    }
}

/// What [`Shapes::dims`] expects, and what it finds.
const TENSOR: &str = "a tensor";
const NONE: &str = "none";

/// The canonical name of the weight that a file lacks, if `error` is what reading settings off its shapes returned for it.
pub fn missing_tensor(error: &Error) -> Option<&str> {
    match error {
        Error::Mismatch { at, expected, found, .. } if expected == TENSOR && found == NONE => Some(at),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Settings {
        width: usize,
    }

    #[test]
    fn settings_are_an_object() {
        let origin = Path::new("config.json");
        assert_eq!(from_json::<Settings>(r#"{"width": 3, "other": null}"#, origin).unwrap().width, 3);
        for text in ["[3]", r#"{"width": -3}"#, "{}", "3", ""] {
            assert!(matches!(from_json::<Settings>(text, origin), Err(Error::Malformed { .. })), "{text}");
        }
    }

    #[test]
    fn limits_name_the_key() {
        let error = limit(Path::new("config.json"), "width", 9, 1..=8).unwrap_err();
        assert_eq!(error.to_string(), "config.json: width: expected 1 to 8, found 9");
        assert!(limit(Path::new(""), "width", 8, 1..=8).is_ok());
    }

    #[test]
    fn shapes_are_counted_beyond_gaps() {
        let shapes = Shapes::new(
            &|name: &str| ["a.0", "a.1", "a.3"].contains(&name).then(|| Shape::new(&[2, 3]).unwrap()),
            Path::new("f"),
        );
        assert_eq!(shapes.count(|i| format!("a.{i}")), 4);
        assert_eq!(shapes.count(|i| format!("b.{i}")), 0);
        assert_eq!(shapes.dims("a.3").unwrap(), [2, 3, 1, 1]);
        let error = shapes.dims("a.2").unwrap_err();
        assert_eq!(error.to_string(), "f: a.2: expected a tensor, found none");
        assert_eq!(missing_tensor(&error), Some("a.2"));
        assert_eq!(missing_tensor(&limit(Path::new("f"), "width", 9, 1..=8).unwrap_err()), None);
    }
}
