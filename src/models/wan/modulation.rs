//! From time to scales, shifts and gates.

use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{Last, Linear};
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope, WeightId};

use super::config::Config;

/// What all modulation depends on: the time itself.
pub(super) struct TimeIn {
    embedding_0: Linear,
    embedding_2: Linear,
    time: Port,
    vector: Port,
}

impl TimeIn {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, [time, vector]: [Port; 2]) -> Result<TimeIn> {
        let hidden = config.hidden();
        let mut linear = |name, inputs| Linear::declare(&mut s.sub(name), inputs, hidden, Role::SensitiveMatMul);
        let (embedding_0, embedding_2) =
            (linear("time_embedding.0", config.freq_dim)?, linear("time_embedding.2", hidden)?);
        Ok(TimeIn { embedding_0, embedding_2, time, vector })
    }
}

impl Block for TimeIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let inner = b.g.silu(self.embedding_0.build(b, b.read(self.time)?)?)?;
        b.write(self.vector, self.embedding_2.build(b, inner)?) // [D, times]
    }
}

/// In how many parts a block is modulated: shift, scale and gate, of attention and of the feed-forward layer.
pub(super) const PARTS: usize = 6;

/// One of the six parts of the time for every block, to which each adds its own. All six in a stage would be the largest weights of the
/// model by far, and stay on the device for all steps.
pub(super) struct Projection {
    projection: Linear,
    part: usize,
    width: usize,
    vector: Port,
    projected: Port,
}

impl Projection {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        part: usize,
        [vector, projected]: [Port; 2],
    ) -> Result<Projection> {
        let width = config.hidden();
        let mut s = s.sub("time_projection.1");
        let projection = Linear::declare(&mut s.sub(part), width, width, Role::SensitiveMatMul)?;
        Ok(Projection { projection, part, width, vector, projected })
    }
}

impl Block for Projection {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let own = self.projection.build(b, b.g.silu(b.read(self.vector)?)?)?; // [D, times]
        b.write_part(self.projected, self.part * self.width, own)
    }
}

/// Which of all times some tokens are modulated at.
#[derive(Clone, Copy)]
pub(super) enum At {
    /// That of the step: the port says which of all times it is for each item of the batch.
    Step(Port),
    /// The last of all, for every item.
    Last,
}

/// A table that is added to what time makes: `parts` rows of `[D]`, kept in F32.
#[derive(Clone, Copy)]
pub(super) struct Table {
    weight: WeightId,
    parts: usize,
    width: usize,
}

impl Table {
    pub(super) fn declare(s: &mut Scope<'_>, width: usize, parts: usize) -> Result<Table> {
        Ok(Table { weight: s.weight("modulation", &[width, parts], Role::Vector)?, parts, width })
    }

    /// The modulation of tokens at a time of `port`, `[parts D, times]` or, if all parts get the same, `[D, times]`.
    pub(super) fn read<'b, 'a>(&self, b: &'b Build<'a>, port: Port, at: At) -> Result<Modulation<'b, 'a>> {
        let &Table { weight, parts, width } = self;
        let all = b.read(port)?;
        let [given, times, ..] = b.g.shape(all)?.dims();
        let rows = match at {
            At::Step(condition) => b.g.get_rows(all, b.read(condition)?)?, // [.., B]
            At::Last => b.g.slice(all, 1, times - 1, 1)?,
        };
        let [_, items, ..] = b.g.shape(rows)?.dims();
        let rows = b.g.reshape(rows, &[width, given / width, items])?;
        Ok(Modulation { b, table: Some(b.weight(weight)?), parts, rows, own: given > width, last: Last::default() })
    }
}

/// The modulation of some tokens.
pub(super) struct Modulation<'b, 'a> {
    b: &'b Build<'a>,
    /// `[D, parts]`: what is added to the rows, if anything is.
    table: Option<Tensor>,
    parts: usize,
    rows: Tensor, // [D, parts or 1, B or 1]
    /// Whether each part has a row of its own.
    own: bool,
    /// Attention asks for what is modulated twice.
    last: Last<(Tensor, usize)>,
}

impl<'b, 'a> Modulation<'b, 'a> {
    /// That of `rows [D, parts, B or 1]`.
    ///
    /// # Errors
    /// [`Error::Graph`](crate::Error::Graph) for a tensor of another graph.
    pub(super) fn of(b: &'b Build<'a>, rows: Tensor) -> Result<Modulation<'b, 'a>> {
        let [_, parts, ..] = b.g.shape(rows)?.dims();
        Ok(Modulation { b, table: None, parts, rows, own: true, last: Last::default() })
    }

    /// The same with rows to which the table is added. Each part has to have a row of its own.
    pub(super) fn summed(self) -> Result<Modulation<'b, 'a>> {
        let rows = match self.table {
            Some(table) => self.b.g.add(self.rows, table)?,
            None => self.rows,
        };
        Modulation::of(self.b, rows)
    }

    /// `[D, parts or 1, B or 1]`
    pub(super) fn rows(&self) -> Tensor {
        self.rows
    }

    /// Part `i`: `[D, 1, B or 1]`.
    fn part(&self, i: usize) -> Result<Tensor> {
        debug_assert!(i < self.parts);
        let g = self.b.g;
        let rows = if self.own { g.slice(self.rows, 1, i, 1)? } else { self.rows };
        self.table.map_or(Ok(rows), |table| g.add(rows, g.slice(table, 1, i, 1)?))
    }

    /// `norm(x) (1 + scale) + shift`, with the scale at part `scale` and the shift at part `shift`.
    pub(super) fn modulate(&self, x: Tensor, [shift, scale]: [usize; 2], eps: f32) -> Result<Tensor> {
        let g = self.b.g;
        self.last.of((x, shift), || {
            let scale = g.scale_bias(self.part(scale)?, 1.0, 1.0)?;
            g.add(g.mul(g.norm(x, eps)?, scale)?, self.part(shift)?)
        })
    }

    /// `x + gate * y`, with the gate at part `i`.
    pub(super) fn gated(&self, x: Tensor, y: Tensor, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        g.add(x, g.mul(y, self.part(i)?)?)
    }
}
