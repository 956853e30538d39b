//! The memory that this process takes, by the kernel's account.

use std::fs;
use std::path::Path;
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

/// What this process may still take, in bytes; each `None` on systems that do not say, or where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Without taking from others: free memory and caches of the system and of the control groups that the process is in.
    pub free: Option<u64>,
    /// What nothing lifts: all memory of the machine, and what the limits of control groups leave.
    pub most: Option<u64>,
    /// Address space, as far as the process's own limits leave some (`ulimit -v` and `ulimit -d`).
    pub addresses: Option<u64>,
}

/// Address space that a thread takes, at least: its stack, and what the standard library needs there for signals.
const THREAD: u64 = 3 << 20;

/// Whether there is address space for `count` more threads.
pub fn has_room_for_threads(count: u64) -> bool {
    room().addresses.is_none_or(|left| left >= count * THREAD)
}

/// What this process may still take.
pub fn room() -> Room {
    let read = |path: &str| fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").unwrap_or_default();
    let (available, total) = (bytes(&machine, "MemAvailable"), bytes(&machine, "MemTotal"));
    let groups = left_in_groups();
    let addresses = read("/proc/self/limits").zip(read("/proc/self/status")).and_then(|(limits, status)| {
        let left = |limit, used| Some(limited(&limits, limit)?.saturating_sub(bytes(&status, used)?));
        least(left("Max address space", "VmSize"), left("Max data size", "VmData"))
    });
    Room { free: least(available, groups), most: least(total, groups), addresses }
}

/// The smaller one of those that are there.
fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// A limit of Linux's `/proc/self/limits` that holds now; `None` if it is unlimited.
fn limited(limits: &str, name: &str) -> Option<u64> {
    let values = limits.lines().find_map(|line| line.strip_prefix(name))?;
    values.split_whitespace().next()?.parse().ok()
}

/// Where the system shows control groups.
const GROUPS: &str = "/sys/fs/cgroup";

/// What the limits of the process's control groups leave; `None` without one.
fn left_in_groups() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let of = |controllers: &str| {
        groups.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(controllers)?.strip_prefix(':'))
    };
    // Version 2 has one hierarchy, version 1 one for memory alone.
    let second = of("").and_then(|group| left_in(GROUPS, group, ["memory.max", "memory.current"]));
    let names = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
    least(second, of("memory").and_then(|group| left_in(&format!("{GROUPS}/memory"), group, names)))
}

/// What is left in the group `group` below `root` and in all groups above it. One that is not there is another one's view: in a
/// container, `root` itself is the container's group.
fn left_in(root: &str, group: &str, names: [&str; 2]) -> Option<u64> {
    let above = Path::new(group).ancestors().map(|group| group.strip_prefix("/").unwrap_or(group));
    above.filter_map(|group| left_in_one(&Path::new(root).join(group), names)).min()
}

/// What is left in the group at `path`, whose limit and usage are files of these names. Pages of files do not count as used: the
/// system drops them when it needs room.
fn left_in_one(path: &Path, [limit, usage]: [&str; 2]) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(path.join(name)).ok();
    let most: u64 = read(limit)?.trim().parse().ok()?;
    let held: u64 = read(usage)?.trim().parse().ok()?;
    let stat = read("memory.stat")?;
    let cached = ["inactive_file ", "active_file "]
        .into_iter()
        .filter_map(|name| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()))
        .fold(0, u64::saturating_add);
    Some(most.saturating_sub(held.saturating_sub(cached)))
}

impl PeakMemory {
    /// Begins to watch.
    pub fn watch() -> PeakMemory {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);

        // Without a thread to spare, only the moments count at which somebody asks.
        let mut thread = None;
        if has_room_for_threads(1) {
            let started = thread::Builder::new().name("memory".into()).spawn(move || {
                while !watched.stop.load(Ordering::Relaxed) && watched.look().is_some() {
                    thread::park_timeout(INTERVAL);
                }
            });
            thread = started.ok();
        }
        PeakMemory { shared, thread }
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
        let Room { free, most, .. } = room();
        assert!(free.unwrap() > 0 && free <= most);
    }

    #[test]
    fn groups_leave_their_limits_less_what_is_in_use() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("outer/inner");
        fs::create_dir_all(&inner).unwrap();
        let write = |group: &Path, name: &str, text: &str| fs::write(group.join(name), text).unwrap();
        let left = || left_in(root.path().to_str().unwrap(), "/outer/inner", ["memory.max", "memory.current"]);
        assert_eq!(left(), None);
        write(&inner, "memory.current", "300\n");
        write(&inner, "memory.stat", "anon 200\ninactive_file 80\nactive_file 20\n");
        write(&inner, "memory.max", "max\n");
        assert_eq!(left(), None);
        write(&inner, "memory.max", "1000\n");
        assert_eq!(left(), Some(800));
        let outer = inner.parent().unwrap();
        write(outer, "memory.current", "400\n");
        write(outer, "memory.stat", "anon 400\n");
        write(outer, "memory.max", "1100\n");
        assert_eq!(left(), Some(700));
        write(&inner, "memory.max", "100\n");
        assert_eq!(left(), Some(0));
        // A container sees its own group at the root.
        let container = left_in(outer.to_str().unwrap(), "/docker/0123", ["memory.max", "memory.current"]);
        assert_eq!(container, Some(700));
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max address space         62000000             unlimited            bytes     \n";
        assert_eq!(limited(limits, "Max address space"), Some(62_000_000));
        assert_eq!(limited(limits, "Max data size"), None);
        assert_eq!((least(Some(3), Some(2)), least(None, Some(2)), least(None, None)), (Some(2), Some(2), None));
    }
}
