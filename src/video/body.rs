//! What every kind of film in one file does.

use std::io;

use super::Rate;
use crate::image::Image;

/// How large a film is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// How many frames there will be.
    pub frames: usize,
    /// How many are shown in a second.
    pub rate: Rate,
}

/// Pairs of a keyword and a text, as pictures have them.
pub(super) type Text = [(String, String)];

/// The content of a film, as it is written.
pub(super) trait Body: Send {
    /// Writes what comes before the first frame, with `text` if it belongs there.
    fn begin(&mut self, text: &Text) -> io::Result<()>;

    /// Writes the next frame.
    fn push(&mut self, image: &Image) -> io::Result<()>;

    /// Writes what comes behind the last frame, with `text` if it belongs there.
    fn end(&mut self, text: &Text) -> io::Result<()>;

    /// Forgets all but the first `frames`, to which the file was cut. `false` if a film of this kind cannot end early.
    fn cut(&mut self, frames: usize) -> bool;
}
