//! Attention of every pixel to all, in one head as wide as there are channels.

use std::ops::Range;

use super::config::NORM_EPS;
use super::route::Layer;
use crate::Result;
use crate::ggml::{Graph, Tensor};
use crate::models::layers::{GroupNorm, Linear};
use crate::stage::Build;
use crate::weights::{Role, Scope};

/// How many bytes of scores are made at a time. Flash attention, which would need none, has no kernels for heads so wide.
const SCORES_BYTES: usize = 64 << 20;

/// In how many pieces the scores are made at most, so that graphs stay small however large the picture is.
const MOST_CHUNKS: usize = 64;

/// The attention of the middle, added to what came in.
pub(super) struct MidAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    proj_out: Linear,
    channels: usize,
}

impl MidAttention {
    pub(super) fn declare(scope: &mut Scope<'_>, channels: usize, groups: usize) -> Result<MidAttention> {
        let norm = GroupNorm::declare(&mut scope.sub("norm"), channels, groups, NORM_EPS)?;
        // Originally convolutions of one pixel, and like those never quantized.
        let mut linear = |name| Linear::declare(&mut scope.sub(name), channels, channels, Role::SensitiveMatMul);
        Ok(MidAttention {
            norm,
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            proj_out: linear("proj_out")?,
            channels,
        })
    }
}

impl Layer for MidAttention {
    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let [w, h, channels, batch] = b.g.shape(x)?.dims();
        let pixels = w * h; // both are extents of a tensor, whose product exists
        let normal = b.g.reshape(self.norm.build(b, x)?, &[pixels, channels, batch])?;
        let normal = b.g.contiguous(b.g.permute(normal, [1, 0, 2, 3])?)?; // [C, pixels, B]
        let (q, k) = (self.q.build(b, normal)?, self.k.build(b, normal)?);
        let v = b.g.permute(self.v.build(b, normal)?, [1, 0, 2, 3])?;
        let attended = Chunks {
            g: b.g,
            q,
            k,
            v: b.g.contiguous(v)?, // [pixels, C, B]
            scale: (self.channels as f32).sqrt().recip(),
            most_rows: rows_at_a_time(pixels, batch, SCORES_BYTES),
        }
        .rows(0..pixels)?;
        let out = b.g.permute(self.proj_out.build(b, attended)?, [1, 0, 2, 3])?; // [pixels, C, B]
        b.g.add(x, b.g.reshape(out, &[w, h, channels, batch])?)
    }
}

/// How many pixels look at all `pixels` at a time, so that their scores take up to `bytes`.
fn rows_at_a_time(pixels: usize, batch: usize, bytes: usize) -> usize {
    let row_bytes = pixels.saturating_mul(batch).saturating_mul(size_of::<f32>()).max(1);
    (bytes / row_bytes).max(pixels.div_ceil(MOST_CHUNKS)).max(1)
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
