//! What is before and after the blocks.

use super::block::Mode;
use super::config::Config;
use super::ports::{DRAWN_TOKENS, Ports};
use crate::Result;
use crate::models::flux::flux2::MlpEmbedder;
use crate::models::flux::modulation::Modulation;
use crate::models::flux::shared::Shared;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port, Symbol};
use crate::weights::{Role, Scope};

/// What all modulation depends on: time, and, if the model is told, the time that a step leads to.
pub(super) struct VectorIn {
    time_in: MlpEmbedder,
    ref_time_in: Option<(MlpEmbedder, Port)>,
    time: Port,
    zero: Port,
    /// `[D, N]`: of the picture that is drawn.
    vector: Port,
    /// `[D, N]`, or `[D, 1]` if nothing tells steps apart: of text and references, which are at time 0.
    still: Port,
}

impl VectorIn {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        ports: &Ports,
        [vector, still]: [Port; 2],
    ) -> Result<VectorIn> {
        let (inputs, hidden) = (config.timestep_channels, config.hidden());
        let time_in = MlpEmbedder::declare(&mut s.sub("time_in"), inputs, hidden)?;
        let ref_time_in = match ports.target {
            Some(port) => Some((MlpEmbedder::declare(&mut s.sub("ref_time_in"), inputs, hidden)?, port)),
            None => None,
        };
        Ok(VectorIn { time_in, ref_time_in, time: ports.time, zero: ports.zero, vector, still })
    }
}

impl Block for VectorIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut vector = self.time_in.build(b, b.read(self.time)?)?; // [D, N]
        let mut still = self.time_in.build(b, b.read(self.zero)?)?; // [D, 1]
        if let Some((ref_time_in, target)) = &self.ref_time_in {
            let target = ref_time_in.build(b, b.read(*target)?)?; // [D, N]
            vector = b.g.add(vector, target)?;
            still = b.g.add(target, still)?;
        }
        // Every modulation begins with the same SiLU.
        b.write(self.vector, b.g.silu(vector)?)?;
        b.write(self.still, b.g.silu(still)?)
    }
}

/// Latents, those of the pictures that are looked at, and the text become one sequence.
pub(super) struct Embed {
    image: Linear,
    reference: Linear,
    latents: Port,
    context: Port,
    joint: Port,
}

impl Embed {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        latents: Port,
        (context, joint): (Port, Port),
    ) -> Result<Embed> {
        let mut s = s.sub("emb_in");
        let mut linear = |mode: Mode, inputs| {
            Linear::declare_unbiased(&mut s.sub(mode.name()), inputs, config.hidden(), Role::SensitiveMatMul)
        };
        let image = linear(Mode::Image, config.in_channels)?;
        let reference = linear(Mode::Reference, config.cond_in_channels)?;
        Ok(Embed { image, reference, latents, context, joint })
    }
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let latents = b.read(self.latents)?;
        for (mode, linear) in [(Mode::Image, &self.image), (Mode::Reference, &self.reference)] {
            let first = mode.first(b)?;
            for piece in b.token_ranges(mode.count(b)?) {
                let at = first + piece.start;
                let x = b.g.slice(latents, 1, at, piece.len())?;
                b.write_tokens(self.joint, at, linear.build(b, x)?)?;
            }
        }
        b.write_tokens(self.joint, b.dim(Symbol::IMAGE_TOKENS)?, b.read(self.context)?)
    }
}

/// From hidden states to the velocity of every token of the picture that is drawn.
pub(super) struct FinalLayer {
    pub(super) linear: Linear,
    pub(super) joint: Port,
    pub(super) modulation: Port,
    pub(super) shared: Shared,
    pub(super) velocity: Port,
}

impl Block for FinalLayer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, &self.shared, 2)?;
        for piece in b.token_ranges(b.dim(DRAWN_TOKENS)?) {
            let x = b.piece(self.joint, piece.clone())?;
            b.write_tokens(self.velocity, piece.start, self.linear.build(b, m.modulate(x, 0)?)?)?;
        }
        Ok(())
    }
}
