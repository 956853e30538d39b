//! The frames of a film in a folder.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use crate::image::Format;
use crate::{Error, Result};

/// The most frames that a film may have to be read.
pub const MAX_FRAMES: usize = 1 << 16;

/// The pictures in `folder`, in the order in which people count, and how many other files there are. Hidden files do not count.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Mismatch`] if there are no pictures, or more than [`MAX_FRAMES`].
pub(super) fn of(folder: &Path) -> Result<(Vec<PathBuf>, usize)> {
    let failed = |source| Error::io("read", folder, source);
    let (mut frames, mut others) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match (name.starts_with('.'), Format::of(&path)) {
            (true, _) => {}
            (false, Ok(_)) => frames.push(path),
            (false, Err(_)) => others += 1,
        }
        if frames.len() > MAX_FRAMES {
            let error = Error::mismatch(folder, "film", format!("at most {MAX_FRAMES} pictures"), "more");
            return Err(error.with_hint("give a folder with the frames of one film"));
        }
    }
    if frames.is_empty() {
        let found = if others == 0 { "nothing".to_owned() } else { format!("{others} other files") };
        let error = Error::mismatch(folder, "film", "PNG, JPEG or WebP pictures", found);
        return Err(error.with_hint("give a folder with the frames of a film"));
    }
    frames.sort_by(|one, other| natural(&one.to_string_lossy(), &other.to_string_lossy()));
    Ok((frames, others))
}

/// The order of two names, with their numbers as numbers: 2 comes before 10.
fn natural(one: &str, other: &str) -> Ordering {
    let (mut left, mut right) = (one, other);
    while let (Some(a), Some(b)) = (left.chars().next(), right.chars().next()) {
        if a.is_ascii_digit() && b.is_ascii_digit() {
            let (number, rest) = number(left);
            let (another, other_rest) = self::number(right);
            // Without zeros in front, the longer number is the larger.
            let order = number.len().cmp(&another.len()).then_with(|| number.cmp(another));
            if order != Ordering::Equal {
                return order;
            }
            (left, right) = (rest, other_rest);
            continue;
        }
        if a != b {
            return a.cmp(&b);
        }
        (left, right) = (&left[a.len_utf8()..], &right[b.len_utf8()..]);
    }
    // Of names that differ by zeros alone, any order will do, as long as it is always the same.
    left.len().cmp(&right.len()).then_with(|| one.cmp(other))
}

/// The digits that `text` begins with, without zeros in front, and what follows.
fn number(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (digits.trim_start_matches('0'), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_as_people_count() {
        let sorted = [
            "1.png",
            "2.png",
            "002.png",
            "10.png",
            "a.png",
            "a1b2.png",
            "a1b10.png",
            "a2.png",
            "a99999999999999999999.png",
        ];
        let mut names = sorted;
        names.reverse();
        names.sort_by(|one, other| natural(one, other));
        // 2 and 002 are the same number.
        assert_eq!(
            names,
            ["1.png", "002.png", "2.png", "10.png", "a.png", "a1b2.png", "a1b10.png", "a2.png", sorted[8]]
        );
    }
}
