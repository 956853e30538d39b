//! What CUDA needs of the system beside its runtime, which is in the program: a driver, a card, cuBLAS.

/// Why no CUDA card can compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The driver's library is not there.
    NoDriver,
    /// The driver is older than the toolkit of this build.
    OldDriver,
    /// The driver finds no card.
    NoCard,
    /// The driver fails otherwise.
    Failed,
    /// There is a card, and cuBLAS cannot be loaded, which ggml's CUDA backend does not work without.
    NoCublas,
}

/// Why no CUDA card can compute, and the system's own words for it. `None` where one can, and in a build without CUDA. Loads
/// cuBLAS where there is a card.
#[cfg(feature = "cuda")]
pub fn fault() -> Option<(Fault, String)> {
    use std::ffi::{CStr, c_char, c_int};
    unsafe extern "C" {
        fn ph_cuda_fault(message: *mut c_char, size: usize) -> c_int;
    }
    let mut message: [c_char; 512] = [0; 512];
    // SAFETY: writable for so many bytes; no more than that are written, a NUL among them.
    let (found, said) = unsafe {
        let found = ph_cuda_fault(message.as_mut_ptr(), message.len());
        (found, CStr::from_ptr(message.as_ptr()).to_string_lossy().into_owned())
    };
    // The numbers of shim/cuda_fault.h.
    let fault = match found {
        0 => return None,
        1 => Fault::NoDriver,
        2 => Fault::OldDriver,
        3 => Fault::NoCard,
        5 => Fault::NoCublas,
        _ => Fault::Failed,
    };
    Some((fault, said))
}

/// Why no CUDA card can compute: nothing, in a build without CUDA.
#[cfg(not(feature = "cuda"))]
pub fn fault() -> Option<(Fault, String)> {
    None
}

/// The version of the toolkit that this was compiled with, major and minor: 0.0 in a build without CUDA.
pub fn version() -> (i32, i32) {
    #[cfg(feature = "cuda")]
    unsafe extern "C" {
        safe fn ph_cuda_version() -> std::ffi::c_int;
    }
    #[cfg(feature = "cuda")]
    let version = ph_cuda_version();
    #[cfg(not(feature = "cuda"))]
    let version = 0;
    (version / 1000, version % 1000 / 10)
}
