//! Single blocks: text and image in one sequence.

use std::ops::Range;

use super::attention::QkNorm;
use super::config::Config;
use super::ip::Beside;
use super::modulation::Modulation;
use super::shared::{Residual, Shared, with_residuals};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// Attention and feed-forward side by side, over text and image in one sequence.
pub(super) struct SingleBlock {
    linear1: Linear,
    norm: QkNorm,
    linear2: Linear,
    hidden: usize,
    feed_forward: usize,
    joint: Port,
    modulation: Port,
    shared: Shared,
    /// What queries see beside.
    ip: Option<Beside>,
    /// What ControlNets add to the image's tokens.
    residuals: Vec<Residual>,
}

impl SingleBlock {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        joint: Port,
        modulation: Port,
        shared: Shared,
        residuals: Vec<Residual>,
    ) -> Result<SingleBlock> {
        let (hidden, feed_forward) = (config.hidden(), config.feed_forward());
        let linear1 = Linear::declare(&mut s.sub("linear1"), hidden, 3 * hidden + feed_forward, Role::MatMul)?;
        let norm = QkNorm::declare(&mut s.sub("norm"), config)?;
        let linear2 = Linear::declare(&mut s.sub("linear2"), hidden + feed_forward, hidden, Role::MatMul)?;
        Ok(SingleBlock { linear1, norm, linear2, hidden, feed_forward, joint, modulation, shared, ip: None, residuals })
    }

    /// The same with `ip` beside it.
    pub(super) fn beside(self, ip: Option<Beside>) -> SingleBlock {
        SingleBlock { ip, ..self }
    }
}

impl Block for SingleBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Shared { rotary, sizes, .. } = self.shared;
        let m = Modulation::read(b, self.modulation, &self.shared, 3)?;
        let attention = self.norm.attention(b, sizes)?;
        b.tokens(self.joint, |x, at| {
            let (k, v) = self.norm.keys_and_values(b, &self.linear1, m.modulate(x, 0)?)?;
            attention.set(b, at.start, (rotary.turn(b, k, at.start)?, v))
        })?;
        let mlp_outputs = 3 * self.hidden..3 * self.hidden + self.feed_forward;
        b.tokens(self.joint, |x, at| {
            let modulated = m.modulate(x, 0)?;
            let q = self.norm.queries(b, &self.linear1, modulated)?;
            let attended = attention.attend(b, rotary.turn(b, q, at.start)?)?; // [D, n, B]
            let attended = Beside::to_attended(self.ip, b, attended, q)?;
            let mlp = b.g.gelu_tanh(self.linear1.build_outputs(b, modulated, mlp_outputs.clone())?)?; // [M, n, B]
            let y = self.linear2.build(b, b.g.concat(attended, mlp, 0)?)?;
            self.write(b, at, m.gated(x, y, 2)?)
        })
    }
}

impl SingleBlock {
    /// Writes the tokens `at` of text and image.
    fn write(&self, b: &Build<'_>, at: Range<usize>, x: Tensor) -> Result<()> {
        let text = b.dim(self.shared.sizes.text)?;
        if self.residuals.is_empty() || at.end <= text {
            return b.write_tokens(self.joint, at.start, x);
        }
        let before = text.saturating_sub(at.start);
        let mut of_image = x;
        if before > 0 {
            b.write_tokens(self.joint, at.start, b.g.slice(x, 1, 0, before)?)?;
            of_image = b.g.slice(x, 1, before, at.len() - before)?;
        }
        let image = at.start + before - text..at.end - text;
        b.write_tokens(self.joint, text + image.start, with_residuals(b, of_image, image, &self.residuals)?)
    }
}
