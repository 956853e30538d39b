//! Vectors whose memory is asked for first: where there is none, that is an error, and not the end of the process, as it is with
//! `vec!` and `collect`. For everything whose size follows the picture, the prompt or the model.

use crate::{Error, Result};

/// An empty vector with room for `len` values of `what`.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn room<T>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    grow(what, &mut vec, len)?;
    Ok(vec)
}

/// Makes room for `more` values in `vec`.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn grow<T>(what: &'static str, vec: &mut Vec<T>, more: usize) -> Result<()> {
    let bytes = more.saturating_mul(size_of::<T>());
    vec.try_reserve_exact(more).map_err(|_| Error::OutOfMemory { what: what.into(), bytes, hint: None })
}

/// Makes `vec` as long as `len`; what is new is zero.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn resize<T: Clone + Default>(what: &'static str, vec: &mut Vec<T>, len: usize) -> Result<()> {
    grow(what, vec, len.saturating_sub(vec.len()))?;
    vec.resize(len, T::default());
    Ok(())
}

/// Whether there is memory for `bytes` of `what`, which something takes that does not ask, and would end the process without it.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn probe(what: &'static str, bytes: usize) -> Result<()> {
    room::<u8>(what, bytes).map(|_| ())
}

/// `len` zeros.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn zeros<T: Clone + Default>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    resize(what, &mut vec, len)?;
    Ok(vec)
}

/// The first `len` of `values`.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn collect<T>(what: &'static str, len: usize, values: impl IntoIterator<Item = T>) -> Result<Vec<T>> {
    let mut vec = room(what, len)?;
    vec.extend(values.into_iter().take(len));
    Ok(vec)
}

/// `values`, `times` times.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn repeat<T: Copy>(what: &'static str, values: &[T], times: usize) -> Result<Vec<T>> {
    let mut vec = room(what, values.len().saturating_mul(times))?;
    (0..times).for_each(|_| vec.extend_from_slice(values));
    Ok(vec)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_there_is_room_for_is_there() {
        assert_eq!(zeros::<u8>("x", 3).unwrap(), [0, 0, 0]);
        assert_eq!(collect("x", 2, 5..).unwrap(), [5, 6]);
        assert_eq!(repeat("x", &[1, 2], 2).unwrap(), [1, 2, 1, 2]);
    }

    #[test]
    fn what_there_is_none_for_is_an_error() {
        let failed = [zeros::<u64>("x", usize::MAX / 2).is_err(), repeat("x", &[1u64; 4], usize::MAX).is_err()];
        assert_eq!(failed, [true, true]);
    }
}
