//! What is computed of time and guidance.

use super::config::Config;
use super::ports::Ports;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// Two linear layers with SiLU between them.
pub(in crate::models::flux) struct MlpEmbedder {
    in_layer: Linear,
    out_layer: Linear,
}

impl MlpEmbedder {
    /// From `inputs` numbers to `hidden`.
    pub(in crate::models::flux) fn declare(s: &mut Scope<'_>, inputs: usize, hidden: usize) -> Result<MlpEmbedder> {
        let in_layer = Linear::declare_unbiased(&mut s.sub("in_layer"), inputs, hidden, Role::SensitiveMatMul)?;
        let out_layer = Linear::declare_unbiased(&mut s.sub("out_layer"), hidden, hidden, Role::SensitiveMatMul)?;
        Ok(MlpEmbedder { in_layer, out_layer })
    }

    pub(in crate::models::flux) fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        self.out_layer.build(b, b.g.silu(self.in_layer.build(b, x)?)?)
    }
}

/// What all modulation depends on: time and guidance, added up.
pub(super) struct VectorIn {
    time_in: MlpEmbedder,
    guidance_in: Option<(MlpEmbedder, Port)>,
    time: Port,
    vector: Port,
}

impl VectorIn {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, ports: &Ports, vector: Port) -> Result<VectorIn> {
        let (inputs, hidden) = (config.timestep_guidance_channels, config.hidden());
        let time_in = MlpEmbedder::declare(&mut s.sub("time_in"), inputs, hidden)?;
        let guidance_in = match ports.guidance {
            Some(port) => Some((MlpEmbedder::declare(&mut s.sub("guidance_in"), inputs, hidden)?, port)),
            None => None,
        };
        Ok(VectorIn { time_in, guidance_in, time: ports.time, vector })
    }
}

impl Block for VectorIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut vector = self.time_in.build(b, b.read(self.time)?)?;
        if let Some((guidance_in, guidance)) = &self.guidance_in {
            vector = b.g.add(vector, guidance_in.build(b, b.read(*guidance)?)?)?;
        }
        // Every modulation begins with the same SiLU.
        b.write(self.vector, b.g.silu(vector)?)
    }
}
