//! The executor: puts weights where the device computes, gives ports and activations their memory, runs stages.
//!
//! It sees stages, ports and places, and never a model's name. Where things go is a [`Placement`](crate::plan::Placement)'s
//! business; how they get there, the [uploads'](DeviceWeights::place).

mod device_link;
mod feed;
mod flight;
mod graphs;
mod link;
mod maps;
mod pages;
mod session;
mod strips;
mod together;
mod uploads;
mod weights;

pub use session::Session;
pub use together::Together;
pub use weights::DeviceWeights;
