//! What ends a command from outside: Ctrl-C, a closed terminal, a full disk's limit, a model that is cut short. Nothing is left
//! behind in any case.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pinhole::ggml::CancelFlag;
use pinhole::{Error, Result, memory};
use pinhole_quant::output::remove_temporary_files;
use tempfile::TempDir;

#[cfg(unix)]
use super::failure::FAILED;
use super::failure::INTERRUPTED;
use super::printer::{self, Printer};

/// How long a command may take to end by itself: what does not look at the flag, a large product of ggml's, ends with the process.
const PATIENCE: Duration = Duration::from_millis(700);

/// The temporary folders that there are.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

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
/// A second one ends the process at once, and so does the first one after a while. From now on, a lost page of a mapped file ends it
/// too, with the file's name.
pub(super) fn cancel_flag(printer: &Printer) -> CancelFlag {
    let flag = CancelFlag::new();
    // What follows takes a thread each. One that has room for its stack and no more ends the process as it starts, so that signals
    // then do what they always do.
    if !memory::has_room_for_threads(2) {
        return flag;
    }
    let (raised, talks) = (flag.clone(), printer.animated());
    // Where the system takes no handler, Ctrl-C ends the process as it does any other.
    let _ = ctrlc::set_handler(move || {
        if raised.is_raised() {
            end(INTERRUPTED);
        }
        raised.raise();
        if talks {
            printer::interrupting();
        }
        if memory::has_room_for_threads(1) {
            // Where there is no thread to be had, the command ends when it looks at the flag.
            let _ = thread::Builder::new().name("patience".into()).spawn(|| {
                thread::sleep(PATIENCE);
                printer::interrupted();
                end(INTERRUPTED);
            });
        }
    });
    // Where there is no thread to be had, a lost page ends the process without words.
    #[cfg(unix)]
    let _ = pinhole::index::on_lost_page(|path| {
        printer::lost(path.as_deref());
        end(FAILED);
    });
    flag
}

/// Ends the process at once, with nothing left behind.
fn end(code: u8) -> ! {
    remove_temporary_files();
    for folder in FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // Whatever fails stays where temporary files are, and is known by its name.
        let _ = fs::remove_dir_all(folder);
    }
    process::exit(code.into());
}

/// A folder for what a bench makes. It is gone when this is dropped, or when the process ends at once.
pub(super) struct TemporaryFolder(TempDir);

impl TemporaryFolder {
    /// An empty one, where the system has its temporary files.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be made.
    pub(super) fn new() -> Result<TemporaryFolder> {
        let made = tempfile::Builder::new().prefix("pinhole-bench-").tempdir();
        let made = made.map_err(|error| Error::io("write to", &std::env::temp_dir(), error))?;
        FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(made.path().to_owned());
        Ok(TemporaryFolder(made))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}
