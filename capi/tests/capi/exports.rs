//! What the libraries show of themselves.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::rig::{prefix, root, run};

/// The list that everything is held to.
fn golden() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("capi/exports.txt")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Global symbols that `library` defines, by nm.
fn defined(library: &Path, flags: &[&str]) -> BTreeSet<String> {
    let mut nm = Command::new("nm");
    let output = run(nm.args(flags).args(["--defined-only", "--format=posix"]).arg(library));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let symbols = text.lines().filter(|line| line.split(' ').count() > 2);
    symbols.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn the_header_declares_what_the_list_has() {
    let header = fs::read_to_string(root().join("include/pinhole.h")).unwrap();
    let functions = header.lines().filter_map(|line| {
        let declaration = line.strip_prefix("PINHOLE_API ")?.split('(').next()?;
        Some(declaration.rsplit([' ', '*']).next()?.to_owned())
    });
    assert_eq!(functions.collect::<BTreeSet<_>>(), golden());
}

#[test]
fn the_shared_library_exports_nothing_else() {
    let library = prefix().join("lib/libpinhole.so");
    assert_eq!(defined(&library, &["--dynamic"]), golden());
    let output = run(Command::new("readelf").arg("-d").arg(&library));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Library soname: [libpinhole.so.0]"));
}

/// What could not be made local has a name of its own.
#[test]
fn the_static_library_has_no_other_global_symbols() {
    let mut symbols = defined(&prefix().join("lib/libpinhole.a"), &["--extern-only"]);
    symbols.retain(|symbol| !symbol.starts_with("pinhole_private_"));
    assert_eq!(symbols, golden());
}
