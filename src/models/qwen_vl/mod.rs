//! The vision tower of Qwen2.5-VL, and [that of Qwen3-VL](qwen3): from a picture to tokens that a language model reads between those of a text.
//!
//! Follows `Qwen2_5_VisionTransformerPretrainedModel` of transformers (`models/qwen2_5_vl/modeling_qwen2_5_vl.py`), whose names the
//! weights have. Pictures may have any size: 2 by 2 patches of 14 by 14 pixels become one token. In most blocks a patch looks
//! only at those of its window, 8 by 8 of them, or what the picture's edge leaves of it; in some, at all. Tokens are computed window by
//! window: see [`Grid::order`].
//!
//! Legend: `D` hidden size, `H` heads, `d = D/H`, `F` inner width of the feed-forward layers, `N` patches, `C` numbers of a patch, `J`
//! width of the language model. One picture at a time.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `embed` | `pixels [C, N]` | `hidden [D, N]` |
//! | `block.0`, `block.1`, ... | `hidden`, `cos`, `sin` | `hidden` |
//! | `merger` | `hidden` | `tokens [J, N/4]` |

mod attention;
mod block;
mod config;
mod ends;
mod ports;
pub mod qwen3;
mod windows;

use pinhole_quant::DType;

use self::attention::{Colours, patches_of, pixels, rotary};
use self::block::Block;
use self::config::MERGED;
use self::ends::{Embed, Merger};
use crate::stage::{Cadence, Lifetime, Model, Port};
use crate::{Result, reserve};

pub use config::Config;
pub use ports::Positions;
pub use windows::{Grid, PATCHES, TOKENS};

/// Those of CLIP.
const COLOURS: Colours =
    Colours { mean: [0.481_454_66, 0.457_827_5, 0.408_210_73], std: [0.268_629_54, 0.261_302_6, 0.275_777_1] };

/// The tower.
pub struct VisionTower {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[C, N]`: in, see [`VisionTower::patches`].
    pub pixels: Port,
    /// Where patches stand.
    pub positions: Positions,
    /// `[J, N/4]`: out, the tokens, in the order of [`Grid::order`].
    pub tokens: Port,
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
        let pass = |model: &mut Model, name: &str, width: usize, of| {
            model.port(name, &[width.into(), crate::stage::Symbol::into(of)], DType::F32, Lifetime::Pass)
        };
        let pixels = pass(&mut model, "pixels", config.patch_numbers(), PATCHES);
        let table = [config.head_width().into(), 1.into(), PATCHES.into()];
        let positions = Positions {
            cos: model.port("cos", &table, DType::F32, Lifetime::Request),
            sin: model.port("sin", &table, DType::F32, Lifetime::Request),
        };
        let hidden = pass(&mut model, "hidden", config.hidden_size, PATCHES);
        let tokens = pass(&mut model, "tokens", config.out_hidden_size, TOKENS);
        model.stage("embed", Cadence::Request, |s| Embed::declare(&mut s.sub("visual"), config, (pixels, hidden)))?;
        for i in 0..config.depth {
            let sees_all = config.fullatt_block_indexes.contains(&i);
            model.stage(format!("block.{i}"), Cadence::Request, |s| {
                Block::declare(&mut s.sub("visual.blocks").sub(i), config, sees_all, (hidden, positions))
            })?;
        }
        model.stage("merger", Cadence::Request, |s| Merger::declare(&mut s.sub("visual"), config, (hidden, tokens)))?;
        Ok(VisionTower { model, pixels, positions, tokens, config: config.clone() })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The rotary tables `(cos, sin)`, `[d, N]` each, with the sign of the rotation in the second: the first half of each half of a
    /// head turns by a patch's row, the second by its column.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn rotary(&self, grid: Grid) -> Result<(Vec<f32>, Vec<f32>)> {
        let patches = patches_of(grid.places(&self.config)?);
        rotary(self.config.head_width(), MERGED * MERGED * grid.tokens(), patches)
    }

    /// The patches, `[C, N]`, of a picture of `rgb`, `[3, columns, rows]` bytes: channel by channel, and of each the pixels row by row.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn patches(&self, grid: Grid, rgb: &[u8]) -> Result<Vec<f32>> {
        let sides = (self.config.patch_size, grid.columns * self.config.token_side());
        pixels(&COLOURS, sides, rgb, patches_of(grid.places(&self.config)?))
    }

    /// The `tokens` that came out, row by row.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn in_rows(&self, grid: Grid, tokens: &[f32]) -> Result<Vec<f32>> {
        let width = self.config.out_hidden_size;
        let mut rows = reserve::zeros("the tokens of a picture", tokens.len())?;
        for (token, place) in tokens.chunks_exact(width).zip(grid.order(&self.config)?) {
            rows[place * width..(place + 1) * width].copy_from_slice(token);
        }
        Ok(rows)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn published_size() {
        let tower = VisionTower::new(&Config::default()).unwrap();
        assert_eq!(tower.model.manifest().parameters(), 676_550_144);
    }

    #[test]
    fn settings_are_read_off_the_shapes() {
        let config = Config { depth: 8, fullatt_block_indexes: vec![7, 15, 23, 31], ..Config::default() };
        let model = VisionTower::new(&config).unwrap().model;
        let found = Config::from_shapes(|name| model.manifest().shape(name), Path::new("mmproj.gguf"));
        assert_eq!(found.unwrap(), config);
    }

    #[test]
    fn windows_are_cut_off_at_the_edges() {
        let (config, grid) = (Config::default(), Grid { rows: 6, columns: 9 });
        let order = grid.order(&config).unwrap();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..54).collect::<Vec<_>>());
        // Two whole windows, one column at the right, two at the bottom, and the corner.
        assert_eq!(order[..5], [0, 1, 2, 3, 9]);
        assert_eq!(order[32..36], [8, 17, 26, 35]);
        assert_eq!(order[36..38], [36, 37]);
        assert_eq!(order[52..], [44, 53]);
        let dims = grid.dims(&config);
        let of = |group: usize| {
            let group = windows::GROUPS[group];
            [dims.get(group.windows).unwrap(), dims.get(group.patches).unwrap()]
        };
        assert_eq!([of(0), of(1), of(2), of(3)], [[2, 64], [1, 16], [2, 32], [1, 8]]);
    }
}
