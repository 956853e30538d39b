//! Threads for work that comes in parts: as many as somebody allowed, never those of a pool that the whole process shares.
//!
//! Work runs on the calling thread alone, unless that thread is [inside](Workers::enter) of workers. Their threads start with the
//! first work that has something for them. If they cannot be started, the calling thread does it all.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

thread_local! {
    /// Those that the thread is inside of.
    static CURRENT: RefCell<Option<Workers>> = const { RefCell::new(None) };
}

/// A number of threads. Clones are the same threads.
#[derive(Clone)]
pub struct Workers(Arc<Pool>);

struct Pool {
    threads: usize,
    /// Started with the first work; `None` if that failed.
    started: OnceLock<Option<ThreadPool>>,
}

impl Workers {
    /// `threads` of them. None is started yet.
    pub fn new(threads: usize) -> Workers {
        Workers(Arc::new(Pool { threads, started: OnceLock::new() }))
    }

    /// Those that this thread is inside of; outside of any, the thread alone.
    pub fn current() -> Workers {
        CURRENT.with_borrow(Option::clone).unwrap_or_else(|| Workers::new(1))
    }

    /// How many they are.
    pub fn threads(&self) -> usize {
        self.0.threads
    }

    /// Has them do this thread's work until the result is dropped.
    pub fn enter(&self) -> Inside {
        let before = CURRENT.replace(Some(self.clone()));
        Inside { before, of_this_thread: PhantomData }
    }

    fn pool(&self) -> Option<&ThreadPool> {
        let Pool { threads, started } = &*self.0;
        if *threads < 2 {
            return None;
        }
        let builder = ThreadPoolBuilder::new().num_threads(*threads).thread_name(|_| "workers".into());
        started.get_or_init(|| builder.build().ok()).as_ref()
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({})", self.0.threads)
    }
}

/// A thread that is inside of [`Workers`].
#[derive(Debug)]
pub struct Inside {
    before: Option<Workers>,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

/// Does `work` with each of `parts`, on the threads of the [current](Workers::current) workers.
///
/// # Errors
/// One error of those that `work` returns. Parts that no thread has begun when it comes are left out.
pub fn try_for_each<T: Send, E: Send>(parts: Vec<T>, work: impl Fn(T) -> Result<(), E> + Sync + Send) -> Result<(), E> {
    let workers = Workers::current();
    match workers.pool().filter(|_| parts.len() > 1) {
        Some(pool) => pool.install(|| parts.into_par_iter().try_for_each(work)),
        None => parts.into_iter().try_for_each(work),
    }
}

/// As [`try_for_each`], for work that cannot fail.
pub fn for_each<T: Send>(parts: Vec<T>, work: impl Fn(T) + Sync + Send) {
    let done: Result<(), std::convert::Infallible> = try_for_each(parts, |part| {
        work(part);
        Ok(())
    });
    let Ok(()) = done;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::*;

    /// The threads that do some work.
    fn at_work() -> HashSet<ThreadId> {
        let seen = Mutex::new(HashSet::new());
        for_each((0..64).collect(), |_: usize| {
            thread::sleep(Duration::from_millis(1));
            seen.lock().unwrap().insert(thread::current().id());
        });
        seen.into_inner().unwrap()
    }

    #[test]
    fn work_stays_on_its_thread_unless_that_is_inside_of_workers() {
        let own = HashSet::from([thread::current().id()]);
        assert_eq!(at_work(), own);
        let two = Workers::new(2);
        {
            let _inside = two.enter();
            assert!(at_work().len() <= 2 && at_work().is_disjoint(&own));
            let _one = Workers::new(1).enter();
            assert_eq!(at_work(), own);
        }
        assert_eq!(at_work(), own);
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let work = |part: usize| if part == 3 { Err(part) } else { Ok(()) };
        assert_eq!(try_for_each((0..8).collect(), work), Err(3));
        let _inside = Workers::new(3).enter();
        assert_eq!(try_for_each((0..8).collect(), work), Err(3));
    }
}
