//! What was found.

use pinhole::ggml::Absence;
use serde::Serialize;

use super::cards::Cards;
use super::disk::Disk;
use super::machine::{Memory, Processor};
use super::planned::Planned;
use crate::cli::devices::Row;

/// What was found.
#[derive(Serialize)]
pub(super) struct Findings {
    pub(super) version: &'static str,
    pub(super) build: Build,
    pub(super) processor: Processor,
    pub(super) memory: Memory,
    pub(super) disk: Disk,
    pub(super) devices: Vec<Row>,
    /// What this build could compute on, and why it cannot here.
    pub(super) absent: Vec<Absence>,
    pub(super) cards: Cards,
    pub(super) plan: Planned,
}

/// What this build is.
#[derive(Serialize)]
pub(super) struct Build {
    pub(super) system: String,
    pub(super) ggml: String,
    /// Beside the CPU.
    pub(super) computes_on: Vec<&'static str>,
    /// The processor that ggml's part for the CPU was compiled for.
    pub(super) compiled_for: &'static str,
    /// If that is several, the one whose code computes here.
    pub(super) computes_as: Option<&'static str>,
}

impl Findings {
    /// Whether there is something faster than the CPU.
    pub(super) fn has_accelerator(&self) -> bool {
        self.devices.iter().any(|device| device.kind != "cpu" && !device.played)
    }
}

#[cfg(test)]
impl Findings {
    /// Those of a machine without a problem.
    pub(super) fn sound() -> Findings {
        use super::disk::Speed;
        use pinhole::memory::Room;

        let instructions = vec!["avx2"];
        Findings {
            version: "1.2.3",
            build: Build {
                system: "x86_64-linux".into(),
                ggml: "1".into(),
                computes_on: vec![],
                compiled_for: "native",
                computes_as: None,
            },
            processor: Processor { name: None, cores: 8, instructions, unused: vec![], kernel: Some("avx2") },
            memory: Memory::from(Room { free: Some(48 << 30), most: Some(64 << 30), addresses: None }),
            disk: Disk { path: "models".into(), measured: Ok(Speed { bytes: 1 << 28, bytes_per_second: 3 << 30 }) },
            devices: vec![],
            absent: vec![],
            cards: Cards::default(),
            plan: Planned::nothing(),
        }
    }
}
