//! A graph under construction, and its tensors.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashSet;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ggml_sys as sys;
use pinhole_quant::DType;

use super::attend::Attentions;
use super::call::{Call, Notes, Number};
use super::channel_norm::ChannelNorm;
use super::convolve::Convolutions;
use super::elementwise::Elementwise;
use super::floats::FloatProducts;
use super::product::Products;
use super::remote::Connection;
use super::remote::wire::{GraphText, Message};
use super::{Buffer, Device, Placed, guarded};
use crate::tensor::Shape;
use crate::{Error, Result, reserve};

/// A tensor of one [`Graph`]. A number, not a pointer: using it with another graph is an error, never a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    graph: u32,
    index: u32,
}

impl Tensor {
    /// Its number in its graph.
    pub(super) fn number(&self) -> Number {
        self.index
    }
}

/// A ggml context without data, the tensors made in it, and the order in which they are to be computed.
///
/// Operations are methods; each checks its arguments first. Tensors get memory from an
/// [`Arena`](super::Arena) once the graph is complete.
pub struct Graph {
    id: u32,
    context: NonNull<sys::ggml_context>,
    /// Where the context's tensors are.
    memory: Vec<u128>,
    cgraph: NonNull<sys::ggml_cgraph>,
    device: Device,
    capacity: usize,
    tensors: RefCell<Vec<NonNull<sys::ggml_tensor>>>,
    buffers: RefCell<Vec<Arc<Buffer>>>,
    /// The place of every leaf.
    leaves: RefCell<Vec<(Tensor, Placed)>>,
    /// Indices that the graph looks rows up by, and how many rows there are.
    lookups: RefCell<Vec<(Placed, usize)>>,
    /// Matrix products that are not ggml's.
    pub(super) products: RefCell<Products>,
    /// The same, of weights in floating point.
    pub(super) floats: RefCell<FloatProducts>,
    /// Convolutions that are not ggml's.
    pub(super) convolutions: RefCell<Convolutions>,
    /// Attentions that are not ggml's.
    pub(super) attentions: RefCell<Attentions>,
    /// Boxed, since operations hold their addresses.
    #[allow(clippy::vec_box)]
    pub(super) channel_norms: RefCell<Vec<Box<ChannelNorm>>>,
    /// Functions of single numbers that are not ggml's.
    pub(super) elementwise: RefCell<Vec<Elementwise>>,
    /// The block in which it has its memory, once it has: see [`Arena`](super::Arena).
    pub(super) block: Cell<Option<u64>>,
    /// Whether a leaf has no memory, so that the graph can be measured and nothing else.
    pub(super) measured_only: Cell<bool>,
    /// What it was asked for, if another machine is to be told of it.
    notes: Option<Notes>,
    /// The graph of the other machine, once there is one.
    there: RefCell<Option<There>>,
}

/// A graph of another machine.
struct There {
    connection: Arc<Connection>,
    number: u64,
}

// SAFETY: the context and all it holds belong to this value alone; ggml keeps no thread-local state for them. The
// cells make it `!Sync`, which is right.
unsafe impl Send for Graph {}

/// The most tensors of a graph. ggml walks a graph recursively, about 200 bytes of stack a tensor; the smallest stacks that
/// Rust gives its threads have 2 MiB.
pub(super) const MOST_TENSORS: usize = 8192;

/// The handle of the next graph; wraps after four billion, long after its first user is gone.
static NEXT_ID: AtomicU32 = AtomicU32::new(0);

impl Graph {
    /// An empty graph for `device` with room for `capacity` tensors (views and leaves counted), which is at most
    /// 8192.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the context's few kilobytes cannot be allocated; [`Error::Graph`] for a larger capacity.
    pub fn new(device: Device, capacity: usize) -> Result<Graph> {
        Graph::in_memory(device, capacity, Vec::new())
    }

