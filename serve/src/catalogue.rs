//! The models and LoRAs that a server was started with. Requests name them, and can name nothing else: no name is ever part of a path.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::fault::Fault;

/// Longer names are refused.
const MOST_OF_NAME: usize = 100;

/// Endings of files that are no part of a name.
const ENDINGS: [&str; 6] = ["gguf", "safetensors", "sft", "ckpt", "pt", "bin"];

/// Something that requests may name: `NAME=PATH`, or `PATH` alone, which is named after its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What requests call it.
    pub name: String,
    /// Where it lies; `mini` is the model that is built in.
    pub path: PathBuf,
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Entry, String> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name.to_owned(), path),
            None => (named_after(Path::new(text)), text),
        };
        if path.is_empty() {
            return Err("expected NAME=PATH or PATH".to_owned());
        }
        if !is_name(&name) {
            let what = "letters, digits, `.`, `_` and `-`, beginning with a letter or digit";
            return Err(format!("`{name}` is no name: expected {what}; NAME=PATH gives another"));
        }
        Ok(Entry { name, path: path.into() })
    }
}

fn named_after(path: &Path) -> String {
    let is_known =
        path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)));
    let name = if is_known { path.file_stem() } else { path.file_name() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

fn is_name(name: &str) -> bool {
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins_well
        && name.len() <= MOST_OF_NAME
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// The models; the first is the one that requests mean that name none.
    pub models: Vec<Entry>,
    /// The LoRAs.
    pub loras: Vec<Entry>,
}

/// A model and the LoRAs that it is opened with, by their names.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelKey {
    /// The model.
    pub model: String,
    /// LoRAs, each with its strength.
    pub loras: Vec<(String, f32)>,
}

impl Catalogue {
    /// Refuses two entries of one name.
    ///
    /// # Errors
    /// The name.
    pub fn check(&self) -> Result<(), String> {
        for entries in [&self.models, &self.loras] {
            for (at, entry) in entries.iter().enumerate() {
                if entries[..at].iter().any(|other| other.name == entry.name) {
                    return Err(format!("two are called `{}`: NAME=PATH gives another name", entry.name));
                }
            }
        }
        Ok(())
    }

    /// The model that `name` means; without a name, the first.
    ///
    /// # Errors
    /// A fault with the names that there are.
    pub fn model(&self, name: Option<&str>) -> Result<&Entry, Fault> {
        let Some(name) = name else {
            return self.models.first().ok_or_else(|| Fault::internal("the server has no model"));
        };
        let found = self.models.iter().find(|entry| entry.name == name);
        found.ok_or_else(|| unknown("model", name, &self.models))
    }

    /// The LoRA that `name` means.
    ///
    /// # Errors
    /// As [`model`](Catalogue::model).
    pub fn lora(&self, name: &str) -> Result<&Entry, Fault> {
        let found = self.loras.iter().find(|entry| entry.name == name);
        found.ok_or_else(|| unknown("LoRA", name, &self.loras))
    }
}

fn unknown(what: &str, name: &str, entries: &[Entry]) -> Fault {
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let short: String = name.chars().take(MOST_OF_NAME).collect();
    let hint = match names.is_empty() {
        true => format!("the server was started without any {what}"),
        false => format!("there are: {}", names.join(", ")),
    };
    let mut fault = Fault::not_found(what).with_hint(hint);
    fault.message = format!("there is no {what} `{short}`");
    fault.param = Some(what.to_lowercase());
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_files_unless_they_are_given() {
        let name = |text: &str| text.parse::<Entry>().map(|entry| entry.name);
        assert_eq!(name("mini"), Ok("mini".into()));
        assert_eq!(name("models/dev-q4_k_s.gguf"), Ok("dev-q4_k_s".into()));
        assert_eq!(name("models/FLUX.1-dev"), Ok("FLUX.1-dev".into()));
        assert_eq!(name("dev=/models/FLUX.1-dev/"), Ok("dev".into()));
    }

    #[test]
    fn what_could_be_a_path_is_no_name() {
        for text in ["../a=x", "a/b=x", ".hidden=x", "=x", "a b=x", "a=", "..", "/", &format!("{}=x", "a".repeat(101))]
        {
            assert!(text.parse::<Entry>().is_err(), "{text}");
        }
    }

    #[test]
    fn requests_name_nothing_else() {
        let entry = |text: &str| Entry { name: text.into(), path: text.into() };
        let catalogue = Catalogue { models: vec![entry("mini"), entry("dev")], loras: vec![] };
        assert_eq!(catalogue.model(None).map(|entry| &*entry.name), Ok("mini"));
        assert_eq!(catalogue.model(Some("dev")).map(|entry| &*entry.name), Ok("dev"));
        for name in ["", "../mini", "./mini", "/etc/passwd", "MINI", "mini\0"] {
            let refused = catalogue.model(Some(name));
            assert_eq!(
                refused.map_err(|fault| (fault.status, fault.hint.clone())),
                Err((404, Some("there are: mini, dev".into())))
            );
        }
        assert!(catalogue.lora("mini").is_err());
        assert!(Catalogue { models: vec![entry("a"), entry("a")], loras: vec![] }.check().is_err());
    }
}
