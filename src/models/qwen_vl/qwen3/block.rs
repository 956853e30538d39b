//! One block: attention of every patch to all, and a feed-forward layer.

use super::super::Positions;
use super::super::attention::SelfAttention;
use super::super::ports::EPS;
use super::config::Config;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{LayerNorm, Linear};
use crate::stage::{Build, Port};
use crate::weights::{Role, Scope};

/// Attention and feed-forward, each normalised first and added to what came in.
pub(super) struct Block {
    norm1: LayerNorm,
    attention: SelfAttention,
    norm2: LayerNorm,
    linear_fc1: Linear,
    linear_fc2: Linear,
}

impl Block {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, (hidden, positions): (Port, Positions)) -> Result<Block> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm1 = LayerNorm::declare(&mut s.sub("norm1"), width, EPS)?;
        let attention = SelfAttention::declare(s, (width, config.num_heads), (hidden, positions))?;
        let norm2 = LayerNorm::declare(&mut s.sub("norm2"), width, EPS)?;
        let linear_fc1 = Linear::declare(&mut s.sub("mlp.linear_fc1"), width, inner, Role::MatMul)?;
        let linear_fc2 = Linear::declare(&mut s.sub("mlp.linear_fc2"), inner, width, Role::WideMatMul)?;
        Ok(Block { norm1, attention, norm2, linear_fc1, linear_fc2 })
    }

    /// `x [D, n]` with what the feed-forward layer makes of it.
    fn fed(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let inner = b.g.gelu_tanh(self.linear_fc1.build(b, self.norm2.build(b, x)?)?)?; // [F, n]
        b.g.add(x, self.linear_fc2.build(b, inner)?)
    }
}

impl crate::stage::Block for Block {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        self.attention.all(b, |x| self.norm1.build(b, x), |x| self.fed(b, x))
    }
}
