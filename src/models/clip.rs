//! CLIP's text encoder: a transformer over the tokens of the prompt, where each sees those before it.
//!
//! Follows `CLIPTextModel` of transformers (`models/clip/modeling_clip.py`), whose names the weights have; see Radford et
//! al., *Learning Transferable Visual Models From Natural Language Supervision* (arXiv:2103.00020).
//!
//! Legend: `D` hidden size, `H` heads, `T` tokens, `B` batch.
//!
//! | stage | in | out |
//! |---|---|---|
//! | (host) | token ids | `hidden [D, T, B]`: token plus position embedding; `mask [T, T]` |
//! | `layer.0`, `layer.1`, ... | `hidden`, `mask` | `hidden` |
//! | `final_norm` | `hidden` | `hidden`, the result |
//! | `projection` (of a model with [`Output::projected`]) | `hidden`, `end [B]` | `pooled [P, B]` |
//!
//! The pooled vector is the row of the result at [`Config::pooled_position`]. The hidden states may be those of an earlier layer:
//! see [`Output`].

use std::path::Path;

use pinhole_quant::DType;
use serde::{Deserialize, Serialize};

use super::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use super::layers::{Activation, LayerNorm, Linear, attention_with_bias, join_heads, split_heads};
use crate::ggml::Tensor;
use crate::stage::{Block, Build, Cadence, Lifetime, Model, Port, Symbol};
use crate::tensor::Shape;
use crate::weights::{Role, Scope, WeightId};
use crate::{Error, Result, reserve};

/// The settings of a text encoder, by their names in transformers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// How many tokens have an embedding.
    pub vocab_size: usize,
    /// `D`: the length of the vector of a token.
    pub hidden_size: usize,
    /// The length of that vector inside the feed-forward layers.
    pub intermediate_size: usize,
    /// How many layers there are.
    pub num_hidden_layers: usize,
    /// `H`: how many heads attention has. Divides `D`.
    pub num_attention_heads: usize,
    /// The longest text, in tokens.
    pub max_position_embeddings: usize,
    /// The function inside the feed-forward layers.
    pub hidden_act: Activation,
    /// What is added to the variance in norms.
    pub layer_norm_eps: f32,
    /// The id of the token that ends a text, or [`LEGACY_EOS`].
    pub eos_token_id: u32,
    /// `P`: the length of the pooled vector after its projection, in a model that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_dim: Option<usize>,
}

/// What a text encoder gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// How many of the last layers its hidden states have not been through: diffusers' `clip_skip`. Layers that nothing needs
    /// are not part of the model.
    pub skipped: usize,
    /// Whether the final norm is applied to the hidden states.
    pub normalised: bool,
    /// Whether the pooled vector, of the last layer after the final norm, goes through the `text_projection`.
    pub projected: bool,
    /// Whether the last layer of OpenCLIP's own files is left out for good, and those before it are counted as if it were not there:
    /// Stable Diffusion 2 was trained so, and diffusers' directories of it have one layer less.
    pub shortened: bool,
}

impl Output {
    /// The last layer's, normalised.
    pub const LAST: Output = Output { skipped: 0, normalised: true, projected: false, shortened: false };
    /// The last but one layer's as they are.
    pub const SECOND_LAST: Output = Output { skipped: 1, normalised: false, ..Output::LAST };
    /// The same, and the projected pooled vector.
    pub const SECOND_LAST_PROJECTED: Output = Output { projected: true, ..Output::SECOND_LAST };
}

/// The `eos_token_id` of configurations that were written before transformers looked at it: the end of the text is then
/// the token with the largest id.
pub const LEGACY_EOS: u32 = 2;

/// The width of a head in every published model, as far as shapes do not tell.
const HEAD_WIDTH: usize = 64;

