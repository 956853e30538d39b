//! A device ready to compute.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ggml_sys as sys;
use ggml_sys::account;

use super::remote::wire::Message;
use super::remote::{Connection, Remote};
use super::{Arena, AttentionMode, CancelFlag, Device, Event, Graph, OperationTime, Scratch, guarded, nodes, queue};
use crate::kernels::Kernel;
use crate::{Error, Result};

/// A device's compute queue; on the CPU, a pool of threads.
pub struct Backend {
    raw: Cell<NonNull<sys::ggml_backend>>,
    device: Device,
    /// What it may keep from computations so far, on other devices than the CPU.
    kept: Cell<Scratch>,
    /// The CPU's threads.
    pool: Option<Pool>,
    cancel: CancelFlag,
    /// Whose matrix products the graphs made for it have.
    kernel: Option<Kernel>,
    /// How exact attention is in them.
    attention: Cell<AttentionMode>,
    /// The memory of a graph that is not needed any more, for the next one.
    spare: Cell<Vec<u128>>,
    state: State,
    /// Graphs that it was given so far, if it is to fail at one of them.
    given: usize,
    /// The connection to the machine that computes, if it is another one. `raw` computes nothing then.
    connection: Option<Arc<Connection>>,
}

/// Whether a backend can compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// A computation was unwound for want of memory. Not used again, but sound enough to be freed with all that it holds:
    /// its own code expects allocations to fail, and cleans up.
    Full,
    /// A computation was unwound for another reason: what it holds is unknown.
    Broken,
}

/// Threads that live as long as their backend.
#[derive(Clone, Copy)]
struct Pool {
    raw: NonNull<sys::ggml_threadpool>,
    threads: i32,
}

// SAFETY: a backend may be used from one thread at a time, whichever: `&mut self` sees to that.
unsafe impl Send for Backend {}

impl Backend {
    /// Starts `device`. On the CPU, with `threads` threads that live as long as the backend.
    ///
    /// # Errors
    /// [`Error::Device`] where the device does not start; [`Error::OutOfMemory`] where its threads do not.
    pub fn new(device: Device, threads: usize, cancel: CancelFlag) -> Result<Backend> {
        // Before anything is planned or allocated, so that what the trial takes comes on top of nothing.
        device.sums_attention_in_f16()?;
        Backend::untried(device, threads, cancel)
    }

    /// The same, without finding out what its attention sums in.
    pub(super) fn untried(device: Device, threads: usize, cancel: CancelFlag) -> Result<Backend> {
        device.check()?;
        let raw = Cell::new(start(device)?);
        let mut backend = Backend {
            raw,
            device,
            kept: Cell::default(),
            pool: None,
            cancel,
            kernel: Kernel::best(),
            attention: Cell::new(AttentionMode::Exact),
            spare: Cell::default(),
            state: State::Ready,
            given: 0,
            connection: device.remote().map(Remote::connection).transpose()?,
        };
        if device.is_cpu() {
            backend.start_threads(threads)?;
        }
        Ok(backend)
    }

    fn start_threads(&mut self, threads: usize) -> Result<()> {
        let threads = i32::try_from(threads.clamp(1, sys::GGML_MAX_N_THREADS as usize)).unwrap_or(1);
        let pool = guarded("threads", || {
            // SAFETY: the parameters are ggml's defaults for this many threads; ggml copies them.
            unsafe {
                let mut params = sys::ggml_threadpool_params_default(threads);
                // Between graphs they sleep: threads that poll take time from threads that work.
                params.poll = 0;
                sys::ggml_threadpool_new(&mut params)
            }
        });
        // An assertion fails in there if a thread cannot be started. Those before it have ended then (see the shim).
        let pool = pool.ok().and_then(NonNull::new).ok_or_else(Error::no_thread)?;
        self.pool = Some(Pool { raw: pool, threads });
        // SAFETY: this is the CPU backend. The pool is freed after the backend (see `Drop`), and the flag that the
        // abort callback reads is kept alive by `self.cancel`.
        unsafe {
            sys::ggml_backend_cpu_set_n_threads(self.raw.get().as_ptr(), threads);
            sys::ggml_backend_cpu_set_threadpool(self.raw.get().as_ptr(), pool.as_ptr());
            let flag = Arc::as_ptr(&self.cancel.0).cast_mut().cast();
            sys::ggml_backend_cpu_set_abort_callback(self.raw.get().as_ptr(), Some(is_raised), flag);
        }
        Ok(())
    }

