//! Memory on a device, and places in it.

use std::ptr::NonNull;
use std::sync::Arc;

use ggml_sys as sys;
use ggml_sys::account;
use pinhole_quant::DType;

use super::call::Place;
use super::remote::wire::{MOST_BYTES, Message, Reply};
use super::remote::{Connection, Remote};
use super::{Device, Ledger, guarded};
use crate::index::Map;
use crate::tensor::Shape;
use crate::{Error, Result};

/// A block of memory that a device computes in: allocated there, or (on host devices) a file's memory map.
pub struct Buffer {
    raw: NonNull<sys::ggml_backend_buffer>,
    device: Device,
    size: usize,
    account: Option<(Ledger, &'static str)>,
    /// Where it is, if another machine has it. `raw` has no bytes then.
    remote: Option<RemoteBuffer>,
    // Dropped after `raw`'s destructor has run (see `Drop`): a buffer over a map must not outlive the map.
    map: Option<Arc<Map>>,
}

/// A buffer of another machine.
struct RemoteBuffer {
    connection: Arc<Connection>,
    number: u64,
}

// SAFETY: a ggml buffer is a plain block of memory with a table of functions; the functions pinhole calls on it
// (base address, set, get, free) touch no shared mutable state of the buffer itself. Writes are ordered by the
// executor: a place is written before the graphs that read it run.
unsafe impl Send for Buffer {}
// SAFETY: as above; `&Buffer` gives no access to the bytes except through `Placed::write`, see there.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates `size` bytes on `device`, entered in `ledger` under `purpose`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device refuses.
    pub fn allocate(device: Device, size: usize, ledger: &Ledger, purpose: &'static str) -> Result<Arc<Buffer>> {
        let size = Buffer::allocated(device, size);
        ledger.enter(purpose, size)?;
        if let Some(remote) = device.remote() {
            let made = Buffer::allocate_there(device, remote, size);
            let (raw, there) = made.inspect_err(|_| ledger.leave(purpose, size))?;
            let account = Some((ledger.clone(), purpose));
            return Ok(Arc::new(Buffer { raw, device, size, account, remote: Some(there), map: None }));
        }
        let (raw, block) = account::watch_block(|| {
            guarded("allocate", || {
                // SAFETY: the buffer type is the device's own; ggml returns NULL where memory is short.
                unsafe { sys::ggml_backend_buft_alloc_buffer(device.buffer_type(), size) }
            })
        });
        if let (Err(_), Some(block)) = (&raw, block) {
            // SAFETY: ggml was unwound before it made a buffer of it, so no one else knows it.
            unsafe { block.free() };
        }
        let Some(raw) = raw.map(NonNull::new).inspect_err(|_| ledger.leave(purpose, size))? else {
            ledger.leave(purpose, size);
            return Err(Error::OutOfMemory {
                what: format!("{purpose} on {}", device.name()),
                bytes: size,
                hint: Some("close other programs, choose a smaller size, or a smaller number format".into()),
            });
        };
        let buffer = Buffer { raw, device, size, account: Some((ledger.clone(), purpose)), remote: None, map: None };
        buffer.poison(0, size)?;
        Ok(Arc::new(buffer))
    }

    /// The buffer of another machine, and the one without bytes that stands for it here.
    fn allocate_there(
        device: Device,
        remote: &Remote,
        size: usize,
    ) -> Result<(NonNull<sys::ggml_backend_buffer>, RemoteBuffer)> {
        let connection = remote.connection()?;
        let number = connection.number();
        connection.ask_done(&Message::Allocate { buffer: number, bytes: size })?;
        Ok((Buffer::without_bytes(device)?, RemoteBuffer { connection, number }))
    }

    /// What [`allocate`](Buffer::allocate) takes for `size` bytes.
    pub fn allocated(device: Device, size: usize) -> usize {
        size.max(device.alignment())
    }

