//! One layer of a vision tower.

use super::Config;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{Activation, LayerNorm, Linear};
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// Two linear layers with a function between them.
pub(super) struct Mlp {
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
}

impl Mlp {
    pub(super) fn declare(scope: &mut Scope<'_>, config: &Config) -> Result<Mlp> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            fc1: Linear::declare(&mut scope.sub("fc1"), width, inner, Role::MatMul)?,
            activation: config.hidden_act,
            fc2: Linear::declare(&mut scope.sub("fc2"), inner, width, Role::MatMul)?,
        })
    }

    pub(super) fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let inner = self.activation.build(b.g, self.fc1.build(b, x)?)?;
        self.fc2.build(b, inner)
    }
}

/// One layer: attention of all tokens to all, and feed-forward, each normalised first and added to what came in.
pub(super) struct Layer {
    hidden: Port,
    to: Port,
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    mlp: Mlp,
    heads: usize,
    width: usize,
    tokens: usize,
}

impl Layer {
    pub(super) fn declare(scope: &mut Scope<'_>, config: &Config, (hidden, to): (Port, Port)) -> Result<Layer> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let layer_norm1 = LayerNorm::declare(&mut scope.sub("layer_norm1"), width, eps)?;
        let mut attention = scope.sub("self_attn");
        let mut projection = |name| Linear::declare(&mut attention.sub(name), width, width, Role::MatMul);
        Ok(Layer {
            hidden,
            to,
            layer_norm1,
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            layer_norm2: LayerNorm::declare(&mut scope.sub("layer_norm2"), width, eps)?,
            mlp: Mlp::declare(&mut scope.sub("mlp"), config)?,
            heads: config.num_attention_heads,
            width,
            tokens: config.tokens(),
        })
    }
}

impl Block for Layer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let heads = |x| b.g.split_rows(x, self.heads); // [d, H, n]
        let attention = Attention::new(b, [self.width / self.heads, self.heads, self.tokens, 1])?;
        b.tokens(self.hidden, |x, at| {
            let y = self.layer_norm1.build(b, x)?;
            let (k, v) = (self.k_proj.build(b, y)?, self.v_proj.build(b, y)?);
            attention.set(b, at.start, (heads(k)?, heads(v)?))
        })?;
        b.tokens(self.hidden, |x, at| {
            let y = self.layer_norm1.build(b, x)?;
            let q = heads(self.q_proj.build(b, y)?)?;
            let x = b.g.add(x, self.out_proj.build(b, attention.attend(b, q)?)?)?;
            let x = b.g.add(x, self.mlp.build(b, self.layer_norm2.build(b, x)?)?)?;
            b.write_tokens(self.to, at.start, x)
        })
    }
}
