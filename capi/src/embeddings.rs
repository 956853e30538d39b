//! `pinhole_embeddings`: prompts that went through the text encoders.

use std::sync::Arc;

use crate::error::Error;
use crate::request::{Read, Request};
use crate::session::Session;
use crate::{entry, handle};

/// `pinhole_embeddings`
pub struct Embeddings(pub(crate) Arc<pinhole::pipeline::Embeddings>);

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_embeddings_new(
    session: *mut Session,
    request: *const Request,
    out: *mut *mut Embeddings,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let (session, Read { wanted, mut watch, cancel, .. }) = unsafe {
            handle::clear(out, "out")?;
            (handle::get(session.cast_const(), "session")?, Request::read_prompts(request)?)
        };
        let embeddings = session.with(cancel, |pipeline| Ok(pipeline.embed(&wanted, &mut watch)?))?;
        // SAFETY: the header's contract.
        unsafe { handle::give(out, Embeddings(Arc::new(embeddings))) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_embeddings_free(embeddings: *mut Embeddings) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(embeddings) });
}
