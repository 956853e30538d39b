//! The FLUX.1 transformer, dev and schnell (Black Forest Labs; reference: diffusers' `FluxTransformer2DModel`, with
//! the original files' names).
//!
//! Predicts the velocity of a rectified flow from noised latents, a prompt and a time. Modulation (a scale, a shift and
//! a gate for every block) depends only on time, guidance and the pooled prompt, not on the picture: it is computed
//! for all steps before the first, so that a quarter of the weights is touched once a request.
//!
//! `D` hidden, `H` heads, `d = D/H`, `M` hidden of the feed-forward, `Ti` image tokens, `Tt` text tokens, `T = Tt + Ti`,
//! `B` batch (images times guidance passes), `N` conditions (steps times guidance passes). Shapes in ggml order.
//!
//! | stage               | when    | carried in                                  | carried out                        |
//! |---------------------|---------|---------------------------------------------|------------------------------------|
//! | `vector`            | request | `time`, `guidance` [256, N], `pooled` [P, N] | `vector` [D, N]                    |
//! | `modulation.*`      | request | `vector`                                    | one port per block, [6D or 3D, N]  |
//! | `context`           | request | `text` [J, Tt, B]                           | `context` [D, Tt, B]               |
//! | `embed`             | step    | `latents` [C, Ti, B]                        | `img` [D, Ti, B]                   |
//! | `double.0..`        | step    | `img`, `context` or `txt`, modulation       | `img`, `txt` [D, Tt, B]            |
//! | `join`              | step    | `txt`, `img`                                | `joint` [D, T, B]                  |
//! | `single.0..`        | step    | `joint`, modulation                         | `joint`                            |
//! | `final`             | step    | `joint`, modulation                         | `velocity` [C', Ti, B]             |

use std::ops::Range;
use std::path::Path;

use pinhole_quant::DType;
use serde::{Deserialize, Serialize};

use super::config;
use super::layers::{Linear, RmsNorm, join_heads, rotary_tables};
use crate::ggml::Tensor;
use crate::stage::{Block, Build, Cadence, Extent, Lifetime, Model, Port, Symbol};
use crate::tensor::Shape;
use crate::weights::{Role, Scope};
use crate::{Error, Result, reserve};

/// Width of the sinusoidal embedding of time and guidance.
pub const TIME_WIDTH: usize = 256;

/// The epsilon of every normalisation.
const EPS: f32 = 1e-6;

/// Base of the rotary frequencies.
const THETA: f64 = 10000.0;

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Channels of an image token: latent channels times the patch's 4 pixels.
    pub in_channels: usize,
    /// Channels that come out; those that went in where absent.
    pub out_channels: Option<usize>,
    /// Double blocks, with separate weights for text and image.
    pub num_layers: usize,
    /// Single blocks, with one set of weights for both.
    pub num_single_layers: usize,
    /// `d`.
    pub attention_head_dim: usize,
    /// `H`.
    pub num_attention_heads: usize,
    /// Width of the prompt's hidden states.
    pub joint_attention_dim: usize,
    /// Width of the pooled prompt.
    pub pooled_projection_dim: usize,
    /// Whether guidance is an input (dev) or not (schnell).
    pub guidance_embeds: bool,
    /// How `d` is shared out among the rotary axes: index, row, column.
    pub axes_dims_rope: Vec<usize>,
    /// Side of a patch in the transformer itself; FLUX packs its latents beforehand, so 1.
    pub patch_size: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: vec![16, 56, 56],
            patch_size: 1,
        }
    }
}

impl Config {
    /// FLUX.1-dev's.
    pub fn dev() -> Config {
        Config { guidance_embeds: true, ..Config::default() }
    }

