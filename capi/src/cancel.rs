//! `pinhole_cancel`: stops a request from outside.

use pinhole::ggml::CancelFlag;

use crate::error::Error;
use crate::{entry, handle};

/// `pinhole_cancel`
pub struct Cancel {
    pub(crate) flag: CancelFlag,
}

/// The flag of `cancel`, or one that no one raises.
///
/// # Safety
/// The header's contract for `cancel`.
pub(crate) unsafe fn flag(cancel: *const Cancel) -> CancelFlag {
    // SAFETY: the header's contract.
    unsafe { cancel.as_ref() }.map_or_else(CancelFlag::new, |cancel| cancel.flag.clone())
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_cancel_new(out: *mut *mut Cancel, error: *mut *mut Error) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        unsafe {
            handle::clear(out, "out")?;
            handle::give(out, Cancel { flag: CancelFlag::new() })
        }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header. No more than an atomic store, so that a signal handler may call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_cancel_raise(cancel: *mut Cancel) {
    // SAFETY: the header's contract.
    if let Some(cancel) = unsafe { cancel.as_ref() } {
        cancel.flag.raise();
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_cancel_free(cancel: *mut Cancel) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(cancel) });
}
