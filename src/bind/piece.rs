//! Consecutive rows of one tensor in a file, and how their numbers are read.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use pinhole_quant::fp8::Fp8;
use pinhole_quant::{DType, rows};

use crate::index::{FileTensor, Form, Map, Storage};
use crate::tensor::Shape;
use crate::{Error, Result, reserve};

/// Consecutive rows of a tensor in a file. Of a vector, consecutive elements. Of a kernel over time, a part of its last plane.
#[derive(Clone, Debug)]
pub struct Piece {
    pub(super) name: String,
    pub(super) tensor: FileTensor,
    /// Which numbers of the tensor, counted from its first; of its last planes alone, if it has planes.
    pub(super) numbers: Range<usize>,
    /// How the planes of a kernel over time lie; `None` if all numbers count.
    pub(super) planes: Option<Planes>,
    /// What they are multiplied by: 1, except for 8-bit floats.
    pub(super) scale: f32,
}

/// The planes of kernels over time, each of width by height. One of them counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planes {
    /// Numbers of a plane.
    pub(super) each: usize,
    /// How many there are for each channel.
    pub(super) of: usize,
    /// Which of them counts.
    pub(super) at: usize,
}

impl Planes {
    /// Where in the tensor number `i` of the planes that count is.
    fn place(self, i: usize) -> usize {
        (i / self.each * self.of + self.at) * self.each + i % self.each
    }
}

impl Piece {
    /// All numbers of the tensor `name`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a storage that holds no weights.
    pub(super) fn whole(name: &str, tensor: &FileTensor) -> Result<Piece> {
        let piece = Piece {
            name: name.to_owned(),
            tensor: tensor.clone(),
            numbers: 0..tensor.shape.elements(),
            planes: None,
            scale: 1.0,
        };
        match holds_weights(piece.storage()) {
            true => Ok(piece),
            false => Err(piece.unreadable(piece.storage().to_string())),
        }
    }

    /// The planes of the kernel `name` that are number `at` of all, or the last of them, which make a kernel of `expected`; `None` if
    /// they do not.
    pub(super) fn planes(name: &str, tensor: &FileTensor, expected: Shape, at: Option<usize>) -> Option<Piece> {
        let [w, h, inputs, outputs] = expected.dims();
        let of = tensor.shape.elements() / expected.elements();
        let fits = match tensor.file_shape[..] {
            [a, b, planes, c, d] => [a, b, c, d] == [w, h, inputs, outputs] && planes == of,
            // Two of five extents may have been folded.
            [a, b, c, d] => {
                [a, b, c, d] == [w, h, inputs, outputs] || ([a, b, c] == [w, h, of] && d == inputs * outputs)
            }
            _ => false,
        };
        let is_matrix = of == 1 && squeezed(tensor.shape) == squeezed(expected);
        // Blocks would have numbers of several planes.
        let at = at.unwrap_or(of.saturating_sub(1));
        if at >= of || !(fits || is_matrix) || (of > 1 && tensor.storage.block_size() != 1) {
            return None;
        }
        let planes = (of > 1).then_some(Planes { each: w * h, of, at });
        Some(Piece {
            name: name.to_owned(),
            tensor: tensor.clone(),
            numbers: 0..expected.elements(),
            planes,
            scale: 1.0,
        })
    }

    /// The columns of the matrix `name`, one after the other: read here, since no file has them so. Such matrices are small: one
    /// projection of a pooled vector.
    ///
    /// # Errors
    /// Those of [`whole`](Piece::whole) and [`in_memory`](Piece::in_memory); [`Error::OutOfMemory`].
    pub(super) fn columns(name: &str, tensor: &FileTensor) -> Result<Piece> {
        let piece = Piece::whole(name, tensor)?;
        let [row, rows, ..] = tensor.shape.dims();
        let mut numbers = zeros(piece.len())?;
        piece.read_f32(&mut numbers)?;
        let columns = (0..row).flat_map(|column| numbers.iter().skip(column).step_by(row));
        Piece::in_memory(name, tensor.path(), &reserve::collect("a weight", row * rows, columns.copied())?)
    }

    /// Numbers in memory, as if `path` had them as its tensor `name`.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no memory for them.
    pub(super) fn in_memory(name: &str, path: &Path, numbers: &[f32]) -> Result<Piece> {
        let mut bytes = reserve::room("a weight", numbers.len().saturating_mul(size_of::<f32>()))?;
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let map = Map::from_bytes(path, &bytes)?;
        let tensor = Form::new(path, name, DType::F32.into(), vec![numbers.len()])?.place(&map, name, 0)?;
        Piece::whole(name, &tensor)
    }

    /// The tensor's name in its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its file stores it.
    pub fn storage(&self) -> Storage {
        self.tensor.storage
    }

    /// The first of its numbers, counted from the tensor's first.
    pub fn start(&self) -> usize {
        self.numbers.start
    }

    /// How many numbers it gives.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether it gives none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Whether its bytes are its numbers in `dtype`, and nothing else.
    pub fn is_stored_as(&self, dtype: DType) -> bool {
        self.storage() == dtype && self.planes.is_none()
    }

