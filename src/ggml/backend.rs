//! A device ready to compute.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ggml_sys as sys;

use super::{Arena, Device, Graph, guarded};
use crate::{Error, Result};

/// A flag that any thread may raise to stop a computation between two operations.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// A flag that is not raised.
    pub fn new() -> CancelFlag {
        CancelFlag::default()
    }

    /// Asks for a stop. Safe in a signal handler: it is one atomic store.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// [`Error::Cancelled`] where a stop was asked for.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        if self.is_raised() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// A device's compute queue; on the CPU, a pool of threads.
pub struct Backend {
    raw: NonNull<sys::ggml_backend>,
    device: Device,
    /// The CPU's threads.
    pool: Option<Pool>,
    cancel: CancelFlag,
    /// Set when a computation was unwound: the backend's state is unknown from then on.
    broken: bool,
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
    /// [`Error::Device`] where the device does not start.
    pub fn new(device: Device, threads: usize, cancel: CancelFlag) -> Result<Backend> {
        let failed = |message: &str| Error::Device { device: device.name(), message: message.into(), hint: None };
        let raw = guarded("start", || {
            // SAFETY: a live device; no parameters.
            unsafe { sys::ggml_backend_dev_init(device.raw(), std::ptr::null()) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| failed("does not start"))?;
        let mut backend = Backend { raw, device, pool: None, cancel, broken: false };
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
                sys::ggml_threadpool_new(&mut params)
            }
        })?;
        let Some(pool) = NonNull::new(pool) else {
            return Err(Error::Device { device: "cpu".into(), message: "cannot start threads".into(), hint: None });
        };
        self.pool = Some(Pool { raw: pool, threads });
        // SAFETY: this is the CPU backend. The pool is freed after the backend (see `Drop`), and the flag that the
        // abort callback reads is kept alive by `self.cancel`.
        unsafe {
            sys::ggml_backend_cpu_set_n_threads(self.raw.as_ptr(), threads);
            sys::ggml_backend_cpu_set_threadpool(self.raw.as_ptr(), pool.as_ptr());
            let flag = Arc::as_ptr(&self.cancel.0).cast_mut().cast();
            sys::ggml_backend_cpu_set_abort_callback(self.raw.as_ptr(), Some(is_raised), flag);
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
            unsafe { sys::ggml_backend_cpu_set_abort_callback(self.raw.as_ptr(), Some(is_raised), flag) };
        }
        self.cancel = cancel;
    }

    /// Computes `graph`, whose memory `arena` assigned, and waits for it.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where the flag was raised; [`Error::Graph`] where the graph has no memory in `arena` or looks up
    /// a row that a table does not have; [`Error::Device`] where ggml fails.
    pub fn compute(&mut self, graph: &Graph, arena: &mut Arena) -> Result<()> {
        self.cancel.check()?;
        if !arena.holds(graph) {
            return Err(Error::graph("compute", "the graph has no memory in this arena"));
        }
        graph.check_lookups()?;
        if graph.device() != self.device {
            return Err(Error::graph("compute", "the graph was built for another device"));
        }
        if self.broken {
            return Err(self.failed("failed earlier and is not used again"));
        }
        let computed = match self.cpu_plan(graph)? {
            Some(plan) => self.compute_planned(graph, plan, arena.scratch(plan.work_size)?),
            None => sys::guard_compute(|| {
                // SAFETY: a live backend and graph; every leaf lies in a buffer that the graph holds, every other tensor
                // in the arena, which the caller lends for the call.
                unsafe { sys::ggml_backend_graph_compute(self.raw.as_ptr(), graph.cgraph()) }
            }),
        };
        self.broken = computed.is_err();
        if graph.products.borrow().take_failure() {
            return Err(self.failed("a matrix kernel failed"));
        }
        match computed.map_err(|caught| self.failed(&caught.to_string()))? {
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

    /// Bytes that computing `graph` takes on the device beside places and activations. Allocates nothing, and takes graphs
    /// whose leaves lie nowhere.
    ///
    /// # Errors
    /// [`Error::Graph`] if ggml fails.
    pub fn work_size(&self, graph: &Graph) -> Result<usize> {
        Ok(self.cpu_plan(graph)?.map_or(0, |plan| plan.work_size))
    }

    /// Gives `arena` the work space of all `graphs`, so that computing them allocates nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn reserve(&self, graphs: &[&Graph], arena: &mut Arena) -> Result<()> {
        let sizes = graphs.iter().map(|graph| self.work_size(graph)).collect::<Result<Vec<_>>>()?;
        arena.scratch(sizes.into_iter().max().unwrap_or(0)).map(|_| ())
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

    fn failed(&self, message: &str) -> Error {
        Error::Device { device: self.device.name(), message: message.into(), hint: None }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // A backend whose computation was unwound may hold freed memory: leaking it is the safe choice.
        if self.broken {
            return;
        }
        // SAFETY: freed once, the backend before the pool that it uses.
        unsafe {
            sys::ggml_backend_free(self.raw.as_ptr());
            if let Some(pool) = self.pool {
                sys::ggml_threadpool_free(pool.raw.as_ptr());
            }
        }
    }
}

/// ggml asks this between operations, from any of its threads.
unsafe extern "C-unwind" fn is_raised(flag: *mut c_void) -> bool {
    // SAFETY: `start_threads` or `set_cancel` gave the address of an `AtomicBool`, which the backend keeps alive until it is
    // given another.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}
