//! Converting a diffusers directory while its files come.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pinhole::convert::{self, Options, Progress, Types, WriteOptions};
use pinhole::ggml::CancelFlag;
use pinhole::index::{self, Expected};
use pinhole::pipeline;
use pinhole::source::Source;
use pinhole_hub::{Arriving, Event, Hub, Wanted, tidy};

use super::fetch::{fetch, listened};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Unit};
use crate::cli::{threads, units};

/// How long files wait to be fetched for the conversion to open them: what is whole lies elsewhere.
const OPENING: Duration = Duration::from_secs(5);

/// How often it is told how far the conversion is, once everything is there.
const TICK: Duration = Duration::from_millis(100);

/// How far the conversion is.
#[derive(Default)]
struct Done {
    tensor: String,
    bytes: u64,
    of: u64,
}

impl Done {
    fn percent(&self) -> u64 {
        (100 * self.bytes).checked_div(self.of).unwrap_or(0)
    }
}

/// Fetches the files `wanted` of a model, and makes the bundle `output` of them in the meantime, with as many `threads`. Returns whether it is made: where the
/// files do not allow it, or something went wrong with it and not with the fetching, a caller that has all files can make it.
///
/// # Errors
/// Those of fetching.
pub(super) fn convert(
    (hub, wanted): (&Hub, &[Wanted]),
    (types, output): (&Types, &Path),
    threads: Option<usize>,
    (cancel, printer): (&CancelFlag, &Printer),
) -> Result<bool, Failure> {
    let Some(directory) = wanted.iter().find_map(|file| file.directory.as_ref()) else { return Ok(false) };
    let cancelled = || cancel.is_raised();
    let mut wanted = wanted.to_vec();
    hub.begin(&mut wanted, &cancelled, &mut |event| listened(printer, event))?;
    let (coming, others): (Vec<Wanted>, Vec<Wanted>) = wanted.into_iter().partition(|file| file.arriving.is_some());
    if coming.is_empty() {
        return Ok(false);
    }
    fetch(hub, &others, hub.missing(&others), cancel, printer)?;
    let Ok(view) = View::new(&hub.settings.home, directory, [&coming[..], &others[..]].concat()) else {
        return Ok(false);
    };
    let (done, (opened, is_opened)) = (Mutex::new(Done::default()), mpsc::channel());
    let work = Work { view: &view, coming: &coming, types, output, threads, cancel, done: &done };
    let missing = hub.missing(&coming);
    printer.note(&format!("{} to fetch, and to convert meanwhile", units::bytes(missing)));
    printer.begin("pull", missing, Unit::Bytes);
    thread::scope(|scope| {
        let Ok(converting) = thread::Builder::new().spawn_scoped(scope, || work.convert(opened)) else {
            return Ok(false);
        };
        // Also if it ended without opening them.
        let _ = is_opened.recv_timeout(OPENING);
        let mut file = String::new();
        hub.fetch(&coming, &cancelled, &mut |event| {
            if let Event::Begin { file: name } = event {
                file = units::shown(name);
            }
            let is_progress = matches!(event, Event::Progress { .. });
            listened(printer, event);
            if is_progress {
                let percent = done.lock().unwrap_or_else(PoisonError::into_inner).percent();
                printer.doing(format!("{file}, {percent}% converted"));
            }
        })?;
        printer.end("pull");
        printer.begin("convert", done.lock().unwrap_or_else(PoisonError::into_inner).of, Unit::Bytes);
        while !converting.is_finished() {
            let done = done.lock().unwrap_or_else(PoisonError::into_inner);
            printer.progress(done.bytes);
            printer.doing(done.tensor.clone());
            drop(done);
            thread::sleep(TICK);
        }
        let is_made = converting.join().is_ok_and(|made| made.is_ok());
        if is_made {
            printer.end("convert");
        }
        Ok(is_made)
    })
}

/// What the thread that converts has.
struct Work<'a> {
    view: &'a View,
    coming: &'a [Wanted],
    types: &'a Types,
    output: &'a Path,
    threads: Option<usize>,
    cancel: &'a CancelFlag,
    done: &'a Mutex<Done>,
}

impl Work<'_> {
    /// Writes the bundle. It appears when all files have the checksums that they are to have.
    fn convert(&self, opened: Sender<()>) -> pinhole::Result<()> {
        let _expecting = index::expect(self.coming.iter().filter_map(|file| self.view.expected(file)).collect());
        let (_, _inside) = threads::start(self.threads);
        let source = Source::open(&self.view.folder)?;
        // If no one hears of it, it is too late for that.
        let _ = opened.send(());
        drop(opened);
        let whole = pipeline::open(&source)?;
        let networks = whole.networks();
        let plan = convert::plan(&whole.source, &networks, Options::from(self.types.clone()))?;
        plan.write(self.output, WriteOptions::default(), &mut |Progress { tensor, done, total }| {
            *self.done.lock().unwrap_or_else(PoisonError::into_inner) =
                Done { tensor: tensor.to_owned(), bytes: done, of: total };
            if done == total {
                for arriving in self.coming.iter().filter_map(|file| file.arriving.as_ref()) {
                    arriving.wait_for_all().map_err(|_| pinhole::Error::Cancelled)?;
                }
            }
            self.cancel.check()
        })?;
        Ok(())
    }
}

/// A file of the hub's, as the library waits for it.
#[derive(Debug)]
struct Coming(Arc<Arriving>);

impl index::Arriving for Coming {
    fn wait(&self, range: Range<u64>) -> pinhole::Result<()> {
        self.0.wait(range).map_err(|_| pinhole::Error::Cancelled)
    }
}

/// A folder that looks as the model's will, with links to what is there and to where the rest comes. It goes with the value.
struct View {
    root: PathBuf,
    /// It is called what the model's will be called, so that the model has its name.
    folder: PathBuf,
    /// The model's.
    directory: PathBuf,
}

impl View {
    fn new(home: &Path, directory: &Path, files: Vec<Wanted>) -> io::Result<View> {
        let root = std::path::absolute(home)?.join(format!("{}{}", tidy::ARRIVING, process::id()));
        let mut folder = root.clone();
        // `models--OWNER--NAME/snapshots/COMMIT`
        let steps: Vec<_> = directory.components().rev().take(3).collect();
        folder.extend(steps.iter().rev());
        let view = View { root, folder, directory: directory.to_owned() };
        for file in files {
            let link = view.at(&file).ok_or(io::ErrorKind::InvalidInput)?;
            fs::create_dir_all(link.parent().unwrap_or(&view.folder))?;
            let target = file.arriving.as_ref().map_or(file.path.as_path(), |arriving| arriving.part());
            symlink(&std::path::absolute(target)?, &link)?;
        }
        Ok(view)
    }

    /// Where it has `file`.
    fn at(&self, file: &Wanted) -> Option<PathBuf> {
        Some(self.folder.join(file.path.strip_prefix(&self.directory).ok()?))
    }

    fn expected(&self, file: &Wanted) -> Option<Expected> {
        let arriving = file.arriving.as_ref()?;
        let (path, size) = (self.at(file)?, arriving.size());
        Some(Expected { path, size, arriving: Arc::new(Coming(Arc::clone(arriving))) })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // Links alone: what they lead to stays.
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Without such links, what is fetched is converted when all is there.
#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