    /// The device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The flag that stops it.
    pub fn cancel(&self) -> &CancelFlag {
        &self.cancel
    }

    /// From now on `cancel` stops it, and the flag before does not.
    pub fn set_cancel(&mut self, cancel: CancelFlag) {
        let flag = Arc::as_ptr(&cancel.0).cast_mut().cast();
        if self.pool.is_some() {
            // SAFETY: this is the CPU backend, which computes nothing meanwhile (`&mut self`). It knows the new flag before
            // the old one goes, and `self.cancel` keeps the new one alive.
            unsafe { sys::ggml_backend_cpu_set_abort_callback(self.raw.get().as_ptr(), Some(is_raised), flag) };
        }
        self.cancel = cancel;
    }

    /// The kernel for matrix products of the [graphs](Self::graph) that are made from now on, as
    /// [`Graph::set_kernel`] has it.
    pub fn set_kernel(&mut self, kernel: Option<Kernel>) {
        self.kernel = kernel;
    }

    /// How exact attention is in the [graphs](Self::graph) that are made from now on. At first it is [`AttentionMode::Exact`].
    pub fn set_attention(&self, mode: AttentionMode) {
        self.attention.set(mode);
    }

    /// How exact attention is in the [graphs](Self::graph) that are made now.
    pub fn attention(&self) -> AttentionMode {
        self.attention.get()
    }

    /// An empty graph with room for `capacity` tensors, to be computed here.
    ///
    /// # Errors
    /// As [`Graph::new`].
    pub fn graph(&self, capacity: usize) -> Result<Graph> {
        let graph = Graph::in_memory(self.device, capacity, self.spare.take())?;
        graph.set_kernel(self.kernel);
        graph.set_attention(self.attention.get());
        Ok(graph)
    }

    /// Makes the next graph in the memory of this one, which is not needed any more. Plans make hundreds of graphs, one after the other.
    pub(crate) fn reuse(&self, graph: Graph) {
        self.spare.set(graph.into_memory());
    }

    /// Computes `graph`, whose memory `arena` assigned, and waits for it.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where the flag was raised; [`Error::Graph`] where the graph has no memory in `arena` or looks up
    /// a row that a table does not have; [`Error::Device`] where ggml fails.
    pub fn compute(&mut self, graph: &Graph, arena: &mut Arena) -> Result<()> {
        self.begin(graph, arena)?;
        self.finish()
    }

    /// Begins to compute `graph`. On the CPU it is done when this returns. Graph, arena and all that the graph's leaves lie in
    /// stay as they are until [`finish`](Backend::finish) has returned.
    ///
    /// # Errors
    /// As [`compute`](Backend::compute).
    pub(crate) fn begin(&mut self, graph: &Graph, arena: &mut Arena) -> Result<()> {
        self.compute_checks(graph, arena)?;
        if let Some((connection, arena)) = arena.there() {
            let graph = graph.number_there(connection)?;
            return connection.begin(graph, arena, &self.cancel);
        }
        self.fail_if_told()?;
        let halt = graph.products.borrow().halt();
        halt.listen(&self.cancel);
        let before = account::read(self.device.memory_kind());
        let computed = match self.cpu_plan(graph)? {
            Some(plan) => self.compute_planned(graph, plan, arena.scratch(plan.work_size)?),
            None => sys::guard(|| {
                // Assertions are caught as well: a GPU's backend has no threads that wait for this one, and C++ that
                // unwinds. What it leaves behind is not used again.
                // SAFETY: a live backend and graph; every leaf lies in a buffer that the graph holds, every other tensor
                // in the arena. The caller keeps both until the work is done.
                unsafe { sys::ggml_backend_graph_compute_async(self.raw.get().as_ptr(), graph.cgraph()) }
            }),
        };
        let computed = computed.map_err(|caught| self.unwound(&caught, before))?;
        if halt.take_failure() {
            return Err(self.failed("a kernel failed"));
        }
        if self.pool.is_some() {
            // An operation of pinhole's may have ended early after ggml had looked for the last time.
            self.cancel.check()?;
        }
        match computed {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            sys::GGML_STATUS_ABORTED => Err(Error::Cancelled),
            sys::GGML_STATUS_ALLOC_FAILED => Err(Error::OutOfMemory {
                what: format!("work space on {}", self.device.name()),
                bytes: 0,
                hint: Some("choose a smaller picture".into()),
            }),
            other => Err(self.failed(&format!("failed while computing (status {other})"))),
        }
    }

