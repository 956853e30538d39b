//! Gets one file: in parallel ranges, resumed, checked while it comes.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ureq::http::header;

use crate::arriving::Arriving;
use crate::checksum::{Checksum, Hasher};
use crate::client::{Answer, Client, Identity, Range, broken, is_page};
use crate::error::{Error, Result};
use crate::part::{self, Part};
use crate::patience::{Patience, Trouble, wait};
use crate::settings::Settings;
use crate::url::Url;

/// How much is read from a connection at a time.
const PIECE: usize = 256 << 10;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);
/// The most bytes of a file whose server does not say how long it is.
const LARGEST_UNKNOWN: u64 = 1 << 40;
/// How often a file is fetched anew because its checksum is wrong.
const ATTEMPTS: usize = 2;

/// What happens while files are fetched.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A file begins.
    Begin {
        /// Its name.
        file: &'a str,
    },
    /// This many bytes came since the first file began.
    Progress {
        /// All of them together.
        bytes: u64,
    },
    /// Something failed and is tried again.
    Again {
        /// What failed.
        error: &'a Error,
        /// When it is tried.
        pause: Duration,
    },
    /// Another process fetches the same file.
    Waiting {
        /// Its name.
        file: &'a str,
    },
    /// A file came whole, and is not the right one: it is fetched anew.
    Anew {
        /// Its name.
        file: &'a str,
    },
    /// A file is whole and checked.
    Done {
        /// Its name.
        file: &'a str,
    },
}

/// A file that is to be fetched.
pub(crate) struct Download<'a> {
    /// What to call it.
    pub(crate) name: &'a str,
    pub(crate) url: Url,
    pub(crate) identity: Identity,
    pub(crate) size: Option<u64>,
    pub(crate) checksum: Option<&'a Checksum>,
    /// The version that is meant, by the server's own tag, if it has one.
    pub(crate) tag: Option<&'a str>,
    /// Where it lies while it is not whole.
    pub(crate) part: PathBuf,
    /// Who is told what is there of it.
    pub(crate) arriving: Option<&'a Arc<Arriving>>,
}

/// What came of fetching a file in ranges.
enum Came {
    /// The whole file, with the checksum that it has, if one is wanted.
    Whole(Option<Checksum>),
    /// The server has no ranges.
    NoRanges,
}

/// Who fetches.
pub(crate) struct Fetcher<'a> {
    pub(crate) client: &'a Client,
    pub(crate) settings: &'a Settings,
    pub(crate) cancelled: &'a (dyn Fn() -> bool + Sync),
    pub(crate) listen: &'a mut dyn FnMut(Event<'_>),
    /// Bytes of earlier files.
    pub(crate) before: u64,
}

