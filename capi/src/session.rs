//! `pinhole_session`: a model on a device.

use std::ffi::c_char;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::sync::{Mutex, TryLockError};

use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::MemoryOptions;
use pinhole::pipeline::Pipeline;
use pinhole::plan::Offload;
use pinhole::processors::{self, MOST_THREADS};

use crate::error::{Error, Failure};
use crate::model::Model;
use crate::options::{self, Versioned, versioned};
use crate::{entry, handle, text};

/// `pinhole_session`
pub struct Session {
    state: Mutex<State>,
}

struct State {
    pipeline: Pipeline,
    /// Whether a call panicked in it.
    poisoned: bool,
}

/// `pinhole_session_options`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct SessionOptions {
    pub struct_size: usize,
    pub device: *const c_char,
    pub vram: u64,
    pub offload: i32,
    pub threads: i32,
    pub host_memory: u64,
    pub prompt_cache: *const c_char,
    pub devices: *const *const c_char,
    pub device_count: usize,
    pub device_vram: *const u64,
    pub devices_by: *const c_char,
}

const DEFAULT: SessionOptions = SessionOptions {
    struct_size: size_of::<SessionOptions>(),
    device: std::ptr::null(),
    vram: 0,
    offload: 0,
    threads: 0,
    host_memory: 0,
    prompt_cache: std::ptr::null(),
    devices: std::ptr::null(),
    device_count: 0,
    device_vram: std::ptr::null(),
    devices_by: std::ptr::null(),
};
versioned!(SessionOptions, "pinhole_session_options", offset_of!(SessionOptions, devices), DEFAULT);

impl Session {
    /// Runs `work` on the pipeline, which `cancel` stops. A panic poisons the session.
    pub(crate) fn with<R>(
        &self,
        cancel: CancelFlag,
        work: impl FnOnce(&mut Pipeline) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::WouldBlock) => return Err(Failure::busy()),
            // The lock is let go by a thread that does not panic: `catch` is inside.
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
        };
        if state.poisoned {
            return Err(Failure::poisoned());
        }
        let done = entry::catch(|| {
            state.pipeline.set_cancel(cancel);
            let done = work(&mut state.pipeline);
            state.pipeline.set_cancel(CancelFlag::new());
            done
        });
        state.poisoned = done.is_err();
        done.unwrap_or_else(Err)
    }
}

/// How many threads `given` means.
pub(crate) fn threads(given: i32) -> Result<usize, Failure> {
    match usize::try_from(given) {
        Ok(0) => Ok(processors::cores()),
        Ok(threads) if threads <= MOST_THREADS => Ok(threads),
        _ => Err(pinhole::Error::option("--threads", format!("1 to {MOST_THREADS}, or 0"), given.to_string()).into()),
    }
}

/// What the header's number means.
pub(crate) fn offload(given: i32) -> Result<Offload, Failure> {
    // The header's numbers are the order of the list.
    let found = usize::try_from(given).ok().and_then(|given| Offload::ALL.get(given).copied());
    found.ok_or_else(|| pinhole::Error::option("--offload", "PINHOLE_OFFLOAD_...", given.to_string()).into())
}

