//! From time to scales, shifts and gates.

use super::ports::{EPS, TIME_WIDTH};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{Last, Linear};
use crate::stage::{Block, Build, Port, Symbol};
use crate::weights::{Role, Scope};

/// The sinusoidal embedding of a time in 0..=1, [`TIME_WIDTH`] numbers, cosines first. Unlike others it multiplies by 1000 last, which
/// rounds in another way.
pub fn sinusoid(time: f32) -> Vec<f32> {
    let half = TIME_WIDTH / 2;
    let angle = |i: usize| {
        let frequency = f64::from(-(10000f32.ln()) * i as f32 / half as f32).exp() as f32;
        f64::from(1000.0 * (time * frequency))
    };
    let cos = (0..half).map(|i| angle(i).cos() as f32);
    cos.chain((0..half).map(|i| angle(i).sin() as f32)).collect()
}

/// What all modulation depends on.
pub(super) struct TimeIn {
    linear_1: Linear,
    linear_2: Linear,
    time: Port,
    vector: Port,
}

impl TimeIn {
    pub(super) fn declare(s: &mut Scope<'_>, hidden: usize, time: Port, vector: Port) -> Result<TimeIn> {
        let mut s = s.sub("time_text_embed.timestep_embedder");
        let linear_1 = Linear::declare(&mut s.sub("linear_1"), TIME_WIDTH, hidden, Role::SensitiveMatMul)?;
        let linear_2 = Linear::declare(&mut s.sub("linear_2"), hidden, hidden, Role::SensitiveMatMul)?;
        Ok(TimeIn { linear_1, linear_2, time, vector })
    }

    /// The same without biases.
    pub(super) fn declare_unbiased(s: &mut Scope<'_>, hidden: usize, time: Port, vector: Port) -> Result<TimeIn> {
        let mut s = s.sub("time_text_embed.timestep_embedder");
        let mut linear =
            |name, inputs| Linear::declare_unbiased(&mut s.sub(name), inputs, hidden, Role::SensitiveMatMul);
        Ok(TimeIn { linear_1: linear("linear_1", TIME_WIDTH)?, linear_2: linear("linear_2", hidden)?, time, vector })
    }
}

impl Block for TimeIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let inner = b.g.silu(self.linear_1.build(b, b.read(self.time)?)?)?;
        // Every modulation begins with the same SiLU.
        b.write(self.vector, b.g.silu(self.linear_2.build(b, inner)?)?)
    }
}

/// The modulation of one block at all times.
pub(super) struct ModulationOut {
    pub(super) vector: Port,
    pub(super) projections: Vec<(Linear, Port)>,
}

impl Block for ModulationOut {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let vector = b.read(self.vector)?;
        self.projections.iter().try_for_each(|(linear, port)| b.write(*port, linear.build(b, vector)?))
    }
}

/// Which of all times some tokens are modulated at.
#[derive(Clone, Copy)]
pub(super) enum At {
    /// That of the step: the port says which of all times it is for each item of the batch. The first items count, as many as the size says.
    Step(Port, Symbol),
    /// The last of all, for every item.
    Last,
}

/// The modulation of some tokens out of a port that holds that of all times: `[parts * D, times]` to rows of `[D, 1, B]`.
pub(super) struct Modulation<'b, 'a> {
    b: &'b Build<'a>,
    rows: Tensor, // [parts * D, 1, B or 1]
    width: usize,
    /// Attention asks for what is modulated twice.
    last: Last<(Tensor, usize)>,
}

impl<'b, 'a> Modulation<'b, 'a> {
    pub(super) fn read(b: &'b Build<'a>, port: Port, at: At, parts: usize) -> Result<Modulation<'b, 'a>> {
        let all = b.read(port)?;
        let [total, times, ..] = b.g.shape(all)?.dims();
        let rows = match at {
            At::Step(condition, items) => {
                let (rows, items) = (b.g.get_rows(all, b.read(condition)?)?, b.dim(items)?); // [parts * D, B]
                let [_, batch, ..] = b.g.shape(rows)?.dims();
                if items == batch { rows } else { b.g.slice(rows, 1, 0, items)? }
            }
            At::Last => b.g.slice(all, 1, times - 1, 1)?,
        };
        let [_, items, ..] = b.g.shape(rows)?.dims();
        let rows = b.g.reshape(rows, &[total, 1, items])?;
        Ok(Modulation { b, rows, width: total / parts, last: Last::default() })
    }

    fn part(&self, i: usize) -> Result<Tensor> {
        self.b.g.slice(self.rows, 0, i * self.width, self.width)
    }

    /// `norm(x) (1 + scale) + shift`, with the scale at part `scale` and the shift at part `shift`.
    pub(super) fn modulate(&self, x: Tensor, (shift, scale): (usize, usize)) -> Result<Tensor> {
        let g = self.b.g;
        self.last.of((x, shift), || {
            let scale = g.scale_bias(self.part(scale)?, 1.0, 1.0)?;
            g.add(g.mul(g.norm(x, EPS)?, scale)?, self.part(shift)?)
        })
    }

    /// `norm(x) (1 + scale)`, with the scale at part `i`.
    pub(super) fn scaled(&self, x: Tensor, eps: f32, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        self.last.of((x, i), || g.mul(g.norm(x, eps)?, g.scale_bias(self.part(i)?, 1.0, 1.0)?))
    }

    /// `x + tanh(gate) * y`, with the gate at part `i`.
    pub(super) fn gated_softly(&self, x: Tensor, y: Tensor, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        g.add(x, g.mul(y, g.tanh(self.part(i)?)?)?)
    }

    /// `x + gate * y`, with the gate at part `i`.
    pub(super) fn gated(&self, x: Tensor, y: Tensor, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        g.add(x, g.mul(y, self.part(i)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoid_has_cosines_first() {
        let embedded = sinusoid(0.0);
        assert_eq!((embedded[0], embedded[127], embedded[128]), (1.0, 1.0, 0.0));
        assert_eq!(sinusoid(0.25)[0], 250f64.cos() as f32);
    }
}