    /// FLUX.1-schnell's.
    pub fn schnell() -> Config {
        Config::default()
    }

    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is no such configuration; [`Error::Mismatch`] where it makes no model.
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Read off the weights of a file without a configuration. `shape` gives the shape of a canonical name.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Shape>) -> Option<Config> {
        let count =
            |block: &str, weight: &str| (0..).take_while(|i| shape(&format!("{block}.{i}.{weight}")).is_some()).count();
        let extents = |name: &str| shape(name).map(|shape| shape.dims());
        let [in_channels, hidden, ..] = extents("img_in.weight")?;
        let [_, out_channels, ..] = extents("final_layer.linear.weight")?;
        let head = extents("double_blocks.0.img_attn.norm.query_norm.scale")
            .or_else(|| extents("single_blocks.0.norm.query_norm.scale"))?[0];
        Some(Config {
            in_channels,
            out_channels: (out_channels != in_channels).then_some(out_channels),
            num_layers: count("double_blocks", "img_attn.qkv.weight"),
            num_single_layers: count("single_blocks", "linear1.weight"),
            attention_head_dim: head,
            num_attention_heads: hidden / head,
            joint_attention_dim: extents("txt_in.weight")?[0],
            pooled_projection_dim: extents("vector_in.in_layer.weight")?[0],
            guidance_embeds: shape("guidance_in.in_layer.weight").is_some(),
            axes_dims_rope: vec![head / 8, head * 7 / 16, head * 7 / 16],
            patch_size: 1,
        })
    }

    /// `D`.
    pub fn hidden(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }

    /// Channels that come out.
    pub fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// `M`: diffusers fixes it at four times the hidden width.
    fn feed_forward(&self) -> usize {
        4 * self.hidden()
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("in_channels", self.in_channels, config::MOST_WIDTH)?;
        limit("out_channels", self.out_channels(), config::MOST_WIDTH)?;
        limit("attention_head_dim", self.attention_head_dim, 1 << 12)?;
        limit("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        limit("joint_attention_dim", self.joint_attention_dim, config::MOST_WIDTH)?;
        limit("pooled_projection_dim", self.pooled_projection_dim, config::MOST_WIDTH)?;
        limit("patch_size", self.patch_size, 1)?;
        config::limit(origin, "num_layers", self.num_layers, 0..=config::MOST_LAYERS)?;
        config::limit(origin, "num_single_layers", self.num_single_layers, 0..=config::MOST_LAYERS)?;
        let whole_patches = self.in_channels.is_multiple_of(4);
        config::require(origin, "in_channels", whole_patches, || "a multiple of 4".into(), self.in_channels)?;
        let head = self.attention_head_dim;
        let axes = self.axes_dims_rope.iter().try_fold(0usize, |sum, &axis| sum.checked_add(axis));
        let shared_out = self.axes_dims_rope.len() == 3
            && axes == Some(head)
            && self.axes_dims_rope.iter().all(|axis| axis.is_multiple_of(2));
        let expected = || format!("three even numbers with the sum attention_head_dim, {head}");
        config::require(origin, "axes_dims_rope", shared_out, expected, format!("{:?}", self.axes_dims_rope))
    }
}

/// The ports that carry the request into the model, and the velocity out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[256, N]`: [`sinusoid`] of each condition's time.
    pub time: Port,
    /// `[256, N]`: [`sinusoid`] of the guidance; absent in schnell.
    pub guidance: Option<Port>,
    /// `[P, N]`: the pooled prompt of each condition.
    pub pooled: Port,
    /// `[J, Tt, B]`: the prompt's hidden states.
    pub text: Port,
    /// `[d, 1, T]`: see [`Flux::rotary`].
    pub cos: Port,
    /// `[d, 1, T]`: see [`Flux::rotary`].
    pub sin: Port,
    /// `[B]`, I32: which condition each item of the batch is computed under in this step.
    pub condition: Port,
    /// `[C, Ti, B]`: packed latents.
    pub latents: Port,
    /// `[C', Ti, B]`: the prediction.
    pub velocity: Port,
}

/// The transformer: its stages and where to put things.
pub struct Flux {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    config: Config,
}

