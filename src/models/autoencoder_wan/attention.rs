//! Attention of every pixel to all of the same frame, in one head as wide as there are channels. In two passes: keys and values of all
//! pixels, then the queries of some.

use super::norm::ChannelNorm;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Linear;
use crate::models::pixel_attention::attend;
use crate::models::route::Layer;
use crate::stage::{Build, Inner, Port, Reach};
use crate::weights::{Role, Scope};

/// The attention of the middle, added to what came in.
pub(super) struct MidAttention {
    norm: ChannelNorm,
    to_qkv: Linear,
    proj: Linear,
    channels: usize,
    /// `[C w, h, 1, B]`: which is `[C, pixels, B]`.
    keys: Inner,
    /// `[w, h, C, B]`
    values: Inner,
}

impl MidAttention {
    pub(super) fn declare(
        scope: &mut Scope<'_>,
        channels: usize,
        (keys, values): (Inner, Inner),
    ) -> Result<MidAttention> {
        let norm = ChannelNorm::declare(&mut scope.sub("norm"), channels)?;
        // Convolutions of one pixel, and like those never quantized.
        let mut linear =
            |name, outputs| Linear::declare(&mut scope.sub(name), channels, outputs, Role::SensitiveMatMul);
        let (to_qkv, proj) = (linear("to_qkv", 3 * channels)?, linear("proj", channels)?);
        Ok(MidAttention { norm, to_qkv, proj, channels, keys, values })
    }

    /// `x [w, rows, C, B]`, normalised: `[C, pixels, B]`.
    fn normal(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let [w, rows, channels, batch] = b.g.shape(x)?.dims();
        b.g.reshape(self.norm.across(b, x)?, &[channels, w * rows, batch])
    }

    /// Queries, keys or values, which are part 0, 1 or 2, of `normal [C, pixels, B]`.
    fn part(&self, b: &Build<'_>, normal: Tensor, part: usize) -> Result<Tensor> {
        self.to_qkv.build_outputs(b, normal, part * self.channels..(part + 1) * self.channels)
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
            let normal = self.normal(b, x)?;
            let k = self.part(b, normal, 1)?; // [C, pixels, B]
            b.write_rows(self.keys, b.g.reshape(k, &[channels * w, rows, 1, batch])?)?;
            let v = b.g.permute(self.part(b, normal, 2)?, [1, 0, 2, 3])?; // [pixels, C, B]
            return b.write_rows(self.values, b.g.reshape(v, &dims)?);
        }
        let (k, v) = (b.read_rows(self.keys, Reach::All)?, b.read_rows(self.values, Reach::All)?);
        let x = b.read_rows(from, Reach::Around(0))?;
        let q = self.part(b, self.normal(b, x)?, 0)?;
        let attended = attend(b, q, (k, v))?;
        let out = b.g.permute(self.proj.build(b, attended)?, [1, 0, 2, 3])?; // [pixels, C, B]
        b.write_rows(to, b.g.add(x, b.g.reshape(out, &b.g.shape(x)?.dims())?)?)
    }
}
