//! What is there of a file while it is fetched, for those who read it meanwhile.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

/// A file that is on its way.
#[derive(Debug)]
pub struct Arriving {
    part: PathBuf,
    size: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
enum State {
    /// As far as these grains, of so many bytes each, are there.
    There { grain: u64, grains: Vec<bool> },
    /// All of it is there, and has the checksum that it is to have.
    Whole,
    /// What was there was wrong, or no more comes.
    Over,
}

/// A file that does not come, or that is another one than the one that has a part here. The code that fetches it says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over;

impl Arriving {
    pub(crate) fn new(part: &Path, size: u64) -> Arriving {
        let state = Mutex::new(State::There { grain: 1, grains: Vec::new() });
        Arriving { part: part.to_owned(), size, state, changed: Condvar::new() }
    }

    /// Where its bytes lie until it is whole. Others may lie behind them.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// Its bytes in the end.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Waits until the bytes in `range` are there.
    ///
    /// # Errors
    /// [`Over`].
    pub fn wait(&self, range: Range<u64>) -> Result<(), Over> {
        self.until(|state| match state {
            State::There { grain, grains } => {
                let (first, end) = (range.start / grain, range.end.div_ceil(*grain));
                let of_range = grains.get(first as usize..end as usize)?;
                of_range.iter().all(|is_there| *is_there).then_some(Ok(()))
            }
            State::Whole => Some(Ok(())),
            State::Over => Some(Err(Over)),
        })
    }

    /// Waits until all of it is there, and checked.
    ///
    /// # Errors
    /// [`Over`].
    pub fn wait_for_all(&self) -> Result<(), Over> {
        self.until(|state| match state {
            State::There { .. } => None,
            State::Whole => Some(Ok(())),
            State::Over => Some(Err(Over)),
        })
    }

    fn until(&self, decided: impl Fn(&State) -> Option<Result<(), Over>>) -> Result<(), Over> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(decided) = decided(&state) {
                return decided;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// These grains, of so many bytes each, are there now.
    pub(crate) fn begin(&self, grain: u64, there: &[bool]) {
        self.change(|state| {
            if let State::There { grain: of, grains } = state {
                (*of, *grains) = (grain, there.to_vec());
            }
        });
    }

    /// Grain `i` is there.
    pub(crate) fn add(&self, i: usize) {
        self.change(|state| {
            if let State::There { grains, .. } = state
                && let Some(is_there) = grains.get_mut(i)
            {
                *is_there = true;
            }
        });
    }

    /// All of it is there, and checked. What was once wrong stays wrong for those who read it.
    pub(crate) fn end(&self) {
        self.change(|state| {
            if let State::There { .. } = state {
                *state = State::Whole;
            }
        });
    }

    /// What was there is not to be used. One that is whole stays so.
    pub(crate) fn give_up(&self) {
        self.change(|state| {
            if let State::There { .. } = state {
                *state = State::Over;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Whether `wait` still waits a while after it was begun, and what it says once `then` was done.
    fn waited(wait: impl Fn() -> Result<(), Over> + Sync, then: impl FnOnce()) -> (bool, Result<(), Over>) {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let said = wait();
                is_over.store(true, Ordering::SeqCst);
                said
            });
            thread::sleep(Duration::from_millis(50));
            let still = !is_over.load(Ordering::SeqCst);
            then();
            (still, waiting.join().unwrap_or(Err(Over)))
        })
    }

    #[test]
    fn a_range_is_waited_for_until_its_last_grain_is_there() {
        let file = Arriving::new(Path::new("x"), 25);
        assert_eq!(waited(|| file.wait(0..10), || file.begin(10, &[true, false, false])), (true, Ok(())));
        assert_eq!(waited(|| file.wait(5..11), || file.add(1)), (true, Ok(())));
        assert_eq!(waited(|| file.wait(20..25), || file.add(2)), (true, Ok(())));
        // All is there, and not checked.
        assert_eq!(waited(|| file.wait_for_all(), || file.end()), (true, Ok(())));
        file.give_up();
        assert_eq!(file.wait(0..25), Ok(()));
    }

    #[test]
    fn no_one_waits_for_what_does_not_come() {
        let file = Arriving::new(Path::new("x"), 25);
        file.begin(10, &[true, true, true]);
        assert_eq!(waited(|| file.wait_for_all(), || file.give_up()), (true, Err(Over)));
        // What was read of it is wrong, whatever comes later.
        file.end();
        assert_eq!((file.wait(0..1), file.wait_for_all()), (Err(Over), Err(Over)));
    }
}