    /// The same in the `memory` of an earlier graph, which is made larger if it has to be: see [`into_memory`](Graph::into_memory).
    ///
    /// # Errors
    /// As [`new`](Graph::new).
    pub(super) fn in_memory(device: Device, capacity: usize, mut memory: Vec<u128>) -> Result<Graph> {
        if capacity > MOST_TENSORS {
            return Err(Error::graph("new graph", format!("{capacity} tensors, where {MOST_TENSORS} are the most")));
        }
        let no_memory = |bytes| Error::OutOfMemory { what: "a graph".into(), bytes, hint: None };
        // SAFETY: plain size queries.
        let (per_tensor, per_graph) =
            unsafe { (sys::ggml_tensor_overhead(), sys::ggml_graph_overhead_custom(capacity, false)) };
        let size = per_tensor
            .checked_mul(capacity)
            .and_then(|bytes| bytes.checked_add(per_graph))
            .and_then(|bytes| bytes.checked_next_multiple_of(size_of::<u128>()))
            .ok_or_else(|| no_memory(usize::MAX))?;
        // Not ggml's own: it would lose its context where there is no memory for this. As aligned as ggml's tensors are.
        reserve::grow("a graph", &mut memory, size / size_of::<u128>())?;
        let params = sys::ggml_init_params { mem_size: size, mem_buffer: memory.as_mut_ptr().cast(), no_alloc: true };
        // SAFETY: the memory has that size and lives as long as the context; without memory for its few bytes it asserts, which the
        // guard turns into an error.
        let context = ggml_sys::guard(|| unsafe { sys::ggml_init(params) }).map_err(|_| no_memory(size))?;
        let context = NonNull::new(context).ok_or_else(|| no_memory(size))?;
        // SAFETY: the context is live and was sized for this graph.
        let cgraph = guarded("new graph", || unsafe { sys::ggml_new_graph_custom(context.as_ptr(), capacity, false) });
        let Some(cgraph) = cgraph.ok().and_then(NonNull::new) else {
            // SAFETY: nothing else refers to the context.
            unsafe { sys::ggml_free(context.as_ptr()) };
            return Err(no_memory(size));
        };
        Ok(Graph {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            context,
            memory,
            cgraph,
            device,
            capacity,
            tensors: RefCell::default(),
            buffers: RefCell::default(),
            leaves: RefCell::default(),
            lookups: RefCell::default(),
            products: RefCell::new(Products::new()),
            floats: RefCell::default(),
            convolutions: RefCell::default(),
            attentions: RefCell::default(),
            channel_norms: RefCell::default(),
            elementwise: RefCell::default(),
            block: Cell::new(None),
            measured_only: Cell::new(false),
            notes: device.is_remote().then(Notes::default),
            there: RefCell::default(),
        })
    }

    /// The memory that it was made in, for another: the system takes long to hand out pages and to clear them, half as long as a small
    /// graph takes to be built.
    pub(super) fn into_memory(mut self) -> Vec<u128> {
        std::mem::take(&mut self.memory)
    }

    /// The device that will compute it.
    pub fn device(&self) -> Device {
        self.device
    }

    /// A leaf at `place`, whose bytes are there already or will be when the graph runs.
    ///
    /// # Errors
    /// [`Error::Graph`] where the graph is full.
    pub fn leaf(&self, place: &Placed) -> Result<Tensor> {
        self.noted(
            || Call::Leaf(place.call()),
            || {
                let dims = place.shape.dims().map(|extent| extent as i64);
                let tensor = self.register("leaf", |context| {
                    // SAFETY: the context is live; four extents are given.
                    unsafe { sys::ggml_new_tensor(context, type_of(place.dtype), 4, dims.as_ptr()) }
                })?;
                self.locate(tensor, place)?;
                self.leaves.borrow_mut().push((tensor, place.clone()));
                Ok(tensor)
            },
        )
    }

    /// Has `tensor`, which has no memory yet, lie at `place`.
    fn locate(&self, tensor: Tensor, place: &Placed) -> Result<()> {
        let raw = self.raw(tensor)?;
        self.hold(&place.buffer);
        if place.buffer.is_nowhere() {
            // A buffer tells the allocator that the tensor is not its business; without data it cannot be computed.
            // SAFETY: a tensor of this context without memory; the buffer lives as long as the graph (`hold`).
            unsafe { (*raw).buffer = place.buffer.raw() };
            self.measured_only.set(true);
            return Ok(());
        }
        if place.buffer.is_remote() {
            // SAFETY: as above.
            unsafe { (*raw).buffer = place.buffer.raw() };
            return Ok(());
        }
        // SAFETY: `Placed::new` checked that the tensor lies within the buffer, and its address is aligned.
        let address = unsafe { place.buffer.base().add(place.offset) };
        let status = guarded("place", || {
            // SAFETY: the tensor has no buffer, no data and no view, and the buffer is live and large enough.
            unsafe { sys::ggml_backend_tensor_alloc(place.buffer.raw(), raw, address.cast()) }
        })?;
        if status != sys::GGML_STATUS_SUCCESS {
            return Err(Error::graph("place", format!("the device refused the place (status {status})")));
        }
        Ok(())
    }

