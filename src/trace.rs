//! What happened when, on which thread: phases, stages, weights on their way, and who waited for whom. As Chrome's trace format, which
//! `chrome://tracing` and Perfetto (ui.perfetto.dev) draw.
//!
//! A thread that is [inside](Trace::enter) of a trace is recorded, and so are the threads that bring weights for it. On a device that
//! computes by itself, what stands for a stage is the time that the host needs to begin it.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Error, Result};

thread_local! {
    /// The one that the thread is inside of.
    static CURRENT: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// More than any request has; what comes later is left out.
const MOST_SPANS: usize = 1 << 20;

/// A recording. Clones are the same.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Recording>);

#[derive(Debug)]
struct Recording {
    begun: Instant,
    spans: Mutex<Vec<Span>>,
}

/// What a span of time was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A phase of a request, by its name.
    Phase,
    /// A stage is computed.
    Stage,
    /// The computation waits for the weights of a stage.
    WaitForWeights,
    /// The thread that brings weights waits for the slot that a stage goes into.
    WaitForSlot,
    /// The pages of a stage's weights are read from the disk, as far as they are not in memory.
    Read,
    /// The weights of a stage go to the device.
    Upload,
}

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Phases, which lie over everything.
    Phases,
    /// The thread that computes, and those that it commands.
    Compute,
    /// The thread that brings weights.
    Uploads,
}

impl Kind {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Phase => "phase",
            Kind::Stage => "stage",
            Kind::WaitForWeights => "wait for weights",
            Kind::WaitForSlot => "wait for a slot",
            Kind::Read => "read",
            Kind::Upload => "upload",
        }
    }

    /// Who does such things.
    pub fn lane(self) -> Lane {
        match self {
            Kind::Phase => Lane::Phases,
            Kind::Stage | Kind::WaitForWeights => Lane::Compute,
            Kind::WaitForSlot | Kind::Read | Kind::Upload => Lane::Uploads,
        }
    }
}

impl Lane {
    /// In the order of pictures.
    const ALL: [Lane; 3] = [Lane::Phases, Lane::Compute, Lane::Uploads];

    fn name(self) -> &'static str {
        match self {
            Lane::Phases => "phases",
            Lane::Compute => "compute",
            Lane::Uploads => "uploads",
        }
    }

    /// A number for those who count threads.
    fn number(self) -> usize {
        match self {
            Lane::Phases => 1,
            Lane::Compute => 2,
            Lane::Uploads => 3,
        }
    }
}

/// A span of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// What it was for.
    pub kind: Kind,
    /// The stage or the phase.
    pub name: String,
    /// From the beginning of the recording.
    pub start: Duration,
    /// The same.
    pub end: Duration,
    /// Bytes that were brought.
    pub bytes: Option<usize>,
    /// Weights that come in every step: for which one they are brought, from 0.
    pub step: Option<usize>,
}

impl Span {
    /// Whether both take place at some moment.
    fn overlaps(&self, other: &Span) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// What is known of a span beside its times.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About {
    pub(crate) bytes: Option<usize>,
    pub(crate) step: Option<usize>,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace::new()
    }
}

impl Trace {
    /// An empty one, which begins now.
    pub fn new() -> Trace {
        Trace(Arc::new(Recording { begun: Instant::now(), spans: Mutex::default() }))
    }

    /// The one that this thread is inside of.
    pub(crate) fn current() -> Option<Trace> {
        CURRENT.with_borrow(Option::clone)
    }

    /// Records this thread until the result is dropped.
    pub fn enter(&self) -> Inside {
        let before = CURRENT.replace(Some(self.clone()));
        Inside { before, of_this_thread: PhantomData }
    }

    /// Records that what began at `start` is over.
    pub(crate) fn record(&self, kind: Kind, name: &str, start: Instant, about: About) {
        let since = |moment: Instant| moment.saturating_duration_since(self.0.begun);
        let (start, end) = (since(start), since(Instant::now()));
        let mut spans = self.spans_so_far();
        if spans.len() < MOST_SPANS && spans.try_reserve(1).is_ok() {
            spans.push(Span { kind, name: name.to_owned(), start, end, bytes: about.bytes, step: about.step });
        }
    }

    /// Everything so far, in the order in which it ended.
    pub fn spans(&self) -> Vec<Span> {
        self.spans_so_far().clone()
    }

    fn spans_so_far(&self) -> MutexGuard<'_, Vec<Span>> {
        // A span is pushed whole or not at all.
        self.0.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In Chrome's trace format: an object with `traceEvents`, complete events in microseconds and the names of the threads.
    pub fn chrome(&self) -> Value {
        let mut events: Vec<Value> = Vec::new();
        for lane in Lane::ALL {
            let name = json!({ "name": lane.name() });
            events.push(json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": lane.number(), "args": name }));
        }
        events.extend(self.spans_so_far().iter().map(event));
        json!({ "displayTimeUnit": "ms", "traceEvents": events })
    }
}

impl Trace {
    /// Writes it in Chrome's trace format.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut to, &self.chrome())?;
        to.flush()
    }
}

/// The most that is read to see whether a file is a trace.
const MOST_LOOKED_AT: u64 = 256;

