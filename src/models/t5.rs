//! T5's encoder, as of version 1.1: a transformer over the tokens of the prompt, whose only idea of their order is a
//! bias on attention's scores by distance.
//!
//! Follows `T5EncoderModel` of transformers (`models/t5/modeling_t5.py`); the weights have llama.cpp's names. See Raffel
//! et al., *Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer* (arXiv:1910.10683). Nothing
//! is masked: padding is attended to and kept. Its relative umt5 (`models/umt5/modeling_umt5.py`) has a bias in every layer, and its
//! padding is masked.
//!
//! Legend: `D` model width, `H` heads, `K` width of a head (`H K` need not be `D`), `F` inner width of the feed-forward
//! layers, `T` tokens, `B` batch.
//!
//! | stage | in | out |
//! |---|---|---|
//! | (host) | token ids | `hidden [D, T, B]`: embeddings; `buckets [T T]` |
//! | `position_bias` (not of umt5) | `buckets` | `position_bias [T, T, H]` |
//! | `layer.0`, `layer.1`, ... | `hidden`, `position_bias`; of umt5 `buckets`, `mask [T]` | `hidden` |
//! | `final_norm` | `hidden` | `hidden`, the result |

use std::path::Path;

use pinhole_quant::DType;
use serde::{Deserialize, Serialize};

use super::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use super::layers::{Activation, Linear, RmsNorm, attention_with_bias, join_heads, split_heads};
use crate::ggml::Tensor;
use crate::stage::{Block, Build, Cadence, Lifetime, Model, Port, Symbol};
use crate::tensor::Shape;
use crate::weights::{Role, Scope, WeightId};
use crate::{Error, Result};

/// The family whose layers each have a bias of their own.
const UMT5: &str = "umt5";

/// The settings of an encoder, by their names in transformers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// The family: `t5`, or `mt5`, which has the same encoder, or `umt5`, whose layers have biases of their own.
    pub model_type: String,
    /// How many tokens have an embedding.
    pub vocab_size: usize,
    /// `D`: the length of the vector of a token.
    pub d_model: usize,
    /// `K`: the width of a head.
    pub d_kv: usize,
    /// `F`: the inner width of the feed-forward layers.
    pub d_ff: usize,
    /// How many layers there are.
    pub num_layers: usize,
    /// `H`: how many heads attention has.
    pub num_heads: usize,
    /// How many classes of distances there are, half of them for tokens that come later.
    pub relative_attention_num_buckets: usize,
    /// From which distance on all are of one class.
    pub relative_attention_max_distance: usize,
    /// What is added to the mean square in norms.
    pub layer_norm_epsilon: f32,
    /// The kind of feed-forward layer.
    pub feed_forward_proj: FeedForwardProj,
}

/// A kind of feed-forward layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum FeedForwardProj {
    /// The original T5's, which pinhole does not compute.
    #[default]
    #[serde(rename = "relu")]
    Relu,
    /// Version 1.1's: gated by GELU, in the tanh approximation.
    #[serde(rename = "gated-gelu")]
    GatedGelu,
    /// Gated by SiLU.
    #[serde(rename = "gated-silu")]
    GatedSilu,
}