impl Flux {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes none.
    pub fn new(config: &Config) -> Result<Flux> {
        config.validate(Path::new("transformer"))?;
        let mut model = Model::new();
        let ports = Ports {
            time: input(&mut model, "time", &[TIME_WIDTH.into(), Symbol::Conditions.into()]),
            guidance: config
                .guidance_embeds
                .then(|| input(&mut model, "guidance", &[TIME_WIDTH.into(), Symbol::Conditions.into()])),
            pooled: input(&mut model, "pooled", &[config.pooled_projection_dim.into(), Symbol::Conditions.into()]),
            text: input(
                &mut model,
                "text",
                &[config.joint_attention_dim.into(), Symbol::TextTokens.into(), Symbol::Batch.into()],
            ),
            cos: input(&mut model, "cos", &[config.attention_head_dim.into(), 1.into(), Symbol::JointTokens.into()]),
            sin: input(&mut model, "sin", &[config.attention_head_dim.into(), 1.into(), Symbol::JointTokens.into()]),
            condition: model.port("condition", &[Symbol::Batch.into()], DType::I32, Lifetime::Pass),
            latents: carried(&mut model, "latents", config.in_channels, Symbol::ImageTokens),
            velocity: carried(&mut model, "velocity", config.out_channels(), Symbol::ImageTokens),
        };
        declare_stages(&mut model, config, &ports)?;
        Ok(Flux { model, ports, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The rotary tables `(cos, sin)`, `[d, T]` each, of `text` tokens at position (0, 0, 0) and a picture of `rows x
    /// columns` tokens at (0, row, column).
    ///
    /// # Errors
    /// [`Error::Graph`] where a picture has more than 2^32 rows or columns.
    pub fn rotary(&self, text: usize, rows: usize, columns: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let too_large = || Error::graph("rotary", format!("{rows} x {columns} tokens are too many"));
        let (rows, columns) =
            (u32::try_from(rows).map_err(|_| too_large())?, u32::try_from(columns).map_err(|_| too_large())?);
        let mut positions = reserve::room("the positions", text.saturating_add(rows as usize * columns as usize))?;
        positions.extend(std::iter::repeat_n(vec![0, 0, 0], text));
        positions.extend((0..rows).flat_map(|row| (0..columns).map(move |column| vec![0, row, column])));
        rotary_tables(&self.config.axes_dims_rope, THETA, &positions)
    }
}

fn input(model: &mut Model, name: &str, extents: &[Extent]) -> Port {
    model.port(name, extents, DType::F32, Lifetime::Request)
}

/// A port of `[width, tokens, B]` that is carried through a step.
fn carried(model: &mut Model, name: &str, width: usize, tokens: Symbol) -> Port {
    model.port(name, &[width.into(), tokens.into(), Symbol::Batch.into()], DType::F32, Lifetime::Pass)
}

fn declare_stages(model: &mut Model, config: &Config, ports: &Ports) -> Result<()> {
    let hidden = config.hidden();
    let conditions = |width: usize| [Extent::from(width), Symbol::Conditions.into()];
    let vector = input(model, "vector", &conditions(hidden));
    let context = model.port(
        "context",
        &[hidden.into(), Symbol::TextTokens.into(), Symbol::Batch.into()],
        DType::F32,
        Lifetime::Request,
    );
    model.stage("vector", Cadence::Request, |s| VectorIn::declare(s, config, ports, vector))?;

    let mut double = Vec::new();
    for i in 0..config.num_layers {
        let img = input(model, &format!("modulation.double.{i}.img"), &conditions(6 * hidden));
        let txt = input(model, &format!("modulation.double.{i}.txt"), &conditions(6 * hidden));
        model.stage(format!("modulation.double.{i}"), Cadence::Request, |s| {
            let mut s = s.sub("double_blocks");
            let mut s = s.sub(i);
            let projections = vec![
                (Linear::declare(&mut s.sub("img_mod.lin"), hidden, 6 * hidden, Role::MatMul)?, img),
                (Linear::declare(&mut s.sub("txt_mod.lin"), hidden, 6 * hidden, Role::MatMul)?, txt),
            ];
            Ok(ModulationOut { vector, projections })
        })?;
        double.push((img, txt));
    }
    let mut single = Vec::new();
    for i in 0..config.num_single_layers {
        let out = input(model, &format!("modulation.single.{i}"), &conditions(3 * hidden));
        model.stage(format!("modulation.single.{i}"), Cadence::Request, |s| {
            let mut s = s.sub("single_blocks");
            let lin = Linear::declare(&mut s.sub(i).sub("modulation.lin"), hidden, 3 * hidden, Role::MatMul)?;
            Ok(ModulationOut { vector, projections: vec![(lin, out)] })
        })?;
        single.push(out);
    }
    let last = input(model, "modulation.final", &conditions(2 * hidden));
    model.stage("modulation.final", Cadence::Request, |s| {
        let mut s = s.sub("final_layer.adaLN_modulation.1");
        let lin = Linear::declare(&mut s, hidden, 2 * hidden, Role::SensitiveMatMul)?;
        Ok(ModulationOut { vector, projections: vec![(lin, last)] })
    })?;
    model.stage("context", Cadence::Request, |s| {
        let linear = Linear::declare(&mut s.sub("txt_in"), config.joint_attention_dim, hidden, Role::SensitiveMatMul)?;
        Ok(Embed { linear, from: ports.text, to: context })
    })?;

    let img = carried(model, "img", hidden, Symbol::ImageTokens);
    let txt = carried(model, "txt", hidden, Symbol::TextTokens);
    let joint = carried(model, "joint", hidden, Symbol::JointTokens);
    model.stage("embed", Cadence::Step, |s| {
        let linear = Linear::declare(&mut s.sub("img_in"), config.in_channels, hidden, Role::SensitiveMatMul)?;
        Ok(Embed { linear, from: ports.latents, to: img })
    })?;
    for (i, &(img_modulation, txt_modulation)) in double.iter().enumerate() {
        let txt_from = if i == 0 { context } else { txt };
        model.stage(format!("double.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("double_blocks");
            let mut s = s.sub(i);
            Ok(DoubleBlock {
                img: Stream::declare(&mut s, "img", config, (img, img), img_modulation)?,
                txt: Stream::declare(&mut s, "txt", config, (txt_from, txt), txt_modulation)?,
                rotary: Rotary::of(ports),
                condition: ports.condition,
            })
        })?;
    }
    let txt = if double.is_empty() { context } else { txt };
    model.stage("join", Cadence::Step, |_| Ok(Join { txt, img, joint }))?;
    for (i, &modulation) in single.iter().enumerate() {
        model.stage(format!("single.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("single_blocks");
            SingleBlock::declare(&mut s.sub(i), config, joint, modulation, ports)
        })?;
    }
    model.stage("final", Cadence::Step, |s| {
        let mut s = s.sub("final_layer.linear");
        let linear = Linear::declare(&mut s, hidden, config.out_channels(), Role::SensitiveMatMul)?;
        Ok(FinalLayer { linear, joint, modulation: last, condition: ports.condition, velocity: ports.velocity })
    })
}

/// Two linear layers with SiLU between them.
struct MlpEmbedder {
    in_layer: Linear,
    out_layer: Linear,
}

impl MlpEmbedder {
    fn declare(s: &mut Scope<'_>, inputs: usize, hidden: usize) -> Result<MlpEmbedder> {
        let in_layer = Linear::declare(&mut s.sub("in_layer"), inputs, hidden, Role::SensitiveMatMul)?;
        let out_layer = Linear::declare(&mut s.sub("out_layer"), hidden, hidden, Role::SensitiveMatMul)?;
        Ok(MlpEmbedder { in_layer, out_layer })
    }

    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        self.out_layer.build(b, b.g.silu(self.in_layer.build(b, x)?)?)
    }
}

/// What all modulation depends on: time, guidance and pooled prompt, added up.
struct VectorIn {
    time_in: MlpEmbedder,
    guidance_in: Option<(MlpEmbedder, Port)>,
    vector_in: MlpEmbedder,
    time: Port,
    pooled: Port,
    vector: Port,
}

impl VectorIn {
    fn declare(s: &mut Scope<'_>, config: &Config, ports: &Ports, vector: Port) -> Result<VectorIn> {
        let hidden = config.hidden();
        let time_in = MlpEmbedder::declare(&mut s.sub("time_in"), TIME_WIDTH, hidden)?;
        let guidance_in = match ports.guidance {
            Some(port) => Some((MlpEmbedder::declare(&mut s.sub("guidance_in"), TIME_WIDTH, hidden)?, port)),
            None => None,
        };
        let vector_in = MlpEmbedder::declare(&mut s.sub("vector_in"), config.pooled_projection_dim, hidden)?;
        Ok(VectorIn { time_in, guidance_in, vector_in, time: ports.time, pooled: ports.pooled, vector })
    }
}

impl Block for VectorIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut vector = self.time_in.build(b, b.read(self.time)?)?;
        if let Some((guidance_in, guidance)) = &self.guidance_in {
            vector = b.g.add(vector, guidance_in.build(b, b.read(*guidance)?)?)?;
        }
        vector = b.g.add(vector, self.vector_in.build(b, b.read(self.pooled)?)?)?;
        // Every modulation begins with the same SiLU.
        b.write(self.vector, b.g.silu(vector)?)
    }
}

