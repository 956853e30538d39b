//! `pinhole_embeddings`: prompts that went through the text encoders.

use std::sync::Arc;

use crate::{entry, handle};

/// `pinhole_embeddings`
pub struct Embeddings(pub(crate) Arc<pinhole::pipeline::Embeddings>);

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_embeddings_free(embeddings: *mut Embeddings) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(embeddings) });
}
