//! Number formats: what a number takes in a file, how rows are quantized and read back, and which weight gets which
//! format. Knows no model and no device.

mod dtype;
mod ffi;
pub mod file_type;
pub mod fp8;
pub mod gguf;
pub mod metrics;
pub mod output;
pub mod pattern;
pub mod recipe;
pub mod rows;
mod temporary;
pub mod workers;

pub use dtype::{DType, UnknownDType};
