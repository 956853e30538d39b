//! Everything that the numbers of a network come from, for a digest of them.

use super::{Bound, Piece};
use crate::weights::Manifest;

/// Bytes that numbers come from, and what is made of them.
pub(crate) struct Content<'a> {
    /// Says how they become numbers, and of what: two of one description and the same bytes are the same numbers.
    pub(crate) what: String,
    /// Where they lie.
    pub(crate) piece: &'a Piece,
}

impl<'a> Content<'a> {
    pub(super) fn new(what: &str, piece: &'a Piece) -> Content<'a> {
        let (storage, scale) = (piece.storage(), piece.scale);
        let planes = piece.planes.map_or(String::new(), |planes| format!(", plane {} of {}", planes.at, planes.of));
        Content { what: format!("{what}: {} {storage} times {scale:?}{planes}", piece.len()), piece }
    }
}

impl Bound {
    /// What the weights of `manifest` come from, and what is added to tables that stay on the host.
    pub(crate) fn contents(&self, manifest: &Manifest) -> Vec<Content<'_>> {
        let mut contents = Vec::new();
        for (id, weight) in manifest.iter() {
            for piece in self.pieces(id) {
                contents.push(Content::new(&format!("{} {}", weight.name, weight.shape), piece));
            }
        }
        for (table, delta) in &self.on_tables {
            delta.add_contents(&manifest.get(*table).name, &mut contents);
        }
        contents
    }
}
