//! Computations that were asked for. Weights for others arrive beside them; what touches the same bytes waits.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::ggml::remote::wire::Failure;

/// The most computations that wait at once.
const MOST: usize = 64;

/// The bytes that a graph touches, each with its buffer.
pub(super) type Touched = Arc<Vec<(u64, Range<usize>)>>;

/// A computation that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// The graph and its arena; or why there is nothing to compute, for the one who asked.
    pub(super) what: Result<(u64, u64), Failure>,
    pub(super) touched: Touched,
}

impl Job {
    fn touches(&self, buffer: u64, bytes: &Range<usize>) -> bool {
        self.touched.iter().any(|(other, own)| *other == buffer && own.start < bytes.end && bytes.start < own.end)
    }
}

/// Jobs, in the order of their messages. One thread puts them in, and another takes them out.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The first is computed while `computing`.
    jobs: VecDeque<Job>,
    computing: bool,
    is_closed: bool,
}

impl Queue {
    /// Puts in a job, once there is room.
    pub(super) fn put(&self, job: Job) {
        let mut state = self.wait_while(|state| state.jobs.len() >= MOST && !state.is_closed);
        state.jobs.push_back(job);
        self.changed.notify_all();
    }

    /// The next job, which is computed from now until it is [done](Self::done); `None` when no more will come.
    pub(super) fn take(&self) -> Option<Job> {
        let mut state = self.wait_while(|state| state.jobs.is_empty() && !state.is_closed);
        if state.is_closed {
            return None;
        }
        state.computing = true;
        state.jobs.front().cloned()
    }

    /// The job that was taken last is done.
    pub(super) fn done(&self) {
        let mut state = self.lock();
        state.computing = false;
        state.jobs.pop_front();
        self.changed.notify_all();
    }

    /// Waits until all jobs are done.
    pub(super) fn wait_for_all(&self) {
        drop(self.wait_while(|state| !state.jobs.is_empty() && !state.is_closed));
    }

    /// Waits until no job touches these `bytes` of `buffer`.
    pub(super) fn wait_for_bytes(&self, buffer: u64, bytes: &Range<usize>) {
        drop(self.wait_while(|state| !state.is_closed && state.jobs.iter().any(|job| job.touches(buffer, bytes))));
    }

    /// No more jobs are taken.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn wait_while(&self, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_while(self.lock(), |state| condition(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn job(bytes: Range<usize>) -> Job {
        Job { what: Ok((1, 2)), touched: Arc::new(vec![(7, bytes)]) }
    }

    #[test]
    fn bytes_beside_a_job_are_not_waited_for() {
        let queue = Queue::default();
        queue.put(job(10..20));
        assert!(queue.take().is_some());
        queue.wait_for_bytes(7, &(0..10));
        queue.wait_for_bytes(7, &(20..30));
        queue.wait_for_bytes(8, &(10..20));
        assert!(job(10..20).touches(7, &(19..21)));
    }

    #[test]
    fn bytes_of_a_job_are_waited_for() {
        let queue = Queue::default();
        queue.put(job(10..20));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.wait_for_bytes(7, &(0..11)));
            assert!(queue.take().is_some() && !waiting.is_finished());
            queue.done();
        });
        queue.wait_for_all();
        queue.close();
        assert!(queue.take().is_none());
    }
}
