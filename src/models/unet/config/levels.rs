//! The levels of a UNet: numbers for each of them, and what the names and shapes of a file say.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::Shapes;

/// A number for each level, or one for all.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum PerLevel {
    /// For all levels.
    All(usize),
    /// For each.
    Each(Vec<usize>),
}

impl PerLevel {
    /// The number of `level`.
    pub fn at(&self, level: usize) -> usize {
        match self {
            PerLevel::All(number) => *number,
            PerLevel::Each(numbers) => numbers.get(level).copied().unwrap_or(0),
        }
    }
}

/// How many blocks transformers have: all, those of each level, or each by itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Depths {
    /// All of them.
    All(usize),
    /// Those of each level: the same, or each by itself.
    Each(Vec<PerLevel>),
}

impl Depths {
    /// The number of transformer `block` of `level`.
    pub fn at(&self, level: usize, block: usize) -> usize {
        match self {
            Depths::All(number) => *number,
            Depths::Each(levels) => levels.get(level).map_or(0, |level| level.at(block)),
        }
    }

    /// Whether all transformers of a level have as many.
    pub(super) fn is_even(&self) -> bool {
        match self {
            Depths::All(_) => true,
            Depths::Each(levels) => levels.iter().all(|level| matches!(level, PerLevel::All(_))),
        }
    }
}

/// What the names and shapes of a file say of its levels.
pub(super) struct Levels {
    pub(super) channels: Vec<usize>,
    /// How many blocks the transformer behind each residual block has, on the way down by level; 0 where there is none.
    pub(super) down: Vec<Vec<usize>>,
    /// The same on the way up, the last level first.
    pub(super) up: Vec<Vec<usize>>,
    /// The same of the middle; `None` if there is no middle.
    pub(super) middle: Option<usize>,
    /// Names of the transformers, in order.
    names: Vec<String>,
}

impl Levels {
    /// Walks down `input_blocks`, where a convolution `op` begins a level, and up `output_blocks`. `first` is the width of the first.
    pub(super) fn read(shapes: &Shapes<'_>, first: usize) -> Result<Levels> {
        let mut levels =
            Levels { channels: vec![first], down: vec![Vec::new()], up: Vec::new(), middle: None, names: Vec::new() };
        let kernel = |n: usize| format!("input_blocks.{n}.0.in_layers.2.weight");
        // By two of its weights, so that a block that lacks one is missed.
        let end = shapes.count(kernel).max(shapes.count(|n| format!("input_blocks.{n}.0.out_layers.3.weight")));
        for n in 1..end {
            if shapes.has(&format!("input_blocks.{n}.0.op.weight")) {
                levels.channels.push(0);
                levels.down.push(Vec::new());
                continue;
            }
            let depth = levels.depth(shapes, format!("input_blocks.{n}.1"));
            let last = levels.channels.len() - 1;
            levels.channels[last] = shapes.dims(&kernel(n))?[3];
            levels.down[last].push(depth);
        }
        let middle = ["middle_block.0.in_layers.2.weight", "middle_block.2.in_layers.2.weight"];
        if middle.iter().any(|name| shapes.has(name)) {
            // A second residual block has a transformer before it.
            let least = usize::from(shapes.has(middle[1]));
            levels.middle = Some(levels.depth(shapes, "middle_block.1".into()).max(least));
        }
        let mut n = 0;
        for level in (0..levels.down.len()).rev() {
            let mut depths = Vec::new();
            for _ in 0..=levels.down[level].len() {
                depths.push(levels.depth(shapes, format!("output_blocks.{n}.1")));
                n += 1;
            }
            levels.up.push(depths);
        }
        Ok(levels)
    }

    /// How many blocks the transformer `name` has.
    fn depth(&mut self, shapes: &Shapes<'_>, name: String) -> usize {
        let depth = shapes.count(|i| format!("{name}.transformer_blocks.{i}.norm1.weight"));
        if depth > 0 {
            self.names.push(name);
        }
        depth
    }

    /// Names of the transformers, in order.
    pub(super) fn transformers(&self) -> impl Iterator<Item = &String> {
        self.names.iter()
    }

    pub(super) fn layers_per_block(&self) -> PerLevel {
        let layers: Vec<usize> = self.down.iter().map(Vec::len).collect();
        match layers.windows(2).all(|pair| pair[0] == pair[1]) {
            true => PerLevel::All(layers.first().copied().unwrap_or(0)),
            false => PerLevel::Each(layers),
        }
    }

    /// Of each level on the way down. A last level without transformers has the number of the middle, and so has a level that has some
    /// on the way up alone.
    pub(super) fn depths_down(&self) -> Depths {
        let mut depths = Vec::new();
        for (level, own) in self.down.iter().enumerate() {
            let above = &self.up[self.up.len() - 1 - level];
            let is_last = level + 1 == self.down.len();
            depths.push(match own.iter().all(|&depth| depth == 0) {
                true if is_last && self.middle.is_some_and(|depth| depth > 0) => {
                    PerLevel::All(self.middle.unwrap_or(1))
                }
                true => PerLevel::All(above[0].max(1)),
                false => each_or_all(own),
            });
        }
        Depths::Each(depths)
    }

    /// Of each level on the way up, if that does not follow from the way down.
    pub(super) fn depths_up(&self) -> Option<Depths> {
        let down = self.depths_down();
        let levels = self.up.len();
        let follows = self.up.iter().enumerate().all(|(level, own)| {
            own.iter().enumerate().all(|(block, &depth)| depth == 0 || depth == down.at(levels - 1 - level, block))
        });
        if down.is_even() && follows {
            return None;
        }
        Some(Depths::Each(self.up.iter().map(|own| each_or_all(own)).collect()))
    }
}

/// One number for all of a level, if they are the same; at least 1, which is diffusers' number for a level without.
fn each_or_all(depths: &[usize]) -> PerLevel {
    let first = depths.first().copied().unwrap_or(1);
    match depths.iter().all(|&depth| depth == first) {
        true => PerLevel::All(first.max(1)),
        false => PerLevel::Each(depths.to_vec()),
    }
}