    /// Fails as a card does whose driver has lost it, if it is a card that the CPU plays and this is the graph that its name says.
    fn fail_if_told(&mut self) -> Result<()> {
        let Some(fault) = self.device.fault() else { return Ok(()) };
        self.given += 1;
        if self.given != fault.at {
            return Ok(());
        }
        self.state = State::Full;
        Err(self.failed("is lost, as its name says"))
    }

    /// What must hold before `graph` is computed.
    fn compute_checks(&self, graph: &Graph, arena: &Arena) -> Result<()> {
        self.cancel.check()?;
        if !arena.holds(graph) {
            return Err(Error::graph("compute", "the graph has no memory in this arena"));
        }
        if self.connection.is_none() {
            graph.check_lookups()?;
        }
        if graph.device() != self.device {
            return Err(Error::graph("compute", "the graph was built for another device"));
        }
        if self.state != State::Ready {
            return Err(self.failed("failed earlier and is not used again"));
        }
        Ok(())
    }

    /// Computes `graph` on the CPU as [`compute`](Backend::compute) does, and says how long each operation took.
    ///
    /// # Errors
    /// As [`compute`](Backend::compute); [`Error::Graph`] for another device.
    pub fn compute_timed(&mut self, graph: &Graph, arena: &mut Arena) -> Result<Vec<OperationTime>> {
        self.compute_checks(graph, arena)?;
        let plan = self.cpu_plan(graph)?;
        let mut plan = plan.ok_or_else(|| Error::graph("compute", "operations are timed on the CPU only"))?;
        let halt = graph.products.borrow().halt();
        halt.listen(&self.cancel);
        let names = graph.operations();
        let mut ends = Ends { cancel: self.cancel.clone(), times: Vec::with_capacity(graph.nodes()) };
        plan.work_data = arena.scratch(plan.work_size)?.as_mut_ptr();
        plan.abort_callback = Some(note_end);
        plan.abort_callback_data = (&raw mut ends).cast();
        let before = account::read(self.device.memory_kind());
        let start = Instant::now();
        let computed = sys::guard_compute(|| {
            // SAFETY: as for any computation (`compute_planned`); `ends` outlives it, and only ggml's first thread uses it.
            unsafe { sys::ggml_graph_compute(graph.cgraph(), &mut plan) }
        });
        let computed = computed.map_err(|caught| self.unwound(&caught, before))?;
        self.cancel.check()?;
        if computed != sys::GGML_STATUS_SUCCESS || halt.take_failure() {
            return Err(self.failed(&format!("failed while computing (status {computed})")));
        }
        if names.len() != ends.times.len() {
            let message = format!("{} operations were expected and {} computed", names.len(), ends.times.len());
            return Err(Error::graph("compute", message));
        }
        let starts = std::iter::once(&start).chain(&ends.times);
        let times = starts.zip(&ends.times).map(|(start, end)| *end - *start);
        Ok(names.into_iter().zip(times).map(|(name, time)| OperationTime { name, time }).collect())
    }

