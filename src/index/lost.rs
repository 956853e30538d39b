//! Which mapped file a page was lost of.
//!
//! Pages of a file that another process cuts short, or whose disk fails, end this process with `SIGBUS` when they are touched.
//! A program may ask to be told which file it was before it ends. A library must not: it has no business with its host's signals.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What is mapped: first address, bytes, and file.
static MAPPED: Mutex<Vec<(usize, usize, PathBuf)>> = Mutex::new(Vec::new());

/// `path` is mapped to `bytes`.
pub(super) fn mapped(bytes: &[u8], path: &Path) {
    let mut all = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    all.push((bytes.as_ptr().addr(), bytes.len(), path.to_owned()));
}

/// What was mapped to `bytes` will not be any more.
pub(super) fn unmapped(bytes: &[u8]) {
    let mut all = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|(start, ..)| *start != bytes.as_ptr().addr());
}

/// Has `act` called with the file whose page was lost, on a thread of its own, once that happens. The thread that touched the
/// page waits for ever, so `act` has to end the process. For programs, once.
///
/// # Errors
/// Where the system takes no handler.
#[cfg(unix)]
pub fn on_lost_page(act: impl FnOnce(Option<PathBuf>) + Send + 'static) -> std::io::Result<()> {
    signal::listen(move |address| {
        let all = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        // The last page of a file goes on behind its end.
        let found = all.iter().filter(|(start, ..)| *start <= address).max_by_key(|(start, ..)| *start);
        let path = found.map(|(_, _, path)| path.clone());
        drop(all);
        act(path);
    })
}

#[cfg(unix)]
#[allow(unsafe_code)]
mod signal {
    use std::io::{self, Read, pipe};
    use std::os::fd::IntoRawFd;
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::thread;

    use nix::libc;
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

    /// Enough for the thread that waits.
    const STACK: usize = 256 << 10;
    /// Where the handler writes the address to.
    static TO: AtomicI32 = AtomicI32::new(-1);

    /// Has `act` called on another thread with the address of the page, once one is lost.
    pub(super) fn listen(act: impl FnOnce(usize) + Send + 'static) -> io::Result<()> {
        let (mut from, to) = pipe()?;
        thread::Builder::new().name("lost pages".into()).stack_size(STACK).spawn(move || {
            let mut address = [0; size_of::<usize>()];
            if from.read_exact(&mut address).is_ok() {
                act(usize::from_ne_bytes(address));
            }
        })?;
        TO.store(to.into_raw_fd(), Ordering::Relaxed);
        let action = SigAction::new(SigHandler::SigAction(lost), SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: `lost` does only what a signal handler may: an atomic load and the calls `write`, `signal` and `pause`.
        unsafe { sigaction(Signal::SIGBUS, &action) }?;
        Ok(())
    }

    extern "C" fn lost(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system gives a handler with SA_SIGINFO what it knows of the signal, which for SIGBUS has an address.
        let address = unsafe { (*info).si_addr() } as usize;
        let bytes = address.to_ne_bytes();
        let to = TO.load(Ordering::Relaxed);
        // SAFETY: the bytes live until the call returns, and the descriptor is never closed.
        let written = unsafe { libc::write(to, bytes.as_ptr().cast(), bytes.len()) };
        if written != bytes.len() as isize {
            // No one hears of it: then the process ends as it would have, when the page is touched again.
            // SAFETY: `signal` may be called in a handler.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            return;
        }
        loop {
            // SAFETY: `pause` may be called in a handler, and takes nothing.
            unsafe { libc::pause() };
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, File};
    use std::process::Command;

    use super::super::Map;

    /// Run by the next test, in a process of its own.
    #[test]
    #[ignore = "ends its process"]
    fn touches_a_page_that_is_gone() {
        let path = std::env::temp_dir().join(format!("pinhole-lost-{}", std::process::id()));
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let other = Map::open(&std::env::current_exe().unwrap()).unwrap();
        let map = Map::open(&path).unwrap();
        let expected = path.clone();
        super::on_lost_page(move |found| {
            let _ = fs::remove_file(&expected);
            std::process::exit(if found == Some(expected) { 7 } else { 8 });
        })
        .unwrap();
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        assert_eq!(map.bytes()[4999], 7);
        std::hint::black_box((map.bytes()[1 << 19], other.bytes()[0]));
    }

    #[test]
    fn the_file_of_a_lost_page_is_known() {
        let name = "index::lost::tests::touches_a_page_that_is_gone";
        let test = std::env::current_exe().unwrap();
        let run = Command::new(test).args(["--exact", name, "--ignored"]).output().unwrap();
        assert_eq!(run.status.code(), Some(7), "{run:?}");
    }
}
