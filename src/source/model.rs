//! A model on disk, however it is laid out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::component::list;
use super::tokenizers::Lexicon;
use super::weight_file::WeightFile;
use super::{Component, Layout, Place, Slot, Text, TokenizerFiles, recognise};
use crate::bind::alias::Kind;
use crate::index::{Index, Map};
use crate::safetensors::Set;
use crate::sample::Scheduler;
use crate::{Error, Result, file, json};

/// The most noise levels that a pipeline may be published with.
const MOST_SIGMAS: usize = 1000;

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
    pub(super) components: Vec<Component>,
    pub(super) tokenizers: Vec<(&'static Slot, TokenizerFiles)>,
    /// Files of other tools whose networks have no place yet.
    pub(super) loose: Vec<Arc<WeightFile>>,
    /// Files in the folder that could not be opened.
    pub(super) broken: Vec<Set>,
    /// What is wrong with files that could not be opened, and that nothing was missing without.
    pub(super) passed_over: Vec<String>,
    /// Folders of components that could not be opened.
    pub(super) unopened: Vec<(&'static Slot, PathBuf)>,
    /// Where tokenizers may lie.
    pub(super) lexicons: Vec<(&'static Slot, Lexicon)>,
    /// What the user gave for a slot, opened.
    pub(super) given: Vec<(&'static Slot, Given)>,
    /// The slots for which the user gave something, in the order in which it was given.
    pub(super) given_slots: Vec<&'static Slot>,
    /// The slots for which the user gave a tokenizer.
    pub(super) given_readers: Vec<&'static Slot>,
    /// Where the tokenizers lie that the user gave.
    pub(super) given_tokenizers: Vec<(&'static Slot, PathBuf)>,
    /// The LoRAs that are part of its weights, each with its strength: `style:0.8`.
    pub merged: Vec<String>,
    /// `scheduler_config.json`.
    pub scheduler: Option<Text>,
    /// `generation_config.json`: defaults for requests.
    pub defaults: Option<Text>,
    /// What a `model_index.json` says beside the components: the settings of diffusers' pipeline, as a JSON object.
    pub pipeline: Option<Text>,
    /// `preprocessor_config.json`: how the safety checker is given pictures.
    pub feature_extractor: Option<Text>,
}

/// What the user gave for a slot.
#[derive(Clone, Debug)]
pub(super) enum Given {
    /// A file with weights, perhaps of several networks, and what stands before the names of the one that is meant.
    File(Arc<WeightFile>, Option<String>),
    /// A folder of a diffusers directory.
    Folder(Box<Component>),
    /// A whole model, or a folder of files, to take a part of.
    Model(Box<Source>),
}

impl Given {
    /// Whether a network of `kind` is in it.
    pub(super) fn holds(&self, kind: &Kind) -> bool {
        match self {
            Given::File(file, _) => file.has(kind),
            Given::Folder(component) => recognise::parts(&component.index).iter().any(|part| part.kind == kind),
            Given::Model(source) => source.has_loose(kind),
        }
    }
}

impl Source {
    /// A model without parts.
    pub(super) fn empty(path: &Path, layout: Layout) -> Source {
        Source {
            path: path.to_owned(),
            layout,
            says: None,
            family: "",
            components: Vec::new(),
            tokenizers: Vec::new(),
            loose: Vec::new(),
            broken: Vec::new(),
            passed_over: Vec::new(),
            unopened: Vec::new(),
            lexicons: Vec::new(),
            given: Vec::new(),
            given_slots: Vec::new(),
            given_readers: Vec::new(),
            merged: Vec::new(),
            given_tokenizers: Vec::new(),
            scheduler: None,
            defaults: None,
            pipeline: None,
            feature_extractor: None,
        }
    }

    /// Takes the settings of the `scheduler_config.json` at `path` in the place of its own.
    ///
    /// # Errors
    /// Those of reading the file; [`Error::Mismatch`] for one that says nothing of a scheduler.
    pub fn set_scheduler(&mut self, path: &Path) -> Result<()> {
        let text = file::text(path)?;
        Scheduler::from_json(&text, path)?;
        self.scheduler = Some(Text { text, origin: path.to_owned() });
        Ok(())
    }

    /// The setting `name` of diffusers' pipeline, if the model has it.
    pub fn pipeline_setting(&self, name: &str) -> Option<serde_json::Value> {
        let settings: serde_json::Map<String, serde_json::Value> = json::read(&self.pipeline.as_ref()?.text).ok()?;
        settings.get(name).cloned()
    }

    /// The noise levels that diffusers' pipeline was published with, without the 0 behind them.
    ///
    /// # Errors
    /// [`Error::Malformed`] for what is no list of falling numbers between 0 and 1.
    pub fn sample_sigmas(&self) -> Result<Option<Vec<f32>>> {
        const NAME: &str = "sample_sigmas";
        let (Some(setting), Some(pipeline)) = (self.pipeline_setting(NAME), &self.pipeline) else { return Ok(None) };
        let sigmas: Option<Vec<f32>> = serde_json::from_value(setting.clone()).ok();
        let falling = sigmas.filter(|sigmas| {
            let within = sigmas.iter().all(|sigma| *sigma > 0.0 && *sigma <= 1.0);
            !sigmas.is_empty()
                && sigmas.len() <= MOST_SIGMAS
                && within
                && sigmas.windows(2).all(|pair| pair[0] > pair[1])
        });
        match falling {
            Some(sigmas) => Ok(Some(sigmas)),
            None => {
                let expected = format!("1 to {MOST_SIGMAS} falling numbers, above 0 and at most 1");
                Err(Error::malformed(&pipeline.origin, NAME, expected, setting.to_string()))
            }
        }
    }

    /// Whether a network of `kind` lies in a loose file, or was given for some slot.
    pub fn has_loose(&self, kind: &Kind) -> bool {
        let given = self.given.iter().any(|(_, given)| given.holds(kind));
        given || self.loose.iter().any(|file| file.has(kind))
    }

    /// Whether a network of the kind that `place` is for is there: at its slot, or in a loose file.
    pub fn holds(&self, place: &Place) -> bool {
        let at_slot = self.components.iter().any(|part| {
            part.slot == place.slot && recognise::parts(&part.index).iter().any(|found| found.kind == place.kind)
        });
        at_slot || self.has_loose(place.kind)
    }

    /// Whether a tensor, of a component or a loose file or what was given, has a name that ends with one of `ends`.
    pub fn has_tensor(&self, ends: &[&str]) -> bool {
        let ends_so = |index: &Index| index.iter().any(|(name, _)| ends.iter().any(|end| name.ends_with(end)));
        self.components.iter().any(|component| ends_so(&component.index))
            || self.loose.iter().any(|file| ends_so(&file.index))
            || self.given.iter().any(|(_, given)| match given {
                Given::File(file, _) => ends_so(&file.index),
                Given::Folder(component) => ends_so(&component.index),
                Given::Model(source) => source.has_tensor(ends),
            })
    }

    /// Whether there is anything for `slot`: a component, or what the user gave.
    pub fn has(&self, slot: &Slot) -> bool {
        self.components.iter().any(|part| part.slot == slot) || self.given.iter().any(|(other, _)| *other == slot)
    }

    /// When the user gave something for `slot`, in the place of what the model has: 1 for what was given first, 0 if nothing was.
    pub fn given_at(&self, slot: &Slot) -> usize {
        self.given_slots.iter().rposition(|given| *given == slot).map_or(0, |at| at + 1)
    }

    /// Whether the user gave a tokenizer for `slot`.
    pub fn was_given_tokenizer(&self, slot: &Slot) -> bool {
        self.given_readers.contains(&slot)
    }

    /// The component at `slot`.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if the source has none.
    pub fn component(&self, slot: &Slot) -> Result<&Component> {
        let found = self.components.iter().find(|component| component.slot == slot);
        found.ok_or_else(|| missing(self, &[(slot.name, slot.option)]))
    }

    /// Refuses a model without a part that one of `places` needs. All that are missing are named, and tokenizers of text encoders
    /// that are there.
    ///
    /// # Errors
    /// [`Error::NotAModel`].
    pub fn require(&self, places: &[Place]) -> Result<()> {
        let (mut parts, mut tokenizers) = (Vec::new(), Vec::new());
        let is_taken = |slot: &Slot| self.components.iter().any(|part| part.slot == slot);
        let needed = places.iter().filter(|place| place.needed && !place.unless.is_some_and(is_taken));
        for Place { slot, kind, .. } in needed {
            if !is_taken(slot) {
                parts.push((slot.name, slot.option));
            } else if let Some(name) = slot.tokenizer.filter(|_| kind.reads.is_some() && self.tokenizer(slot).is_none())
            {
                tokenizers.push((name, slot.tokenizer_option));
            }
        }
        // What would bring a single tokenizer is said where it is asked for.
        if parts.is_empty() && tokenizers.len() < 2 {
            return Ok(());
        }
        parts.extend(tokenizers);
        Err(missing(self, &parts))
    }

    /// Every component there is, in the order of bundles.
    pub fn components(&self) -> impl Iterator<Item = &Component> {
        self.components.iter()
    }

    /// Refuses a component of a diffusers directory without its configuration.
    ///
    /// # Errors
    /// As [`Component::require_configuration`].
    pub fn require_configurations(&self) -> Result<()> {
        self.components().try_for_each(Component::require_configuration)
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
        self.tokenizer(slot).ok_or_else(|| missing_tokenizer(self, slot))
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

    /// Where the tokenizer for `slot` may lie.
    pub(super) fn lexicons(&self, slot: &Slot) -> Vec<Lexicon> {
        let mut found = Vec::new();
        for (other, lexicon) in &self.lexicons {
            if *other == slot {
                found.push(lexicon.clone());
            }
        }
        found
    }

    /// Gives the error of the first file in the folder that could not be opened.
    pub(super) fn say_what_is_broken(&self) -> Result<()> {
        for set in &self.broken {
            WeightFile::of(set)?;
        }
        Ok(())
    }

    /// What is wrong with files beside those that the model is made of, which nothing is read from: a warning each.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// What is wrong with the files that could not be opened.
    pub(super) fn broken_files(&self) -> Vec<String> {
        let mut said = Vec::new();
        for error in self.broken.iter().filter_map(|set| WeightFile::of(set).err()) {
            said.push(format!("{error}; nothing is read from it"));
        }
        said
    }

    pub(super) fn set_tokenizer(&mut self, slot: &'static Slot, files: TokenizerFiles) {
        self.tokenizers.retain(|(other, _)| *other != slot);
        self.tokenizers.push((slot, files));
    }
}

/// The error for `source`, which lacks parts of these names, each given by its option.
fn missing(source: &Source, parts: &[(&str, &str)]) -> Error {
    let has: Vec<&str> = source.components.iter().map(|component| component.slot.name).collect();
    let lacks: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    let found = match has.as_slice() {
        [] if source.layout == Layout::Bundle => "it names no components".to_owned(),
        [] => format!("it has no {}", list(&lacks)),
        has => format!("it has {} and no {}", list(has), list(&lacks)),
    };
    let options: Vec<String> = parts.iter().map(|(_, option)| format!("{option} FILE")).collect();
    let hint = format!("give {} with {}", if parts.len() == 1 { "one" } else { "them" }, options.join(", "));
    let hint = match source.layout {
        Layout::Bundle => "the bundle is incomplete: make it again with `pinhole convert`".to_owned(),
        Layout::Diffusers | Layout::Files => hint,
    };
    Error::NotAModel { path: source.path.clone(), found, hint: Some(hint) }
}

/// The error for a text encoder at `slot` of `source` that has no tokenizer.
fn missing_tokenizer(source: &Source, slot: &Slot) -> Error {
    let name = slot.tokenizer.unwrap_or_default();
    let hint = match source.layout {
        Layout::Files => {
            let option = slot.tokenizer_option;
            format!(
                "give one with {option}: a tokenizer.json, a spiece.model, a folder with one, or a GGUF file that carries it"
            )
        }
        _ => format!("transformers writes one: AutoTokenizer.from_pretrained(DIR).save_pretrained({name:?})"),
    };
    let found = format!("it has no {name} with a tokenizer.json");
    Error::NotAModel { path: source.path.clone(), found, hint: Some(hint) }
}
