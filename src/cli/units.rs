//! Numbers for people.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pinhole::size::Size;
use serde::Serializer;

/// Bytes in binary units, with three digits: `511 B`, `1.50 MiB`.
pub(super) fn bytes(count: u64) -> String {
    Size(count).to_string()
}

/// A count in thousands, millions or billions, with three digits: `999`, `11.9 B`.
pub(super) fn count(count: u64) -> String {
    const UNITS: [&str; 4] = ["k", "M", "B", "T"];
    scaled(count, 1000.0, &UNITS).unwrap_or_else(|| count.to_string())
}

/// `None` for what is too small for the first unit.
fn scaled(count: u64, factor: f64, units: &[&str]) -> Option<String> {
    let (mut value, mut unit) = (count as f64 / factor, units.first()?);
    if value < 1.0 {
        return None;
    }
    for larger in &units[1..] {
        // What would be shown as a full 1000 (or 1024) of a unit is one of the next.
        if value < factor - 0.5 {
            break;
        }
        (value, unit) = (value / factor, larger);
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    Some(format!("{value:.digits$} {unit}"))
}

/// A small count of things: `1 tensor`, `2 tensors`.
pub(super) fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A time: `0.52 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let whole = seconds.round() as u64;
    match seconds {
        ..9.995 => format!("{seconds:.2} s"),
        ..59.95 => format!("{seconds:.1} s"),
        ..3599.5 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Text from a file, fit for a terminal: without characters that could steer it.
pub(super) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// A path in JSON, which holds text only: what is no Unicode in it is shown as such.
pub(super) fn path<S: Serializer>(path: impl AsRef<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.as_ref().display())
}

/// The same of a path that may not be there.
pub(super) fn path_if_any<P: AsRef<Path>, S: Serializer>(found: &Option<P>, serializer: S) -> Result<S::Ok, S::Error> {
    match found {
        Some(found) => path(found, serializer),
        None => serializer.serialize_none(),
    }
}

/// The same of several.
pub(super) fn paths<P: AsRef<Path>, S: Serializer>(found: &[P], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(found.iter().map(|found| found.as_ref().to_string_lossy()))
}

/// The same text of a path that may not be there.
pub(super) fn path_text(path: Option<&PathBuf>) -> Option<String> {
    path.map(|path| path.display().to_string())
}

/// The same texts of several.
pub(super) fn path_texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1 << 20, "1.00 MiB"), (1_048_570, "1.00 MiB")];
        for (number, text) in cases {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(bytes(12_700_000_000), "11.8 GiB");
        assert_eq!(bytes(u64::MAX), "16384 PiB");
        let cases =
            [(999, "999"), (1000, "1.00 k"), (999_999, "1.00 M"), (11_901_408_320, "11.9 B"), (123_456, "123 k")];
        for (number, text) in cases {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn times_read_naturally() {
        let cases =
            [(0.004, "0.00 s"), (9.99, "9.99 s"), (9.999, "10.0 s"), (59.96, "1 min 00 s"), (245.0, "4 min 05 s")];
        for (seconds, text) in cases {
            assert_eq!(time(Duration::from_secs_f64(seconds)), text);
        }
        assert_eq!(time(Duration::from_secs(7380)), "2 h 03 min");
    }

    #[test]
    fn a_terminal_is_not_steered() {
        assert_eq!(shown("a\u{1b}[2J ü\n"), "a\\u{1b}[2J ü\\n");
    }
}
