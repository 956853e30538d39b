//! What every weight file comes down to: names, and where in a read-only map each tensor's bytes lie.
//!
//! The readers of the two formats ([`crate::gguf`], [`crate::safetensors`]) check a file's header once and give an
//! [`Index`]. Code that holds one may rely on it: names are unique, every [`FileTensor`] has a shape that ggml can hold,
//! and exactly the bytes that its shape and storage take, inside the file and shared with no other tensor. A tensor that is
//! empty or in an unknown format is an [`Other`]: only a model that needs it is refused.

mod arriving;
mod download;
mod extents;
mod lost;
mod map;
mod name;
mod other;
mod stamp;
mod storage;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use arriving::{Arriving, Expected, Expecting, expect};
pub(crate) use download::{CUT_SHORT, failed_text, failed_weights, looks_like};
pub(crate) use extents::{extents_needed, fold};
#[cfg(unix)]
pub use lost::on_lost_page;
pub use map::{MAP_ALIGNMENT, Map};
pub(crate) use name::{check_name, quoted, tensor_at};
pub use other::Other;
pub use stamp::Stamp;
pub use storage::Storage;

use crate::error::{Error, Result};
use crate::tensor::Shape;

/// A tensor in a file.
#[derive(Clone, Debug)]
pub struct FileTensor {
    /// How the file stores its numbers.
    pub storage: Storage,
    /// Its shape. Where the file has more than four dimensions, the slowest are merged: `[a, b, c, d, e]` is
    /// `[a, b, c, d*e]`, which leaves the bytes as they are. Of a tensor that ComfyUI-GGUF reshaped, the shape that it had.
    pub shape: Shape,
    /// Its extents as the file gives them, in ggml order; one `1` for a single number.
    pub file_shape: Vec<usize>,
    map: Arc<Map>,
    /// Lies inside the map: [`Form::place`] is the only constructor.
    range: Range<usize>,
}

impl FileTensor {
    /// Its bytes: as many as [`Storage::bytes`] says for its shape. Of a file that is on its way, they are waited for, and zeros where they do
    /// not come.
    pub fn bytes(&self) -> &[u8] {
        // The code that fetches the file says what is wrong, and gives up what is made of it.
        let _ = self.map.wait(&self.range);
        &self.map.bytes()[self.range.clone()]
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.range.len()
    }

    /// Where its first byte lies, counted from the start of the map. Files align tensors to what they like; see
    /// [`Gguf::alignment`](crate::gguf::Gguf::alignment).
    pub fn offset(&self) -> usize {
        self.range.start
    }

    /// The map that holds its bytes.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// The file that holds its bytes.
    pub fn path(&self) -> &Path {
        self.map.path()
    }
}

/// The tensors of one file or of several that belong together, in file order.
#[derive(Clone, Debug, Default)]
pub struct Index {
    tensors: Vec<(Arc<str>, FileTensor)>,
    others: Vec<Other>,
    by_name: HashMap<Arc<str>, At>,
    maps: Vec<Arc<Map>>,
}

/// Where in an index a tensor is.
#[derive(Clone, Copy, Debug)]
enum At {
    Tensor(usize),
    Other(usize),
}

impl Index {
    /// An index of `map` without tensors yet.
    pub(crate) fn of(map: &Arc<Map>) -> Index {
        Index { maps: vec![Arc::clone(map)], ..Index::default() }
    }

    /// The tensor `name`, if weights can be read from it.
    pub fn get(&self, name: &str) -> Option<&FileTensor> {
        match self.by_name.get(name)? {
            At::Tensor(position) => Some(&self.tensors[*position].1),
            At::Other(_) => None,
        }
    }

    /// The tensor `name`, if no weight can be read from it.
    pub fn other(&self, name: &str) -> Option<&Other> {
        match self.by_name.get(name)? {
            At::Tensor(_) => None,
            At::Other(position) => Some(&self.others[*position]),
        }
    }

    /// The shape of the tensor `name`, whether weights can be read from it or not; `None` also if it is empty.
    pub fn shape(&self, name: &str) -> Option<Shape> {
        match self.by_name.get(name)? {
            At::Tensor(position) => Some(self.tensors[*position].1.shape),
            At::Other(position) => self.others[*position].shape(),
        }
    }

