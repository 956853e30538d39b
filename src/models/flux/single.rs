//! Single blocks: text and image in one sequence.

use super::attention::{QkNorm, Rotary};
use super::ip::Beside;
use super::modulation::Modulation;
use super::{Config, Ports};
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port, Symbol};
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
    rotary: Rotary,
    condition: Port,
    /// What queries see beside.
    ip: Option<Beside>,
}

impl SingleBlock {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        joint: Port,
        modulation: Port,
        ports: &Ports,
    ) -> Result<SingleBlock> {
        let (hidden, feed_forward) = (config.hidden(), config.feed_forward());
        let linear1 = Linear::declare(&mut s.sub("linear1"), hidden, 3 * hidden + feed_forward, Role::MatMul)?;
        let norm = QkNorm::declare(&mut s.sub("norm"), config)?;
        let linear2 = Linear::declare(&mut s.sub("linear2"), hidden + feed_forward, hidden, Role::MatMul)?;
        Ok(SingleBlock {
            linear1,
            norm,
            linear2,
            hidden,
            feed_forward,
            joint,
            modulation,
            rotary: Rotary::of(ports),
            condition: ports.condition,
            ip: None,
        })
    }

    /// The same with `ip` beside it.
    pub(super) fn beside(self, ip: Option<Beside>) -> SingleBlock {
        SingleBlock { ip, ..self }
    }
}

impl Block for SingleBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, self.condition, 3)?;
        let attention = self.norm.attention(b, b.dim(Symbol::JOINT_TOKENS)?)?;
        b.tokens(self.joint, |x, at| {
            let (k, v) = self.norm.keys_and_values(b, &self.linear1, m.modulate(x, 0)?)?;
            attention.set(b, at.start, (self.rotary.turn(b, k, at.start)?, v))
        })?;
        let mlp_outputs = 3 * self.hidden..3 * self.hidden + self.feed_forward;
        b.tokens(self.joint, |x, at| {
            let modulated = m.modulate(x, 0)?;
            let q = self.norm.queries(b, &self.linear1, modulated)?;
            let attended = attention.attend(b, self.rotary.turn(b, q, at.start)?)?; // [D, n, B]
            let attended = Beside::to_attended(self.ip, b, attended, q)?;
            let mlp = b.g.gelu_tanh(self.linear1.build_outputs(b, modulated, mlp_outputs.clone())?)?; // [M, n, B]
            let y = self.linear2.build(b, b.g.concat(attended, mlp, 0)?)?;
            b.write_tokens(self.joint, at.start, m.gated(x, y, 2)?)
        })
    }
}
