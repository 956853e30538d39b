//! How bytes get from the host to a device.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::device_link::DeviceLink;
use crate::ggml::{Buffer, Device, SlotEvents};
use crate::{Error, Result};

/// The way to a device's memory. Used from one thread.
pub(crate) trait Link: Send {
    /// What is written from now on goes into `slot`, after the computations that used it; or where nobody has computed yet.
    ///
    /// # Errors
    /// A failing device.
    fn begin(&mut self, slot: Option<usize>) -> Result<()>;

    /// Copies `bytes` to `offset` in `to`. They may be on their way when it returns, and `bytes` must be usable again.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where the uploads were stopped; a failing device.
    fn write(&mut self, to: &Buffer, offset: usize, bytes: &[u8]) -> Result<()>;

    /// All that was written is there: for computations after the event of `slot` that says so, or at once.
    ///
    /// # Errors
    /// A failing device.
    fn finish(&mut self, slot: Option<usize>) -> Result<()>;
}

/// The best link to `device`: beside its computations where it can, with the events of `slots`.
///
/// # Errors
/// [`Error::Device`] where the device has no more queues to give.
pub(crate) fn link(device: Device, slots: Option<&SlotEvents>, stop: Arc<AtomicBool>) -> Result<Box<dyn Link>> {
    let beside = DeviceLink::new(device, slots, &stop)?;
    Ok(match beside {
        Some(link) => Box::new(link),
        None => Box::new(HostLink::new(device, stop)),
    })
}

/// A link whose copies are done when they return.
pub(crate) struct HostLink {
    speed: Option<NonZeroU64>,
    stop: Arc<AtomicBool>,
    /// When the bytes so far are through, at the speed.
    through: Instant,
}

/// Copied at once, so that a stop is heard soon, and a throttled copy takes its time evenly.
const CHUNK: usize = 1 << 20;

impl HostLink {
    /// The link of `device`; `stop` ends a copy.
    pub(crate) fn new(device: Device, stop: Arc<AtomicBool>) -> HostLink {
        HostLink { speed: device.link(), stop, through: Instant::now() }
    }

    /// Sleeps until `bytes` more would be through.
    fn throttle(&mut self, bytes: usize) {
        let Some(speed) = self.speed else { return };
        let now = Instant::now();
        self.through = self.through.max(now) + Duration::from_secs_f64(bytes as f64 / speed.get() as f64);
        thread::sleep(self.through - now);
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
            self.throttle(chunk.len());
        }
        Ok(())
    }

    fn finish(&mut self, _: Option<usize>) -> Result<()> {
        Ok(())
    }
}