    /// Whether there is a tensor `name`, whether weights can be read from it or not.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensors that no weight can be read from, in file order.
    pub fn others(&self) -> &[Other] {
        &self.others
    }

    /// The names of all tensors: those that weights can be read from, then the others.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        let others = self.others.iter().map(|other| other.name.as_ref());
        self.tensors.iter().map(|(name, _)| name.as_ref()).chain(others)
    }

    /// All tensors that weights can be read from, with their names, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &FileTensor)> + Clone {
        self.tensors.iter().map(|(name, tensor)| (name.as_ref(), tensor))
    }

    /// How many tensors there are that weights can be read from.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The files, in the order in which they were added.
    pub fn maps(&self) -> &[Arc<Map>] {
        &self.maps
    }

    /// Adds every tensor of `other`: another shard of the same model.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where a name is in both. The index is incomplete then.
    pub fn append(&mut self, other: Index) -> Result<()> {
        self.maps.extend(other.maps);
        for (name, tensor) in other.tensors {
            self.insert(name, Entry::Tensor(tensor))?;
        }
        other.others.into_iter().try_for_each(|other| self.insert(Arc::clone(&other.name), Entry::Other(other)))
    }

    /// Adds a tensor at the end. Its map must be among the index's.
    pub(crate) fn insert(&mut self, name: Arc<str>, entry: Entry) -> Result<()> {
        if let Some(first) = self.by_name.get(&name) {
            let found = format!("another in {}", self.path_at(*first).display());
            return Err(Error::malformed(entry.path(), tensor_at(&name), "a name that is used once", found));
        }
        match entry {
            Entry::Tensor(tensor) => {
                self.by_name.insert(Arc::clone(&name), At::Tensor(self.tensors.len()));
                self.tensors.push((name, tensor));
            }
            Entry::Other(other) => {
                self.by_name.insert(name, At::Other(self.others.len()));
                self.others.push(other);
            }
        }
        Ok(())
    }

    fn path_at(&self, at: At) -> &Path {
        match at {
            At::Tensor(position) => self.tensors[position].1.path(),
            At::Other(position) => self.others[position].path(),
        }
    }

    /// Refuses tensors that share bytes. For the index of a single file.
    pub(crate) fn check_disjoint(&self) -> Result<()> {
        let mut by_offset: Vec<_> = self.iter().collect();
        by_offset.sort_by_key(|(_, tensor)| tensor.offset());
        for pair in by_offset.windows(2) {
            let [(before, first), (name, second)] = pair else { continue };
            if first.range.end > second.range.start {
                let expected = format!("bytes of its own, from byte {} on", first.range.end);
                let found = format!("byte {}, inside {}", second.range.start, tensor_at(before));
                return Err(Error::malformed(second.path(), tensor_at(name), expected, found));
            }
        }
        Ok(())
    }
}

/// A tensor of a header.
pub(crate) enum Entry {
    /// One that weights can be read from.
    Tensor(FileTensor),
    /// One that they cannot be read from.
    Other(Other),
}

impl Entry {
    /// How many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Entry::Tensor(tensor) => tensor.size(),
            Entry::Other(other) => other.bytes,
        }
    }

    /// The file that holds it.
    pub(super) fn path(&self) -> &Path {
        match self {
            Entry::Tensor(tensor) => tensor.path(),
            Entry::Other(other) => other.path(),
        }
    }
}

/// What a header says of one tensor, found possible: everything but its place.
pub(crate) struct Form {
    storage: Storage,
    shape: Shape,
    file_shape: Vec<usize>,
    bytes: usize,
}

impl Form {
    /// Checks a tensor's type and extents (ggml order) against each other.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where an extent is zero, a block does not divide the row, or the size overflows.
    pub(crate) fn new(path: &Path, name: &str, storage: Storage, mut file_shape: Vec<usize>) -> Result<Form> {
        let fail = |expected: String| {
            let found = format!("{storage} {file_shape:?}");
            Error::malformed(path, tensor_at(name), expected, found)
        };
        if let Some(expected) = extents_needed(storage, &file_shape) {
            return Err(fail(expected));
        }
        let shape = fold(&file_shape).ok_or_else(|| fail("a size that memory can hold".into()))?;
        let bytes = storage.bytes(&shape).ok_or_else(|| fail("a size that memory can hold".into()))?;
        if file_shape.is_empty() {
            file_shape.push(1);
        }
        Ok(Form { storage, shape, file_shape, bytes })
    }