/// The widest encoder that OpenAI published (CLIP-L). The wider ones are OpenCLIP's, with another activation.
pub(crate) const WIDEST_OF_OPENAI: usize = 768;

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            projection_dim: None,
        }
    }
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is not such a configuration or names an activation that
    /// pinhole does not have, and those of [`validate`](Config::validate).
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What
    /// shapes do not tell is what the published models have: heads of 64, and the activation of their makers.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [hidden_size, vocab_size, ..] = shapes.dims("text_model.embeddings.token_embedding.weight")?;
        let [_, positions, ..] = shapes.dims("text_model.embeddings.position_embedding.weight")?;
        let [_, intermediate_size, ..] = shapes.dims("text_model.encoder.layers.0.mlp.fc1.weight")?;
        let of_openai = hidden_size <= WIDEST_OF_OPENAI;
        let config = Config {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: shapes.count(|i| format!("text_model.encoder.layers.{i}.layer_norm1.weight")),
            num_attention_heads: hidden_size / HEAD_WIDTH,
            max_position_embeddings: positions,
            hidden_act: if of_openai { Activation::QuickGelu } else { Activation::Gelu },
            eos_token_id: LEGACY_EOS,
            projection_dim: match shapes.has("text_projection.weight") {
                true => Some(shapes.dims("text_projection.weight")?[1]),
                false => None,
            },
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("vocab_size", self.vocab_size, 1 << 24)?;
        limit("hidden_size", self.hidden_size, MOST_WIDTH)?;
        limit("intermediate_size", self.intermediate_size, MOST_WIDTH)?;
        limit("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)?;
        limit("max_position_embeddings", self.max_position_embeddings, 1 << 16)?;
        limit("projection_dim", self.projection_dim.unwrap_or(1), MOST_WIDTH)?;
        let (heads, width) = (self.num_attention_heads, self.hidden_size);
        let divides = heads > 0 && width.is_multiple_of(heads);
        config::require(origin, "num_attention_heads", divides, || format!("a divisor of {width}"), heads)?;
        let positive = self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0;
        config::require(origin, "layer_norm_eps", positive, || "a positive number".into(), self.layer_norm_eps)
    }

    /// Where in `ids` the token stands whose vector is the pooled one: at the first end of text. 0 where there is none.
    pub fn pooled_position(&self, ids: &[u32]) -> usize {
        let end = if self.eos_token_id == LEGACY_EOS { ids.iter().max() } else { Some(&self.eos_token_id) };
        end.and_then(|end| ids.iter().position(|id| id == end)).unwrap_or(0)
    }
}

/// What is added to attention's scores so that no token sees a later one: `[T (seen), T (seeing)]`, 0 or minus infinity.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn causal_mask(tokens: usize) -> Result<Vec<f32>> {
    let mut mask = reserve::room("CLIP's mask", tokens * tokens)?;
    for seeing in 0..tokens {
        mask.extend((0..tokens).map(|seen| if seen <= seeing { 0.0 } else { f32::NEG_INFINITY }));
    }
    Ok(mask)
}

/// Attention of every token to itself and those before.
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    scale: f32,
}

impl Attention {
    fn declare(scope: &mut Scope<'_>, config: &Config) -> Result<Attention> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let mut projection = |name| Linear::declare(&mut scope.sub(name), width, width, Role::MatMul);
        Ok(Attention {
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            heads,
            scale: (width as f32 / heads as f32).sqrt().recip(),
        })
    }

    fn build(&self, b: &Build<'_>, x: Tensor, mask: Tensor) -> Result<Tensor> {
        let q = split_heads(b.g, self.q_proj.build(b, x)?, self.heads)?; // [D/H, T, H, B]
        let k = split_heads(b.g, self.k_proj.build(b, x)?, self.heads)?;
        let v = split_heads(b.g, self.v_proj.build(b, x)?, self.heads)?;
        let mixed = attention_with_bias(b.g, q, k, v, mask, self.scale)?; // [D/H, H, T, B]
        self.out_proj.build(b, join_heads(b.g, mixed)?) // [D, T, B]
    }
}

/// Two linear layers with a function between them.
struct Mlp {
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
}

impl Mlp {
    fn declare(scope: &mut Scope<'_>, config: &Config) -> Result<Mlp> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            fc1: Linear::declare(&mut scope.sub("fc1"), width, inner, Role::MatMul)?,
            activation: config.hidden_act,
            fc2: Linear::declare(&mut scope.sub("fc2"), inner, width, Role::MatMul)?,
        })
    }

    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let inner = self.activation.build(b.g, self.fc1.build(b, x)?)?;
        self.fc2.build(b, inner)
    }
}

