//! From a picture's pixels to tokens: XLabs' `input_hint_block` (diffusers' `ControlNetConditioningEmbedding`).

use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Conv2d;
use crate::stage::{Block, Build, Port};
use crate::weights::Scope;

/// How many convolutions there are.
const CONVOLUTIONS: usize = 8;

/// Those that halve the picture: each second one, from the third on.
const STRIDES: [usize; CONVOLUTIONS] = [1, 1, 2, 1, 2, 1, 2, 1];

/// Convolutions with SiLU between them, and 2x2 patches of what they leave.
pub(super) struct Hint {
    convolutions: Vec<Conv2d>,
    patch: usize,
    from: Port,
    to: Port,
}

impl Hint {
    /// How many pixels become one, in both directions.
    pub(super) const FACTOR: usize = 8;

    /// From `inputs` channels to `channels`, in patches of `patch` by `patch`. The names are those of XLabs, whose list has the
    /// functions between the convolutions as well.
    pub(super) fn declare(
        s: &mut Scope<'_>,
        (inputs, channels): (usize, usize),
        patch: usize,
        (from, to): (Port, Port),
    ) -> Result<Hint> {
        let mut convolutions = Vec::with_capacity(CONVOLUTIONS);
        for (i, stride) in STRIDES.into_iter().enumerate() {
            let of = if i == 0 { inputs } else { channels };
            convolutions.push(Conv2d::declare(&mut s.sub(2 * i), of, channels, 3)?.with(stride, 1));
        }
        Ok(Hint { convolutions, patch, from, to })
    }

    /// `[w, h, C, 1]` as tokens `[C p p, (w/p)(h/p), 1]`: channel by channel, the patch row by row.
    fn tokens(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let (g, p) = (b.g, self.patch);
        let [w, h, channels, _] = g.shape(x)?.dims();
        let x = g.reshape(g.contiguous(x)?, &[p, w / p, p, h / p * channels])?; // [dx, X, dy, Y C]
        let x = g.contiguous(g.permute(x, [0, 2, 1, 3])?)?; // [dx, dy, X, Y C]
        let x = g.reshape(x, &[p * p, w / p * (h / p), channels])?;
        let x = g.contiguous(g.permute(x, [0, 2, 1, 3])?)?; // [dx dy, C, X Y]
        g.reshape(x, &[p * p * channels, w / p * (h / p), 1])
    }
}

impl Block for Hint {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut x = b.read(self.from)?;
        for (i, convolution) in self.convolutions.iter().enumerate() {
            if i > 0 {
                x = b.g.silu(x)?;
            }
            x = convolution.build(b, x)?;
        }
        b.write(self.to, self.tokens(b, x)?)
    }
}
