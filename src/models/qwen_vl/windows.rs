//! How the tokens of a picture are shared out among windows.

use crate::stage::{Dims, Symbol};
use crate::{Result, reserve};

use super::config::{Config, MERGED};

/// Windows of one size: how many they are, and how many patches each has.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub(super) windows: Symbol,
    pub(super) patches: Symbol,
}

/// Whole windows, those cut off at the right, those cut off at the bottom, and the one cut off at both.
pub(super) const GROUPS: [Group; 4] = [
    Group { windows: Symbol::new("whole windows"), patches: Symbol::new("patches of a whole window") },
    Group { windows: Symbol::new("windows at the right"), patches: Symbol::new("patches of a window at the right") },
    Group { windows: Symbol::new("windows at the bottom"), patches: Symbol::new("patches of a window at the bottom") },
    Group { windows: Symbol::new("windows in the corner"), patches: Symbol::new("patches of a window in the corner") },
];

/// The patches of a picture.
pub const PATCHES: Symbol = Symbol::new("patches");

/// Its tokens, a quarter as many.
pub const TOKENS: Symbol = Symbol::new("tokens of a picture");

/// A picture as tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of tokens.
    pub rows: usize,
    /// Tokens of a row.
    pub columns: usize,
}

impl Grid {
    /// How many tokens it has.
    pub fn tokens(self) -> usize {
        self.rows.saturating_mul(self.columns)
    }

    /// The sizes of a request for it.
    pub fn dims(self, config: &Config) -> Dims {
        let side = config.window_tokens();
        let (whole, left) = ([self.rows / side, self.columns / side], [self.rows % side, self.columns % side]);
        let corner = usize::from(left[0] > 0 && left[1] > 0);
        let at_right = if left[1] > 0 { whole[0] } else { 0 };
        let at_bottom = if left[0] > 0 { whole[1] } else { 0 };
        let groups = [
            (whole[0] * whole[1], side * side),
            (at_right, side * left[1]),
            (at_bottom, left[0] * side),
            (corner, left[0] * left[1]),
        ];
        let mut dims = self.whole_dims();
        for (group, (windows, tokens)) in GROUPS.into_iter().zip(groups) {
            dims = dims.with(group.windows, windows).with(group.patches, tokens * MERGED * MERGED);
        }
        dims
    }

    /// Row and column of the tokens, in the order in which they are computed.
    pub(super) fn places(self, config: &Config) -> Result<impl Iterator<Item = [usize; 2]>> {
        Ok(self.order(config)?.into_iter().map(move |token| [token / self.columns, token % self.columns]))
    }

    /// The sizes of a request for it that both towers have.
    pub(super) fn whole_dims(self) -> Dims {
        Dims::new().with(Symbol::BATCH, 1).with(TOKENS, self.tokens()).with(PATCHES, self.tokens() * MERGED * MERGED)
    }

    /// The tokens in the order in which they are computed, as numbers row by row: window by window, those of one size side by side.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn order(self, config: &Config) -> Result<Vec<usize>> {
        let side = config.window_tokens();
        let mut groups: [Vec<usize>; 4] = std::array::from_fn(|_| Vec::new());
        for top in (0..self.rows).step_by(side) {
            for left in (0..self.columns).step_by(side) {
                let (bottom, right) = ((top + side).min(self.rows), (left + side).min(self.columns));
                let group = 2 * usize::from(bottom - top < side) + usize::from(right - left < side);
                for row in top..bottom {
                    groups[group].extend((left..right).map(|column| row * self.columns + column));
                }
            }
        }
        reserve::collect("the windows", self.tokens(), groups.into_iter().flatten())
    }
}
