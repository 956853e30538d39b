//! JSON as Python writes it: with `NaN`, `Infinity` and `-Infinity` among its numbers.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// The words that Python writes where JSON has no number. The longer one comes before what it ends with.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// What `text` holds. Numbers that JSON lacks become strings, which [`float`] reads.
///
/// # Errors
/// Those of [`serde_json::from_str`].
pub fn read<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(&quoted(text))
}

/// What the JSON object `text` holds, as [`read`] does it. A struct would be read off a list as well, field by field.
///
/// # Errors
/// As [`read`], also if `text` is something else than an object.
pub fn object<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    let _: Map<String, Value> = read(text)?;
    // Not of what was read there, which has lost the lines that errors name.
    read(text)
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

/// Reads a field that is a number, NaN and the infinities included.
///
/// # Errors
/// The deserializer's, if the field is something else.
pub fn float<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Float::deserialize(from)?.0)
}

/// Reads a field that is such a number, if it is there.
///
/// # Errors
/// As [`float`].
pub fn optional_float<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::<Float>::deserialize(from)?.map(|number| number.0))
}

/// Reads a field that is a list of such numbers, if it is there.
///
/// # Errors
/// As [`float`].
pub fn optional_floats<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<f64>>, D::Error> {
    Ok(Some(Vec::<Float>::deserialize(from)?.into_iter().map(|number| number.0).collect()))
}

/// `text` with quotation marks around each of [`WORDS`] that stands outside of a string.
fn quoted(text: &str) -> Cow<'_, str> {
    // The longest one ends with the second.
    if !WORDS[1..].iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
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
    Cow::Owned(quoted)
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
    fn a_list_is_no_object() {
        #[derive(Debug, Deserialize, PartialEq)]
        struct Size {
            width: usize,
            height: usize,
        }
        assert_eq!(object::<Size>(r#"{"width": 1, "height": 2}"#).unwrap(), Size { width: 1, height: 2 });
        assert_eq!(read::<Size>("[1, 2]").unwrap(), Size { width: 1, height: 2 });
        for text in ["[1, 2]", "1", "null", "", "{"] {
            assert!(object::<Size>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_that_json_lacks_are_numbers() {
        let numbers = read::<Vec<Float>>("[-Infinity, Infinity, 2]").unwrap();
        assert_eq!(numbers.iter().map(|number| number.0).collect::<Vec<_>>(), [f64::NEG_INFINITY, f64::INFINITY, 2.0]);
        for text in ["Infinit", r#"["inf"]"#, "[null]"] {
            assert!(read::<Vec<Float>>(text).is_err(), "{text}");
        }
    }
}
