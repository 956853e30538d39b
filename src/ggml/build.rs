//! What this build is: which processors it was compiled for, and what it can compute on beside the CPU.

use std::ffi::CStr;

use ggml_sys::{self as sys, processor};

use crate::{Error, Result};

/// What this build can compute on beside the CPU, by the names of the Cargo features.
pub fn backends() -> Vec<&'static str> {
    let all =
        [(cfg!(feature = "cuda"), "cuda"), (cfg!(feature = "metal"), "metal"), (cfg!(feature = "vulkan"), "vulkan")];
    all.into_iter().filter(|(built, _)| *built).map(|(_, name)| name).collect()
}

/// The version of ggml.
pub fn version() -> String {
    // SAFETY: no arguments; a constant text of ggml's.
    unsafe { CStr::from_ptr(sys::ggml_version()) }.to_string_lossy().into_owned()
}

/// The processor that ggml's part for the CPU was compiled for, in the compiler's own words: `native`, `x86-64-v3`.
pub fn compiled_for() -> &'static str {
    processor::COMPILED_FOR
}

/// In a build for several processors, the one whose code computes here.
pub fn chosen_for() -> Option<&'static str> {
    processor::chosen()
}

/// The instructions that ggml's part for the CPU may use beyond those of every processor of its kind.
pub fn instructions() -> Vec<&'static str> {
    processor::instructions().collect()
}

/// Which of the instructions that anything here asks for this processor has.
pub fn processor_instructions() -> Vec<&'static str> {
    processor::KNOWN.iter().copied().filter(|name| processor::has(name)).collect()
}

/// Refuses a processor that would stop at an instruction that it does not know.
///
/// # Errors
/// [`Error::Device`], with the instructions that it lacks.
pub fn check_processor() -> Result<()> {
    let lacking = processor::lacking();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Error::Device {
        device: "cpu".into(),
        message: format!(
            "this program was compiled for processors with {}, and this one is without {}",
            processor::instructions().collect::<Vec<_>>().join(", "),
            lacking.join(", ")
        ),
        hint: Some(
            "use a release for every processor, or compile it on this machine, or with PINHOLE_TARGET_CPU=x86-64-v2"
                .into(),
        ),
    })
}
