//! Attention of pixels to all pixels, in one head as wide as there are channels.

use std::ops::Range;

use crate::Result;
use crate::ggml::{Graph, Tensor};
use crate::stage::Build;

/// How many bytes of scores are made at a time. Flash attention, which would need none, has no kernels for heads so wide.
const SCORES_BYTES: usize = 64 << 20;

/// In how many pieces the scores are made at most, so that graphs stay small however large the picture is.
const MOST_CHUNKS: usize = 64;

/// What some pixels, whose queries are `q [C, pixels, B]`, see of all pixels, whose keys lie as `[C w, h, 1, B]` and whose values as
/// `[w, h, C, B]`: `[C, pixels, B]`.
pub(super) fn attend(b: &Build<'_>, q: Tensor, (k, v): (Tensor, Tensor)) -> Result<Tensor> {
    let [channels, seeing, batch, _] = b.g.shape(q)?.dims();
    let [w, rows, ..] = b.g.shape(v)?.dims();
    let seen = w * rows; // the product of extents of a tensor, which exists
    Chunks {
        g: b.g,
        q,
        k: b.g.reshape(k, &[channels, seen, batch])?,
        v: b.g.reshape(v, &[seen, channels, batch])?,
        scale: (channels as f32).sqrt().recip(),
        most_rows: rows_at_a_time(seeing, seen, batch, b.piece_bytes(SCORES_BYTES)),
    }
    .rows(0..seeing)
}

/// How many of the pixels that are `seeing` look at all that are `seen` at a time, so that their scores take up to `bytes`.
fn rows_at_a_time(seeing: usize, seen: usize, batch: usize, bytes: usize) -> usize {
    let row_bytes = seen.saturating_mul(batch).saturating_mul(size_of::<f32>()).max(1);
    (bytes / row_bytes).max(seeing.div_ceil(MOST_CHUNKS)).max(1)
}

/// `softmax(scale * q k^T) v`, computed for some rows of `q` at a time: rows do not depend on each other.
struct Chunks<'a> {
    g: &'a Graph,
    /// `[C, pixels, B]`
    q: Tensor,
    /// `[C, pixels, B]`
    k: Tensor,
    /// `[pixels, C, B]`
    v: Tensor,
    scale: f32,
    most_rows: usize,
}