impl FeedForwardProj {
    /// The function of the gate.
    fn activation(self) -> Option<Activation> {
        match self {
            FeedForwardProj::Relu => None,
            FeedForwardProj::GatedGelu => Some(Activation::GeluNew),
            FeedForwardProj::GatedSilu => Some(Activation::Silu),
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            model_type: "t5".into(),
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: FeedForwardProj::default(),
        }
    }
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is not such a configuration, and those of [`validate`](Config::validate).
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What
    /// shapes do not tell is as in version 1.1.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a weight is missing or the file holds another kind of T5, and those of
    /// [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [d_model, vocab_size, ..] = shapes.dims("token_embd.weight")?;
        let [num_heads, buckets, ..] = shapes.dims("enc.blk.0.attn_rel_b.weight")?;
        let [_, all_heads, ..] = shapes.dims("enc.blk.0.attn_q.weight")?;
        let [_, d_ff, ..] = shapes.dims("enc.blk.0.ffn_up.weight")?;
        let gated = shapes.has("enc.blk.0.ffn_gate.weight");
        let config = Config {
            model_type: if shapes.has("enc.blk.1.attn_rel_b.weight") { UMT5 } else { "t5" }.into(),
            vocab_size,
            d_model,
            d_kv: all_heads / num_heads, // extents are never 0
            d_ff,
            num_layers: shapes.count(|i| format!("enc.blk.{i}.attn_norm.weight")),
            num_heads,
            relative_attention_num_buckets: buckets,
            feed_forward_proj: if gated { FeedForwardProj::GatedGelu } else { FeedForwardProj::Relu },
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make a model that pinhole computes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let known = ["t5", "mt5", UMT5].contains(&self.model_type.as_str());
        config::require(origin, "model_type", known, || "t5, mt5 or umt5".into(), &self.model_type)?;
        let gated = self.feed_forward_proj.activation().is_some();
        config::require(origin, "feed_forward_proj", gated, || "gated-gelu or gated-silu".into(), "relu")
            .map_err(|error| error.with_hint("the original T5 is not supported, version 1.1 is"))?;
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("vocab_size", self.vocab_size, 1 << 24)?;
        limit("d_model", self.d_model, MOST_WIDTH)?;
        limit("d_kv", self.d_kv, 1 << 12)?;
        limit("d_ff", self.d_ff, MOST_WIDTH)?;
        limit("num_layers", self.num_layers, MOST_LAYERS)?;
        limit("num_heads", self.num_heads, 1 << 12)?;
        let (buckets, farthest) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        // Fewer leave no class for a distance of 1; and the classes beyond those of one distance need distances.
        config::limit(origin, "relative_attention_num_buckets", buckets, 4..=1 << 16)?;
        config::limit(origin, "relative_attention_max_distance", farthest, buckets / 4 + 1..=1 << 24)?;
        let positive = self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon > 0.0;
        config::require(origin, "layer_norm_epsilon", positive, || "a positive number".into(), self.layer_norm_epsilon)
    }

    /// Whether every layer has a bias of its own, and padding is not attended to.
    pub fn is_umt5(&self) -> bool {
        self.model_type == UMT5
    }

    /// The class of the distance of every pair of `tokens` tokens: `[T (seen), T (seeing)]`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn buckets(&self, tokens: usize) -> Result<Vec<i32>> {
        let pairs = tokens.saturating_mul(tokens);
        let tokens = i32::try_from(tokens).unwrap_or(i32::MAX); // squares beyond fail to allocate in any case
        let all = (0..tokens).flat_map(|seeing| (0..tokens).map(move |seen| self.bucket(seen - seeing)));
        crate::reserve::collect("T5's positions", pairs, all)
    }

    /// The class of a token `offset` places later: transformers' `_relative_position_bucket`, in single precision as
    /// there. Half of the classes are for later tokens. In each half, the first half has one distance each, the other
    /// ever wider ranges, as the logarithm grows.
    fn bucket(&self, offset: i32) -> i32 {
        let half = self.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let distance = offset.unsigned_abs() as usize;
        let class = if distance < exact {
            distance
        } else {
            let farthest = self.relative_attention_max_distance as f64 / exact as f64;
            let share = (distance as f32 / exact as f32).ln() / farthest.ln() as f32;
            (exact + (share * (half - exact) as f32) as usize).min(half - 1)
        };
        (class + if offset > 0 { half } else { 0 }) as i32 // below the number of classes, which is small
    }
}

/// The bias on attention's scores: one that all layers share, or that of a layer.
struct PositionBias {
    buckets: Port,
    position_bias: Port,
    attn_rel_b: WeightId,
    heads: usize,
}

impl PositionBias {
    fn declare(scope: &mut Scope<'_>, config: &Config, buckets: Port, position_bias: Port) -> Result<PositionBias> {
        let (heads, classes) = (config.num_heads, config.relative_attention_num_buckets);
        // A small table, read by rows on the device: kept in F32.
        let attn_rel_b = scope.weight("attn_rel_b.weight", &[heads, classes], Role::Vector)?;
        Ok(PositionBias { buckets, position_bias, attn_rel_b, heads })
    }
}

impl PositionBias {
    /// `[T, T, H]`
    fn bias(&self, b: &Build<'_>) -> Result<Tensor> {
        let tokens = b.dim(Symbol::TEXT_TOKENS)?;
        let bias = b.g.get_rows(b.weight(self.attn_rel_b)?, b.read(self.buckets)?)?; // [H, T T]
        let bias = b.g.reshape(bias, &[self.heads, tokens, tokens])?;
        b.g.contiguous(b.g.permute(bias, [2, 0, 1, 3])?)
    }
}

