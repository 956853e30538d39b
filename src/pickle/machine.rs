//! The stack machine that pickles are written for, without most of what it can do.
//!
//! Opcodes are those of Python's `pickletools`, protocols 2 to 5. Everything that the machine keeps was made by an opcode of its own, so that a
//! pickle takes memory in proportion to its length; that is bounded.

use std::collections::HashMap;
use std::path::Path;

use super::format::Format;
use super::globals::{self, Global};
use super::value::{Heap, Stored, Value, Viewed};
use crate::error::{Error, Result};
use crate::index::{CUT_SHORT, quoted};

/// Most bytes of a pickle. A model of ten thousand tensors has two million.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// Most dimensions of a tensor.
const MAX_DIMS: usize = 16;

/// What to do about a file that uses Python.
const NO_CODE: &str =
    "pinhole runs no code of a file: if you trust it, load it in PyTorch and save its tensors as safetensors";

/// A pickle that is being read.
pub(super) struct Machine<'a> {
    path: &'a Path,
    /// What the pickle is called in messages.
    name: &'a str,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    heap: Heap,
}

/// What a pickle made.
pub(super) struct Made {
    pub(super) value: Value,
    pub(super) heap: Heap,
    /// How many bytes it took.
    pub(super) length: usize,
}

/// Reads the pickle that `bytes` begin with, which is called `name`.
///
/// # Errors
/// [`Error::Malformed`].
pub(super) fn read(path: &Path, name: &str, bytes: &[u8]) -> Result<Made> {
    let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
    let (stack, marks, memo, heap) = (Vec::new(), Vec::new(), HashMap::new(), Heap::default());
    let mut machine = Machine { path, name, bytes, at: 0, stack, marks, memo, heap };
    while !machine.step()? {}
    let value = machine.pop()?;
    Ok(Made { value, heap: machine.heap, length: machine.at })
}

