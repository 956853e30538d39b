//! All output: data on stdout, talk on stderr.

use std::cell::{Cell, RefCell};
use std::env;
use std::io::{self, IsTerminal, Write};
#[cfg(unix)]
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::failure::Failure;
use super::units;

/// How often a bar moves when nothing happens, so that its clock runs.
const TICK: Duration = Duration::from_millis(250);

/// The options about output that every command has.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "Output")]
pub(super) struct Talk {
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
    /// Print no progress and no notes; warnings and errors still come
    #[arg(short, long)]
    quiet: bool,
}

/// What a bar counts.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    /// Parts of the work that take about as long each.
    Parts,
    /// Bytes of a file.
    Bytes,
}

/// Owns stdout and stderr.
pub(super) struct Printer {
    json: bool,
    quiet: bool,
    animated: bool,
    colour: bool,
    bar: RefCell<ProgressBar>,
    started: Cell<Instant>,
    warnings: RefCell<Vec<String>>,
}

impl Printer {
    /// The printer that the options ask for. Bars and colours are for terminals only; `NO_COLOR` (no-color.org) turns
    /// colours off.
    pub(super) fn new(talk: &Talk) -> Printer {
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = io::stderr().is_terminal() && !dumb;
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Printer {
            json: talk.json,
            quiet: talk.quiet,
            animated: terminal && !talk.quiet,
            colour: terminal && !no_color,
            bar: RefCell::new(ProgressBar::hidden()),
            started: Cell::new(Instant::now()),
            warnings: RefCell::default(),
        }
    }

    /// Whether stdout takes one JSON object.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// Whether somebody watches stderr.
    pub(super) fn animated(&self) -> bool {
        self.animated
    }

    /// Prints `text`, which ends its own lines, as data.
    pub(super) fn data(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::Stdout)
    }

    /// Prints `object`, the one of `--json`.
    pub(super) fn object(&self, object: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(object).map_err(|error| Failure::Stdout(error.into()))?;
        self.data(&(text + "\n"))
    }

    /// Says something that is good to know.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// Says something that the user should know, and remembers it for [`warnings`](Printer::warnings).
    pub(super) fn warn(&self, text: &str) {
        let text = units::shown(text);
        self.line(&format!("{} {text}", self.painted("warning:", "33")));
        self.warnings.borrow_mut().push(text);
    }

    /// The warnings so far.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().clone()
    }

    /// Says why the command failed, and what can be done.
    pub(super) fn failure(&self, failure: &Failure) {
        self.bar.borrow().finish_and_clear();
        if failure.is_silent() {
            return;
        }
        self.line(&format!("{} {}", self.painted("error:", "31"), units::shown(&failure.to_string())));
        if let Some(hint) = failure.hint() {
            self.line(&format!("{} {}", self.painted("hint:", "36"), units::shown(hint)));
        }
    }

    /// Begins a phase of `total` units, with a bar.
    pub(super) fn begin(&self, phase: &str, total: u64, unit: Unit) {
        self.bar.borrow().finish_and_clear();
        self.started.set(Instant::now());
        if !self.animated {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style(unit));
        bar.set_prefix(phase.to_owned());
        bar.enable_steady_tick(TICK);
        *self.bar.borrow_mut() = bar;
    }

    /// `done` units of the phase are done.
    pub(super) fn progress(&self, done: u64) {
        self.bar.borrow().set_position(done);
    }

    /// One more unit of the phase is done.
    pub(super) fn advance(&self) {
        self.bar.borrow().inc(1);
    }

    /// What is being done, beside the bar.
    pub(super) fn doing(&self, text: String) {
        self.bar.borrow().set_message(text);
    }

    /// The phase is over: its bar makes room for a line with its time.
    pub(super) fn end(&self, phase: &str) {
        self.bar.borrow().finish_and_clear();
        self.note(&format!("{phase:<8} {}", units::time(self.started.get().elapsed())));
    }

    fn painted(&self, text: &str, code: &str) -> String {
        if self.colour { format!("\x1b[1;{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A line of talk, above the bar where there is one. A closed stderr hears nothing, and that is all.
    fn line(&self, text: &str) {
        self.bar.borrow().suspend(|| {
            let _ = writeln!(io::stderr(), "{text}");
        });
    }
}

/// Says that Ctrl-C was heard. From the handler's thread, which no [`Printer`] belongs to.
pub(super) fn interrupting() {
    let _ = writeln!(io::stderr(), "\nstopping (Ctrl-C again ends at once)");
}

/// Says something that the user should know. From a thread which no [`Printer`] belongs to.
pub(super) fn aside(text: &str) {
    let _ = writeln!(io::stderr(), "warning: {}", units::shown(text));
}

/// Says that it was heard, where nothing else said so. From a thread which no [`Printer`] belongs to.
pub(super) fn interrupted() {
    let _ = writeln!(io::stderr(), "error: interrupted");
}

/// Says that pages of a mapped file cannot be had any more. From a thread which no [`Printer`] belongs to.
#[cfg(unix)]
pub(super) fn lost(path: Option<&Path>) {
    let path = path.map_or("a mapped file".to_owned(), |path| units::shown(&path.display().to_string()));
    let _ = writeln!(io::stderr(), "error: {path}: it was cut short while it was in use, or its disk failed");
}

impl Unit {
    fn template(self) -> &'static str {
        match self {
            Unit::Parts => "{prefix:<8} [{bar:30}] {percent:>3}% {msg} {elapsed}, {eta} left",
            Unit::Bytes => {
                "{prefix:<8} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left {msg}"
            }
        }
    }
}

fn style(unit: Unit) -> ProgressStyle {
    // The templates are constants, which `the_templates_are_well_formed` checks.
    let style = ProgressStyle::with_template(unit.template()).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_well_formed() {
        for unit in [Unit::Parts, Unit::Bytes] {
            assert!(ProgressStyle::with_template(unit.template()).is_ok());
        }
    }
}
