//! Stages on their way through a backend.

use std::time::Instant;

use super::Session;
use super::graphs::GraphWork;
use super::session::Work;
use crate::ggml::{Backend, CancelFlag};
use crate::stage::Half;
use crate::trace::{About, Kind};
use crate::{Error, Result};

/// How many stages the host is ahead of the device at most: enough that the device never waits for it, and few enough that
/// a stop is heard soon.
pub(super) const AHEAD: usize = 2;

/// Stages that a backend may be computing: it is waited for before anything that it computes with can go.
pub(super) struct Flight<'a, 'm> {
    session: &'a mut Session<'m>,
    backend: &'a mut Backend,
    /// How many stages it has left.
    left: usize,
}

impl<'a, 'm> Flight<'a, 'm> {
    pub(super) fn new(session: &'a mut Session<'m>, backend: &'a mut Backend) -> Flight<'a, 'm> {
        Flight { session, backend, left: 0 }
    }

    /// Makes ready for stage `i`; `next` is likely the next, if there is one.
    pub(super) fn enter(&mut self, i: usize, next: Option<usize>) -> Result<()> {
        let Session { ahead, pager, in_place, uploads, .. } = &*self.session;
        // Keeps the host from running away.
        if let Some(events) = ahead {
            events[self.left % AHEAD].synchronize()?;
        }
        if let (Some(pager), Some(next)) = (pager, next) {
            pager.before(next);
        }
        if let Some(pages) = in_place.as_ref().and_then(|pages| pages.get(i)) {
            pages.populate()?;
        }
        match uploads {
            Some(uploads) => uploads.acquire(i, self.backend),
            None => Ok(()),
        }
    }

    /// Begins to compute one `half` of stage `i`.
    pub(super) fn compute(&mut self, i: usize, half: Half) -> Result<()> {
        let Session { work, model, form, trace, .. } = &mut *self.session;
        let (at, begun) = (*form * model.stages().len() + i, Instant::now());
        match work {
            Work::Graphs(GraphWork { graphs, graph_of, gathering_of, touched, arena, .. }) => {
                let of = if half == Half::Main { graph_of } else { gathering_of };
                let graph = of.get(at).copied().flatten().and_then(|at| graphs.get(at));
                match graph {
                    Some(graph) => self.backend.begin(graph, arena)?,
                    None if touched.is_empty() => {
                        return Err(Error::graph("run", format!("stage {i} is on another device")));
                    }
                    // The device has no token of it.
                    None => {}
                }
            }
            Work::Strips(work) => work.compute(i, self.backend)?,
        }
        if let Some(trace) = trace {
            trace.record(Kind::Stage, &model.stages()[i].name, begun, About::default());
        }
        Ok(())
    }

    /// Stage `i` has begun to be computed as a whole.
    pub(super) fn leave(&mut self, i: usize) -> Result<()> {
        let Session { ahead, pager, uploads, .. } = &*self.session;
        if let Some(uploads) = uploads {
            uploads.release(i, self.backend)?;
        }
        if let Some(events) = ahead {
            self.backend.record(&events[self.left % AHEAD])?;
        }
        if let Some(pager) = pager {
            pager.after(i);
        }
        self.left += 1;
        Ok(())
    }

    /// Waits until everything is computed that was begun.
    pub(super) fn land(&mut self) -> Result<()> {
        self.backend.finish()
    }

    /// What stops it.
    pub(super) fn cancel(&self) -> &CancelFlag {
        self.backend.cancel()
    }
}

impl Drop for Flight<'_, '_> {
    fn drop(&mut self) {
        // An error was returned already, or the next use of the device returns it.
        let _ = self.backend.finish();
    }
}
