//! The Wan transformer, 2.1 and 2.2 (Alibaba; reference: diffusers' `WanTransformer3DModel`; canonical names are those of its
//! publisher).
//!
//! Predicts the velocity of a rectified flow from the noised latents of a video, a prompt and a time. Time is embedded for all steps
//! before the first: every block adds a table of its own, in F32, to the same six vectors. All sizes are one network: 1.3B, 14B, the two
//! experts of A14B, and TI2V 5B, in which the tokens of a given frame are at time 0. Models that begin with a picture have it in
//! channels beside the latents; those of 2.1 look at what a vision tower sees of it, too. Models of Fun Control (Alibaba PAI; reference:
//! DiffSynth-Studio's `WanModel` with `has_ref_conv`) have a film that is followed there, and before the video's tokens those of a picture.
//!
//! `D` hidden, `H` heads, `d = D/H`, `F` inner width of the feed-forward, `J` width of the prompt, `V` width of what is seen, `T` tokens
//! of the video, `Tr` of a picture before it, `Tt` of the text, `Ts` of what is seen, `C` channels in, `O` out, `B` batch (videos times guidance passes). Shapes in
//! ggml order.
//!
//! | stage      | when    | carried in                                     | carried out                                    |
//! |------------|---------|------------------------------------------------|------------------------------------------------|
//! | `time`     | request | `time` [freq_dim, times]                       | `vector` [D, times]                            |
//! | `projection.0..` | request | `vector`                                 | `projected` [6D, times], a sixth of it         |
//! | `context`  | request | `text` [J, Tt, B]                              | `context` [D, Tt, B]                           |
//! | `looking`  | request | `seen` [V, Ts, B], if it looks at pictures     | `image_context` [D, Ts, B]                     |
//! | `reference`| step    | `reference` [4O, Tr, B], in models of Fun Control | `hidden`, its first tokens                  |
//! | `embed`    | step    | `latents` [4C, T, B]                           | `hidden` [D, Tr + T, B]                        |
//! | `block.0.attention..` | step | `hidden`, `projected`                  | `hidden`, `modulated` [D, 6, B]                |
//! | `block.0.prompt..` | step | `hidden`, `context`, `image_context`      | `hidden`                                       |
//! | `block.0.feed_forward..` | step | `hidden`, `modulated`               | `hidden`                                       |
//! | `guide`    | step    | `latents`, `hidden`, in models of VACE         | `guide` [D, T, B]                              |
//! | `guide.0..`| step    | `guide`, as blocks, behind some of them        | `guide`, `hidden`                              |
//! | `final`    | step    | `hidden`, `vector`                             | `prediction` [4O, T, B]                        |
//!
//! Keys and values of the prompt are made in every step: those of all blocks together are larger than the video.

mod block;
mod cache;
mod config;
mod ends;
mod latents;
mod modulation;
mod ports;
mod vace;

use pinhole_quant::DType;

use self::block::Carried;
use self::ends::{Context, Embed, FinalLayer, Looking, Refer};
use self::modulation::{Projection, TimeIn};
use self::vace::{GuideIn, GuideOut};
use crate::models::layers::rotary_tables;
use crate::stage::{Cadence, Extent, Lifetime, Model, Port, Symbol};
use crate::{Result, reserve};

pub use config::Config;
pub use latents::{joined, pack_latents, unpack_prediction};
pub use ports::{ALL_TOKENS, GIVEN_TOKENS, Ports, REFERENCE_TOKENS, SEEN_TOKENS, Sizes, TIMES};

/// The base of the rotary frequencies.
const THETA: f64 = 10000.0;

/// The transformer: its stages and where to put things.
pub struct Wan {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    hidden: Hidden,
    config: Config,
}

/// Where a step cache finds what it looks at.
#[derive(Clone, Copy)]
struct Hidden {
    /// `[D, T, B]`: the hidden states.
    states: Port,
    /// `[D, times]`: what becomes of each time.
    vector: Port,
}

