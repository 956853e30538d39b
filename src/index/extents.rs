//! Extents of tensors, as files give them.

use super::storage::Storage;
use crate::tensor::{MAX_DIMS, Shape};

/// A shape of at most four extents with the same bytes: the slowest are merged.
pub(crate) fn fold(extents: &[usize]) -> Option<Shape> {
    if extents.len() <= MAX_DIMS {
        return Shape::new(extents);
    }
    let (kept, merged) = extents.split_at(MAX_DIMS - 1);
    let slowest = merged.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
    Shape::new(&[kept, &[slowest]].concat())
}

/// What is asked of the extents of a tensor so that weights can be read from it, if `extents` are not like that.
pub(crate) fn extents_needed(storage: Storage, extents: &[usize]) -> Option<String> {
    if extents.contains(&0) {
        return Some("extents of at least 1".into());
    }
    let (row, block) = (extents.first().copied().unwrap_or(1), storage.block_size());
    (!row.is_multiple_of(block)).then(|| format!("rows of a multiple of {block} numbers"))
}
