//! The processors that this process may use.

use std::collections::HashSet;
use std::fs;
use std::num::NonZero;
use std::thread;

/// The most threads that anything here takes: ggml's own limit (`GGML_MAX_N_THREADS`).
pub const MOST_THREADS: usize = 512;

/// How many cores this process may use, and so how many threads compute unless somebody says otherwise. Of a core that is two
/// processors to the system, the second adds nothing to arithmetic that keeps the first busy, and makes every wait longer.
pub fn cores() -> usize {
    // Limits of control groups are in this number, and two processors of one core.
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let cores = allowed().and_then(|allowed| count(&allowed, siblings)).unwrap_or(processors);
    cores.min(processors).clamp(1, MOST_THREADS)
}

/// The numbers of the processors that this thread may run on; `None` on systems that do not say.
fn allowed() -> Option<Vec<usize>> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    list(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)
}

/// `0-3,8` as numbers.
fn list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        numbers.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

/// The processors of the core that `processor` belongs to, in the system's words.
fn siblings(processor: usize) -> Option<String> {
    fs::read_to_string(format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")).ok()
}

/// How many cores have one of `processors`; `None` if one of them has no `core`.
fn count(processors: &[usize], core: impl Fn(usize) -> Option<String>) -> Option<usize> {
    let cores: Option<HashSet<String>> = processors.iter().map(|&processor| core(processor)).collect();
    cores.map(|cores| cores.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_counted_once() {
        assert_eq!(list("\t0-2,5,7-8\n").unwrap(), [0, 1, 2, 5, 7, 8]);
        assert_eq!(list("0"), Some(vec![0]));
        assert_eq!(list(""), None);
        let two_each = |processor: usize| Some(format!("{0},{1}", processor % 4, processor % 4 + 4));
        assert_eq!(count(&[0, 1, 2, 3, 4, 5, 6, 7], two_each), Some(4));
        assert_eq!(count(&[0, 4, 5], two_each), Some(2));
        assert_eq!(count(&[0, 1], |processor| (processor == 0).then(String::new)), None);
        assert!((1..=MOST_THREADS).contains(&cores()));
    }
}
