//! What is lent.

use crate::ggml::Device;

/// The stack of a client's threads: graphs are walked recursively.
pub(super) const STACK: usize = 8 << 20;

/// What is lent.
#[derive(Clone, Copy, Debug)]
pub struct Lending {
    /// The device.
    pub device: Device,
    /// How many threads compute, if the CPU does.
    pub threads: usize,
    /// The most bytes that a client may allocate.
    pub vram: usize,
}
