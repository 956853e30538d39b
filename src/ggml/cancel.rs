//! How a computation is stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// A flag that any thread may raise to stop a computation: between two of ggml's operations, and in the middle of one of pinhole's.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(pub(super) Arc<AtomicBool>);

impl CancelFlag {
    /// A flag that is not raised.
    pub fn new() -> CancelFlag {
        CancelFlag::default()
    }

    /// Asks for a stop. Safe in a signal handler: it is one atomic store.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// [`Error::Cancelled`] where a stop was asked for.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        if self.is_raised() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