impl Machine<'_> {
    /// Follows one opcode, and says whether it was the last.
    fn step(&mut self) -> Result<bool> {
        let [opcode] = self.array()?;
        match opcode {
            b'.' => return Ok(true),
            // PROTO and FRAME say nothing that the opcodes do not.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.above_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' | b'r' | 0x94 => self.remember(opcode)?,
            b'h' | b'j' => self.recall(opcode)?,
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | b'G' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' => self.text(opcode)?,
            b'C' | b'B' | 0x8e => self.skipped_bytes(opcode)?,
            b')' | b']' | b't' | 0x85 | 0x86 | 0x87 => self.list(opcode)?,
            b'}' => self.push_dict(Vec::new()),
            b'a' | b'e' => self.append(opcode)?,
            b's' | b'u' => self.set(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'Q' => self.persistent()?,
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            _ => {
                let found = format!("opcode {opcode:#04x}");
                return Err(self.wrong("an opcode that tensors are made with", found).with_hint(NO_CODE));
            }
        }
        Ok(false)
    }

    fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::malformed(self.path, format!("{}, byte {}", self.name, self.at), expected, found)
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            let found = format!("{} until its end", self.bytes.len() - self.at);
            return Err(self.wrong(format!("{count} bytes"), found).with_hint(CUT_SHORT));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    /// A length of one, four or eight bytes.
    fn length(&mut self, width: usize) -> Result<usize> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        // More than there is of the pickle is refused where it is taken.
        Ok(usize::try_from(u64::from_le_bytes(bytes)).unwrap_or(usize::MAX))
    }

    /// A line of text.
    fn line(&mut self) -> Result<String> {
        let Some(length) = self.bytes[self.at..].iter().position(|byte| *byte == b'\n') else {
            return Err(self.wrong("the end of a line", "none").with_hint(CUT_SHORT));
        };
        let line = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn top(&self) -> Result<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(value) if self.stack.len() > floor => Ok(*value),
            _ => Err(self.wrong("a value on the stack", "none")),
        }
    }

    fn pop(&mut self) -> Result<Value> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Takes off all that lies above the last mark, and the mark.
    fn above_mark(&mut self) -> Result<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.wrong("a mark on the stack", "none")),
        }
    }

    fn push_dict(&mut self, pairs: Vec<(Value, Value)>) {
        self.stack.push(Value::Dict(self.heap.dicts.len()));
        self.heap.dicts.push(pairs);
    }

    fn remember(&mut self, opcode: u8) -> Result<()> {
        let key = match opcode {
            b'q' => u32::from_le_bytes([self.array::<1>()?[0], 0, 0, 0]),
            b'r' => u32::from_le_bytes(self.array()?),
            // Fewer entries than bytes, and those are bounded.
            _ => self.memo.len() as u32,
        };
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<()> {
        let key = match opcode {
            b'h' => u32::from_le_bytes([self.array::<1>()?[0], 0, 0, 0]),
            _ => u32::from_le_bytes(self.array()?),
        };
        match self.memo.get(&key) {
            Some(value) => self.stack.push(*value),
            None => return Err(self.wrong("a value that was remembered", format!("none as number {key}"))),
        }
        Ok(())
    }

    fn number(&mut self, opcode: u8) -> Result<()> {
        let value = match opcode {
            b'N' => Value::Nothing,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(i64::from(self.array::<1>()?[0])),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'G' => {
                self.take(8)?;
                Value::Opaque
            }
            _ => {
                let length = self.length(1)?;
                signed(self.take(length)?)
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn text(&mut self, opcode: u8) -> Result<()> {
        let width = match opcode {
            0x8c | b'U' => 1,
            0x8d => 8,
            _ => 4,
        };
        let length = self.length(width)?;
        let text = String::from_utf8_lossy(self.take(length)?).into();
        self.stack.push(Value::Text(self.heap.texts.len()));
        self.heap.texts.push(text);
        Ok(())
    }

    fn skipped_bytes(&mut self, opcode: u8) -> Result<()> {
        let width = match opcode {
            b'C' => 1,
            b'B' => 4,
            _ => 8,
        };
        let length = self.length(width)?;
        self.take(length)?;
        self.stack.push(Value::Opaque);
        Ok(())
    }

    fn list(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b')' | b']' => Vec::new(),
            b't' => self.above_mark()?,
            _ => {
                let mut items = Vec::new();
                for _ in 0x85..=opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                items
            }
        };
        self.stack.push(Value::Items(self.heap.items.len()));
        self.heap.items.push(items);
        Ok(())
    }

    fn append(&mut self, opcode: u8) -> Result<()> {
        let new = if opcode == b'e' { self.above_mark()? } else { vec![self.pop()?] };
        let list = self.top()?;
        match list {
            Value::Items(id) => self.heap.items[id].extend(new),
            _ => return Err(self.wrong("a list to append to", self.heap.describe(list))),
        }
        Ok(())
    }

    fn set(&mut self, opcode: u8) -> Result<()> {
        let new = if opcode == b'u' {
            self.above_mark()?
        } else {
            let value = self.pop()?;
            vec![self.pop()?, value]
        };
        let dict = self.top()?;
        let Value::Dict(id) = dict else {
            return Err(self.wrong("a dictionary to add to", self.heap.describe(dict)));
        };
        if !new.len().is_multiple_of(2) {
            return Err(self.wrong("keys with their values", format!("{} of both", new.len())));
        }
        self.heap.dicts[id].extend(new.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<()> {
        let [module, name] = if opcode == b'c' {
            [self.line()?, self.line()?]
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            let words = self.heap.text(module).zip(self.heap.text(name));
            let Some((module, name)) = words else { return Err(self.wrong("the name of a function", "none")) };
            [module.to_owned(), name.to_owned()]
        };
        match globals::find(&module, &name) {
            Some(global) => self.stack.push(Value::Global(global)),
            None => {
                let found = quoted(&format!("{module}.{name}"));
                return Err(self.wrong("tensors, and dictionaries of them", found).with_hint(NO_CODE));
            }
        }
        Ok(())
    }

    /// A storage, as PyTorch names one that lies outside of the pickle: `('storage', class, key, device, count)`.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let stored = match self.heap.items(id) {
            Some([kind, Value::Global(class), key, _, Value::Int(count), more @ ..])
                if self.heap.text(*kind) == Some("storage") && matches!(more, [] | [Value::Nothing]) =>
            {
                let (key, count) = (self.heap.text(*key), usize::try_from(*count).ok());
                key.zip(class.format()).zip(count).map(|((key, format), count)| Stored {
                    key: key.into(),
                    format,
                    count,
                })
            }
            _ => None,
        };
        let Some(stored) = stored else {
            return Err(self.wrong("a storage with its class, key and size", self.heap.describe(id)));
        };
        self.stack.push(Value::Storage(self.heap.storages.len()));
        self.heap.storages.push(stored);
        Ok(())
    }

    /// REDUCE and NEWOBJ: what a known function makes of its arguments.
    fn call(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else {
            return Err(self.wrong("a function to call", self.heap.describe(function)));
        };
        let Some(arguments) = self.heap.items(arguments).map(<[Value]>::to_vec) else {
            return Err(self.wrong("the arguments of a function", self.heap.describe(arguments)));
        };
        let value = match (function, &arguments[..]) {
            (Global::OrderedDict, []) => {
                self.push_dict(Vec::new());
                return Ok(());
            }
            (Global::OrderedDict, [pairs]) => {
                let pairs = self.pairs(*pairs)?;
                self.push_dict(pairs);
                return Ok(());
            }
            (Global::Size | Global::RebuildParameter, [value, ..]) => *value,
            (Global::Device, _) => Value::Opaque,
            (Global::RebuildTensor | Global::RebuildTensorV2, [storage, offset, extents, strides, ..]) => {
                self.tensor([*storage, *offset, *extents, *strides], None)?
            }
            (Global::RebuildTensorV3, [storage, offset, extents, strides, _, _, Value::Global(format), ..]) => {
                self.tensor([*storage, *offset, *extents, *strides], format.format())?
            }
            _ => return Err(self.wrong("arguments of a tensor", format!("{} others", arguments.len()))),
        };
        self.stack.push(value);
        Ok(())
    }

    /// The pairs of a list of pairs.
    fn pairs(&self, list: Value) -> Result<Vec<(Value, Value)>> {
        let mut pairs = Vec::new();
        for item in self.heap.items(list).unwrap_or_default() {
            let Some([key, value]) = self.heap.items(*item) else {
                return Err(self.wrong("keys with their values", self.heap.describe(*item)));
            };
            pairs.push((*key, *value));
        }
        Ok(pairs)
    }

    fn tensor(&mut self, [storage, offset, extents, strides]: [Value; 4], format: Option<Format>) -> Result<Value> {
        let (Value::Storage(storage), Value::Int(offset)) = (storage, offset) else {
            return Err(self.wrong("a storage of a tensor", self.heap.describe(storage)));
        };
        let offset = usize::try_from(offset).ok();
        let extents = self.heap.extents(extents).filter(|extents| extents.len() <= MAX_DIMS);
        let (Some(offset), Some((extents, strides))) = (offset, extents.zip(self.heap.extents(strides))) else {
            let expected = format!("an offset, and at most {MAX_DIMS} extents and strides of a tensor, none below 0");
            return Err(self.wrong(expected, "others"));
        };
        if extents.len() != strides.len() {
            return Err(self.wrong(format!("{} strides", extents.len()), strides.len().to_string()));
        }
        let format = format.unwrap_or_else(|| self.heap.storages[storage].format.clone());
        self.heap.tensors.push(Viewed { storage, format, offset, extents, strides });
        Ok(Value::Tensor(self.heap.tensors.len() - 1))
    }

    /// BUILD: a dictionary of modules has a version of each beside it, which nothing here depends on.
    fn build(&mut self) -> Result<()> {
        let (_, object) = (self.pop()?, self.top()?);
        match object {
            Value::Dict(_) => Ok(()),
            _ => Err(self.wrong("a dictionary to give a state to", self.heap.describe(object)).with_hint(NO_CODE)),
        }
    }
}

/// A number of any length, the lowest byte first.
fn signed(bytes: &[u8]) -> Value {
    let Some(last) = bytes.last() else { return Value::Int(0) };
    if bytes.len() > 8 {
        return Value::Opaque;
    }
    let mut whole = [if *last >= 0x80 { 0xff } else { 0 }; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(whole))
}