/// Refuses to replace a file that is there by a trace, unless it is one.
///
/// # Errors
/// [`Error::Exists`].
pub fn check_replaced(path: &Path) -> Result<()> {
    // What is no file is refused where it is created.
    if !fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() > 0) {
        return Ok(());
    }
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_LOOKED_AT).read_to_end(&mut start));
    if read.is_ok() && String::from_utf8_lossy(&start).contains("\"traceEvents\"") {
        return Ok(());
    }
    let hint = "it holds no trace, so it is not replaced: choose another name";
    Err(Error::Exists { path: path.to_owned(), hint: Some(hint.into()) })
}

fn event(span: &Span) -> Value {
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    let mut args = serde_json::Map::new();
    if let Some(bytes) = span.bytes {
        args.insert("bytes".into(), bytes.into());
    }
    if let Some(step) = span.step {
        args.insert("step".into(), step.into());
    }
    json!({
        "ph": "X", "cat": span.kind.name(), "name": span.name, "pid": 1, "tid": span.kind.lane().number(),
        "ts": micros(span.start), "dur": micros(span.end.saturating_sub(span.start)), "args": args,
    })
}

/// An upload that the computation waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The stage.
    pub stage: String,
    /// The step that it was for.
    pub step: usize,
    /// Whether it was the first of its step: nothing is computed that it could hide behind, unless a step was before.
    pub first: bool,
    /// How long it was waited for.
    pub waited: Duration,
}

/// How the uploads of steps lay to the computation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// How many there were.
    pub uploads: usize,
    /// Those that the computation waited for.
    pub exposed: Vec<Exposed>,
}

impl Exposure {
    /// Of the uploads among `spans`. One is exposed if the computation waited for its stage while it was under way.
    pub fn of(spans: &[Span]) -> Exposure {
        let waits: Vec<&Span> = spans.iter().filter(|span| span.kind == Kind::WaitForWeights).collect();
        let (mut exposure, mut last_step) = (Exposure::default(), None);
        for upload in spans.iter().filter(|span| span.kind == Kind::Upload) {
            let Some(step) = upload.step else { continue };
            let first = last_step.replace(step) != Some(step);
            exposure.uploads += 1;
            if let Some(wait) = waits.iter().find(|wait| wait.name == upload.name && wait.overlaps(upload)) {
                let waited = wait.end.min(upload.end) - wait.start.max(upload.start);
                exposure.exposed.push(Exposed { stage: upload.name.clone(), step, first, waited });
            }
        }
        exposure
    }

    /// Those that something could have been computed beside.
    pub fn avoidable(&self) -> impl Iterator<Item = &Exposed> {
        self.exposed.iter().filter(|exposed| !exposed.first)
    }
}

/// A thread that is inside of a [`Trace`].
#[derive(Debug)]
pub struct Inside {
    before: Option<Trace>,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_inside_is_recorded() {
        assert!(Trace::current().is_none());
        let trace = Trace::new();
        {
            let _inside = trace.enter();
            let start = Instant::now();
            Trace::current().unwrap().record(Kind::Stage, "double.0", start, About::default());
        }
        assert!(Trace::current().is_none());
        let spans = trace.spans();
        assert_eq!((spans.len(), spans[0].kind, spans[0].name.as_str()), (1, Kind::Stage, "double.0"));
        assert!(spans[0].start <= spans[0].end);
    }

    fn span(kind: Kind, name: &str, start: u64, end: u64, step: Option<usize>) -> Span {
        let [start, end] = [start, end].map(Duration::from_millis);
        Span { kind, name: name.into(), start, end, bytes: None, step }
    }

    #[test]
    fn what_is_waited_for_is_exposed() {
        let spans = [
            span(Kind::Upload, "vector", 0, 5, None),
            span(Kind::Upload, "a", 5, 10, Some(0)),
            span(Kind::WaitForWeights, "a", 4, 10, None),
            span(Kind::Upload, "b", 10, 15, Some(0)),
            // Waited for before it was under way.
            span(Kind::WaitForWeights, "c", 19, 20, None),
            span(Kind::Upload, "c", 20, 25, Some(0)),
            span(Kind::Upload, "a", 25, 30, Some(1)),
            span(Kind::WaitForWeights, "b", 33, 35, None),
            span(Kind::Upload, "b", 30, 35, Some(1)),
        ];
        let exposed = |stage: &str, step, first, waited| {
            let waited = Duration::from_millis(waited);
            Exposed { stage: stage.into(), step, first, waited }
        };
        let exposure = Exposure::of(&spans);
        assert_eq!(exposure.uploads, 5);
        assert_eq!(exposure.exposed, [exposed("a", 0, true, 5), exposed("b", 1, false, 2)]);
        assert_eq!(exposure.avoidable().count(), 1);
    }

    #[test]
    fn files_are_as_chrome_reads_them() {
        let trace = Trace::new();
        trace.spans_so_far().push(Span { bytes: Some(7), ..span(Kind::Upload, "double.0", 1, 3, Some(2)) });
        let file = trace.chrome();
        let events = file["traceEvents"].as_array().unwrap();
        let names: Vec<&Value> = events[..3].iter().map(|event| &event["args"]["name"]).collect();
        assert_eq!(names, ["phases", "compute", "uploads"]);
        let expected = json!({
            "ph": "X", "cat": "upload", "name": "double.0", "pid": 1, "tid": 3, "ts": 1000.0, "dur": 2000.0,
            "args": { "bytes": 7, "step": 2 },
        });
        assert_eq!(events[3], expected);
    }
}