/// A budget in bytes; 0 is none.
pub(crate) fn budget(bytes: u64) -> Option<usize> {
    (bytes > 0).then(|| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The budget of each device, if each has its own.
type Budgets = Option<Vec<Option<usize>>>;

/// The devices that `options` name, and their budgets.
///
/// # Safety
/// The header's contract.
unsafe fn devices(options: &SessionOptions) -> Result<(Vec<Device>, Budgets), Failure> {
    if options.devices.is_null() {
        if options.device_count > 0 {
            return Err(Failure::null("devices"));
        }
        // SAFETY: the caller's promise.
        let name = unsafe { text::optional(options.device, "device") }?.unwrap_or("auto");
        return Ok((vec![Device::by_name(name)?], None));
    }
    let mut devices = Vec::new();
    for at in 0..options.device_count {
        // SAFETY: the caller promises so many names.
        let name = unsafe { text::required(options.devices.add(at).read(), "devices") }?;
        devices.push(Device::by_name(name)?);
    }
    let mut budgets = None;
    if !options.device_vram.is_null() {
        // SAFETY: the caller promises as many numbers.
        let bytes = (0..devices.len()).map(|at| unsafe { options.device_vram.add(at).read() });
        budgets = Some(bytes.map(budget).collect());
    }
    Ok((devices, budgets))
}

/// # Safety
/// The header's contract.
unsafe fn new(model: *const Model, options: *const SessionOptions) -> Result<Session, Failure> {
    // SAFETY: the caller's promise.
    let (model, options) = unsafe {
        let options = if options.is_null() { SessionOptions::initial() } else { options::read(options)? };
        (handle::get(model, "model")?, options)
    };
    // SAFETY: the caller's promise.
    let (devices, budgets) = unsafe { devices(&options) }?;
    let (vram, host) = (budget(options.vram), budget(options.host_memory));
    let memory = MemoryOptions { vram, offload: offload(options.offload)?, host };
    let threads = threads(options.threads)?;
    let mut pipeline = Pipeline::on_devices(model.model.clone(), &devices, threads, CancelFlag::new())?;
    pipeline.set_memory(memory);
    if let Some(budgets) = budgets {
        pipeline.set_budgets(&budgets)?;
    }
    // SAFETY: the caller's promise.
    if let Some(text) = unsafe { text::optional(options.devices_by, "devices_by") }? {
        let expected = "auto, none, or passes, tokens and stages";
        let among = text.parse().map_err(|error| pinhole::Error::option("--devices-by", expected, error))?;
        pipeline.set_among(among);
    }
    // SAFETY: the caller's promise.
    let prompt_cache = unsafe { text::optional(options.prompt_cache, "prompt_cache") }?;
    pipeline.set_prompt_cache(prompt_cache.map(Path::new))?;
    Ok(Session { state: Mutex::new(State { pipeline, poisoned: false }) })
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_session_options_init(options: *mut SessionOptions, struct_size: usize) -> i32 {
    // SAFETY: the header's contract.
    unsafe { options::init(options, struct_size) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_session_new(
    model: *const Model,
    options: *const SessionOptions,
    out: *mut *mut Session,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        unsafe {
            handle::clear(out, "out")?;
            handle::give(out, new(model, options)?)
        }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_session_free(session: *mut Session) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(session) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{E_PANIC, OK};

    fn session(model: *const Model) -> *mut Session {
        let options = SessionOptions { threads: 1, ..DEFAULT };
        let mut session = std::ptr::null_mut();
        // SAFETY: all are alive.
        assert_eq!(unsafe { pinhole_session_new(model, &options, &mut session, std::ptr::null_mut()) }, OK);
        session
    }

    #[test]
    fn a_panic_poisons_its_session_and_no_other() {
        let mut model = std::ptr::null_mut();
        // SAFETY: an output that is alive, and no error.
        assert_eq!(unsafe { crate::model::pinhole_model_open_builtin(&mut model, std::ptr::null_mut()) }, OK);
        let (one, two) = (session(model), session(model));
        // SAFETY: they were just made, and are freed at the end.
        let (first, second) = unsafe { (&*one, &*two) };
        let index = std::hint::black_box(7);
        let panicked = first.with(CancelFlag::new(), |_| Ok([0; 3][index]));
        assert_eq!(panicked.map_err(|failure| failure.code), Err(E_PANIC));
        assert_eq!(first.with(CancelFlag::new(), |_| Ok(())).map_err(|failure| failure.code), Err(E_PANIC));
        assert!(second.with(CancelFlag::new(), |_| Ok(())).is_ok());

        let mut error = std::ptr::null_mut();
        // SAFETY: an error object that is alive, read once it is there, and handles that are freed once.
        unsafe {
            let code = entry::call(&mut error, || first.with(CancelFlag::new(), |_| Ok(())));
            assert_eq!(code, E_PANIC);
            assert_eq!((*error).code(), E_PANIC);
            crate::error::pinhole_error_free(error);
            let code = entry::call(&mut error, || panic!("on purpose"));
            assert_eq!(code, E_PANIC);
            assert!((*error).message().contains("on purpose (capi/src/session.rs:"), "{}", (*error).message());
            crate::error::pinhole_error_free(error);
            pinhole_session_free(one);
            pinhole_session_free(two);
            crate::model::pinhole_model_free(model);
        }
    }

    /// What the header promises of threads is what the types say.
    #[test]
    fn handles_may_move_and_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Session>();
        shared::<Model>();
        shared::<crate::cancel::Cancel>();
        shared::<crate::embeddings::Embeddings>();
        shared::<crate::image::Image>();
        shared::<crate::plan::Plan>();
        shared::<crate::result::Outcome>();
        shared::<crate::buffer::Buffer>();
        shared::<Error>();
    }
}
