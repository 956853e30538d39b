//! Rows and columns of latents, exchanged.

use crate::{Result, reserve};

/// The columns of rows of so many `numbers`, one behind the other.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub(super) fn transposed(rows: &[f32], numbers: usize) -> Result<Vec<f32>> {
    let mut columns = reserve::room("the latents", rows.len())?;
    for column in 0..numbers {
        columns.extend(rows.iter().skip(column).step_by(numbers));
    }
    Ok(columns)
}
