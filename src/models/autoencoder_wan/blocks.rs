//! The layers that levels are made of.

use super::attention::MidAttention;
use super::causal::{CausalConv, Chain, Memory};
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
    conv1: CausalConv,
    norm2: ChannelNorm,
    conv2: CausalConv,
    /// What brings the input to the output's channels, if these differ.
    shortcut: Option<Conv2d>,
    /// What the first convolution gives, `[w, h, outputs, T]`.
    hidden: Inner,
}

impl ResidualBlock {
    fn declare(
        scope: &mut Scope<'_>,
        (inputs, outputs): (usize, usize),
        hidden: Inner,
        memories: [Memory; 2],
    ) -> Result<ResidualBlock> {
        Ok(ResidualBlock {
            norm1: ChannelNorm::declare(&mut scope.sub("residual.0"), inputs)?,
            conv1: CausalConv::declare(&mut scope.sub("residual.2"), (inputs, outputs), 3, memories[0])?,
            norm2: ChannelNorm::declare(&mut scope.sub("residual.3"), outputs)?,
            conv2: CausalConv::declare(&mut scope.sub("residual.6"), (outputs, outputs), 3, memories[1])?,
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
        self.conv1.passes() + self.conv2.passes()
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()> {
        let ResidualBlock { norm1, conv1, norm2, conv2, hidden, .. } = self;
        let remembers = conv1.passes() > 1;
        match pass {
            0 => b.write_rows(*hidden, conv1.build(b, from, |x| norm1.activated(b, x))?),
            // Before it is written over.
            1 if remembers => conv1.memory.leave_map(b, from),
            1 | 2 => {
                let y = conv2.build(b, *hidden, |x| norm2.activated(b, x))?;
                let x = b.read_rows(from, Reach::Around(0))?;
                let shortcut = self.shortcut.map_or(Ok(x), |conv| conv.build(b, x))?;
                b.write_rows(to, b.g.add(y, shortcut)?)
            }
            _ => conv2.memory.leave_map(b, *hidden),
        }
    }
}

/// A convolution of single pixels.
struct Pointwise(Conv2d);

impl Layer for Pointwise {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        b.write_rows(to, self.0.build(b, b.read_rows(from, Reach::Around(0))?)?)
    }
}

/// The first convolution; the decoder's has another, of one pixel, before it.
struct First {
    /// `None` if it is a stage of its own: what was before the first frame is zero behind it.
    before: Option<Conv2d>,
    conv: CausalConv,
}

impl Layer for First {
    fn passes(&self) -> usize {
        self.conv.passes()
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()> {
        match pass {
            0 => {
                let y = self.conv.build(b, from, |x| self.before.map_or(Ok(x), |conv| conv.build(b, x)))?;
                b.write_rows(to, y)
            }
            _ => self.conv.memory.leave_map(b, from),
        }
    }
}

/// The last convolution, after a norm and SiLU; the encoder's has another, of one pixel, after it.
struct Head {
    norm: ChannelNorm,
    conv: CausalConv,
    after: Option<Conv2d>,
}

impl Layer for Head {
    fn passes(&self) -> usize {
        self.conv.passes()
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()> {
        match pass {
            0 => {
                let y = self.conv.build(b, from, |x| self.norm.activated(b, x))?;
                b.write_rows(to, self.after.map_or(Ok(y), |conv| conv.build(b, y))?)
            }
            _ => self.conv.memory.leave_map(b, from),
        }
    }
}

impl Route {
    /// Adds the first convolution of the encoder, from pictures to `outputs` channels.
    pub(super) fn encoder_first(&mut self, chain: Chain, outputs: usize) -> Result<()> {
        let pixels = self.pixels();
        let memory = self.memory(chain, "encoder.conv1", pixels);
        self.lead(("conv1", "conv1"), Pixels { channels: outputs, ..pixels }, |scope| {
            let conv = CausalConv::declare(&mut scope.sub("encoder.conv1"), (pixels.channels, outputs), 3, memory)?;
            Ok(First { before: None, conv })
        })
    }

    /// Adds the first convolutions of the decoder, from latents to `outputs` channels.
    pub(super) fn decoder_first(&mut self, chain: Chain, outputs: usize) -> Result<()> {
        let pixels @ Pixels { channels, .. } = self.pixels();
        let before = |scope: &mut Scope<'_>| Conv2d::declare(&mut scope.sub("conv2"), channels, channels, 1);
        if chain != Chain::Picture {
            self.lead(("conv2", "conv2"), pixels, |scope| before(scope).map(Pointwise))?;
        }
        let memory = self.memory(chain, "decoder.conv1", pixels);
        self.lead(("conv1", "conv1"), Pixels { channels: outputs, ..pixels }, |scope| {
            let before = if chain == Chain::Picture { Some(before(scope)?) } else { None };
            let conv = CausalConv::declare(&mut scope.sub("decoder.conv1"), (channels, outputs), 3, memory)?;
            Ok(First { before, conv })
        })
    }

    /// Adds the last convolutions of the encoder, which give the moments.
    pub(super) fn encoder_head(&mut self, chain: Chain, config: &Config) -> Result<()> {
        let outputs = 2 * config.z_dim;
        self.head(chain, ("encoder", "moments"), outputs, |scope| {
            Conv2d::declare(&mut scope.sub("conv1"), outputs, outputs, 1).map(Some)
        })
    }

    /// Adds the last convolution of the decoder, which gives the picture.
    pub(super) fn decoder_head(&mut self, chain: Chain, config: &Config) -> Result<()> {
        self.head(chain, ("decoder", "picture"), config.input_channels, |_| Ok(None))
    }

    fn head(
        &mut self,
        chain: Chain,
        (side, port): (&str, &str),
        outputs: usize,
        after: impl FnOnce(&mut Scope<'_>) -> Result<Option<Conv2d>>,
    ) -> Result<()> {
        let pixels @ Pixels { channels, .. } = self.pixels();
        let memory = self.memory(chain, &format!("{side}.head"), pixels);
        self.lead(("head", port), Pixels { channels: outputs, ..pixels }, |scope| {
            let mut own = scope.sub(format!("{side}.head"));
            let norm = ChannelNorm::declare(&mut own.sub(0), channels)?;
            let conv = CausalConv::declare(&mut own.sub(2), (channels, outputs), 3, memory)?;
            Ok(Head { norm, conv, after: after(scope)? })
        })
    }

    /// Adds the residual block `name` of `side` (`encoder` or `decoder`) that gives `outputs` channels: in a port of its own if `kept`, since
    /// a shortcut begins where it does.
    pub(super) fn residual(
        &mut self,
        chain: Chain,
        (side, name): (&str, &str),
        outputs: usize,
        kept: bool,
    ) -> Result<()> {
        let pixels = self.pixels();
        let (inputs, then) = (pixels.channels, Pixels { channels: outputs, ..pixels });
        let hidden = self.inner(&format!("{name}.hidden"), then);
        let memories = [("conv1", pixels), ("conv2", then)]
            .map(|(conv, pixels)| self.memory(chain, &format!("{side}.{name}.{conv}"), pixels));
        let declare = |scope: &mut Scope<'_>| {
            ResidualBlock::declare(&mut scope.sub(side).sub(name), (inputs, outputs), hidden, memories)
        };
        if inputs == outputs && !kept {
            return self.keep(name, declare);
        }
        self.lead((name, name), then, declare)
    }

    /// Adds the middle of `side`: a residual block, attention, another residual block.
    pub(super) fn residuals_with_attention(&mut self, chain: Chain, side: &str) -> Result<()> {
        let channels = self.pixels().channels;
        self.residual(chain, (side, "middle.0"), channels, false)?;
        let pixels = self.pixels();
        let (k, v) = (self.inner_by_pixels("middle.1.k", pixels), self.inner("middle.1.v", pixels));
        self.keep("middle.1", |scope| MidAttention::declare(&mut scope.sub(side).sub("middle.1"), channels, (k, v)))?;
        self.residual(chain, (side, "middle.2"), channels, false)
    }
}
