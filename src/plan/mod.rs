//! The plan of a request: what is on the device when, and how many bytes that takes, before the first byte moves.
//!
//! [`measure`] builds the graphs of a model at the request's size with no memory behind them and asks ggml what they take;
//! [`budget`] decides, by arithmetic alone, what is resident and what streams. The executor does what the [`Plan`]
//! says.

mod bands;
mod batch;
pub mod budget;
mod component;
pub mod devices;
mod dry_run;
mod exchange;
pub mod host;
pub mod layout;
mod limits;
pub mod measure;
mod offload;
mod phase;
mod place;
mod placed;
mod runs;
mod strips;
mod way;
mod work;

pub use batch::{Batch, BatchPart, Turn};
pub use component::{Component, StageBytes, Variant};
pub(crate) use dry_run::{DryRun, STAGE_TENSORS};
pub(crate) use exchange::{Held, Pull, Rows};
pub use limits::{HostBound, HostLimit, Limits, Refusal};
pub use offload::Offload;
pub use phase::Phase;
pub use placed::{ComponentPlan, HostUse, Parts, Placement, Plan};
pub use runs::Runs;
pub(crate) use strips::{PassCut, StripRun};
pub use way::Way;
pub use work::{Speed, Work};

pub use crate::stage::TokenShare;
