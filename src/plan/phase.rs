//! The phases of a request.

/// A part of a request, in the order in which they run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// The prompt goes through the text encoders.
    #[default]
    Encode,
    /// Pictures of the request become latents.
    Condition,
    /// The denoiser runs, step by step.
    Denoise,
    /// The autoencoder makes pictures of latents.
    Decode,
    /// The safety checker judges the pictures.
    Safety,
    /// Pictures become larger.
    Upscale,
}

impl Phase {
    /// All of them, in the order in which they run.
    pub const ALL: [Phase; 6] =
        [Phase::Encode, Phase::Condition, Phase::Denoise, Phase::Decode, Phase::Safety, Phase::Upscale];

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Encode => "encode",
            Phase::Condition => "condition",
            Phase::Denoise => "denoise",
            Phase::Decode => "decode",
            Phase::Safety => "safety",
            Phase::Upscale => "upscale",
        }
    }
}
