//! The Qwen-Image 2.1 transformer (Qwen; reference: diffusers' `QwenImage21Transformer2DModel`, whose names its files have).
//!
//! Predicts the velocity of a rectified flow from noised latents, a prompt and a time. One kind of block works on prompt and picture
//! alike, and all blocks share one modulation: a scale and a gate for each half of a block. No token of the prompt sees a later one, or the
//! picture; and the prompt is modulated as at time 0. So nothing of it depends on time, but it would take as much memory as the picture to
//! keep what the picture looks at: every step makes it anew. What leaves a block is far beyond F16's range.
//!
//! `D` hidden, `H` heads, `d = D/H`, `F` inner width of the feed-forward, `J` width of the prompt, `Ti` image tokens, `Tt` text tokens,
//! `Tr` tokens of the pictures that are looked at, which stand between the prompt's: `Tp = Tt + Tr`, `T = Ti + Tp`. `B` batch (images
//! times guidance passes). A token is a latent. Shapes in ggml order.
//!
//! | stage        | when    | carried in                                  | carried out                         |
//! |--------------|---------|---------------------------------------------|-------------------------------------|
//! | `time`       | request | `time` [256, times]                         | `vector` [D, times]                 |
//! | `modulation` | request | `vector`                                    | `modulation` [4D, times], `modulation.final` [D, times] |
//! | `context`    | request | `text` [J, Tt, B]                           | `context` [D, Tt, B]                |
//! | `embed`      | step    | `latents` [C, Ti + Tr, B], `context`        | `img` [D, Ti, B], `txt` [D, Tp, B]  |
//! | `block.0..`  | step    | `img`, `txt`, `modulation`, `mask` [Tp, Tt] | `img`, `txt`                        |
//! | `final`      | step    | `img`, `modulation.final`                   | `prediction` [C, Ti, B]             |
//!
//! Prompts of two passes may have different lengths. Then the text of one pass ends before `Tt`, and what stands behind it is not
//! looked at: see [`TEXT_OF_PASSES`]. The picture stands behind its own text, so that each pass has rotary tables of its own.

mod block;
mod config;
mod ends;
mod latents;
mod ports;

use self::block::Block;
use self::ends::{Context, Embed, declare_final_layer};
use self::ports::{PREFIX_TOKENS, Run, declare_ports};
use super::declare::{carried, input};
use super::modulation::{ModulationOut, TimeIn};
use super::ports::TIMES;
use super::rotary::Tables;
use crate::models::layers::{self, Linear};
use crate::stage::{Cadence, Model, Symbol};
use crate::weights::Role;
use crate::{Result, reserve};

pub use config::Config;
pub use latents::{pack_latents, unpack_latents};
pub use ports::{MOST_REFERENCES, Ports, Sizes, TEXT_OF_PASSES};

/// The sinusoidal embedding of a time in 0..=1, [`TIME_WIDTH`](super::TIME_WIDTH) numbers, cosines first.
pub fn sinusoid(time: f32) -> Vec<f32> {
    layers::sinusoid(1000.0 * time, super::TIME_WIDTH)
}

/// The transformer: its stages and where to put things.
pub struct SingleStream {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    config: Config,
}