    /// Waits until everything that was begun is done.
    ///
    /// # Errors
    /// [`Error::Device`] where the device failed meanwhile.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if self.state != State::Ready {
            return Ok(());
        }
        if let Some(connection) = &self.connection {
            return connection.finish(&self.cancel);
        }
        let before = account::read(self.device.memory_kind());
        let done = sys::guard(|| {
            // SAFETY: a live backend.
            unsafe { sys::ggml_backend_synchronize(self.raw.get().as_ptr()) }
        });
        done.map_err(|caught| self.unwound(&caught, before))
    }

    /// What is begun from now on begins after `event`.
    ///
    /// # Errors
    /// [`Error::Graph`] if the device fails.
    pub fn wait(&self, event: &Event) -> Result<()> {
        queue::wait(self.raw.get(), event)
    }

    /// `event` happens when all that was begun is done.
    ///
    /// # Errors
    /// [`Error::Graph`] if the device fails.
    pub fn record(&self, event: &Event) -> Result<()> {
        queue::record(self.raw.get(), event)
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        guarded("wait", || {
            // SAFETY: a live backend.
            unsafe { sys::ggml_backend_synchronize(self.raw.get().as_ptr()) }
        })
    }

    pub(super) fn raw(&self) -> NonNull<sys::ggml_backend> {
        self.raw.get()
    }

    /// What computing `graph` takes on the device beside places and activations: on the CPU exactly, on others at most.
    /// Allocates nothing, and takes graphs whose leaves lie nowhere.
    ///
    /// # Errors
    /// [`Error::Graph`] if ggml fails, or the graph has an operation that [`Scratch`] knows nothing of.
    pub fn scratch(&self, graph: &Graph) -> Result<Scratch> {
        if let Some(remote) = self.device.remote() {
            return Ok(remote.measure(graph.text())?.1);
        }
        match self.cpu_plan(graph)? {
            Some(plan) => Ok(Scratch::one(plan.work_size)),
            None => self
                .device
                .scratch_table()?
                .of(&nodes::of(graph).collect::<Result<Vec<_>>>()?, self.device.granularity()),
        }
    }

    /// Gives `arena` the work space of all `graphs`, so that computing them allocates nothing. Other devices than the CPU
    /// allocate it themselves on the way: there it is entered, and what they keep from earlier graphs is given back where the two
    /// together would be more.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`] where the device does not start anew.
    pub fn reserve(&self, graphs: &[&Graph], arena: &mut Arena) -> Result<()> {
        if self.connection.is_some() {
            return arena.reserve_there(graphs);
        }
        let mut wanted = Scratch::default();
        for graph in graphs {
            wanted = wanted.join(self.scratch(graph)?);
        }
        if self.device.is_cpu() {
            return arena.scratch(wanted.bytes()).map(|_| ());
        }
        let together = self.kept.get().join(wanted);
        if together.bytes() > wanted.bytes() {
            self.restart()?;
            self.kept.set(wanted);
        } else {
            self.kept.set(together);
        }
        arena.enter_scratch(wanted.bytes())
    }

    /// Has ggml start the device anew, without what it kept from earlier computations. Compiled kernels stay, and so does all
    /// that is in memory. Nothing is being computed.
    fn restart(&self) -> Result<()> {
        self.synchronize()?;
        let fresh = start(self.device)?;
        let old = self.raw.replace(fresh);
        if self.state == State::Ready {
            // An exception on the way (a device that is lost) leaks what is left.
            let _ = sys::guard(|| {
                // SAFETY: freed once: nothing else has it.
                unsafe { sys::ggml_backend_free(old.as_ptr()) }
            });
        }
        Ok(())
    }

    /// How the CPU goes about `graph`. `None` on other devices.
    fn cpu_plan(&self, graph: &Graph) -> Result<Option<sys::ggml_cplan>> {
        let Some(pool) = self.pool else { return Ok(None) };
        let plan = guarded("plan", || {
            // SAFETY: live graph and pool; only formats and extents are looked at.
            unsafe { sys::ggml_graph_plan(graph.cgraph(), pool.threads, pool.raw.as_ptr()) }
        })?;
        Ok(Some(plan))
    }

    /// As ggml's own backend does, but in work space that is counted: that backend grows a buffer of its own on the way.
    fn compute_planned(
        &self,
        graph: &Graph,
        mut plan: sys::ggml_cplan,
        scratch: &mut [u8],
    ) -> Result<sys::ggml_status, sys::Caught> {
        plan.work_data = scratch.as_mut_ptr();
        plan.abort_callback = Some(is_raised);
        plan.abort_callback_data = Arc::as_ptr(&self.cancel.0).cast_mut().cast();
        sys::guard_compute(|| {
            // SAFETY: as for any backend's computation; the plan is this graph's, its work space as large as it asks for.
            unsafe { sys::ggml_graph_compute(graph.cgraph(), &mut plan) }
        })
    }

    /// What became of a computation that was unwound. Before it, memory stood as `before`.
    fn unwound(&mut self, caught: &sys::Caught, before: account::Account) -> Error {
        let now = account::read(self.device.memory_kind());
        if now.refused == before.refused {
            self.state = State::Broken;
            return self.failed(&caught.to_string());
        }
        self.state = State::Full;
        Error::OutOfMemory {
            what: format!("work space on {}", self.device.name()),
            bytes: now.refused_bytes,
            hint: Some(
                "close other programs that use the device, or choose a smaller picture or a smaller --vram".into(),
            ),
        }
    }

    /// Whether another machine was to compute and is gone, with all that was in its memory.
    pub fn is_lost(&self) -> bool {
        // Who asks hears of a server that has gone meanwhile, too.
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.ask_done(&Message::Settle).is_err() && connection.is_lost())
    }

    /// Starts the device anew where a computation failed in a way that left nothing usable. What was in memory stays.
    ///
    /// # Errors
    /// As [`new`](Backend::new).
    pub fn recover(&mut self) -> Result<()> {
        if self.state == State::Ready && !self.is_lost() {
            return Ok(());
        }
        if self.device.fault().is_some_and(|fault| fault.for_good) {
            return Err(self.failed("does not start again, as its name says"));
        }
        let threads = self.pool.map_or(1, |pool| usize::try_from(pool.threads).unwrap_or(1));
        // What the old one holds goes first where it can.
        self.free();
        self.state = State::Broken;
        let (kernel, given) = (self.kernel, self.given);
        *self = Backend::new(self.device, threads, self.cancel.clone())?;
        (self.kernel, self.given) = (kernel, given);
        Ok(())
    }

    fn failed(&self, message: &str) -> Error {
        Error::Device { device: self.device.name(), message: message.into(), hint: None }
    }
}

