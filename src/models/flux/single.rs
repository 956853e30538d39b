//! Single blocks: text and image in one sequence.

use std::ops::Range;

use super::attention::{Attention, QkNorm, Rotary};
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
        })
    }
}

impl Block for SingleBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, self.condition, 3)?;
        let (tokens, SingleBlock { linear1, norm, .. }) = (b.dim(Symbol::JOINT_TOKENS)?, self);
        let read = |piece: &Range<usize>| b.g.slice(b.read(self.joint)?, 1, piece.start, piece.len()); // [D, n, B]
        let attention = Attention::new(b, norm, tokens)?;
        let pieces = b.token_ranges(tokens);
        let mut whole = None;
        for piece in &pieces {
            let modulated = m.modulate(read(piece)?, 0)?;
            // Where this is all there is, queries come from it as well.
            whole = Some(modulated).filter(|_| pieces.len() == 1);
            let (k, v) = norm.keys_and_values(b, linear1, modulated)?;
            attention.set(b, piece.start, (self.rotary.turn(b, k, piece.start)?, v))?;
        }
        let mlp_outputs = 3 * self.hidden..3 * self.hidden + self.feed_forward;
        for piece in pieces {
            let x = read(&piece)?;
            let modulated = whole.map_or_else(|| m.modulate(x, 0), Ok)?;
            let q = self.rotary.turn(b, norm.queries(b, linear1, modulated)?, piece.start)?;
            let attended = attention.attend(b, q)?; // [D, n, B]
            let mlp = b.g.gelu_tanh(linear1.build_outputs(b, modulated, mlp_outputs.clone())?)?; // [M, n, B]
            let y = self.linear2.build(b, b.g.concat(attended, mlp, 0)?)?;
            b.write_tokens(self.joint, piece.start, m.gated(x, y, 2)?)?;
        }
        Ok(())
    }
}
