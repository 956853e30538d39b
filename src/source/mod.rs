//! What a model on disk consists of: components with their weights and configurations, tokenizers, a schedule, defaults.
//!
//! A [`Source`] is opened from a bundle, a diffusers directory, or files of other tools; what lies in it is told apart
//! here, so that converter and pipeline need not know.

mod bundle;
mod diffusers;
mod files;
pub mod flux;
mod recognise;
mod tokenizers;
mod weight_file;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use bundle::VERSION;
pub use bundle::keys;
pub use files::Files;
pub use recognise::recognise;

use crate::index::{Index, Map};
use crate::{Error, Result};

use weight_file::WeightFile;

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

    /// What it is called in a sentence.
    pub fn words(self) -> &'static str {
        match self {
            ComponentKind::Transformer => "transformer",
            ComponentKind::TextEncoder => "CLIP text encoder",
            ComponentKind::TextEncoder2 => "T5 text encoder",
            ComponentKind::Vae => "autoencoder",
        }
    }

    /// The option that gives its file.
    pub fn option(self) -> &'static str {
        match self {
            ComponentKind::Transformer => "--transformer",
            ComponentKind::TextEncoder => "--text-encoder",
            ComponentKind::TextEncoder2 => "--text-encoder-2",
            ComponentKind::Vae => "--vae",
        }
    }

    /// The name of its tokenizer, in diffusers directories and bundles.
    pub fn tokenizer(self) -> Option<&'static str> {
        match self {
            ComponentKind::TextEncoder => Some("tokenizer"),
            ComponentKind::TextEncoder2 => Some("tokenizer_2"),
            ComponentKind::Transformer | ComponentKind::Vae => None,
        }
    }
}

/// The weights and the configuration of one component.
#[derive(Clone, Debug)]
pub struct Component {
    /// Where the weights are. Several components may share one index.
    pub index: Arc<Index>,
    /// What stands before this component's names there.
    pub prefix: String,
    /// How it lies on disk.
    pub layout: Layout,
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
    /// Files of other tools.
    Files,
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
    /// Opens a bundle, a diffusers directory, a file of another tool with parts of a model, or a folder with such files.
    /// Parts may be missing; whoever needs one asks for it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], or [`Error::NotAModel`] saying what was recognised.
    pub fn open(path: &Path) -> Result<Source> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
        if !metadata.is_dir() {
            return match WeightFile::is_shard_index(path) {
                true => files::open_file(&WeightFile::open(path)?),
                false => Source::from_map(Map::open(path)?),
            };
        }
        if diffusers::is_model(path) {
            return diffusers::open(path);
        }
        files::open_folder(path)?.ok_or_else(|| diffusers::no_model(path))
    }

    /// Opens a file in memory, as [`open`](Source::open) does.
    ///
    /// # Errors
    /// As [`open`](Source::open).
    pub fn from_map(map: Arc<Map>) -> Result<Source> {
        let file = WeightFile::from_map(map)?;
        if file.is_bundle() { bundle::open(file) } else { files::open_file(&file) }
    }

    /// The model at `base`, if there is one, with the parts that `files` gives in the place of its own.
    ///
    /// # Errors
    /// As [`open`](Source::open), and [`Error::NotAModel`] where a file does not hold what it is given for.
    pub fn assemble(base: Option<Source>, files: &Files) -> Result<Source> {
        files::assemble(base, files)
    }

    /// A FLUX model without parts.
    fn empty(path: &Path, layout: Layout) -> Source {
        Source {
            path: path.to_owned(),
            layout,
            architecture: FLUX.into(),
            components: Vec::new(),
            tokenizer: None,
            tokenizer_2: None,
            scheduler: None,
            defaults: None,
        }
    }

    /// Where the tokenizer of `kind` is kept; `None` for a part that needs none.
    fn tokenizer_of(&mut self, kind: ComponentKind) -> Option<&mut Option<TokenizerFiles>> {
        match kind {
            ComponentKind::TextEncoder => Some(&mut self.tokenizer),
            ComponentKind::TextEncoder2 => Some(&mut self.tokenizer_2),
            ComponentKind::Transformer | ComponentKind::Vae => None,
        }
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
            let hint = (self.layout == Layout::Files).then(|| format!("give one with {} FILE", kind.option()));
            Error::NotAModel { path: self.path.clone(), found, hint }
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

/// FLUX in GGUF's `general.architecture`.
pub(crate) const FLUX: &str = "flux";

/// Names in a sentence.
fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
