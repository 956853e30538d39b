//! What doubles and halves pixels and frames, and the shortcuts beside it, which have no weights.

use super::causal::{Chain, Memory};
use crate::ggml::Tensor;
use crate::models::layers::Conv2d;
use crate::models::route::{Layer, Pixels, Route};
use crate::stage::{Build, Port, Reach};
use crate::weights::Scope;
use crate::{Error, Result};

/// Every pixel doubled both ways, then a convolution.
struct Upsample {
    conv: Conv2d,
}

impl Layer for Upsample {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let halo = self.conv.halo();
        b.write_rows(to, self.conv.build_doubled(b, b.read_rows(from, Reach::Half(halo))?)?)
    }
}

/// A convolution at every other pixel, with zeros at the right and at the bottom only.
struct Downsample {
    conv: Conv2d,
}

impl Layer for Downsample {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let x = b.read_rows(from, Reach::Twice(1))?;
        let (_, at_bottom) = b.at_edges();
        b.write_rows(to, self.conv.build(b, b.g.pad(x, 1, usize::from(at_bottom))?)?)
    }
}

/// The planes of a kernel over three frames of single pixels, and what it remembers.
struct TimeConv {
    planes: [Conv2d; 3],
    memory: Memory,
}

impl TimeConv {
    fn declare(scope: &mut Scope<'_>, inputs: usize, outputs: usize, memory: Memory) -> Result<TimeConv> {
        let mut older = |plane| Conv2d::kernel(scope, &format!("weight.{plane}"), (inputs, outputs), 1);
        let (first, second) = (older(0)?, older(1)?);
        Ok(TimeConv { planes: [first, second, Conv2d::declare(scope, inputs, outputs, 1)?], memory })
    }

    /// The sum of what each plane makes of its frames.
    fn sum(&self, b: &Build<'_>, frames: [Tensor; 3]) -> Result<Tensor> {
        let [first, second, third] = &self.planes;
        let sum = first.build_rows(b, frames[0])?;
        let sum = second.build_rows_added(b, frames[1], sum)?;
        third.build_rows_added(b, frames[2], sum)
    }
}

/// Two frames of each, that sees the two before it.
struct DoubleFrames(TimeConv);

impl Layer for DoubleFrames {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let x = b.read_rows(from, Reach::Around(0))?;
        let [w, rows, channels, frames] = b.g.shape(x)?.dims();
        let all = self.0.memory.with_past(b, x, Reach::Around(0))?;
        let seen = |first| b.g.slice(all, 3, first, frames);
        let y = self.0.sum(b, [seen(0)?, seen(1)?, seen(2)?])?; // [w, rows, 2 C, T]
        self.0.memory.leave(b, x)?;
        // Half of the channels are the first of two frames.
        b.write_rows(to, b.g.reshape(y, &[w, rows, channels, 2 * frames])?)
    }
}

/// One frame of each two, that sees the one before them.
struct HalveFrames(TimeConv);

impl Layer for HalveFrames {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let x = b.read_rows(from, Reach::Around(0))?;
        let [.., frames] = b.g.shape(x)?.dims();
        let all = self.0.memory.with_past(b, x, Reach::Around(0))?;
        // The first of the past is one too many.
        let seen = |first| every_other(b, b.g.slice(all, 3, first, frames)?, 3, 0);
        let y = self.0.sum(b, [seen(1)?, seen(2)?, every_other(b, x, 3, 1)?])?;
        self.0.memory.leave(b, x)?;
        b.write_rows(to, y)
    }
}

/// Leaves the newest frame to a layer that halves the next ones.
struct Leave(Memory);

impl Layer for Leave {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, _to: Port) -> Result<()> {
        self.0.leave_map(b, from)
    }
}

/// Of each two neighbours along dimension `dim` the first or the second, which are `at` 0 and 1.
fn every_other(b: &Build<'_>, x: Tensor, dim: usize, at: usize) -> Result<Tensor> {
    let mut dims = b.g.shape(x)?.dims();
    let [w, h, c, n] = dims;
    let (pairs, at_dim) = match dim {
        0 => ([2, w / 2 * h, c, n], 0),
        1 => ([w, 2, h / 2 * c, n], 1),
        _ => ([w * h * c, 2, n / 2, 1], 1),
    };
    let one = b.g.contiguous(b.g.slice(b.g.reshape(x, &pairs)?, at_dim, at, 1)?)?;
    dims[dim] /= 2;
    b.g.reshape(one, &dims)
}

