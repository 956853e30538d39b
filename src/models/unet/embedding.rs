//! From the time, and the sizes and pooled prompt where the model has them, to what each residual block adds.

use super::{Config, Ports};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// Two linear layers with SiLU between them.
struct Embedder {
    first: Linear,
    second: Linear,
}

impl Embedder {
    fn declare(s: &mut Scope<'_>, inputs: usize, outputs: usize) -> Result<Embedder> {
        let first = Linear::declare(&mut s.sub(0), inputs, outputs, Role::SensitiveMatMul)?;
        Ok(Embedder { first, second: Linear::declare(&mut s.sub(2), outputs, outputs, Role::SensitiveMatMul)? })
    }

    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        self.second.build(b, b.g.silu(self.first.build(b, x)?)?)
    }
}

/// What all residual blocks add a projection of, for every condition.
pub(super) struct Embedding {
    time_embed: Embedder,
    /// What is added to the time for the guidance.
    cond_proj: Option<(Linear, Port)>,
    label_emb: Option<(Embedder, Port)>,
    /// Of a ControlNet that is told the kind of its picture.
    control_add_embedding: Option<(Embedder, Port)>,
    time: Port,
    embedding: Port,
}

impl Embedding {
    /// `told` is the port of the kinds of pictures, and its width.
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        ports: &Ports,
        (told, embedding): (Option<(usize, Port)>, Port),
    ) -> Result<Embedding> {
        let width = embedding_width(config);
        let time_embed = Embedder::declare(&mut s.sub("time_embed"), config.time_width(), width)?;
        let cond_proj = match (ports.guidance, config.time_cond_proj_dim) {
            (Some(guidance), Some(inputs)) => {
                let (mut s, outputs) = (s.sub("time_embed.cond_proj"), config.time_width());
                Some((Linear::declare_unbiased(&mut s, inputs, outputs, Role::SensitiveMatMul)?, guidance))
            }
            _ => None,
        };
        let label_emb = match (ports.added, config.added_width()) {
            (Some(added), Some(inputs)) => Some((Embedder::declare(&mut s.sub("label_emb.0"), inputs, width)?, added)),
            _ => None,
        };
        let control_add_embedding = match told {
            Some((inputs, told)) => {
                Some((Embedder::declare(&mut s.sub("control_add_embedding"), inputs, width)?, told))
            }
            None => None,
        };
        Ok(Embedding { time_embed, cond_proj, label_emb, control_add_embedding, time: ports.time, embedding })
    }
}

impl Block for Embedding {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut time = b.read(self.time)?; // [t, N]
        if let Some((cond_proj, guidance)) = &self.cond_proj {
            time = b.g.add(time, cond_proj.build(b, b.read(*guidance)?)?)?;
        }
        let mut embedding = self.time_embed.build(b, time)?; // [E, N]
        for (embedder, added) in self.control_add_embedding.iter().chain(&self.label_emb) {
            embedding = b.g.add(embedding, embedder.build(b, b.read(*added)?)?)?;
        }
        // Every projection begins with the same SiLU.
        b.write(self.embedding, b.g.silu(embedding)?)
    }
}

/// `E`: the original fixes it at four times the first level's channels.
pub(super) fn embedding_width(config: &Config) -> usize {
    4 * config.time_width()
}

/// What one residual block adds, for every condition.
pub(super) struct Projection {
    emb_layers: Linear,
    embedding: Port,
    to: Port,
}

impl Projection {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        (inputs, outputs): (usize, usize),
        (embedding, to): (Port, Port),
    ) -> Result<Projection> {
        let emb_layers = Linear::declare(&mut s.sub("emb_layers.1"), inputs, outputs, Role::MatMul)?;
        Ok(Projection { emb_layers, embedding, to })
    }
}

impl Block for Projection {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.to, self.emb_layers.build(b, b.read(self.embedding)?)?)
    }
}