    /// Makes numbers of every format in `len` bytes from `offset` on NaN, on a device that
    /// [`poisons`](Device::poisons). The caller orders this against graphs that use them.
    ///
    /// # Errors
    /// [`Error::Graph`] where the range leaves the buffer.
    pub fn poison(&self, offset: usize, len: usize) -> Result<()> {
        if !self.device.poisons() {
            return Ok(());
        }
        if self.is_map() {
            return Err(Error::graph("poison", "the buffer belongs to a memory map"));
        }
        self.check_range("poison", offset, len)?;
        // All bits set are a NaN in F32, F16 and BF16, and in the scale of every quantized format.
        // SAFETY: a device that poisons computes on the CPU: its buffers are host memory, and the range lies inside.
        unsafe { std::ptr::write_bytes(self.base().add(offset), 0xFF, len) };
        Ok(())
    }

    /// Copies `bytes` from the host to `offset`, without allocating anything. The caller orders this against graphs that use
    /// what is written.
    ///
    /// # Errors
    /// [`Error::Graph`] where the range leaves the buffer or the buffer is a file's; a failing device.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        if self.is_map() {
            return Err(Error::graph("write", "the buffer belongs to a memory map"));
        }
        if let Some(RemoteBuffer { connection, number }) = &self.remote {
            self.check_range("write", offset, bytes.len())?;
            for (i, bytes) in bytes.chunks(MOST_BYTES).enumerate() {
                connection.tell(&Message::Write { buffer: *number, offset: offset + i * MOST_BYTES }, bytes)?;
            }
            return Ok(());
        }
        self.with_bytes("write", offset, bytes.len(), |tensor| {
            // SAFETY: the tensor covers exactly `bytes.len()` bytes of a live buffer, and lives through the call.
            unsafe { sys::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast(), 0, bytes.len()) }
        })
    }

    /// Copies what lies from `offset` on to the host, without allocating anything.
    ///
    /// # Errors
    /// [`Error::Graph`] where the range leaves the buffer; a failing device.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        if let Some(RemoteBuffer { connection, number }) = &self.remote {
            self.check_range("read", offset, out.len())?;
            let mut asked = Vec::new();
            for start in (0..out.len()).step_by(MOST_BYTES) {
                let len = MOST_BYTES.min(out.len() - start);
                asked.push(Message::Read { buffer: *number, offset: offset + start, len });
            }
            let mut parts: Vec<&mut [u8]> = out.chunks_mut(MOST_BYTES).collect();
            return connection.ask_each(&asked, |i, answer| match answer {
                (Reply::Bytes, bytes) if bytes.len() == parts[i].len() => {
                    parts[i].copy_from_slice(&bytes);
                    Ok(())
                }
                (other, _) => Err(connection.senseless(&other)),
            });
        }
        self.with_bytes("read", offset, out.len(), |tensor| {
            // SAFETY: as in `write_at`, with `out` as the destination.
            unsafe { sys::ggml_backend_tensor_get(tensor, out.as_mut_ptr().cast(), 0, out.len()) }
        })
    }

    /// Calls `use_bytes` with a tensor that is `len` bytes from `offset`: ggml moves bytes through tensors only.
    pub(super) fn with_bytes(
        &self,
        op: &'static str,
        offset: usize,
        len: usize,
        use_bytes: impl FnOnce(*mut sys::ggml_tensor),
    ) -> Result<()> {
        self.check_range(op, offset, len)?;
        // SAFETY: the range lies inside the buffer.
        let data = unsafe { self.base().add(offset) };
        let mut tensor = sys::ggml_tensor {
            type_: sys::GGML_TYPE_I8,
            buffer: self.raw.as_ptr(),
            ne: [i64::try_from(len).unwrap_or(i64::MAX), 1, 1, 1],
            nb: [1, len, len, len],
            data: data.cast(),
            ..sys::ggml_tensor::default()
        };
        guarded(op, || use_bytes(&mut tensor))
    }

    fn check_range(&self, op: &'static str, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::graph(op, format!("{len} bytes at {offset} leave a buffer of {}", self.size))),
        }
    }

    /// The bytes of `map`, used where they lie. Only for devices that compute in host memory. Never written to.
    ///
    /// # Errors
    /// [`Error::Device`] for a device with memory of its own; [`Error::Graph`] if ggml refuses the address.
    pub fn over_map(device: Device, map: &Arc<Map>) -> Result<Arc<Buffer>> {
        let bytes = map.bytes();
        let wrong = |message: &str| Error::Device { device: device.name(), message: message.into(), hint: None };
        if device.kind() != super::DeviceKind::Cpu {
            return Err(wrong("cannot compute in a memory map"));
        }
        if bytes.is_empty() || !(bytes.as_ptr() as usize).is_multiple_of(device.alignment()) {
            return Err(wrong("the memory map is empty or not aligned"));
        }
        let raw = guarded("map buffer", || {
            // SAFETY: the range is valid and aligned (checked), and lives as long as the buffer, which holds the
            // map. ggml takes a mutable pointer but writes only where a graph has a destination there, and
            // `Placed::write` refuses buffers over maps.
            unsafe { sys::ggml_backend_cpu_buffer_from_ptr(bytes.as_ptr().cast_mut().cast(), bytes.len()) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| wrong("refused the memory map"))?;
        Ok(Arc::new(Buffer { raw, device, size: bytes.len(), account: None, remote: None, map: Some(map.clone()) }))
    }

    /// A buffer without memory, for graphs that are only measured: see [`Placed::nowhere`].
    ///
    /// # Errors
    /// [`Error::Graph`] if ggml fails.
    pub fn nowhere(device: Device) -> Result<Arc<Buffer>> {
        let raw = Buffer::without_bytes(device)?;
        Ok(Arc::new(Buffer { raw, device, size: 0, account: None, remote: None, map: None }))
    }

    fn without_bytes(device: Device) -> Result<NonNull<sys::ggml_backend_buffer>> {
        let raw = guarded("allocate", || {
            // SAFETY: ggml answers a request for 0 bytes with a buffer that has none.
            unsafe { sys::ggml_backend_buft_alloc_buffer(device.buffer_type(), 0) }
        })?;
        NonNull::new(raw).ok_or_else(|| Error::graph("allocate", "ggml made no buffer of 0 bytes"))
    }

    /// Bytes in it.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The device that computes in it.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether its bytes are a file's and must not be written.
    pub fn is_map(&self) -> bool {
        self.map.is_some()
    }

    /// Whether it has no memory at all.
    pub(crate) fn is_nowhere(&self) -> bool {
        self.size == 0
    }

    /// Whether another machine has its bytes.
    pub(super) fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    pub(super) fn raw(&self) -> sys::ggml_backend_buffer_t {
        self.raw.as_ptr()
    }

    pub(super) fn base(&self) -> *mut u8 {
        // SAFETY: the buffer is live.
        unsafe { sys::ggml_backend_buffer_get_base(self.raw.as_ptr()).cast() }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.account.is_some() {
            // Its whole range, which it has.
            let _ = self.poison(0, self.size);
        }
        // SAFETY: `raw` came from ggml and is freed once; tensors placed in it belong to graphs, which hold an `Arc`
        // of it and are therefore gone.
        unsafe { sys::ggml_backend_buffer_free(self.raw.as_ptr()) };
        if let Some(RemoteBuffer { connection, number }) = &self.remote {
            // A server that is gone has let go of it.
            let _ = connection.tell(&Message::Free { buffer: *number }, &[]);
        }
        if let Some((ledger, purpose)) = &self.account {
            ledger.leave(purpose, self.size);
        }
    }
}

/// A tensor's place: a format, a shape and an offset in a buffer. Graphs make their leaves from it.
#[derive(Clone)]
pub struct Placed {
    pub(super) buffer: Arc<Buffer>,
    pub(super) offset: usize,
    pub(super) dtype: DType,
    pub(super) shape: Shape,
}

impl Placed {
    /// The place of a contiguous `shape` of `dtype`, `offset` bytes into `buffer`.
    ///
    /// # Errors
    /// [`Error::Graph`] where it does not fit or is not aligned for the device.
    pub fn new(buffer: &Arc<Buffer>, offset: usize, dtype: DType, shape: Shape) -> Result<Placed> {
        let bytes = shape
            .bytes(dtype)
            .ok_or_else(|| Error::graph("place", format!("{shape} has rows that {dtype} blocks do not divide")))?;
        let end = offset.checked_add(bytes);
        if end.is_none_or(|end| end > buffer.size) {
            return Err(Error::graph("place", format!("{bytes} bytes at {offset} leave a buffer of {}", buffer.size)));
        }
        if !(buffer.base() as usize + offset).is_multiple_of(buffer.device.alignment()) {
            return Err(Error::graph("place", format!("offset {offset} is not aligned for {}", buffer.device.name())));
        }
        Ok(Placed { buffer: buffer.clone(), offset, dtype, shape })
    }

    /// A place without memory, in [`Buffer::nowhere`]: a graph with leaves there can be measured, not computed.
    pub fn nowhere(buffer: &Arc<Buffer>, dtype: DType, shape: Shape) -> Placed {
        Placed { buffer: buffer.clone(), offset: 0, dtype, shape }
    }

    /// The place, as another machine is told of it.
    pub(super) fn call(&self) -> Place {
        Place {
            buffer: self.buffer.remote.as_ref().map(|remote| remote.number),
            offset: self.offset,
            dtype: self.dtype.id(),
            dims: self.shape.dims(),
        }
    }

    /// The buffer that it is in.
    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// The device that it is on.
    pub(crate) fn device(&self) -> Device {
        self.buffer.device
    }

    /// Where it begins in its buffer, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its shape, in ggml order.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Its number format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        // `new` established that the size exists.
        self.shape.bytes(self.dtype).unwrap_or(0)
    }

    /// Copies `data` from the host into it. The caller orders this against graphs that use the place.
    ///
    /// # Errors
    /// [`Error::Graph`] where the length differs or the place is a file's; a failing device.
    pub fn write(&self, data: &[u8]) -> Result<()> {
        if self.buffer.is_map() {
            return Err(Error::graph("write", "the place belongs to a memory map"));
        }
        self.check_length("write", data.len())?;
        self.buffer.write_at(self.offset, data)
    }

    /// Copies it to the host.
    ///
    /// # Errors
    /// [`Error::Graph`] where the length of `out` differs; a failing device.
    pub fn read(&self, out: &mut [u8]) -> Result<()> {
        self.check_length("read", out.len())?;
        self.buffer.read_at(self.offset, out)
    }

    /// Copies `data` from the host to what lies `start` bytes into it. As [`write`](Placed::write) otherwise.
    ///
    /// # Errors
    /// [`Error::Graph`] where that leaves the place, or the place is a file's; a failing device.
    pub fn write_part(&self, start: usize, data: &[u8]) -> Result<()> {
        self.check_part("write", start, data.len())?;
        self.buffer.write_at(self.offset + start, data)
    }

    /// Copies what lies `start` bytes into it to the host.
    ///
    /// # Errors
    /// [`Error::Graph`] where `out` leaves the place; a failing device.
    pub fn read_part(&self, start: usize, out: &mut [u8]) -> Result<()> {
        self.check_part("read", start, out.len())?;
        self.buffer.read_at(self.offset + start, out)
    }

    fn check_part(&self, op: &'static str, start: usize, len: usize) -> Result<()> {
        if self.buffer.is_nowhere() {
            return Err(Error::graph(op, "the place has no memory"));
        }
        match start.checked_add(len) {
            Some(end) if end <= self.bytes() => Ok(()),
            _ => Err(Error::graph(op, format!("{len} bytes at {start} leave a place of {}", self.bytes()))),
        }
    }

    fn check_length(&self, op: &'static str, len: usize) -> Result<()> {
        if self.buffer.is_nowhere() {
            return Err(Error::graph(op, "the place has no memory"));
        }
        if len == self.bytes() {
            return Ok(());
        }
        Err(Error::graph(op, format!("{len} bytes given for a place of {}", self.bytes())))
    }
}

impl std::fmt::Debug for Placed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} at {}", self.dtype, self.shape, self.offset)
    }
}
