//! From a request to pictures, one file per model family, with the steps that families share beside them.

pub mod flux;
mod progress;
mod request;

pub use progress::{Event, Observer, Phase};
pub use request::{Generated, MemoryOptions, PhaseMemory, Request, Settings, Timings};
