//! A program that runs while its memory is watched.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Between two looks at a process's memory.
const LOOK: Duration = Duration::from_millis(10);

/// The unit of processor time in `/proc`, the same on every Linux that Rust runs on: `USER_HZ`.
const TICKS: f64 = 100.0;

/// What a process took.
pub(crate) struct Run {
    /// `VmHWM` of `/proc/PID/status`: the most that was resident, pages of mapped files included. Bytes.
    pub(crate) peak_resident: u64,
    /// The largest `RssAnon` that was seen: heap, stacks and buffers. Bytes.
    pub(crate) peak_anonymous: u64,
    /// What it said on stderr.
    said: Vec<Line>,
}

/// A line on stderr.
struct Line {
    at: Instant,
    /// Of all threads until then.
    processor_seconds: f64,
    text: String,
}

/// What happens between two lines.
pub(crate) struct Phase {
    pub(crate) begin: &'static str,
    pub(crate) end: &'static str,
}

/// How long it took.
pub(crate) struct Took {
    pub(crate) seconds: f64,
    /// Of all threads together.
    pub(crate) processor_seconds: f64,
}

impl Run {
    /// From the first line that holds the phase's beginning to the first that holds its end.
    pub(crate) fn took(&self, phase: &Phase) -> Result<Took> {
        let (begin, end) = (self.line(phase.begin)?, self.line(phase.end)?);
        Ok(Took {
            seconds: end.at.duration_since(begin.at).as_secs_f64(),
            processor_seconds: end.processor_seconds - begin.processor_seconds,
        })
    }

    /// The first line that holds `what`.
    pub(crate) fn text(&self, what: &str) -> Result<&str> {
        Ok(&self.line(what)?.text)
    }

    fn line(&self, what: &str) -> Result<&Line> {
        let line = self.said.iter().find(|line| line.text.contains(what));
        line.with_context(|| format!("nothing was said of `{what}`"))
    }
}

/// Runs `command` to its end, or until it says `last`.
pub(crate) fn run(command: &mut Command, last: Option<&str>) -> Result<Run> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} cannot be run"))?;
    let lines = listen(child.stderr.take(), child.id());
    let mut run = Run { peak_resident: 0, peak_anonymous: 0, said: Vec::new() };
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        // A process that has just ended has no such lines.
        let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        run.peak_resident = run.peak_resident.max(bytes(&text, "VmHWM:").unwrap_or(0));
        run.peak_anonymous = run.peak_anonymous.max(bytes(&text, "RssAnon:").unwrap_or(0));
        let before = run.said.len();
        run.said.extend(lines.try_iter());
        if last.is_some_and(|last| run.said[before..].iter().any(|line| line.text.contains(last))) {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(LOOK);
    };
    run.said.extend(lines.iter());
    let words: Vec<&str> =
        run.said[run.said.len().saturating_sub(20)..].iter().map(|line| line.text.as_str()).collect();
    if let Some(status) = status {
        ensure!(status.success(), "{name}: {status}\n{}", words.join("\n"));
    }
    Ok(run)
}

/// The lines of `pipe` as they come, and how much processor time the process `id` had taken then.
fn listen(pipe: Option<impl Read + Send + 'static>, id: u32) -> mpsc::Receiver<Line> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for text in pipe.map(|pipe| BufReader::new(pipe).lines()).into_iter().flatten().map_while(Result::ok) {
            let at = Instant::now();
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            let processor_seconds = processor_time(&stat).unwrap_or(f64::NAN);
            if sender.send(Line { at, processor_seconds, text }).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The line `name` of `/proc/PID/status`, in bytes.
fn bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// `utime` and `stime` of `/proc/PID/stat`, in seconds. The name in parentheses before them may hold anything.
fn processor_time(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_the_fourteenth_and_fifteenth_field() {
        let stat = "42 (a (name) 1 2) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(processor_time(stat), Some(3.0));
        assert_eq!(processor_time("42 (gone"), None);
    }

    const COUNTING: Phase = Phase { begin: "begin", end: "end" };

    fn shell(script: &str, last: Option<&str>) -> Result<Run> {
        run(Command::new("sh").args(["-c", script]), last)
    }

    #[test]
    fn a_process_is_heard_and_watched() {
        let count = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let run = shell(&format!("echo begin >&2; {count}; echo the end >&2; sleep 0.1"), None).unwrap();
        let took = run.took(&COUNTING).unwrap();
        assert!(took.processor_seconds > 0.0 && took.seconds + 0.05 > took.processor_seconds);
        assert!(run.took(&Phase { begin: "begin", end: "never" }).is_err());
        assert_eq!(run.text("end").unwrap(), "the end");
        assert!(run.peak_resident > run.peak_anonymous && run.peak_anonymous > 0);
    }

    #[test]
    fn a_process_is_stopped_by_its_last_line() {
        let start = Instant::now();
        let run = shell("echo begin >&2; sleep 0.1; echo end >&2; exec sleep 60", Some("end")).unwrap();
        assert!(run.took(&COUNTING).unwrap().seconds > 0.05);
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_process_that_fails_is_an_error_with_its_last_words() {
        let error = shell("echo no such model >&2; exit 3", Some("end")).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("no such model"), "{error}");
    }
}
