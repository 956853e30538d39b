//! The process's own memory, sampled while something runs.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(20);

/// A thread that keeps the peaks of anonymous memory and of resident file pages.
pub(crate) struct Watch {
    peaks: Arc<Peaks>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Peaks {
    anonymous: AtomicU64,
    file: AtomicU64,
    stop: AtomicBool,
}

impl Watch {
    /// Starts to sample.
    pub(crate) fn start() -> Watch {
        let peaks = Arc::new(Peaks::default());
        let shared = Arc::clone(&peaks);
        let thread = thread::spawn(move || {
            while !shared.stop.load(Ordering::Relaxed) {
                shared.sample();
                thread::sleep(INTERVAL);
            }
        });
        Watch { peaks, thread }
    }

    /// The peaks in bytes: anonymous, file. Both 0 where the system has no `/proc`.
    pub(crate) fn stop(self) -> (u64, u64) {
        self.peaks.sample();
        self.peaks.stop.store(true, Ordering::Relaxed);
        // The thread only sleeps and reads; if it died, the peaks so far stand.
        let _ = self.thread.join();
        (self.peaks.anonymous.load(Ordering::Relaxed), self.peaks.file.load(Ordering::Relaxed))
    }
}

impl Peaks {
    fn sample(&self) {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        self.anonymous.fetch_max(field("RssAnon:").unwrap_or(0), Ordering::Relaxed);
        self.file.fetch_max(field("RssFile:").unwrap_or(0), Ordering::Relaxed);
    }
}
