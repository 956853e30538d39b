//! The tiny autoencoder (TAESD, TAESDXL, TAEF1): from latents in the denoiser's space to a picture and back, by plain convolutions.
//!
//! Follows `AutoencoderTiny` of diffusers (`models/autoencoders/autoencoder_tiny.py`, `EncoderTiny` and `DecoderTiny` of `vae.py`), and has
//! its names.
//! Published by Ollin Boer Bohan (<https://github.com/madebyollin/taesd>).
//!
//! Legend: `w`, `h` extents of the latents; `W`, `H` of the picture, `2^(L-1)` times those for `L` levels; `C` latent channels; `c`
//! channels in between; `B` batch; `N` the number of a layer, as diffusers counts them.
//!
//! The decoder; [`TinyEncoder`] has the way back:
//!
//! | stage | in | out |
//! |---|---|---|
//! | `layers.0` | `latents [w, h, C, B]`, after [`softened`]: from -3 to 3 | `layers.0 [w, h, c, B]` |
//! | `layers.N` (three convolutions, added to what came in) | a level's pixels | the same |
//! | `layers.N` (every pixel doubled both ways, and a convolution) | a level's pixels | twice as wide and high |
//! | `layers.N`, the last | the last level's pixels | `picture [W, H, 3, B]`, 0 to 1 (and a little beyond: it is not clamped) |

mod config;
mod encoder;

use self::config::Layer as Kind;
use super::layers::Conv2d;
use super::route::{Layer, Pixels, Route};
use crate::stage::{Build, Inner, Model, Port, Reach};
use crate::weights::Scope;
use crate::{Error, Result};

pub use config::Config;
pub use encoder::TinyEncoder;

