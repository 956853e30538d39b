//! Devices.

use std::ffi::c_char;
use std::mem::size_of;

use pinhole::ggml::{self, Device, DeviceKind};

use crate::error::{Error, Failure};
use crate::options::{self, versioned};
use crate::{entry, text};

/// `pinhole_device_info`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct DeviceInfo {
    pub struct_size: usize,
    pub name: [c_char; 64],
    pub description: [c_char; 192],
    pub kind: i32,
    pub is_default: i32,
    pub memory_free: u64,
    pub memory_total: u64,
}

const NOTHING: DeviceInfo = DeviceInfo {
    struct_size: 0,
    name: [0; 64],
    description: [0; 192],
    kind: 0,
    is_default: 0,
    memory_free: 0,
    memory_total: 0,
};
versioned!(DeviceInfo, "pinhole_device_info", size_of::<DeviceInfo>(), NOTHING);

/// The header's numbers.
fn kind(kind: DeviceKind) -> i32 {
    match kind {
        DeviceKind::Cpu => 1,
        DeviceKind::Discrete => 2,
        DeviceKind::Integrated => 3,
        _ => 0,
    }
}

fn info(device: Device) -> Result<DeviceInfo, Failure> {
    let (free, total) = device.memory()?;
    Ok(DeviceInfo {
        name: text::fixed(&device.name()),
        description: text::fixed(&device.description()),
        kind: kind(device.kind()),
        is_default: i32::from(Device::by_name("auto")? == device),
        memory_free: free as u64,
        memory_total: total as u64,
        ..NOTHING
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_device_count(count: *mut usize, error: *mut *mut Error) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let count = unsafe { count.as_mut() }.ok_or_else(|| Failure::null("count"))?;
        *count = 0;
        *count = ggml::devices()?.len();
        Ok(())
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_device_get(index: usize, out: *mut DeviceInfo, error: *mut *mut Error) -> i32 {
    let work = || {
        let devices = ggml::devices()?;
        let Some(&device) = devices.get(index) else {
            return Err(Failure::argument(format!("index: expected less than {}, found {index}", devices.len()), ""));
        };
        let info = info(device)?;
        // SAFETY: the header's contract.
        unsafe { options::write(out, info) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}
