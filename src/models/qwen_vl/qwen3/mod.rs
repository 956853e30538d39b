//! The vision tower of Qwen3-VL: from a picture to tokens that a language model reads between those of a text, and to what is added to
//! them behind its first layers.
//!
//! Follows `Qwen3VLVisionModel` of transformers (`models/qwen3_vl/modeling_qwen3_vl.py`), whose names the weights have. Pictures may have
//! any size: 2 by 2 patches of 16 by 16 pixels become one token. Every patch looks at all. Where a patch stands, it learns from
//! a table for a square picture, which is stretched to the picture's shape, and from rotary positions. What comes out of some of the blocks
//! goes to the first layers of the language model, one after the other.
//!
//! Legend: `D` hidden size, `H` heads, `d = D/H`, `F` inner width of the feed-forward layers, `N` patches, `C` numbers of a patch, `J`
//! width of the language model. One picture at a time.
//!
//! | stage | in | out |
//! |---|---|---|
//! | (host) | grid | `places [D, N]`: the stretched table; `cos`, `sin [d, 1, N]` |
//! | `embed` | `pixels [C, N]`, `places` | `hidden [D, N]` |
//! | `block.0`, `block.1`, ... | `hidden`, `cos`, `sin` | `hidden` |
//! | `deepstack.0`, ... (behind some of the blocks) | `hidden` | `deepstack.0 [J, N/4]`, ... |
//! | `merger` | `hidden` | `tokens [J, N/4]` |

mod block;
mod config;
mod ends;

use pinhole_quant::DType;

use self::block::Block;
use self::ends::{Embed, Merger};
use super::attention::{Colours, patches_of, pixels, rotary};
use super::config::MERGED;
use super::{Grid, PATCHES, Positions, TOKENS};
use crate::stage::{Cadence, Dims, Lifetime, Model, Port, Symbol};
use crate::weights::{Role, WeightId};
use crate::{Result, reserve};

pub use config::Config;

/// The middle of what a byte may be, and half of it.
const COLOURS: Colours = Colours { mean: [0.5; 3], std: [0.5; 3] };