impl Block for PositionBias {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.position_bias, self.bias(b)?)
    }
}

/// Attention of every token to all, with scores that are not scaled.
struct Attention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
}

impl Attention {
    fn declare(scope: &mut Scope<'_>, config: &Config) -> Result<Attention> {
        let (width, all_heads) = (config.d_model, config.d_kv * config.num_heads);
        let norm = RmsNorm::declare(&mut scope.sub("attn_norm"), "weight", width, config.layer_norm_epsilon)?;
        let mut linear =
            |name, inputs, outputs| Linear::declare_unbiased(&mut scope.sub(name), inputs, outputs, Role::MatMul);
        Ok(Attention {
            norm,
            q: linear("attn_q", width, all_heads)?,
            k: linear("attn_k", width, all_heads)?,
            v: linear("attn_v", width, all_heads)?,
            o: linear("attn_o", all_heads, width)?,
            heads: config.num_heads,
        })
    }

    fn build(&self, b: &Build<'_>, x: Tensor, bias: Tensor) -> Result<Tensor> {
        let x = self.norm.build(b, x)?;
        let q = split_heads(b.g, self.q.build(b, x)?, self.heads)?; // [K, T, H, B]
        let k = split_heads(b.g, self.k.build(b, x)?, self.heads)?;
        let v = split_heads(b.g, self.v.build(b, x)?, self.heads)?;
        let mixed = attention_with_bias(b.g, q, k, v, bias, 1.0)?; // [K, H, T, B]
        self.o.build(b, join_heads(b.g, mixed)?) // [D, T, B]
    }
}

/// The gated feed-forward layer.
struct FeedForward {
    norm: RmsNorm,
    gate: Linear,
    activation: Activation,
    up: Linear,
    down: Linear,
}

impl FeedForward {
    fn declare(scope: &mut Scope<'_>, config: &Config) -> Result<FeedForward> {
        let (width, inner) = (config.d_model, config.d_ff);
        let activation = config.feed_forward_proj.activation();
        Ok(FeedForward {
            norm: RmsNorm::declare(&mut scope.sub("ffn_norm"), "weight", width, config.layer_norm_epsilon)?,
            gate: Linear::declare_unbiased(&mut scope.sub("ffn_gate"), width, inner, Role::MatMul)?,
            activation: activation.ok_or_else(|| Error::graph("declare", "a feed-forward layer without a gate"))?,
            up: Linear::declare_unbiased(&mut scope.sub("ffn_up"), width, inner, Role::MatMul)?,
            // What goes in exceeds F16's range in the largest T5.
            down: Linear::declare_unbiased(&mut scope.sub("ffn_down"), inner, width, Role::WideMatMul)?,
        })
    }

    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let x = self.norm.build(b, x)?;
        let gate = self.activation.build(b.g, self.gate.build(b, x)?)?; // [F, T, B]
        self.down.build(b, b.g.mul(gate, self.up.build(b, x)?)?) // [D, T, B]
    }
}

/// One layer: attention and feed-forward, each normalised first and added to what came in.
struct Layer {
    hidden: Port,
    /// The bias of all layers, or what hides padding from the layers of umt5.
    position_bias: Port,
    /// The bias of this layer.
    own_bias: Option<PositionBias>,
    attention: Attention,
    feed_forward: FeedForward,
}

impl Layer {
    fn declare(
        scope: &mut Scope<'_>,
        config: &Config,
        hidden: Port,
        (buckets, position_bias): (Port, Port),
    ) -> Result<Layer> {
        let own_bias = match config.is_umt5() {
            true => Some(PositionBias::declare(scope, config, buckets, position_bias)?),
            false => None,
        };
        let attention = Attention::declare(scope, config)?;
        Ok(Layer { hidden, position_bias, own_bias, attention, feed_forward: FeedForward::declare(scope, config)? })
    }
}

impl Block for Layer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (x, shared) = (b.read(self.hidden)?, b.read(self.position_bias)?);
        let bias = match &self.own_bias {
            Some(own) => b.g.add(own.bias(b)?, shared)?,
            None => shared,
        };
        let x = b.g.add(x, self.attention.build(b, x, bias)?)?;
        let x = b.g.add(x, self.feed_forward.build(b, x)?)?;
        b.write(self.hidden, x)
    }
}

/// The norm after the last layer.
struct FinalNorm {
    hidden: Port,
    norm: RmsNorm,
}