impl Fetcher<'_> {
    /// Fetches a file. In the end it lies at its part's path, whole and checked.
    ///
    /// # Errors
    /// What was fetched stays, except if it is wrong.
    pub(crate) fn get(&mut self, download: &Download<'_>) -> Result<()> {
        let in_ranges = download.arriving.is_some() || download.size.is_some_and(|size| size > self.settings.range);
        let mut found = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                (self.listen)(Event::Anew { file: download.name });
            }
            let came = if in_ranges { self.in_ranges(download)? } else { Came::NoRanges };
            found = match came {
                Came::Whole(found) => found,
                Came::NoRanges => self.in_one(download)?,
            };
            match (download.checksum, &found) {
                (Some(expected), Some(found)) if expected != found => {
                    download.arriving.iter().for_each(|arriving| arriving.give_up());
                    fs::remove_file(&download.part).map_err(|error| Error::io("remove", &download.part, error))?;
                }
                _ => return Ok(()),
            }
        }
        let text = |checksum: Option<&Checksum>| checksum.map_or("none".to_owned(), ToString::to_string);
        let (expected, found) = (text(download.checksum), text(found.as_ref()));
        Err(Error::Checksum { file: download.name.to_owned(), expected, found })
    }

    /// Fetches a file in ranges, several at a time.
    fn in_ranges(&mut self, download: &Download<'_>) -> Result<Came> {
        let Some(size) = download.size else { return Ok(Came::NoRanges) };
        let part = Part::open(&download.part, size, self.settings.grain)?.telling(download.arriving);
        let work = Work::new((self.client, self.settings), download, &part, &part.missing());
        let checksum = self.together(&work, || work.check())?;
        let Some(checksum) = checksum else { return Ok(Came::NoRanges) };
        part.finish()?;
        Ok(Came::Whole(checksum))
    }

    /// Fetches the first `bytes` of a file to its part, or a few more; `None` if its server has no ranges.
    pub(crate) fn beginning(&mut self, download: &Download<'_>, bytes: u64) -> Result<Option<Part>> {
        let Some(size) = download.size else { return Ok(None) };
        let part = Part::open(&download.part, size, self.settings.grain)?;
        let mut missing = part.missing();
        missing.retain(|&i| part.grain(i).from < bytes);
        let work = Work::new((self.client, self.settings), download, &part, &missing);
        let came = self.together(&work, || Ok(()))?;
        Ok(came.map(|()| part))
    }

    /// Fetches what `work` has to do, several runs at a time, and does `beside` meanwhile; `None` if the server has no ranges.
    fn together<T: Send>(&mut self, work: &Work<'_>, beside: impl Fn() -> Result<T> + Sync) -> Result<Option<T>> {
        let runs = work.queue.lock().unwrap_or_else(PoisonError::into_inner).len();
        let workers = self.settings.connections.clamp(1, runs.max(1));
        let (said, heard) = mpsc::channel();
        let done = thread::scope(|scope| {
            for i in 0..workers {
                let said = said.clone();
                let started = thread::Builder::new().spawn_scoped(scope, move || work.run(&said));
                // The others do its work, if there are any.
                if let (0, Err(error)) = (i, started) {
                    work.fail(Error::io("start a thread to fetch", &work.download.part, error));
                }
            }
            drop(said);
            let aside = thread::Builder::new().spawn_scoped(scope, &beside);
            self.follow(work, &heard);
            // Without a thread, it is done when all is there.
            aside.map_or_else(|_| beside(), |aside| aside.join().unwrap_or(Err(Error::Cancelled)))
        });
        self.before += work.came.load(Ordering::Relaxed);
        (self.listen)(Event::Progress { bytes: self.before });
        if work.has_no_ranges.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if let Some(error) = work.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        done.map(Some)
    }

    /// Tells what happens, until all threads are done.
    fn follow(&mut self, work: &Work<'_>, heard: &Receiver<(Error, Duration)>) {
        loop {
            match heard.recv_timeout(TICK) {
                Ok((error, pause)) => (self.listen)(Event::Again { error: &error, pause }),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            (self.listen)(Event::Progress { bytes: self.before + work.came.load(Ordering::Relaxed) });
            if (self.cancelled)() {
                work.fail(Error::Cancelled);
            }
        }
    }

    /// Fetches a file from its first byte to its last over one connection, from the beginning each time.
    fn in_one(&mut self, download: &Download<'_>) -> Result<Option<Checksum>> {
        let mut patience = Patience::new(self.settings.pause);
        loop {
            let trouble = match self.once(download) {
                Ok(found) => return Ok(found),
                Err(trouble) => trouble,
            };
            let (pause, error) = patience.after(trouble)?;
            (self.listen)(Event::Again { error: &error, pause });
            wait(pause, self.cancelled)?;
        }
    }

    fn once(&mut self, download: &Download<'_>) -> Result<Option<Checksum>, Trouble> {
        let answer = self.client.get(&download.url, &download.identity, None, None)?;
        let size = download.size.or(answer.length());
        let mut file = part::open_file(&download.part)?;
        let wrong = |error| Trouble::Lasting(Error::io("write", &download.part, error));
        file.set_len(0).map_err(wrong)?;
        let (url, kind) = (answer.url.clone(), answer.header(header::CONTENT_TYPE).map(str::to_owned));
        let mut hasher = size.and_then(|size| download.checksum.map(|checksum| checksum.hasher(size)));
        // One byte more than there may be, so that what is too long is seen.
        let mut body = answer.reader(size.unwrap_or(LARGEST_UNKNOWN).saturating_add(1));
        let (mut piece, mut came) = (vec![0; PIECE], 0);
        loop {
            if (self.cancelled)() {
                return Err(Error::Cancelled.into());
            }
            let count = body.read(&mut piece).map_err(|error| broken(&url, error))?;
            if came == 0 {
                refuse_page(download, &url, kind.as_deref(), &piece[..count])?;
            }
            if count == 0 {
                break;
            }
            file.write_all(&piece[..count]).map_err(wrong)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(&piece[..count]);
            }
            came += count as u64;
            (self.listen)(Event::Progress { bytes: self.before + came });
        }
        match size {
            Some(size) if came < size => return Err(Trouble::Passing(broke_off(&url, came, size), None)),
            Some(size) if came > size => {
                let found = "more than that".to_owned();
                return Err(Error::answer(url.without_query(), format!("{size} bytes"), found).into());
            }
            _ => {}
        }
        file.sync_data().map_err(wrong)?;
        self.before += came;
        Ok(hasher.map(Hasher::finish))
    }
}