    /// Notes that rows are looked up by `indices`, a leaf, in a table of `rows`.
    pub(super) fn expect_rows(&self, indices: Tensor, rows: usize) -> Result<()> {
        let leaves = self.leaves.borrow();
        let place = leaves.iter().find(|(leaf, _)| *leaf == indices).map(|(_, place)| place.clone());
        let place = place.ok_or_else(|| Error::graph("get_rows", "indices that are no leaf of the graph"))?;
        self.lookups.borrow_mut().push((place, rows));
        Ok(())
    }

    /// Whether every table has the rows that are looked up in it, as far as the places of indices say now. ggml asserts it
    /// on a thread that nothing can unwind, or reads what lies there.
    pub(super) fn check_lookups(&self) -> Result<()> {
        for (place, rows) in self.lookups.borrow().iter() {
            let mut bytes = reserve::zeros::<u8>("indices", place.bytes())?;
            place.read(&mut bytes)?;
            let mut indices = bytes.as_chunks::<4>().0.iter().map(|&index| i32::from_ne_bytes(index));
            if let Some(row) = indices.find(|&row| usize::try_from(row).map_or(true, |row| row >= *rows)) {
                return Err(Error::graph("get_rows", format!("row {row} of a table of {rows}")));
            }
        }
        Ok(())
    }

    /// What it was asked for, if another machine is to be told of it.
    pub(super) fn notes(&self) -> Option<&Notes> {
        self.notes.as_ref()
    }

    /// The same as a text. It asks for more room than this graph took: the other machine's may take other ways.
    pub(super) fn text(&self) -> GraphText {
        let capacity = self.capacity.min(2 * self.tensors.borrow().len() + 64);
        GraphText { capacity, calls: self.notes.as_ref().map_or_else(Vec::new, Notes::all) }
    }

    /// The number of the graph that follows it on the other machine, which is made now if there is none.
    ///
    /// # Errors
    /// [`Error::Device`] where the connection is lost.
    pub(super) fn number_there(&self, connection: &Arc<Connection>) -> Result<u64> {
        let mut there = self.there.borrow_mut();
        if let Some(there) = &*there {
            return Ok(there.number);
        }
        let number = connection.number();
        connection.tell(&Message::Define { graph: number, text: self.text() }, &[])?;
        *there = Some(There { connection: Arc::clone(connection), number });
        Ok(number)
    }

    /// Where rows are looked up by numbers.
    pub(crate) fn lookups(&self) -> Vec<Placed> {
        self.lookups.borrow().iter().map(|(place, _)| place.clone()).collect()
    }

