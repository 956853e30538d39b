//! One block: attention, of a window or of all, and a gated feed-forward layer.

use super::attention::SelfAttention;
use super::config::Config;
use super::ports::{EPS, Positions};
use super::windows::GROUPS;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Build, Port};
use crate::weights::{Role, Scope};

/// Attention and feed-forward, each normalised first and added to what came in.
pub(super) struct Block {
    norm1: RmsNorm,
    attention: SelfAttention,
    norm2: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    /// Whether patches look at all, and not at those of their window.
    sees_all: bool,
    hidden: Port,
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
        let attention = SelfAttention::declare(s, (width, config.num_heads), (hidden, positions))?;
        let norm2 = RmsNorm::declare(&mut s.sub("norm2"), "weight", width, EPS)?;
        let mut linear = |name, inputs, outputs, role| Linear::declare(&mut s.sub(name), inputs, outputs, role);
        let gate_proj = linear("mlp.gate_proj", width, inner, Role::MatMul)?;
        let up_proj = linear("mlp.up_proj", width, inner, Role::MatMul)?;
        let down_proj = linear("mlp.down_proj", inner, width, Role::WideMatMul)?;
        Ok(Block { norm1, attention, norm2, gate_proj, up_proj, down_proj, sees_all, hidden })
    }

    /// `x` with what the feed-forward layer makes of it.
    fn fed(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let normal = self.norm2.build(b, x)?;
        let gate = b.g.silu(self.gate_proj.build(b, normal)?)?; // [F, n]
        b.g.add(x, self.down_proj.build(b, b.g.mul(gate, self.up_proj.build(b, normal)?)?)?)
    }

    /// Every patch looks at those of its window: windows of one size side by side, as items of a batch.
    fn windows(&self, b: &Build<'_>) -> Result<()> {
        let (hidden, &SelfAttention { width, heads, .. }) = (b.read(self.hidden)?, &self.attention);
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
                let part = |part| self.attention.part(b, normal, part);
                let apart = |x| b.g.reshape(x, &[width / heads, heads, patches, count]);
                let q = apart(self.attention.turn(b, part(0)?, start)?)?;
                let k = apart(self.attention.turn(b, part(1)?, start)?)?;
                let attended = Attention::of(k, apart(part(2)?)?).attend(b, q)?; // [D, patches, count]
                let attended = b.g.reshape(attended, &[width, count * patches])?;
                b.write_tokens(self.hidden, start, self.fed(b, self.attention.seen(b, x, attended)?)?)?;
            }
            first += windows * patches;
        }
        Ok(())
    }
}

impl crate::stage::Block for Block {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        match self.sees_all {
            true => self.attention.all(b, |x| self.norm1.build(b, x), |x| self.fed(b, x)),
            false => self.windows(b),
        }
    }
}
