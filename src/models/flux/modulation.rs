//! From time, guidance and pooled prompt to scales, shifts and gates.

use super::config::Config;
use super::ports::{EPS, TIME_WIDTH};
use super::shared::{Inputs, Shared};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{self, Last, Linear};
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// The sinusoidal embedding of `t` (already times 1000), [`TIME_WIDTH`] numbers, cosines first.
pub fn sinusoid(t: f32) -> Vec<f32> {
    layers::sinusoid(t, TIME_WIDTH)
}

/// Two linear layers with SiLU between them.
struct MlpEmbedder {
    in_layer: Linear,
    out_layer: Linear,
}

impl MlpEmbedder {
    fn declare(s: &mut Scope<'_>, inputs: usize, hidden: usize) -> Result<MlpEmbedder> {
        let in_layer = Linear::declare(&mut s.sub("in_layer"), inputs, hidden, Role::SensitiveMatMul)?;
        let out_layer = Linear::declare(&mut s.sub("out_layer"), hidden, hidden, Role::SensitiveMatMul)?;
        Ok(MlpEmbedder { in_layer, out_layer })
    }

    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        self.out_layer.build(b, b.g.silu(self.in_layer.build(b, x)?)?)
    }
}

/// What all modulation depends on: time, guidance and pooled prompt, added up.
pub(super) struct VectorIn {
    time_in: MlpEmbedder,
    guidance_in: Option<(MlpEmbedder, Port)>,
    vector_in: MlpEmbedder,
    time: Port,
    pooled: Port,
    vector: Port,
}

impl VectorIn {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, inputs: &Inputs, vector: Port) -> Result<VectorIn> {
        let hidden = config.hidden();
        let time_in = MlpEmbedder::declare(&mut s.sub("time_in"), TIME_WIDTH, hidden)?;
        let guidance_in = match inputs.guidance {
            Some(port) => Some((MlpEmbedder::declare(&mut s.sub("guidance_in"), TIME_WIDTH, hidden)?, port)),
            None => None,
        };
        let vector_in = MlpEmbedder::declare(&mut s.sub("vector_in"), config.pooled_projection_dim, hidden)?;
        Ok(VectorIn { time_in, guidance_in, vector_in, time: inputs.time, pooled: inputs.pooled, vector })
    }
}

impl Block for VectorIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut vector = self.time_in.build(b, b.read(self.time)?)?;
        if let Some((guidance_in, guidance)) = &self.guidance_in {
            vector = b.g.add(vector, guidance_in.build(b, b.read(*guidance)?)?)?;
        }
        vector = b.g.add(vector, self.vector_in.build(b, b.read(self.pooled)?)?)?;
        // Every modulation begins with the same SiLU.
        b.write(self.vector, b.g.silu(vector)?)
    }
}

/// The modulation of one block for all conditions.
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

/// One condition's modulation out of a port that holds all: `[parts * D, N]` to rows of `[D, 1, B]`.
pub(super) struct Modulation<'b, 'a> {
    pub(super) b: &'b Build<'a>,
    rows: Tensor, // [parts * D, 1, B]
    width: usize,
    /// Attention asks for what is modulated twice.
    last: Last<(Tensor, usize)>,
}

impl<'b, 'a> Modulation<'b, 'a> {
    pub(super) fn read(b: &'b Build<'a>, port: Port, shared: &Shared, parts: usize) -> Result<Modulation<'b, 'a>> {
        Modulation::of(b, shared.of_condition(b, port)?, parts)
    }

    /// The same of a port that holds one for all conditions: `[parts * D, 1]`.
    pub(super) fn of_all(b: &'b Build<'a>, port: Port, parts: usize) -> Result<Modulation<'b, 'a>> {
        Modulation::of(b, b.read(port)?, parts)
    }

    /// `rows` are `[parts * D, B]`, or `[parts * D, 1]` for all items of the batch.
    fn of(b: &'b Build<'a>, rows: Tensor, parts: usize) -> Result<Modulation<'b, 'a>> {
        let [total, batch, ..] = b.g.shape(rows)?.dims();
        let rows = b.g.reshape(rows, &[total, 1, batch])?;
        Ok(Modulation { b, rows, width: total / parts, last: Last::default() })
    }

    fn part(&self, i: usize) -> Result<Tensor> {
        self.b.g.slice(self.rows, 0, i * self.width, self.width)
    }

    /// `norm(x) (1 + scale) + shift`, with shift and scale at parts `i` and `i + 1`.
    pub(super) fn modulate(&self, x: Tensor, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        self.last.of((x, i), || {
            let scale = g.scale_bias(self.part(i + 1)?, 1.0, 1.0)?;
            g.add(g.mul(g.norm(x, EPS)?, scale)?, self.part(i)?)
        })
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
    }
}
