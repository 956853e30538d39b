//! The layers that levels are made of.

use super::attention::MidAttention;
use super::config::Config;
use super::norm::ChannelNorm;
use crate::Result;
use crate::models::layers::Conv2d;
use crate::models::route::{Layer, Pixels, Route};
use crate::stage::{Build, Inner, Port, Reach};
use crate::weights::Scope;

/// Two convolutions, each after a norm and SiLU, added to what came in.
struct ResidualBlock {
    norm1: ChannelNorm,
    conv1: Conv2d,
    norm2: ChannelNorm,
    conv2: Conv2d,
    /// What brings the input to the output's channels, if these differ.
    shortcut: Option<Conv2d>,
    /// What the first convolution gives, `[w, h, outputs, B]`.
    hidden: Inner,
}

impl ResidualBlock {
    fn declare(scope: &mut Scope<'_>, (inputs, outputs): (usize, usize), hidden: Inner) -> Result<ResidualBlock> {
        Ok(ResidualBlock {
            norm1: ChannelNorm::declare(&mut scope.sub("residual.0"), inputs)?,
            conv1: Conv2d::declare(&mut scope.sub("residual.2"), inputs, outputs, 3)?,
            norm2: ChannelNorm::declare(&mut scope.sub("residual.3"), outputs)?,
            conv2: Conv2d::declare(&mut scope.sub("residual.6"), outputs, outputs, 3)?,
            shortcut: match inputs == outputs {
                true => None,
                false => Some(Conv2d::declare(&mut scope.sub("shortcut"), inputs, outputs, 1)?),
            },
            hidden,
        })
    }
}

impl Layer for ResidualBlock {
    fn passes(&self) -> usize {
        2
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()> {
        if pass == 0 {
            let x = b.read_rows(from, Reach::Around(self.conv1.halo()))?;
            return b.write_rows(self.hidden, self.conv1.build_rows(b, self.norm1.activated(b, x)?)?);
        }
        let y = b.read_rows(self.hidden, Reach::Around(self.conv2.halo()))?;
        let x = b.read_rows(from, Reach::Around(0))?;
        let shortcut = self.shortcut.map_or(Ok(x), |conv| conv.build(b, x))?;
        let y = self.conv2.build_rows(b, self.norm2.activated(b, y)?)?;
        b.write_rows(to, b.g.add(y, shortcut)?)
    }
}

/// Every pixel doubled both ways, then a convolution that halves the channels.
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

/// The first convolution; the decoder's has another, of one pixel, before it.
pub(super) struct First {
    before: Option<Conv2d>,
    conv: Conv2d,
}

impl First {
    /// Of the encoder, from a picture to `outputs` channels.
    pub(super) fn encoder(scope: &mut Scope<'_>, config: &Config, outputs: usize) -> Result<First> {
        let conv = Conv2d::declare(&mut scope.sub("encoder.conv1"), config.input_channels, outputs, 3)?;
        Ok(First { before: None, conv })
    }

    /// Of the decoder, from latents to `outputs` channels.
    pub(super) fn decoder(scope: &mut Scope<'_>, config: &Config, outputs: usize) -> Result<First> {
        let before = Conv2d::declare(&mut scope.sub("conv2"), config.z_dim, config.z_dim, 1)?;
        let conv = Conv2d::declare(&mut scope.sub("decoder.conv1"), config.z_dim, outputs, 3)?;
        Ok(First { before: Some(before), conv })
    }
}

impl Layer for First {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let x = b.read_rows(from, Reach::Around(self.conv.halo()))?;
        let x = self.before.map_or(Ok(x), |conv| conv.build(b, x))?;
        b.write_rows(to, self.conv.build_rows(b, x)?)
    }
}

/// The last convolution, after a norm and SiLU; the encoder's has another, of one pixel, after it.
pub(super) struct Head {
    norm: ChannelNorm,
    conv: Conv2d,
    after: Option<Conv2d>,
}

impl Head {
    /// Of the encoder, from `inputs` channels to the moments.
    pub(super) fn encoder(scope: &mut Scope<'_>, config: &Config, inputs: usize) -> Result<Head> {
        let outputs = 2 * config.z_dim;
        let head = Head::declare(&mut scope.sub("encoder.head"), inputs, outputs)?;
        let after = Conv2d::declare(&mut scope.sub("conv1"), outputs, outputs, 1)?;
        Ok(Head { after: Some(after), ..head })
    }

    /// Of the decoder, from `inputs` channels to the picture.
    pub(super) fn decoder(scope: &mut Scope<'_>, config: &Config, inputs: usize) -> Result<Head> {
        Head::declare(&mut scope.sub("decoder.head"), inputs, config.input_channels)
    }

    fn declare(scope: &mut Scope<'_>, inputs: usize, outputs: usize) -> Result<Head> {
        let norm = ChannelNorm::declare(&mut scope.sub(0), inputs)?;
        Ok(Head { norm, conv: Conv2d::declare(&mut scope.sub(2), inputs, outputs, 3)?, after: None })
    }
}

impl Layer for Head {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let x = b.read_rows(from, Reach::Around(self.conv.halo()))?;
        let y = self.conv.build_rows(b, self.norm.activated(b, x)?)?;
        b.write_rows(to, self.after.map_or(Ok(y), |conv| conv.build(b, y))?)
    }
}

impl Route {
    /// Adds the residual block `name` of `side` (`encoder` or `decoder`) that gives `outputs` channels.
    pub(super) fn residual(&mut self, side: &str, name: &str, outputs: usize) -> Result<()> {
        let pixels = self.pixels();
        let inputs = pixels.channels;
        let hidden = self.inner(&format!("{name}.hidden"), Pixels { channels: outputs, ..pixels });
        let declare =
            |scope: &mut Scope<'_>| ResidualBlock::declare(&mut scope.sub(side).sub(name), (inputs, outputs), hidden);
        if inputs == outputs {
            return self.keep(name, declare);
        }
        self.lead((name, name), Pixels { channels: outputs, ..pixels }, declare)
    }

    /// Adds the middle of `side`: a residual block, attention, another residual block.
    pub(super) fn residuals_with_attention(&mut self, side: &str) -> Result<()> {
        let channels = self.pixels().channels;
        self.residual(side, "middle.0", channels)?;
        let pixels = self.pixels();
        let (k, v) = (self.inner_by_pixels("middle.1.k", pixels), self.inner("middle.1.v", pixels));
        self.keep("middle.1", |scope| MidAttention::declare(&mut scope.sub(side).sub("middle.1"), channels, (k, v)))?;
        self.residual(side, "middle.2", channels)
    }

    /// Adds what doubles the pixels of the decoder, and halves their channels.
    pub(super) fn doubled(&mut self, name: &str) -> Result<()> {
        let Pixels { channels, factor } = self.pixels();
        let outputs = channels / 2;
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
}
