//! The safe wrapper over ggml: devices, backends, buffers, graphs and shape-checked operations.
//!
//! ggml ends the process when it is misused. Nothing here lets that happen: every operation checks shapes, formats,
//! strides and the [table of what pinhole uses](support) before ggml sees its arguments, and every call runs inside
//! `ggml_sys::guard`, which turns a failed assertion or a C++ exception on the calling thread into an
//! [`Error`]. What can still end the process is listed in the documentation of `ggml_sys` and in
//! `CONTRIBUTING.md`.
//!
//! This is, beside the quantizer's `ffi.rs`, the only importer of `ggml_sys`.

// The wrapper is where unsafe code belongs; every block names what it rests on.
#![allow(unsafe_code)]

mod absent;
pub(crate) mod alive;
mod alone;
mod arena;
mod attend;
mod attention;
mod attention_by_products;
mod attention_sums;
mod backend;
mod buffer;
pub mod build;
pub(crate) mod call;
mod cancel;
mod channel_norm;
mod convolve;
mod device;
mod elementwise;
mod floats;
mod graph;
mod halt;
mod layout;
mod ledger;
pub mod log;
mod nodes;
mod ops;
mod product;
mod queue;
pub(crate) mod remote;
mod replay;
mod rotate;
mod scratch;
pub mod support;

pub use absent::{Absence, absences};
pub use alone::{Alone, Heavy, Operands, OperationTime};
pub use arena::Arena;
pub use attend::AttentionMode;
pub use backend::Backend;
pub use buffer::{Buffer, Placed};
pub use cancel::CancelFlag;
pub use convolve::{Convolution, Normalisation};
pub use device::{Device, DeviceKind, Features, devices};
pub use graph::{Graph, Tensor};
pub(crate) use ledger::shares_heap;
pub use ledger::{Ledger, Usage, device_peak, restart_device_peak, share_heap};
pub(crate) use queue::SlotEvent;
pub use queue::{CopyQueue, Event, SlotEvents, Staging};
pub(crate) use replay::Replay;
pub use scratch::Scratch;

use crate::{Error, Result};

/// Runs `call` under the guard (it must not panic: a few calls of ggml, nothing else) and names `op` in the error when ggml fails below it.
fn guarded<R>(op: &'static str, call: impl FnOnce() -> R) -> Result<R> {
    ggml_sys::guard(call).map_err(|caught| Error::graph(op, caught.to_string()))
}
