//! The paths that a file names: those of its `use` declarations, and those in its code.

use std::collections::HashMap;

use super::tokens::Token;

/// A path, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub segments: Vec<String>,
    pub line: usize,
}

/// One name that a `use` declaration brings in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    pub path: Path,
    /// What the file calls it; `None` for `*` and `_`.
    pub name: Option<String>,
    /// Whether it is for other files: `pub use`.
    pub public: bool,
    /// Whether it is all of what a module has: `*`.
    pub all: bool,
}

/// What stands in one module: a file, or a `mod name { .. }` inside it.
#[derive(Debug, Default)]
pub(crate) struct Module {
    pub imports: Vec<Import>,
    pub paths: Vec<Path>,
    /// How often each name stands outside `use` declarations.
    pub names: HashMap<String, usize>,
}

/// The modules of a file by their names inside it; the file's own has none.
pub(crate) fn modules(tokens: &[Token]) -> Vec<(Vec<String>, Module)> {
    let mut found = Vec::new();
    read(tokens, Vec::new(), &mut found);
    found
}

fn read(tokens: &[Token], at: Vec<String>, found: &mut Vec<(Vec<String>, Module)>) {
    let mut module = Module::default();
    let mut i = 0;
    while i < tokens.len() {
        let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
        if text(i) == "use" {
            let public = i > 0 && matches!(text(i - 1), "pub" | ")");
            let mut tree = Tree { tokens, at: i + 1, public, imports: &mut module.imports };
            tree.read(&[]);
            i = tree.at;
        } else if text(i) == "mod" && text(i + 2) == "{" {
            let end = closing(tokens, i + 2);
            let mut inner = at.clone();
            inner.push(tokens[i + 1].text.clone());
            read(&tokens[i + 3..end], inner, found);
            i = end;
        } else if tokens[i].is_name() {
            *module.names.entry(tokens[i].text.clone()).or_default() += 1;
            let mut path = Path { segments: vec![tokens[i].text.clone()], line: tokens[i].line };
            while text(i + 1) == "::" && tokens.get(i + 2).is_some_and(Token::is_name) {
                path.segments.push(tokens[i + 2].text.clone());
                i += 2;
            }
            if path.segments.len() > 1 {
                module.paths.push(path);
            }
            i += 1;
        } else {
            i += 1;
        }
    }
    found.push((at, module));
}

/// Where the brace that opens at `open` is closed.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    tokens.len()
}

/// Reads what follows a `use`.
struct Tree<'a> {
    tokens: &'a [Token],
    at: usize,
    public: bool,
    imports: &'a mut Vec<Import>,
}

impl Tree<'_> {
    fn text(&self) -> &str {
        self.tokens.get(self.at).map_or(";", |token| token.text.as_str())
    }

    /// Reads one path, to its `,`, `}` or `;`. `before` stands in front of the braces that it is in.
    fn read(&mut self, before: &[String]) {
        let mut segments = before.to_vec();
        let line = self.tokens.get(self.at).map_or(0, |token| token.line);
        let mut name = None;
        let mut all = false;
        loop {
            match self.text() {
                "{" => {
                    self.at += 1;
                    while !matches!(self.text(), "}" | ";") {
                        self.read(&segments);
                        self.at += usize::from(self.text() == ",");
                    }
                    self.at += 1;
                    return;
                }
                "*" => all = true,
                "as" => {
                    self.at += 1;
                    name = Some(self.text().to_owned());
                }
                "," | "}" | ";" => break,
                "::" => {}
                // A module that is named inside its own braces: `use a::{self, b}`.
                "self" if segments.len() > before.len() || !before.is_empty() => {}
                segment => segments.push(segment.to_owned()),
            }
            self.at += 1;
        }
        let name = name.or_else(|| segments.last().cloned()).filter(|name| name != "_" && !all);
        let path = Path { segments, line };
        self.imports.push(Import { path, name, public: self.public, all });
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::Code;
    use super::*;

    #[test]
    fn imports_and_paths_are_found() {
        let text = "use crate::a::{self, B, c::{D as E, F as _}};\npub(crate) use super::g::*;\n\
            fn f() -> Result<H> { crate::i::j::<K>(L::new()); mod_::x }\nmod inside { use super::m; }";
        let found = modules(&Code::read(text).tokens);
        let imports = |module: &Module| -> Vec<String> {
            module
                .imports
                .iter()
                .map(|import| {
                    let name = import.name.as_deref().unwrap_or("-");
                    let public = if import.public { " pub" } else { "" };
                    format!("{}: {} as {name}{public}", import.path.line, import.path.segments.join("::"))
                })
                .collect()
        };
        let [(inner, inside), (outer, file)] = &found[..] else { panic!("two modules: {found:?}") };
        assert_eq!((inner.join("::"), outer.len()), ("inside".to_owned(), 0));
        assert_eq!(imports(inside), ["4: super::m as m"]);
        let expected = ["1: crate::a as a", "1: crate::a::B as B", "1: crate::a::c::D as E", "1: crate::a::c::F as -"];
        assert_eq!(imports(file)[..4], expected);
        assert_eq!(imports(file)[4..], ["2: super::g as - pub"]);
        let paths: Vec<String> = file.paths.iter().map(|path| path.segments.join("::")).collect();
        assert_eq!(paths, ["crate::i::j", "L::new", "mod_::x"]);
    }
}
