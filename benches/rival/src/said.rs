//! What stable-diffusion.cpp says while it works: its phases have no other sign.
//!
//! The only unsafe code here: `diffusion-rs` offers neither its log nor what it was compiled with.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use diffusion_rs_sys::{sd_get_system_info, sd_log_level_t, sd_set_log_callback};

unsafe extern "C" fn hear(_: sd_log_level_t, text: *const c_char, _: *mut c_void) {
    // SAFETY: stable-diffusion.cpp passes its buffer, which ends with a zero and lives as long as this call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    eprintln!("{}", text.trim_end());
}

/// From now on, all of it comes on stderr.
pub(crate) fn listen() {
    // SAFETY: a function that is never gone, and no data.
    unsafe { sd_set_log_callback(Some(hear), null_mut()) };
}

/// The instructions and options that it was compiled with.
pub(crate) fn system() -> String {
    // SAFETY: a text of stable-diffusion.cpp's own, which ends with a zero and stays.
    let text = unsafe { CStr::from_ptr(sd_get_system_info()) }.to_string_lossy();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
