//! Changes as branches beside a model's weights.

use std::collections::HashMap;

use super::delta::{Delta, Factor, Form, Loaded, Matrix, Merged, Pair, Side};
use super::target::Target;
use crate::bind::Piece;
use crate::stage::{self, Branch};
use crate::weights::{Role, WeightId};
use crate::{Error, Result, reserve};

/// Declares and binds what `changes` are made of in `target`.
pub(super) fn attach(target: &mut Target<'_>, changes: Merged) -> Result<()> {
    vectors(target, &changes)?;
    let mut declared = HashMap::new();
    for delta in changes.deltas {
        let role = target.model.manifest().get(delta.id).role;
        match role {
            Role::Embedding if target.model.is_on_host(delta.id) => {
                target.bound.on_tables.push((delta.id, delta.into()));
            }
            Role::MatMul | Role::WideMatMul | Role::SensitiveMatMul | Role::ConvKernel => {
                let is_kernel = role == Role::ConvKernel;
                Attaching { target, delta: &delta, is_kernel, declared: &mut declared }.attach()?;
            }
            Role::Embedding | Role::Vector => {
                let name = &target.model.manifest().get(delta.id).name;
                return Err(Error::graph("lora", format!("{name} is multiplied with nothing")));
            }
        }
    }
    Ok(())
}

/// Puts vectors with their differences added in the place of those of the file.
fn vectors(target: &mut Target<'_>, changes: &Merged) -> Result<()> {
    let mut ids: Vec<WeightId> = changes.vectors.iter().map(|(id, ..)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let numbers = changes.read_f32(target.model.manifest(), target.bound, id)?;
        let name = format!("{} with a LoRA", target.model.manifest().get(id).name);
        target.bound.pieces[id.index()] = vec![Piece::in_memory(&name, &target.bound.origin, &numbers)?];
    }
    Ok(())
}

/// What was declared: which tensors, beside which stages.
type Declared = HashMap<(String, Vec<usize>), WeightId>;

/// What a matrix of a change is used as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Matrix,
    /// A kernel of one pixel.
    Point,
    /// A kernel of as many pixels as the weight's own.
    Kernel,
}

/// One change on its way into a model.
struct Attaching<'a, 't> {
    target: &'a mut Target<'t>,
    delta: &'a Delta,
    is_kernel: bool,
    declared: &'a mut Declared,
}

impl Attaching<'_, '_> {
    fn attach(&mut self) -> Result<()> {
        let Delta { id, ref rows, from, scale, strength, .. } = *self.delta;
        let mut branch = Branch {
            rows: rows.clone(),
            from,
            form: stage::Form::Product,
            scale: scale * strength,
            intake: None,
            gain: None,
        };
        let Some(magnitude) = &self.delta.magnitude else {
            branch.form = self.form()?;
            self.target.model.branch(id, branch);
            return Ok(());
        };
        if magnitude.of_inputs && self.is_kernel {
            branch.form = stage::Form::Chain(vec![self.whole_change()?]);
            branch.scale = strength;
            branch.from = 0;
            self.target.model.branch(id, branch);
            return Ok(());
        }
        // W + strength (gain (W + change) - W): the weight's own product again, less by 1, and the change's.
        let less: Vec<f32> = magnitude.gains.iter().map(|gain| gain - 1.0).collect();
        let less = self.vector("less", &less)?;
        let gain = self.vector("gain", &magnitude.gains)?;
        let both = |vector| if magnitude.of_inputs { (Some(vector), None) } else { (None, Some(vector)) };
        let (intake, of_rows) = both(less);
        let own = Branch { scale: strength, intake, gain: of_rows, ..branch.clone() };
        self.target.model.branch(id, own);
        (branch.intake, branch.gain) = both(gain);
        branch.form = self.form()?;
        self.target.model.branch(id, branch);
        Ok(())
    }

    /// The form of the branch, with its weights declared.
    fn form(&mut self) -> Result<stage::Form> {
        let delta = self.delta;
        let [point, spatial] = if self.is_kernel { [As::Point, As::Kernel] } else { [As::Matrix; 2] };
        Ok(match &delta.form {
            Form::LowRank { down, mid: None, up } => {
                stage::Form::Chain(vec![self.file(down, "down", spatial)?, self.file(up, "up", point)?])
            }
            Form::LowRank { down, mid: Some(mid), up } => stage::Form::Chain(vec![
                self.file(down, "down", point)?,
                self.file(mid, "mid", spatial)?,
                self.file(up, "up", point)?,
            ]),
            Form::Dense(factor) => stage::Form::Chain(vec![self.file(factor, "diff", spatial)?]),
            Form::Hadamard(pairs) => stage::Form::Chain(self.hadamard(pairs, point, spatial)?),
            Form::Kronecker { left, right } => stage::Form::Kronecker {
                left: self.side(left, "left", As::Matrix, As::Matrix)?,
                right: self.side(right, "right", point, spatial)?,
            },
        })
    }

    /// A name beside the weight's that no other branch has. It says the factor, so that whatever is kept for a model by the names
    /// of its weights is kept apart for LoRAs of other strengths.
    fn name(&self, part: &str) -> String {
        let Delta { id, scale, strength, .. } = *self.delta;
        let model = &self.target.model;
        let count = model.branches(id).len();
        format!("{}.lora.{count}.{part}*{}", model.manifest().get(id).name, scale * strength)
    }