impl Backend {
    /// Frees it, unless it may hold memory that is freed already: then leaking it is the safe choice.
    fn free(&mut self) {
        if self.state == State::Broken {
            return;
        }
        // An exception on the way (a device that is lost) leaks what is left.
        let _ = sys::guard(|| {
            // SAFETY: freed once, the backend before the pool that it uses.
            unsafe {
                sys::ggml_backend_free(self.raw.get().as_ptr());
                if let Some(pool) = self.pool {
                    sys::ggml_threadpool_free(pool.raw.as_ptr());
                }
            }
        });
    }
}

/// ggml's own part of a backend.
fn start(device: Device) -> Result<NonNull<sys::ggml_backend>> {
    let raw = guarded("start", || {
        // SAFETY: a live device; no parameters.
        unsafe { sys::ggml_backend_dev_init(device.raw(), std::ptr::null()) }
    })?;
    NonNull::new(raw).ok_or_else(|| Error::Device {
        device: device.name(),
        message: "does not start".into(),
        hint: None,
    })
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.free();
    }
}

/// ggml asks this between operations, from any of its threads.
unsafe extern "C-unwind" fn is_raised(flag: *mut c_void) -> bool {
    // SAFETY: `start_threads` or `set_cancel` gave the address of an `AtomicBool`, which the backend keeps alive until it is
    // given another.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

/// When operations were done.
struct Ends {
    cancel: CancelFlag,
    times: Vec<Instant>,
}

/// ggml calls this on its first thread after every operation.
unsafe extern "C-unwind" fn note_end(ends: *mut c_void) -> bool {
    // SAFETY: `compute_timed` gave the address of its `Ends`, which no one else uses meanwhile. It has room for every
    // operation, so that nothing allocates here.
    let ends = unsafe { &mut *ends.cast::<Ends>() };
    if ends.times.len() < ends.times.capacity() {
        ends.times.push(Instant::now());
    }
    ends.cancel.is_raised()
}
