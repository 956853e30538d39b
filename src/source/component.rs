//! The parts of a model on disk, and the texts beside them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Slot;
use crate::index::{Index, failed_text};
use crate::{Error, Result, file};

/// The weights and the configuration of one component.
#[derive(Clone, Debug)]
pub struct Component {
    /// Its place in the model.
    pub slot: &'static Slot,
    /// Where the weights are. Several components may share one index.
    pub index: Arc<Index>,
    /// What stands before this component's names there.
    pub prefix: String,
    /// How it lies on disk.
    pub layout: Layout,
    /// The text of its `config.json`, if there is one.
    pub config: Option<Text>,
    /// The file or directory, for messages.
    pub origin: PathBuf,
}

impl Component {
    /// Refuses a folder of a diffusers directory without a configuration: diffusers writes one for every component, and what
    /// shapes do not tell would be a guess.
    ///
    /// # Errors
    /// [`Error::NotAModel`].
    pub fn require_configuration(&self) -> Result<()> {
        if self.layout != Layout::Diffusers || self.config.is_some() {
            return Ok(());
        }
        Err(Error::NotAModel {
            path: self.origin.clone(),
            found: "no config.json in it".into(),
            hint: Some("the folder is incomplete: copy or download it again".into()),
        })
    }
}

/// A text from a file or a bundle's metadata, and where it came from.
#[derive(Clone, Debug)]
pub struct Text {
    /// The text.
    pub text: String,
    /// For messages.
    pub origin: PathBuf,
}

impl Text {
    /// The text of the file at `path`, if there is one.
    ///
    /// # Errors
    /// Those of [`file::text`]; [`Error::NotAModel`] if it is what a download that failed leaves.
    pub(super) fn read(path: &Path) -> Result<Option<Text>> {
        let Some(text) = file::text_if_there(path)? else { return Ok(None) };
        match failed_text(path, text.as_bytes()) {
            Some(error) => Err(error),
            None => Ok(Some(Text { text, origin: path.to_owned() })),
        }
    }
}

/// The files of a tokenizer.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    /// `tokenizer.json`, or one that is made of what lies in its place.
    pub tokenizer: Text,
    /// `tokenizer_config.json`.
    pub config: Option<Text>,
}

/// In which layout a model lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One GGUF file with everything inside, written by pinhole.
    Bundle,
    /// A diffusers directory.
    Diffusers,
    /// Files of other tools.
    Files,
}

/// Names in a sentence.
pub(super) fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
