//! Networks that make pictures larger: ESRGAN's with its dense blocks, and Real-ESRGAN's compact one.
//!
//! Follows Wang et al., *ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks* (arXiv:1809.00219), and *Real-ESRGAN:
//! Training Real-World Blind Super-Resolution with Pure Synthetic Data* (arXiv:2107.10833), whose names the weights have.
//!
//! Legend: `w`, `h` extents of the maps that blocks work on; `U` pixels of the picture to a pixel of these, each way; `F` features;
//! `G` features that a convolution of a dense block adds; `D` how often the map is doubled; `S` by how much the compact network
//! makes a picture larger.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `conv_first` | `pixels [w, h, 3 U^2]`, 0 to 1 | `conv_first [w, h, F]` |
//! | `body.N.rdb1`, `.rdb2`, `.rdb3` (five convolutions each, which read all before them) | `[w, h, F]` | the same |
//! | `conv_body` (added to `conv_first`) | `[w, h, F]` | the same |
//! | `conv_up1`, ... (every pixel doubled both ways, and a convolution) | `[w, h, F]` | `[2 w, 2 h, F]` |
//! | `conv_hr` | `[2^D w, 2^D h, F]` | the same |
//! | `conv_last` | the same | `result [2^D w, 2^D h, 3]`, 0 to 1 (and beyond: it is not clamped) |
//!
//! The compact network is `body.N`, convolutions with a PReLU between them: `pixels [w, h, 3]` becomes `[w, h, F]`, and in the end
//! `result [w, h, 3 S^2]`, which is added to the picture.

mod config;

use self::config::{COLOURS, Compact, Dense};
use super::layers::Conv2d;
use super::route::{Layer, Pixels, Route};
use crate::Result;
use crate::ggml::Tensor;
use crate::stage::{Build, Inner, Model, Port, Reach};
use crate::weights::{Role, Scope, WeightId};

pub use config::Config;

/// What is left of a number below 0.
const LEAK: f32 = 0.2;

/// How much of what a dense block, and three of them, make is added to what came in.
const SHARE: f32 = 0.2;

/// Convolutions of a dense block.
const CONVOLUTIONS: usize = 5;

/// Dense blocks of a block.
const DENSE_BLOCKS: usize = 3;

/// The network.
pub struct Upscaler {
    /// Its stages, ports and weights.
    pub model: Model,
    /// In: the picture, 0 to 1.
    pub pixels: Port,
    /// Out.
    pub result: Port,
    config: Config,
}

