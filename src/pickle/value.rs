//! What a pickle makes.

use super::format::Format;
use super::globals::Global;

/// A value on the machine's stack. What is large lies in the [`Heap`]: values may hold each other in circles, and nothing is ever freed
/// one by one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// `None`.
    Nothing,
    Bool(bool),
    Int(i64),
    /// Something that no tensor is made of: a float, bytes, a large number, a device.
    Opaque,
    Text(usize),
    /// A tuple, or a list.
    Items(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// Numbers that lie together in the file.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) key: Box<str>,
    pub(super) format: Format,
    /// How many numbers there are.
    pub(super) count: usize,
}

/// A tensor: a view of a storage. Extents and strides are in PyTorch's order, the slowest first, and count numbers.
#[derive(Clone, Debug)]
pub(super) struct Viewed {
    /// Which storage of the heap.
    pub(super) storage: usize,
    pub(super) format: Format,
    pub(super) offset: usize,
    pub(super) extents: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Everything that values refer to.
#[derive(Debug, Default)]
pub(super) struct Heap {
    pub(super) texts: Vec<Box<str>>,
    pub(super) items: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Stored>,
    pub(super) tensors: Vec<Viewed>,
}

impl Heap {
    pub(super) fn text(&self, value: Value) -> Option<&str> {
        match value {
            Value::Text(id) => self.texts.get(id).map(AsRef::as_ref),
            _ => None,
        }
    }

    /// The values of a tuple or list.
    pub(super) fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Items(id) => self.items.get(id).map(Vec::as_slice),
            _ => None,
        }
    }

    /// A tuple or list of numbers that are not negative.
    pub(super) fn extents(&self, value: Value) -> Option<Vec<usize>> {
        let mut extents = Vec::new();
        for item in self.items(value)? {
            let Value::Int(number) = item else { return None };
            extents.push(usize::try_from(*number).ok()?);
        }
        Some(extents)
    }

    /// What `value` is, for messages.
    pub(super) fn describe(&self, value: Value) -> String {
        match value {
            Value::Nothing => "None".into(),
            Value::Bool(_) => "a bool".into(),
            Value::Int(number) => number.to_string(),
            Value::Opaque => "something else".into(),
            Value::Text(_) => "a text".into(),
            Value::Items(id) => format!("a list of {}", self.items.get(id).map_or(0, Vec::len)),
            Value::Dict(_) => "a dictionary".into(),
            Value::Global(_) => "a function".into(),
            Value::Storage(_) => "a storage".into(),
            Value::Tensor(_) => "a tensor".into(),
        }
    }
}
