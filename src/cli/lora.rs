//! LoRAs as options give them.

use std::fmt;
use std::path::PathBuf;

use pinhole::pipeline::LoraFile;
use serde::Serializer;

use super::pulled;

/// A LoRA's file and its strength.
#[derive(Clone, Debug)]
pub(super) struct Lora {
    path: PathBuf,
    strength: f32,
}

/// Parses `FILE` or `FILE:STRENGTH`. The file may be the name of one that was pulled.
pub(super) fn parse(text: &str) -> Result<Lora, String> {
    let (path, strength) = with_number(text, "strength")?;
    Ok(Lora { path: pulled::lora(path)?, strength })
}

/// A picture's file and its weight.
#[derive(Clone, Debug)]
pub(super) struct Weighted {
    pub(super) path: PathBuf,
    pub(super) weight: f32,
}

/// Parses `FILE` or `FILE:WEIGHT`.
pub(super) fn weighted(text: &str) -> Result<Weighted, String> {
    let (path, weight) = with_number(text, "weight")?;
    Ok(Weighted { path, weight })
}

/// `FILE:NUMBER`, or `FILE`, which is as if the number were 1.
fn with_number(text: &str, what: &str) -> Result<(PathBuf, f32), String> {
    // A colon may be part of the path, too, if no number follows.
    if let Some((path, number)) = text.rsplit_once(':')
        && let Ok(number) = number.parse::<f32>()
        && !path.is_empty()
    {
        return match number.is_finite() {
            true => Ok((path.into(), number)),
            false => Err(format!("a {what} is a finite number")),
        };
    }
    Ok((text.into(), 1.0))
}

/// The files and their strengths, as the library takes them.
pub(super) fn pairs(loras: &[Lora]) -> Vec<(PathBuf, f32)> {
    loras.iter().map(|Lora { path, strength }| (path.clone(), *strength)).collect()
}

/// The same in JSON.
pub(super) fn in_json(loras: &[Lora]) -> Vec<LoraFile> {
    LoraFile::all(loras.iter().map(|Lora { path, strength }| (path.as_path(), *strength)))
}

/// As a member of a report.
pub(super) fn serialize<S: Serializer>(loras: impl AsRef<[Lora]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(in_json(loras.as_ref()))
}

impl fmt::Display for Lora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.strength)
    }
}
