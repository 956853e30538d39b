//! The executor: puts weights where the device computes, gives ports and activations their memory, runs stages.
//!
//! It sees stages, ports and places, and never a model's name.

mod ports;
mod session;
mod weights;

pub use session::Session;
pub use weights::DeviceWeights;