    /// Its leaves, and where they lie.
    pub(super) fn leaves(&self) -> Ref<'_, Vec<(Tensor, Placed)>> {
        self.leaves.borrow()
    }

    /// Keeps `buffer` alive as long as the graph.
    fn hold(&self, buffer: &Arc<Buffer>) {
        let mut buffers = self.buffers.borrow_mut();
        if !buffers.iter().any(|held| Arc::ptr_eq(held, buffer)) {
            buffers.push(buffer.clone());
        }
    }

    /// Adds `tensor`, and all it depends on, to what will be computed.
    ///
    /// # Errors
    /// [`Error::Graph`] for a tensor of another graph, or where the graph has its memory already.
    pub fn output(&self, tensor: Tensor) -> Result<()> {
        self.noted(
            || Call::Output(tensor.number()),
            || {
                self.require_open("output")?;
                let raw = self.raw(tensor)?;
                guarded("output", || {
                    // SAFETY: both belong to this live context; the graph has room for every tensor the context can hold.
                    unsafe { sys::ggml_build_forward_expand(self.cgraph.as_ptr(), raw) }
                })
            },
        )
    }

    /// A tensor of F32 for intermediate results that come in parts: see [`fill`](Graph::fill). What is not filled is undefined.
    ///
    /// # Errors
    /// [`Error::Graph`] for impossible extents, or where the graph is full.
    pub fn unfilled(&self, dims: &[usize]) -> Result<Tensor> {
        self.noted(
            || Call::Unfilled(dims.to_vec()),
            || {
                let dims = Shape::new(dims)
                    .ok_or_else(|| Error::graph("unfilled", format!("a tensor of impossible extents {dims:?}")))?
                    .dims()
                    .map(|extent| extent as i64);
                self.register("unfilled", |context| {
                    // SAFETY: the context is live; four extents are given. The arena gives it memory, from the start of the graph to
                    // its end: every copy into it is a view that nothing ever takes up.
                    unsafe { sys::ggml_new_tensor(context, sys::GGML_TYPE_F32, 4, dims.as_ptr()) }
                })
            },
        )
    }

    /// Copies `value` into `target` at `start` of dimension `dim`: after everything that was [put out](Graph::output) before,
    /// and before everything that is put out later.
    ///
    /// # Errors
    /// [`Error::Graph`] where shapes differ or the place is a file's.
    pub fn fill(&self, target: Tensor, dim: usize, start: usize, value: Tensor) -> Result<()> {
        self.noted(
            || Call::Fill(target.number(), dim, start, value.number()),
            || {
                if self.leaves.borrow().iter().any(|(leaf, place)| *leaf == target && place.buffer.is_map()) {
                    return Err(Error::graph("fill", "the place belongs to a memory map"));
                }
                let raw = self.raw(target)?;
                // SAFETY: a live tensor of this context.
                if unsafe { !(*raw).view_src.is_null() || (*raw).op != sys::GGML_OP_NONE } {
                    return Err(Error::graph("fill", "the target is neither a place nor unfilled"));
                }
                let len = self.shape(value)?.dims().get(dim).copied().unwrap_or(0);
                let part = self.slice(target, dim, start, len)?;
                self.output(self.copy(value, part)?)
            },
        )
    }

    /// Copies `value` into `place` when the graph runs.
    ///
    /// # Errors
    /// [`Error::Graph`] where shapes differ or the place is a file's.
    pub fn store(&self, value: Tensor, place: &Placed) -> Result<()> {
        self.noted(
            || Call::Store(value.number(), place.call()),
            || {
                if place.buffer.is_map() {
                    return Err(Error::graph("store", "the place belongs to a memory map"));
                }
                if self.shape(value)? != place.shape {
                    return Err(Error::graph("store", format!("{} into {}", self.shape(value)?, place.shape)));
                }
                let target = self.leaf(place)?;
                let copied = self.copy(value, target)?;
                self.output(copied)
            },
        )
    }

    /// As [`store`](Graph::store), where nothing else in the graph reads or writes what lies at `place`: a value that an
    /// operation makes is made there, and only others are copied.
    ///
    /// # Errors
    /// As [`store`](Graph::store).
    pub fn store_alone(&self, value: Tensor, place: &Placed) -> Result<()> {
        self.noted(
            || Call::StoreAlone(value.number(), place.call()),
            || {
                self.require_open("store")?;
                let made = self.is_made(value)? && self.is_contiguous(value)? && self.dtype(value)? == place.dtype;
                if !made || place.buffer.is_map() || self.shape(value)? != place.shape {
                    return self.store(value, place);
                }
                self.locate(value, place)?;
                self.output(value)
            },
        )
    }

    /// Whether `tensor` is an operation's result, in memory of its own that it has yet to get.
    fn is_made(&self, tensor: Tensor) -> Result<bool> {
        let raw = self.raw(tensor)?;
        // SAFETY: a live tensor of this context.
        Ok(unsafe { (*raw).op != sys::GGML_OP_NONE && (*raw).view_src.is_null() && (*raw).buffer.is_null() })
    }

    /// Bytes of all its tensors together, if each had memory of its own.
    pub(crate) fn bytes_of_all(&self) -> usize {
        let mut all = 0usize;
        for raw in self.tensors.borrow().iter() {
            // SAFETY: a live tensor of this context.
            all = all.saturating_add(unsafe { sys::ggml_nbytes(raw.as_ptr()) });
        }
        all
    }

    /// How many tensors it has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many operations it computes.
    pub fn nodes(&self) -> usize {
        // SAFETY: the graph is live.
        usize::try_from(unsafe { sys::ggml_graph_n_nodes(self.cgraph.as_ptr()) }).unwrap_or(0)
    }

    /// The shape of `tensor`, in ggml order.
    ///
    /// # Errors
    /// [`Error::Graph`] for a tensor of another graph.
    pub fn shape(&self, tensor: Tensor) -> Result<Shape> {
        let raw = self.raw(tensor)?;
        // SAFETY: a live tensor of this context.
        let dims = unsafe { (*raw).ne }.map(|extent| usize::try_from(extent).unwrap_or(0));
        Shape::new(&dims).ok_or_else(|| Error::graph("shape", format!("a tensor of impossible extents {dims:?}")))
    }

    /// The number format of `tensor`.
    ///
    /// # Errors
    /// [`Error::Graph`] for a tensor of another graph.
    pub fn dtype(&self, tensor: Tensor) -> Result<DType> {
        let raw = self.raw(tensor)?;
        // SAFETY: a live tensor of this context.
        let id = unsafe { (*raw).type_ };
        DType::from_id(id).ok_or_else(|| Error::graph("dtype", format!("unknown type id {id}")))
    }

    /// Distances in bytes between neighbours along each dimension.
    pub(super) fn strides(&self, tensor: Tensor) -> Result<[usize; 4]> {
        let raw = self.raw(tensor)?;
        // SAFETY: a live tensor of this context.
        Ok(unsafe { (*raw).nb })
    }

    /// Whether its numbers lie one after another in order.
    pub(super) fn is_contiguous(&self, tensor: Tensor) -> Result<bool> {
        let raw = self.raw(tensor)?;
        // SAFETY: a live tensor of this context.
        Ok(unsafe { sys::ggml_is_contiguous(raw) })
    }

    pub(super) fn raw(&self, tensor: Tensor) -> Result<*mut sys::ggml_tensor> {
        if tensor.graph != self.id {
            return Err(Error::graph("tensor", "belongs to another graph"));
        }
        let tensors = self.tensors.borrow();
        let raw = tensors.get(tensor.index as usize);
        raw.map(|raw| raw.as_ptr()).ok_or_else(|| Error::graph("tensor", "is not of this graph"))
    }

    /// Makes a tensor with `make` and gives it a number. The caller has checked the operation's arguments.
    pub(super) fn register(
        &self,
        op: &'static str,
        make: impl FnOnce(*mut sys::ggml_context) -> *mut sys::ggml_tensor,
    ) -> Result<Tensor> {
        let mut tensors = self.tensors.borrow_mut();
        if tensors.len() >= self.capacity {
            return Err(Error::graph(op, format!("the graph is full at {} tensors", self.capacity)));
        }
        self.require_open(op)?;
        let raw = guarded(op, || make(self.context.as_ptr()))?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::graph(op, "ggml made no tensor"))?;
        // SAFETY: the tensor was just made in this live context.
        let (dims, type_id) = unsafe { ((*raw.as_ptr()).ne, (*raw.as_ptr()).type_) };
        // Beyond, ggml's own sizes wrap round.
        let dims = dims.map(|extent| usize::try_from(extent).unwrap_or(0));
        let bytes = DType::from_id(type_id).zip(Shape::new(&dims)).and_then(|(dtype, shape)| shape.bytes(dtype));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Error::graph(op, format!("a result of impossible extents {dims:?}")));
        }
        let index = tensors.len() as u32; // below `capacity`, which contexts keep far below 2^32
        tensors.push(raw);
        Ok(Tensor { graph: self.id, index })
    }

    fn require_open(&self, op: &'static str) -> Result<()> {
        match self.block.get() {
            None => Ok(()),
            Some(_) => Err(Error::graph(op, "the graph has its memory already and takes no more operations")),
        }
    }

    /// As [`register`](Self::register), for an operation that the device must be able to compute.
    pub(super) fn node(
        &self,
        op: &'static str,
        make: impl FnOnce(*mut sys::ggml_context) -> *mut sys::ggml_tensor,
    ) -> Result<Tensor> {
        let tensor = self.register(op, make)?;
        let raw = self.raw(tensor)?;
        let supported = guarded(op, || {
            // SAFETY: a live device and a live tensor.
            unsafe { sys::ggml_backend_dev_supports_op(self.device.raw(), raw) }
        })?;
        if !supported {
            return Err(Error::Device {
                device: self.device.name(),
                message: format!("cannot compute {op} on {} of {}", self.shape(tensor)?, self.dtype(tensor)?),
                hint: Some("try --device cpu, or another number format".into()),
            });
        }
        Ok(tensor)
    }

    pub(super) fn cgraph(&self) -> *mut sys::ggml_cgraph {
        self.cgraph.as_ptr()
    }

    /// Bytes of every distinct buffer that the graph's leaves lie in.
    pub fn buffer_bytes(&self) -> usize {
        let buffers = self.buffers.borrow();
        let mut seen = HashSet::new();
        buffers.iter().filter(|buffer| seen.insert(buffer.raw())).map(|buffer| buffer.size()).sum()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(There { connection, number }) = &*self.there.borrow() {
            // A server that is gone has let go of it.
            let _ = connection.tell(&Message::Drop { graph: *number }, &[]);
        }
        // SAFETY: the context is freed once, and all its tensors are reachable only through this value.
        unsafe { sys::ggml_free(self.context.as_ptr()) };
    }
}

/// ggml's name for a format.
pub(super) fn type_of(dtype: DType) -> sys::ggml_type {
    dtype.id() as sys::ggml_type
}
