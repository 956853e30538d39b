//! Decoder-only language models as text encoders: Qwen3, Qwen3-VL, Qwen2.5 and Mistral, by their configuration.
//!
//! Follows `Qwen3Model`, `Qwen3VLTextModel`, `Qwen2Model` and `MistralModel` of transformers; the weights have llama.cpp's names. What is taken of a text
//! are the hidden states after one layer or several: see [`Taps`]. Layers beyond the last of these are not part of the model, and
//! neither is what would make words of the states.
//!
//! Legend: `D` hidden size, `H` heads, `G` heads of keys and values, `d` width of a head, `F` inner width of the feed-forward layers,
//! `T` tokens, `B` batch.
//!
//! | stage | in | out |
//! |---|---|---|
//! | (host) | token ids | `hidden [D, T, B]`: embeddings; `mask [T, T]`; `cos`, `sin [d, 1, T]` |
//! | `layer.0`, `layer.1`, ... | `hidden`, `mask`, `cos`, `sin` (`deepstack.N`) | `hidden`, or where it is tapped, `states.N` |
//! | `final_norm` (if the last tap asks for it) | `hidden` | `hidden` |
//!
//! Qwen3-VL's vision tower gives more of a picture than its tokens: what is added to these behind the first layers, `deepstack.N`.
//!
//! No token sees a later one, so that what stands behind a text changes nothing of it: shorter texts are filled up with any token. Where
//! the states of what fills up a text are read as well, they see the text alone: [`mask_of`].

mod config;

pub use config::{Config, QWEN3_VL};

use std::ops::Range;

use pinhole_quant::DType;

use super::attention::Attention;
use super::layers::{Linear, RmsNorm};
use crate::ggml::Tensor;
use crate::stage::{Block, Build, Cadence, Lifetime, Model, Port, Symbol};
use crate::weights::{Role, Scope, WeightId};
use crate::{Error, Result, reserve};

/// The tokens that the model is told more of behind its first layers: all of a text, or one that stands for all where there is nothing to
/// tell.
pub const TOLD_TOKENS: Symbol = Symbol::new("tokens that more is told of");

/// Which hidden states are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taps {
    /// How many layers each of them has been through, the fewest first.
    pub after: Vec<usize>,
    /// Whether the last of them goes through the final norm.
    pub normalised: bool,
}

impl Taps {
    /// Those that have been through `layers` layers, as they are.
    pub fn after(layers: usize) -> Taps {
        Taps { after: vec![layers], normalised: false }
    }
}

/// What is added to attention's scores so that no token sees a later one: `[T (seen), T (seeing)]`, 0 or minus infinity.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn causal_mask(tokens: usize) -> Result<Vec<f32>> {
    mask_of(tokens, &(0..tokens))
}

/// The same where only the tokens of `text` are seen. Those before it, which see none, see themselves, so that the scores stay finite;
/// what they see is not [`kept`](Positions::kept).
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn mask_of(tokens: usize, text: &Range<usize>) -> Result<Vec<f32>> {
    let mut mask = reserve::room("a mask", tokens.saturating_mul(tokens))?;
    for seeing in 0..tokens {
        for seen in 0..tokens {
            let is_seen = seen <= seeing && text.contains(&seen) || seen == seeing && seeing < text.start;
            mask.push(if is_seen { 0.0 } else { f32::NEG_INFINITY });
        }
    }
    Ok(mask)
}

/// The ports that the host fills and every layer reads.
#[derive(Clone, Copy, Debug)]
pub struct Positions {
    /// `[T, T]`: the [`causal_mask`].
    pub mask: Port,
    /// `[d, 1, T]`: see [`Config::rotary`].
    pub cos: Port,
    /// `[d, 1, T]`: see [`Config::rotary`].
    pub sin: Port,
    /// `[1, T]`: 0 for tokens before a text, from which attention takes nothing, and 1 for the others. Of models whose texts are
    /// [filled up on the left](Config::fills_left).
    pub kept: Option<Port>,
}

