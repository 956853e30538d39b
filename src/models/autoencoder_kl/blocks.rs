//! The layers that levels are made of.

use super::attention::MidAttention;
use super::config::{Config, NORM_EPS};
use super::route::{Layer, Pixels, Route};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{Conv2d, GroupNorm};
use crate::stage::Build;
use crate::weights::Scope;

/// Two convolutions, each after a norm and SiLU, added to what came in.
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    /// What brings the input to the output's channels, where these differ.
    nin_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub(super) fn declare(scope: &mut Scope<'_>, inputs: usize, outputs: usize, groups: usize) -> Result<ResnetBlock> {
        Ok(ResnetBlock {
            norm1: GroupNorm::declare(&mut scope.sub("norm1"), inputs, groups, NORM_EPS)?,
            conv1: Conv2d::declare(&mut scope.sub("conv1"), inputs, outputs, 3)?,
            norm2: GroupNorm::declare(&mut scope.sub("norm2"), outputs, groups, NORM_EPS)?,
            conv2: Conv2d::declare(&mut scope.sub("conv2"), outputs, outputs, 3)?,
            nin_shortcut: (inputs != outputs)
                .then(|| Conv2d::declare(&mut scope.sub("nin_shortcut"), inputs, outputs, 1))
                .transpose()?,
        })
    }
}

impl Layer for ResnetBlock {
    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let y = self.conv1.build(b, b.g.silu(self.norm1.build(b, x)?)?)?;
        let y = self.conv2.build(b, b.g.silu(self.norm2.build(b, y)?)?)?;
        let shortcut = self.nin_shortcut.map_or(Ok(x), |conv| conv.build(b, x))?;
        b.g.add(shortcut, y)
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
    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        self.conv.build(b, b.g.upscale_2x(x)?)
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
    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        self.conv.build(b, b.g.pad(x, 1, 1)?)
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
        let mut post_quant_conv = || Conv2d::declare(&mut scope.sub("post_quant_conv"), inputs, inputs, 1);
        let post_quant_conv = config.use_post_quant_conv.then(&mut post_quant_conv).transpose()?;
        let conv_in = Conv2d::declare(&mut scope.sub("decoder.conv_in"), inputs, outputs, 3)?;
        Ok(ConvIn { post_quant_conv, conv_in })
    }
}

impl Layer for ConvIn {
    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let x = self.post_quant_conv.map_or(Ok(x), |conv| conv.build(b, x))?;
        self.conv_in.build(b, x)
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
        let quant_conv = || Conv2d::declare(&mut scope.sub("quant_conv"), outputs, outputs, 1);
        Ok(ConvOut { quant_conv: config.use_quant_conv.then(quant_conv).transpose()?, ..out })
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
    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let y = self.conv_out.build(b, b.g.silu(self.norm_out.build(b, x)?)?)?;
        self.quant_conv.map_or(Ok(y), |conv| conv.build(b, y))
    }
}

impl Route {
    /// Adds the residual block `name` of `side` (`encoder` or `decoder`) that gives `outputs` channels.
    pub(super) fn resnet(&mut self, side: &str, name: &str, outputs: usize, groups: usize) -> Result<()> {
        let pixels = self.pixels();
        let inputs = pixels.channels;
        let declare =
            |scope: &mut Scope<'_>| ResnetBlock::declare(&mut scope.sub(side).sub(name), inputs, outputs, groups);
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
            self.keep("mid.attn_1", |scope| {
                MidAttention::declare(&mut scope.sub(side).sub("mid.attn_1"), channels, groups)
            })?;
        }
        self.resnet(side, "mid.block_2", channels, groups)
    }
}
