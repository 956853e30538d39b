//! Panics of other people's code that are caught: they say nothing.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether this thread is in [`caught`].
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, whose panics are an answer. `None` for one. The caller makes sure that nothing which `work` leaves half done
/// is used again.
///
/// The first call puts a hook before the process's own: it lets every panic through except those in here.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // A thread that ends has no flag any more, and is not in here.
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                before(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    match done {
        Ok(value) => Some(value),
        Err(payload) => {
            // Dropping anything but the message could panic again.
            if !payload.is::<String>() && !payload.is::<&str>() {
                std::mem::forget(payload);
            }
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_answer() {
        assert_eq!(caught(|| 7), Some(7));
        assert_eq!(caught(|| Vec::<u8>::new()[std::hint::black_box(3)]), None);
        // What it was thrown with may panic again when it is dropped.
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        assert_eq!(caught(|| panic::panic_any(Bomb)), None::<()>);
        // One inside the other.
        assert_eq!(caught(|| caught(|| panic!("inner")).is_none()), Some(true));
    }

    /// Run by the next test, in a process of its own.
    #[test]
    #[ignore = "says what a process says"]
    fn two_panics_of_which_one_is_caught() {
        assert!(caught(|| panic!("not heard")).is_none());
        panic!("heard");
    }

    #[test]
    fn only_other_panics_are_heard() {
        let name = "quiet::tests::two_panics_of_which_one_is_caught";
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(said.contains("heard") && !said.contains("not heard"), "{said}");
    }
}
