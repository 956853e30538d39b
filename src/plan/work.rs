//! What a device has to do in a step of a component, and how long that takes at a given speed.

/// What a device has to do in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Multiplications and additions of products and of attention.
    pub arithmetic: u64,
    /// Bytes of tokens that it takes from other devices, and that others take from it.
    pub taken: usize,
    /// See [`taken`](Work::taken).
    pub given: usize,
    /// How often the devices wait for each other.
    pub meetings: usize,
}

/// How fast a device is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Multiplications and additions a second.
    pub arithmetic: f64,
    /// Bytes a second between host and device.
    pub link: f64,
}

/// Seconds that devices wait for each other beside what they copy: threads wake up.
const MEETING: f64 = 5e-5;

impl Work {
    /// Bytes of tokens that pass between host and device.
    pub fn exchanged(&self) -> usize {
        self.taken.saturating_add(self.given)
    }

    /// Seconds that it takes where nothing streams. What comes from another device passes that device's link first.
    pub fn seconds(&self, speed: Speed) -> f64 {
        let exchange = 2.0 * self.taken as f64 / speed.link + self.meetings as f64 * MEETING;
        self.arithmetic as f64 / speed.arithmetic + exchange
    }
}
