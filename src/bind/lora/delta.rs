//! The change of one weight as numbers: what a merge adds, what DoRA's norms are of, and what rows of tables get.
//!
//! A weight of any kind is a matrix here: a row for each output, a column for each of its inputs (and pixels of a kernel).

use std::ops::Range;
use std::path::PathBuf;

use pinhole_quant::workers;

use crate::bind::{Bound, Piece};
use crate::weights::{Manifest, WeightId};
use crate::{Error, Result, reserve};

/// How many rows a thread works out at once.
const ROWS: usize = 8;

/// A tensor of a LoRA's file as a matrix: PyTorch's first extent counts rows.
#[derive(Clone, Debug)]
pub(super) struct Factor {
    pub(super) piece: Piece,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Factor {
    pub(super) fn read(&self) -> Result<Matrix> {
        let mut numbers = reserve::zeros("a LoRA", self.rows * self.columns)?;
        self.piece.read_f32(&mut numbers)?;
        Ok(Matrix { numbers, columns: self.columns })
    }
}

/// Numbers, row by row.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) numbers: Vec<f32>,
    pub(super) columns: usize,
}

impl Matrix {
    pub(super) fn rows(&self) -> usize {
        self.numbers.len() / self.columns.max(1)
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.numbers[row * self.columns..][..self.columns]
    }

    fn transposed(&self) -> Matrix {
        let rows = self.rows();
        let numbers = (0..self.numbers.len()).map(|i| self.numbers[i % rows * self.columns + i / rows]).collect();
        Matrix { numbers, columns: rows }
    }

    /// The product with `right`.
    pub(super) fn times(&self, right: &Matrix) -> Result<Matrix> {
        let mut numbers = reserve::zeros("a LoRA", self.rows() * right.columns)?;
        for (row, out) in numbers.chunks_exact_mut(right.columns.max(1)).enumerate() {
            combine(self.row(row), right, 1.0, out);
        }
        Ok(Matrix { numbers, columns: right.columns })
    }
}

/// Adds to `out` the rows of `matrix`, each times its weight and `factor`.
fn combine(weights: &[f32], matrix: &Matrix, factor: f32, out: &mut [f32]) {
    for (row, weight) in weights.iter().enumerate() {
        let weight = weight * factor;
        out.iter_mut().zip(matrix.row(row)).for_each(|(out, number)| *out += weight * number);
    }
}

/// A product of two matrices, and Tucker's core between them where a kernel has one.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) a: Factor,
    pub(super) b: Factor,
    pub(super) core: Option<Factor>,
    /// Whether `a` has a row for each rank.
    pub(super) a_by_rank: bool,
}

impl Pair {
    /// Rows and columns of the product.
    pub(super) fn extents(&self) -> [usize; 2] {
        let rows = if self.a_by_rank { self.a.columns } else { self.a.rows };
        let pixels = self.core.as_ref().map_or(1, |core| core.columns / self.b.rows.max(1));
        [rows, self.b.columns * pixels]
    }

    /// The outer matrices, `[outputs, rank]` and `[rank, columns]`.
    pub(super) fn read(&self) -> Result<[Matrix; 2]> {
        let a = self.a.read()?;
        let a = if self.a_by_rank { a.transposed() } else { a };
        let b = self.b.read()?;
        match &self.core {
            None => Ok([a, b]),
            Some(core) => Ok([a, tucker(&core.read()?, &b)?]),
        }
    }
}

/// `core [r1, r2 * pixels]` with `b [r2, inputs]` put into its second place: `[r1, inputs * pixels]`.
fn tucker(core: &Matrix, b: &Matrix) -> Result<Matrix> {
    let (inputs, pixels) = (b.columns, core.columns / b.rows().max(1));
    let mut numbers = reserve::zeros("a LoRA", core.rows() * inputs * pixels)?;
    for (row, out) in numbers.chunks_exact_mut((inputs * pixels).max(1)).enumerate() {
        for (rank, core) in core.row(row).chunks_exact(pixels).enumerate() {
            for (out, weight) in out.chunks_exact_mut(pixels).zip(b.row(rank)) {
                out.iter_mut().zip(core).for_each(|(out, number)| *out += weight * number);
            }
        }
    }
    Ok(Matrix { numbers, columns: inputs * pixels })
}

