//! The resampler: a few learnt tokens look at what another network says of a picture, and become tokens that a transformer reads as
//! it does a prompt's.
//!
//! Follows `Resampler` of IP-Adapter and InfiniteYou (`resampler.py`), whose names the weights have: the Perceiver of Jaegle et
//! al. (arXiv:2103.03206), with the layers of Flamingo (arXiv:2204.14198).
//!
//! Legend: `E` width of the input, `D` hidden width, `H` heads, `T` tokens of the input, `n` learnt tokens, `O` width of the output.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `input` | `seen [E, T]` | `projected [D, T]`, `latents [D, n]` |
//! | `layer.0`, `layer.1`, ... | `projected`, `latents` | `latents` |
//! | `output` | `latents` | `tokens [O, n]` |

use std::path::Path;

use pinhole_quant::DType;
use serde::{Deserialize, Serialize};

use super::attention::Attention;
use super::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use super::layers::{Activation, LayerNorm, Linear};
use crate::ggml::Tensor;
use crate::stage::{Block, Build, Cadence, Lifetime, Model, Port, Symbol};
use crate::tensor::Shape;
use crate::weights::{Role, Scope, WeightId};
use crate::{Error, Result};

/// The width of a head in every published model: shapes do not tell.
const HEAD_WIDTH: usize = 64;

/// What is added to the variance in norms: PyTorch's default.
const EPS: f32 = 1e-5;

/// The settings of a resampler, by the names that its authors give them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Config {
    /// `E`.
    pub embedding_dim: usize,
    /// `D`.
    pub dim: usize,
    /// How many layers there are.
    pub depth: usize,
    /// `H`.
    pub heads: usize,
    /// The width of a head.
    pub dim_head: usize,
    /// `n`.
    pub num_queries: usize,
    /// The width inside of feed-forward layers.
    pub ff_inner_dim: usize,
    /// `O`.
    pub output_dim: usize,
}

impl Config {
    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [dim, num_queries, ..] = shapes.dims("latents")?;
        let [embedding_dim, ..] = shapes.dims("proj_in.weight")?;
        let [_, inner, ..] = shapes.dims("layers.0.0.to_q.weight")?;
        let [_, ff_inner_dim, ..] = shapes.dims("layers.0.1.1.weight")?;
        let [_, output_dim, ..] = shapes.dims("proj_out.weight")?;
        let depth = shapes.count(|i| format!("layers.{i}.0.to_q.weight"));
        let (heads, dim_head) = (inner / HEAD_WIDTH, HEAD_WIDTH);
        config::require(origin, "layers.0.0.to_q.weight", inner == heads * dim_head && heads > 0, whole_heads, inner)?;
        let config = Config { embedding_dim, dim, depth, heads, dim_head, num_queries, ff_inner_dim, output_dim };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("embedding_dim", self.embedding_dim, MOST_WIDTH)?;
        limit("dim", self.dim, MOST_WIDTH)?;
        limit("depth", self.depth, MOST_LAYERS)?;
        limit("heads", self.heads, 1 << 12)?;
        limit("dim_head", self.dim_head, 1 << 12)?;
        limit("num_queries", self.num_queries, 1 << 12)?;
        limit("ff_inner_dim", self.ff_inner_dim, MOST_WIDTH)?;
        limit("output_dim", self.output_dim, MOST_WIDTH)
    }

    /// The width of all heads together.
    fn inner(&self) -> usize {
        self.heads * self.dim_head
    }
}

fn whole_heads() -> String {
    format!("whole heads of {HEAD_WIDTH} outputs")
}

/// What comes in.
struct Input {
    latents: WeightId,
    proj_in: Linear,
    seen: Port,
    projected: Port,
    learnt: Port,
}

impl Block for Input {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.projected, self.proj_in.build(b, b.read(self.seen)?)?)?;
        // A port is written by an operation, and a weight is none.
        b.write(self.learnt, b.g.scale(b.weight(self.latents)?, 1.0)?)
    }
}

/// One layer: the learnt tokens look at the input and at each other, and go through a feed-forward layer.
struct Layer {
    projected: Port,
    latents: Port,
    norm1: LayerNorm,
    norm2: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    norm: LayerNorm,
    up: Linear,
    down: Linear,
    heads: [usize; 2],
}

