//! One block: attention, of a window or of all, and a gated feed-forward layer.

use super::config::Config;
use super::ports::{EPS, Positions};
use super::windows::{GROUPS, PATCHES};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Build, Port};
use crate::weights::{Role, Scope};

/// Attention and feed-forward, each normalised first and added to what came in.
pub(super) struct Block {
    norm1: RmsNorm,
    qkv: Linear,
    proj: Linear,
    norm2: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    hidden_size: usize,
    heads: usize,
    /// Whether patches look at all, and not at those of their window.
    sees_all: bool,
    hidden: Port,
    positions: Positions,
}

impl Block {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        sees_all: bool,
        (hidden, positions): (Port, Positions),
    ) -> Result<Block> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm1 = RmsNorm::declare(&mut s.sub("norm1"), "weight", width, EPS)?;
        let mut linear = |name, inputs, outputs, role| Linear::declare(&mut s.sub(name), inputs, outputs, role);
        let qkv = linear("attn.qkv", width, 3 * width, Role::MatMul)?;
        let proj = linear("attn.proj", width, width, Role::MatMul)?;
        let norm2 = RmsNorm::declare(&mut s.sub("norm2"), "weight", width, EPS)?;
        let mut linear = |name, inputs, outputs, role| Linear::declare(&mut s.sub(name), inputs, outputs, role);
        let gate_proj = linear("mlp.gate_proj", width, inner, Role::MatMul)?;
        let up_proj = linear("mlp.up_proj", width, inner, Role::MatMul)?;
        let down_proj = linear("mlp.down_proj", inner, width, Role::WideMatMul)?;
        let (hidden_size, heads) = (width, config.num_heads);
        Ok(Block {
            norm1,
            qkv,
            proj,
            norm2,
            gate_proj,
            up_proj,
            down_proj,
            hidden_size,
            heads,
            sees_all,
            hidden,
            positions,
        })
    }

    /// Queries, keys or values, which are part 0, 1 or 2, of `x [D, n]`: `[d, H, n]`.
    fn part(&self, b: &Build<'_>, x: Tensor, part: usize) -> Result<Tensor> {
        let outputs = part * self.hidden_size..(part + 1) * self.hidden_size;
        b.g.split_rows(self.qkv.build_outputs(b, x, outputs)?, self.heads)
    }

    /// Queries or keys `x [d, H, n]` of the patches from `start` on, turned to their positions.
    fn turn(&self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, patches, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, patches);
        b.g.rotate_halves(x, of(self.positions.cos)?, of(self.positions.sin)?)
    }

    /// What comes behind attention: `x` with what was seen added, and with what the feed-forward layer makes of that.
    fn finished(&self, b: &Build<'_>, x: Tensor, attended: Tensor) -> Result<Tensor> {
        let x = b.g.add(x, self.proj.build(b, attended)?)?;
        let normal = self.norm2.build(b, x)?;
        let gate = b.g.silu(self.gate_proj.build(b, normal)?)?; // [F, n]
        b.g.add(x, self.down_proj.build(b, b.g.mul(gate, self.up_proj.build(b, normal)?)?)?)
    }

    /// Every patch looks at all.
    fn all(&self, b: &Build<'_>) -> Result<()> {
        let attention = Attention::new(b, [self.hidden_size / self.heads, self.heads, b.dim(PATCHES)?, 1])?;
        b.tokens(self.hidden, |x, at| {
            let normal = self.norm1.build(b, x)?;
            let k = self.turn(b, self.part(b, normal, 1)?, at.start)?;
            attention.set(b, at.start, (k, self.part(b, normal, 2)?))
        })?;
        b.tokens(self.hidden, |x, at| {
            let q = self.turn(b, self.part(b, self.norm1.build(b, x)?, 0)?, at.start)?;
            let x = self.finished(b, x, attention.attend(b, q)?)?;
            b.write_tokens(self.hidden, at.start, x)
        })
    }

    /// Every patch looks at those of its window: windows of one size side by side, as items of a batch.
    fn windows(&self, b: &Build<'_>) -> Result<()> {
        let hidden = b.read(self.hidden)?;
        let mut first = 0;
        for group in GROUPS {
            let (windows, patches) = (b.dim(group.windows)?, b.dim(group.patches)?);
            if windows == 0 {
                continue;
            }
            // As many pieces as there would be of tokens, each of whole windows.
            let each = windows.div_ceil(b.token_ranges(windows * patches).len());
            for some in (0..windows).step_by(each) {
                let count = each.min(windows - some);
                let start = first + some * patches;
                let x = b.g.slice(hidden, 1, start, count * patches)?;
                let normal = self.norm1.build(b, x)?;
                let apart = |x| b.g.reshape(x, &[self.hidden_size / self.heads, self.heads, patches, count]);
                let q = apart(self.turn(b, self.part(b, normal, 0)?, start)?)?;
                let k = apart(self.turn(b, self.part(b, normal, 1)?, start)?)?;
                let v = apart(self.part(b, normal, 2)?)?;
                let attended = Attention::of(k, v).attend(b, q)?; // [D, patches, count]
                let attended = b.g.reshape(attended, &[self.hidden_size, count * patches])?;
                b.write_tokens(self.hidden, start, self.finished(b, x, attended)?)?;
            }
            first += windows * patches;
        }
        Ok(())
    }
}

impl crate::stage::Block for Block {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        if self.sees_all { self.all(b) } else { self.windows(b) }
    }
}
