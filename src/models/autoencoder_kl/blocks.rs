//! The layers that levels are made of.

use super::attention::MidAttention;
use super::config::{Config, NORM_EPS};
use crate::Result;
use crate::models::layers::{Conv2d, GroupNorm};
use crate::models::route::{Layer, Pixels, Route};
use crate::stage::{Build, Inner, Port, Reach};
use crate::weights::Scope;

/// Two convolutions, each after a norm and SiLU, added to what came in. In two passes: the second norm is of all that the
/// first convolution gives.
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    /// What brings the input to the output's channels, where these differ.
    nin_shortcut: Option<Conv2d>,
    /// What the first convolution gives, `[w, h, outputs, B]`.
    hidden: Inner,
}

impl ResnetBlock {
    pub(super) fn declare(
        scope: &mut Scope<'_>,
        (inputs, outputs): (usize, usize),
        groups: usize,
        hidden: Inner,
    ) -> Result<ResnetBlock> {
        Ok(ResnetBlock {
            norm1: GroupNorm::declare(&mut scope.sub("norm1"), inputs, groups, NORM_EPS)?,
            conv1: Conv2d::declare(&mut scope.sub("conv1"), inputs, outputs, 3)?,
            norm2: GroupNorm::declare(&mut scope.sub("norm2"), outputs, groups, NORM_EPS)?,
            conv2: Conv2d::declare(&mut scope.sub("conv2"), outputs, outputs, 3)?,
            nin_shortcut: (inputs != outputs)
                .then(|| Conv2d::declare(&mut scope.sub("nin_shortcut"), inputs, outputs, 1))
                .transpose()?,
            hidden,
        })
    }
}

impl Layer for ResnetBlock {
    fn passes(&self) -> usize {
        2
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()> {
        if pass == 0 {
            let x = b.read_rows(from, Reach::Around(self.conv1.halo()))?;
            return b.write_rows(self.hidden, self.conv1.build_activated(b, &self.norm1, from, x, None)?);
        }
        let y = b.read_rows(self.hidden, Reach::Around(self.conv2.halo()))?;
        let x = b.read_rows(from, Reach::Around(0))?;
        let shortcut = self.nin_shortcut.map_or(Ok(x), |conv| conv.build(b, x))?;
        b.write_rows(to, self.conv2.build_activated(b, &self.norm2, self.hidden, y, Some(shortcut))?)
    }
}

/// Every pixel doubled both ways, then a convolution.
pub(super) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub(super) fn declare(scope: &mut Scope<'_>, channels: usize) -> Result<Upsample> {
        Ok(Upsample { conv: Conv2d::declare(&mut scope.sub("conv"), channels, channels, 3)? })
    }
}

impl Layer for Upsample {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let halo = self.conv.halo();
        b.write_rows(to, self.conv.build_doubled(b, b.read_rows(from, Reach::Half(halo))?)?)
    }
}

/// A convolution at every other pixel, with zeros at the right and at the bottom only.
pub(super) struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    pub(super) fn declare(scope: &mut Scope<'_>, channels: usize) -> Result<Downsample> {
        Ok(Downsample { conv: Conv2d::declare(&mut scope.sub("conv"), channels, channels, 3)?.with(2, 0) })
    }
}

impl Layer for Downsample {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let x = b.read_rows(from, Reach::Twice(1))?;
        let (_, at_bottom) = b.at_edges();
        b.write_rows(to, self.conv.build(b, b.g.pad(x, 1, usize::from(at_bottom))?)?)
    }
}

/// The first convolution; the decoder's may have another, of one pixel, before it.
pub(super) struct ConvIn {
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
}

impl ConvIn {
    /// Of the encoder, from `inputs` to `outputs` channels.
    pub(super) fn encoder(scope: &mut Scope<'_>, inputs: usize, outputs: usize) -> Result<ConvIn> {
        let conv_in = Conv2d::declare(&mut scope.sub("encoder.conv_in"), inputs, outputs, 3)?;
        Ok(ConvIn { post_quant_conv: None, conv_in })
    }