/// How a LoRA writes a change.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Up times down, with a core between them in LoCon's Tucker form.
    LowRank { down: Factor, mid: Option<Factor>, up: Factor },
    /// As large as the weight.
    Dense(Factor),
    /// LoHa: two products, multiplied number by number.
    Hadamard(Box<[Pair; 2]>),
    /// LoKr: every number of the left matrix is a block of the right one's.
    Kronecker { left: Side, right: Side },
}

/// A factor of a Kronecker product.
#[derive(Clone, Debug)]
pub(super) enum Side {
    Whole(Factor),
    Pair(Box<Pair>),
}

impl Side {
    fn read(&self) -> Result<Matrix> {
        match self {
            Side::Whole(factor) => factor.read(),
            Side::Pair(pair) => {
                let [a, b] = pair.read()?;
                a.times(&b)
            }
        }
    }

    /// Rows and columns.
    pub(super) fn extents(&self) -> [usize; 2] {
        match self {
            Side::Whole(factor) => [factor.rows, factor.columns],
            Side::Pair(pair) => pair.extents(),
        }
    }
}

impl Form {
    /// What its rows are made of, in memory.
    pub(super) fn read(&self) -> Result<Loaded> {
        Ok(match self {
            Form::LowRank { down, mid: None, up } => Loaded::LowRank([up.read()?, down.read()?]),
            Form::LowRank { down, mid: Some(mid), up } => {
                let (mid, down) = (mid.read()?, down.read()?);
                Loaded::LowRank([up.read()?, tucker(&mid, &down)?])
            }
            Form::Dense(factor) => Loaded::Dense(factor.clone()),
            Form::Hadamard(pairs) => Loaded::Hadamard([pairs[0].read()?, pairs[1].read()?]),
            Form::Kronecker { left, right } => Loaded::Kronecker([left.read()?, right.read()?]),
        })
    }
}

/// A change whose factors are in memory.
#[derive(Debug)]
pub(super) enum Loaded {
    LowRank([Matrix; 2]),
    Dense(Factor),
    Hadamard([[Matrix; 2]; 2]),
    Kronecker([Matrix; 2]),
}

impl Loaded {
    /// Adds the rows from `first` on, times `factor`, to `out`, whole rows of `columns`.
    pub(super) fn add(&self, first: usize, columns: usize, factor: f32, out: &mut [f32]) -> Result<()> {
        if let Loaded::Dense(dense) = self {
            let mut numbers = reserve::zeros("a LoRA", out.len())?;
            dense.piece.part(first * columns, out.len()).read_f32(&mut numbers)?;
            out.iter_mut().zip(numbers).for_each(|(out, number)| *out += factor * number);
            return Ok(());
        }
        let columns = columns.max(1);
        let tasks = out.chunks_mut(ROWS * columns).enumerate().collect();
        workers::for_each(tasks, |(task, out): (usize, &mut [f32])| {
            let mut room = vec![0.0; columns];
            for (row, out) in out.chunks_exact_mut(columns).enumerate() {
                self.add_row(first + ROWS * task + row, factor, &mut room, out);
            }
        });
        Ok(())
    }

    fn add_row(&self, row: usize, factor: f32, room: &mut [f32], out: &mut [f32]) {
        match self {
            Loaded::LowRank([up, down]) => {
                room.fill(0.0);
                combine(up.row(row), down, 1.0, room);
                out.iter_mut().zip(room).for_each(|(out, number)| *out += factor * *number);
            }
            Loaded::Dense(_) => {}
            Loaded::Hadamard([[a, b], [c, d]]) => {
                let mut other = vec![0.0; out.len()];
                room.fill(0.0);
                combine(a.row(row), b, 1.0, room);
                combine(c.row(row), d, 1.0, &mut other);
                out.iter_mut().zip(room).zip(other).for_each(|((out, one), other)| *out += factor * *one * other);
            }
            Loaded::Kronecker([left, right]) => {
                let (left, right) = (left.row(row / right.rows()), right.row(row % right.rows()));
                for (out, weight) in out.chunks_exact_mut(right.len().max(1)).zip(left) {
                    out.iter_mut().zip(right).for_each(|(out, number)| *out += factor * weight * number);
                }
            }
        }
    }
}

