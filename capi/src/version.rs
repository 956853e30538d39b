//! Versions and features.

use std::ffi::{CStr, c_char};

/// What this build can do, by the names of the header.
const FEATURES: &[&CStr] = &[c"cpu", c"builtin-model", c"convert", c"embeddings", c"preview"];

/// A part of the package's version; 0 for one that is no number, which Cargo does not allow.
const fn part(text: &str) -> u32 {
    let (mut number, mut i) = (0, 0);
    while i < text.len() {
        number = number * 10 + (text.as_bytes()[i] - b'0') as u32;
        i += 1;
    }
    number
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn pinhole_version() -> u32 {
    const MAJOR: u32 = part(env!("CARGO_PKG_VERSION_MAJOR"));
    const MINOR: u32 = part(env!("CARGO_PKG_VERSION_MINOR"));
    const PATCH: u32 = part(env!("CARGO_PKG_VERSION_PATCH"));
    MAJOR << 22 | MINOR << 12 | PATCH
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn pinhole_version_text() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_has_feature(feature: *const c_char) -> i32 {
    if feature.is_null() {
        return 0;
    }
    // SAFETY: not NULL, and the header's contract makes it end in a NUL.
    let feature = unsafe { CStr::from_ptr(feature) };
    i32::from(FEATURES.contains(&feature))
}
