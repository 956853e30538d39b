//! What ends a command from outside: Ctrl-C, a closed terminal, a full disk's limit, a model that is cut short. Nothing is left
//! behind in any case.

use std::process;

use pinhole::ggml::CancelFlag;
use pinhole::memory;
use pinhole_quant::output::remove_temporary_files;

#[cfg(unix)]
use super::failure::FAILED;
use super::failure::INTERRUPTED;
use super::printer::{self, Printer};

/// Blocks the signal that comes with a write beyond the limit on the size of files: the write then fails as on a full disk. Called
/// first in a process, before there are other threads.
pub(super) fn block_size_limit() {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigSet, Signal};
        let mut too_large = SigSet::empty();
        too_large.add(Signal::SIGXFSZ);
        // Where it cannot be blocked, it ends the process, as it does any other.
        let _ = too_large.thread_block();
    }
}

/// A flag that Ctrl-C raises, and so do SIGTERM and SIGHUP. Called once in a process.
///
/// A second one ends the process at once. From now on, a lost page of a mapped file ends it too, with the file's name.
pub(super) fn cancel_flag(printer: &Printer) -> CancelFlag {
    let flag = CancelFlag::new();
    // What follows takes a thread each. One that has room for its stack and no more ends the process as it starts, so that signals
    // then do what they always do.
    if !memory::has_room_for_threads(2) {
        return flag;
    }
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
    // Where there is no thread to be had, a lost page ends the process without words.
    #[cfg(unix)]
    let _ = pinhole::index::on_lost_page(|path| {
        remove_temporary_files();
        printer::lost(path.as_deref());
        process::exit(FAILED.into());
    });
    flag
}