/// Grains of a part that are asked for at once: the first, and the one behind the last.
type Run = std::ops::Range<usize>;

/// What is `missing`, in runs of at most `most` grains.
fn runs(missing: &[usize], most: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &i in missing {
        match runs.last_mut() {
            Some(run) if run.end == i && (run.len() as u64) < most => run.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

/// What several threads fetch together.
struct Work<'a> {
    fetcher: (&'a Client, &'a Settings),
    download: &'a Download<'a>,
    size: u64,
    part: &'a Part,
    /// Runs of grains that no one is at, the next one last.
    queue: Mutex<Vec<Run>>,
    /// Where the hub's redirect led: ranges are asked for there, without asking the hub again.
    target: Mutex<Option<Url>>,
    came: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    has_no_ranges: AtomicBool,
}

impl<'a> Work<'a> {
    /// Fetches the grains `missing` of `part`, from the first to the last.
    fn new(
        fetcher: (&'a Client, &'a Settings),
        download: &'a Download<'a>,
        part: &'a Part,
        missing: &[usize],
    ) -> Work<'a> {
        let Settings { range, grain, .. } = fetcher.1;
        let runs = runs(missing, range.div_ceil(*grain));
        Work {
            fetcher,
            download,
            size: download.size.unwrap_or_default(),
            part,
            queue: Mutex::new(runs.into_iter().rev().collect()),
            target: Mutex::new(None),
            came: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            has_no_ranges: AtomicBool::new(false),
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Ends all threads; the first reason counts.
    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Fetches run after run.
    fn run(&self, said: &Sender<(Error, Duration)>) {
        while !self.is_stopped() {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(run) = next else { return };
            if let Err(error) = self.fetch(run, said) {
                self.fail(error);
            }
        }
    }

    /// Fetches a run, from where it breaks off each time.
    fn fetch(&self, run: Run, said: &Sender<(Error, Duration)>) -> Result<()> {
        let (from, to) = (self.part.grain(run.start).from, self.part.grain(run.end - 1).to);
        let mut patience = Patience::new(self.fetcher.1.pause);
        let (mut at, mut next) = (from, run.start);
        loop {
            let before = at;
            let trouble = match self.once(&mut at, to, &mut next) {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            if at > before {
                patience.renew();
            }
            let (pause, error) = patience.after(trouble)?;
            // No one listens to a thread that goes on after the others have stopped.
            let _ = said.send((error, pause));
            wait(pause, &|| self.is_stopped())?;
        }
    }

    /// Fetches what it can of `at..to`, and moves `at`, and `next` from each grain that is whole to the next.
    fn once(&self, at: &mut u64, to: u64, next: &mut usize) -> Result<(), Trouble> {
        let answer = self.ask(Range { from: *at, to })?;
        if answer.status == 200 {
            self.has_no_ranges.store(true, Ordering::Relaxed);
            return Err(Error::Cancelled.into());
        }
        self.check_range(&answer, *at)?;
        let (url, kind) = (answer.url.clone(), answer.header(header::CONTENT_TYPE).map(str::to_owned));
        let mut body = answer.reader(to - *at);
        let mut piece = vec![0; PIECE.min((to - *at) as usize)];
        while *at < to {
            if self.is_stopped() {
                return Err(Error::Cancelled.into());
            }
            let count = body.read(&mut piece).map_err(|error| broken(&url, error))?;
            if count == 0 {
                return Err(Trouble::Passing(broke_off(&url, *at, self.size), None));
            }
            if *at == 0 {
                refuse_page(self.download, &url, kind.as_deref(), &piece[..count])?;
            }
            self.part.write(&piece[..count], *at)?;
            *at += count as u64;
            while self.part.grain(*next).to <= *at && *at > self.part.grain(*next).from {
                self.part.finish_grain(*next)?;
                *next += 1;
            }
            self.came.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Asks for a range, where the last redirect led if that still works.
    fn ask(&self, range: Range) -> Result<Answer, Trouble> {
        let Download { url, identity, tag, .. } = self.download;
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (client, _) = self.fetcher;
        let Some(target) = target else {
            let answer = client.get(url, identity, Some(range), *tag)?;
            *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.url.clone());
            return Ok(answer);
        };
        let answer = client.get(&target, identity, Some(range), *tag);
        if answer.is_err() {
            // The hub says where to go on.
            *self.target.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        answer
    }

    /// Refuses an answer with another range than that from `at` on, or of another file.
    fn check_range(&self, answer: &Answer, at: u64) -> Result<()> {
        let said = answer.header(header::CONTENT_RANGE).unwrap_or_default();
        let expected = format!("bytes from {at} on, of {}", self.size);
        let wrong = || Error::answer(answer.url.without_query(), expected.clone(), format!("`{said}`"));
        let (range, all) = said.strip_prefix("bytes ").and_then(|said| said.split_once('/')).ok_or_else(wrong)?;
        let (from, _) = range.split_once('-').ok_or_else(wrong)?;
        let is_same = from.parse() == Ok(at) && (all == "*" || all.parse() == Ok(self.size));
        if is_same { Ok(()) } else { Err(wrong()) }
    }

    /// The checksum of what comes, of the kind that is wanted; `None` if none is, or if the fetching stops.
    fn check(&self) -> Result<Option<Checksum>> {
        let Some(wanted) = self.download.checksum else { return Ok(None) };
        let mut hasher = wanted.hasher(self.size);
        let is_whole = self.part.read(&|| self.is_stopped(), &mut |piece| hasher.update(piece));
        match is_whole {
            Ok(is_whole) => Ok(is_whole.then(|| hasher.finish())),
            Err(error) => {
                self.stop.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

fn broke_off(url: &Url, at: u64, size: u64) -> Error {
    Error::Unreachable {
        url: url.without_query().to_owned(),
        problem: format!("the connection broke off at byte {at} of {size}"),
        hint: Some("what was fetched stays: run the command again".into()),
    }
}

/// Refuses a page for browsers in the place of a file that is none.
fn refuse_page(download: &Download<'_>, url: &Url, kind: Option<&str>, start: &[u8]) -> Result<()> {
    let is_meant = Path::new(download.name).extension().is_some_and(|ending| ending == "html" || ending == "htm");
    if is_meant || !is_page(kind, start) {
        return Ok(());
    }
    let hint = "open that address in a browser: a login, a proxy or the hub itself has something to say";
    Err(Error::answer(url.without_query(), format!("the file {}", download.name), "a page of HTML").with_hint(hint))
}
