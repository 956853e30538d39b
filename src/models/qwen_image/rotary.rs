//! Rotary tables of positions on several axes: in single precision, as the reference computes them.

use crate::{Result, reserve};

/// The base of the rotary frequencies.
const THETA: f32 = 10000.0;

/// Cosines and sines, `[d, tokens]` each, with the sign of the rotation in the second.
pub(super) struct Tables<'a> {
    /// How `d` is shared out among the axes.
    axes: &'a [usize],
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

impl Tables<'_> {
    /// Those of no token, with room for so many.
    pub(super) fn new(axes: &[usize], tokens: usize) -> Result<Tables<'_>> {
        let numbers = axes.iter().copied().fold(0, usize::saturating_add).saturating_mul(tokens);
        let room = || reserve::room("the rotary tables", numbers);
        Ok(Tables { axes, cos: room()?, sin: room()? })
    }

    /// Adds a token at a position.
    pub(super) fn turn(&mut self, at: [f32; 3]) {
        for (&width, coordinate) in self.axes.iter().zip(at) {
            for pair in 0..width / 2 {
                let angle = coordinate * (1.0 / THETA.powf((2 * pair) as f32 / width as f32));
                self.cos.extend([angle.cos(); 2]);
                self.sin.extend([-angle.sin(), angle.sin()]);
            }
        }
    }

    /// Adds the tokens of a picture of so many rows and columns, row by row, at (`at`, row, column), counted from its middle.
    pub(super) fn turn_picture(&mut self, at: usize, [rows, columns]: [usize; 2]) {
        // One more stands before the middle than behind it, if their number is odd.
        let centred = |at: usize, of: usize| at as f32 - of.div_ceil(2) as f32;
        for row in 0..rows {
            for column in 0..columns {
                self.turn([at as f32, centred(row, rows), centred(column, columns)]);
            }
        }
    }
}