    /// The bytes that the tensor takes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The tensor, with its first byte at `start` of the map.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where it does not end inside the map.
    pub(crate) fn place(self, map: &Arc<Map>, name: &str, start: usize) -> Result<FileTensor> {
        let end = start.checked_add(self.bytes).filter(|&end| end <= map.bytes().len());
        let end = end.ok_or_else(|| other::past_the_end(map, name, start, self.bytes))?;
        let Form { storage, shape, file_shape, .. } = self;
        Ok(FileTensor { storage, shape, file_shape, map: Arc::clone(map), range: start..end })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pinhole_quant::DType;

    use super::*;

    fn form(storage: impl Into<Storage>, dims: &[usize]) -> Result<Form> {
        Form::new(Path::new("f"), "w", storage.into(), dims.to_vec())
    }

    #[test]
    fn extra_dimensions_fold_into_the_slowest() {
        let form = form(DType::F32, &[2, 2, 1, 16, 1536]).unwrap();
        assert_eq!(form.shape, [2, 2, 1, 16 * 1536]);
        assert_eq!(form.file_shape, [2, 2, 1, 16, 1536]);
        assert_eq!(form.bytes(), 2 * 2 * 16 * 1536 * 4);
        assert_eq!(fold(&[1; 7]), Shape::new(&[1]));
        assert_eq!(fold(&[1, 1, 1, usize::MAX, 2]), None);
    }

    #[test]
    fn a_single_number_has_one_extent() {
        let form = form(DType::F16, &[]).unwrap();
        assert_eq!((form.shape, form.bytes()), (Shape::new(&[1]).unwrap(), 2));
        assert_eq!(form.file_shape, [1]);
    }

    #[test]
    fn impossible_forms_say_why() {
        let message = |result: Result<Form>| result.err().unwrap().to_string();
        let zero = message(form(DType::F32, &[3, 0]));
        assert_eq!(zero, "f: tensor `w`: expected extents of at least 1, found f32 [3, 0]");
        assert!(message(form(DType::Q4_K, &[100])).contains("a multiple of 256 numbers, found q4_k [100]"));
        assert!(message(form(Storage::U64, &[1 << 61])).contains("that memory can hold"));
        assert!(message(form(DType::F32, &[1 << 40, 1 << 40])).contains("that memory can hold"));
    }

    #[test]
    fn tensors_stay_inside_the_map() {
        let map = Map::from_bytes("f", &[9; 100]).unwrap();
        let at = |start| form(DType::F32, &[5]).unwrap().place(&map, "w", start);
        assert_eq!(at(80).unwrap().bytes(), [9; 20]);
        assert_eq!(at(80).unwrap().offset(), 80);
        let error = at(81).unwrap_err().to_string();
        assert_eq!(error, "f: tensor `w`: expected 20 bytes from byte 81 on, found a file of 100 bytes");
        assert!(at(usize::MAX).is_err());
    }

    #[test]
    fn an_index_keeps_order_and_refuses_doubles() {
        let map = Map::from_bytes("f", &[0; 100]).unwrap();
        let tensor = |start| form(Storage::U8, &[10]).unwrap().place(&map, "w", start).unwrap();
        let mut index = Index::of(&map);
        for (name, start) in [("z", 0), ("a", 20), ("m", 10)] {
            index.insert(name.into(), Entry::Tensor(tensor(start))).unwrap();
        }
        assert_eq!(index.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["z", "a", "m"]);
        assert_eq!(index.get("m").map(FileTensor::offset), Some(10));
        assert!(index.get("x").is_none());
        index.check_disjoint().unwrap();

        let mut other = Index::of(&Map::from_bytes("g", &[]).unwrap());
        other.insert("a".into(), Entry::Tensor(tensor(95 - 10))).unwrap();
        let error = index.clone().append(other).unwrap_err().to_string();
        assert_eq!(error, "f: tensor `a`: expected a name that is used once, found another in f");

        index.insert("late".into(), Entry::Tensor(tensor(29))).unwrap();
        let error = index.check_disjoint().unwrap_err().to_string();
        assert!(error.contains("from byte 30 on, found byte 29, inside tensor `a`"), "{error}");
    }
}
