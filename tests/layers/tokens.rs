//! Rust's tokens, as far as these checks need them: names and punctuation with their lines, without comments, texts and code that
//! only tests compile.

use std::ops::RangeInclusive;

/// A name, a number, `::`, or one character of punctuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub text: String,
    /// Counted from 1.
    pub line: usize,
}

impl Token {
    pub(crate) fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// A file's code outside tests.
#[derive(Debug)]
pub(crate) struct Code {
    pub tokens: Vec<Token>,
    /// The lines of items that only tests compile.
    pub test_lines: Vec<RangeInclusive<usize>>,
    /// The modules of such items that have files of their own: `#[cfg(test)] mod tests;`.
    pub test_modules: Vec<String>,
}

impl Code {
    pub(crate) fn read(text: &str) -> Code {
        let mut code = Code { tokens: Vec::new(), test_lines: Vec::new(), test_modules: Vec::new() };
        let all = tokens(text);
        let mut i = 0;
        while i < all.len() {
            let Some(attribute) = test_attribute(&all[i..]) else {
                code.tokens.push(all[i].clone());
                i += 1;
                continue;
            };
            let end = i + attribute + item(&all[i + attribute..]);
            let last = all[end.saturating_sub(1).min(all.len() - 1)].line;
            code.test_lines.push(all[i].line..=last);
            if let Some(name) = module_in_a_file(&all[i + attribute..end]) {
                code.test_modules.push(name);
            }
            i = end;
        }
        code
    }

    /// The names in a line, with spaces between them: no comments, no texts.
    pub(crate) fn names(&self, line: usize) -> String {
        let here = self.tokens.iter().filter(|token| token.line == line && token.is_name());
        here.map(|token| token.text.as_str()).collect::<Vec<&str>>().join(" ")
    }
}

/// Every token of `text`, tests included.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut found, mut i, mut line) = (Vec::new(), 0, 1);
    while i < chars.len() {
        let skipped = blank(&chars[i..]);
        let length = match skipped {
            0 => {
                let length = token(&chars[i..]);
                found.push(Token { text: chars[i..i + length].iter().collect(), line });
                length
            }
            length => length,
        };
        line += chars[i..i + length].iter().filter(|&&c| c == '\n').count();
        i += length;
    }
    found
}

/// The length of the space, comment, text or letter that `chars` begins with; 0 if it begins with a token.
fn blank(chars: &[char]) -> usize {
    let next = chars.get(1).copied().unwrap_or(' ');
    match chars[0] {
        c if c.is_whitespace() => 1,
        '/' if next == '/' => chars.iter().position(|&c| c == '\n').unwrap_or(chars.len()),
        '/' if next == '*' => comment(chars),
        '"' => quoted(chars, 1, '"'),
        '\'' if next == '\\' || chars.get(2) == Some(&'\'') => quoted(chars, 1, '\''),
        // A lifetime.
        '\'' => 1 + name(&chars[1..]),
        'b' | 'c' if next == '"' => quoted(chars, 2, '"'),
        'b' if next == '\'' => quoted(chars, 2, '\''),
        'r' => raw(chars, 1),
        'b' | 'c' if next == 'r' => raw(chars, 2),
        _ => 0,
    }
}

/// The length of a comment between `/*` and `*/`, which may hold others.
fn comment(chars: &[char]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < chars.len() {
        let pair = (chars[i], chars.get(i + 1).copied().unwrap_or(' '));
        match pair {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

/// The length of what begins with `start` characters and ends with `end`, unless a backslash stands before it.
fn quoted(chars: &[char], start: usize, end: char) -> usize {
    let mut i = start;
    while i < chars.len() && chars[i] != end {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

/// The length of a raw text whose `#` or `"` is expected at `start`; 0 if there is none.
fn raw(chars: &[char], start: usize) -> usize {
    let hashes = chars[start..].iter().take_while(|&&c| c == '#').count();
    let open = start + hashes;
    if chars.get(open) != Some(&'"') {
        return 0;
    }
    let mut i = open + 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    chars.len()
}

fn name(chars: &[char]) -> usize {
    chars.iter().take_while(|c| c.is_alphanumeric() || **c == '_').count()
}

/// The length of the token that `chars` begins with.
fn token(chars: &[char]) -> usize {
    match name(chars) {
        0 if chars.starts_with(&[':', ':']) => 2,
        0 => 1,
        length => length,
    }
}

fn texts(tokens: &[Token], count: usize) -> Vec<&str> {
    tokens.iter().take(count).map(|token| token.text.as_str()).collect()
}

/// The length of the `#[cfg(test)]` that `tokens` begin with, or of another condition that asks for tests.
fn test_attribute(tokens: &[Token]) -> Option<usize> {
    if texts(tokens, 4) != ["#", "[", "cfg", "("] {
        return None;
    }
    let length = 1 + group(&tokens[1..]);
    let has = |word: &str| tokens[..length].iter().any(|token| token.text == word);
    (has("test") && !has("not")).then_some(length)
}

/// The length of the brackets that `tokens` begin with, and of all within.
fn group(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// The length of the item that `tokens` begin with: to its `;`, or to the end of its body.
fn item(tokens: &[Token]) -> usize {
    let mut i = 0;
    while texts(&tokens[i..], 2) == ["#", "["] {
        i += 1 + group(&tokens[i + 1..]);
    }
    let is_use = tokens.get(i).is_some_and(|token| token.text == "use");
    while i < tokens.len() {
        match tokens[i].text.as_str() {
            ";" => return i + 1,
            "{" if !is_use => return i + group(&tokens[i..]),
            "(" | "[" | "{" => i += group(&tokens[i..]),
            _ => i += 1,
        }
    }
    tokens.len()
}

/// The name in an item that ends in `mod name;`.
fn module_in_a_file(item: &[Token]) -> Option<String> {
    match item {
        [.., keyword, name, end] if keyword.text == "mod" && end.text == ";" => Some(name.text.clone()),
        _ => None,
    }
}

#[test]
fn comments_texts_and_tests_are_left_out() {
    let text = r##"
// crate::a
/* crate::b /* crate::c */ crate::d */
fn f<'a>(x: &'a str) -> char { g("crate::e \" crate::f", r#"crate::g " "#, b"\"", '"', '\'', b'x'); 'z' }
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::h;
}
#[cfg(all(test, unix))]
mod elsewhere;
#[cfg(not(test))]
use crate::i;
"##;
    let code = Code::read(text);
    let found: Vec<&str> = code.tokens.iter().map(|token| token.text.as_str()).collect();
    let expected = "fn f < > ( x : & str ) - > char { g ( , , , , , ) ; } # [ cfg ( not ( test ) ) ] use crate :: i ;";
    assert_eq!(found.join(" "), expected);
    assert_eq!(code.tokens.last().map(|token| token.line), Some(13));
    assert_eq!(code.test_lines, [5..=9, 10..=11]);
    assert_eq!(code.test_modules, ["elsewhere"]);
}
