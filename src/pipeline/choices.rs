//! What a request chooses by name.

use crate::image::Thresholds;

/// Which latents a picture has, of the distribution that the autoencoder gives for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Posterior {
    /// A draw from the seed's noise, before the noise itself, as diffusers does it.
    #[default]
    Sample,
    /// The mean.
    Mean,
}

impl Posterior {
    /// All of them.
    pub const ALL: [Posterior; 2] = [Posterior::Sample, Posterior::Mean];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Posterior::Sample => "sample",
            Posterior::Mean => "mean",
        }
    }
}

/// What is made of a picture before it is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Preprocess {
    /// Nothing: it shows what is to be followed.
    #[default]
    None,
    /// Its edges, once it has the size that is drawn.
    Canny(Thresholds),
    /// What the request's mask leaves of it, for inpainting ControlNets of Stable Diffusion.
    Inpaint,
}

impl Preprocess {
    /// The names that the command line has for them.
    pub const NAMES: [&str; 3] = ["none", "canny", "inpaint"];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preprocess::None => "none",
            Preprocess::Canny(_) => "canny",
            Preprocess::Inpaint => "inpaint",
        }
    }
}

/// What size the pictures have that a model looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReferenceResize {
    /// One that the model was trained with.
    #[default]
    Auto,
    /// Their own, less what is more than a multiple of what the model's sides are multiples of.
    None,
}

impl ReferenceResize {
    /// All of them.
    pub const ALL: [ReferenceResize; 2] = [ReferenceResize::Auto, ReferenceResize::None];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ReferenceResize::Auto => "auto",
            ReferenceResize::None => "none",
        }
    }
}

/// What a tiny autoencoder is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TinyUse {
    /// For previews, for the picture, and for pictures that are given, if it has an encoder: the other autoencoder decodes nothing.
    #[default]
    All,
    /// For previews alone.
    Preview,
}

impl TinyUse {
    /// All of them.
    pub const ALL: [TinyUse; 2] = [TinyUse::All, TinyUse::Preview];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TinyUse::All => "all",
            TinyUse::Preview => "preview",
        }
    }
}

/// What becomes of pictures that a safety checker flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SafetyMode {
    /// Nothing is checked.
    #[default]
    Off,
    /// They become black.
    On,
    /// They stay as they are, and it is said.
    Report,
}

impl SafetyMode {
    /// All of them.
    pub const ALL: [SafetyMode; 3] = [SafetyMode::Off, SafetyMode::On, SafetyMode::Report];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            SafetyMode::Off => "off",
            SafetyMode::On => "on",
            SafetyMode::Report => "report",
        }
    }

    /// In words, for what a picture says of how it was made.
    pub fn described(self, flagged: bool) -> &'static str {
        match (self, flagged) {
            (SafetyMode::Off, _) => "off",
            (SafetyMode::On, false) => "on",
            (SafetyMode::On, true) => "on, flagged",
            (SafetyMode::Report, false) => "report",
            (SafetyMode::Report, true) => "report, flagged",
        }
    }
}
