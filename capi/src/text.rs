//! Text to and from C.

use std::ffi::{CStr, CString, c_char};

use crate::failure::Failure;

/// The text at `text`, or `None` for NULL. `name` is what the header calls it.
///
/// # Safety
/// The header's contract for `text`; the result is not kept beyond the call.
pub(crate) unsafe fn optional<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and the header's contract makes it end in a NUL.
    let bytes = unsafe { CStr::from_ptr(text) };
    bytes.to_str().map(Some).map_err(|error| {
        let found = format!("{name}: expected UTF-8, found another byte at {}", error.valid_up_to());
        Failure::argument(found, "all text is UTF-8 here, paths included: convert it first")
    })
}

/// The text at `text`, which must be there.
///
/// # Safety
/// As [`optional`].
pub(crate) unsafe fn required<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    unsafe { optional(text, name) }?.ok_or_else(|| Failure::null(name))
}

/// `text` for C; a NUL inside, which only a file can have put there, is shown as U+FFFD.
pub(crate) fn owned(text: String) -> CString {
    CString::new(text).unwrap_or_else(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).replace('\0', "\u{FFFD}");
        CString::new(text).unwrap_or_default()
    })
}

/// `text` in an array, cut between two letters where it is too long.
pub(crate) fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut end = text.len().min(N.saturating_sub(1));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut array = [0; N];
    array.iter_mut().zip(&text.as_bytes()[..end]).for_each(|(to, &byte)| *to = byte as c_char);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_too_long_is_cut_between_letters() {
        assert_eq!(fixed::<4>("abcdef"), [97, 98, 99, 0]);
        assert_eq!(fixed::<4>("ab\u{e9}"), [97, 98, 0, 0]);
        assert_eq!(fixed::<4>(""), [0; 4]);
    }
}