    /// The extents of a matrix of `rows` and `columns` that is used as `what`.
    fn extents(&self, rows: usize, columns: usize, what: As) -> Vec<usize> {
        let [w, h, ..] = self.target.model.manifest().get(self.delta.id).shape.dims();
        match what {
            As::Matrix => vec![columns, rows],
            As::Point => vec![1, 1, columns, rows],
            As::Kernel => vec![w, h, columns / (w * h).max(1), rows],
        }
    }

    /// Declares a tensor of the file as it lies there. Once, for all weights of the same stages that it is part of.
    fn file(&mut self, factor: &Factor, part: &str, what: As) -> Result<WeightId> {
        let key = (factor.piece.name().to_owned(), self.target.model.stages_of(self.delta.id));
        if let Some(id) = self.declared.get(&key) {
            return Ok(*id);
        }
        let extents = self.extents(factor.rows, factor.columns, what);
        let id = self.bind(part, &extents, what, factor.piece.clone())?;
        self.declared.insert(key, id);
        Ok(id)
    }

    fn bind(&mut self, part: &str, extents: &[usize], what: As, piece: Piece) -> Result<WeightId> {
        // Kernels meet pixels in F32: in F16, ggml's convolution would round these too.
        let role = if what == As::Matrix && extents.len() > 1 { Role::MatMul } else { Role::Vector };
        let name = self.name(part);
        let id = self.target.model.weight_beside(self.delta.id, &name, extents, role)?;
        self.target.bound.add(self.target.model.manifest(), id, vec![piece])?;
        Ok(id)
    }

    fn memory(&mut self, part: &str, extents: &[usize], what: As, numbers: &[f32]) -> Result<WeightId> {
        let piece = Piece::in_memory(&format!("{}.{part}", self.delta.module), &self.delta.path, numbers)?;
        self.bind(part, extents, what, piece)
    }

    fn vector(&mut self, part: &str, numbers: &[f32]) -> Result<WeightId> {
        self.memory(part, &[numbers.len()], As::Matrix, numbers)
    }

    /// LoHa: two products multiplied number by number are one of the product of their ranks. One matrix where that is smaller.
    fn hadamard(&mut self, [one, other]: &[Pair; 2], point: As, spatial: As) -> Result<Vec<WeightId>> {
        let ([a, b], [c, d]) = (one.read()?, other.read()?);
        let (rank, columns, rows) = (b.rows() * d.rows(), b.columns, a.rows());
        if rank.saturating_mul(rows + columns) >= rows.saturating_mul(columns) {
            return Ok(vec![self.dense(&Loaded::Hadamard([[a, b], [c, d]]), rows, spatial)?]);
        }
        let down = multiplied_rows(&b, &d)?;
        // Columns of the outer factors, as rows.
        let up = {
            let mut up = reserve::room("a LoRA", rows * rank)?;
            for row in 0..rows {
                for a in &a.numbers[row * a.columns..][..a.columns] {
                    up.extend(c.numbers[row * c.columns..][..c.columns].iter().map(|c| a * c));
                }
            }
            up
        };
        let (down_extents, up_extents) = (self.extents(rank, columns, spatial), self.extents(rows, rank, point));
        Ok(vec![self.memory("down", &down_extents, spatial, &down)?, self.memory("up", &up_extents, point, &up)?])
    }

    /// All `rows` of a change as one matrix in memory.
    fn dense(&mut self, loaded: &Loaded, rows: usize, what: As) -> Result<WeightId> {
        let columns = self.delta.columns;
        let mut numbers = reserve::zeros("a LoRA", rows.saturating_mul(columns))?;
        loaded.add(0, columns, 1.0, &mut numbers)?;
        let extents = self.extents(rows, columns, what);
        self.memory("diff", &extents, what, &numbers)
    }

    /// What DoRA makes of a kernel, as one in memory, without the strength.
    fn whole_change(&mut self) -> Result<WeightId> {
        let Delta { id, columns, ref rows, .. } = *self.delta;
        let mut was = reserve::zeros("a LoRA", rows.len().saturating_mul(columns))?;
        self.target.bound.read_numbers(id, rows.start * columns, &mut was)?;
        let mut numbers = reserve::zeros("a LoRA", was.len())?;
        let alone = Delta { strength: 1.0, ..self.delta.clone() };
        alone.add(&self.delta.form.read()?, &was, rows.start, &mut numbers)?;
        let extents = self.extents(rows.len(), columns, As::Kernel);
        self.memory("diff", &extents, As::Kernel, &numbers)
    }

    fn side(&mut self, side: &Side, part: &str, point: As, spatial: As) -> Result<Vec<WeightId>> {
        match side {
            Side::Whole(factor) => Ok(vec![self.file(factor, part, spatial)?]),
            Side::Pair(pair) if pair.core.is_none() => {
                let first = self.file(&pair.b, &format!("{part}_b"), spatial)?;
                Ok(vec![first, self.file(&pair.a, &format!("{part}_a"), point)?])
            }
            Side::Pair(pair) => {
                let [a, b] = pair.read()?;
                let whole = a.times(&b)?;
                let extents = self.extents(whole.rows(), whole.columns, spatial);
                Ok(vec![self.memory(part, &extents, spatial, &whole.numbers)?])
            }
        }
    }
}

/// Every row of `one` times every row of `other`, number by number.
fn multiplied_rows(one: &Matrix, other: &Matrix) -> Result<Vec<f32>> {
    let mut numbers = reserve::room("a LoRA", one.rows().saturating_mul(other.numbers.len()))?;
    for row in one.numbers.chunks_exact(one.columns.max(1)) {
        for second in other.numbers.chunks_exact(one.columns.max(1)) {
            numbers.extend(row.iter().zip(second).map(|(a, b)| a * b));
        }
    }
    Ok(numbers)
}
