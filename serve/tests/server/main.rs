//! The program `pinhole-serve`, with the model that is built in: what its clients see.

#![allow(clippy::unwrap_used)]

mod crowd;
mod interfaces;
mod jobs;
mod limits;
mod overhead;
mod rig;
mod state;
mod swap;