/// The modulation of one block for all conditions.
struct ModulationOut {
    vector: Port,
    projections: Vec<(Linear, Port)>,
}

impl Block for ModulationOut {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let vector = b.read(self.vector)?;
        self.projections.iter().try_for_each(|(linear, port)| b.write(*port, linear.build(b, vector)?))
    }
}

/// A linear layer from port to port.
struct Embed {
    linear: Linear,
    from: Port,
    to: Port,
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.to, self.linear.build(b, b.read(self.from)?)?)
    }
}

/// One condition's modulation out of a port that holds all: `[parts * D, N]` to rows of `[D, 1, B]`.
struct Modulation<'b, 'a> {
    b: &'b Build<'a>,
    rows: Tensor, // [parts * D, 1, B]
    width: usize,
}

impl<'b, 'a> Modulation<'b, 'a> {
    fn read(b: &'b Build<'a>, port: Port, condition: Port, parts: usize) -> Result<Modulation<'b, 'a>> {
        let rows = b.g.get_rows(b.read(port)?, b.read(condition)?)?; // [parts * D, B]
        let [total, batch, ..] = b.g.shape(rows)?.dims();
        Ok(Modulation { b, rows: b.g.reshape(rows, &[total, 1, batch])?, width: total / parts })
    }

    fn part(&self, i: usize) -> Result<Tensor> {
        self.b.g.slice(self.rows, 0, i * self.width, self.width)
    }

