//! The model that pinhole carries: a trained miniature that draws coloured shapes.

use crate::Result;
use crate::index::Map;
use crate::source::Source;

/// Aligned as a memory map is, so that weights can be used where they lie.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);

static MINI: &Aligned<[u8]> = &Aligned(*include_bytes!("../models/mini/mini.gguf"));

/// The name by which it goes.
pub const MINI_NAME: &str = "mini";

/// Opens it, from the program's own read-only data: nothing is read from disk or copied.
///
/// # Errors
/// None, unless the program was built with a damaged file.
pub fn mini() -> Result<Source> {
    Source::from_map(Map::from_static(MINI_NAME, &MINI.0)?)
}
