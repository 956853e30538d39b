//! Tensors that no weight can be read from.

use std::path::Path;
use std::sync::Arc;

use super::download::CUT_SHORT;
use super::extents::fold;
use super::map::Map;
use super::name::tensor_at;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// A tensor that a header names and that no weight can be read from: it is empty, or its numbers are in a format that pinhole
/// does not know. It matters only to a model that needs it.
#[derive(Clone, Debug)]
pub struct Other {
    /// Its name.
    pub name: Arc<str>,
    /// What the file calls its number format: `F4`, `type 43`.
    pub storage: String,
    /// Its extents as the file gives them, in ggml order.
    pub file_shape: Vec<usize>,
    /// How many bytes the file says that it takes; 0 if only its format would tell.
    pub bytes: usize,
    map: Arc<Map>,
    expected: String,
    found: String,
}

impl Other {
    /// The tensor `name` of `map`. `expected` and `found` say why no weight can be read from it.
    pub(crate) fn new(map: &Arc<Map>, name: &str, storage: String, expected: &str, found: String) -> Other {
        let (name, map, expected) = (name.into(), Arc::clone(map), expected.to_owned());
        Other { name, storage, file_shape: Vec::new(), bytes: 0, map, expected, found }
    }

    /// The same with its extents and its bytes, which begin at byte `start`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where they do not end at byte `limit` or before.
    pub(crate) fn placed(self, file_shape: Vec<usize>, start: usize, bytes: usize, limit: usize) -> Result<Other> {
        if start.checked_add(bytes).is_none_or(|end| end > limit) {
            return Err(past_the_end(&self.map, &self.name, start, bytes));
        }
        Ok(Other { file_shape, bytes, ..self })
    }

    /// Its shape; `None` if it is empty.
    pub fn shape(&self) -> Option<Shape> {
        fold(&self.file_shape)
    }

    /// How many numbers it has.
    pub fn numbers(&self) -> usize {
        self.shape().map_or(0, |shape| shape.elements())
    }

    /// The file that holds it.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Why no weight can be read from it.
    pub fn refusal(&self) -> Error {
        let hint = match self.shape() {
            Some(_) => "take a file with this model in another format, such as F16 or Q8_0",
            None => "the file is incomplete: take another with this model",
        };
        Error::mismatch(self.map.path(), tensor_at(&self.name), &self.expected, &self.found).with_hint(hint)
    }
}

/// The error for a tensor that ends behind its file.
pub(super) fn past_the_end(map: &Map, name: &str, start: usize, bytes: usize) -> Error {
    let found = format!("a file of {} bytes", map.bytes().len());
    let error = Error::malformed(map.path(), tensor_at(name), format!("{bytes} bytes from byte {start} on"), found);
    error.with_hint(CUT_SHORT)
}