impl Layer {
    fn declare(scope: &mut Scope<'_>, config: &Config, projected: Port, latents: Port) -> Result<Layer> {
        let (dim, inner, ff) = (config.dim, config.inner(), config.ff_inner_dim);
        let attention = &mut scope.sub("0");
        let norm1 = LayerNorm::declare(&mut attention.sub("norm1"), dim, EPS)?;
        let norm2 = LayerNorm::declare(&mut attention.sub("norm2"), dim, EPS)?;
        let matrix = |scope: &mut Scope<'_>, name: &str, inputs, outputs| {
            Linear::declare_unbiased(&mut scope.sub(name), inputs, outputs, Role::MatMul)
        };
        let to_q = matrix(attention, "to_q", dim, inner)?;
        let to_kv = matrix(attention, "to_kv", dim, 2 * inner)?;
        let to_out = matrix(attention, "to_out", inner, dim)?;
        let feed_forward = &mut scope.sub("1");
        let norm = LayerNorm::declare(&mut feed_forward.sub("0"), dim, EPS)?;
        let (up, down) = (matrix(feed_forward, "1", dim, ff)?, matrix(feed_forward, "3", ff, dim)?);
        let heads = [config.dim_head, config.heads];
        Ok(Layer { projected, latents, norm1, norm2, to_q, to_kv, to_out, norm, up, down, heads })
    }

    /// What `latents [D, n]` see of `x [D, T]` and of themselves: `[D, n]`.
    fn attend(&self, b: &Build<'_>, x: Tensor, latents: Tensor) -> Result<Tensor> {
        let [d, heads] = self.heads;
        let (x, latents) = (self.norm1.build(b, x)?, self.norm2.build(b, latents)?);
        let all = b.g.concat(x, latents, 1)?; // [D, T + n]
        let (tokens, queries) = (b.g.shape(all)?.dims()[1], b.g.shape(latents)?.dims()[1]);
        let split = |part: Tensor, tokens| b.g.reshape(part, &[d, heads, tokens, 1]);
        let q = split(self.to_q.build(b, latents)?, queries)?;
        let k = split(self.to_kv.build_outputs(b, all, 0..d * heads)?, tokens)?;
        let v = split(self.to_kv.build_outputs(b, all, d * heads..2 * d * heads)?, tokens)?;
        let seen = Attention::of(k, v).attend(b, q)?; // [H d, n, 1]
        self.to_out.build(b, b.g.reshape(seen, &[d * heads, queries])?)
    }
}

impl Block for Layer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (x, latents) = (b.read(self.projected)?, b.read(self.latents)?);
        let latents = b.g.add(self.attend(b, x, latents)?, latents)?;
        let inner = Activation::Gelu.build(b.g, self.up.build(b, self.norm.build(b, latents)?)?)?;
        b.write(self.latents, b.g.add(self.down.build(b, inner)?, latents)?)
    }
}

/// What goes out.
struct Output {
    proj_out: Linear,
    norm_out: LayerNorm,
    latents: Port,
    tokens: Port,
}

impl Block for Output {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let projected = self.proj_out.build(b, b.read(self.latents)?)?;
        b.write(self.tokens, self.norm_out.build(b, projected)?)
    }
}

/// The resampler.
pub struct Resampler {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[E, T]`: in, with [`Symbol::IMAGE_TOKENS`] for `T`.
    pub seen: Port,
    /// `[O, n]`: out.
    pub tokens: Port,
}

impl Resampler {
    /// The resampler that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for sizes that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<Resampler> {
        let mut model = Model::new();
        let (seen, tokens) = Resampler::declare(&mut model, config)?;
        Ok(Resampler { model, seen, tokens })
    }

    /// Declares the stages of one in `model`, and gives the ports `seen` and `tokens`.
    pub(super) fn declare(model: &mut Model, config: &Config) -> Result<(Port, Port)> {
        if config.depth == 0 {
            return Err(Error::graph("declare", "a resampler without layers"));
        }
        let mut port = |name: &str, extents: &[_]| model.port(name, extents, DType::F32, Lifetime::Pass);
        let tokens = Symbol::IMAGE_TOKENS.into();
        let seen = port("seen", &[config.embedding_dim.into(), tokens]);
        let projected = port("projected", &[config.dim.into(), tokens]);
        let learnt = port("latents", &[config.dim.into(), config.num_queries.into()]);
        let out = port("tokens", &[config.output_dim.into(), config.num_queries.into()]);
        model.stage("input", Cadence::Request, |scope| {
            let latents = scope.weight("latents", &[config.dim, config.num_queries], Role::Vector)?;
            let (inputs, dim) = (config.embedding_dim, config.dim);
            let proj_in = Linear::declare(&mut scope.sub("proj_in"), inputs, dim, Role::MatMul)?;
            Ok(Input { latents, proj_in, seen, projected, learnt })
        })?;
        for i in 0..config.depth {
            model.stage(format!("layer.{i}"), Cadence::Request, |scope| {
                Layer::declare(&mut scope.sub("layers").sub(i), config, projected, learnt)
            })?;
        }
        model.stage("output", Cadence::Request, |scope| {
            let (dim, outputs) = (config.dim, config.output_dim);
            let proj_out = Linear::declare(&mut scope.sub("proj_out"), dim, outputs, Role::MatMul)?;
            let norm_out = LayerNorm::declare(&mut scope.sub("norm_out"), outputs, EPS)?;
            Ok(Output { proj_out, norm_out, latents: learnt, tokens: out })
        })?;
        Ok((seen, out))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// InfiniteYou's.
    fn published() -> Config {
        Config {
            embedding_dim: 512,
            dim: 1280,
            depth: 4,
            heads: 20,
            dim_head: 64,
            num_queries: 8,
            ff_inner_dim: 5120,
            output_dim: 4096,
        }
    }

    #[test]
    fn the_published_one_is_read_off_its_shapes() {
        let resampler = Resampler::new(&published()).unwrap();
        let weights: Vec<(String, Shape)> =
            resampler.model.manifest().iter().map(|(_, weight)| (weight.name.clone(), weight.shape)).collect();
        let found = Config::from_shapes(
            |name| weights.iter().find(|(other, _)| other == name).map(|(_, shape)| *shape),
            Path::new("image_proj_model.bin"),
        );
        assert_eq!(found.unwrap(), published());
        assert_eq!(resampler.model.manifest().parameters(), 84_595_968);
        let error = Config::from_shapes(|_| None, Path::new("f.bin")).unwrap_err().to_string();
        assert_eq!(error, "f.bin: latents: expected a tensor, found none");
    }
}