impl SingleStream {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes none.
    pub fn new(config: &Config) -> Result<SingleStream> {
        config.validate(std::path::Path::new("transformer"))?;
        let mut model = Model::new();
        let ports = declare_ports(&mut model, config);
        declare_stages(&mut model, config, &ports)?;
        Ok(SingleStream { model, ports, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The rotary tables `(cos, sin)`, `[d, T, tables]` each, with room for a text of `room` tokens. Token `n` of what comes before the
    /// picture that is drawn is at (n, n, n), except that a picture's tokens are at (n, row, column), counted from its middle, and take as
    /// many places as its longer side has tokens.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn rotary(&self, sizes: &Sizes, room: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let tokens = sizes.image_tokens().saturating_add(room).saturating_add(sizes.reference_tokens());
        let length = tokens.saturating_mul(self.config.attention_head_dim);
        let mut tables = Tables::new(&self.config.axes_dims_rope, sizes.tables().saturating_mul(tokens))?;
        let (texts, repeated) = match sizes.tables() {
            1 => (&sizes.texts[..1], 1),
            _ => (&sizes.texts[..], sizes.batch),
        };
        let taken: usize = sizes.references.iter().map(|[rows, columns]| rows.max(columns)).sum();
        for &text in texts {
            let (start, mut next) = (tables.cos.len(), 0);
            tables.turn_picture(text + taken, sizes.image);
            for run in sizes.runs(room) {
                match run {
                    Run::Text(tokens) => {
                        (next..next + tokens).for_each(|at| tables.turn([at as f32; 3]));
                        next += tokens;
                    }
                    Run::Picture(picture) => {
                        tables.turn_picture(next, picture);
                        next += picture[0].max(picture[1]);
                    }
                }
            }
            for _ in 1..repeated {
                tables.cos.extend_from_within(start..start + length);
                tables.sin.extend_from_within(start..start + length);
            }
        }
        Ok((tables.cos, tables.sin))
    }

    /// What is added to the scores of the text's tokens, with room for `room` of them, so that none sees what stands behind it:
    /// `[Tp (seen), Tt (seeing)]`, 0 or minus infinity.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn mask(&self, sizes: &Sizes, room: usize) -> Result<Vec<f32>> {
        let prefix = room.saturating_add(sizes.reference_tokens());
        let mut mask = reserve::room("a mask", prefix.saturating_mul(room))?;
        let mut first = 0;
        for run in sizes.runs(room) {
            if let Run::Text(tokens) = run {
                for seeing in first..first + tokens {
                    mask.extend((0..prefix).map(|seen| if seen <= seeing { 0.0 } else { f32::NEG_INFINITY }));
                }
            }
            first += run.tokens();
        }
        Ok(mask)
    }
}

/// Declares all stages.
fn declare_stages(model: &mut Model, config: &Config, ports: &Ports) -> Result<()> {
    let hidden = config.hidden();
    let vector = input(model, "vector", &[hidden.into(), TIMES.into()]);
    model.stage("time", Cadence::Request, |s| TimeIn::declare_unbiased(s, hidden, ports.time, vector))?;
    let modulation = input(model, "modulation", &[(4 * hidden).into(), TIMES.into()]);
    let last = input(model, "modulation.final", &[hidden.into(), TIMES.into()]);
    model.stage("modulation", Cadence::Request, |s| {
        let mut linear = |name, outputs, role| Linear::declare_unbiased(&mut s.sub(name), hidden, outputs, role);
        let all = linear("modulation.1", 4 * hidden, Role::MatMul)?;
        let of_last = linear("norm_out.linear", hidden, Role::SensitiveMatMul)?;
        Ok(ModulationOut { vector, projections: vec![(all, modulation), (of_last, last)] })
    })?;
    let context = input(model, "context", &[hidden.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()]);
    model.stage("context", Cadence::Request, |s| Context::declare(s, config, ports.text, context))?;
    let img = carried(model, "img", hidden, Symbol::IMAGE_TOKENS);
    let txt = carried(model, "txt", hidden, PREFIX_TOKENS);
    model.stage("embed", Cadence::Step, |s| Embed::declare(s, config, (ports.latents, img), (context, txt)))?;
    for i in 0..config.num_layers {
        model.stage(format!("block.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("transformer_blocks");
            Block::declare(&mut s.sub(i), config, ports, ([img, txt], modulation))
        })?;
    }
    model.stage("final", Cadence::Step, |s| declare_final_layer(s, config, ports, (img, last)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn published_size() {
        assert_eq!(SingleStream::new(&Config::default()).unwrap().model.manifest().parameters(), 7_115_124_736);
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        let other = Config {
            num_layers: 2,
            num_attention_heads: 3,
            attention_head_dim: 64,
            axes_dims_rope: vec![8, 28, 28],
            in_channels: 48,
            out_channels: Some(48),
            context_in_dim: 320,
            mlp_ratio: 4,
            ..Config::default()
        };
        for config in [Config::default(), other] {
            let model = SingleStream::new(&config).unwrap().model;
            let found = Config::from_shapes(|name| model.manifest().shape(name), Path::new("qwen.gguf"));
            assert_eq!(found.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("qwen.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "qwen.gguf: img_in.weight: expected a tensor, found none");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let broken = [
            Config { axes_dims_rope: vec![16, 56, 57], ..Config::default() },
            Config { axes_dims_rope: vec![128], ..Config::default() },
            Config { num_attention_heads: 0, ..Config::default() },
            Config { num_attention_heads: usize::MAX, ..Config::default() },
            Config { patch_size: 2, ..Config::default() },
            Config { out_channels: Some(16), ..Config::default() },
            Config { mlp_ratio: 0, ..Config::default() },
            Config { mlp_ratio: usize::MAX, ..Config::default() },
            Config { eps: 0.0, ..Config::default() },
            Config { causal_condition: false, ..Config::default() },
        ];
        for config in broken {
            assert!(SingleStream::new(&config).is_err(), "{config:?}");
        }
    }

    #[test]
    fn the_picture_stands_behind_its_own_text() {
        let net = SingleStream::new(&Config { num_layers: 1, ..Config::default() }).unwrap();
        let sizes = |texts: &[usize]| Sizes {
            batch: 2,
            image: [3, 5],
            references: Vec::new(),
            gaps: Vec::new(),
            texts: texts.to_vec(),
        };
        let one = sizes(&[7, 7]);
        assert_eq!((one.image_tokens(), one.text_tokens(), one.tables()), (15, 7, 1));
        let two = sizes(&[4, 7]);
        assert_eq!((two.text_tokens(), two.tables()), (7, 4));
        let (cos, _) = net.rotary(&two, two.text_tokens()).unwrap();
        assert_eq!(cos.len(), 4 * 22 * 128);
        // The first pair of an axis turns by the position itself.
        let at = |table: usize, token: usize| [0, 16, 72].map(|axis| cos[(table * 22 + token) * 128 + axis]);
        let of = |position: [f32; 3]| position.map(f32::cos);
        assert_eq!([at(0, 0), at(1, 14)], [of([4.0, -2.0, -3.0]), of([4.0, 0.0, 1.0])]);
        assert_eq!([at(2, 0), at(3, 15), at(3, 21)], [of([7.0, -2.0, -3.0]), of([0.0; 3]), of([6.0; 3])]);
    }

    #[test]
    fn pictures_in_a_prompt_stand_where_they_are_looked_at() {
        let net = SingleStream::new(&Config { num_layers: 1, ..Config::default() }).unwrap();
        let sizes =
            Sizes { batch: 1, image: [2, 2], references: vec![[2, 4], [3, 1]], gaps: vec![2, 1], texts: vec![5] };
        assert_eq!((sizes.reference_tokens(), sizes.prefix_tokens()), (11, 16));
        let (cos, _) = net.rotary(&sizes, 5).unwrap();
        assert_eq!(cos.len(), 20 * 128);
        let at = |token: usize| [0, 16, 72].map(|axis| cos[token * 128 + axis]);
        let of = |position: [f32; 3]| position.map(f32::cos);
        // Two words, four columns, a word, three rows, two words, and the picture that is drawn.
        assert_eq!([at(4), at(5)], [of([0.0; 3]), of([1.0; 3])]);
        assert_eq!([at(6), at(13)], [of([2.0, -1.0, -2.0]), of([2.0, 0.0, 1.0])]);
        assert_eq!([at(14), at(15), at(18)], [of([6.0; 3]), of([7.0, -2.0, -1.0]), of([10.0; 3])]);
        assert_eq!(at(0), of([12.0, -1.0, -1.0]));
        let mask = net.mask(&sizes, 5).unwrap();
        let seen: Vec<usize> = mask.chunks(16).map(|row| row.iter().filter(|&&score| score == 0.0).count()).collect();
        assert_eq!(seen, [1, 2, 11, 15, 16]);
    }
}
