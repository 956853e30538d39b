//! How much of a model a request keeps on the device, in the words of the command line.

use std::str::FromStr;

/// How a request shares a device that is smaller than the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// The fastest that fits.
    #[default]
    Auto,
    /// All components stay on the device.
    None,
    /// One component at a time on the device.
    Model,
    /// Streamed stage by stage: the smallest footprint. Small stages that run in every step stay if they fit.
    Sequential,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 4] = [Offload::Auto, Offload::None, Offload::Model, Offload::Sequential];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Offload::Auto => "auto",
            Offload::None => "none",
            Offload::Model => "model",
            Offload::Sequential => "sequential",
        }
    }
}

impl FromStr for Offload {
    type Err = String;

    fn from_str(name: &str) -> Result<Offload, String> {
        let found = Offload::ALL.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| format!("`{name}` is not auto, none, model or sequential"))
    }
}