impl Upscaler {
    /// The network that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`](crate::Error::Graph) for settings that no file gives.
    pub fn new(config: &Config) -> Result<Upscaler> {
        let unshuffled = config.unshuffled();
        let mut route = Route::new("pixels", Pixels { channels: COLOURS * unshuffled * unshuffled, factor: 1 });
        let pixels = route.at();
        match config {
            Config::Dense(dense) => declare_dense(&mut route, dense)?,
            Config::Compact(compact) => declare_compact(&mut route, compact)?,
        }
        let result = route.at();
        Ok(Upscaler { model: route.finish(), pixels, result, config: config.clone() })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

fn declare_dense(route: &mut Route, config: &Dense) -> Result<()> {
    let Dense { features, growth, blocks, doublings, .. } = *config;
    let from = route.pixels();
    let wide = Pixels { channels: features, factor: 1 };
    convolve(route, "conv_first", wide, After::Nothing)?;
    let first = route.at();
    for block in 0..blocks {
        let outer = route.at();
        for dense in 1..=DENSE_BLOCKS {
            let name = format!("body.{block}.rdb{dense}");
            let grown = [1, 2, 3, 4].map(|i| route.inner(&format!("{name}.{i}"), Pixels { channels: growth, ..from }));
            let outer = (dense == DENSE_BLOCKS).then_some(outer);
            route.lead((&name, &name), wide, |scope| {
                DenseBlock::declare(&mut scope.sub(&name), [features, growth], grown, outer)
            })?;
        }
    }
    convolve(route, "conv_body", wide, After::Added(first))?;
    for i in 1..=doublings {
        let pixels = Pixels { channels: features, factor: 1 << i };
        let name = format!("conv_up{i}");
        route.lead((&name, &name), pixels, |scope| {
            Ok(Doubled(Conv2d::declare(&mut scope.sub(&name), features, features, 3)?))
        })?;
    }
    let large = route.pixels();
    convolve(route, "conv_hr", large, After::Leaky)?;
    convolve(route, "conv_last", Pixels { channels: COLOURS, ..large }, After::Nothing)
}

fn declare_compact(route: &mut Route, config: &Compact) -> Result<()> {
    let Compact { features, convolutions, factor } = *config;
    let wide = Pixels { channels: features, factor: 1 };
    for i in 0..=convolutions {
        let from = route.pixels();
        let name = format!("body.{}", 2 * i);
        route.lead((&name, &name), wide, |scope| {
            let conv = Conv2d::declare(&mut scope.sub(&name), from.channels, features, 3)?;
            let slopes = scope.sub(format!("body.{}", 2 * i + 1)).weight("weight", &[features], Role::Vector)?;
            Ok(Convolve { conv, after: After::Slopes { slopes, features } })
        })?;
    }
    let last = Pixels { channels: COLOURS * factor * factor, factor: 1 };
    convolve(route, &format!("body.{}", 2 * convolutions + 2), last, After::Nothing)
}

/// Adds the convolution `name`, which gives `pixels`.
fn convolve(route: &mut Route, name: &str, pixels: Pixels, after: After) -> Result<()> {
    let from = route.pixels();
    route.lead((name, name), pixels, |scope| {
        let conv = Conv2d::declare(&mut scope.sub(name), from.channels, pixels.channels, 3)?;
        Ok(Convolve { conv, after })
    })
}

/// What becomes of what a convolution gives.
enum After {
    Nothing,
    /// Leaky ReLU.
    Leaky,
    /// PReLU: a slope for each feature.
    Slopes {
        slopes: WeightId,
        features: usize,
    },
    /// The sum with an earlier map.
    Added(Port),
}

/// A convolution.
struct Convolve {
    conv: Conv2d,
    after: After,
}

impl Layer for Convolve {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let y = self.conv.build_rows(b, b.read_rows(from, Reach::Around(self.conv.halo()))?)?;
        let y = match self.after {
            After::Nothing => y,
            After::Leaky => leaky(b, y)?,
            After::Slopes { slopes, features } => {
                let slopes = b.g.reshape(b.weight(slopes)?, &[1, 1, features])?;
                let above = b.g.relu(y)?;
                b.g.add(above, b.g.mul(b.g.sub(y, above)?, slopes)?)?
            }
            After::Added(port) => b.g.add(y, b.read_rows(port, Reach::Around(0))?)?,
        };
        b.write_rows(to, y)
    }
}

/// A leaky ReLU: what is below 0 is multiplied.
fn leaky(b: &Build<'_>, x: Tensor) -> Result<Tensor> {
    let above = b.g.relu(x)?;
    b.g.add(above, b.g.scale(b.g.sub(x, above)?, LEAK)?)
}

/// Five convolutions. Each reads what came in and what all before it gave; a share of what the last gives is added to what came in,
/// and in the last of three blocks a share of that to what came into the first.
struct DenseBlock {
    convs: [Conv2d; CONVOLUTIONS],
    grown: [Inner; CONVOLUTIONS - 1],
    outer: Option<Port>,
}

impl DenseBlock {
    fn declare(
        scope: &mut Scope<'_>,
        [features, growth]: [usize; 2],
        grown: [Inner; CONVOLUTIONS - 1],
        outer: Option<Port>,
    ) -> Result<DenseBlock> {
        let mut conv = |i: usize| {
            let outputs = if i == CONVOLUTIONS { features } else { growth };
            Conv2d::declare(&mut scope.sub(format!("conv{i}")), features + (i - 1) * growth, outputs, 3)
        };
        Ok(DenseBlock { convs: [conv(1)?, conv(2)?, conv(3)?, conv(4)?, conv(5)?], grown, outer })
    }
}

impl Layer for DenseBlock {
    fn passes(&self) -> usize {
        CONVOLUTIONS
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()> {
        let DenseBlock { convs, grown, outer } = self;
        let halo = convs[pass].halo();
        let x = b.read_rows(from, Reach::Around(halo))?;
        let mut all = x;
        for inner in &grown[..pass] {
            all = b.g.concat(all, b.read_rows(*inner, Reach::Around(halo))?, 2)?;
        }
        let y = convs[pass].build_rows(b, all)?;
        if let Some(inner) = grown.get(pass) {
            return b.write_rows(*inner, leaky(b, y)?);
        }
        let mut y = b.g.add(b.g.scale(y, SHARE)?, b.crop(x, halo)?)?;
        if let Some(outer) = *outer {
            y = b.g.add(b.g.scale(y, SHARE)?, b.read_rows(outer, Reach::Around(0))?)?;
        }
        b.write_rows(to, y)
    }
}

/// Every pixel doubled both ways, then a convolution and a leaky ReLU.
struct Doubled(Conv2d);

impl Layer for Doubled {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let y = self.0.build_doubled(b, b.read_rows(from, Reach::Half(self.0.halo()))?)?;
        b.write_rows(to, leaky(b, y)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes() {
        let parameters = |config: Config| Upscaler::new(&config).unwrap().model.manifest().parameters();
        let plus = Dense { features: 64, growth: 32, blocks: 23, doublings: 2, unshuffled: 1 };
        // RealESRGAN_x4plus, _x2plus and _x4plus_anime_6B; realesr-animevideov3 and realesr-general-x4v3.
        assert_eq!(parameters(Config::Dense(plus.clone())), 16_697_987);
        assert_eq!(parameters(Config::Dense(Dense { unshuffled: 2, ..plus.clone() })), 16_703_171);
        assert_eq!(parameters(Config::Dense(Dense { blocks: 6, ..plus })), 4_467_779);
        let compact = Compact { features: 64, convolutions: 16, factor: 4 };
        assert_eq!(parameters(Config::Compact(compact.clone())), 621_424);
        assert_eq!(parameters(Config::Compact(Compact { convolutions: 32, ..compact })), 1_213_296);
    }
}
