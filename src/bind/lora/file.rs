//! A LoRA's file: which changes it has, under which names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::keys::{self, Part};
use super::seems;
use super::settings::{About, Adapter};
use crate::index::{FileTensor, quoted, tensor_at};
use crate::safetensors::{self, Safetensors};
use crate::{Error, Result};

/// How many names a message gives.
const NAMED: usize = 4;

/// A LoRA's file.
pub struct Lora {
    pub(super) path: PathBuf,
    pub(super) file: Safetensors,
    pub(super) adapter: Adapter,
    pub(super) modules: Vec<Module>,
    /// Tensors that are part of no change.
    pub(super) others: Vec<String>,
}

/// The change of one module.
pub(super) struct Module {
    pub(super) key: keys::Module,
    /// The tensors' names.
    pub(super) parts: BTreeMap<Part, String>,
}

impl Lora {
    /// Opens the file at `path`. Its numbers are not read.
    ///
    /// # Errors
    /// Those of [`safetensors::open`]; [`Error::Malformed`] where two tensors are the same part of one module or the training's
    /// settings cannot be read.
    pub fn open(path: &Path) -> Result<Lora> {
        let file = safetensors::open_described(path)?;
        let adapter = Adapter::read(&file.metadata, path)?;
        let (mut modules, mut others) = (BTreeMap::<String, Module>::new(), Vec::new());
        for name in file.index.names() {
            let Some((key, part)) = keys::parse(name) else {
                others.push(name.to_owned());
                continue;
            };
            if let Some(other) = file.index.other(name) {
                return Err(other.refusal());
            }
            let module = modules.entry(key.name.clone()).or_insert_with(|| Module { key, parts: BTreeMap::new() });
            if let Some(first) = module.parts.insert(part, name.to_owned()) {
                let found = format!("{} too", quoted(&first));
                return Err(Error::malformed(path, tensor_at(name), "each part of a change once", found));
            }
        }
        let modules = modules.into_values().collect();
        Ok(Lora { path: path.to_owned(), file, adapter, modules, others })
    }

    /// What its metadata say about it.
    pub fn about(&self) -> About {
        About::read(&self.file.metadata)
    }

    /// The family of models that it seems to be for, by its names.
    pub fn family(&self) -> Option<&'static str> {
        seems::family(self.modules.iter().map(|module| module.key.name.as_str()), |name: &str| {
            let module = self.modules.iter().find(|module| module.key.name == name)?;
            self.file.index.get(module.parts.get(&Part::Down)?).map(|tensor| tensor.shape.row())
        })
    }

    /// How many inputs its low-rank change of a module has that is called one of `names`; `None` if it changes none of them.
    pub fn inputs(&self, names: &[&str]) -> Option<usize> {
        for module in &self.modules {
            if module.key.readings.iter().any(|reading| names.contains(&reading.stem.as_str())) {
                return self.file.index.get(module.parts.get(&Part::Down)?).map(|tensor| tensor.shape.row());
            }
        }
        None
    }

    /// The tensor `name`, which is there.
    pub(super) fn tensor(&self, name: &str) -> Result<&FileTensor> {
        self.file.index.get(name).ok_or_else(|| Error::mismatch(&self.path, tensor_at(name), "such a tensor", "none"))
    }
}

/// Some names of many, for a message.
pub(super) fn some_of<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let shown: Vec<String> = names.take(NAMED).map(quoted).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
