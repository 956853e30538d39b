//! Files that are still on their way: code that reads of them waits for it.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Result;

thread_local! {
    /// Those that this thread expects.
    static EXPECTED: RefCell<Vec<Expected>> = const { RefCell::new(Vec::new()) };
}

/// Says when parts of a file are there.
pub trait Arriving: fmt::Debug + Send + Sync {
    /// Waits until the bytes in `range` are there.
    ///
    /// # Errors
    /// They will never be.
    fn wait(&self, range: Range<u64>) -> Result<()>;
}

/// A file that is on its way. Its beginning, with its header, is there.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Where it is opened.
    pub path: PathBuf,
    /// Its bytes in the end. There may be others behind them until then.
    pub size: u64,
    /// What is there of it.
    pub arriving: Arc<dyn Arriving>,
}

/// A thread that expects files.
#[derive(Debug)]
pub struct Expecting {
    before: Vec<Expected>,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Expecting {
    fn drop(&mut self) {
        EXPECTED.set(std::mem::take(&mut self.before));
    }
}

/// Until the result is dropped, this thread opens `files` as they will be in the end.
pub fn expect(files: Vec<Expected>) -> Expecting {
    Expecting { before: EXPECTED.replace(files), of_this_thread: PhantomData }
}

/// The file at `path`, if this thread expects it.
pub(super) fn at(path: &Path) -> Option<Expected> {
    EXPECTED.with_borrow(|files| files.iter().find(|file| file.path == path).cloned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::sync::{Condvar, Mutex};
    use std::thread;
    use std::time::Duration;

    use super::super::Map;
    use super::*;
    use crate::Error;

    /// How many of the first bytes are there; none come after `None`.
    #[derive(Debug, Default)]
    struct FromTheFront(Mutex<Option<u64>>, Condvar);

    impl FromTheFront {
        fn set(&self, there: Option<u64>) {
            *self.0.lock().unwrap() = there;
            self.1.notify_all();
        }
    }

    impl Arriving for FromTheFront {
        fn wait(&self, range: Range<u64>) -> Result<()> {
            let there = self.0.lock().unwrap();
            let there = self.1.wait_while(there, |there| there.is_some_and(|there| there < range.end)).unwrap();
            there.map(|_| ()).ok_or(Error::Cancelled)
        }
    }

    #[test]
    fn what_is_read_of_a_file_on_its_way_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let content: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        // As it is there: the beginning, a hole, and something behind the end.
        fs::write(&path, [&content[..100], &[0; 19_900], &[9; 40]].concat()).unwrap();
        let arriving = Arc::new(FromTheFront(Mutex::new(Some(100)), Condvar::new()));
        let expecting = expect(vec![Expected { path: path.clone(), size: 20_000, arriving: arriving.clone() }]);
        let map = Map::open(&path).unwrap();
        drop(expecting);
        assert_eq!((map.bytes().len(), Map::open(&path).unwrap().bytes().len()), (20_000, 20_040));
        let mut start = [0; 100];
        map.read(0, &mut start).unwrap();
        assert_eq!(start, content[..100]);
        thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut rest = vec![0; 19_000];
                map.read(1000, &mut rest).map(|()| rest)
            });
            thread::sleep(Duration::from_millis(50));
            assert!(!reading.is_finished());
            fs::write(&path, &content).unwrap();
            arriving.set(Some(20_000));
            assert!(reading.join().unwrap().unwrap() == content[1000..]);
        });
        arriving.set(None);
        assert!(map.read(0, &mut start).is_err() && map.populate(0..10).is_err());
    }
}
