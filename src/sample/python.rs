//! Settings as Python writes them: with `NaN`, `Infinity` and `-Infinity` among the numbers.

use std::path::Path;

use serde_json::{Map, Value};

pub(super) use crate::json::{float, optional_float, optional_floats};
use crate::{Error, Result, json};

/// The settings that `text` holds, without those that are `null`. Numbers that JSON lacks become strings, which
/// [`float`] reads.
///
/// # Errors
///
/// [`Error::Malformed`] if `text` is no JSON object.
pub(super) fn settings(text: &str, origin: &Path) -> Result<Map<String, Value>> {
    let mut settings: Map<String, Value> = json::read(text).map_err(|error| malformed(origin, &error))?;
    settings.retain(|_, value| !value.is_null());
    Ok(settings)
}

pub(super) fn malformed(origin: &Path, error: &serde_json::Error) -> Error {
    Error::malformed(origin, "scheduler config", "JSON settings", error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_no_nulls() {
        let settings = settings(r#"{"a": null, "b": -Infinity}"#, Path::new("x")).unwrap();
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(float(&settings["b"]).unwrap(), f64::NEG_INFINITY);
    }
}