    /// The numbers of the tensor from the first to the last of its own.
    fn spread(&self) -> Range<usize> {
        match self.planes {
            Some(planes) if !self.is_empty() => {
                planes.place(self.numbers.start)..planes.place(self.numbers.end - 1) + 1
            }
            _ => self.numbers.clone(),
        }
    }

    /// Its bytes in the file: those of all blocks that have one of its numbers, and of what lies between these.
    pub fn bytes(&self) -> &[u8] {
        let all = self.tensor.bytes();
        &all[self.inside()]
    }

    /// Where in the tensor's bytes its own lie.
    fn inside(&self) -> Range<usize> {
        let (per_block, spread) = (self.storage().block_size(), self.spread());
        let block_bytes = self.tensor.size() / (self.tensor.shape.elements() / per_block);
        spread.start / per_block * block_bytes..spread.end.div_ceil(per_block) * block_bytes
    }

    /// The map of its file, and where in it its bytes lie.
    pub fn span(&self) -> (&Arc<Map>, Range<usize>) {
        let (inside, offset) = (self.inside(), self.tensor.offset());
        (self.tensor.map(), offset + inside.start..offset + inside.end)
    }

    /// `len` of its numbers, from number `start` on.
    ///
    /// # Panics
    /// Where they are not all in the piece.
    #[must_use]
    pub fn part(&self, start: usize, len: usize) -> Piece {
        assert!(start + len <= self.len(), "{start}..+{len} of {}", self.len());
        let start = self.numbers.start + start;
        Piece { numbers: start..start + len, ..self.clone() }
    }

    /// Reads all its numbers as f32, on the threads of the current [`Workers`](pinhole_quant::workers::Workers).
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a storage that holds no weights.
    pub fn read_f32(&self, out: &mut [f32]) -> Result<()> {
        self.convert_f32(self.bytes(), out)
    }

    /// Copies its bytes to `out`, past the map: as [`Map::read`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and those of [`Map::read`].
    pub fn copy(&self, out: &mut Vec<u8>) -> Result<()> {
        let (map, span) = self.span();
        reserve::resize("a part of a weight", out, span.len())?;
        map.read(span.start, out)
    }

    /// Makes all its numbers, as f32, of the bytes that [`copy`](Piece::copy) gives.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a storage that holds no weights.
    pub fn convert_f32(&self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        let block = self.storage().block_size();
        let skipped = self.numbers.start % block;
        if let Some(planes) = self.planes {
            let spread = self.spread();
            let mut all = zeros(spread.len())?;
            read_f32(self.storage(), bytes, &mut all).map_err(|found| self.unreadable(found))?;
            for (i, out) in self.numbers.clone().zip(out.iter_mut()) {
                *out = all[planes.place(i) - spread.start];
            }
        } else if skipped == 0 && self.numbers.end.is_multiple_of(block) {
            read_f32(self.storage(), bytes, out).map_err(|found| self.unreadable(found))?;
        } else {
            // Blocks that reach over the ends of a row: tensors that were reshaped so that blocks divide them.
            let mut blocks = zeros((skipped + out.len()).next_multiple_of(block))?;
            read_f32(self.storage(), bytes, &mut blocks).map_err(|found| self.unreadable(found))?;
            out.copy_from_slice(&blocks[skipped..skipped + out.len()]);
        }
        if self.scale != 1.0 {
            out.iter_mut().for_each(|number| *number *= self.scale);
        }
        Ok(())
    }

    pub(super) fn unreadable(&self, found: String) -> Error {
        let at = format!("tensor {}", self.name);
        let error = Error::mismatch(self.tensor.path(), at, "numbers that can be weights", found);
        error.with_hint("take a file with this model in another format, such as F16 or Q8_0")
    }
}

fn read_f32(storage: Storage, bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
    let fp8 = match storage {
        Storage::Number(dtype) => {
            return rows::dequantize_parallel(dtype, bytes, out).map_err(|error| error.to_string());
        }
        Storage::F8E4M3 => Fp8::E4M3Fn,
        Storage::F8E5M2 => Fp8::E5M2,
        other => return Err(other.to_string()),
    };
    fp8.row_to_f32(bytes, out);
    Ok(())
}

/// A vector of zeros, or an error where there is no room.
pub(super) fn zeros<T: Clone + Default>(len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| no_memory(len.saturating_mul(size_of::<T>())))?;
    vec.resize(len, T::default());
    Ok(vec)
}

pub(super) fn no_memory(bytes: usize) -> Error {
    Error::OutOfMemory { what: "a weight".into(), bytes, hint: None }
}

/// Whether numbers so stored can be weights: floating point, or quantized in a format that can be read back.
pub(super) fn holds_weights(storage: Storage) -> bool {
    match storage {
        Storage::Number(dtype) => (dtype.is_float() || dtype.is_quantized()) && rows::can_dequantize(dtype),
        Storage::F8E4M3 | Storage::F8E5M2 => true,
        _ => false,
    }
}

/// The extents that are not 1: a 1x1 convolution kernel is a matrix.
pub(super) fn squeezed(shape: Shape) -> Vec<usize> {
    shape.dims().into_iter().filter(|&extent| extent != 1).collect()
}
