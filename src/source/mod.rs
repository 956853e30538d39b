//! What a model on disk consists of: components with their weights and configurations, tokenizers, a schedule, defaults.
//!
//! A [`Source`] is opened from a bundle, a diffusers directory, or files of other tools. It knows no family: a bundle and a
//! directory name the [`Slot`] of each component; of loose files it keeps which [`Kind`](crate::bind::alias::Kind)s of
//! networks they hold, until [`Source::arranged`] gives each the place that a family has for it.

mod bundle;
mod diffusers;
mod files;
pub mod networks;
mod part;
mod place;
mod recognise;
pub mod slot;
mod tokenizers;
mod weight_file;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use bundle::VERSION;
pub use bundle::keys;
pub use files::Files;
pub use part::{HasModel, Network, Networks, Part, unused};
pub use place::Place;
pub use recognise::recognise;
pub use slot::Slot;

use crate::bind::alias::Kind;
use crate::index::{Index, Map};
use crate::{Error, Result};

use weight_file::WeightFile;

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
    /// The component in `folder`, as diffusers lays it out, for the place `slot`.
    ///
    /// # Errors
    /// Those of [`crate::safetensors::find`].
    pub fn open(folder: &Path, slot: &'static Slot) -> Result<Component> {
        diffusers::component(folder, slot)
    }

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
    /// What it says that it is: GGUF's `general.architecture` of a bundle, the pipeline's class of a diffusers directory.
    pub says: Option<String>,
    /// The name of its family, as in `general.architecture`; empty until it is [`arranged`](Source::arranged).
    pub family: &'static str,
    components: Vec<Component>,
    tokenizers: Vec<(&'static Slot, TokenizerFiles)>,
    /// Files of other tools whose networks have no place yet.
    loose: Vec<Arc<WeightFile>>,
    /// What the user gave for a slot, opened.
    given: Vec<(&'static Slot, files::Given)>,
    /// Where the tokenizers lie that the user gave.
    given_tokenizers: Vec<(&'static Slot, PathBuf)>,
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
                true => files::open_file(WeightFile::open(path)?),
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
        if file.is_bundle() { bundle::open(file) } else { files::open_file(file) }
    }

    /// The model at `base`, if there is one, with the parts that `files` gives in the place of its own.
    ///
    /// # Errors
    /// As [`open`](Source::open).
    pub fn assemble(base: Option<Source>, files: &Files) -> Result<Source> {
        files::assemble(base, files)
    }

    /// A model without parts.
    fn empty(path: &Path, layout: Layout) -> Source {
        Source {
            path: path.to_owned(),
            layout,
            says: None,
            family: "",
            components: Vec::new(),
            tokenizers: Vec::new(),
            loose: Vec::new(),
            given: Vec::new(),
            given_tokenizers: Vec::new(),
            scheduler: None,
            defaults: None,
        }
    }

    /// The same as a model of `family`, with a component, and with the tokenizer it needs if there is one, at each of `places`:
    /// what the user gave for it, what is there, or the network of its kind in a loose file.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if a file does not hold what it is given for, or if several files hold it; [`Error::Option`] if
    /// something is given for which there is no place.
    pub fn arranged(&self, family: &'static str, places: &[Place]) -> Result<Source> {
        files::arrange(Source { family, ..self.clone() }, places)
    }

    /// Whether a network of `kind` lies in a loose file, or was given for some slot.
    pub fn has_loose(&self, kind: &Kind) -> bool {
        let given = self.given.iter().any(|(_, given)| given.holds(kind));
        given || self.loose.iter().any(|file| file.has(kind))
    }

    /// Whether there is anything for `slot`: a component, or what the user gave.
    pub fn has(&self, slot: &Slot) -> bool {
        self.components.iter().any(|part| part.slot == slot) || self.given.iter().any(|(other, _)| *other == slot)
    }

    /// The component at `slot`.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if the source has none.
    pub fn component(&self, slot: &Slot) -> Result<&Component> {
        self.components.iter().find(|component| component.slot == slot).ok_or_else(|| {
            let has: Vec<&str> = self.components.iter().map(|component| component.slot.name).collect();
            let found = match has.as_slice() {
                [] => "it names no components".to_owned(),
                has => format!("it has {} and no {}", list(has), slot.name),
            };
            let hint = (self.layout == Layout::Files).then(|| format!("give one with {} FILE", slot.option));
            Error::NotAModel { path: self.path.clone(), found, hint }
        })
    }

    /// Every component there is, in the order of bundles.
    pub fn components(&self) -> impl Iterator<Item = &Component> {
        self.components.iter()
    }

    /// The tokenizer of the text encoder at `slot`.
    pub fn tokenizer(&self, slot: &Slot) -> Option<&TokenizerFiles> {
        self.tokenizers.iter().find(|(other, _)| *other == slot).map(|(_, files)| files)
    }

    /// The tokenizer of the text encoder at `slot`, which has to be there.
    ///
    /// # Errors
    /// [`Error::NotAModel`] with what would bring one.
    pub fn needed_tokenizer(&self, slot: &Slot) -> Result<&TokenizerFiles> {
        self.tokenizer(slot).ok_or_else(|| tokenizers::missing(self, slot))
    }

    /// Every index with weights, each once: those of components, and of loose files.
    pub fn indexes(&self) -> Vec<&Arc<Index>> {
        let mut indexes: Vec<&Arc<Index>> = Vec::new();
        let loose = self.loose.iter().map(|file| &file.index);
        for index in self.components.iter().map(|component| &component.index).chain(loose) {
            // All components of a bundle share one.
            if !indexes.iter().any(|known| Arc::ptr_eq(known, index)) {
                indexes.push(index);
            }
        }
        indexes
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> usize {
        let mut maps: Vec<&Arc<Map>> = self.indexes().into_iter().flat_map(|index| index.maps()).collect();
        maps.sort_by_key(|map| Arc::as_ptr(map));
        maps.dedup_by_key(|map| Arc::as_ptr(map));
        maps.iter().map(|map| map.bytes().len()).sum()
    }

    fn set_tokenizer(&mut self, slot: &'static Slot, files: TokenizerFiles) {
        self.tokenizers.retain(|(other, _)| *other != slot);
        self.tokenizers.push((slot, files));
    }
}

/// Names in a sentence.
fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
