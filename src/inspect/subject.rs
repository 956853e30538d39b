//! What is inspected.

use std::path::Path;
use std::sync::Arc;

use crate::gguf::{Gguf, Metadata};
use crate::index::{FileTensor, Index, Map, Other};
use crate::safetensors::{self, Safetensors};
use crate::source::{self, Source, keys};
use crate::{Error, Result, file, pickle};

/// Where the weights of a lone component are, in a folder of a diffusers directory.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// The kind of a safetensors file.
const SAFETENSORS: &str = "safetensors";

/// Something with tensors.
pub enum Subject {
    /// A bundle or a diffusers directory.
    Model {
        /// The model.
        source: Box<Source>,
        /// What a bundle says about itself.
        metadata: Option<Metadata>,
    },
    /// A GGUF file that is no bundle.
    Gguf(Gguf),
    /// Weights in safetensors files, or in PyTorch's own, that are no whole model.
    Safetensors {
        /// `safetensors` or `pytorch`.
        kind: &'static str,
        /// What the file says about itself.
        metadata: Vec<(String, String)>,
        /// Its tensors.
        index: Index,
    },
}

impl Subject {
    /// A model that is open already.
    pub fn model(source: Source) -> Subject {
        Subject::Model { source: Box::new(source), metadata: None }
    }

    /// Opens whatever lies at `path`.
    ///
    /// # Errors
    /// Those of [`Source::open`], [`Gguf::open`] and [`safetensors::open`].
    pub fn open(path: &Path) -> Result<Subject> {
        if file::is_directory(path)? {
            return open_directory(path);
        }
        let map = Map::open(path)?;
        if safetensors::is_index(path, map.bytes()) {
            return Ok(Subject::of_index(safetensors::open_sharded(path)?));
        }
        open_map(map)
    }

    fn of_index(index: Index) -> Subject {
        Subject::Safetensors { kind: SAFETENSORS, metadata: Vec::new(), index }
    }

    /// Every tensor once that weights can be read from, in file order, with its name.
    pub fn tensors(&self) -> Vec<(&str, &FileTensor)> {
        self.indexes().into_iter().flat_map(Index::iter).collect()
    }

    /// Every other tensor.
    pub fn others(&self) -> Vec<&Other> {
        self.indexes().into_iter().flat_map(Index::others).collect()
    }

    fn indexes(&self) -> Vec<&Index> {
        match self {
            Subject::Model { source, .. } => source.indexes().into_iter().map(Arc::as_ref).collect(),
            Subject::Gguf(gguf) => vec![&gguf.index],
            Subject::Safetensors { index, .. } => vec![index],
        }
    }

    /// Its files, each once.
    pub(super) fn maps(&self) -> Vec<Arc<Map>> {
        let mut maps: Vec<Arc<Map>> = Vec::new();
        for (_, tensor) in self.tensors() {
            if !maps.iter().any(|known| Arc::ptr_eq(known, tensor.map())) {
                maps.push(Arc::clone(tensor.map()));
            }
        }
        maps
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        let of = |index: &Index| index.maps().iter().map(|map| map.bytes().len() as u64).sum();
        match self {
            Subject::Model { source, .. } => source.bytes() as u64,
            Subject::Gguf(gguf) => of(&gguf.index),
            Subject::Safetensors { index, .. } => of(index),
        }
    }
}

fn open_directory(path: &Path) -> Result<Subject> {
    let folder = source::folder_of(path)?;
    if source::is_model(&folder) {
        return Ok(Subject::model(Source::open(path)?));
    }
    match safetensors::find(&folder, &STEMS) {
        Ok(index) => Ok(Subject::of_index(index)),
        // The library's message says what lies there.
        Err(Error::NotAModel { .. }) => Ok(Subject::model(Source::open(path)?)),
        Err(error) => Err(error),
    }
}

fn open_map(map: Arc<Map>) -> Result<Subject> {
    let bytes = map.bytes();
    if bytes.starts_with(b"GGUF") {
        let gguf = Gguf::from_map(Arc::clone(&map))?;
        return match gguf.metadata.get(keys::VERSION) {
            Some(_) => {
                let source = Box::new(Source::from_map(map)?);
                Ok(Subject::Model { source, metadata: Some(gguf.metadata) })
            }
            None => Ok(Subject::Gguf(gguf)),
        };
    }
    // The header of a safetensors file, behind its length.
    if bytes.get(8) == Some(&b'{') {
        let Safetensors { metadata, index } = Safetensors::from_map(map)?;
        return Ok(Subject::Safetensors { kind: SAFETENSORS, metadata: metadata.into_iter().collect(), index });
    }
    if pickle::begins(bytes) {
        return Ok(Subject::Safetensors { kind: "pytorch", metadata: Vec::new(), index: pickle::from_map(&map)? });
    }
    // The library's message says what the file looks like.
    Ok(Subject::model(Source::from_map(map)?))
}
