//! How many frames are shown in a second.

use std::fmt;
use std::str::FromStr;

/// Frames in a second, as a ratio of whole numbers: 16, 24, or the 24000/1001 that is called 23.976.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    frames: u32,
    seconds: u32,
}

/// The most frames in a second.
const MOST: u32 = 1000;

/// Rates that television also has slower by a thousandth.
const BROADCAST: [u32; 6] = [24, 30, 48, 60, 120, 240];

impl Rate {
    /// `frames` in `seconds`, reduced. `None` if one is 0, or if there are more than 1000 in a second or fewer than one in 1000.
    pub fn new(frames: u32, seconds: u32) -> Option<Rate> {
        let common = common_divisor(frames, seconds);
        let (frames, seconds) = (frames.checked_div(common)?, seconds.checked_div(common)?);
        let possible = frames > 0 && seconds > 0 && frames / seconds.max(1) <= MOST && seconds / frames.max(1) <= MOST;
        possible.then_some(Rate { frames, seconds })
    }

    /// The rate that people mean by `fps`: 23.976 and 23.98 are 24000/1001, 29.97 is 30000/1001, everything else is taken to the
    /// thousandth. `None` if that is 0 or more than 1000.
    pub fn of(fps: f64) -> Option<Rate> {
        let whole = BROADCAST.into_iter().find(|&whole| {
            let slower = f64::from(whole) * 1000.0 / 1001.0;
            (fps - slower).abs() < 0.006
        });
        match whole {
            Some(whole) => Rate::new(whole * 1000, 1001),
            None if (0.001..=f64::from(MOST)).contains(&fps) => Rate::new((fps * 1000.0).round() as u32, 1000),
            None => None,
        }
    }

    /// Frames, in [`seconds`](Rate::seconds).
    pub fn frames(self) -> u32 {
        self.frames
    }

    /// Seconds.
    pub fn seconds(self) -> u32 {
        self.seconds
    }

    /// Frames in a second.
    pub fn fps(self) -> f64 {
        f64::from(self.frames) / f64::from(self.seconds)
    }

    /// When frame number `frame`, counted from 0, begins, rounded to whole units. There are `units` in a second.
    pub(super) fn begin(self, frame: usize, units: u32) -> u64 {
        let (frames, seconds) = (u128::from(self.frames), u128::from(self.seconds));
        // Films are far shorter than what a u64 holds in these units.
        ((frame as u128 * seconds * u128::from(units) + frames / 2) / frames) as u64
    }
}

fn common_divisor(mut one: u32, mut other: u32) -> u32 {
    while other > 0 {
        (one, other) = (other, one % other);
    }
    one
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            1 => write!(f, "{}", self.frames),
            seconds => write!(f, "{}/{seconds}", self.frames),
        }
    }
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Rate, Self::Err> {
        let rate = match text.split_once(['/', ':']) {
            Some((frames, seconds)) => {
                let numbers = frames.trim().parse().ok().zip(seconds.trim().parse().ok());
                numbers.and_then(|(frames, seconds)| Rate::new(frames, seconds))
            }
            None => text.trim().parse().ok().and_then(Rate::of),
        };
        rate.ok_or("expected frames in a second, more than 0 and at most 1000, such as 16, 23.976 or 24000/1001")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_people_mean() {
        for (text, frames, seconds) in [
            ("16", 16, 1),
            ("24", 24, 1),
            ("23.976", 24000, 1001),
            ("23.98", 24000, 1001),
            ("24000/1001", 24000, 1001),
            ("29.97", 30000, 1001),
            ("59.94", 60000, 1001),
            ("60", 60, 1),
            ("12.5", 25, 2),
            ("0.5", 1, 2),
            ("50:2", 25, 1),
            ("7.003", 7003, 1000),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.frames(), rate.seconds()), (frames, seconds), "{text}");
            // A number of 32 bits is enough to know it again.
            assert_eq!(Rate::of(f64::from(rate.fps() as f32)), Some(rate), "{text}");
        }
        for text in ["0", "-1", "1001", "0/1", "1/0", "", "x", "nan", "inf", "1/2/3", "4294967296/1"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert_eq!(Rate::of(23.976).unwrap().to_string(), "24000/1001");
        assert_eq!(Rate::of(16.0).unwrap().to_string(), "16");
    }

    #[test]
    fn frames_begin_at_the_nearest_unit() {
        let rate = Rate::new(16, 1).unwrap();
        assert_eq!([0, 1, 2, 3, 16].map(|frame| rate.begin(frame, 100)), [0, 6, 13, 19, 100]);
        assert_eq!(Rate::new(24000, 1001).unwrap().begin(24000, 1000), 1_001_000);
    }
}
