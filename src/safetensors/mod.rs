//! safetensors files, alone or in shards, validated before anything is used.
//!
//! A file is the length of its header (`u64`), a JSON header and the tensors' bytes without gaps. The crate `safetensors` would
//! refuse a whole file for one tensor of a format that it does not know, lets duplicate keys pass, and its errors name no tensor:
//! so headers are read and checked here.

mod file;
mod find;
mod header;
mod open;
mod set;
mod sharded;

pub use file::Safetensors;
pub use find::find;
pub use open::{open, open_described};
pub use set::{Numbered, Set, sets};
pub(crate) use sharded::is_index;
pub use sharded::open_sharded;

/// Whether a file of `length` bytes that begins with `start` begins as these files do: with the length of a header, and the
/// header.
pub(crate) fn begins(start: &[u8], length: u64) -> bool {
    let header = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    start.get(8) == Some(&b'{') && header.is_some_and(|header| header < length)
}