/// One layer: attention and feed-forward, each normalised first and added to what came in.
struct EncoderLayer {
    from: Port,
    to: Port,
    mask: Port,
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl EncoderLayer {
    fn declare(scope: &mut Scope<'_>, config: &Config, (from, to): (Port, Port), mask: Port) -> Result<EncoderLayer> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(EncoderLayer {
            from,
            to,
            mask,
            layer_norm1: LayerNorm::declare(&mut scope.sub("layer_norm1"), width, eps)?,
            self_attn: Attention::declare(&mut scope.sub("self_attn"), config)?,
            layer_norm2: LayerNorm::declare(&mut scope.sub("layer_norm2"), width, eps)?,
            mlp: Mlp::declare(&mut scope.sub("mlp"), config)?,
        })
    }
}

impl Block for EncoderLayer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (x, mask) = (b.read(self.from)?, b.read(self.mask)?);
        let x = b.g.add(x, self.self_attn.build(b, self.layer_norm1.build(b, x)?, mask)?)?;
        let x = b.g.add(x, self.mlp.build(b, self.layer_norm2.build(b, x)?)?)?;
        b.write(self.to, x)
    }
}

/// The norm after the last layer.
struct FinalNorm {
    hidden: Port,
    norm: LayerNorm,
}

impl FinalNorm {
    fn declare(scope: &mut Scope<'_>, config: &Config, hidden: Port) -> Result<FinalNorm> {
        let norm = LayerNorm::declare(&mut scope.sub("final_layer_norm"), config.hidden_size, config.layer_norm_eps)?;
        Ok(FinalNorm { hidden, norm })
    }
}

impl Block for FinalNorm {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.hidden, self.norm.build(b, b.read(self.hidden)?)?)
    }
}

/// The projection of the vector at each text's end.
struct Projection {
    text_projection: Linear,
    hidden: Port,
    end: Port,
    pooled: Port,
}

impl Block for Projection {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let hidden = b.read(self.hidden)?;
        let [width, tokens, batch, _] = b.g.shape(hidden)?.dims();
        let rows = b.g.reshape(hidden, &[width, tokens * batch])?;
        let ends = b.g.get_rows(rows, b.read(self.end)?)?; // [D, B]
        b.write(self.pooled, self.text_projection.build(b, ends)?)
    }
}

/// The ports of a projected pooled vector.
#[derive(Clone, Copy, Debug)]
pub struct Pooled {
    /// `[B]`, I32: in, where the text of each item ends: [`Config::pooled_position`], and `T` more for each item before it.
    pub end: Port,
    /// `[P, B]`: out.
    pub pooled: Port,
}

