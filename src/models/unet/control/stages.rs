//! What a ControlNet has that its UNet does not.

use crate::Result;
use crate::models::layers::Conv2d;
use crate::models::unet::maps::first;
use crate::stage::{Block, Build, Port};

/// One of the convolutions that a picture's pixels go through.
pub(super) struct Hint {
    pub(super) conv: Conv2d,
    /// Whether it takes what SiLU makes of what came before.
    pub(super) activated: bool,
    pub(super) from: Port,
    pub(super) to: Port,
}

impl Block for Hint {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let x = b.read(self.from)?; // [W, H, c, 1]
        let x = if self.activated { b.g.silu(x)? } else { x };
        b.write(self.to, self.conv.build(b, x)?)
    }
}

/// The latents, and what became of the picture added to them.
pub(super) struct Embed {
    pub(super) conv: Conv2d,
    /// How many channels of the latents it takes: what stands beside them is the UNet's.
    pub(super) channels: usize,
    /// `[w, h, c, B]`
    pub(super) latents: Port,
    /// `[w, h, C, 1]`
    pub(super) hint: Port,
    /// `[w, h, C, N]`
    pub(super) to: Port,
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let latents = first(b, b.read(self.latents)?, 2, self.channels)?;
        let [.., items] = b.shape(self.to)?.dims();
        let latents = b.g.contiguous(first(b, latents, 3, items)?)?;
        b.write(self.to, b.g.add(self.conv.build(b, latents)?, b.read(self.hint)?)?)
    }
}

/// What is added to a map of the UNet, in its place.
pub(super) struct Residual {
    pub(super) conv: Conv2d,
    /// `[w, h, C, N]`
    pub(super) from: Port,
    /// `[w, h, C, B]`: of the UNet.
    pub(super) to: Port,
    /// `[R]`, and the position there of what it is multiplied with.
    pub(super) scale: (Port, usize),
    /// Whether it is averaged over all pixels.
    pub(super) pooled: bool,
}

impl Block for Residual {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (scales, at) = self.scale;
        let mut residual = self.conv.build(b, b.read(self.from)?)?; // [w, h, C, N]
        let [w, h, channels, items] = b.g.shape(residual)?.dims();
        if self.pooled {
            let pixels = b.g.reshape(residual, &[w * h, channels, items])?;
            // A row of equal shares that add up to 1.
            let row = b.g.slice(b.g.slice(pixels, 1, 0, 1)?, 2, 0, 1)?;
            let shares = b.g.soft_max(b.g.contiguous(row)?, None, 0.0)?;
            residual = b.g.reshape(b.g.mul_mat(shares, pixels)?, &[1, 1, channels, items])?;
        }
        let residual = b.g.mul(residual, b.g.slice(b.read(scales)?, 0, at, 1)?)?;
        let map = b.read(self.to)?;
        let [.., batch] = b.g.shape(map)?.dims();
        let sum = b.g.add(first(b, map, 3, items)?, residual)?;
        let rest = batch - items;
        b.write(self.to, if rest == 0 { sum } else { b.g.concat(sum, b.g.slice(map, 3, items, rest)?, 3)? })
    }
}
