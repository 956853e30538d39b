//! Which file of a crate imports which.

use std::collections::{BTreeMap, HashMap};
use std::path::Path as Folder;

use super::paths::{self, Module, Path};
use super::tokens::Code;

/// A file that needs another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    /// Files, from the crate's folder on: `ggml/mod.rs`.
    pub from: String,
    pub to: String,
    pub line: usize,
    /// The path that stands there.
    pub path: String,
    /// Whether it names the module itself and nothing in it: `use crate::ggml;`.
    pub whole: bool,
}

/// The modules of a crate, by their paths; the root's is empty.
pub(crate) struct Crate {
    modules: BTreeMap<Vec<String>, (String, Module)>,
}

/// What a path leads to.
enum Target {
    Module(Vec<String>),
    /// Something that is defined in this file.
    Item(String),
}

/// The most `use` declarations that lead from one to the next.
const DEPTH: usize = 16;

impl Crate {
    /// Reads the crate in the folder `root`, except the files for which `skips` holds.
    pub(crate) fn open(root: &Folder, skips: impl Fn(&str) -> bool) -> Crate {
        let files = super::files(root).into_iter().filter(|file| !skips(file));
        let texts: Vec<(String, String)> = files.map(|file| (file.clone(), super::text(&root.join(&file)))).collect();
        Crate::read(texts.iter().map(|(file, text)| (file.as_str(), text.as_str())))
    }

    /// Reads files, given as name and text.
    pub(crate) fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Crate {
        let mut modules = BTreeMap::new();
        let mut tests = Vec::new();
        for (file, text) in files {
            let code = Code::read(text);
            let path = module_of(file);
            for name in &code.test_modules {
                tests.push([path.clone(), vec![name.clone()]].concat());
            }
            for (inside, module) in paths::modules(&code.tokens) {
                modules.insert([path.clone(), inside].concat(), (file.to_owned(), module));
            }
        }
        modules.retain(|path, _| !tests.iter().any(|test| path.starts_with(test)));
        Crate { modules }
    }

    /// Every import of a file by another, once for each path that names it.
    pub(crate) fn edges(&self) -> Vec<Edge> {
        let mut edges = Vec::new();
        for (at, (from, module)) in &self.modules {
            for import in &module.imports {
                let path = &import.path;
                let Some(target) = self.resolve(at, &path.segments, 0) else { continue };
                // What a file only hands on, it does not need.
                let used = import.name.as_ref().is_some_and(|name| module.names.contains_key(name));
                let whole = matches!(target, Target::Module(_)) && !import.all;
                if !import.public || used {
                    self.add(&mut edges, from, path, &target, whole);
                }
            }
            for path in &module.paths {
                if let Some(target) = self.resolve(at, &path.segments, 0) {
                    self.add(&mut edges, from, path, &target, matches!(target, Target::Module(_)));
                }
            }
        }
        edges.sort();
        edges.dedup();
        edges
    }

    fn add(&self, edges: &mut Vec<Edge>, from: &str, path: &Path, target: &Target, whole: bool) {
        let to = match target {
            Target::Item(file) => file,
            Target::Module(module) => &self.modules[module].0,
        };
        if to != from {
            let path_text = path.segments.join("::");
            edges.push(Edge { from: from.to_owned(), to: to.clone(), line: path.line, path: path_text, whole });
        }
    }

    /// What `path` means in the module `at`; `None` if it leads out of the crate, or to a local name.
    fn resolve(&self, at: &[String], path: &[String], depth: usize) -> Option<Target> {
        let (first, mut rest) = path.split_first()?;
        let mut current = match first.as_str() {
            "crate" => Vec::new(),
            "self" => at.to_vec(),
            "super" => {
                let mut above = at[..at.len().checked_sub(1)?].to_vec();
                while rest.first().is_some_and(|segment| segment == "super") {
                    above.pop()?;
                    rest = &rest[1..];
                }
                above
            }
            name => match self.step(at, name, depth)? {
                Target::Module(module) => module,
                item => return Some(item),
            },
        };
        for name in rest {
            match self.step(&current, name, depth) {
                Some(Target::Module(module)) => current = module,
                Some(item) => return Some(item),
                None => return Some(Target::Item(self.modules.get(&current)?.0.clone())),
            }
        }
        Some(Target::Module(current))
    }

