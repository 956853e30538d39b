//! The bytes of a stage's weights, from the file to the device.

use std::sync::Arc;

use pinhole_quant::{DType, rows};

use super::link::Link;
use crate::Result;
use crate::bind::{Bound, Piece};
use crate::error::Error;
use crate::ggml::Buffer;
use crate::plan::layout::StageLayout;
use crate::reserve;
use crate::stage::Model;

/// How many numbers are converted at once.
const CHUNK: usize = 1 << 20;

/// What to bring for one stage, and where to.
pub(crate) struct Feed {
    buffer: Arc<Buffer>,
    weights: Vec<Weight>,
    /// All that it brings.
    pub(crate) bytes: usize,
}

struct Weight {
    pieces: Vec<Piece>,
    dtype: DType,
    row: usize,
    offset: usize,
}

/// Memory for numbers on their way from one format to another, made once.
#[derive(Default)]
pub(crate) struct Conversion {
    numbers: Vec<f32>,
    bytes: Vec<u8>,
}

impl Feed {
    /// The copies of `layout`, which begins at `offset` in `buffer`.
    pub(crate) fn new(model: &Model, bound: &Bound, layout: &StageLayout, buffer: &Arc<Buffer>, offset: usize) -> Feed {
        let weights = layout
            .copies
            .iter()
            .map(|copied| Weight {
                pieces: bound.pieces(copied.id).to_vec(),
                dtype: copied.dtype,
                row: model.manifest().get(copied.id).shape.row(),
                offset: offset + copied.offset,
            })
            .collect();
        Feed { buffer: Arc::clone(buffer), weights, bytes: layout.copies.iter().map(|copied| copied.bytes).sum() }
    }

    /// Brings all of it over `link`: as it lies where the formats agree, converted otherwise.
    pub(crate) fn bring(&self, link: &mut dyn Link, conversion: &mut Conversion) -> Result<()> {
        for weight in &self.weights {
            let mut offset = weight.offset;
            let direct = weight.pieces.iter().all(|piece| piece.is_stored_as(weight.dtype));
            for piece in &weight.pieces {
                offset += match direct {
                    true => {
                        link.write(&self.buffer, offset, piece.bytes())?;
                        piece.bytes().len()
                    }
                    false => self.convert(weight, piece, offset, link, conversion)?,
                };
            }
        }
        Ok(())
    }

    /// Brings `piece` in the weight's format; returns its bytes.
    fn convert(
        &self,
        weight: &Weight,
        piece: &Piece,
        mut offset: usize,
        link: &mut dyn Link,
        conversion: &mut Conversion,
    ) -> Result<usize> {
        let (start, step) = (offset, (CHUNK / weight.row).max(1) * weight.row);
        for from in (0..piece.len()).step_by(step) {
            let len = step.min(piece.len() - from);
            let row = if len.is_multiple_of(weight.row) { weight.row } else { len };
            let Some(row_bytes) = weight.dtype.row_bytes(row) else {
                return Err(Error::graph("convert", format!("{row} numbers in {}", weight.dtype)));
            };
            let bytes = row_bytes * (len / row);
            reserve::resize("a weight on its way", &mut conversion.numbers, len)?;
            reserve::resize("a weight on its way", &mut conversion.bytes, bytes)?;
            piece.part(from, len).read_f32(&mut conversion.numbers)?;
            rows::quantize_parallel(weight.dtype, &conversion.numbers, row, &mut conversion.bytes)
                .map_err(|error| Error::graph("convert", format!("{}: {error}", piece.name())))?;
            link.write(&self.buffer, offset, &conversion.bytes)?;
            offset += bytes;
        }
        Ok(offset - start)
    }
}
