//! From what a pickle made to an index: names, and where the numbers lie.

use std::ops::Range;
use std::sync::Arc;

use super::format::Format;
use super::machine::Made;
use super::value::{Heap, Value, Viewed};
use crate::error::{Error, Result};
use crate::index::{Entry, FileTensor, Form, Index, Map, Other, Storage, check_name, extents_needed, tensor_at};
use crate::reserve;

/// Where a training keeps the model beside its other state.
const STATE: &str = "state_dict";

/// What a lone tensor is called.
const ALONE: &str = "tensor";

/// How deep dictionaries lie within each other, at most.
const MAX_DEPTH: usize = 16;

/// How many values are looked at, at most: dictionaries that hold each other several times are many more than a file has bytes.
const MAX_VALUES: usize = 1 << 20;

/// How many bytes of numbers are copied, at most, because they lie apart from each other.
const MAX_COPIED: usize = 256 << 20;

/// Where the bytes of the storage with a key lie.
type Places<'a> = &'a dyn Fn(&str) -> Result<Option<Range<usize>>>;

/// The tensors of `made`, whose storages lie in `map` as `places` says.
pub(super) fn index(map: &Arc<Map>, made: &Made, places: Places<'_>) -> Result<Index> {
    let heap = &made.heap;
    let mut named = Named { heap, map, found: Vec::new(), values: 0 };
    match state(heap, made.value) {
        lone @ Value::Tensor(_) => named.add(ALONE, lone, 0)?,
        all => named.add("", all, 0)?,
    }
    if named.found.is_empty() {
        let found = "a file of PyTorch's without a tensor".into();
        let hint = Some("give a file with weights".into());
        return Err(Error::NotAModel { path: map.path().to_owned(), found, hint });
    }
    let mut placing = Placing { heap, map, places, copied: 0, copies: Vec::new() };
    let mut entries = Vec::with_capacity(named.found.len());
    for (name, tensor) in named.found {
        entries.push((placing.entry(&name, &heap.tensors[tensor])?, name));
    }
    let mut index = Index::of(map);
    for copy in placing.copies {
        index.append(Index::of(&copy))?;
    }
    for (entry, name) in entries {
        index.insert(name.into(), entry)?;
    }
    Ok(index)
}

/// The model in what a training saved.
fn state(heap: &Heap, value: Value) -> Value {
    let Value::Dict(id) = value else { return value };
    let state = heap.dicts[id].iter().find(|(key, _)| heap.text(*key) == Some(STATE));
    state.map_or(value, |(_, state)| *state)
}

/// Tensors with their names.
struct Named<'a> {
    heap: &'a Heap,
    map: &'a Map,
    found: Vec<(String, usize)>,
    values: usize,
}