    /// `norm(x) (1 + scale) + shift`, with shift and scale at parts `i` and `i + 1`.
    fn modulate(&self, x: Tensor, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        let scale = g.scale_bias(self.part(i + 1)?, 1.0, 1.0)?;
        g.add(g.mul(g.norm(x, EPS)?, scale)?, self.part(i)?)
    }

    /// `x + gate * y`, with the gate at part `i`.
    fn gated(&self, x: Tensor, y: Tensor, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        g.add(x, g.mul(y, self.part(i)?)?)
    }
}

/// Where the rotary tables are.
#[derive(Clone, Copy)]
struct Rotary {
    cos: Port,
    sin: Port,
}

impl Rotary {
    fn of(ports: &Ports) -> Rotary {
        Rotary { cos: ports.cos, sin: ports.sin }
    }

    /// Queries or keys `x [d, H, n, B]` of the tokens from `start` on, turned to their positions.
    fn turn(self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, tokens, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, tokens);
        b.g.rotate_pairs(x, of(self.cos)?, of(self.sin)?)
    }
}

/// Keys and values of all tokens. They are made before the first query looks at them, some tokens at a time.
struct Attention {
    k: Tensor, // [d, H, T, B]
    v: Tensor, // [d, H, T, B]
}

impl Attention {
    /// For `tokens` tokens, whose keys and values come with [`set`](Attention::set).
    fn new(b: &Build<'_>, norm: &QkNorm, tokens: usize) -> Result<Attention> {
        let dims = [norm.width, norm.heads, tokens, b.dim(Symbol::Batch)];
        Ok(Attention { k: b.g.unfilled(&dims)?, v: b.g.unfilled(&dims)? })
    }

    /// The keys and values of the tokens from `start` on.
    fn set(&self, b: &Build<'_>, start: usize, (k, v): (Tensor, Tensor)) -> Result<()> {
        b.g.fill(self.k, 2, start, k)?;
        b.g.fill(self.v, 2, start, v)
    }

    /// What some queries `q [d, H, n, B]` see: `[D, n, B]`.
    fn attend(&self, b: &Build<'_>, q: Tensor) -> Result<Tensor> {
        let [d, ..] = b.g.shape(q)?.dims();
        let tokens_second = |x| b.g.permute(x, [0, 2, 1, 3]);
        let (q, k, v) = (tokens_second(q)?, tokens_second(self.k)?, tokens_second(self.v)?);
        join_heads(b.g, b.g.flash_attention(q, k, v, 1.0 / (d as f32).sqrt())?)
    }
}

/// The normalisation of queries and keys.
struct QkNorm {
    query_norm: RmsNorm,
    key_norm: RmsNorm,
    width: usize,
    heads: usize,
}

impl QkNorm {
    fn declare(s: &mut Scope<'_>, config: &Config) -> Result<QkNorm> {
        let width = config.attention_head_dim;
        Ok(QkNorm {
            query_norm: RmsNorm::declare(&mut s.sub("query_norm"), "scale", width, EPS)?,
            key_norm: RmsNorm::declare(&mut s.sub("key_norm"), "scale", width, EPS)?,
            width,
            heads: config.num_attention_heads,
        })
    }

