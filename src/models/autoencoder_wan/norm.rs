//! Norms over the channels of one pixel.

use crate::Result;
use crate::ggml::Tensor;
use crate::stage::Build;
use crate::weights::{Role, Scope, WeightId};

/// What is added to the mean square in norms. The reference divides by a length of at least 1e-12 instead.
const EPS: f32 = 1e-24;

/// The root mean square of a pixel's channels is brought to 1, and each channel multiplied.
pub(super) struct ChannelNorm {
    gamma: WeightId,
}

impl ChannelNorm {
    pub(super) fn declare(scope: &mut Scope<'_>, channels: usize) -> Result<ChannelNorm> {
        Ok(ChannelNorm { gamma: scope.weight("gamma", &[channels], Role::Vector)? })
    }

    /// `x [w, h, C, B]`, normalised: `[C, w, h, B]`.
    pub(super) fn across(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let across = b.g.contiguous(b.g.permute(x, [1, 2, 0, 3])?)?;
        b.g.mul(b.g.rms_norm(across, EPS)?, b.weight(self.gamma)?)
    }

    /// `x [w, h, C, B]`, normalised and through SiLU, in the same order.
    pub(super) fn activated(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        b.g.channel_norm_silu(x, b.weight(self.gamma)?, EPS)
    }
}
