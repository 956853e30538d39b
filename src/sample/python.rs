//! JSON as Python writes it: with `NaN`, `Infinity` and `-Infinity` among its numbers.

use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The words that Python writes where JSON has no number. The longer one comes before what it ends with.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The settings that `text` holds, without those that are `null`. Numbers that JSON lacks become strings, which
/// [`float`] reads.
///
/// # Errors
///
/// [`Error::Malformed`] if `text` is no JSON object.
pub(super) fn settings(text: &str, origin: &Path) -> Result<Map<String, Value>> {
    let mut settings: Map<String, Value> =
        serde_json::from_str(&quoted(text)).map_err(|error| malformed(origin, &error))?;
    settings.retain(|_, value| !value.is_null());
    Ok(settings)
}

pub(super) fn malformed(origin: &Path, error: &serde_json::Error) -> Error {
    Error::malformed(origin, "scheduler config", "JSON settings", error.to_string())
}

/// `text` with quotation marks around each of [`WORDS`] that stands outside of a string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let (mut rest, mut inside) = (text, false);
    while let Some(first) = rest.chars().next() {
        let word = WORDS.into_iter().find(|&word| !inside && rest.starts_with(word));
        let length = match word {
            Some(word) => word.len(),
            // An escaped character ends no string.
            None if inside && first == '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            None => first.len_utf8(),
        };
        inside ^= first == '"';
        let (taken, left) = rest.split_at(length);
        if word.is_some() {
            quoted.extend(["\"", taken, "\""]);
        } else {
            quoted.push_str(taken);
        }
        rest = left;
    }
    quoted
}

/// A number, NaN and the infinities included.
struct Float(f64);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Float, D::Error> {
        let value = Value::deserialize(from)?;
        let number = match &value {
            Value::Number(number) => number.as_f64(),
            Value::String(word) if WORDS.contains(&word.as_str()) => word.parse().ok(),
            _ => None,
        };
        number.map(Float).ok_or_else(|| D::Error::custom(format!("expected a number, found {value}")))
    }
}

/// Reads a field that is a number.
pub(super) fn float<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Float::deserialize(from)?.0)
}

/// Reads a field that is a number, if it is there.
pub(super) fn optional_float<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Ok(Some(float(from)?))
}

/// Reads a field that is a list of numbers, if it is there.
pub(super) fn optional_floats<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<f64>>, D::Error> {
    Ok(Some(Vec::<Float>::deserialize(from)?.into_iter().map(|number| number.0).collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_outside_of_strings_are_quoted() {
        for (text, wanted) in [
            ("[NaN, -Infinity,Infinity]", r#"["NaN", "-Infinity","Infinity"]"#),
            (r#"{"NaN": "a \" NaN", "é\\": NaN}"#, r#"{"NaN": "a \" NaN", "é\\": "NaN"}"#),
            (r#""\é" "\"#, r#""\é" "\"#),
            ("", ""),
        ] {
            assert_eq!(quoted(text), wanted);
        }
    }

    #[test]
    fn settings_have_no_nulls() {
        let settings = settings(r#"{"a": null, "b": -Infinity}"#, Path::new("x")).unwrap();
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(Float::deserialize(&settings["b"]).unwrap().0, f64::NEG_INFINITY);
        assert!(Float::deserialize(&Value::from("inf")).is_err());
    }
}
