//! Attention of every pixel to all, in one head as wide as there are channels. In two passes: keys and values of all pixels,
//! then the queries of some.

use super::config::NORM_EPS;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{GroupNorm, Linear};
use crate::models::pixel_attention::attend;
use crate::models::route::Layer;
use crate::stage::{Build, Inner, Port, Reach};
use crate::weights::{Role, Scope};

/// The attention of the middle, added to what came in.
pub(super) struct MidAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    proj_out: Linear,
    /// `[C w, h, 1, B]`: which is `[C, pixels, B]`.
    keys: Inner,
    /// `[w, h, C, B]`
    values: Inner,
}

impl MidAttention {
    pub(super) fn declare(
        scope: &mut Scope<'_>,
        channels: usize,
        groups: usize,
        (keys, values): (Inner, Inner),
    ) -> Result<MidAttention> {
        let norm = GroupNorm::declare(&mut scope.sub("norm"), channels, groups, NORM_EPS)?;
        // Originally convolutions of one pixel, and like those never quantized.
        let mut linear = |name| Linear::declare(&mut scope.sub(name), channels, channels, Role::SensitiveMatMul);
        Ok(MidAttention {
            norm,
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            proj_out: linear("proj_out")?,
            keys,
            values,
        })
    }

    /// `x [w, rows, C, B]`, some of `from`, normalised: `[C, pixels, B]`.
    fn normal(&self, b: &Build<'_>, from: Port, x: Tensor) -> Result<Tensor> {
        let [w, rows, channels, batch] = b.g.shape(x)?.dims();
        let normal = b.g.reshape(self.norm.build_rows(b, from, x)?, &[w * rows, channels, batch])?;
        b.g.contiguous(b.g.permute(normal, [1, 0, 2, 3])?)
    }
}

impl Layer for MidAttention {
    fn passes(&self) -> usize {
        2
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()> {
        if pass == 0 {
            let x = b.read_rows(from, Reach::Around(0))?;
            let dims @ [w, rows, channels, batch] = b.g.shape(x)?.dims();
            let normal = self.normal(b, from, x)?;
            let k = self.k.build(b, normal)?; // [C, pixels, B]
            b.write_rows(self.keys, b.g.reshape(k, &[channels * w, rows, 1, batch])?)?;
            let v = b.g.permute(self.v.build(b, normal)?, [1, 0, 2, 3])?; // [pixels, C, B]
            return b.write_rows(self.values, b.g.reshape(v, &dims)?);
        }
        let (k, v) = (b.read_rows(self.keys, Reach::All)?, b.read_rows(self.values, Reach::All)?);
        let x = b.read_rows(from, Reach::Around(0))?;
        let attended = attend(b, self.q.build(b, self.normal(b, from, x)?)?, (k, v))?;
        let out = b.g.permute(self.proj_out.build(b, attended)?, [1, 0, 2, 3])?; // [pixels, C, B]
        b.write_rows(to, b.g.add(x, b.g.reshape(out, &b.g.shape(x)?.dims())?)?)
    }
}
