//! A bounded read position in a header.

use std::fmt;
use std::path::Path;

use pinhole_quant::gguf::MAX_HEADER_BYTES;

use crate::error::{Error, Result};
use crate::index::{CUT_SHORT, quoted};
use crate::reserve;

/// What is being read, for messages.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    /// Magic, version and counts.
    Header,
    /// The metadata entry at this position, counted from 0, whose key is not known yet.
    Entry(usize),
    /// The value of this key.
    Value(&'a str),
    /// The tensor at this position, counted from 0, whose name is not known yet.
    TensorEntry(usize),
    /// The tensor of this name.
    Tensor(&'a str),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Header => write!(f, "header"),
            At::Entry(position) => write!(f, "metadata entry {position}"),
            At::Value(key) => write!(f, "metadata {}", quoted(key)),
            At::TensorEntry(position) => write!(f, "tensor entry {position}"),
            At::Tensor(name) => write!(f, "tensor {}", quoted(name)),
        }
    }
}

/// Reads little-endian values from the front of a file, never past its end or [`MAX_HEADER_BYTES`].
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`, which are those of `path`.
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { path, bytes, position: 0 }
    }

    /// How many bytes have been read.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// How many bytes can still be read.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len().min(MAX_HEADER_BYTES) - self.position
    }

    /// An [`Error::Malformed`] of this file.
    pub(super) fn fail(&self, at: At<'_>, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::malformed(self.path, at.to_string(), expected, found)
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where there are not so many.
    pub(super) fn take(&mut self, count: usize, at: At<'_>) -> Result<&'a [u8]> {
        if count > self.remaining() {
            return Err(self.past_end(count, at));
        }
        let bytes = &self.bytes[self.position..][..count];
        self.position += count;
        Ok(bytes)
    }

    fn past_end(&self, count: usize, at: At<'_>) -> Error {
        let expected = format!("{count} bytes from byte {} on", self.position);
        if self.bytes.len() > MAX_HEADER_BYTES {
            return self.fail(at, format!("a header of at most {MAX_HEADER_BYTES} bytes"), expected);
        }
        let found = format!("the end of the file at byte {}", self.bytes.len());
        self.fail(at, expected, found).with_hint(CUT_SHORT)
    }

    fn array<const N: usize>(&mut self, at: At<'_>) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, at)?);
        Ok(array)
    }

    /// The next `u32`.
    pub(super) fn u32(&mut self, at: At<'_>) -> Result<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// The next `u64`.
    pub(super) fn u64(&mut self, at: At<'_>) -> Result<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// The next `u64`, a number of things: each takes `each` bytes or more, and there may be `limit` of them.
    /// What is returned is safe to allocate for.
    pub(super) fn count(&mut self, what: impl fmt::Display, each: usize, limit: usize, at: At<'_>) -> Result<usize> {
        let count = self.u64(at)?;
        let room = self.remaining() / each;
        match usize::try_from(count) {
            Ok(count) if count <= room.min(limit) => Ok(count),
            _ if room < limit => {
                let expected = format!("at most {room} {what} in the {} bytes that are left", self.remaining());
                Err(self.fail(at, expected, count.to_string()).with_hint(CUT_SHORT))
            }
            _ => Err(self.fail(at, format!("at most {limit} {what}"), count.to_string())),
        }
    }

    /// The next string, of at most `limit` bytes, appended to `text` as bytes that are not yet known to be UTF-8.
    pub(super) fn string_bytes(&mut self, text: &mut Vec<u8>, limit: usize, at: At<'_>) -> Result<()> {
        let length = self.count("bytes of text", 1, limit, at)?;
        reserve::grow("text in a file", text, length)?;
        text.extend_from_slice(self.take(length, at)?);
        Ok(())
    }

    /// The next string, of at most `limit` bytes.
    pub(super) fn string(&mut self, limit: usize, at: At<'_>) -> Result<String> {
        // Copied before it is checked: the file may change between the two, and a `str` must stay UTF-8.
        let mut text = Vec::new();
        self.string_bytes(&mut text, limit, at)?;
        String::from_utf8(text).map_err(|error| self.not_utf8(error.utf8_error(), at))
    }

    /// The error for text that is no UTF-8.
    pub(super) fn not_utf8(&self, error: std::str::Utf8Error, at: At<'_>) -> Error {
        self.fail(at, "text in UTF-8", error.to_string())
    }
}
