//! How bytes get from the host to a device.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::ggml::{Buffer, Device};
use crate::{Error, Result};

/// The way to a device's memory. Used from one thread.
pub(crate) trait Link: Send {
    /// Directs the following writes to `slot`, after the computations that used it. `None`: to memory that nothing uses yet.
    ///
    /// # Errors
    /// A failing device.
    fn begin(&mut self, slot: Option<usize>) -> Result<()>;

    /// Copies `bytes` to `offset` in `to`. The copy may still be on its way when this returns, but `bytes` may then be reused.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the uploads were stopped; a failing device.
    fn write(&mut self, to: &Buffer, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Ends a series of writes. With a slot, computations that wait for the slot's event `filled` see all of them. With `None`,
    /// all have arrived when this returns.
    ///
    /// # Errors
    /// A failing device.
    fn finish(&mut self, slot: Option<usize>) -> Result<()>;
}

/// A link whose copies are done when they return.
pub(crate) struct HostLink {
    throttle: Throttle,
    stop: Arc<AtomicBool>,
}

/// What makes copies as slow as the link that a device plays.
pub(super) struct Throttle {
    speed: Option<NonZeroU64>,
    /// When the bytes so far have passed, at `speed`.
    through: Instant,
}

impl Throttle {
    pub(super) fn of(device: Device) -> Throttle {
        Throttle { speed: device.link(), through: Instant::now() }
    }

    /// Sleeps until `bytes` more would have passed.
    pub(super) fn pass(&mut self, bytes: usize) {
        let Some(speed) = self.speed else { return };
        let now = Instant::now();
        self.through = self.through.max(now) + Duration::from_secs_f64(bytes as f64 / speed.get() as f64);
        thread::sleep(self.through - now);
    }
}

/// The most bytes in one copy. Small, so that a stop takes effect soon and a throttled copy takes its time evenly.
const CHUNK: usize = 1 << 20;

impl HostLink {
    /// The link of `device`; `stop` ends a copy.
    pub(crate) fn new(device: Device, stop: Arc<AtomicBool>) -> HostLink {
        HostLink { throttle: Throttle::of(device), stop }
    }
}

impl Link for HostLink {
    fn begin(&mut self, _: Option<usize>) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, to: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            to.write_at(offset + i * CHUNK, chunk)?;
            self.throttle.pass(chunk.len());
        }
        Ok(())
    }

    fn finish(&mut self, _: Option<usize>) -> Result<()> {
        Ok(())
    }
}
