//! What a session makes of a request: pictures, or encoded prompts.

use std::path::PathBuf;
use std::sync::Arc;

use pinhole::trace::{self, Trace};
use pinhole_quant::output::AtomicFile;

use crate::embeddings::Embeddings;
use crate::error::{Error, Failure};
use crate::made::Made;
use crate::request::{Read, Request};
use crate::result::Outcome;
use crate::session::Session;
use crate::{entry, handle};

/// A trace, and the file that it goes to in the end.
struct Traced {
    trace: Trace,
    file: AtomicFile,
    path: PathBuf,
}

impl Traced {
    fn create(path: PathBuf) -> Result<Traced, Failure> {
        trace::check_replaced(&path)?;
        let file = AtomicFile::create(&path, true)?;
        Ok(Traced { trace: Trace::new(), file, path })
    }

    fn write(self) -> Result<(), Failure> {
        let Traced { trace, mut file, path } = self;
        trace.write(&mut file).map_err(|source| Failure::io("write", &path, source))?;
        Ok(file.commit()?)
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_generate(
    session: *mut Session,
    request: *const Request,
    out: *mut *mut Outcome,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let (session, Read { wanted, mut watch, cancel, notes, trace }) = unsafe {
            handle::clear(out, "out")?;
            (handle::get(session.cast_const(), "session")?, Request::read(request)?)
        };
        let traced = trace.map(Traced::create).transpose()?;
        let (generated, made) = session.with(cancel, |pipeline| {
            let _recorded = traced.as_ref().map(|traced| traced.trace.enter());
            for note in notes {
                watch.warn(note)?;
            }
            let generated = pipeline.generate_watched(&wanted, &mut watch)?;
            Ok((generated, Made::by(pipeline.model())))
        })?;
        traced.map_or(Ok(()), Traced::write)?;
        // SAFETY: the header's contract.
        unsafe { handle::give(out, Outcome::new(generated, &wanted, &made)) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

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