    /// The queries, `[d, H, n, B]`, of `x [D, n, B]`. `qkv` is the layer that makes queries, keys and values, in this order.
    fn queries(&self, b: &Build<'_>, qkv: &Linear, x: Tensor) -> Result<Tensor> {
        let q = qkv.build_outputs(b, x, 0..self.width * self.heads)?;
        self.query_norm.build(b, b.g.split_rows(q, self.heads)?)
    }

    /// The keys and values, `[d, H, n, B]` each, of `x [D, n, B]`.
    fn keys_and_values(&self, b: &Build<'_>, qkv: &Linear, x: Tensor) -> Result<(Tensor, Tensor)> {
        let hidden = self.width * self.heads;
        let both = qkv.build_outputs(b, x, hidden..3 * hidden)?; // [2D, n, B]
        let heads = |i: usize| b.g.split_rows(b.g.slice(both, 0, i * hidden, hidden)?, self.heads);
        Ok((self.key_norm.build(b, heads(0)?)?, heads(1)?))
    }
}

/// One of the two streams of a double block.
struct Stream {
    qkv: Linear,
    norm: QkNorm,
    proj: Linear,
    mlp_0: Linear,
    mlp_2: Linear,
    from: Port,
    to: Port,
    modulation: Port,
}

impl Stream {
    fn declare(
        s: &mut Scope<'_>,
        name: &str,
        config: &Config,
        (from, to): (Port, Port),
        modulation: Port,
    ) -> Result<Stream> {
        let (hidden, feed_forward) = (config.hidden(), config.feed_forward());
        let mut attn = s.sub(format!("{name}_attn"));
        let qkv = Linear::declare(&mut attn.sub("qkv"), hidden, 3 * hidden, Role::MatMul)?;
        let norm = QkNorm::declare(&mut attn.sub("norm"), config)?;
        let proj = Linear::declare(&mut attn.sub("proj"), hidden, hidden, Role::MatMul)?;
        let mut mlp = s.sub(format!("{name}_mlp"));
        let mlp_0 = Linear::declare(&mut mlp.sub(0), hidden, feed_forward, Role::MatMul)?;
        let mlp_2 = Linear::declare(&mut mlp.sub(2), feed_forward, hidden, Role::MatMul)?;
        Ok(Stream { qkv, norm, proj, mlp_0, mlp_2, from, to, modulation })
    }
}

/// A stream in one step: its modulation, and where its tokens stand among all.
struct Running<'s, 'b, 'a> {
    stream: &'s Stream,
    m: Modulation<'b, 'a>,
    tokens: Range<usize>,
    rotary: Rotary,
}

impl Running<'_, '_, '_> {
    /// The pieces in which it is computed, counted from the stream's first token.
    fn pieces(&self) -> Vec<Range<usize>> {
        self.m.b.token_ranges(self.tokens.len())
    }

    fn read(&self, piece: &Range<usize>) -> Result<Tensor> {
        let b = self.m.b;
        b.g.slice(b.read(self.stream.from)?, 1, piece.start, piece.len()) // [D, n, B]
    }

    /// Brings keys and values of the modulated stream. Where that is one piece it is returned, for the queries.
    fn set_attention(&self, attention: &Attention) -> Result<Option<Tensor>> {
        let Running { stream, m, .. } = self;
        let pieces = self.pieces();
        let mut modulated = None;
        for piece in &pieces {
            let start = self.tokens.start + piece.start;
            let x = m.modulate(self.read(piece)?, 0)?;
            modulated = Some(x);
            let (k, v) = stream.norm.keys_and_values(m.b, &stream.qkv, x)?;
            attention.set(m.b, start, (self.rotary.turn(m.b, k, start)?, v))?;
        }
        Ok(modulated.filter(|_| pieces.len() == 1))
    }

    /// The stream after its share of the attention, and after the feed-forward. `modulated` is what
    /// [`set_attention`](Running::set_attention) returned.
    fn advance(&self, attention: &Attention, modulated: Option<Tensor>) -> Result<()> {
        let Running { stream, m, .. } = self;
        let b = m.b;
        for piece in self.pieces() {
            let x = self.read(&piece)?;
            let modulated = modulated.map_or_else(|| m.modulate(x, 0), Ok)?;
            let q = stream.norm.queries(b, &stream.qkv, modulated)?;
            let q = self.rotary.turn(b, q, self.tokens.start + piece.start)?;
            let x = m.gated(x, stream.proj.build(b, attention.attend(b, q)?)?, 2)?;
            let inner = b.g.gelu_tanh(stream.mlp_0.build(b, m.modulate(x, 3)?)?)?; // [M, n, B]
            b.write_tokens(stream.to, piece.start, m.gated(x, stream.mlp_2.build(b, inner)?, 5)?)?;
        }
        Ok(())
    }
}

