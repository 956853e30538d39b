//! The plan of a request: what is on the device when, and how many bytes that takes, before the first byte moves.
//!
//! [`measure`] builds the graphs of a model at the request's size with no memory behind them and asks ggml what they take;
//! [`budget`] decides, by arithmetic alone, what is resident and what streams. The executor does what the [`Plan`]
//! says.

pub mod budget;
mod dry_run;
pub mod host;
pub mod layout;
pub mod measure;
mod strips;
mod way;

pub use budget::{Component, ComponentPlan, Limits, Offload, Parts, Placement, Plan, Refusal, Runs};
pub(crate) use dry_run::{DryRun, STAGE_TENSORS};
pub(crate) use strips::{PassCut, StripRun};
pub use way::Way;