/// DoRA's norms.
#[derive(Clone, Debug)]
pub(super) struct Magnitude {
    pub(super) norms: Vec<f32>,
    /// Whether there is one for each input and not for each output.
    pub(super) of_inputs: bool,
    /// What each is multiplied with instead, once norms of the changed weight are known.
    pub(super) gains: Vec<f32>,
}

/// The change of a weight, or of some of its rows.
#[derive(Clone, Debug)]
pub struct Delta {
    /// The weight that it changes.
    pub(super) id: WeightId,
    /// The module's name in the file.
    pub(super) module: String,
    pub(super) path: PathBuf,
    /// The rows of the weight that it changes.
    pub(super) rows: Range<usize>,
    /// Which of the form's rows comes first there.
    pub(super) from: usize,
    /// How many columns the weight has.
    pub(super) columns: usize,
    /// How many columns belong to one input: a kernel's pixels.
    pub(super) pixels: usize,
    pub(super) form: Form,
    /// By alpha and rank.
    pub(super) scale: f32,
    /// As asked for.
    pub(super) strength: f32,
    pub(super) magnitude: Option<Magnitude>,
}

/// How many numbers of a weight are looked at at a time.
const CHUNK: usize = 1 << 22;

impl Delta {
    /// Works out DoRA's gains: its norms over those of the weight with its change. The weight is read once, some rows at a time.
    pub(super) fn set_gains(&mut self, bound: &Bound) -> Result<()> {
        let Some(mut magnitude) = self.magnitude.take() else { return Ok(()) };
        let loaded = self.form.read()?;
        let (columns, pixels) = (self.columns, self.pixels);
        let inputs = columns / pixels.max(1);
        let mut squares = reserve::zeros("DoRA's norms", if magnitude.of_inputs { inputs } else { self.rows.len() })?;
        let step = (CHUNK / columns.max(1)).max(1);
        let mut room = Vec::new();
        for first in (0..self.rows.len()).step_by(step) {
            let rows = step.min(self.rows.len() - first);
            reserve::resize("a weight", &mut room, rows * columns)?;
            bound.read_numbers(self.id, (self.rows.start + first) * columns, &mut room)?;
            loaded.add(self.from + first, columns, self.scale, &mut room)?;
            for (row, numbers) in room.chunks_exact(columns).enumerate() {
                let square = |number: &f32| f64::from(*number) * f64::from(*number);
                if magnitude.of_inputs {
                    let sums = numbers.chunks_exact(pixels).map(|pixels| pixels.iter().map(square).sum::<f64>());
                    squares.iter_mut().zip(sums).for_each(|(square, sum)| *square += sum);
                } else {
                    squares[first + row] = numbers.iter().map(square).sum::<f64>();
                }
            }
        }
        let norms = if magnitude.of_inputs { &magnitude.norms[..] } else { &magnitude.norms[self.from..] };
        magnitude.gains = squares.iter().zip(norms).map(|(square, norm)| gain(*norm, square.sqrt())).collect();
        self.magnitude = Some(magnitude);
        Ok(())
    }

    /// Adds to `numbers`, whole rows of the changed weight from its row `first` on, what this makes of the same rows of the weight
    /// as it was.
    pub(super) fn add(&self, loaded: &Loaded, was: &[f32], first: usize, numbers: &mut [f32]) -> Result<()> {
        let columns = self.columns.max(1);
        let start = self.rows.start.max(first);
        let end = self.rows.end.min(first + numbers.len() / columns);
        if start >= end {
            return Ok(());
        }
        let here = (start - first) * columns..(end - first) * columns;
        let from = self.from + start - self.rows.start;
        let Some(magnitude) = &self.magnitude else {
            return loaded.add(from, columns, self.scale * self.strength, &mut numbers[here]);
        };
        let was = &was[here.clone()];
        let mut changed = reserve::collect("a weight", was.len(), was.iter().copied())?;
        loaded.add(from, columns, self.scale, &mut changed)?;
        for (i, ((out, changed), was)) in numbers[here].iter_mut().zip(changed).zip(was).enumerate() {
            let gain = match magnitude.of_inputs {
                true => magnitude.gains[i % columns / self.pixels],
                false => magnitude.gains[start - self.rows.start + i / columns],
            };
            *out += self.strength * (gain * changed - was);
        }
        Ok(())
    }

