//! The JSON header of a safetensors file.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::index::quoted;

/// The key that holds text instead of a tensor.
const METADATA_KEY: &str = "__metadata__";

/// A header as it stands in the file, in its order. Keys are unique; nothing else is checked.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: Vec<(String, TensorInfo)>,
}

/// What a header says of a tensor. Its fields are those of the format.
#[derive(Debug, Deserialize)]
pub(super) struct TensorInfo {
    /// The name of its number format, whichever it is.
    pub(super) dtype: String,
    /// Its extents, slowest first.
    pub(super) shape: Vec<usize>,
    /// Where its bytes begin and end, counted from the end of the header.
    pub(super) data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            // A map that keeps the last of several, as JSON readers do, lets a file mean different things to different
            // programs.
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("{} is there twice", quoted(&key))));
            }
            let named = |error: A::Error| A::Error::custom(format!("{}: {error}", quoted(&key)));
            if key == METADATA_KEY {
                header.metadata = map.next_value::<Option<_>>().map_err(named)?.unwrap_or_default();
            } else {
                let info = map.next_value().map_err(named)?;
                header.tensors.push((key, info));
            }
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn order_and_metadata_are_kept() {
        let json = r#"{"z":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"format":"pt"},
            "a":{"dtype":"F8_E4M3","shape":[],"data_offsets":[8,9]}}"#;
        let header: Header = serde_json::from_str(json).unwrap();
        assert_eq!(header.tensors.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!(header.metadata["format"], "pt");
    }

    #[test]
    fn errors_name_the_key() {
        let message = |json: &str| serde_json::from_str::<Header>(json).unwrap_err().to_string();
        let entry = r#"{"dtype":"F32","shape":[],"data_offsets":[0,4]}"#;
        assert!(message(&format!(r#"{{"w":{entry},"w":{entry}}}"#)).starts_with("`w` is there twice"));
        assert!(message(r#"{"w":{"dtype":33,"shape":[],"data_offsets":[0,4]}}"#).starts_with("`w`: invalid type"));
        assert!(
            message(r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#).starts_with("`w`: invalid value")
        );
        assert!(message(r#"{"w":{"dtype":"F32","shape":[]}}"#).starts_with("`w`: missing field `data_offsets`"));
        assert!(message(r#"{"__metadata__":{"a":1}}"#).starts_with("`__metadata__`: invalid type"));
        assert!(message("[]").contains("expected a JSON object of tensors"));
    }
}