/// Attention of every token to itself and those before. Neighbouring heads share keys and values.
struct SelfAttention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    output: Linear,
    heads: usize,
    groups: usize,
    interleaved: bool,
    positions: Positions,
}

impl SelfAttention {
    fn declare(s: &mut Scope<'_>, config: &Config, positions: Positions) -> Result<SelfAttention> {
        let (hidden, d, eps) = (config.hidden_size, config.head_width(), config.rms_norm_eps);
        let (heads, groups) = (config.num_attention_heads, config.groups());
        let norm = RmsNorm::declare(&mut s.sub("attn_norm"), "weight", hidden, eps)?;
        let mut projection = |name: &str, outputs| match config.has_biases() {
            true => Linear::declare(&mut s.sub(name), hidden, outputs, Role::MatMul),
            false => Linear::declare_unbiased(&mut s.sub(name), hidden, outputs, Role::MatMul),
        };
        let (q, k, v) =
            (projection("attn_q", d * heads)?, projection("attn_k", d * groups)?, projection("attn_v", d * groups)?);
        let mut head_norm = |name: &str| match config.has_head_norms() {
            true => RmsNorm::declare(&mut s.sub(name), "weight", d, eps).map(Some),
            false => Ok(None),
        };
        let (q_norm, k_norm) = (head_norm("attn_q_norm")?, head_norm("attn_k_norm")?);
        let output = Linear::declare_unbiased(&mut s.sub("attn_output"), d * heads, hidden, Role::MatMul)?;
        let interleaved = config.rope_interleaved;
        Ok(SelfAttention { norm, q, k, v, q_norm, k_norm, output, heads, groups, interleaved, positions })
    }

    /// Queries or keys of `x [d H, T, B]`, normalised and turned to their positions: `[d, H, T, B]`.
    fn turned(&self, b: &Build<'_>, x: Tensor, heads: usize, norm: Option<&RmsNorm>) -> Result<Tensor> {
        let x = b.g.split_rows(x, heads)?;
        let x = norm.map_or(Ok(x), |norm| norm.build(b, x))?;
        let (cos, sin) = (b.read(self.positions.cos)?, b.read(self.positions.sin)?);
        if self.interleaved { b.g.rotate_pairs(x, cos, sin) } else { b.g.rotate_halves(x, cos, sin) }
    }

    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let x = self.norm.build(b, x)?;
        let q = self.turned(b, self.q.build(b, x)?, self.heads, self.q_norm.as_ref())?;
        let k = self.turned(b, self.k.build(b, x)?, self.groups, self.k_norm.as_ref())?;
        let v = b.g.split_rows(self.v.build(b, x)?, self.groups)?; // [d, G, T, B]
        let mask = b.g.to_f16(b.read(self.positions.mask)?)?;
        let attended = Attention::of(k, v).attend_masked(b, q, Some(mask))?; // [d H, T, B]
        let attended = match self.positions.kept {
            Some(kept) => b.g.mul(attended, b.read(kept)?)?,
            None => attended,
        };
        self.output.build(b, attended) // [D, T, B]
    }
}

/// The gated feed-forward layer.
struct FeedForward {
    norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl FeedForward {
    fn declare(s: &mut Scope<'_>, config: &Config) -> Result<FeedForward> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(FeedForward {
            norm: RmsNorm::declare(&mut s.sub("ffn_norm"), "weight", hidden, config.rms_norm_eps)?,
            gate: Linear::declare_unbiased(&mut s.sub("ffn_gate"), hidden, inner, Role::MatMul)?,
            up: Linear::declare_unbiased(&mut s.sub("ffn_up"), hidden, inner, Role::MatMul)?,
            // A few numbers of the first token are far beyond all others, and what comes out of them beyond F16's range.
            down: Linear::declare_unbiased(&mut s.sub("ffn_down"), inner, hidden, Role::WideMatMul)?,
        })
    }

    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let x = self.norm.build(b, x)?;
        let gate = b.g.silu(self.gate.build(b, x)?)?; // [F, T, B]
        self.down.build(b, b.g.mul(gate, self.up.build(b, x)?)?) // [D, T, B]
    }
}

