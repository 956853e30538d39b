//! The program `pinhole-serve`, with the model that is built in: what its clients see.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod crowd;
#[cfg(feature = "cluster")]
mod fleet;
mod interfaces;
mod jobs;
mod limits;
mod overhead;
mod rig;
#[cfg(feature = "cluster")]
mod s3;
mod state;
mod swap;