/// `parts`, which are equally large, such that neighbours along dimension `dim` are one of each.
fn interleaved(b: &Build<'_>, parts: &[Tensor], dim: usize) -> Result<Tensor> {
    let [first, rest @ ..] = parts else { return Err(Error::graph("interleave", "nothing")) };
    let mut dims = b.g.shape(*first)?.dims();
    let [w, h, c, n] = dims;
    let (single, at_dim) = match dim {
        0 => ([1, w * h, c, n], 0),
        1 => ([w, 1, h * c, n], 1),
        2 => ([w * h, 1, c, n], 1),
        _ => ([w * h * c, 1, n, 1], 1),
    };
    let mut all = b.g.reshape(*first, &single)?;
    for part in rest {
        all = b.g.concat(all, b.g.reshape(*part, &single)?, at_dim)?;
    }
    dims[dim] *= parts.len();
    b.g.reshape(all, &dims)
}

/// How a shortcut changes the map at the beginning of a level, and which frames it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    /// Channels before and after.
    pub(super) channels: (usize, usize),
    /// By how much frames are multiplied or divided: 1 or 2.
    pub(super) frames: usize,
    /// By how much the sides are: 1 or 2.
    pub(super) side: usize,
    /// Whether there is one frame, which is the first of all.
    pub(super) first: bool,
}

impl Change {
    /// Numbers of the larger map for one of the smaller in each channel.
    fn factor(&self) -> usize {
        self.frames * self.side * self.side
    }

    /// Whether encoders have such a shortcut that is computed here: a channel of the result is a mean within one of the map.
    pub(super) fn is_mean(&self) -> bool {
        let (inputs, outputs) = self.channels;
        let parts = outputs / inputs.max(1);
        outputs.is_multiple_of(inputs) && self.factor().is_multiple_of(parts)
    }

    /// The same of decoders: a channel of the map is in one of the result only.
    pub(super) fn is_copy(&self) -> bool {
        let (inputs, outputs) = self.channels;
        let parts = inputs / outputs.max(1);
        inputs.is_multiple_of(outputs) && self.factor().is_multiple_of(parts)
    }
}

/// What was there at the beginning of a level, added to what came of it.
struct Shortcut {
    of: Port,
    change: Change,
    shrinks: bool,
}

impl Layer for Shortcut {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let reach = match (self.change.side, self.shrinks) {
            (1, _) => Reach::Around(0),
            (_, true) => Reach::Twice(0),
            (_, false) => Reach::Half(0),
        };
        let (x, before) = (b.read_rows(from, Reach::Around(0))?, b.read_rows(self.of, reach)?);
        let beside = if self.shrinks { self.change.shrunk(b, before)? } else { self.change.grown(b, before)? };
        b.write_rows(to, b.g.add(x, beside)?)
    }
}

impl Change {
    /// Means of neighbouring numbers. The inputs are taken apart into one channel for each place of a block, by frame, row and column,
    /// slowest first; an output is the mean of some of these channels.
    fn shrunk(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let (inputs, outputs) = self.channels;
        let (factor, parts) = (self.factor(), outputs / inputs);
        if factor == 1 {
            return Ok(x);
        }
        let mut numbers = Vec::with_capacity(factor);
        for frame in 0..self.frames {
            let is_before_all = self.first && frame + 1 < self.frames;
            let frames = if self.frames == 1 || self.first { x } else { every_other(b, x, 3, frame)? };
            for (row, column) in (0..self.side).flat_map(|row| (0..self.side).map(move |column| (row, column))) {
                let of_row = if self.side == 1 { frames } else { every_other(b, frames, 1, row)? };
                let one = if self.side == 1 { of_row } else { every_other(b, of_row, 0, column)? };
                numbers.push(if is_before_all { b.g.scale(one, 0.0)? } else { one });
            }
        }
        let mut means = Vec::with_capacity(parts);
        for numbers in numbers.chunks(factor / parts) {
            let mut sum = numbers[0];
            for &number in &numbers[1..] {
                sum = b.g.add(sum, number)?;
            }
            means.push(b.g.scale(sum, (numbers.len() as f32).recip())?);
        }
        interleaved(b, &means, 2)
    }

