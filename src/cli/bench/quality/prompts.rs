//! What is drawn.

use std::path::Path;

use pinhole::{Error, Result, file};

/// No list of prompts is larger than this, in bytes.
const MOST_BYTES: usize = 1 << 20;

/// Prompts in the words that the built-in model was trained with: every shape, every colour, sizes, places, pairs. Chosen
/// before anything was measured with them.
const BUILT_IN: [&str; 16] = [
    "a red circle on a white background",
    "a small yellow star on a blue background",
    "a large green square on a black background",
    "a pink heart at the top on a gray background",
    "a large purple ring on a yellow background",
    "a small cyan triangle on the left on a brown background",
    "a white moon on the right on a black background",
    "a large orange flower on a green background",
    "a brown cross at the bottom on a cyan background",
    "a large gray diamond on a pink background",
    "a small black heart on the right on a purple background",
    "a blue square to the left of a red circle on a white background",
    "a yellow moon above a green cross on a purple background",
    "a white flower above a pink ring on a blue background",
    "a red triangle to the left of a black star on a yellow background",
    "a cyan diamond to the left of a brown heart on a gray background",
];

/// The prompts of `file`, one on each line that is not blank, or those that are built in.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read as text, [`Error::Option`] where it holds no prompt or is too large.
pub(super) fn read(file: Option<&Path>) -> Result<Vec<String>> {
    let Some(path) = file else { return Ok(BUILT_IN.map(str::to_owned).to_vec()) };
    let text = file::text(path)?;
    if text.len() > MOST_BYTES {
        let found = format!("{} with {}", path.display(), text.len());
        return Err(Error::option("--prompts", format!("at most {MOST_BYTES} bytes"), found));
    }
    let prompts: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() {
        let found = format!("{} without one", path.display());
        return Err(Error::option("--prompts", "a text file with a prompt on each line", found));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_prompts_use_every_word_of_the_miniature() {
        let words: Vec<&str> = BUILT_IN.iter().flat_map(|prompt| prompt.split(' ')).collect();
        let known = "red orange yellow green cyan blue purple pink white black gray brown circle square triangle star heart \
                     ring cross diamond moon flower small large on to left right top bottom above";
        for word in known.split_whitespace() {
            assert!(words.contains(&word), "no prompt with `{word}`");
        }
        for (i, prompt) in BUILT_IN.iter().enumerate() {
            assert!(!BUILT_IN[..i].contains(prompt), "{prompt}");
        }
    }
}