/// Text and image with weights of their own, attending to each other.
struct DoubleBlock {
    img: Stream,
    txt: Stream,
    rotary: Rotary,
    condition: Port,
}

impl Block for DoubleBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (text, all) = (b.dim(Symbol::TextTokens), b.dim(Symbol::JointTokens));
        // Text first.
        let streams = [(&self.txt, 0..text), (&self.img, text..all)];
        let [txt, img] = streams.map(|(stream, tokens)| {
            let m = Modulation::read(b, stream.modulation, self.condition, 6)?;
            Ok(Running { stream, m, tokens, rotary: self.rotary })
        });
        let streams = [txt?, img?];
        let attention = Attention::new(b, &self.img.norm, all)?;
        let [txt, img] = [0, 1].map(|i: usize| streams[i].set_attention(&attention));
        streams.iter().zip([txt?, img?]).try_for_each(|(stream, modulated)| stream.advance(&attention, modulated))
    }
}

/// Text and image become one sequence.
struct Join {
    txt: Port,
    img: Port,
    joint: Port,
}

impl Block for Join {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write_tokens(self.joint, 0, b.read(self.txt)?)?;
        b.write_tokens(self.joint, b.dim(Symbol::TextTokens), b.read(self.img)?)
    }
}

/// Attention and feed-forward side by side, over text and image in one sequence.
struct SingleBlock {
    linear1: Linear,
    norm: QkNorm,
    linear2: Linear,
    hidden: usize,
    feed_forward: usize,
    joint: Port,
    modulation: Port,
    rotary: Rotary,
    condition: Port,
}

impl SingleBlock {
    fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        joint: Port,
        modulation: Port,
        ports: &Ports,
    ) -> Result<SingleBlock> {
        let (hidden, feed_forward) = (config.hidden(), config.feed_forward());
        let linear1 = Linear::declare(&mut s.sub("linear1"), hidden, 3 * hidden + feed_forward, Role::MatMul)?;
        let norm = QkNorm::declare(&mut s.sub("norm"), config)?;
        let linear2 = Linear::declare(&mut s.sub("linear2"), hidden + feed_forward, hidden, Role::MatMul)?;
        Ok(SingleBlock {
            linear1,
            norm,
            linear2,
            hidden,
            feed_forward,
            joint,
            modulation,
            rotary: Rotary::of(ports),
            condition: ports.condition,
        })
    }
}

impl Block for SingleBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, self.condition, 3)?;
        let (tokens, SingleBlock { linear1, norm, .. }) = (b.dim(Symbol::JointTokens), self);
        let read = |piece: &Range<usize>| b.g.slice(b.read(self.joint)?, 1, piece.start, piece.len()); // [D, n, B]
        let attention = Attention::new(b, norm, tokens)?;
        let pieces = b.token_ranges(tokens);
        let mut whole = None;
        for piece in &pieces {
            let modulated = m.modulate(read(piece)?, 0)?;
            // Where this is all there is, queries come from it as well.
            whole = Some(modulated).filter(|_| pieces.len() == 1);
            let (k, v) = norm.keys_and_values(b, linear1, modulated)?;
            attention.set(b, piece.start, (self.rotary.turn(b, k, piece.start)?, v))?;
        }
        let mlp_outputs = 3 * self.hidden..3 * self.hidden + self.feed_forward;
        for piece in pieces {
            let x = read(&piece)?;
            let modulated = whole.map_or_else(|| m.modulate(x, 0), Ok)?;
            let q = self.rotary.turn(b, norm.queries(b, linear1, modulated)?, piece.start)?;
            let attended = attention.attend(b, q)?; // [D, n, B]
            let mlp = b.g.gelu_tanh(linear1.build_outputs(b, modulated, mlp_outputs.clone())?)?; // [M, n, B]
            let y = self.linear2.build(b, b.g.concat(attended, mlp, 0)?)?;
            b.write_tokens(self.joint, piece.start, m.gated(x, y, 2)?)?;
        }
        Ok(())
    }
}

