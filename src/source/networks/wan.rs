//! Wan's transformer.

use std::path::Path;

use super::super::{Component, Part, Text};
use super::reading::{read_off, runnable, shapes};
use crate::Result;
use crate::bind::alias;
use crate::models::wan::{self, Wan};

/// The Wan transformer of `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn wan(component: &Component) -> Result<Part<Wan>> {
    runnable(component, &alias::WAN)?;
    // The publisher's own `config.json` says less than the shapes do.
    let config = component.config.as_ref().filter(|config| config.text.contains("attention_head_dim"));
    let config = match config {
        Some(Text { text, origin }) => wan::Config::from_json(text, origin)?,
        None => {
            let config = wan::Config::from_shapes(shapes(component, &alias::wan), &component.origin);
            read_off(config, component, &alias::wan)?
        }
    };
    let part = Part::new(Wan::new(&config)?, component, &alias::WAN, alias::wan, &config)?.without_strays(component)?;
    let derived = wan::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}
