//! Prompts in the syntax of AUTOMATIC1111's web UI: brackets say how much words count.
//!
//! | in a prompt | the words inside count |
//! |---|---|
//! | `(word:1.2)` | 1.2 times as much |
//! | `(word)` | 1.1 times as much |
//! | `[word]` | 1.1 times less |
//! | `\(`, `\)`, `\[`, `\]`, `\\` | as they are: the sign itself |
//! | `BREAK` | as they are: what follows begins a chunk of its own |
//!
//! Brackets stand within each other, and their factors are multiplied. A bracket that is not closed reaches to the end; one that closes
//! nothing is text. The reference is `parse_prompt_attention` of the web UI (`modules/prompt_parser.py`). What it has beside these, and
//! would draw something else if it were read as text, is refused: prompts that change from step to step, several prompts at once, and
//! networks named in a prompt.

use crate::{Error, Result};

/// What a bracket multiplies or divides by.
const STEP: f64 = 1.1;

/// How many brackets may stand within each other. No one writes as many, and the time that a prompt takes grows with them.
const MOST_LEVELS: usize = 256;

/// More than any word counts, either way.
const MOST_WEIGHT: f64 = 10_000.0;

/// The word that begins a new chunk, and the one that joins prompts.
const BREAK: &str = "BREAK";
const AND: &str = "AND";

/// How names of networks begin in a prompt, and what to do about it.
const NETWORKS: [(&str, &str); 4] = [
    ("<lora:", "give the file with --lora FILE:STRENGTH"),
    ("<lyco:", "give the file with --lora FILE:STRENGTH"),
    ("<hypernet:", "pinhole runs no hypernetworks: leave it out"),
    ("<ti:", "give the file with --embedding FILE, and write its word"),
];

/// How the text of a prompt is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptSyntax {
    /// As it stands.
    #[default]
    Plain,
    /// With the brackets of AUTOMATIC1111's web UI.
    A1111,
}

impl PromptSyntax {
    /// All of them.
    pub const ALL: [PromptSyntax; 2] = [PromptSyntax::Plain, PromptSyntax::A1111];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            PromptSyntax::Plain => "plain",
            PromptSyntax::A1111 => "a1111",
        }
    }
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// What follows begins a chunk of its own.
    Break,
    /// Words that count alike.
    Text {
        /// The words.
        text: String,
        /// How much they count; 1 is as much as without brackets.
        weight: f64,
    },
}

/// The pieces of the prompt `text`, which `option` gave. Neighbours that count alike are one.
///
/// # Errors
/// [`Error::Option`] for what the web UI reads as something else than words that count more or less, for weights that are no numbers
/// or out of all bounds, and for too many brackets within each other.
pub fn pieces(option: &'static str, text: &str) -> Result<Vec<Piece>> {
    for (start, hint) in NETWORKS {
        if text.contains(start) {
            let expected = "words, since networks have options of their own";
            return Err(Error::option(option, expected, format!("`{start}..`")).with_hint(hint));
        }
    }
    let mut reader = Reader { option, pieces: Vec::new(), open: Vec::new() };
    let mut rest = text;
    while !rest.is_empty() {
        let taken = reader.take(rest)?;
        rest = &rest[taken..];
    }
    let end = reader.open.len();
    for _ in 0..end {
        reader.close_last(None)?;
    }
    reader.joined()
}

/// A bracket that is open.
#[derive(Clone, Copy)]
struct Open {
    is_round: bool,
    /// The first piece inside.
    first: usize,
}

/// A prompt that is being read.
struct Reader {
    option: &'static str,
    pieces: Vec<Piece>,
    open: Vec<Open>,
}

impl Reader {
    /// Takes what begins `rest`, and returns how many bytes that is.
    fn take(&mut self, rest: &str) -> Result<usize> {
        let mut letters = rest.chars();
        let (first, second) = (letters.next().unwrap_or_default(), letters.next());
        match first {
            '\\' => match second {
                Some(sign @ ('(' | ')' | '[' | ']' | '\\')) => {
                    self.text(&sign.to_string());
                    return Ok(2);
                }
                // A backslash before anything else is none.
                _ => self.text(""),
            },
            '(' | '[' => self.begin(first == '(')?,
            ':' if self.has_open(true)
                && let Some((weight, length)) = weight(rest) =>
            {
                let Ok(weight) = weight.parse::<f64>() else {
                    return Err(self.wrong("a number behind `:` in brackets", format!("`{weight}`")));
                };
                self.close(true, Some(weight))?;
                return Ok(length);
            }
            ')' if self.has_open(true) => self.close(true, None)?,
            ']' if self.has_open(false) => {
                self.refuse_editing()?;
                self.close(false, None)?;
            }
            ':' | ')' | ']' => self.text(&first.to_string()),
            _ => {
                let length = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                self.words(&rest[..length])?;
                return Ok(length);
            }
        }
        Ok(first.len_utf8())
    }

    fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::option(self.option, expected, found)
    }

    fn begin(&mut self, is_round: bool) -> Result<()> {
        if self.open.len() == MOST_LEVELS {
            return Err(self.wrong(format!("at most {MOST_LEVELS} brackets within each other"), "more"));
        }
        self.open.push(Open { is_round, first: self.pieces.len() });
        Ok(())
    }

    fn has_open(&self, is_round: bool) -> bool {
        self.open.iter().any(|open| open.is_round == is_round)
    }

    /// Closes the last bracket of its kind, whatever is open inside.
    fn close(&mut self, is_round: bool, weight: Option<f64>) -> Result<()> {
        let Some(at) = self.open.iter().rposition(|open| open.is_round == is_round) else { return Ok(()) };
        let open = self.open.remove(at);
        self.multiply(open, weight)
    }

    /// Closes the last bracket of all.
    fn close_last(&mut self, weight: Option<f64>) -> Result<()> {
        match self.open.pop() {
            Some(open) => self.multiply(open, weight),
            None => Ok(()),
        }
    }

    /// Multiplies the weights of what is inside of `open`.
    fn multiply(&mut self, open: Open, weight: Option<f64>) -> Result<()> {
        let factor = weight.unwrap_or(if open.is_round { STEP } else { 1.0 / STEP });
        for piece in &mut self.pieces[open.first..] {
            let Piece::Text { weight, .. } = piece else { continue };
            *weight *= factor;
            if !(-MOST_WEIGHT..=MOST_WEIGHT).contains(weight) {
                let (expected, found) = (format!("weights from -{MOST_WEIGHT} to {MOST_WEIGHT}"), weight.to_string());
                return Err(self.wrong(expected, found));
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.pieces.push(Piece::Text { text: text.to_owned(), weight: 1.0 });
    }

    /// Adds words, among which may be breaks.
    fn words(&mut self, text: &str) -> Result<()> {
        if self.open.iter().any(|open| !open.is_round) && text.contains('|') {
            let found = "`[..|..]`, which changes from step to step";
            return Err(self.wrong("words that are the same in all steps", found).with_hint(EDITING));
        }
        if word(text, AND).is_some() {
            let error = self.wrong("one prompt", format!("`{AND}`, which draws several at once"));
            return Err(error.with_hint("write `and` for the word, or draw each prompt by itself"));
        }
        let mut rest = text;
        while let Some(at) = word(rest, BREAK) {
            self.text(rest[..at].trim_end());
            self.pieces.push(Piece::Break);
            rest = rest[at + BREAK.len()..].trim_start();
        }
        self.text(rest);
        Ok(())
    }

    /// Refuses a square bracket that ends here if it is `[from:to:step]`.
    fn refuse_editing(&self) -> Result<()> {
        let Some(open) = self.open.iter().rfind(|open| !open.is_round) else { return Ok(()) };
        let [.., colon, last] = &self.pieces[open.first..] else { return Ok(()) };
        let is_colon = matches!(colon, Piece::Text { text, .. } if text == ":");
        let is_number = matches!(last, Piece::Text { text, .. } if text.trim().parse::<f64>().is_ok());
        match is_colon && is_number {
            true => {
                let found = "`[from:to:step]`, which changes from step to step";
                Err(self.wrong("words that are the same in all steps", found).with_hint(EDITING))
            }
            false => Ok(()),
        }
    }

    /// All pieces, with neighbours of the same weight in one.
    fn joined(self) -> Result<Vec<Piece>> {
        let mut joined: Vec<Piece> = Vec::new();
        for piece in self.pieces {
            match (joined.last_mut(), piece) {
                (Some(Piece::Text { text, weight }), Piece::Text { text: more, weight: other }) if *weight == other => {
                    text.push_str(&more);
                }
                (_, piece) => joined.push(piece),
            }
        }
        Ok(joined)
    }
}

/// What to do about a prompt that changes from step to step.
const EDITING: &str = "leave it out, or write `\\[` and `\\]` for brackets that are part of the text";

/// The number of a `:1.2)` that begins `text`, as it is written, and how many bytes all of it has.
fn weight(text: &str) -> Option<(&str, usize)> {
    let inside = text.strip_prefix(':')?;
    let number = inside.trim_start();
    let signed = number.strip_prefix(['+', '-']).unwrap_or(number);
    let digits = signed.len() - signed.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    if digits == 0 {
        return None;
    }
    let length = number.len() - signed.len() + digits;
    let behind = number[length..].trim_start().strip_prefix(')')?;
    Some((&number[..length], text.len() - behind.len()))
}

/// Where `word` stands in `text` by itself.
fn word(text: &str, word: &str) -> Option<usize> {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    for (at, _) in text.match_indices(word) {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        if !before.is_some_and(is_letter) && !after.is_some_and(is_letter) {
            return Some(at);
        }
    }
    None
}

/// By the rules of the web UI's own function.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, f64)> {
        let mut read = Vec::new();
        for piece in pieces("--prompt", text).unwrap() {
            match piece {
                Piece::Break => read.push((BREAK.to_owned(), -1.0)),
                Piece::Text { text, weight } => read.push((text, weight)),
            }
        }
        read
    }

    fn check(text: &str, expected: &[(&str, f64)]) {
        let read = read(text);
        let texts: Vec<&str> = read.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, expected.iter().map(|(text, _)| *text).collect::<Vec<_>>(), "{text}");
        for ((_, found), (_, wanted)) in read.iter().zip(expected) {
            assert!((found - wanted).abs() < 1e-12 * wanted.abs(), "{text}: {found}, not {wanted}");
        }
    }

    #[test]
    fn brackets_are_read_as_the_web_ui_reads_them() {
        check("normal text", &[("normal text", 1.0)]);
        check("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check("[unbalanced", &[("unbalanced", 1.0 / 1.1)]);
        check("unbalanced)", &[("unbalanced)", 1.0)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1.1 / 1.1),
                (" a ", 1.1),
                ("hill", 0.5 * 1.1),
                (", sun, ", 1.1),
                ("sky", 1.1 * 1.1 * 1.1 * 1.1),
                (".", 1.1),
            ],
        );
        check("(a: 1.25 ) b", &[("a", 1.25), (" b", 1.0)]);
        check("(a:-.5)", &[("a", -0.5)]);
        check("(a:b:2) c:3)", &[("a:b", 2.0), (" c:3)", 1.0)]);
        check("a:1.2", &[("a:1.2", 1.0)]);
        check("(a:1e2)", &[("a:1e2", 1.1)]);
        check(r"a\b \\ c\", &[(r"ab \ c", 1.0)]);
        check("(a [b) c]", &[("a ", 1.1), ("b", 1.1 / 1.1), (" c", 1.0 / 1.1)]);
        check("[a:b] c", &[("a:b", 1.0 / 1.1), (" c", 1.0)]);
        check("()", &[]);
        check("", &[]);
    }

    #[test]
    fn a_break_stands_by_itself() {
        check("a BREAK b", &[("a", 1.0), (BREAK, -1.0), ("b", 1.0)]);
        check("(a BREAK b:1.5)c", &[("a", 1.5), (BREAK, -1.0), ("b", 1.5), ("c", 1.0)]);
        check("BREAK", &[("", 1.0), (BREAK, -1.0), ("", 1.0)]);
        check("BREAKFAST aBREAK", &[("BREAKFAST aBREAK", 1.0)]);
        check("a, BREAK, b", &[("a,", 1.0), (BREAK, -1.0), (", b", 1.0)]);
    }

    #[test]
    fn brackets_stand_within_each_other() {
        let (open, closed) = ("(".repeat(64), ")".repeat(64));
        let read = read(&format!("{open}a{closed}b"));
        assert!((read[0].1 / 1.1f64.powi(64) - 1.0).abs() < 1e-12 && read[1].1 == 1.0, "{read:?}");
        let refused = pieces("--prompt", &"(".repeat(257)).unwrap_err().to_string();
        assert_eq!(refused, "--prompt: expected at most 256 brackets within each other, found more");
        let refused = pieces("--prompt", &format!("{}a", "(".repeat(200))).unwrap_err().to_string();
        assert!(refused.starts_with("--prompt: expected weights from -10000 to 10000, found "), "{refused}");
        assert_eq!(pieces("--prompt", &"[]".repeat(10_000)).unwrap(), []);
    }

    #[test]
    fn what_is_no_weight_is_refused() {
        for (text, found) in [
            ("[a:b:0.5]", "`[from:to:step]`, which changes from step to step"),
            ("[a:10]", "`[from:to:step]`, which changes from step to step"),
            ("[a::0.25 ]", "`[from:to:step]`, which changes from step to step"),
            ("(x [a|b]:1.2)", "`[..|..]`, which changes from step to step"),
            ("a AND b", "`AND`, which draws several at once"),
            ("(a:1.2.3)", "`1.2.3`"),
            ("a <lora:style:0.8>", "`<lora:..`"),
        ] {
            let error = pieces("--negative-prompt", text).unwrap_err();
            let message = error.to_string();
            assert!(message.starts_with("--negative-prompt: expected ") && message.ends_with(found), "{message}");
        }
        assert!(pieces("--prompt", r"\[a:b:0.5\] a|b").is_ok());
    }
}