    /// Of the decoder, to `outputs` channels.
    pub(super) fn decoder(scope: &mut Scope<'_>, config: &Config, outputs: usize) -> Result<ConvIn> {
        let inputs = config.latent_channels;
        let mut post_quant_conv = None;
        if config.use_post_quant_conv {
            post_quant_conv = Some(Conv2d::declare(&mut scope.sub("post_quant_conv"), inputs, inputs, 1)?);
        }
        let conv_in = Conv2d::declare(&mut scope.sub("decoder.conv_in"), inputs, outputs, 3)?;
        Ok(ConvIn { post_quant_conv, conv_in })
    }
}

impl Layer for ConvIn {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let x = b.read_rows(from, Reach::Around(self.conv_in.halo()))?;
        let x = self.post_quant_conv.map_or(Ok(x), |conv| conv.build(b, x))?;
        b.write_rows(to, self.conv_in.build_rows(b, x)?)
    }
}

/// The last convolution, after a norm and SiLU; the encoder's may have another, of one pixel, after it.
pub(super) struct ConvOut {
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Conv2d>,
}

impl ConvOut {
    /// Of the encoder, from `inputs` channels to the moments.
    pub(super) fn encoder(scope: &mut Scope<'_>, config: &Config, inputs: usize) -> Result<ConvOut> {
        let outputs = 2 * config.latent_channels;
        let out = ConvOut::declare(&mut scope.sub("encoder"), config, inputs, outputs)?;
        let mut quant_conv = None;
        if config.use_quant_conv {
            quant_conv = Some(Conv2d::declare(&mut scope.sub("quant_conv"), outputs, outputs, 1)?);
        }
        Ok(ConvOut { quant_conv, ..out })
    }

    /// Of the decoder, from `inputs` channels to the picture.
    pub(super) fn decoder(scope: &mut Scope<'_>, config: &Config, inputs: usize) -> Result<ConvOut> {
        ConvOut::declare(&mut scope.sub("decoder"), config, inputs, config.out_channels)
    }

    fn declare(scope: &mut Scope<'_>, config: &Config, inputs: usize, outputs: usize) -> Result<ConvOut> {
        Ok(ConvOut {
            norm_out: GroupNorm::declare(&mut scope.sub("norm_out"), inputs, config.norm_num_groups, NORM_EPS)?,
            conv_out: Conv2d::declare(&mut scope.sub("conv_out"), inputs, outputs, 3)?,
            quant_conv: None,
        })
    }
}

impl Layer for ConvOut {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let x = b.read_rows(from, Reach::Around(self.conv_out.halo()))?;
        let y = self.conv_out.build_activated(b, &self.norm_out, from, x, None)?;
        b.write_rows(to, self.quant_conv.map_or(Ok(y), |conv| conv.build(b, y))?)
    }
}

impl Route {
    /// Adds the residual block `name` of `side` (`encoder` or `decoder`) that gives `outputs` channels.
    pub(super) fn resnet(&mut self, side: &str, name: &str, outputs: usize, groups: usize) -> Result<()> {
        let pixels = self.pixels();
        let inputs = pixels.channels;
        let hidden = self.inner(&format!("{name}.hidden"), Pixels { channels: outputs, ..pixels });
        let declare = |scope: &mut Scope<'_>| {
            ResnetBlock::declare(&mut scope.sub(side).sub(name), (inputs, outputs), groups, hidden)
        };
        if inputs == outputs {
            return self.keep(name, declare);
        }
        self.lead((name, name), Pixels { channels: outputs, ..pixels }, declare)
    }

    /// Adds the middle of `side`: a residual block, attention where the model has it, another residual block.
    pub(super) fn middle(&mut self, side: &str, config: &Config) -> Result<()> {
        let (channels, groups) = (self.pixels().channels, config.norm_num_groups);
        self.resnet(side, "mid.block_1", channels, groups)?;
        if config.mid_block_add_attention {
            let pixels = self.pixels();
            let k = self.inner_by_pixels("mid.attn_1.k", pixels);
            let v = self.inner("mid.attn_1.v", pixels);
            self.keep("mid.attn_1", |scope| {
                MidAttention::declare(&mut scope.sub(side).sub("mid.attn_1"), channels, groups, (k, v))
            })?;
        }
        self.resnet(side, "mid.block_2", channels, groups)
    }
}
