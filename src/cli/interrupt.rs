//! Ctrl-C: the first asks the work to stop, the second ends the process.

use std::process;

use pinhole::ggml::CancelFlag;

use super::failure::INTERRUPTED;
use super::printer::{self, Printer};

/// A flag that Ctrl-C raises. Called once in a process.
///
/// A second Ctrl-C ends the process at once. Temporary files that are left then are removed by the next run with the
/// same output.
pub(super) fn cancel_flag(printer: &Printer) -> CancelFlag {
    let flag = CancelFlag::new();
    let (raised, talks) = (flag.clone(), printer.animated());
    let handler = move || {
        if raised.is_raised() {
            process::exit(INTERRUPTED.into());
        }
        raised.raise();
        if talks {
            printer::interrupting();
        }
    };
    // Where the system takes no handler, Ctrl-C ends the process as it does any other.
    let _ = ctrlc::set_handler(handler);
    flag
}