impl Named<'_> {
    /// Adds the tensors in `value`, which is called `name`.
    fn add(&mut self, name: &str, value: Value, depth: usize) -> Result<()> {
        self.values += 1;
        if self.values > MAX_VALUES || depth > MAX_DEPTH {
            let expected = format!("at most {MAX_VALUES} values, {MAX_DEPTH} within each other");
            return Err(Error::malformed(self.map.path(), "data.pkl", expected, "more"));
        }
        let within = |word: &str| if name.is_empty() { word.to_owned() } else { format!("{name}.{word}") };
        match value {
            Value::Tensor(id) => {
                check_name(self.map.path(), name)?;
                self.found.push((name.to_owned(), id));
            }
            Value::Items(id) => {
                for (at, item) in self.heap.items[id].iter().enumerate() {
                    if holds(*item) {
                        self.add(&within(&at.to_string()), *item, depth + 1)?;
                    }
                }
            }
            Value::Dict(id) => {
                for (key, item) in self.heap.dicts[id].iter().filter(|(_, item)| holds(*item)) {
                    let word = match key {
                        Value::Int(number) => number.to_string(),
                        key => self.heap.text(*key).unwrap_or_default().to_owned(),
                    };
                    self.add(&within(&word), *item, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether tensors may be in a value.
fn holds(value: Value) -> bool {
    matches!(value, Value::Tensor(_) | Value::Items(_) | Value::Dict(_))
}

/// Tensors on the way to their places.
struct Placing<'a> {
    heap: &'a Heap,
    map: &'a Arc<Map>,
    places: Places<'a>,
    copied: usize,
    copies: Vec<Arc<Map>>,
}

impl Placing<'_> {
    fn entry(&mut self, name: &str, tensor: &Viewed) -> Result<Entry> {
        let path = self.map.path();
        let stored = &self.heap.storages[tensor.storage];
        let fail = |expected: String, found: String| Err(Error::malformed(path, tensor_at(name), expected, found));
        let Some(place) = (self.places)(&stored.key)? else {
            return fail("the numbers of its storage".into(), "none in the file".into());
        };
        if stored.count.checked_mul(stored.format.width()) != Some(place.len()) {
            let expected = format!("{} numbers of {} bytes in its storage", stored.count, stored.format.width());
            return fail(expected, format!("{} bytes", place.len()));
        }
        let width = tensor.format.width();
        let count = tensor.extents.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
        let Some(reach) = reach(tensor).filter(|reach| reach.checked_mul(width).is_some_and(|end| end <= place.len()))
        else {
            let found =
                format!("extents {:?} and strides {:?} from {} on", tensor.extents, tensor.strides, tensor.offset);
            return fail(format!("numbers among the {} of its storage", place.len() / width.max(1)), found);
        };
        let start = place.start + tensor.offset * width;
        let dims: Vec<usize> = tensor.extents.iter().rev().copied().collect();
        let storage = match tensor.format {
            Format::Known(storage) => storage,
            Format::Untyped => return fail("a number format".into(), "bytes".into()),
            Format::Other(format, _) => {
                let bytes = (reach - tensor.offset.min(reach)) * width;
                let expected = "a float of 8 to 64 bits, an integer or a bool";
                let other = Other::new(self.map, name, format.into(), expected, format.into());
                return other.placed(dims, start.min(place.end), bytes, place.end).map(Entry::Other);
            }
        };
        if let Some(expected) = extents_needed(storage, &dims) {
            let other = Other::new(self.map, name, storage.name().into(), &expected, format!("{:?}", tensor.extents));
            return other.placed(dims, place.start, 0, place.end).map(Entry::Other);
        }
        if is_contiguous(tensor) {
            return Form::new(path, name, storage, dims)?.place(self.map, name, start).map(Entry::Tensor);
        }
        if count.is_none_or(|count| count > stored.count) {
            return fail("numbers that lie in the file once each".into(), format!("strides {:?}", tensor.strides));
        }
        self.copy(name, tensor, storage, dims, start).map(Entry::Tensor)
    }

    /// A tensor whose numbers lie apart from each other, as a transposed one's do: with a copy of them.
    fn copy(
        &mut self,
        name: &str,
        tensor: &Viewed,
        storage: Storage,
        dims: Vec<usize>,
        start: usize,
    ) -> Result<FileTensor> {
        let path = self.map.path();
        let form = Form::new(path, name, storage, dims)?;
        self.copied = self.copied.saturating_add(form.bytes());
        if self.copied > MAX_COPIED {
            let expected = format!("numbers one behind the other, beyond the first {MAX_COPIED} bytes");
            let error = Error::malformed(path, tensor_at(name), expected, format!("strides {:?}", tensor.strides));
            return Err(
                error.with_hint("in PyTorch, make the tensors contiguous() and save them again, or save safetensors")
            );
        }
        let width = tensor.format.width();
        let mut bytes = reserve::room("a tensor of a file", form.bytes())?;
        let mut at = vec![0; tensor.extents.len()];
        for _ in 0..form.bytes() / width {
            let offset: usize = at.iter().zip(&tensor.strides).map(|(at, stride)| at * stride).sum();
            bytes.extend_from_slice(&self.map.bytes()[start + offset * width..][..width]);
            for (at, extent) in at.iter_mut().zip(&tensor.extents).rev() {
                *at += 1;
                if *at < *extent {
                    break;
                }
                *at = 0;
            }
        }
        let copy = Map::from_bytes(path, &bytes)?;
        self.copies.push(Arc::clone(&copy));
        form.place(&copy, name, 0)
    }
}

/// Where the last number of a tensor ends, counted in numbers from the start of its storage.
fn reach(tensor: &Viewed) -> Option<usize> {
    if tensor.extents.contains(&0) {
        return Some(0);
    }
    let mut last = tensor.offset;
    for (extent, stride) in tensor.extents.iter().zip(&tensor.strides) {
        last = last.checked_add((extent - 1).checked_mul(*stride)?)?;
    }
    last.checked_add(1)
}

/// Whether the numbers of a tensor lie one behind the other, the last extent's first.
fn is_contiguous(tensor: &Viewed) -> bool {
    let mut expected = 1usize;
    for (extent, stride) in tensor.extents.iter().zip(&tensor.strides).rev() {
        if *extent != 1 && *stride != expected {
            return false;
        }
        expected = expected.saturating_mul(*extent);
    }
    true
}