    /// What `name` is in `module`, if it is a module in there, or if a `use` brings it in.
    fn step(&self, module: &[String], name: &str, depth: usize) -> Option<Target> {
        let inner = [module, &[name.to_owned()]].concat();
        if self.modules.contains_key(&inner) {
            return Some(Target::Module(inner));
        }
        let import = self.modules.get(module)?.1.imports.iter().find(|import| import.name.as_deref() == Some(name))?;
        if depth == DEPTH { None } else { self.resolve(module, &import.path.segments, depth + 1) }
    }
}

/// The path of the module in a file: `ggml`, `scratch` for `ggml/scratch/mod.rs`.
fn module_of(file: &str) -> Vec<String> {
    let name = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let name = if matches!(name, "lib" | "main") { "" } else { name };
    name.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The circles: sets of files, where each needs all others in its set, if not directly then by way of them.
pub(crate) fn circles(edges: &[Edge]) -> Vec<Vec<String>> {
    let mut needs: HashMap<&str, Vec<&str>> = HashMap::new();
    for edge in edges.iter().filter(|edge| !edge.whole) {
        needs.entry(&edge.from).or_default().push(&edge.to);
    }
    let reached: BTreeMap<&str, Vec<&str>> = needs.keys().map(|&file| (file, reachable(&needs, file))).collect();
    let mut circles: Vec<Vec<String>> = Vec::new();
    for (file, others) in &reached {
        let mut circle: Vec<String> = others
            .iter()
            .filter(|other| reached.get(**other).is_some_and(|others| others.contains(file)))
            .map(|&other| other.to_owned())
            .collect();
        circle.sort();
        if circle.len() > 1 && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn reachable<'a>(needs: &HashMap<&'a str, Vec<&'a str>>, file: &'a str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut next = vec![file];
    while let Some(file) = next.pop() {
        for &other in needs.get(file).into_iter().flatten() {
            if !found.contains(&other) {
                found.push(other);
                next.push(other);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(files: &[(&str, &str)]) -> Vec<String> {
        let edges = Crate::read(files.iter().copied()).edges();
        edges.iter().map(|edge| format!("{}:{} {}", edge.from, edge.line, edge.to)).collect()
    }

    #[test]
    fn a_name_leads_to_the_file_that_defines_it() {
        let files = [
            ("lib.rs", "pub mod a; pub mod b; pub use a::A;"),
            ("a.rs", "use crate::b::{Deep, own, deep::E as F};\nuse std::fmt;\nfn f() { fmt::g(); own(); F::new() }"),
            ("b/mod.rs", "mod deep;\npub use deep::{Deep, E};\nmod inner { use super::deep::E; }\npub fn own() {}"),
            ("b/deep.rs", "use super::own;\nuse crate::A;\n#[cfg(test)] mod tests { use crate::a::X; }"),
        ];
        assert_eq!(
            edges(&files),
            [
                "a.rs:1 b/deep.rs",
                "a.rs:1 b/deep.rs",
                "a.rs:3 b/deep.rs",
                "a.rs:1 b/mod.rs",
                "b/deep.rs:2 a.rs",
                "b/deep.rs:1 b/mod.rs",
                "b/mod.rs:3 b/deep.rs"
            ]
        );
    }

    #[test]
    fn a_name_that_is_handed_on_is_needed_only_if_it_is_used() {
        let part = ("m/part.rs", "use super::Shared; pub struct Part(Shared);");
        let hands_on = ("m/mod.rs", "mod part; pub use part::Part; pub struct Shared;");
        let uses = ("m/mod.rs", "mod part; pub use part::Part; pub struct Shared; fn f(part: Part) {}");
        let of = |files: [(&str, &str); 2]| circles(&Crate::read(files).edges());
        assert!(of([part, hands_on]).is_empty());
        assert_eq!(of([part, uses]), [["m/mod.rs", "m/part.rs"]]);
    }

    #[test]
    fn circles_are_found_across_several_files() {
        let files = [
            ("m/a.rs", "use super::b::B;"),
            ("m/b.rs", "fn f() { super::c::g() }"),
            ("m/c.rs", "use crate::m::a::A;\nuse super::d::D;"),
            ("m/d.rs", "use super::e;"),
            ("m/e.rs", "use super::d::D;"),
            ("m/mod.rs", "mod a; mod b; mod c; mod d; mod e;"),
        ];
        assert_eq!(circles(&Crate::read(files).edges()), [["m/a.rs", "m/b.rs", "m/c.rs"]]);
    }

    #[test]
    fn files_that_only_tests_compile_are_left_out() {
        let files = [
            ("a.rs", "#[cfg(test)]\nmod tests;\npub struct A;"),
            ("a/tests.rs", "use super::A; use crate::b::B;"),
            ("b.rs", ""),
        ];
        assert!(edges(&files).is_empty());
    }
}