    /// Each number doubled in every direction, or several channels side by side: column, row and frame, fastest first.
    fn grown(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let (inputs, outputs) = self.channels;
        let (factor, parts) = (self.factor(), inputs / outputs);
        let [w, h, _, frames] = b.g.shape(x)?.dims();
        let mut channels = Vec::with_capacity(parts);
        for part in 0..parts {
            let split = b.g.reshape(x, &[w * h, parts, outputs, frames])?;
            let one = b.g.contiguous(b.g.slice(split, 1, part, 1)?)?;
            channels.push(b.g.reshape(one, &[w, h, outputs, frames])?);
        }
        // Which of them gives a number of the result.
        let mut all = Vec::with_capacity(self.frames);
        for frame in if self.first { self.frames - 1..self.frames } else { 0..self.frames } {
            let [a, c, d, e] = [0, 1, 2, 3].map(|number| channels[(4 * frame + number) / (factor / parts)]);
            let doubled = if [c, d, e] == [a; 3] {
                b.g.upscale_2x(a)?
            } else {
                let (above, below) = (interleaved(b, &[a, c], 0)?, interleaved(b, &[d, e], 0)?);
                interleaved(b, &[above, below], 1)?
            };
            let [first, rows] = b.rows_of_doubled(h, 0)?;
            all.push(b.g.contiguous(b.g.slice(doubled, 1, first, rows)?)?);
        }
        interleaved(b, &all, 3)
    }
}

impl Route {
    /// Adds what doubles the pixels of the decoder, with `outputs` channels then.
    pub(super) fn doubled(&mut self, name: &str, outputs: usize) -> Result<()> {
        let Pixels { channels, factor } = self.pixels();
        self.lead((name, name), Pixels { channels: outputs, factor: 2 * factor }, |scope| {
            let conv = Conv2d::declare(&mut scope.sub("decoder").sub(name).sub("resample.1"), channels, outputs, 3)?;
            Ok(Upsample { conv })
        })
    }

    /// Adds what halves the pixels of the encoder.
    pub(super) fn halved(&mut self, name: &str) -> Result<()> {
        let Pixels { channels, factor } = self.pixels();
        self.lead((name, name), Pixels { channels, factor: factor / 2 }, |scope| {
            let conv = Conv2d::declare(&mut scope.sub("encoder").sub(name).sub("resample.1"), channels, channels, 3)?;
            Ok(Downsample { conv: conv.with(2, 0) })
        })
    }

    /// Adds what makes two frames of each of the decoder's `frames`. The first frame of all stays one, and those behind it do not see it.
    pub(super) fn frames_doubled(&mut self, chain: Chain, name: &str, frames: usize) -> Result<()> {
        let (pixels, name) = (self.pixels(), format!("{name}.time_conv"));
        if chain != Chain::Following {
            return Ok(());
        }
        let memory = self.memory(chain, &format!("decoder.{name}"), pixels);
        self.set_frames(2 * frames);
        self.lead((&name, &name), pixels, |scope| {
            let mut scope = scope.sub("decoder");
            TimeConv::declare(&mut scope.sub(&name), pixels.channels, 2 * pixels.channels, memory).map(DoubleFrames)
        })
    }

    /// Adds what makes one frame of each two of the encoder's `frames`. The first frame of all stays one.
    pub(super) fn frames_halved(&mut self, chain: Chain, name: &str, frames: usize) -> Result<()> {
        let (pixels, name) = (self.pixels(), format!("{name}.time_conv"));
        let memory = self.memory(chain, &format!("encoder.{name}"), pixels);
        match chain {
            Chain::Picture => Ok(()),
            Chain::First => self.keep(&name, |_| Ok(Leave(memory))),
            Chain::Following => {
                self.set_frames(frames / 2);
                self.lead((&name, &name), pixels, |scope| {
                    let mut scope = scope.sub("encoder");
                    TimeConv::declare(&mut scope.sub(&name), pixels.channels, pixels.channels, memory).map(HalveFrames)
                })
            }
        }
    }

    /// Adds what was at `of` when a level began, changed as its map was.
    pub(super) fn shortcut(&mut self, name: &str, of: Port, change: Change, shrinks: bool) -> Result<()> {
        self.keep(&format!("{name}.shortcut"), |_| Ok(Shortcut { of, change, shrinks }))
    }
}
