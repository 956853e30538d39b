//! What became of the matrices: their formats as the bundle has them, their bytes, their error.

use std::collections::BTreeMap;

use pinhole::bind::{Bound, Piece};
use pinhole::ggml::CancelFlag;
use pinhole::pipeline::Opened;
use pinhole::source::Network;
use pinhole::source::slot::{TRANSFORMER, VAE};
use pinhole::weights::{Role, WeightId};
use pinhole::{Error, Result};
use pinhole_quant::DType;
use serde::Serialize;

/// How many numbers are compared at a time.
const CHUNK: usize = 1 << 20;

/// The matrices of some components.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Matrices {
    /// Numbers in them.
    pub(super) parameters: u64,
    /// The bytes that they take.
    pub(super) bytes: u64,
    /// `bytes` times 8, over `parameters`.
    pub(super) bits_per_weight: f64,
    /// The share of `parameters` that is in the format of the named type.
    pub(super) share_of_type: f64,
    /// `parameters` by format.
    pub(super) formats: BTreeMap<&'static str, u64>,
    /// The mean over matrices, weighted by their parameters, of each matrix's normalised mean squared error: the sum of
    /// squared differences from the source over the sum of the source's squares.
    pub(super) error: f64,
    /// The matrix with the largest error.
    pub(super) worst: Option<WorstMatrix>,
}

/// A matrix and its normalised mean squared error.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WorstMatrix {
    /// Its component.
    component: &'static str,
    /// Its name there.
    tensor: String,
    error: f64,
}

/// The weights of a bundle.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    /// Bytes of all of the transformer's weights, vectors among them.
    pub(super) transformer_bytes: u64,
    /// The transformer's matrices.
    pub(super) transformer: Matrices,
    /// The matrices of transformer and text encoders.
    pub(super) all: Matrices,
}

/// Whether a weight of this role is a matrix. Convolutions, which no type quantizes, are none.
fn is_matrix(role: Role) -> bool {
    matches!(role, Role::MatMul | Role::WideMatMul | Role::SensitiveMatMul | Role::Embedding)
}

/// The quantized formats that matrices of `model`'s transformer and text encoders are in, each once.
pub(super) fn quantized(model: &Opened) -> Vec<&'static str> {
    let mut formats = Vec::new();
    for Network { slot, model: net, bound, .. } in model.networks() {
        if slot == &VAE {
            continue;
        }
        let matrices = net.manifest().iter().filter(|(_, weight)| is_matrix(weight.role));
        let dtypes = matrices.map(|(id, _)| bound.dtype(id)).filter(|dtype| dtype.is_quantized());
        formats.extend(dtypes.map(DType::name));
    }
    formats.sort_unstable();
    formats.dedup();
    formats
}

/// Compares the weights of `bundle`, whose matrices should be `named`, with those of `source`, which it was made of.
///
/// # Errors
/// What reading them returns, and [`Error::Cancelled`].
pub(super) fn compare(source: &Opened, bundle: &Opened, named: DType, cancel: &CancelFlag) -> Result<Weights> {
    let mut weights = Weights { transformer_bytes: 0, transformer: Matrices::default(), all: Matrices::default() };
    // Both have the same configuration, and so the same parts with the same lists of weights.
    for (Network { slot, model: net, bound: before, .. }, after) in source.networks().into_iter().zip(bundle.networks())
    {
        let after = after.bound;
        if slot == &VAE {
            continue;
        }
        for (id, weight) in net.manifest().iter() {
            cancel.check()?;
            let bytes = after.pieces(id).iter().map(|piece| piece.bytes().len() as u64).sum();
            if slot == &TRANSFORMER {
                weights.transformer_bytes += bytes;
            }
            if !is_matrix(weight.role) {
                continue;
            }
            let matrix = Matrix {
                component: slot.name,
                tensor: &weight.name,
                parameters: weight.shape.elements() as u64,
                bytes,
                dtype: after.dtype(id),
                error: error(before, after, id, weight.shape.row())?,
            };
            weights.all.add(&matrix, named);
            if slot == &TRANSFORMER {
                weights.transformer.add(&matrix, named);
            }
        }
    }
    weights.all.finish();
    weights.transformer.finish();
    Ok(weights)
}

/// One matrix of a bundle.
struct Matrix<'a> {
    component: &'static str,
    tensor: &'a str,
    parameters: u64,
    bytes: u64,
    dtype: DType,
    error: f64,
}

impl Matrices {
    /// Adds a matrix to the sums: what [`finish`](Matrices::finish) makes shares and means of.
    fn add(&mut self, matrix: &Matrix<'_>, named: DType) {
        let Matrix { component, tensor, parameters, bytes, dtype, error } = *matrix;
        self.parameters += parameters;
        self.bytes += bytes;
        *self.formats.entry(dtype.name()).or_default() += parameters;
        self.error += error * parameters as f64;
        if dtype == named {
            self.share_of_type += parameters as f64;
        }
        if self.worst.as_ref().is_none_or(|worst| error > worst.error) {
            self.worst = Some(WorstMatrix { component, tensor: tensor.to_owned(), error });
        }
    }

    fn finish(&mut self) {
        let parameters = self.parameters as f64;
        self.bits_per_weight = self.bytes as f64 * 8.0 / parameters;
        self.share_of_type /= parameters;
        self.error /= parameters;
    }
}

/// The normalised mean squared error of weight `id`, whose rows are `row` numbers long, in `after`.
fn error(before: &Bound, after: &Bound, id: WeightId, row: usize) -> Result<f64> {
    let [stored] = after.pieces(id) else {
        return Err(Error::mismatch(after.origin(), "bundle", "weights in one piece each", "several"));
    };
    let chunk = (CHUNK / row).max(1) * row;
    let (mut reference, mut value) = (Vec::new(), Vec::new());
    let (mut difference, mut power) = (0.0, 0.0);
    let mut offset = 0;
    for piece in before.pieces(id) {
        for start in (0..piece.len()).step_by(chunk) {
            let len = chunk.min(piece.len() - start);
            read(&piece.part(start, len), &mut reference)?;
            read(&stored.part(offset + start, len), &mut value)?;
            for (&reference, &value) in reference.iter().zip(&value) {
                let reference = f64::from(reference);
                difference += (f64::from(value) - reference).powi(2);
                power += reference.powi(2);
            }
        }
        offset += piece.len();
    }
    // A matrix of zeros that stayed one has no error.
    Ok(if difference == 0.0 { 0.0 } else { difference / power })
}

fn read(piece: &Piece, numbers: &mut Vec<f32>) -> Result<()> {
    numbers.resize(piece.len(), 0.0);
    piece.read_f32(numbers)
}