impl FinalNorm {
    fn declare(scope: &mut Scope<'_>, config: &Config, hidden: Port) -> Result<FinalNorm> {
        let mut scope = scope.sub("output_norm");
        Ok(FinalNorm {
            hidden,
            norm: RmsNorm::declare(&mut scope, "weight", config.d_model, config.layer_norm_epsilon)?,
        })
    }
}

impl Block for FinalNorm {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.hidden, self.norm.build(b, b.read(self.hidden)?)?)
    }
}

/// The encoder.
pub struct T5 {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[D, vocab_size]`, on the host: the vector of each token.
    pub token_embedding: WeightId,
    /// `[D, T, B]`: in, the embedded tokens; out, the result.
    pub hidden: Port,
    /// `[T T]` whole numbers: in, the [buckets](Config::buckets).
    pub buckets: Port,
    /// `[T]`, of umt5: in, what is added to the scores of each token that is seen. It hides padding.
    pub mask: Option<Port>,
}

impl T5 {
    /// The encoder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for settings that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<T5> {
        let (width, heads, tokens) = (config.d_model.into(), config.num_heads.into(), Symbol::TEXT_TOKENS.into());
        let mut model = Model::new();
        let token_embedding = model.on_host(|scope| {
            scope.weight("token_embd.weight", &[config.d_model, config.vocab_size], Role::Embedding)
        })?;
        let hidden = model.port("hidden", &[width, tokens, Symbol::BATCH.into()], DType::F32, Lifetime::Pass);
        let buckets = model.port("buckets", &[Symbol::TEXT_PAIRS.into()], DType::I32, Lifetime::Request);
        let mask = config.is_umt5().then(|| model.port("mask", &[tokens], DType::F32, Lifetime::Pass));
        let position_bias = match mask {
            Some(mask) => mask,
            None => model.port("position_bias", &[tokens, tokens, heads], DType::F32, Lifetime::Request),
        };
        if mask.is_none() {
            model.stage("position_bias", Cadence::Request, |scope| {
                PositionBias::declare(&mut scope.sub("enc.blk.0"), config, buckets, position_bias)
            })?;
        }
        for i in 0..config.num_layers {
            model.stage(format!("layer.{i}"), Cadence::Request, |scope| {
                Layer::declare(&mut scope.sub("enc.blk").sub(i), config, hidden, (buckets, position_bias))
            })?;
        }
        model
            .stage("final_norm", Cadence::Request, |scope| FinalNorm::declare(&mut scope.sub("enc"), config, hidden))?;
        Ok(T5 { model, token_embedding, hidden, buckets, mask })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The encoder of T5 1.1 XXL, the larger text encoder of FLUX.1.
    fn xxl() -> Config {
        Config {
            d_model: 4096,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            feed_forward_proj: FeedForwardProj::GatedGelu,
            ..Config::default()
        }
    }

    /// The shapes of a file that holds exactly the weights of `model`.
    fn shapes_of(model: &Model) -> impl Fn(&str) -> Option<Shape> {
        |name| model.manifest().shape(name)
    }

    #[test]
    fn xxl_has_its_published_size() {
        let t5 = T5::new(&xxl()).unwrap();
        assert_eq!(t5.model.manifest().parameters(), 4_762_310_656);
        let names: Vec<_> = t5.model.stages().iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!((names.len(), names[0], names[24], names[25]), (26, "position_bias", "layer.23", "final_norm"));
        let wide = t5.model.manifest().iter().filter(|(_, weight)| weight.role == Role::WideMatMul);
        assert_eq!(wide.count(), 24);
    }

    #[test]
    fn umt5_xxl_has_its_published_size() {
        let t5 = T5::new(&Config { model_type: UMT5.into(), vocab_size: 256_384, ..xxl() }).unwrap();
        assert_eq!(t5.model.manifest().parameters(), 5_680_910_336);
        assert_eq!((t5.model.stages().len(), t5.mask.is_some()), (25, true));
    }

    #[test]
    fn shapes_tell_the_sizes() {
        let odd = Config { d_model: 96, d_kv: 16, num_heads: 4, relative_attention_num_buckets: 16, ..xxl() };
        for config in [xxl(), odd] {
            let config = Config { num_layers: 3, ..config };
            let t5 = T5::new(&config).unwrap();
            assert_eq!(Config::from_shapes(shapes_of(&t5.model), Path::new("t5.gguf")).unwrap(), config);
        }
    }

    #[test]
    fn other_kinds_are_refused() {
        let t5 = T5::new(&xxl()).unwrap();
        let file = shapes_of(&t5.model);
        let error =
            Config::from_shapes(|name| file(name).filter(|_| !name.ends_with("ffn_gate.weight")), Path::new("t5.gguf"))
                .unwrap_err();
        assert_eq!(error.to_string(), "t5.gguf: feed_forward_proj: expected gated-gelu or gated-silu, found relu");
        assert!(error.hint().unwrap().contains("version 1.1"));
        // umt5 has a bias in every layer.
        let config = Config::from_shapes(
            |name| file(&name.replace("blk.1.attn_rel_b", "blk.0.attn_rel_b")),
            Path::new("t5.gguf"),
        )
        .unwrap();
        assert!(config.is_umt5() && config == Config { model_type: "umt5".into(), ..xxl() });
        let error = Config { model_type: "long-t5".into(), ..xxl() }.validate(Path::new("t5.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "t5.gguf: model_type: expected t5, mt5 or umt5, found long-t5");
        assert!(Config::from_shapes(|_| None, Path::new("t5.gguf")).is_err());
    }

    #[test]
    fn settings_are_read_with_their_defaults() {
        let read = |text: &str| Config::from_json(text, Path::new("config.json"));
        let json = r#"{"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "use_cache": true,
            "feed_forward_proj": "gated-gelu", "model_type": "t5"}"#;
        assert_eq!(read(json).unwrap(), xxl());
        assert_eq!(read(&serde_json::to_string(&xxl()).unwrap()).unwrap(), xxl());
        assert!(read("{}").unwrap_err().to_string().contains("feed_forward_proj"));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let wrong = [
            Config { num_heads: 0, ..xxl() },
            Config { relative_attention_num_buckets: 3, ..xxl() },
            Config { relative_attention_max_distance: 8, ..xxl() },
            Config { layer_norm_epsilon: f32::NAN, ..xxl() },
        ];
        for config in wrong {
            assert!(matches!(config.validate(Path::new("")), Err(Error::Mismatch { .. })), "{config:?}");
        }
    }

    /// How many distances each class has, from distance 0 outwards to 600.
    fn classes(config: &Config, sign: i32) -> Vec<(i32, usize)> {
        let mut classes: Vec<(i32, usize)> = Vec::new();
        for distance in 0..=600 {
            match config.bucket(sign * distance) {
                class if classes.last().is_some_and(|last| last.0 == class) => classes.last_mut().unwrap().1 += 1,
                class => classes.push((class, 1)),
            }
        }
        classes
    }

    /// What transformers 5.23 computes (`T5Attention._relative_position_bucket`): the distances in each class, in order.
    #[test]
    fn buckets_are_those_of_transformers() {
        let golden: [(usize, usize, &[usize]); 5] = [
            (32, 128, &[1, 1, 1, 1, 1, 1, 1, 1, 4, 4, 7, 9, 14, 18, 27, 510]),
            (16, 24, &[1, 1, 1, 1, 3, 3, 6, 585]),
            (
                64,
                256,
                &[
                    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 3, 4, 5, 7, 7, 8, 10, 13, 14, 17, 20, 25, 29,
                    34, 385,
                ],
            ),
            (32, 256, &[1, 1, 1, 1, 1, 1, 1, 1, 5, 7, 10, 16, 24, 38, 58, 435]),
            (8, 20, &[1, 1, 5, 594]),
        ];
        for (buckets, farthest, distances) in golden {
            let config = Config {
                relative_attention_num_buckets: buckets,
                relative_attention_max_distance: farthest,
                ..Config::default()
            };
            let half = buckets as i32 / 2;
            let earlier: Vec<_> = (0..).zip(distances.iter().copied()).collect();
            assert_eq!(classes(&config, -1), earlier, "{buckets}, {farthest}");
            // Distance 0 is no later token: its class is the first of the other half.
            let later: Vec<_> = earlier.iter().map(|&(i, n)| (if i == 0 { 0 } else { i + half }, n)).collect();
            assert_eq!(classes(&config, 1), later, "{buckets}, {farthest}");
        }
    }

    #[test]
    fn pairs_are_listed_by_the_token_that_sees() {
        assert_eq!(xxl().buckets(3).unwrap(), [0, 17, 18, 1, 0, 17, 2, 1, 0]);
        assert_eq!(xxl().buckets(600).unwrap().len(), 360_000);
    }
}
