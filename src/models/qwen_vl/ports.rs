//! What all blocks read.

use crate::stage::Port;

/// The epsilon of every norm.
pub(super) const EPS: f32 = 1e-6;

/// The rotary tables, `[d, 1, N]` each.
#[derive(Clone, Copy, Debug)]
pub struct Positions {
    /// See [`VisionTower::rotary`](super::VisionTower::rotary).
    pub cos: Port,
    /// See [`VisionTower::rotary`](super::VisionTower::rotary).
    pub sin: Port,
}