impl Chunks<'_> {
    /// The result for `rows` of `q`: `[C, rows, B]`. By halves, so that results are copied a few times only.
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        if rows.len() <= self.most_rows {
            return self.chunk(rows);
        }
        let middle = rows.start + rows.len() / 2;
        let (first, second) = (self.rows(rows.start..middle)?, self.rows(middle..rows.end)?);
        self.g.concat(first, second, 1)
    }

    fn chunk(&self, rows: Range<usize>) -> Result<Tensor> {
        let q = self.g.slice(self.q, 1, rows.start, rows.len())?;
        let scores = self.g.mul_mat(self.k, q)?; // [pixels, rows, B]
        let shares = self.g.soft_max(scores, None, self.scale)?;
        self.g.mul_mat(self.v, shares) // [C, rows, B]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole_quant::DType;

    use super::*;
    use crate::ggml::{Arena, Backend, Buffer, CancelFlag, Device, Ledger, Placed, devices};
    use crate::tensor::Shape;

    const CHANNELS: usize = 8;
    const BATCH: usize = 2;
    const SCALE: f32 = 0.5;

    fn placed(device: Device, dims: &[usize], values: impl Fn(usize) -> f32) -> Placed {
        let shape = Shape::new(dims).unwrap();
        let buffer = Buffer::allocate(device, 4 * shape.elements(), &Ledger::new(), "test").unwrap();
        let place = Placed::new(&buffer, 0, DType::F32, shape).unwrap();
        place.write(&(0..shape.elements()).flat_map(|i| values(i).to_ne_bytes()).collect::<Vec<_>>()).unwrap();
        place
    }

    fn q(i: usize) -> f32 {
        (i as f32 * 0.7).sin()
    }

    fn k(i: usize) -> f32 {
        (i as f32 * 1.3).cos()
    }

    fn v(i: usize) -> f32 {
        (i as f32 * 0.3).sin() + 0.1
    }

    /// What [`Chunks`] computes, with at most `most_rows` rows at a time.
    fn chunked(pixels: usize, most_rows: usize) -> Vec<f32> {
        let device = devices().unwrap()[0];
        let graph = Graph::new(device, 512).unwrap();
        let leaf = |dims: [usize; 3], values: fn(usize) -> f32| graph.leaf(&placed(device, &dims, values)).unwrap();
        let chunks = Chunks {
            g: &graph,
            q: leaf([CHANNELS, pixels, BATCH], q),
            k: leaf([CHANNELS, pixels, BATCH], k),
            v: leaf([pixels, CHANNELS, BATCH], v),
            scale: SCALE,
            most_rows,
        };
        let result = placed(device, &[CHANNELS, pixels, BATCH], |_| 0.0);
        graph.store(chunks.rows(0..pixels).unwrap(), &result).unwrap();
        let mut arena = Arena::new(device, &Ledger::new()).unwrap();
        arena.assign(&[&graph]).unwrap();
        Backend::new(device, 1, CancelFlag::new()).unwrap().compute(&graph, &mut arena).unwrap();
        let mut bytes = vec![0; result.bytes()];
        result.read(&mut bytes).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_ne_bytes(value)).collect()
    }

    /// The same from the definition, in double precision.
    fn defined(pixels: usize) -> Vec<f64> {
        let (mut out, all) = (Vec::new(), CHANNELS * pixels);
        for (image, row) in (0..BATCH).flat_map(|image| (0..pixels).map(move |row| (image, row))) {
            let at = |pixel: usize, c: usize| image * all + pixel * CHANNELS + c;
            let mut shares = Vec::new();
            for seen in 0..pixels {
                let score: f64 = (0..CHANNELS).map(|c| f64::from(q(at(row, c))) * f64::from(k(at(seen, c)))).sum();
                shares.push((f64::from(SCALE) * score).exp());
            }
            let total: f64 = shares.iter().sum();
            for c in 0..CHANNELS {
                let values = (0..pixels).map(|seen| f64::from(v(image * all + c * pixels + seen)));
                out.push(shares.iter().zip(values).map(|(share, value)| share * value).sum::<f64>() / total);
            }
        }
        out
    }

    #[test]
    fn chunks_change_nothing() {
        let pixels = 37;
        let expected = defined(pixels);
        // Not to the bit: ggml may take other kernels for other numbers of rows.
        for most_rows in [37, 36, 10, 3, 1] {
            let found = chunked(pixels, most_rows);
            assert_eq!(found.len(), expected.len());
            let close =
                found.iter().zip(&expected).all(|(&found, expected)| (f64::from(found) - expected).abs() < 1e-6);
            assert!(close, "{most_rows} rows at a time");
        }
    }

    #[test]
    fn chunks_are_as_large_as_allowed() {
        let most = |side: usize, batch| rows_at_a_time(side * side / 64, side * side / 64, batch, SCORES_BYTES);
        assert_eq!(most(1024, 1), 1024); // 16 chunks of 64 MiB
        assert_eq!(most(1024, 4), 256);
        assert!(most(256, 1) >= 1024); // all at once
        assert_eq!(most(8192, 1), 16384); // 64 chunks, of more bytes
        assert_eq!(rows_at_a_time(1, 1, usize::MAX, SCORES_BYTES), 1);
    }

    #[test]
    fn graphs_stay_small() {
        let (pixels, device) = (65_521, devices().unwrap()[0]);
        let graph = Graph::new(device, 768).unwrap();
        let leaf = |dims: [usize; 2]| graph.leaf(&placed(device, &dims, |_| 0.0)).unwrap();
        let (q, v) = (leaf([1, pixels]), leaf([pixels, 1]));
        let most_rows = rows_at_a_time(pixels, pixels, 1, 1);
        Chunks { g: &graph, q, k: q, v, scale: 1.0, most_rows }.rows(0..pixels).unwrap();
    }
}
