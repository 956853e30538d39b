//! `pinhole_buffer`: bytes that the library allocated.

use std::ffi::c_void;

use crate::{entry, handle};

/// `pinhole_buffer`
pub struct Buffer {
    /// With a NUL behind the last one.
    bytes: Vec<u8>,
}

impl Buffer {
    pub(crate) fn new(mut bytes: Vec<u8>) -> Buffer {
        bytes.push(0);
        Buffer { bytes }
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_buffer_data(buffer: *const Buffer) -> *const c_void {
    // SAFETY: the header's contract.
    unsafe { buffer.as_ref() }.map_or(std::ptr::null(), |buffer| buffer.bytes.as_ptr().cast())
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_buffer_size(buffer: *const Buffer) -> usize {
    // SAFETY: the header's contract.
    unsafe { buffer.as_ref() }.map_or(0, |buffer| buffer.bytes.len() - 1)
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_buffer_free(buffer: *mut Buffer) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(buffer) });
}
