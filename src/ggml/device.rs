//! The devices that ggml was built for and the machine has.

use std::ffi::CStr;
use std::fmt;

use ggml_sys as sys;

use super::guarded;
use crate::{Error, Result};

/// What sort of device it is, as far as placement cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// Computes in host memory: weights are used from the memory map.
    Cpu,
    /// Has memory of its own.
    Discrete,
    /// Shares the host's memory.
    Integrated,
}

/// One device. Cheap to copy; ggml keeps its devices until the process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Device {
    raw: sys::ggml_backend_dev_t,
}

// SAFETY: a `ggml_backend_dev_t` points at a static table of functions and constant properties in ggml's registry;
// the registry is filled once, under C++'s static-initialisation lock, and never changes afterwards.
unsafe impl Send for Device {}
// SAFETY: as above: nothing behind the pointer is written after the registry is filled.
unsafe impl Sync for Device {}

/// Every device, the CPU among them.
///
/// # Errors
/// [`Error::Graph`] if ggml fails while it looks for devices (a driver that throws, say).
pub fn devices() -> Result<Vec<Device>> {
    silence_log();
    guarded("devices", || {
        // SAFETY: no arguments; the registry initialises itself on first use.
        let count = unsafe { sys::ggml_backend_dev_count() };
        // SAFETY: every index is below the count.
        (0..count).map(|i| Device { raw: unsafe { sys::ggml_backend_dev_get(i) } }).collect()
    })
}

impl Device {
    /// The CPU.
    ///
    /// # Errors
    /// [`Error::Device`] if ggml was built without its CPU backend.
    pub fn cpu() -> Result<Device> {
        devices()?.into_iter().find(|device| device.kind() == DeviceKind::Cpu).ok_or_else(|| Error::Device {
            device: "cpu".into(),
            message: "this build of ggml has no CPU backend".into(),
            hint: None,
        })
    }

    /// The device called `name` (`cpu`, `cuda0`, `vulkan0`, ...); `auto` is the best there is.
    ///
    /// # Errors
    /// [`Error::Device`], listing the devices that exist.
    pub fn by_name(name: &str) -> Result<Device> {
        let all = devices()?;
        let wanted = name.to_ascii_lowercase();
        if wanted == "auto" {
            let accelerator = all.iter().find(|device| device.kind() != DeviceKind::Cpu);
            return accelerator.copied().map_or_else(Device::cpu, Ok);
        }
        let found = all.iter().find(|device| device.name() == wanted).copied();
        found.ok_or_else(|| Error::Device {
            device: name.to_owned(),
            message: "there is no such device".into(),
            hint: Some(format!("known here: auto, {}", all.iter().map(Device::name).collect::<Vec<_>>().join(", "))),
        })
    }

    /// pinhole's name for it, in lower case: `cpu`, `cuda0`, `vulkan0`, `metal`.
    pub fn name(&self) -> String {
        // SAFETY: the device is valid for ever; ggml returns a NUL-terminated string that lives as long.
        let name = unsafe { CStr::from_ptr(sys::ggml_backend_dev_name(self.raw)) };
        name.to_string_lossy().to_ascii_lowercase()
    }

    /// The hardware's own name.
    pub fn description(&self) -> String {
        // SAFETY: as in `name`.
        let text = unsafe { CStr::from_ptr(sys::ggml_backend_dev_description(self.raw)) };
        text.to_string_lossy().trim().to_owned()
    }

    /// What sort of device it is.
    pub fn kind(&self) -> DeviceKind {
        // SAFETY: the device is valid.
        match unsafe { sys::ggml_backend_dev_type(self.raw) } {
            sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Discrete,
            sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::Integrated,
            _ => DeviceKind::Cpu,
        }
    }

    /// `(free, total)` memory in bytes, as the driver reports it now.
    ///
    /// # Errors
    /// [`Error::Graph`] if the driver fails.
    pub fn memory(&self) -> Result<(usize, usize)> {
        guarded("device memory", || {
            let (mut free, mut total) = (0, 0);
            // SAFETY: both pointers are valid for the call.
            unsafe { sys::ggml_backend_dev_memory(self.raw, &mut free, &mut total) };
            (free, total)
        })
    }

    /// Bytes that addresses on this device must be a multiple of.
    pub fn alignment(&self) -> usize {
        // SAFETY: the device is valid, and so is its default buffer type.
        unsafe { sys::ggml_backend_buft_get_alignment(self.buffer_type()) }
    }

    pub(super) fn buffer_type(&self) -> sys::ggml_backend_buffer_type_t {
        // SAFETY: the device is valid.
        unsafe { sys::ggml_backend_dev_buffer_type(self.raw) }
    }

    pub(super) fn raw(&self) -> sys::ggml_backend_dev_t {
        self.raw
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

/// Drops ggml's log, which goes to stderr by default: a library prints nothing of its own accord. Failures still reach the
/// caller, as errors.
fn silence_log() {
    use std::sync::Once;
    static ONCE: Once = Once::new();

    unsafe extern "C-unwind" fn drop_message(
        _level: sys::ggml_log_level,
        _text: *const std::ffi::c_char,
        _user: *mut std::ffi::c_void,
    ) {
    }

    // SAFETY: the callback has ggml's signature, never unwinds and uses no user data.
    ONCE.call_once(|| unsafe { sys::ggml_log_set(Some(drop_message), std::ptr::null_mut()) });
}