/// The decoder.
pub struct TinyDecoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[w, h, C, B]`: in, what [`softened`] made of the latents.
    pub latents: Port,
    /// `[W, H, 3, B]`: out, the picture, from 0 to 1.
    pub picture: Port,
}

/// `3 tanh(x / 3)`, which the decoder begins with: what is far out comes nearer.
pub fn softened(x: f32) -> f32 {
    (x / 3.0).tanh() * 3.0
}

impl TinyDecoder {
    /// The decoder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for settings that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<TinyDecoder> {
        let mut route = Route::new("latents", Pixels { channels: config.latent_channels, factor: 1 });
        let latents = route.at();
        let Some(channels) = config.channels() else { return Err(without_levels()) };
        let output = ("picture", config.out_channels);
        Direction { name: "decoder", activated: true, layers: config.layers(), channels, output }
            .declare(&mut route)?;
        let picture = route.at();
        Ok(TinyDecoder { model: route.finish(), latents, picture })
    }
}

fn without_levels() -> Error {
    Error::graph("declare", "an autoencoder without levels")
}

/// The layers of the encoder or of the decoder.
struct Direction<'a> {
    /// `encoder` or `decoder`, which names of weights begin with.
    name: &'a str,
    /// Whether ReLU follows the first convolution.
    activated: bool,
    /// The layers that have weights, each with its number.
    layers: Vec<(usize, Kind)>,
    /// Channels of every map in between.
    channels: usize,
    /// The port that they end in, and its channels.
    output: (&'a str, usize),
}

impl Direction<'_> {
    /// Adds the layers to `route`.
    fn declare(self, route: &mut Route) -> Result<()> {
        let Direction { name: direction, activated, layers, channels, output: (port, outputs) } = self;
        for (number, kind) in layers {
            let name = format!("layers.{number}");
            let path = format!("{direction}.{name}");
            let from = route.pixels();
            match kind {
                Kind::First => route.lead((&name, &name), Pixels { channels, ..from }, |scope| {
                    let conv = Conv2d::declare(&mut scope.sub(&path), from.channels, channels, 3)?;
                    Ok(Convolve { conv, activated })
                })?,
                Kind::Block => {
                    let hidden = [0, 1].map(|i| route.inner(&format!("{name}.hidden.{i}"), from));
                    route.keep(&name, |scope| Block::declare(&mut scope.sub(&path).sub("conv"), channels, hidden))?;
                }
                Kind::Upsample => {
                    let pixels = Pixels { factor: 2 * from.factor, ..from };
                    route.lead((&name, &name), pixels, |scope| {
                        Ok(Upsample { conv: Conv2d::without_bias(&mut scope.sub(&path), channels, channels, 3)? })
                    })?;
                }
                Kind::Downsample => {
                    let pixels = Pixels { factor: from.factor / 2, ..from };
                    route.lead((&name, &name), pixels, |scope| {
                        let conv = Conv2d::without_bias(&mut scope.sub(&path), channels, channels, 3)?;
                        Ok(Downsample { conv: conv.with(2, 1) })
                    })?;
                }
                Kind::Last => route.lead((&name, port), Pixels { channels: outputs, ..from }, |scope| {
                    let conv = Conv2d::declare(&mut scope.sub(&path), channels, outputs, 3)?;
                    Ok(Convolve { conv, activated: false })
                })?,
            }
        }
        Ok(())
    }
}

/// A convolution, and ReLU if it is `activated`.
struct Convolve {
    conv: Conv2d,
    activated: bool,
}

impl Layer for Convolve {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        let y = self.conv.build_rows(b, b.read_rows(from, Reach::Around(self.conv.halo()))?)?;
        b.write_rows(to, if self.activated { b.g.relu(y)? } else { y })
    }
}

/// Three convolutions with ReLU between them, added to what came in, and ReLU. In three passes: each convolution reads rows around.
struct Block {
    convs: [Conv2d; 3],
    hidden: [Inner; 2],
}

impl Block {
    fn declare(scope: &mut Scope<'_>, channels: usize, hidden: [Inner; 2]) -> Result<Block> {
        let mut conv = |number: usize| Conv2d::declare(&mut scope.sub(number), channels, channels, 3);
        Ok(Block { convs: [conv(0)?, conv(2)?, conv(4)?], hidden })
    }
}

impl Layer for Block {
    fn passes(&self) -> usize {
        3
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()> {
        let Block { convs: [first, second, third], hidden: [one, two] } = self;
        match pass {
            0 => {
                let x = b.read_rows(from, Reach::Around(first.halo()))?;
                b.write_rows(*one, b.g.relu(first.build_rows(b, x)?)?)
            }
            1 => {
                let x = b.read_rows(*one, Reach::Around(second.halo()))?;
                b.write_rows(*two, b.g.relu(second.build_rows(b, x)?)?)
            }
            _ => {
                let x = b.read_rows(*two, Reach::Around(third.halo()))?;
                let y = third.build_rows(b, x)?;
                b.write_rows(to, b.g.relu(b.g.add(y, b.read_rows(from, Reach::Around(0))?)?)?)
            }
        }
    }
}

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

/// A convolution at every other pixel, with zeros all around.
struct Downsample {
    conv: Conv2d,
}

impl Layer for Downsample {
    fn build_pass(&self, b: &Build<'_>, _pass: usize, from: Port, to: Port) -> Result<()> {
        b.write_rows(to, self.conv.build_halved(b, b.read_rows(from, Reach::TwiceAbove(self.conv.halo()))?)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes() {
        for (latent_channels, expected) in [(4, 1_222_531), (16, 1_229_443)] {
            let config = Config { latent_channels, ..Config::default() };
            assert_eq!(TinyDecoder::new(&config).unwrap().model.manifest().parameters(), expected);
        }
    }

    #[test]
    fn layers_are_counted_as_diffusers_counts_them() {
        let decoder = TinyDecoder::new(&Config::default()).unwrap();
        let names: Vec<&str> = decoder.model.stages().iter().map(|stage| stage.name.as_str()).collect();
        let numbers = [0, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18];
        assert_eq!(names, numbers.map(|number| format!("layers.{number}")));
    }

    #[test]
    fn latents_are_softened() {
        assert_eq!(softened(0.0), 0.0);
        assert!((softened(100.0) - 3.0).abs() < 1e-6 && (softened(0.5) - 0.495_43).abs() < 1e-4);
    }
}
