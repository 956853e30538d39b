//! Which model an argument means.

use std::path::Path;

use pinhole::source::Source;
use pinhole::{Result, builtin};

/// Whether `name` means the model inside the program. A file or folder of that name is `./mini`.
pub(super) fn is_built_in(name: &Path) -> bool {
    name.as_os_str() == builtin::MINI_NAME
}

/// Opens the bundle or diffusers directory `name`, or the model inside the program.
///
/// # Errors
/// Those of [`Source::open`].
pub(super) fn open(name: &Path) -> Result<Source> {
    if is_built_in(name) { builtin::mini() } else { Source::open(name) }
}

/// A short name, for people: that of the file or folder, without what marks its format.
pub(super) fn short_name(name: &Path) -> String {
    let last = name.components().next_back().map(|last| last.as_os_str().to_string_lossy().into_owned());
    let last = last.unwrap_or_else(|| name.display().to_string());
    last.strip_suffix(".gguf").map(str::to_owned).unwrap_or(last)
}
