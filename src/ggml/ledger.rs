//! The account of what pinhole allocates on a device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ggml_sys::account::{self, Memory};

use crate::{Error, Result};

/// Bytes held on one device, by purpose, with the peak of their sum.
///
/// Clones share one account. Buffers enter themselves when they are made and leave when they are dropped.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<Account>>);

#[derive(Debug, Default)]
struct Account {
    by_purpose: BTreeMap<&'static str, usize>,
    total: usize,
    peak: usize,
    at_peak: BTreeMap<&'static str, usize>,
    /// The most that may be held at once.
    limit: Option<usize>,
}

/// The most bytes that GPUs' backends had allocated at once since [`restart_device_peak`], counted by stand-ins for the
/// allocators that they call: pools and scratch buffers included, and not what a driver takes for itself. Of all pipelines
/// in the process.
pub fn device_peak() -> usize {
    account::read(Memory::Device).peak
}

/// The peak of [`device_peak`] is what is held now.
pub fn restart_device_peak() {
    account::reset_peak(Memory::Device);
}

/// Whether threads of this process share one heap.
static SHARED_HEAP: AtomicBool = AtomicBool::new(false);

/// Makes all threads of the process share one heap. The C library gives each thread its own heap, and takes 64 MiB of address space that
/// a limit may not have. For a program that has little of it, not for a library.
pub fn share_heap() {
    account::share_heap();
    SHARED_HEAP.store(true, Ordering::Relaxed);
}

/// Whether [`share_heap`] was called.
pub(crate) fn shares_heap() -> bool {
    SHARED_HEAP.load(Ordering::Relaxed)
}

/// What a [`Ledger`] holds at one moment, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes held now, by purpose: `weights`, `slots`, `ports`, `activations`, `scratch`.
    pub by_purpose: BTreeMap<&'static str, usize>,
    /// Bytes held now.
    pub total: usize,
    /// The most that was ever held at once.
    pub peak: usize,
    /// What the peak consisted of, by purpose.
    pub at_peak: BTreeMap<&'static str, usize>,
}

impl Ledger {
    /// An empty account.
    pub fn new() -> Ledger {
        Ledger::default()
    }

    fn with<R>(&self, change: impl FnOnce(&mut Account) -> R) -> R {
        // A panic while the lock is held cannot leave the sums half-changed in a way that matters to safety.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on nothing is entered that brings the sum above `limit`.
    pub fn set_limit(&self, limit: Option<usize>) {
        self.with(|account| account.limit = limit);
    }

    /// The peak is what is held now; returns the account as it stood.
    pub fn restart_peak(&self) -> Usage {
        let usage = self.usage();
        self.with(|account| {
            account.peak = account.total;
            account.at_peak = account.by_purpose.clone();
        });
        usage
    }

    /// Enters `bytes` that are about to be allocated.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where that would exceed the limit.
    pub(crate) fn enter(&self, purpose: &'static str, bytes: usize) -> Result<()> {
        self.with(|account| {
            let total = account.total.saturating_add(bytes);
            if let Some(limit) = account.limit.filter(|&limit| total > limit) {
                let left = limit.saturating_sub(account.total);
                return Err(Error::OutOfMemory {
                    what: format!("{purpose}, with {left} of the budget's {limit} left"),
                    bytes,
                    hint: Some("raise --vram, or choose a smaller picture".into()),
                });
            }
            *account.by_purpose.entry(purpose).or_default() += bytes;
            account.total += bytes;
            if account.total > account.peak {
                account.peak = account.total;
                account.at_peak = account.by_purpose.clone();
            }
            Ok(())
        })
    }

    pub(crate) fn leave(&self, purpose: &'static str, bytes: usize) {
        self.with(|account| {
            if let Some(held) = account.by_purpose.get_mut(purpose) {
                *held = held.saturating_sub(bytes);
            }
            account.total = account.total.saturating_sub(bytes);
        });
    }

    /// The account as it stands.
    pub fn usage(&self) -> Usage {
        self.with(|account| Usage {
            by_purpose: account.by_purpose.clone(),
            total: account.total,
            peak: account.peak,
            at_peak: account.at_peak.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_of_the_sum() {
        let ledger = Ledger::new();
        ledger.enter("weights", 10).unwrap();
        ledger.enter("ports", 5).unwrap();
        ledger.leave("weights", 10);
        ledger.enter("ports", 1).unwrap();
        let usage = ledger.restart_peak();
        assert_eq!((usage.total, usage.peak), (6, 15));
        assert_eq!((usage.at_peak["weights"], usage.at_peak["ports"]), (10, 5));
        assert_eq!((ledger.usage().peak, ledger.usage().at_peak["weights"]), (6, 0));
    }

    #[test]
    fn a_limit_is_kept() {
        let ledger = Ledger::new();
        ledger.set_limit(Some(10));
        ledger.enter("weights", 10).unwrap();
        assert!(matches!(ledger.enter("ports", 1), Err(Error::OutOfMemory { bytes: 1, .. })));
        assert_eq!(ledger.usage().total, 10);
        ledger.leave("weights", 1);
        ledger.enter("ports", 1).unwrap();
    }
}
