//! Whether the parts of a model fit together, and which of them is to blame if not.

use std::path::Path;

use crate::source::{Part, Slot, Source};
use crate::{Error, Result};

/// A number that a part has.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    slot: &'static Slot,
    /// What the number is, of what: `the width of the T5 text encoder`.
    what: &'a str,
    number: usize,
    origin: &'a Path,
}

impl<'a> Side<'a> {
    /// `number`, which is `what` of `part`.
    pub(super) fn of<M>(part: &'a Part<M>, what: &'a str, number: usize) -> Side<'a> {
        Side { slot: part.slot, what, number, origin: part.bound.origin() }
    }

    /// The error for this side, where `other` is as it should be.
    fn wrong(&self, other: &Side<'_>) -> Error {
        let place = if self.origin == other.origin { String::new() } else { format!(" in {}", other.origin.display()) };
        let expected = format!("{}, as {}{place}", other.number, other.what);
        Error::mismatch(self.origin, self.what, expected, self.number.to_string())
    }
}

/// Refuses parts of `source` whose numbers differ: the one that was given last, in the place of another, is to blame.
///
/// # Errors
/// [`Error::Mismatch`].
pub(super) fn equal(source: &Source, one: Side<'_>, other: Side<'_>) -> Result<()> {
    if one.number == other.number {
        return Ok(());
    }
    let later = source.given_at(other.slot) > source.given_at(one.slot);
    Err(if later { other.wrong(&one) } else { one.wrong(&other) })
}

/// Refuses `number`, which is `what` of `part`, unless it is `only`.
///
/// # Errors
/// [`Error::Mismatch`].
pub(super) fn exactly<M>(part: &Part<M>, what: &str, number: usize, only: usize) -> Result<()> {
    match number == only {
        true => Ok(()),
        false => Err(Error::mismatch(part.bound.origin(), what, only.to_string(), number.to_string())),
    }
}

/// Refuses a text encoder of `source` with fewer of `what`, which it has `number` of, than its tokenizer needs.
///
/// # Errors
/// [`Error::Mismatch`]: the tokenizer is to blame if it was given, and the encoder otherwise.
pub(super) fn at_least<M>(source: &Source, part: &Part<M>, what: &str, number: usize, needs: usize) -> Result<()> {
    if number >= needs {
        return Ok(());
    }
    let (encoder, tokenizer) = (part.bound.origin(), &source.needed_tokenizer(part.slot)?.tokenizer.origin);
    if source.was_given_tokenizer(part.slot) {
        let expected = format!("at most the {number} {what} in {}", encoder.display());
        return Err(Error::mismatch(tokenizer, "tokenizer", expected, format!("a need of {needs}")));
    }
    let expected = format!("at least {needs}, which the tokenizer in {} needs", tokenizer.display());
    Err(Error::mismatch(encoder, what, expected, number.to_string()))
}
