//! Kinds of pictures, and what a ControlNet makes of them that tells them apart: xinsir's "union" and "ProMax" for Stable Diffusion XL,
//! `ControlNetUnionModel` of diffusers.
//!
//! The reference's transformer looks from each item of the batch at the others (`nn.MultiheadAttention` is given the batch first, and takes
//! it for the sequence). All items follow the same picture, so that whatever weights attention finds, it gives their one value:
//! queries and keys are not needed.

use pinhole_quant::DType;

use super::config::{Config, Union};
use crate::Result;
use crate::models::layers::{LayerNorm, Linear};
use crate::stage::{Block, Build, Extent, Lifetime, Model, Port};
use crate::weights::{Role, Scope, WeightId};

/// Added to the variance when tokens are normalised: PyTorch's default.
const EPS: f32 = 1e-5;

/// Where a ControlNet is told the kind of its picture.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// The table of kinds `[C, kinds]`, which stays on the host.
    pub table: WeightId,
    /// `[C, P]`: the row of each picture's kind.
    pub kind: Port,
    /// `[P]`: what the share of each picture is multiplied with.
    pub shares: Port,
    /// `[width]`: for each kind, the [`sinusoid`](crate::models::layers::sinusoid) of 1 if a picture is of that kind, and of 0 if none is.
    pub told: Port,
    /// `C`.
    pub channels: usize,
    /// The width of `told`.
    pub width: usize,
    /// How many kinds there are.
    pub count: usize,
}

/// Declares where the ControlNet of `config` is told the kinds of so many pictures.
pub(super) fn declare_kinds(model: &mut Model, config: &Config, union: Union, pictures: Extent) -> Result<Kinds> {
    let (channels, count) = (config.net.time_width(), union.num_control_type);
    let width = count * config.net.addition_time_embed_dim.unwrap_or(0);
    let table = model.on_host(|s| s.weight("task_embedding", &[channels, count], Role::Embedding))?;
    let mut port = |name: &str, extents: &[Extent]| model.port(name, extents, DType::F32, Lifetime::Pass);
    let (kind, shares) = (port("kind", &[channels.into(), pictures]), port("shares", &[pictures]));
    Ok(Kinds { table, kind, shares, told: port("kinds", &[width.into()]), channels, width, count })
}

/// One layer, for sequences of one token.
struct Layer {
    ln_1: LayerNorm,
    v: Linear,
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
}

/// What is added to each hint, at every pixel, and the sum of them.
pub(super) struct Seen {
    layers: Vec<Layer>,
    spatial_ch_projs: Linear,
    /// `[C, P]`
    kind: Port,
    /// `[P]`
    shares: Port,
    /// `[w, h, C, P]`
    from: Port,
    /// `[w, h, C, 1]`
    to: Port,
}

impl Seen {
    pub(super) fn declare(s: &mut Scope<'_>, union: Union, kinds: &Kinds, (from, to): (Port, Port)) -> Result<Seen> {
        let Kinds { kind, shares, channels: width, .. } = *kinds;
        let mut layers = Vec::with_capacity(union.num_trans_layer);
        for i in 0..union.num_trans_layer {
            let mut s = s.sub("transformer_layes");
            let mut s = s.sub(i);
            layers.push(Layer {
                ln_1: LayerNorm::declare(&mut s.sub("ln_1"), width, EPS)?,
                v: Linear::declare(&mut s.sub("attn.v"), width, width, Role::MatMul)?,
                out_proj: Linear::declare(&mut s.sub("attn.out_proj"), width, width, Role::MatMul)?,
                ln_2: LayerNorm::declare(&mut s.sub("ln_2"), width, EPS)?,
                c_fc: Linear::declare(&mut s.sub("mlp.c_fc"), width, 4 * width, Role::MatMul)?,
                c_proj: Linear::declare(&mut s.sub("mlp.c_proj"), 4 * width, width, Role::MatMul)?,
            });
        }
        let spatial_ch_projs = Linear::declare(&mut s.sub("spatial_ch_projs"), width, width, Role::MatMul)?;
        Ok(Seen { layers, spatial_ch_projs, kind, shares, from, to })
    }
}

impl Block for Seen {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let hint = b.read(self.from)?; // [w, h, C, P]
        let [w, h, channels, pictures] = b.g.shape(hint)?.dims();
        let pixels = b.g.reshape(hint, &[w * h, channels * pictures])?;
        // A row of equal parts that add up to 1.
        let parts = b.g.soft_max(b.g.contiguous(b.g.slice(pixels, 1, 0, 1)?)?, None, 0.0)?;
        let mean = b.g.reshape(b.g.mul_mat(parts, pixels)?, &[channels, pictures])?;
        let shares = b.read(self.shares)?;
        let x = b.g.add(mean, b.read(self.kind)?)?;
        let mut x = b.g.mul(x, b.g.reshape(shares, &[1, pictures])?)?; // [C, P]
        for layer in &self.layers {
            let v = layer.v.build(b, layer.ln_1.build(b, x)?)?;
            x = b.g.add(x, layer.out_proj.build(b, v)?)?;
            let inner = b.g.gelu_quick(layer.c_fc.build(b, layer.ln_2.build(b, x)?)?)?;
            x = b.g.add(x, layer.c_proj.build(b, inner)?)?;
        }
        let added = b.g.reshape(self.spatial_ch_projs.build(b, x)?, &[1, 1, channels, pictures])?;
        let seen = b.g.mul(b.g.add(hint, added)?, b.g.reshape(shares, &[1, 1, 1, pictures])?)?;
        let mut sum = if pictures == 1 { seen } else { b.g.slice(seen, 3, 0, 1)? };
        for i in 1..pictures {
            sum = b.g.add(sum, b.g.slice(seen, 3, i, 1)?)?;
        }
        b.write(self.to, sum)
    }
}