/// From hidden states to the velocity of every image token.
struct FinalLayer {
    linear: Linear,
    joint: Port,
    modulation: Port,
    condition: Port,
    velocity: Port,
}

impl Block for FinalLayer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, self.condition, 2)?;
        let (text, image) = (b.dim(Symbol::TextTokens), b.dim(Symbol::ImageTokens));
        for piece in b.token_ranges(image) {
            let x = b.g.slice(b.read(self.joint)?, 1, text + piece.start, piece.len())?;
            b.write_tokens(self.velocity, piece.start, self.linear.build(b, m.modulate(x, 0)?)?)?;
        }
        Ok(())
    }
}

/// The sinusoidal embedding of `t` (already times 1000), [`TIME_WIDTH`] numbers, cosines first, in f32 as diffusers'
/// `get_timestep_embedding` computes it.
pub fn sinusoid(t: f32) -> Vec<f32> {
    let half = TIME_WIDTH / 2;
    let angle = |i: usize| t * (-(10000f32.ln()) * i as f32 / half as f32).exp();
    let cos = (0..half).map(|i| angle(i).cos());
    cos.chain((0..half).map(|i| angle(i).sin())).collect()
}

/// Latents `[w, h, channels]` as tokens `[4 channels, (w/2)(h/2)]`: each token holds, channel by channel, a 2x2 patch.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn pack_latents(latents: &[f32], width: usize, height: usize, channels: usize) -> Result<Vec<f32>> {
    let mut tokens = reserve::room("the latents", latents.len())?;
    for_each_packed(width, height, channels, |at| tokens.push(latents[at]));
    Ok(tokens)
}

/// The inverse of [`pack_latents`].
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn unpack_latents(tokens: &[f32], width: usize, height: usize, channels: usize) -> Result<Vec<f32>> {
    let mut latents = reserve::zeros("the latents", tokens.len())?;
    let mut packed = tokens.iter();
    for_each_packed(width, height, channels, |at| {
        if let Some(&value) = packed.next() {
            latents[at] = value;
        }
    });
    Ok(latents)
}

/// Calls `visit` with the position in `[w, h, channels]` of every number of the packed order. Sides are even.
fn for_each_packed(width: usize, height: usize, channels: usize, mut visit: impl FnMut(usize)) {
    for y in (0..height).step_by(2) {
        for x in (0..width).step_by(2) {
            for channel in 0..channels {
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    visit((channel * height + y + dy) * width + x + dx);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes() {
        assert_eq!(Flux::new(&Config::dev()).unwrap().model.manifest().parameters(), 11_901_408_320);
        assert_eq!(Flux::new(&Config::schnell()).unwrap().model.manifest().parameters(), 11_891_178_560);
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        for config in
            [Config::dev(), Config::schnell(), Config { num_layers: 2, num_attention_heads: 3, ..Config::dev() }]
        {
            let model = Flux::new(&config).unwrap().model;
            let shapes: std::collections::HashMap<String, Shape> =
                model.manifest().iter().map(|(_, weight)| (weight.name.clone(), weight.shape)).collect();
            assert_eq!(Config::from_shapes(|name| shapes.get(name).copied()), Some(config));
        }
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let broken = [
            Config { axes_dims_rope: vec![16, 56, 57], ..Config::dev() },
            Config { axes_dims_rope: vec![128], ..Config::dev() },
            Config { patch_size: 2, ..Config::dev() },
            Config { in_channels: 0, ..Config::dev() },
            Config { num_attention_heads: usize::MAX, ..Config::dev() },
        ];
        for config in broken {
            assert!(Flux::new(&config).is_err(), "{config:?}");
        }
    }

    #[test]
    fn packing_is_undone() {
        let latents: Vec<f32> = (0..6 * 4 * 3).map(|i| i as f32).collect();
        let tokens = pack_latents(&latents, 6, 4, 3).unwrap();
        assert_eq!(tokens[..4], [0.0, 1.0, 6.0, 7.0]);
        assert_eq!(tokens[4], 24.0); // the second channel of the first patch
        assert_eq!(unpack_latents(&tokens, 6, 4, 3).unwrap(), latents);
    }

    #[test]
    fn sinusoid_has_cosines_first() {
        let embedded = sinusoid(0.0);
        assert_eq!((embedded[0], embedded[127], embedded[128]), (1.0, 1.0, 0.0));
    }
}
