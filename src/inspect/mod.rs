//! What a file or directory is, and what is wrong with it: any GGUF or safetensors file, those that this version cannot run
//! included. Weights are not read, except by [`check()`].

mod check;
mod lora;
mod report;
mod second;
mod subject;

pub use check::{CheckReport, NotFinite, Unreadable, check};
pub use lora::LoraReport;
pub use report::{ComponentReport, Problem, Report, TensorReport, TokenizerReport, TypeReport};
pub use second::SecondReading;
pub use subject::Subject;