/// The tower.
pub struct VisionTower {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[D, S S]`, on the host: the vectors of the places of a square picture.
    pub table: WeightId,
    /// `[C, N]`: in, see [`VisionTower::patches`].
    pub pixels: Port,
    /// `[D, N]`: in, see [`VisionTower::places`].
    pub places: Port,
    /// Where patches stand.
    pub positions: Positions,
    /// `[J, N/4]`: out, the tokens, row by row.
    pub tokens: Port,
    /// `[J, N/4]` each: out, what is added to them behind the first layers of the language model.
    pub deepstack: Vec<Port>,
    config: Config,
}

impl VisionTower {
    /// The tower that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for settings that make none.
    pub fn new(config: &Config) -> Result<VisionTower> {
        config.validate(std::path::Path::new("vision tower"))?;
        let mut model = Model::new();
        let (width, cells) = (config.hidden_size, config.num_position_embeddings);
        let table = model.on_host(|s| s.weight("visual.pos_embed.weight", &[width, cells], Role::Vector))?;
        let carried = |model: &mut Model, name: &str, width: usize, of: Symbol, lifetime| {
            model.port(name, &[width.into(), of.into()], DType::F32, lifetime)
        };
        let pixels = carried(&mut model, "pixels", config.patch_numbers(), PATCHES, Lifetime::Pass);
        let places = carried(&mut model, "places", width, PATCHES, Lifetime::Pass);
        let rotary = [config.head_width().into(), 1.into(), PATCHES.into()];
        let positions = Positions {
            cos: model.port("cos", &rotary, DType::F32, Lifetime::Request),
            sin: model.port("sin", &rotary, DType::F32, Lifetime::Request),
        };
        let hidden = carried(&mut model, "hidden", width, PATCHES, Lifetime::Pass);
        let tokens = carried(&mut model, "tokens", config.out_hidden_size, TOKENS, Lifetime::Pass);
        model.stage("embed", Cadence::Request, |s| {
            Embed::declare(&mut s.sub("visual"), config, [pixels, places, hidden])
        })?;
        let mut deepstack = Vec::with_capacity(config.deepstack_visual_indexes.len());
        for i in 0..config.depth {
            model.stage(format!("block.{i}"), Cadence::Request, |s| {
                Block::declare(&mut s.sub("visual.blocks").sub(i), config, (hidden, positions))
            })?;
            let Some(k) = config.deepstack_visual_indexes.iter().position(|&at| at == i) else { continue };
            // The host reads it behind the last stage.
            let name = format!("deepstack.{k}");
            let added = carried(&mut model, &name, config.out_hidden_size, TOKENS, Lifetime::Request);
            model.stage(name, Cadence::Request, |s| {
                let mut s = s.sub("visual.deepstack_merger_list");
                Merger::declare_whole(&mut s.sub(k), config, (hidden, added))
            })?;
            deepstack.push(added);
        }
        model.stage("merger", Cadence::Request, |s| {
            Merger::declare(&mut s.sub("visual.merger"), config, (hidden, tokens))
        })?;
        Ok(VisionTower { model, table, pixels, places, positions, tokens, deepstack, config: config.clone() })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The sizes of a request for `grid`.
    pub fn dims(&self, grid: Grid) -> Dims {
        grid.whole_dims()
    }

    /// Row and column of the patches of `grid`, in the order in which they are computed.
    fn patches_in(grid: Grid) -> impl Iterator<Item = [usize; 2]> {
        patches_of((0..grid.rows).flat_map(move |row| (0..grid.columns).map(move |column| [row, column])))
    }

    /// The rotary tables `(cos, sin)`, `[d, N]` each, with the sign of the rotation in the second: the first half of each half of a
    /// head turns by a patch's row, the second by its column.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn rotary(&self, grid: Grid) -> Result<(Vec<f32>, Vec<f32>)> {
        rotary(self.config.head_width(), MERGED * MERGED * grid.tokens(), VisionTower::patches_in(grid))
    }

    /// The patches, `[C, N]`, of a picture of `rgb`, `[3, columns, rows]` bytes: channel by channel, and of each the pixels row by row.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn patches(&self, grid: Grid, rgb: &[u8]) -> Result<Vec<f32>> {
        let sides = (self.config.patch_size, grid.columns * self.config.token_side());
        pixels(&COLOURS, sides, rgb, VisionTower::patches_in(grid))
    }

    /// The vectors, `[D, N]`, of the places of the patches: those of `table`, the whole [`table`](VisionTower::table), which is stretched
    /// to the picture's shape so that corners lie upon corners, in single precision as transformers does.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn places(&self, grid: Grid, table: &[f32]) -> Result<Vec<f32>> {
        let (width, side) = (self.config.hidden_size, self.config.table_side());
        let [rows, columns] = [grid.rows, grid.columns].map(|tokens| MERGED * tokens);
        let mut places = reserve::room("the places of patches", (rows * columns).saturating_mul(width))?;
        for [row, column] in VisionTower::patches_in(grid) {
            let ([top, bottom], down) = between(row, rows, side);
            let ([left, right], across) = between(column, columns, side);
            let taps = [
                (top * side + left, (1.0 - down) * (1.0 - across)),
                (top * side + right, (1.0 - down) * across),
                (bottom * side + left, down * (1.0 - across)),
                (bottom * side + right, down * across),
            ];
            for i in 0..width {
                places.push(taps.iter().map(|(cell, weight)| table[cell * width + i] * weight).sum());
            }
        }
        Ok(places)
    }
}

/// Which two cells of `side` the place number `at` of `of` lies between, and how far behind the first.
fn between(at: usize, of: usize, side: usize) -> ([usize; 2], f32) {
    let place = (at * (side - 1)) as f32 / of.saturating_sub(1).max(1) as f32;
    let first = (place.floor() as usize).min(side - 1);
    ([first, (first + 1).min(side - 1)], place - first as f32)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn published_size() {
        let tower = VisionTower::new(&Config::default()).unwrap();
        assert_eq!(tower.model.manifest().parameters(), 576_388_336);
    }

    #[test]
    fn settings_are_read_off_the_shapes() {
        let four_b = Config {
            depth: 24,
            hidden_size: 1024,
            intermediate_size: 4096,
            out_hidden_size: 2560,
            deepstack_visual_indexes: vec![5, 11, 17],
            ..Config::default()
        };
        for config in [Config::default(), four_b] {
            let model = VisionTower::new(&config).unwrap().model;
            let shape_of = |name: &str| model.manifest().shape(name);
            assert_eq!(Config::from_shapes(shape_of, None, Path::new("mmproj.gguf")).unwrap(), config);
            let told = Config::from_shapes(shape_of, Some(vec![3, 4, 9]), Path::new("mmproj.gguf")).unwrap();
            assert_eq!(told.deepstack_visual_indexes, [3, 4, 9]);
        }
    }

    #[test]
    fn a_table_is_stretched_to_a_picture() {
        let config = Config { num_position_embeddings: 9, ..Config::default() };
        let tower = VisionTower::new(&config).unwrap();
        let width = config.hidden_size;
        let table: Vec<f32> = (0..9).flat_map(|cell| vec![cell as f32; width]).collect();
        // Two rows and four columns of patches: the four of a token stand side by side.
        let places = tower.places(Grid { rows: 1, columns: 2 }, &table).unwrap();
        let firsts: Vec<f32> = places.iter().step_by(width).copied().collect();
        let third = 2.0 / 3.0;
        let expected = [0.0, third, 6.0, 6.0 + third, 2.0 * third, 2.0, 6.0 + 2.0 * third, 8.0];
        assert!(firsts.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{firsts:?}");
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (text, part) in [
            (r#"{"num_position_embeddings": 15}"#, "num_position_embeddings"),
            (r#"{"deepstack_visual_indexes": [8, 27]}"#, "deepstack_visual_indexes"),
            (r#"{"deepstack_visual_indexes": [8, 8]}"#, "deepstack_visual_indexes"),
            (r#"{"hidden_act": "silu"}"#, "hidden_act"),
            (r#"{"num_heads": 0}"#, "num_heads"),
        ] {
            let error = Config::from_json(text, Path::new("config.json")).unwrap_err().to_string();
            assert!(error.starts_with("config.json: ") && error.contains(part), "{text}: {error}");
        }
    }
}
