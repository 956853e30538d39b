//! The memory that this process takes, by the kernel's account.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often the kernel is asked. It keeps a high-water mark of all resident pages together, and none of anonymous ones
/// or of file pages alone.
const INTERVAL: Duration = Duration::from_millis(5);

/// Watches the process's memory from a thread of its own, as long as it lives.
pub struct PeakMemory {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Peaks in bytes, each at a moment of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peaks {
    /// Heap, stacks and buffers: what no file backs.
    pub anonymous: u64,
    /// Resident pages of mapped files, the program's own among them.
    pub file: u64,
    /// Both together.
    pub total: u64,
}

#[derive(Default)]
struct Shared {
    anonymous: AtomicU64,
    file: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    /// Looks once; `None` on systems that do not say.
    fn look(&self) -> Option<Peaks> {
        let Peaks { anonymous, file, total } = resident()?;
        let highest = |peak: &AtomicU64, now| peak.fetch_max(now, Ordering::Relaxed).max(now);
        Some(Peaks {
            anonymous: highest(&self.anonymous, anonymous),
            file: highest(&self.file, file),
            total: highest(&self.total, total),
        })
    }
}

/// What the process holds now; `None` on systems that do not say.
pub fn resident() -> Option<Peaks> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let (anonymous, file) = (bytes(&status, "RssAnon")?, bytes(&status, "RssFile")?);
    Some(Peaks { anonymous, file, total: anonymous + file })
}

/// What the system could give a process without taking from others: free memory and caches, of the process's control group
/// where that has a limit. `None` on systems that do not say.
pub fn available() -> Option<u64> {
    let machine = bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")?;
    Some(machine.min(left_in_group().unwrap_or(u64::MAX)))
}

/// What the limit of the process's control group leaves; `None` without one.
fn left_in_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let of = |controllers: &str| {
        groups.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(controllers)?.strip_prefix(':'))
    };
    // Version 2 has one hierarchy, version 1 one for memory alone.
    let second = of("").and_then(|group| left_in(&format!("/sys/fs/cgroup{group}"), ["memory.max", "memory.current"]));
    let names = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
    second.or_else(|| left_in(&format!("/sys/fs/cgroup/memory{}", of("memory")?), names))
}

/// The same of the group at `path`, whose limit and usage are files of these names. Caches that nobody used lately are free.
fn left_in(path: &str, [limit, usage]: [&str; 2]) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("{path}/{name}")).ok();
    let most: u64 = read(limit)?.trim().parse().ok()?;
    let held: u64 = read(usage)?.trim().parse().ok()?;
    let stat = read("memory.stat")?;
    let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    Some(most.saturating_sub(held.saturating_sub(cached.unwrap_or(0))))
}

impl PeakMemory {
    /// Begins to watch.
    pub fn watch() -> PeakMemory {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let watch = move || {
            while !watched.stop.load(Ordering::Relaxed) && watched.look().is_some() {
                thread::park_timeout(INTERVAL);
            }
        };
        // Without a thread to spare, only the moments count at which somebody asks.
        PeakMemory { shared, thread: thread::Builder::new().name("memory".into()).spawn(watch).ok() }
    }

    /// The most that was seen; `None` on systems that do not say.
    pub fn peaks(&self) -> Option<Peaks> {
        self.shared.look()
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic: it reads a file and stores two numbers.
            let _ = thread.join();
        }
    }
}

/// A line of Linux's `/proc/self/status`, which counts in KiB.
fn bytes(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_given_back_is_still_the_peak() {
        const BYTES: usize = 64 << 20;
        let memory = PeakMemory::watch();
        let before = memory.peaks().unwrap();
        let block = std::hint::black_box(vec![1u8; BYTES]);
        thread::sleep(INTERVAL * 20);
        drop(block);
        assert!(memory.peaks().unwrap().anonymous >= before.anonymous + (BYTES as u64) / 2);
        let Peaks { anonymous, file, total } = memory.peaks().unwrap();
        assert!(file > 0 && total >= anonymous.max(file) && total <= anonymous + file);
        assert!(available().unwrap() > 0);
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_is_in_use() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        let left = || left_in(group.path().to_str().unwrap(), ["memory.max", "memory.current"]);
        assert_eq!(left(), None);
        write("memory.current", "300\n");
        write("memory.stat", "anon 200\ninactive_file 80\nactive_file 20\n");
        write("memory.max", "max\n");
        assert_eq!(left(), None);
        write("memory.max", "1000\n");
        assert_eq!(left(), Some(780));
        write("memory.max", "100\n");
        assert_eq!(left(), Some(0));
    }
}
