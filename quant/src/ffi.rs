//! The only unsafe code of this crate and its only use of ggml.

#![allow(unsafe_code)] // each call below names what makes it right

use ggml_sys::{self as ggml, Caught, guard};

use crate::DType;

/// Room for some blocks, aligned as the strictest of ggml's block types are (those that hold an f32 or a pair of halves).
#[repr(align(4))]
struct Scratch([u8; 4096]);

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(align_of::<Scratch>())
}

type ToFloat = unsafe extern "C-unwind" fn(*const std::ffi::c_void, *mut f32, i64);

/// ggml's function from `dtype` to f32, where it has one. F32 itself, integers and activation formats have none.
fn to_float(dtype: DType) -> Option<ToFloat> {
    // SAFETY: `dtype` is one of ggml's ids (a test holds the tables against each other), so the pointer is to a static.
    unsafe { (*ggml::ggml_get_type_traits(dtype.id())).to_float }
}

/// Whether ggml reads `dtype` back to f32 by a function of its own.
pub(crate) fn can_dequantize(dtype: DType) -> bool {
    to_float(dtype).is_some()
}

/// Whether ggml refuses to write `dtype` without an importance matrix.
pub(crate) fn needs_importance(dtype: DType) -> bool {
    // SAFETY: takes any number and compares it.
    unsafe { ggml::ggml_quantize_requires_imatrix(dtype.id()) }
}

/// Blocks of `dtype` to f32, or `None` where ggml has no function for it.
///
/// The caller has checked that `bytes` is exactly the row of `out.len()` numbers; it may lie at any address.
pub(crate) fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Option<Result<(), Caught>> {
    let convert = to_float(dtype)?;
    debug_assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()));
    if is_aligned(bytes) {
        return Some(call(convert, bytes, out));
    }
    let mut scratch = Scratch([0; 4096]);
    let blocks = scratch.0.len() / dtype.block_bytes();
    let parts = bytes.chunks(blocks * dtype.block_bytes()).zip(out.chunks_mut(blocks * dtype.block_size()));
    for (bytes, out) in parts {
        let aligned = &mut scratch.0[..bytes.len()];
        aligned.copy_from_slice(bytes);
        if let Err(caught) = call(convert, aligned, out) {
            return Some(Err(caught));
        }
    }
    Some(Ok(()))
}

fn call(convert: ToFloat, bytes: &[u8], out: &mut [f32]) -> Result<(), Caught> {
    // SAFETY: `bytes` is aligned and holds the blocks of `out.len()` numbers, which the callers have seen to, and `out` is
    // writable for as many.
    guard(|| unsafe { convert(bytes.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) })
}

/// Rows of `row_len` numbers each as blocks of `dtype`, with no importance matrix.
///
/// The caller has checked that ggml writes `dtype`, that blocks divide `row_len`, that rows are whole, and that `out` is
/// exactly as long as they need.
pub(crate) fn quantize(dtype: DType, rows: &[f32], row_len: usize, out: &mut [u8]) -> Result<(), Caught> {
    debug_assert_eq!(dtype.row_bytes(row_len).map(|row| row * (rows.len() / row_len)), Some(out.len()));
    if is_aligned(out) {
        return quantize_into(dtype, rows, row_len, out.as_mut_ptr());
    }
    let mut aligned = vec![0u32; out.len().div_ceil(size_of::<u32>())];
    quantize_into(dtype, rows, row_len, aligned.as_mut_ptr().cast())?;
    let bytes = aligned.iter().flat_map(|word| word.to_ne_bytes());
    out.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    Ok(())
}

fn quantize_into(dtype: DType, rows: &[f32], row_len: usize, out: *mut u8) -> Result<(), Caught> {
    let count = (rows.len() / row_len) as i64;
    // SAFETY: `rows` holds whole rows that blocks divide, and `out` is aligned and writable for them in `dtype`; a null
    // importance matrix is allowed, since the caller asked `needs_importance`.
    guard(|| unsafe {
        ggml::ggml_quantize_chunk(dtype.id(), rows.as_ptr(), out.cast(), 0, count, row_len as i64, std::ptr::null());
    })
}

#[cfg(test)]
pub(crate) mod table {
    //! ggml's own table of formats, for the test that holds ours against it.

    use super::ggml;
    use std::ffi::CStr;

    /// One more than the largest type id.
    pub(crate) const COUNT: u32 = ggml::GGML_TYPE_COUNT;

    /// `(name, numbers in a block, bytes in a block)` of type id `id`; retired ids have no numbers in a block.
    pub(crate) fn row(id: u32) -> (String, usize, usize) {
        assert!(id < COUNT);
        // SAFETY: the id is in ggml's table; names are static.
        unsafe {
            let name = CStr::from_ptr(ggml::ggml_type_name(id)).to_string_lossy().into_owned();
            (name, ggml::ggml_blck_size(id) as usize, ggml::ggml_type_size(id))
        }
    }
}