    /// Adds the change of row `row` to `numbers`, that row.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Mismatch`] for a storage that holds no weights.
    pub(crate) fn add_row(&self, row: usize, numbers: &mut [f32]) -> Result<()> {
        if !self.rows.contains(&row) {
            return Ok(());
        }
        let was = numbers.to_vec();
        self.add(&self.form.read()?, &was, row, numbers)
    }
}

/// What a row or column of the norm `found` is multiplied with to have the norm `wanted`.
fn gain(wanted: f32, found: f64) -> f32 {
    // Zeros stay zeros, whatever they are multiplied with.
    if found == 0.0 { 0.0 } else { (f64::from(wanted) / found) as f32 }
}

/// What LoRAs make of the weights of one model: for a conversion that merges them.
#[derive(Debug, Default)]
pub struct Merged {
    pub(super) deltas: Vec<Delta>,
    /// Differences of biases and scales of norms: the vector, which of its numbers, and the differences.
    pub(super) vectors: Vec<(WeightId, usize, Vec<f32>)>,
}

impl Merged {
    /// Whether they change the weight `id`.
    pub fn changes(&self, id: WeightId) -> bool {
        self.deltas.iter().any(|delta| delta.id == id) || self.vectors.iter().any(|(vector, ..)| *vector == id)
    }

    /// How many numbers of the weight `id` have to be given to its changes together: as [`Changes::row`].
    pub fn row(&self, id: WeightId) -> usize {
        self.deltas.iter().find(|delta| delta.id == id).map_or(1, |delta| delta.columns)
    }

    /// The weight `id` as it is to be applied to any of its rows, with the factors of its changes in memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Mismatch`] for a storage that holds no weights.
    pub fn of(&self, id: WeightId) -> Result<Changes<'_>> {
        let mut changes = Changes { deltas: Vec::new(), vectors: Vec::new() };
        for delta in self.deltas.iter().filter(|delta| delta.id == id) {
            changes.deltas.push((delta, delta.form.read()?));
        }
        changes.vectors.extend(self.vectors.iter().filter(|(vector, ..)| *vector == id));
        Ok(changes)
    }

    /// The whole weight `id` of `bound`, merged.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn read_f32(&self, manifest: &Manifest, bound: &Bound, id: WeightId) -> Result<Vec<f32>> {
        let mut numbers = reserve::zeros("a weight", manifest.get(id).shape.elements())?;
        bound.read_numbers(id, 0, &mut numbers)?;
        self.of(id)?.apply(0, &mut numbers)?;
        Ok(numbers)
    }
}

/// The changes of one weight.
pub struct Changes<'a> {
    deltas: Vec<(&'a Delta, Loaded)>,
    vectors: Vec<&'a (WeightId, usize, Vec<f32>)>,
}

impl Changes<'_> {
    /// How many numbers must be given together: those of a row, which for a kernel is all of one output's. 1 for a vector.
    pub fn row(&self) -> usize {
        self.deltas.first().map_or(1, |(delta, _)| delta.columns)
    }

    /// Merges the changes into `numbers`, whole [rows](Self::row) of the weight from its number `start` on.
    ///
    /// # Errors
    /// [`Error::Graph`] for parts of rows; [`Error::OutOfMemory`].
    pub fn apply(&self, start: usize, numbers: &mut [f32]) -> Result<()> {
        let row = self.row();
        if !start.is_multiple_of(row) || !numbers.len().is_multiple_of(row) {
            return Err(Error::graph("merge", format!("{} numbers from {start} on in rows of {row}", numbers.len())));
        }
        if !self.deltas.is_empty() {
            let was = reserve::collect("a weight", numbers.len(), numbers.iter().copied())?;
            for (delta, loaded) in &self.deltas {
                delta.add(loaded, &was, start / row, numbers)?;
            }
        }
        for (_, first, differences) in &self.vectors {
            let end = first + differences.len();
            let here = start.max(*first)..end.min(start + numbers.len());
            for i in here {
                numbers[i - start] += differences[i - first];
            }
        }
        Ok(())
    }
}
