//! Where a picture comes into the tower, and where its tokens come out.

use super::config::{Config, MERGED};
use super::ports::EPS;
use super::windows::TOKENS;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope, WeightId};

/// A vector for each patch. The convolution takes each pixel once, so it is a product of a matrix and patches; both frames of a patch
/// are the same picture.
pub(super) struct PatchKernels {
    /// Those of the first frame and of the second.
    kernels: [WeightId; 2],
    numbers: usize,
    width: usize,
}

impl PatchKernels {
    /// Of patches of `side` pixels each way in so many colours.
    pub(super) fn declare(s: &mut Scope<'_>, [side, colours, width]: [usize; 3]) -> Result<PatchKernels> {
        let kernel = [side, side, colours, width];
        let first = s.weight("0.weight", &kernel, Role::ConvKernel)?;
        let second = s.weight("1.weight", &kernel, Role::ConvKernel)?;
        Ok(PatchKernels { kernels: [first, second], numbers: side * side * colours, width })
    }

    /// The vectors `[D, n]` of patches `x [C, n]`.
    pub(super) fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let matrix = |kernel| b.g.reshape(b.weight(kernel)?, &[self.numbers, self.width]);
        let [first, second] = self.kernels;
        b.g.add(b.g.mul_mat(matrix(first)?, x)?, b.g.mul_mat(matrix(second)?, x)?)
    }
}

/// What blocks begin with.
pub(super) struct Embed {
    kernels: PatchKernels,
    pixels: Port,
    hidden: Port,
}

impl Embed {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, (pixels, hidden): (Port, Port)) -> Result<Embed> {
        let sizes = [config.patch_size, config.in_channels, config.hidden_size];
        Ok(Embed { kernels: PatchKernels::declare(&mut s.sub("patch_embed.proj"), sizes)?, pixels, hidden })
    }
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.tokens(self.pixels, |x, at| b.write_tokens(self.hidden, at.start, self.kernels.build(b, x)?))
    }
}

/// Four neighbouring patches become one token of the language model.
pub(super) struct Merger {
    ln_q: RmsNorm,
    mlp_0: Linear,
    mlp_2: Linear,
    width: usize,
    hidden: Port,
    result: Port,
}

impl Merger {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, (hidden, result): (Port, Port)) -> Result<Merger> {
        let (width, merged) = (config.hidden_size, MERGED * MERGED * config.hidden_size);
        let mut s = s.sub("merger");
        let ln_q = RmsNorm::declare(&mut s.sub("ln_q"), "weight", width, EPS)?;
        let mlp_0 = Linear::declare(&mut s.sub("mlp.0"), merged, merged, Role::MatMul)?;
        let mlp_2 = Linear::declare(&mut s.sub("mlp.2"), merged, config.out_hidden_size, Role::MatMul)?;
        Ok(Merger { ln_q, mlp_0, mlp_2, width: merged, hidden, result })
    }
}

impl Block for Merger {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let merged = b.g.reshape(b.read(self.hidden)?, &[self.width, b.dim(TOKENS)?])?;
        for piece in b.token_ranges(b.dim(TOKENS)?) {
            let x = b.g.slice(merged, 1, piece.start, piece.len())?;
            let patches = b.g.reshape(x, &[self.width / (MERGED * MERGED), MERGED * MERGED * piece.len()])?;
            let normal = b.g.reshape(self.ln_q.build(b, patches)?, &[self.width, piece.len()])?;
            let inner = b.g.gelu_erf(self.mlp_0.build(b, normal)?)?;
            b.write_tokens(self.result, piece.start, self.mlp_2.build(b, inner)?)?;
        }
        Ok(())
    }
}
