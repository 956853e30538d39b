//! The account of what pinhole allocates on a device.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

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
}

/// What a [`Ledger`] holds at one moment, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes held now, by purpose: `weights`, `ports`, `activations`.
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

    pub(super) fn enter(&self, purpose: &'static str, bytes: usize) {
        self.with(|account| {
            *account.by_purpose.entry(purpose).or_default() += bytes;
            account.total += bytes;
            if account.total > account.peak {
                account.peak = account.total;
                account.at_peak = account.by_purpose.clone();
            }
        });
    }

    pub(super) fn leave(&self, purpose: &'static str, bytes: usize) {
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
        ledger.enter("weights", 10);
        ledger.enter("ports", 5);
        ledger.leave("weights", 10);
        ledger.enter("ports", 1);
        let usage = ledger.usage();
        assert_eq!((usage.total, usage.peak), (6, 15));
        assert_eq!((usage.at_peak["weights"], usage.at_peak["ports"]), (10, 5));
    }
}
