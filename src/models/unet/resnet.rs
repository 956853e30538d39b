//! Layers of convolutions.

use super::config::Config;
use super::maps::first;
use crate::Result;
use crate::models::layers::{Conv2d, GroupNorm};
use crate::stage::{Block, Build, Port};
use crate::weights::Scope;

/// Two convolutions, each after a norm and SiLU, added to what came in. Between them the time is added to every pixel.
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    /// What brings the input to the output's channels, where these differ.
    skip_connection: Option<Conv2d>,
    places: ResnetPlaces,
}

/// Where a residual block reads and writes.
#[derive(Clone, Copy)]
pub(super) struct ResnetPlaces {
    /// `[w, h, C, B]`
    pub(super) from: Port,
    /// `[w, h, S, B]`: what was kept on the way down.
    pub(super) joined: Option<Port>,
    /// `[C', N]`: what is added under each condition.
    pub(super) added: Port,
    /// `[B]`
    pub(super) condition: Port,
    /// `[w, h, C', B]`
    pub(super) to: Port,
}

impl Resnet {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        (inputs, outputs): (usize, usize),
        places: ResnetPlaces,
    ) -> Result<Resnet> {
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        Ok(Resnet {
            norm1: GroupNorm::declare(&mut s.sub("in_layers.0"), inputs, groups, eps)?,
            conv1: Conv2d::declare(&mut s.sub("in_layers.2"), inputs, outputs, 3)?,
            norm2: GroupNorm::declare(&mut s.sub("out_layers.0"), outputs, groups, eps)?,
            conv2: Conv2d::declare(&mut s.sub("out_layers.3"), outputs, outputs, 3)?,
            skip_connection: (inputs != outputs)
                .then(|| Conv2d::declare(&mut s.sub("skip_connection"), inputs, outputs, 1))
                .transpose()?,
            places,
        })
    }
}

impl Block for Resnet {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let ResnetPlaces { from, joined, added, condition, to } = self.places;
        let mut x = b.read(from)?; // [w, h, C, B]
        if let Some(joined) = joined {
            x = b.g.concat(x, b.read(joined)?, 2)?; // [w, h, C + S, B]
        }
        let y = self.conv1.build_normed(b, &self.norm1, x, None)?; // [w, h, C', B]
        let [.., batch] = b.shape(to)?.dims();
        let added = first(b, b.g.get_rows(b.read(added)?, b.read(condition)?)?, 1, batch)?; // [C', B]
        let [channels, ..] = b.g.shape(added)?.dims();
        let y = b.g.add(y, b.g.reshape(added, &[1, 1, channels, batch])?)?;
        let shortcut = self.skip_connection.map_or(Ok(x), |conv| conv.build(b, x))?;
        b.write(to, self.conv2.build_normed(b, &self.norm2, y, Some(shortcut))?)
    }
}

/// One convolution: the first, or one of every other pixel.
pub(super) struct Convolve {
    pub(super) conv: Conv2d,
    pub(super) from: Port,
    pub(super) to: Port,
}

impl Block for Convolve {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.to, self.conv.build(b, b.read(self.from)?)?)
    }
}

/// Every pixel doubled both ways, then a convolution. If the larger map has an odd number of columns or rows, the last of the
/// doubled ones goes.
pub(super) struct Upsample {
    conv: Conv2d,
    from: Port,
    to: Port,
}

impl Upsample {
    pub(super) fn declare(s: &mut Scope<'_>, channels: usize, (from, to): (Port, Port)) -> Result<Upsample> {
        Ok(Upsample { conv: Conv2d::declare(&mut s.sub("conv"), channels, channels, 3)?, from, to })
    }
}

impl Block for Upsample {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let [w, h, ..] = b.shape(self.to)?.dims();
        b.write(self.to, self.conv.build_doubled_to(b, b.read(self.from)?, [w, h])?)
    }
}

/// The last convolution, after a norm and SiLU.
pub(super) struct Out {
    norm: GroupNorm,
    conv: Conv2d,
    from: Port,
    to: Port,
}

impl Out {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, (from, to): (Port, Port)) -> Result<Out> {
        let (channels, groups) = (config.time_width(), config.norm_num_groups);
        Ok(Out {
            norm: GroupNorm::declare(&mut s.sub("out.0"), channels, groups, config.norm_eps)?,
            conv: Conv2d::declare(&mut s.sub("out.2"), channels, config.out_channels, 3)?,
            from,
            to,
        })
    }
}

impl Block for Out {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.to, self.conv.build_normed(b, &self.norm, b.read(self.from)?, None)?)
    }
}
