//! What a model on disk consists of: components with their weights and configurations, tokenizers, a schedule, defaults.
//!
//! A [`Source`] is opened from a bundle or a diffusers directory; what lies in it is told apart here, so that
//! converter and pipeline need not know.

mod bundle;
mod diffusers;
pub mod flux;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use bundle::VERSION;
pub use bundle::keys;

use crate::index::{Index, Map};
use crate::{Error, Result};

/// A part of a model with weights of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ComponentKind {
    /// The denoiser.
    Transformer,
    /// CLIP.
    TextEncoder,
    /// T5.
    TextEncoder2,
    /// The autoencoder.
    Vae,
}

impl ComponentKind {
    /// All of them, in the order in which bundles hold them.
    pub const ALL: [ComponentKind; 4] =
        [ComponentKind::Transformer, ComponentKind::TextEncoder, ComponentKind::TextEncoder2, ComponentKind::Vae];

    /// The folder in a diffusers directory, and the name in bundles and options.
    pub fn name(self) -> &'static str {
        match self {
            ComponentKind::Transformer => "transformer",
            ComponentKind::TextEncoder => "text_encoder",
            ComponentKind::TextEncoder2 => "text_encoder_2",
            ComponentKind::Vae => "vae",
        }
    }

    /// What stands before its tensors' names in a bundle: short, since ggml keeps 63 characters.
    pub fn prefix(self) -> &'static str {
        match self {
            ComponentKind::Transformer => "dit.",
            ComponentKind::TextEncoder => "te.",
            ComponentKind::TextEncoder2 => "te2.",
            ComponentKind::Vae => "vae.",
        }
    }
}

/// The weights and the configuration of one component.
#[derive(Clone, Debug)]
pub struct Component {
    /// Where the weights are. Several components may share one index.
    pub index: Arc<Index>,
    /// What stands before this component's names there.
    pub prefix: &'static str,
    /// The text of its `config.json`, where there is one.
    pub config: Option<Text>,
    /// The file or directory, for messages.
    pub origin: PathBuf,
}

/// A text from a file or a bundle's metadata, and where it came from.
#[derive(Clone, Debug)]
pub struct Text {
    /// The text.
    pub text: String,
    /// For messages.
    pub origin: PathBuf,
}

/// The files of a tokenizer.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
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
}

/// A model on disk.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file or directory.
    pub path: PathBuf,
    /// How it is laid out.
    pub layout: Layout,
    /// As in GGUF's `general.architecture`: `flux`.
    pub architecture: String,
    components: Vec<(ComponentKind, Component)>,
    /// CLIP's tokenizer.
    pub tokenizer: Option<TokenizerFiles>,
    /// T5's tokenizer.
    pub tokenizer_2: Option<TokenizerFiles>,
    /// `scheduler_config.json`.
    pub scheduler: Option<Text>,
    /// `generation_config.json`: defaults for requests.
    pub defaults: Option<Text>,
}

impl Source {
    /// Opens a bundle or a diffusers directory.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], or [`Error::NotAModel`] saying what was recognised.
    pub fn open(path: &Path) -> Result<Source> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
        if metadata.is_dir() { diffusers::open(path) } else { bundle::open(Map::open(path)?) }
    }

    /// Opens a bundle in memory.
    ///
    /// # Errors
    /// As [`open`](Source::open).
    pub fn from_map(map: Arc<Map>) -> Result<Source> {
        bundle::open(map)
    }

    /// The component `kind`.
    ///
    /// # Errors
    /// [`Error::NotAModel`] where the source has none.
    pub fn component(&self, kind: ComponentKind) -> Result<&Component> {
        let found = self.components.iter().find(|(other, _)| *other == kind);
        found.map(|(_, component)| component).ok_or_else(|| {
            let has: Vec<&str> = self.components.iter().map(|(kind, _)| kind.name()).collect();
            let found = match has.as_slice() {
                [] => "it names no components".to_owned(),
                has => format!("it has {} and no {}", list(has), kind.name()),
            };
            Error::NotAModel { path: self.path.clone(), found, hint: None }
        })
    }

    /// Every component there is.
    pub fn components(&self) -> impl Iterator<Item = (ComponentKind, &Component)> {
        self.components.iter().map(|(kind, component)| (*kind, component))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> usize {
        let mut maps: Vec<&Arc<Map>> = self.components.iter().flat_map(|(_, part)| part.index.maps()).collect();
        maps.sort_by_key(|map| Arc::as_ptr(map));
        maps.dedup_by_key(|map| Arc::as_ptr(map));
        maps.iter().map(|map| map.bytes().len()).sum()
    }
}

/// Names in a sentence.
fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
