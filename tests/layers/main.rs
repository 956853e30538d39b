//! How the code is laid out: which module may import which, which files may import one another, and where the name of a family of
//! models may stand. Each check says what is wrong, where, and what to do.

#![allow(clippy::unwrap_used)]

mod circles;
mod families;
mod graph;
mod order;
mod paths;
mod tokens;

use std::fs;
use std::path::{Path, PathBuf};

use graph::Crate;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The Rust files below `folder`, by their paths from there, in order.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = vec![folder.to_owned()];
    while let Some(folder_now) = next.pop() {
        for entry in fs::read_dir(&folder_now).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                next.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

/// The program's own files beside the library.
fn of_the_program(file: &str) -> bool {
    file == "main.rs" || file.starts_with("cli/")
}

#[track_caller]
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n\n{}\n", wrong.join("\n"));
}

#[test]
fn modules_import_only_from_those_above() {
    let lib = text(&root().join("src/lib.rs"));
    assert_none(&order::unlisted(&lib));
    let edges = Crate::open(&root().join("src"), of_the_program).edges();
    assert_none(&order::upward(&edges, &order::table(&lib), order::EXCEPTIONS));
}

#[test]
fn files_do_not_import_one_another() {
    let mut wrong = Vec::new();
    for folder in ["src", "hub/src", "quant/src", "capi/src"] {
        let root = root().join(folder);
        let mut found = graph::circles(&Crate::open(&root, of_the_program).edges());
        found.extend(graph::circles(&Crate::open(&root, |file| !of_the_program(file)).edges()));
        wrong.extend(circles::unexpected(folder, &found, circles::ACCEPTED));
    }
    assert_none(&wrong);
}

#[test]
fn families_are_named_in_their_own_files() {
    let mut wrong = Vec::new();
    let mut texts = Vec::new();
    for folder in families::FOLDERS {
        for file in files(&root().join(folder)) {
            let file = format!("{folder}/{file}");
            texts.push((text(&root().join(&file)), file));
        }
    }
    wrong.extend(families::misplaced(
        texts.iter().map(|(text, file)| (file.as_str(), text.as_str())),
        families::NOT_YET,
    ));
    assert_none(&wrong);
}
