//! Who owns what a pointer from C points to.

use crate::failure::Failure;

/// Gives `value` to the caller through `out`.
///
/// # Safety
/// The header's contract for `out`.
pub(crate) unsafe fn give<T>(out: *mut *mut T, value: T) -> Result<(), Failure> {
    let place = Box::into_raw(Box::new(value));
    // SAFETY: `clear` has found it not to be NULL, and the header's contract makes it writable.
    unsafe { *out = place };
    Ok(())
}

/// Sets an output to NULL, before anything can fail.
///
/// # Safety
/// The header's contract for `out`.
pub(crate) unsafe fn clear<T>(out: *mut *mut T, name: &str) -> Result<(), Failure> {
    if out.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: not NULL, and the header's contract makes it writable.
    unsafe { *out = std::ptr::null_mut() };
    Ok(())
}

/// What a handle points to.
///
/// # Safety
/// The header's contract for `handle`; the result is not kept beyond the call.
pub(crate) unsafe fn get<'a, T>(handle: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: not NULL where it is dereferenced; the header's contract makes it one of ours and alive.
    unsafe { handle.as_ref() }.ok_or_else(|| Failure::null(name))
}

/// Takes a handle back and drops what it points to; NULL is nothing.
///
/// # Safety
/// The header's contract for `handle`, which is not used again.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: `give` made it from a box, and the header's contract says that it is freed once.
        let value = unsafe { Box::from_raw(handle) };
        crate::panics::quietly(move || drop(value));
    }
}
