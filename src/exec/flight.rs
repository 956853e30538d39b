//! Stages on their way through a backend.

use std::time::Instant;

use super::Session;
use super::graphs::GraphWork;
use super::session::{AHEAD, Work};
use crate::ggml::{Backend, CancelFlag};
use crate::stage::{Cadence, Half, Part};
use crate::trace::{About, Kind};
use crate::{Error, Result};

impl<'m> Session<'m> {
    /// Runs the stages of a request, or those of a step that skips nothing, in order. `after` hears of each that is done: how many,
    /// and of how many.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or what the device says.
    pub fn run(
        &mut self,
        backend: &mut Backend,
        cadence: Cadence,
        after: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let order = self.stages_at(cadence);
        self.run_in_order(backend, &order, order.first().copied(), after)
    }

    /// As [`run`](Session::run), of `part` of a step. A step is its lead, and then its rest or the shortcut. What the shortcut skips
    /// moves no bytes.
    ///
    /// # Errors
    /// As [`run`](Session::run).
    pub fn run_part(
        &mut self,
        backend: &mut Backend,
        part: Part,
        after: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        self.run_in_order(backend, &self.stages_of(part), self.behind(part), after)?;
        if part == Part::Shortcut {
            self.skip_step();
        }
        Ok(())
    }

    /// The stage that follows `part` of a step, if that is known.
    pub(super) fn behind(&self, part: Part) -> Option<usize> {
        match part {
            Part::Lead => None,
            Part::Rest | Part::Shortcut => Some(self.model.at(Cadence::Step).start),
        }
    }

    /// Says that one of the planned steps brings no weights.
    pub fn skip_step(&self) {
        if let Some(uploads) = &self.uploads {
            uploads.skip_pass();
        }
    }

    /// Runs the stages `order`. `next` is the one that follows them, if that is known.
    fn run_in_order(
        &mut self,
        backend: &mut Backend,
        order: &[usize],
        next: Option<usize>,
        mut after: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mut flight = self.fly(backend);
        for (done, &i) in order.iter().enumerate() {
            flight.enter(i, order.get(done + 1).copied().or(next))?;
            flight.compute(i, Half::Main)?;
            flight.leave(i)?;
            after(done + 1, order.len())?;
        }
        flight.land()
    }

    /// Begins to compute stages on `backend`.
    pub(super) fn fly<'a>(&'a mut self, backend: &'a mut Backend) -> Flight<'a, 'm> {
        Flight::new(self, backend)
    }

    /// Runs the stage number `stage` alone, and waits for it. Where weights stream, stages run in order or not at all.
    ///
    /// # Errors
    /// As [`run`](Session::run); [`Error::Graph`] where there is no such stage.
    pub fn run_stage(&mut self, backend: &mut Backend, stage: usize) -> Result<()> {
        let stages = self.model.stages().len();
        if stage >= stages {
            return Err(Error::graph("run", format!("stage {stage} of {stages}")));
        }
        let mut flight = self.fly(backend);
        flight.enter(stage, Some((stage + 1) % stages))?;
        flight.compute(stage, Half::Main)?;
        flight.leave(stage)?;
        flight.land()
    }
}

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
