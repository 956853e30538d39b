//! How often and how long to try again.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often something is tried without getting any further.
const TRIES: u32 = 6;
/// The longest that a server may ask to wait.
const LONGEST: Duration = Duration::from_secs(300);
/// The longest pause that is chosen here.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a pause looks at the flag.
const LOOK: Duration = Duration::from_millis(50);

/// Why something failed, and whether it may work later.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may work later: after the pause that the server asks for, if it does.
    Passing(Error, Option<Duration>),
    /// It will not.
    Lasting(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Lasting(error)
    }
}

/// Counts tries that got no further.
pub(crate) struct Patience {
    tries: u32,
    pause: Duration,
}

impl Patience {
    /// `pause` is the first one; each further one is twice as long.
    pub(crate) fn new(pause: Duration) -> Patience {
        Patience { tries: 0, pause }
    }

    /// Something got further: the count begins anew.
    pub(crate) fn renew(&mut self) {
        self.tries = 0;
    }

    /// How long to wait after `trouble`.
    ///
    /// # Errors
    /// The error in it, if it lasts or has come too often.
    pub(crate) fn after(&mut self, trouble: Trouble) -> Result<(Duration, Error)> {
        let (error, asked) = match trouble {
            Trouble::Lasting(error) => return Err(error),
            Trouble::Passing(error, asked) => (error, asked),
        };
        self.tries += 1;
        if self.tries >= TRIES {
            return Err(error);
        }
        let own = self.pause.saturating_mul(1 << (self.tries - 1)).min(LONGEST_PAUSE);
        match asked {
            Some(asked) if asked > LONGEST => Err(error.with_hint(format!(
                "the server asks to wait {} minutes: run the command again then",
                asked.as_secs().div_ceil(60)
            ))),
            Some(asked) => Ok((asked.max(own), error)),
            None => Ok((own, error)),
        }
    }
}

/// Waits, and looks at the flag.
///
/// # Errors
/// [`Error::Cancelled`].
pub(crate) fn wait(pause: Duration, cancelled: &dyn Fn() -> bool) -> Result<()> {
    let end = Instant::now() + pause;
    loop {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        match end.checked_duration_since(Instant::now()) {
            None | Some(Duration::ZERO) => return Ok(()),
            Some(left) => thread::sleep(left.min(LOOK)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(asked: Option<u64>) -> Trouble {
        Trouble::Passing(
            Error::Unreachable { url: "u".into(), problem: "p".into(), hint: None },
            asked.map(Duration::from_secs),
        )
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut patience = Patience::new(Duration::from_secs(1));
        let mut pauses = Vec::new();
        while let Ok((pause, _)) = patience.after(passing(None)) {
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16]);
        patience.renew();
        assert_eq!(patience.after(passing(Some(7))).unwrap().0.as_secs(), 7);
        let error = patience.after(passing(Some(3600))).unwrap_err();
        assert!(error.hint().unwrap().contains("60 minutes"), "{error:?}");
    }

    #[test]
    fn a_pause_is_cut_short() {
        let started = Instant::now();
        assert!(matches!(wait(Duration::from_secs(60), &|| true), Err(Error::Cancelled)));
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
