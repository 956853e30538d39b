//! Copies to a device beside its computations: a queue of their own, events that order the two, and host memory that the
//! device reads by itself.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ggml_sys as sys;

use super::{Backend, Buffer, Device, guarded};
use crate::{Error, Result};

/// A point in a queue's work that another queue, or the host, can wait for.
pub struct Event {
    raw: NonNull<sys::ggml_backend_event>,
    device: Device,
}

// SAFETY: an event is a handle of the driver's; what ggml keeps beside it (Vulkan's list of them) is touched only under
// `EVENTS`, except by `synchronize`, for which see there.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

/// Held while events are recorded and waited for: ggml's Vulkan backend keeps lists beside them without a lock.
static EVENTS: Mutex<()> = Mutex::new(());

fn events() -> MutexGuard<'static, ()> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Event {
    /// An event that has not happened, which no one waits for.
    ///
    /// # Errors
    /// [`Error::Device`] for a device without events.
    pub fn new(device: Device) -> Result<Event> {
        let raw = guarded("event", || {
            // SAFETY: a live device.
            unsafe { sys::ggml_backend_event_new(device.raw()) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Device {
            device: device.name(),
            message: "has no events".into(),
            hint: None,
        })?;
        Ok(Event { raw, device })
    }

    /// Waits on the host until it has happened. Not while another thread records it.
    ///
    /// # Errors
    /// [`Error::Graph`] if the device fails.
    pub fn synchronize(&self) -> Result<()> {
        guarded("wait", || {
            // SAFETY: live. The executor orders this against `record`: a slot or a piece of staging changes hands under a
            // lock, and only who holds it touches its events.
            unsafe { sys::ggml_backend_event_synchronize(self.raw.as_ptr()) }
        })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: freed once. Queues that wait for it are done: the executor synchronizes them first.
        let _ = sys::guard(|| unsafe { sys::ggml_backend_event_free(self.raw.as_ptr()) });
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Event({})", self.device.name())
    }
}

/// What happens next in `queue` happens after `event`.
pub(super) fn wait(queue: NonNull<sys::ggml_backend>, event: &Event) -> Result<()> {
    let _lock = events();
    guarded("wait", || {
        // SAFETY: both live, of one device (checked by the caller, which has both).
        unsafe { sys::ggml_backend_event_wait(queue.as_ptr(), event.raw.as_ptr()) }
    })
}

/// `event` happens when all that is in `queue` is done.
pub(super) fn record(queue: NonNull<sys::ggml_backend>, event: &Event) -> Result<()> {
    let _lock = events();
    guarded("record", || {
        // SAFETY: as in `wait`.
        unsafe { sys::ggml_backend_event_record(event.raw.as_ptr(), queue.as_ptr()) }
    })
}

/// Host memory that the device's driver has pinned, so that copies from it need no processor.
pub struct Staging {
    raw: NonNull<sys::ggml_backend_buffer>,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: a block of host memory that belongs to this value.
unsafe impl Send for Staging {}

impl Staging {
    /// `size` bytes for copies to `device`. `None` where its driver has no such memory to give.
    ///
    /// # Errors
    /// [`Error::Graph`] if the driver fails.
    pub fn new(device: Device, size: usize) -> Result<Option<Staging>> {
        let made = guarded("staging", || {
            // SAFETY: a live device; the type may be null, and so may what it allocates.
            unsafe {
                let host = sys::ggml_backend_dev_host_buffer_type(device.raw());
                if host.is_null() { std::ptr::null_mut() } else { sys::ggml_backend_buft_alloc_buffer(host, size) }
            }
        })?;
        let Some(raw) = NonNull::new(made) else { return Ok(None) };
        // SAFETY: a live buffer in host memory.
        let base = NonNull::new(unsafe { sys::ggml_backend_buffer_get_base(raw.as_ptr()) }.cast());
        let base = base.ok_or_else(|| Error::graph("staging", "a buffer without an address"))?;
        Ok(Some(Staging { raw, base, size }))
    }

    /// Its bytes. The caller waits for copies from the part that it writes to.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the buffer's own memory, of that size, written at least by the driver's zeroes or never read before it
        // is written.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.size) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: freed once; copies from it are done, since the link that owns it synchronizes its queue first.
        let _ = sys::guard(|| unsafe { sys::ggml_backend_buffer_free(self.raw.as_ptr()) });
    }
}

impl Staging {
    /// What copies of weights to a device go through, in bytes.
    pub const BYTES: usize = 32 << 20;
}

/// A device's queue for copies.
pub struct CopyQueue {
    backend: Backend,
}

impl CopyQueue {
    /// A queue beside those that compute; `None` for a device whose copies and computations cannot be ordered by events.
    ///
    /// # Errors
    /// [`Error::Device`] where the device does not start.
    pub fn new(device: Device) -> Result<Option<CopyQueue>> {
        if device.is_cpu() || !device.features()?.overlaps() {
            return Ok(None);
        }
        Ok(Some(CopyQueue { backend: Backend::new(device, 1, super::CancelFlag::new())? }))
    }

    /// Begins to copy `len` bytes from `from` in `staging` to `offset` in `to`. They stay as they are until an event that is
    /// recorded afterwards has happened.
    ///
    /// # Errors
    /// [`Error::Graph`] where a range leaves its buffer, or if the device fails.
    pub fn copy(&self, staging: &Staging, from: usize, len: usize, to: &Buffer, offset: usize) -> Result<()> {
        if from.checked_add(len).is_none_or(|end| end > staging.size) {
            return Err(Error::graph("copy", "a range beyond the staging memory"));
        }
        to.with_bytes("copy", offset, len, |tensor| {
            // SAFETY: the tensor covers `len` bytes of a live buffer of this device, and the source as many of `staging`.
            unsafe {
                let data = staging.base.as_ptr().add(from).cast();
                sys::ggml_backend_tensor_set_async(self.backend.raw().as_ptr(), tensor, data, 0, len);
            }
        })
    }

    /// As [`Backend::wait`].
    ///
    /// # Errors
    /// [`Error::Graph`] if the device fails.
    pub fn wait(&self, event: &Event) -> Result<()> {
        wait(self.backend.raw(), event)
    }

    /// As [`Backend::record`].
    ///
    /// # Errors
    /// [`Error::Graph`] if the device fails.
    pub fn record(&self, event: &Event) -> Result<()> {
        record(self.backend.raw(), event)
    }

    /// Waits until everything is copied.
    ///
    /// # Errors
    /// [`Error::Graph`] if the device fails.
    pub fn synchronize(&self) -> Result<()> {
        self.backend.synchronize()
    }
}

/// For each slot of a ring: what orders copies into it and computations with it.
#[derive(Clone, Debug)]
pub struct SlotEvents(pub(crate) Arc<Vec<SlotEvent>>);

/// The events of one slot. Between `record` and `wait` the slot changes hands under a lock.
#[derive(Debug)]
pub(crate) struct SlotEvent {
    /// The copies are done.
    pub(crate) filled: Event,
    /// The computation is done.
    pub(crate) used: Event,
}

impl SlotEvents {
    /// For `slots` slots on `device`.
    ///
    /// # Errors
    /// As [`Event::new`].
    pub fn new(device: Device, slots: usize) -> Result<SlotEvents> {
        let pairs = (0..slots).map(|_| Ok(SlotEvent { filled: Event::new(device)?, used: Event::new(device)? }));
        Ok(SlotEvents(Arc::new(pairs.collect::<Result<_>>()?)))
    }
}