/// The text encoder.
pub struct Clip {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[D, vocab_size]`, on the host: the vector of each token.
    pub token_embedding: WeightId,
    /// `[D, max_position_embeddings]`, on the host: what is added to the vector at each position.
    pub position_embedding: WeightId,
    /// `[D, T, B]`: in, the embedded tokens.
    pub hidden: Port,
    /// `[D, T, B]`: out, the hidden states. The port `hidden` itself, if no later layer is needed.
    pub states: Port,
    /// The projected pooled vector, if it is wanted.
    pub pooled: Option<Pooled>,
    /// `[T, T]`: in, the [`causal_mask`].
    pub mask: Port,
}

impl Clip {
    /// The encoder that `config` describes, which gives its last hidden states.
    ///
    /// # Errors
    /// [`Error::Graph`] for sizes that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<Clip> {
        Clip::with(config, Output::LAST)
    }

    /// The encoder that `config` describes, which gives `output`.
    ///
    /// # Errors
    /// [`Error::Graph`] for sizes that [`Config::validate`] refuses, for more layers skipped than there
    /// are, for a projection that the model does not have, and for one beside normalised states of an earlier layer.
    pub fn with(config: &Config, output: Output) -> Result<Clip> {
        let layers = config.num_hidden_layers;
        let Output { skipped, normalised, projected, .. } = output;
        let through = layers.checked_sub(skipped).filter(|&through| through > 0);
        let through =
            through.ok_or_else(|| Error::graph("declare", format!("{skipped} of {layers} layers skipped")))?;
        if projected && normalised && skipped > 0 {
            return Err(Error::graph("declare", "one norm for the hidden states of two layers"));
        }
        let mut clip = Clip::inputs(config)?;
        let hidden = clip.hidden;
        if projected && skipped > 0 {
            // Later layers read it, and the host after them.
            clip.states = states(&mut clip.model, config, "states", Lifetime::Request);
        }
        for i in 0..if projected { layers } else { through } {
            let from = if i == through { clip.states } else { hidden };
            let to = if i + 1 == through { clip.states } else { hidden };
            clip.model.stage(format!("layer.{i}"), Cadence::Request, |scope| {
                EncoderLayer::declare(&mut scope.sub("text_model.encoder.layers").sub(i), config, (from, to), clip.mask)
            })?;
        }
        if normalised || projected {
            clip.model.stage("final_norm", Cadence::Request, |scope| {
                FinalNorm::declare(&mut scope.sub("text_model"), config, hidden)
            })?;
        }
        if projected {
            clip.pooled = Some(clip.project(config)?);
        }
        Ok(clip)
    }

    /// A model without layers.
    fn inputs(config: &Config) -> Result<Clip> {
        let (width, tokens) = (config.hidden_size, Symbol::TEXT_TOKENS.into());
        let mut model = Model::new();
        let [token_embedding, position_embedding] = model.on_host(|scope| {
            let mut scope = scope.sub("text_model.embeddings");
            let mut table = |name, rows| scope.weight(name, &[width, rows], Role::Embedding);
            Ok([
                table("token_embedding.weight", config.vocab_size)?,
                table("position_embedding.weight", config.max_position_embeddings)?,
            ])
        })?;
        let hidden = states(&mut model, config, "hidden", Lifetime::Pass);
        let mask = model.port("mask", &[tokens, tokens], DType::F32, Lifetime::Request);
        Ok(Clip { model, token_embedding, position_embedding, hidden, states: hidden, pooled: None, mask })
    }

    /// Adds the projection.
    fn project(&mut self, config: &Config) -> Result<Pooled> {
        let outputs = config.projection_dim.ok_or_else(|| Error::graph("declare", "a projection of no width"))?;
        let end = self.model.port("end", &[Symbol::BATCH.into()], DType::I32, Lifetime::Request);
        let extents = [outputs.into(), Symbol::BATCH.into()];
        let pooled = self.model.port("pooled", &extents, DType::F32, Lifetime::Pass);
        let hidden = self.hidden;
        self.model.stage("projection", Cadence::Request, |scope| {
            let mut scope = scope.sub("text_projection");
            let linear = Linear::declare_unbiased(&mut scope, config.hidden_size, outputs, Role::MatMul)?;
            Ok(Projection { text_projection: linear, hidden, end, pooled })
        })?;
        Ok(Pooled { end, pooled })
    }
}

/// A port of hidden states, `[D, T, B]`.
fn states(model: &mut Model, config: &Config, name: &str, lifetime: Lifetime) -> Port {
    let extents = [config.hidden_size.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()];
    model.port(name, &extents, DType::F32, lifetime)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// CLIP-L, the text encoder of FLUX.1.
    fn clip_l() -> Config {
        Config { hidden_size: 768, intermediate_size: 3072, num_attention_heads: 12, ..Config::default() }
    }

    /// The shapes of a file that holds exactly the weights of `model`.
    fn shapes_of(model: &Model) -> impl Fn(&str) -> Option<Shape> {
        |name| model.manifest().shape(name)
    }

    #[test]
    fn clip_l_has_its_published_size() {
        let clip = Clip::new(&clip_l()).unwrap();
        assert_eq!(clip.model.manifest().parameters(), 123_060_480);
        let names: Vec<_> = clip.model.stages().iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!((names.len(), names[0], names[11], names[12]), (13, "layer.0", "layer.11", "final_norm"));
        assert_eq!(clip.model.at(Cadence::Request), 0..13);
    }

    #[test]
    fn layers_that_nothing_needs_are_left_out() {
        let config = Config { projection_dim: Some(1280), ..clip_l() };
        let names = |output: Output| {
            let clip = Clip::with(&config, output).unwrap();
            let names: Vec<String> = clip.model.stages().iter().map(|stage| stage.name.clone()).collect();
            (names.len(), names.last().cloned().unwrap(), clip.states == clip.hidden)
        };
        assert_eq!(names(Output::SECOND_LAST), (11, "layer.10".into(), true));
        assert_eq!(names(Output::SECOND_LAST_PROJECTED), (14, "projection".into(), false));
        assert_eq!(names(Output { skipped: 2, ..Output::LAST }), (11, "final_norm".into(), true));
        let refused = |config: &Config, output| Clip::with(config, output).is_err();
        assert!(refused(&config, Output { skipped: 12, ..Output::LAST }));
        assert!(refused(&config, Output { normalised: true, ..Output::SECOND_LAST_PROJECTED }));
        assert!(refused(&clip_l(), Output::SECOND_LAST_PROJECTED));
    }

    #[test]
    fn clip_g_has_its_published_size() {
        let config = Config {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 20,
            hidden_act: Activation::Gelu,
            projection_dim: Some(1280),
            ..Config::default()
        };
        let clip = Clip::with(&config, Output::SECOND_LAST_PROJECTED).unwrap();
        assert_eq!(clip.model.manifest().parameters(), 694_659_840);
    }

    #[test]
    fn shapes_tell_the_sizes() {
        let big = Config { hidden_size: 1280, num_attention_heads: 20, hidden_act: Activation::Gelu, ..clip_l() };
        for config in [clip_l(), big] {
            let config = Config { eos_token_id: LEGACY_EOS, num_hidden_layers: 3, ..config };
            let clip = Clip::new(&config).unwrap();
            assert_eq!(Config::from_shapes(shapes_of(&clip.model), Path::new("clip.safetensors")).unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("clip.safetensors")).unwrap_err();
        assert!(error.to_string().starts_with("clip.safetensors: text_model.embeddings.token_embedding.weight"));
    }

    #[test]
    fn settings_are_read_with_their_defaults() {
        let read = |text: &str| Config::from_json(text, Path::new("config.json"));
        assert_eq!(read("{}").unwrap(), Config::default());
        let json = r#"{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "dtype": "float32"}"#;
        assert_eq!(read(json).unwrap(), clip_l());
        assert_eq!(read(r#"{"hidden_act": "gelu"}"#).unwrap().hidden_act, Activation::Gelu);
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refusal = |text: &str| Config::from_json(text, Path::new("config.json")).unwrap_err().to_string();
        assert_eq!(
            refusal(r#"{"num_attention_heads": 7}"#),
            "config.json: num_attention_heads: expected a divisor of 512, found 7"
        );
        assert!(refusal(r#"{"num_attention_heads": 0}"#).contains("found 0"));
        assert!(refusal(r#"{"num_hidden_layers": 100000}"#).contains("num_hidden_layers: expected 1 to 512"));
        assert!(refusal(r#"{"layer_norm_eps": 0}"#).contains("layer_norm_eps: expected a positive number"));
        assert!(refusal(r#"{"hidden_act": "mish"}"#).contains("mish"));
    }

    #[test]
    fn later_tokens_are_not_seen() {
        let inf = f32::NEG_INFINITY;
        assert_eq!(causal_mask(3).unwrap(), [0.0, inf, inf, 0.0, 0.0, inf, 0.0, 0.0, 0.0]);
        assert!(causal_mask(0).unwrap().is_empty());
    }

    #[test]
    fn the_pooled_vector_is_at_the_first_end() {
        let legacy = Config { eos_token_id: LEGACY_EOS, ..clip_l() };
        assert_eq!(legacy.pooled_position(&[0, 5, 697, 3, 697]), 2);
        assert_eq!(clip_l().pooled_position(&[49406, 5, 49407, 49407]), 2);
        let other = Config { eos_token_id: 7, ..clip_l() };
        assert_eq!(other.pooled_position(&[9, 5, 7, 7]), 2);
        assert_eq!(other.pooled_position(&[9, 5]), 0);
        assert_eq!(legacy.pooled_position(&[]), 0);
    }
}