/// One layer: attention and feed-forward, each normalised first and added to what came in.
struct Layer {
    from: Port,
    to: Port,
    /// What is added behind it.
    deepstack: Option<Port>,
    attention: SelfAttention,
    feed_forward: FeedForward,
}

impl Layer {
    fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        (from, to, deepstack): (Port, Port, Option<Port>),
        positions: Positions,
    ) -> Result<Layer> {
        let attention = SelfAttention::declare(s, config, positions)?;
        Ok(Layer { from, to, deepstack, attention, feed_forward: FeedForward::declare(s, config)? })
    }
}

impl Block for Layer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let x = b.read(self.from)?;
        let x = b.g.add(x, self.attention.build(b, x)?)?;
        let x = b.g.add(x, self.feed_forward.build(b, x)?)?;
        let x = match self.deepstack {
            Some(port) => b.g.add(x, b.read(port)?)?,
            None => x,
        };
        b.write(self.to, x)
    }
}

/// The norm after the last layer.
struct FinalNorm {
    hidden: Port,
    norm: RmsNorm,
}

impl Block for FinalNorm {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.hidden, self.norm.build(b, b.read(self.hidden)?)?)
    }
}

/// The language model.
pub struct LanguageModel {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[D, vocab_size]`, on the host: the vector of each token.
    pub token_embedding: WeightId,
    /// `[D, T, B]`: in, the embedded tokens.
    pub hidden: Port,
    /// `[D, T, B]` each: out, the hidden states of each tap. The last is the port `hidden` itself.
    pub states: Vec<Port>,
    /// Where tokens stand, and what they see.
    pub positions: Positions,
    /// `[D, told, B]` each: in, what is added behind the first layers.
    pub deepstack: Vec<Port>,
}

impl LanguageModel {
    /// The model that `config` describes, which gives `taps`.
    ///
    /// # Errors
    /// [`Error::Graph`] for sizes that [`Config::validate`] refuses, and for taps that are out of order, after more layers than there
    /// are, or normalised before the last layer.
    pub fn new(config: &Config, taps: &Taps) -> Result<LanguageModel> {
        LanguageModel::seeing(config, taps, 0)
    }

    /// The same model, which is told more of pictures behind so many of its first `layers_told`. It has the same weights.
    ///
    /// # Errors
    /// As [`new`](LanguageModel::new); [`Error::Graph`] for more layers than are read.
    pub fn seeing(config: &Config, taps: &Taps, layers_told: usize) -> Result<LanguageModel> {
        let layers = config.num_hidden_layers;
        let through = taps.after.last().copied().filter(|through| (1..=layers).contains(through));
        let in_order = taps.after.windows(2).all(|pair| pair[0] < pair[1]) && taps.after.first() != Some(&0);
        let through = through.filter(|&through| in_order && (!taps.normalised || through == layers));
        let through =
            through.ok_or_else(|| Error::graph("declare", format!("{taps:?} of a model of {layers} layers")))?;
        let (width, tokens) = (config.hidden_size, Symbol::TEXT_TOKENS.into());
        let mut model = Model::new();
        let token_embedding =
            model.on_host(|s| s.weight("token_embd.weight", &[width, config.vocab_size], Role::Embedding))?;
        let states = [width.into(), tokens, Symbol::BATCH.into()];
        let hidden = model.port("hidden", &states, DType::F32, Lifetime::Pass);
        let table = [config.head_width().into(), 1.into(), tokens];
        let positions = Positions {
            mask: model.port("mask", &[tokens, tokens], DType::F32, Lifetime::Request),
            cos: model.port("cos", &table, DType::F32, Lifetime::Request),
            sin: model.port("sin", &table, DType::F32, Lifetime::Request),
            kept: config.fills_left().then(|| model.port("kept", &[1.into(), tokens], DType::F32, Lifetime::Request)),
        };
        if layers_told > through {
            return Err(Error::graph("declare", format!("{layers_told} of {through} layers")));
        }
        let mut deepstack = Vec::with_capacity(layers_told);
        let told = [width.into(), TOLD_TOKENS.into(), Symbol::BATCH.into()];
        for i in 0..layers_told {
            deepstack.push(model.port(format!("deepstack.{i}"), &told, DType::F32, Lifetime::Request));
        }
        let (mut from, mut tapped) = (hidden, Vec::new());
        for i in 0..through {
            let is_tap = i + 1 < through && taps.after.contains(&(i + 1));
            let to = match is_tap {
                // Later layers read it, and the host after them.
                true => model.port(format!("states.{}", i + 1), &states, DType::F32, Lifetime::Request),
                false => hidden,
            };
            tapped.extend(is_tap.then_some(to));
            model.stage(format!("layer.{i}"), Cadence::Request, |s| {
                Layer::declare(&mut s.sub("blk").sub(i), config, (from, to, deepstack.get(i).copied()), positions)
            })?;
            from = to;
        }
        tapped.push(hidden);
        if taps.normalised {
            model.stage("final_norm", Cadence::Request, |s| {
                let mut s = s.sub("output_norm");
                Ok(FinalNorm { hidden, norm: RmsNorm::declare(&mut s, "weight", width, config.rms_norm_eps)? })
            })?;
        }
        Ok(LanguageModel { model, token_embedding, hidden, states: tapped, positions, deepstack })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn published_sizes_without_what_is_not_read() {
        let whole = Taps { after: vec![36], normalised: true };
        let all = LanguageModel::new(&Config::qwen3_4b(), &whole).unwrap();
        // Of all 4,022,468,096; the table of words is the same at both ends.
        assert_eq!(all.model.manifest().parameters(), 4_022_468_096);
        let tapped = LanguageModel::new(&Config::qwen3_4b(), &Taps::after(35)).unwrap();
        assert_eq!(tapped.model.stages().len(), 35);
        let layer = 2560 * (4096 + 2 * 1024) + 4096 * 2560 + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128;
        assert_eq!(all.model.manifest().parameters() - tapped.model.manifest().parameters(), layer + 2560);
        let klein = Taps { after: vec![9, 18, 27], normalised: false };
        let klein = LanguageModel::new(&Config::qwen3_4b(), &klein).unwrap();
        assert_eq!((klein.model.stages().len(), klein.states.len()), (27, 3));
    }

    #[test]
    fn what_fills_up_a_text_is_not_seen() {
        const NO: f32 = f32::NEG_INFINITY;
        assert_eq!(mask_of(3, &(0..2)).unwrap(), [0.0, NO, NO, 0.0, 0.0, NO, 0.0, 0.0, NO]);
        assert_eq!(mask_of(3, &(1..3)).unwrap(), [0.0, NO, NO, NO, 0.0, NO, NO, 0.0, 0.0]);
        assert_eq!(causal_mask(2).unwrap(), [0.0, NO, 0.0, 0.0]);
    }

    #[test]
    fn impossible_taps_are_refused() {
        for (after, normalised) in [
            (vec![], false),
            (vec![0], false),
            (vec![37], false),
            (vec![3, 3], false),
            (vec![9, 4], false),
            (vec![35], true),
        ] {
            let taps = Taps { after, normalised };
            assert!(LanguageModel::new(&Config::qwen3_4b(), &taps).is_err(), "{taps:?}");
        }
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        let qwen2 =
            Config { model_type: "qwen2".into(), head_dim: Some(128), num_attention_heads: 24, ..Config::qwen3_4b() };
        let mistral =
            Config { model_type: "mistral".into(), rms_norm_eps: 1e-5, rope_theta: 1e9, ..Config::qwen3_4b() };
        for config in [Config::qwen3_4b(), qwen2, mistral] {
            let whole = Taps { after: vec![36], normalised: true };
            let model = LanguageModel::new(&config, &whole).unwrap().model;
            let shapes: std::collections::HashMap<String, crate::tensor::Shape> =
                model.manifest().iter().map(|(_, weight)| (weight.name.clone(), weight.shape)).collect();
            let found = Config::from_shapes(|name| shapes.get(name).copied(), Path::new("te.gguf")).unwrap();
            assert_eq!(found, config);
        }
    }
}
