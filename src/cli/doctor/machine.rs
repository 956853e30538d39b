//! The processor and the memory.

use std::fmt;
use std::fs;

use pinhole::ggml::build;
use pinhole::kernels::Kernel;
use pinhole::memory::{self, Room};
use pinhole::processors;
use serde::Serialize;

use crate::cli::units;

/// The processor, as far as computing goes.
#[derive(Serialize)]
pub(super) struct Processor {
    /// `None` on systems that do not say.
    pub(super) name: Option<String>,
    /// Those that this process may use.
    pub(super) cores: usize,
    /// Those that anything here asks for, and the processor has.
    pub(super) instructions: Vec<&'static str>,
    /// Those of them that ggml's part for the CPU was not compiled for.
    pub(super) unused: Vec<&'static str>,
    /// pinhole's own kernels that are used, if any are.
    pub(super) kernel: Option<&'static str>,
}

impl Processor {
    pub(super) fn look() -> Processor {
        let instructions = build::processor_instructions();
        let used = build::instructions();
        // A build for several processors has taken what this one has.
        let unused =
            instructions.iter().copied().filter(|name| build::chosen_for().is_none() && !used.contains(name)).collect();
        let kernel = Kernel::best().map(Kernel::name);
        Processor { name: name(), cores: processors::cores(), instructions, unused, kernel }
    }
}

fn name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = units::counted(self.cores, "core");
        match &self.name {
            Some(name) => write!(f, "{name}, {cores}"),
            None => f.write_str(&cores),
        }
    }
}

/// The host's memory, in bytes; each `None` on systems that do not say, or where there is no limit.
#[derive(Serialize)]
pub(super) struct Memory {
    pub(super) free_bytes: Option<u64>,
    /// All that there is, and what the limits of control groups leave of it.
    pub(super) most_bytes: Option<u64>,
    /// Address space, where the process's limits end it.
    pub(super) address_bytes: Option<u64>,
}

impl Memory {
    pub(super) fn look() -> Memory {
        Memory::from(memory::room())
    }
}

impl From<Room> for Memory {
    fn from(room: Room) -> Memory {
        Memory { free_bytes: room.free, most_bytes: room.most, address_bytes: room.addresses }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(free), Some(most)) = (self.free_bytes, self.most_bytes) else {
            return f.write_str("the system does not say");
        };
        write!(f, "{} free of {}", units::bytes(free), units::bytes(most))?;
        match self.address_bytes {
            Some(bytes) => write!(f, ", addresses for {}", units::bytes(bytes)),
            None => Ok(()),
        }
    }
}
