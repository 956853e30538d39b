//! Regular expressions of a `tokenizer.json`: those that take time in proportion to the text.
//!
//! The library runs them with fancy-regex, which hands expressions without look-around and back references to an automaton, and
//! tries everything that is left one way after the other: with nested repetitions, in more ways than there is time for. So an
//! expression may have nothing that the automaton does not know, with one exception: `\s+(?!\S)`, as an alternative of the whole
//! expression. It leaves the last space to the word behind it, and every tokenizer since GPT-2's has it.

use regex_syntax::Parser;
use regex_syntax::ast::parse::Parser as AstParser;
use regex_syntax::ast::{Assertion, AssertionKind, Ast, Visitor, visit};

/// The longest expression, in bytes. Those of the tokenizers that there are have 300.
const MAX_BYTES: usize = 4096;
/// Spaces before a space, and the same in a form that the automaton's grammar has. The group's name marks it.
const AHEAD: &str = r"\s+(?!\S)";
const MARKED: &str = r"\s+(?<ahead>\S)";

/// The fewest bytes that `pattern` matches; or why it may not be used.
pub(super) fn least_match(pattern: &str) -> Result<usize, String> {
    if pattern.len() > MAX_BYTES {
        return Err(format!("one of {} bytes", pattern.len()));
    }
    if pattern.contains("ahead") {
        return Err("one with the word `ahead`".into());
    }
    let marked = pattern.replace(AHEAD, MARKED);
    let ast = AstParser::new().parse(&marked).map_err(|error| one_line(error.kind()))?;
    visit(&ast, Simple)?;
    let alternatives = match &ast {
        Ast::Alternation(alternation) => alternation.asts.as_slice(),
        one => std::slice::from_ref(one),
    };
    let texts = alternatives.iter().map(|ast| &marked[ast.span().start.offset..ast.span().end.offset]);
    let looking = texts.filter(|text| *text == MARKED).count();
    // Others look further, or from inside a repetition.
    if looking != marked.matches("ahead").count() || marked.contains("(?!") {
        return Err(format!("a look ahead that is no alternative `{AHEAD}`"));
    }
    let hir = Parser::new().parse(&marked).map_err(|error| one_line(&error))?;
    let least = hir.properties().minimum_len().unwrap_or(0);
    Ok(if looking > 0 { least.min(1) } else { least })
}

fn one_line(error: &impl ToString) -> String {
    error.to_string().lines().last().unwrap_or_default().to_owned()
}

/// Refuses what fancy-regex understands in another way than the automaton: a repetition of a repetition, which never gives
/// anything back there, and the edges of words.
struct Simple;

impl Visitor for Simple {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), String> {
        use AssertionKind::{EndLine, EndText, StartLine, StartText};
        match ast {
            Ast::Repetition(repetition) if matches!(*repetition.ast, Ast::Repetition(_)) => {
                Err("a repetition of a repetition".into())
            }
            Ast::Assertion(assertion) => match **assertion {
                Assertion { kind: StartLine | EndLine | StartText | EndText, .. } => Ok(()),
                _ => Err("an edge of a word".into()),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn those_of_real_tokenizers_pass() {
        let clip = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
        let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let tekken = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        for pattern in [clip, gpt2, qwen, llama, tekken, r"\s+", " {2,}", r"^\s+|\s+$", "▁"] {
            let least = least_match(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert_eq!(
                least,
                if pattern == " {2,}" { 2 } else { pattern.len().min(if pattern == "▁" { 3 } else { 1 }) }
            );
        }
        assert_eq!((least_match("a*"), least_match("")), (Ok(0), Ok(0)));
    }

    #[test]
    fn what_may_take_for_ever_does_not() {
        for pattern in [
            r"(a*)*(?!\S)",
            r"(x|\s+(?!\S))*y",
            r"\s+(?=\S)",
            r"(?<=a)b",
            r"(?>a+)b",
            r"(a)\1",
            "a++b",
            "(?:a{2}+)*",
            r"\bword",
            r"a(?!\S)",
            r"\s+(?!\S)a",
            r"(?<ahead>a)",
            "(",
            "[",
            r"\K",
            &"a".repeat(5000),
        ] {
            assert!(least_match(pattern).is_err(), "{pattern}");
        }
    }
}