impl Wan {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes none.
    pub fn new(config: &Config) -> Result<Wan> {
        config.validate(std::path::Path::new("transformer"))?;
        let mut model = Model::new();
        let batch = Extent::from(Symbol::BATCH);
        let table = [config.attention_head_dim.into(), 1.into(), ALL_TOKENS.into()];
        let time = input(&mut model, "time", &[config.freq_dim.into(), TIMES.into()]);
        let text = input(&mut model, "text", &[config.text_dim.into(), Symbol::TEXT_TOKENS.into(), batch]);
        let reference = [(config::PATCH_LATENTS * config.latent_channels()).into(), REFERENCE_TOKENS.into(), batch];
        let reference = config.add_ref_conv.then(|| input(&mut model, "reference", &reference));
        let seen = config.image_dim.map(|width| input(&mut model, "seen", &[width.into(), SEEN_TOKENS.into(), batch]));
        let ports = Ports {
            time,
            text,
            seen,
            reference,
            cos: input(&mut model, "cos", &table),
            sin: input(&mut model, "sin", &table),
            condition: model.port("condition", &[batch], DType::I32, Lifetime::Pass),
            guide_scale: (config.guide_channels() > 0).then(|| input(&mut model, "guide_scale", &[1.into()])),
            latents: carried(
                &mut model,
                "latents",
                config::PATCH_LATENTS * (config.in_channels + config.guide_channels()),
            ),
            prediction: carried(&mut model, "prediction", config::PATCH_LATENTS * config.latent_channels()),
        };
        let hidden = declare_stages(&mut model, config, &ports)?;
        Ok(Wan { model, ports, hidden, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The rotary tables `(cos, sin)`, `[d, T]` each, of tokens in `[frames, rows, columns]`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn rotary(&self, [frames, rows, columns]: [usize; 3]) -> Result<(Vec<f32>, Vec<f32>)> {
        let tokens = frames.saturating_mul(rows).saturating_mul(columns);
        let mut positions = reserve::room("the rotary tables", tokens)?;
        for frame in 0..frames {
            for row in 0..rows {
                for column in 0..columns {
                    positions.push([frame as u32, row as u32, column as u32]);
                }
            }
        }
        rotary_tables(&self.config.axes(), THETA, &positions)
    }
}

fn input(model: &mut Model, name: &str, extents: &[Extent]) -> Port {
    model.port(name, extents, DType::F32, Lifetime::Request)
}

/// A port of `[width, T, B]` that is carried through a step.
fn carried(model: &mut Model, name: &str, width: usize) -> Port {
    of_tokens(model, name, width, Symbol::IMAGE_TOKENS)
}

/// The same for all `tokens`.
fn of_tokens(model: &mut Model, name: &str, width: usize, tokens: Symbol) -> Port {
    let extents = [width.into(), tokens.into(), Symbol::BATCH.into()];
    model.port(name, &extents, DType::F32, Lifetime::Pass)
}

fn declare_stages(model: &mut Model, config: &Config, ports: &Ports) -> Result<Hidden> {
    let (width, batch) = (config.hidden(), Extent::from(Symbol::BATCH));
    let vector = input(model, "vector", &[width.into(), TIMES.into()]);
    let projected = input(model, "projected", &[(modulation::PARTS * width).into(), TIMES.into()]);
    model.stage("time", Cadence::Request, |s| TimeIn::declare(s, config, [ports.time, vector]))?;
    for part in 0..modulation::PARTS {
        model.stage(format!("projection.{part}"), Cadence::Request, |s| {
            Projection::declare(s, config, part, [vector, projected])
        })?;
    }
    let context = input(model, "context", &[width.into(), Symbol::TEXT_TOKENS.into(), batch]);
    model.stage("context", Cadence::Request, |s| Context::declare(s, config, ports.text, context))?;
    let mut image_context = None;
    if let (Some(seen), Some(image_dim)) = (ports.seen, config.image_dim) {
        let port = input(model, "image_context", &[width.into(), SEEN_TOKENS.into(), batch]);
        model.stage("looking", Cadence::Request, |s| Looking::declare(s, config, image_dim, (seen, port)))?;
        image_context = Some(port);
    }
    let hidden = of_tokens(model, "hidden", width, ALL_TOKENS);
    if let Some(reference) = ports.reference {
        model.stage("reference", Cadence::Step, |s| Refer::declare(s, config, [reference, hidden]))?;
    }
    model.stage("embed", Cadence::Step, |s| Embed::declare(s, config, ports.latents, hidden))?;
    let modulated = [("modulated", batch), ("modulated_given", 1.into())].map(|(name, items)| {
        model.port(name, &[width.into(), modulation::PARTS.into(), items], DType::F32, Lifetime::Pass)
    });
    let shared = Carried { hidden, context, seen: image_context, projected, modulated };
    let guide = ports.guide_scale.map(|scale| (of_tokens(model, "guide", width, ALL_TOKENS), scale));
    if let Some((guide, _)) = guide {
        model.stage("guide", Cadence::Step, |s| GuideIn::declare(s, config, ports.latents, (hidden, guide)))?;
    }
    let guided = config.vace_layers.as_deref().unwrap_or_default();
    for i in 0..config.num_layers {
        block::declare(model, (&format!("block.{i}"), "blocks", i), config, (ports, shared))?;
        let (Some((guide, scale)), Ok(k)) = (guide, guided.binary_search(&i)) else { continue };
        let beside = Carried { hidden: guide, ..shared };
        block::declare(model, (&format!("guide.{k}"), "vace_blocks", k), config, (ports, beside))?;
        model.stage(format!("guide.{k}.out"), Cadence::Step, |s| {
            GuideOut::declare(&mut s.sub("vace_blocks").sub(k), width, [hidden, guide, scale])
        })?;
    }
    model.stage("final", Cadence::Step, |s| FinalLayer::declare(s, config, ports, (hidden, vector)))?;
    Ok(Hidden { states: hidden, vector })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tensor::Shape;

    fn i2v() -> Config {
        let more = Config { image_dim: Some(1280), added_kv_proj_dim: Some(5120), ..Config::default() };
        Config { in_channels: 36, ..more }
    }

    #[test]
    fn published_sizes() {
        let parameters = |config: &Config| Wan::new(config).unwrap().model.manifest().parameters();
        assert_eq!(parameters(&Config::of_1_3b()), 1_418_996_800);
        assert_eq!(parameters(&Config::default()), 14_288_491_584);
        assert_eq!(parameters(&Config::of_ti2v_5b()), 4_999_787_712);
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        let fun = Config { in_channels: 52, add_ref_conv: true, ..Config::default() };
        let flf = Config { pos_embed_seq_len: Some(514), ..i2v() };
        let vace =
            Config { num_layers: 6, vace_layers: Some(vec![0, 2, 4]), vace_in_channels: Some(96), ..Config::of_1_3b() };
        let small = Config { num_attention_heads: 3, num_layers: 2, text_dim: 96, ffn_dim: 200, ..Config::default() };
        for config in [Config::default(), Config::of_1_3b(), Config::of_ti2v_5b(), i2v(), flf, vace, fun, small] {
            let model = Wan::new(&config).unwrap().model;
            assert_eq!(
                Config::from_shapes(|name| model.manifest().shape(name), Path::new("wan.gguf")).unwrap(),
                config
            );
        }
        let error = Config::from_shapes(|_| None::<Shape>, Path::new("wan.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "wan.gguf: time_embedding.0.weight: expected a tensor, found none");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let broken = [
            Config { patch_size: vec![2, 2, 2], ..Config::default() },
            Config { attention_head_dim: 5, ..Config::default() },
            Config { num_attention_heads: 0, ..Config::default() },
            Config { num_attention_heads: usize::MAX, ..Config::default() },
            Config { out_channels: Some(17), ..Config::default() },
            Config { qk_norm: None, ..Config::default() },
            Config { cross_attn_norm: false, ..Config::default() },
            Config { added_kv_proj_dim: None, ..i2v() },
            Config { pos_embed_seq_len: Some(514), ..Config::default() },
            Config { eps: 0.0, ..Config::default() },
            Config { add_ref_conv: true, ..Config::default() },
            Config { vace_layers: Some(vec![0, 40]), vace_in_channels: Some(96), ..Config::default() },
            Config { vace_layers: Some(vec![1]), vace_in_channels: Some(96), ..Config::default() },
            Config { vace_layers: Some(vec![0]), vace_in_channels: None, ..Config::default() },
        ];
        for config in broken {
            assert!(Wan::new(&config).is_err(), "{config:?}");
        }
    }

    #[test]
    fn heads_are_shared_out_by_axes() {
        let of = |attention_head_dim| Config { attention_head_dim, ..Config::default() }.axes();
        assert_eq!([of(128), of(24), of(64)], [[44, 42, 42], [8, 8, 8], [24, 20, 20]]);
        let net = Wan::new(&Config { num_layers: 1, ..Config::default() }).unwrap();
        let (cos, _) = net.rotary([2, 3, 5]).unwrap();
        let at = |token: usize| [0, 44, 86].map(|axis| cos[token * 128 + axis]);
        assert_eq!(at(29), [1.0f32, 2.0, 4.0].map(f32::cos));
        assert_eq!(at(6), [0.0f32, 1.0, 1.0].map(f32::cos));
    }
}
