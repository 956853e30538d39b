//! What ends a command from outside: Ctrl-C, a closed terminal, a full disk's limit, a model that is cut short. Nothing is left
//! behind in any case.

use std::process;

use pinhole::ggml::CancelFlag;
use pinhole_quant::output::remove_temporary_files;

use super::failure::{FAILED, INTERRUPTED};
use super::printer::{self, Printer};

/// Prepares the process for signals that would end it half-way. Called first in it, before there are other threads.
pub(super) fn prepare() {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigSet, Signal};
        // A write beyond the limit on the size of files then fails as on a full disk. Where it cannot be blocked, it ends the
        // process, as it does any other.
        let mut too_large = SigSet::empty();
        too_large.add(Signal::SIGXFSZ);
        let _ = too_large.thread_block();
        // Where there is no thread to be had, a lost page ends the process without words.
        let _ = pinhole::index::on_lost_page(|path| {
            remove_temporary_files();
            printer::lost(path.as_deref());
            process::exit(FAILED.into());
        });
    }
}

/// A flag that Ctrl-C raises, and so do SIGTERM and SIGHUP. Called once in a process.
///
/// A second one ends the process at once.
pub(super) fn cancel_flag(printer: &Printer) -> CancelFlag {
    let flag = CancelFlag::new();
    let (raised, talks) = (flag.clone(), printer.animated());
    let handler = move || {
        if raised.is_raised() {
            remove_temporary_files();
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
