//! What canonical names are called in the files that people have: the only alias table.
//!
//! One file per model family; each gives, for a canonical name, the alternatives in which a file may hold that weight.

mod autoencoder_kl;
mod clip;
mod flux;
mod t5;

/// Which rows of a file's tensor are meant. Of a vector, which elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// The first half.
    First,
    /// The second half.
    Second,
}

/// A tensor in a file, or half of it, that gives some rows of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The tensor's name in the file.
    pub name: String,
    /// Which of its rows.
    pub rows: Rows,
}

impl Part {
    /// All rows of `name`.
    pub fn all(name: impl Into<String>) -> Part {
        Part { name: name.into(), rows: Rows::All }
    }
}

/// The parts of which a weight is made, one below the other.
pub type Alternative = Vec<Part>;

/// For a canonical name, every way in which a file may hold the weight, most usual first.
pub type Aliases = fn(&str) -> Vec<Alternative>;

pub use autoencoder_kl::aliases as autoencoder_kl;
pub use clip::aliases as clip;
pub use flux::aliases as flux;
pub use t5::aliases as t5;
