//! LoRAs as options give them.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// A LoRA's file and its strength.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Lora {
    path: PathBuf,
    strength: f32,
}

/// Parses `FILE` or `FILE:STRENGTH`.
pub(super) fn parse(text: &str) -> Result<Lora, String> {
    // A colon may be part of the path, too, if no number follows.
    if let Some((path, number)) = text.rsplit_once(':')
        && let Ok(strength) = number.parse::<f32>()
        && !path.is_empty()
    {
        return match strength.is_finite() {
            true => Ok(Lora { path: path.into(), strength }),
            false => Err("a strength is a finite number".to_owned()),
        };
    }
    Ok(Lora { path: text.into(), strength: 1.0 })
}

/// The files and their strengths, as the library takes them.
pub(super) fn pairs(loras: &[Lora]) -> Vec<(PathBuf, f32)> {
    loras.iter().map(|Lora { path, strength }| (path.clone(), *strength)).collect()
}

impl fmt::Display for Lora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.strength)
    }
}
