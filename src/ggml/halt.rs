//! Why pinhole's own operations end before they are done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use super::CancelFlag;

/// What the operations of a graph look at between two pieces of their work, and where they note that they failed. If one of them has
/// stopped or failed, its numbers mean nothing: the code that computes the graph checks for both afterwards.
#[derive(Default)]
pub(super) struct Halt {
    failed: AtomicBool,
    cancel: RwLock<CancelFlag>,
}

impl Halt {
    /// From now on `cancel` ends the operations.
    pub(super) fn listen(&self, cancel: &CancelFlag) {
        *self.cancel.write().unwrap_or_else(PoisonError::into_inner) = cancel.clone();
    }

    /// Runs `work`, which ends early if its flag is raised, and notes a panic: it must not unwind into ggml, whose threads wait for one
    /// another.
    pub(super) fn catch(&self, work: impl FnOnce(&CancelFlag) -> Result<(), usize>) {
        let cancel = self.cancel.read().unwrap_or_else(PoisonError::into_inner).clone();
        // Work space that could not be had is a failure as well.
        if !matches!(catch_unwind(AssertUnwindSafe(|| work(&cancel))), Ok(Ok(()))) {
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether an operation failed since this was asked last.
    pub(super) fn take_failure(&self) -> bool {
        self.failed.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_noted_and_goes_no_further() {
        let halt = Halt::default();
        halt.catch(|_| Ok(()));
        assert!(!halt.take_failure());
        halt.catch(|_| panic!("on purpose"));
        assert!(halt.take_failure() && !halt.take_failure());
        halt.catch(|_| Err(1));
        assert!(halt.take_failure());
    }

    #[test]
    fn the_flag_of_whoever_computes_is_heard() {
        let (halt, cancel) = (Halt::default(), CancelFlag::new());
        halt.listen(&cancel);
        cancel.raise();
        let heard = std::cell::Cell::new(false);
        halt.catch(|cancel| {
            heard.set(cancel.is_raised());
            Ok(())
        });
        assert!(heard.get() && !halt.take_failure());
    }
}
