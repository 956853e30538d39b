//! A file's metadata, with typed access.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use pinhole_quant::gguf::{Array, Strings, Value};

use crate::error::{Error, Result};
use crate::index::quoted;

/// The keys and values of a GGUF file, in file order.
///
/// The typed getters give `None` where there is no such key, and [`Error::Mismatch`] where its value has another type.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    entries: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
}

impl Metadata {
    /// The metadata of the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where a key is empty, holds control characters or is there twice.
    pub(crate) fn new(path: &Path, entries: Vec<(String, Value)>) -> Result<Metadata> {
        let mut by_key = HashMap::with_capacity(entries.len());
        for (position, (key, _)) in entries.iter().enumerate() {
            if key.is_empty() || key.contains(char::is_control) {
                let expected = "a key that is not empty and has no control characters";
                return Err(Error::malformed(path, format!("metadata entry {position}"), expected, quoted(key)));
            }
            if let Some(first) = by_key.insert(key.clone(), position) {
                let found = format!("entries {first} and {position}");
                return Err(Error::malformed(path, at(key), "a key that is used once", found));
            }
        }
        Ok(Metadata { path: path.to_owned(), entries, by_key })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys and values, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&position| &self.entries[position].1)
    }

    /// A string.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A `u32`, and nothing wider or narrower.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "u32", |value| match value {
            Value::U32(number) => Some(*number),
            _ => None,
        })
    }

    /// An integer of any width, which writers do not agree on.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else, or does not fit.
    pub fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "integer", |value| match *value {
            Value::U8(number) => Some(number.into()),
            Value::I8(number) => Some(number.into()),
            Value::U16(number) => Some(number.into()),
            Value::I16(number) => Some(number.into()),
            Value::U32(number) => Some(number.into()),
            Value::I32(number) => Some(number.into()),
            Value::U64(number) => number.try_into().ok(),
            Value::I64(number) => Some(number),
            _ => None,
        })
    }

    /// A floating-point number of either width.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "f32 or f64", |value| match *value {
            Value::F32(number) => Some(number.into()),
            Value::F64(number) => Some(number),
            _ => None,
        })
    }

    /// A truth value.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "bool", |value| match *value {
            Value::Bool(truth) => Some(truth),
            _ => None,
        })
    }

    /// Many strings, such as a vocabulary.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else.
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>> {
        self.typed(key, "array of string", |value| match value {
            Value::Array(Array::String(strings)) => Some(strings),
            _ => None,
        })
    }

    /// Many `f32`, such as a vocabulary's scores.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "array of f32", |value| match value {
            Value::Array(Array::F32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// Many integers of any width, such as a shape or a vocabulary's token types.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "array of integers", |value| match value {
            Value::Array(Array::U8(v)) => Some(v.iter().map(|&n| n.into()).collect()),
            Value::Array(Array::I8(v)) => Some(v.iter().map(|&n| n.into()).collect()),
            Value::Array(Array::U16(v)) => Some(v.iter().map(|&n| n.into()).collect()),
            Value::Array(Array::I16(v)) => Some(v.iter().map(|&n| n.into()).collect()),
            Value::Array(Array::U32(v)) => Some(v.iter().map(|&n| n.into()).collect()),
            Value::Array(Array::I32(v)) => Some(v.iter().map(|&n| n.into()).collect()),
            Value::Array(Array::I64(v)) => Some(v.clone()),
            Value::Array(Array::U64(v)) => v.iter().map(|&n| n.try_into().ok()).collect(),
            _ => None,
        })
    }

    /// Bytes, such as a tokenizer's table of character mappings.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the value is something else.
    pub fn bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        self.typed(key, "array of u8", |value| match value {
            Value::Array(Array::U8(bytes)) => Some(bytes.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(Error::mismatch(&self.path, at(key), expected, value.describe())),
        }
    }
}

/// A key as the place of an error.
fn at(key: &str) -> String {
    format!("metadata {}", quoted(key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn metadata(entries: &[(&str, Value)]) -> Result<Metadata> {
        let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        Metadata::new(Path::new("m.gguf"), entries)
    }

    #[test]
    fn getters_give_what_is_there() {
        let names: Strings = ["a", "b"].iter().collect();
        let metadata = metadata(&[
            ("s", "text".into()),
            ("u", 7.into()),
            ("i", Value::I16(-7)),
            ("f", Value::F32(0.5)),
            ("b", Value::Bool(true)),
            ("names", Value::Array(Array::String(names.clone()))),
            ("scores", Value::Array(Array::F32(vec![1.0]))),
            ("shape", Value::Array(Array::I32(vec![3, -1]))),
            ("map", Value::Array(Array::U8(vec![1, 2]))),
        ])
        .unwrap();
        assert_eq!(metadata.string("s").unwrap(), Some("text"));
        assert_eq!(metadata.u32("u").unwrap(), Some(7));
        assert_eq!(metadata.integer("u").unwrap(), Some(7));
        assert_eq!(metadata.integer("i").unwrap(), Some(-7));
        assert_eq!(metadata.float("f").unwrap(), Some(0.5));
        assert_eq!(metadata.bool("b").unwrap(), Some(true));
        assert_eq!(metadata.strings("names").unwrap(), Some(&names));
        assert_eq!(metadata.floats("scores").unwrap(), Some(&[1.0][..]));
        assert_eq!(metadata.integers("shape").unwrap(), Some(vec![3, -1]));
        assert_eq!(metadata.bytes("map").unwrap(), Some(&[1, 2][..]));
        assert_eq!(metadata.string("missing").unwrap(), None);
        assert_eq!(metadata.iter().next(), Some(("s", &"text".into())));
        assert_eq!(metadata.len(), 9);
    }

    #[test]
    fn another_type_names_key_expected_and_found() {
        let metadata = metadata(&[("k", Value::Array(Array::F64(vec![]))), ("n", Value::U64(u64::MAX))]).unwrap();
        let error = metadata.strings("k").unwrap_err();
        assert_eq!(error.to_string(), "m.gguf: metadata `k`: expected array of string, found array of f64");
        assert!(matches!(error, Error::Mismatch { .. }));
        assert!(metadata.u32("n").is_err() && metadata.integer("n").is_err());
    }

    #[test]
    fn keys_are_unique_and_printable() {
        let double = metadata(&[("k", 1.into()), ("j", 1.into()), ("k", 2.into())]).unwrap_err().to_string();
        assert_eq!(double, "m.gguf: metadata `k`: expected a key that is used once, found entries 0 and 2");
        assert!(metadata(&[("", 1.into())]).is_err());
        assert!(metadata(&[("a\tb", 1.into())]).is_err());
    }
}
