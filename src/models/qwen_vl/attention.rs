//! Attention of patches, which both towers have.

use super::config::MERGED;
use super::ports::Positions;
use super::windows::PATCHES;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::Linear;
use crate::stage::{Build, Port};
use crate::weights::{Role, Scope};
use crate::{Result, reserve};

/// The base of the rotary frequencies.
const THETA: f32 = 10000.0;

/// What patches see of each other.
pub(super) struct SelfAttention {
    qkv: Linear,
    proj: Linear,
    pub(super) width: usize,
    pub(super) heads: usize,
    hidden: Port,
    positions: Positions,
}

impl SelfAttention {
    /// Of patches of `width` numbers in so many heads, which the first port carries.
    pub(super) fn declare(
        s: &mut Scope<'_>,
        (width, heads): (usize, usize),
        (hidden, positions): (Port, Positions),
    ) -> Result<SelfAttention> {
        let qkv = Linear::declare(&mut s.sub("attn.qkv"), width, 3 * width, Role::MatMul)?;
        let proj = Linear::declare(&mut s.sub("attn.proj"), width, width, Role::MatMul)?;
        Ok(SelfAttention { qkv, proj, width, heads, hidden, positions })
    }

    /// Queries, keys or values, which are part 0, 1 or 2, of `x [D, n]`: `[d, H, n]`.
    pub(super) fn part(&self, b: &Build<'_>, x: Tensor, part: usize) -> Result<Tensor> {
        let outputs = part * self.width..(part + 1) * self.width;
        b.g.split_rows(self.qkv.build_outputs(b, x, outputs)?, self.heads)
    }

    /// Queries or keys `x [d, H, n]` of the patches from `start` on, turned to their positions.
    pub(super) fn turn(&self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, patches, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, patches);
        b.g.rotate_halves(x, of(self.positions.cos)?, of(self.positions.sin)?)
    }

    /// `x` with what it saw, `attended`, added.
    pub(super) fn seen(&self, b: &Build<'_>, x: Tensor, attended: Tensor) -> Result<Tensor> {
        b.g.add(x, self.proj.build(b, attended)?)
    }

    /// Every patch looks at all: `normal` is what of it looks and is looked at, and `finish` makes of it, with what it saw added, what
    /// goes on.
    pub(super) fn all(
        &self,
        b: &Build<'_>,
        normal: impl Fn(Tensor) -> Result<Tensor>,
        finish: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let attention = Attention::new(b, [self.width / self.heads, self.heads, b.dim(PATCHES)?, 1])?;
        b.tokens(self.hidden, |x, at| {
            let normal = normal(x)?;
            let k = self.turn(b, self.part(b, normal, 1)?, at.start)?;
            attention.set(b, at.start, (k, self.part(b, normal, 2)?))
        })?;
        b.tokens(self.hidden, |x, at| {
            let q = self.turn(b, self.part(b, normal(x)?, 0)?, at.start)?;
            let x = self.seen(b, x, attention.attend(b, q)?)?;
            b.write_tokens(self.hidden, at.start, finish(x)?)
        })
    }
}

/// The patches of tokens that come as (row, column), as (row, column) each: the four of a token side by side.
pub(super) fn patches_of(tokens: impl Iterator<Item = [usize; 2]>) -> impl Iterator<Item = [usize; 2]> {
    const OFFSETS: [[usize; 2]; 4] = [[0, 0], [0, 1], [1, 0], [1, 1]];
    tokens.flat_map(|[row, column]| OFFSETS.map(|[dy, dx]| [MERGED * row + dy, MERGED * column + dx]))
}

/// The rotary tables `(cos, sin)`, `[width, N]` each, of `count` patches, with the sign of the rotation in the second: the first half of
/// each half of a head turns by a patch's row, the second by its column.
pub(super) fn rotary(
    width: usize,
    count: usize,
    patches: impl Iterator<Item = [usize; 2]>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let axis = width / 2;
    let frequencies: Vec<f32> = (0..axis / 2).map(|i| 1.0 / THETA.powf((2 * i) as f32 / axis as f32)).collect();
    let numbers = count.saturating_mul(width);
    let mut cos = reserve::room("the rotary tables", numbers)?;
    let mut sin = reserve::room("the rotary tables", numbers)?;
    for patch in patches {
        let angles = patch.into_iter().flat_map(|at| frequencies.iter().map(move |each| at as f32 * each));
        cos.extend(angles.clone().chain(angles.clone()).map(f32::cos));
        sin.extend(angles.clone().map(|angle| -angle.sin()).chain(angles.map(f32::sin)));
    }
    Ok((cos, sin))
}

/// The colours of pixels as a tower takes them.
pub(super) struct Colours {
    /// What is taken from each of 0..=1.
    pub(super) mean: [f32; 3],
    /// What the rest is divided by.
    pub(super) std: [f32; 3],
}

/// The pixels `[C, N]` of `patches` of `side` pixels of a picture of `rgb`, `[3, width, rows]` bytes: channel by channel, and of each the
/// pixels row by row.
pub(super) fn pixels(
    colours: &Colours,
    (side, width): (usize, usize),
    rgb: &[u8],
    patches: impl Iterator<Item = [usize; 2]>,
) -> Result<Vec<f32>> {
    let Colours { mean, std } = colours;
    let mut pixels = reserve::room("the patches", rgb.len())?;
    for [row, column] in patches {
        for channel in 0..3 {
            for y in row * side..(row + 1) * side {
                let start = (y * width + column * side) * 3 + channel;
                let bytes = rgb.iter().skip(start).step_by(3).take(side);
                pixels.extend(bytes.map(|&byte| (f32::from(byte) / 255.0 - mean[channel]) / std[channel]));
            }
        }
    }
    Ok(pixels)
}
