//! Brings the vocabulary of OpenAI's CLIP into the library: its merges, from the file that the package
//! `instant-clip-tokenizer` carries (see Cargo.toml), as `clip_merges.txt` in the output folder.

use std::path::{Path, PathBuf};
use std::{env, fs};

use pinhole_package_dir::package_dir;

const PACKAGE: &str = "instant-clip-tokenizer";
const FILE: &str = "bpe_simple_vocab_16e6.txt";

/// How many of the file's merges CLIP uses: 49 408 tokens, less each byte in two forms and the two marks.
const MERGES: usize = 49_408 - 2 * 256 - 2;

fn cargo_env(name: &str) -> PathBuf {
    // Cargo sets the variables that are asked for here for every build script.
    PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: build.rs has to be run by cargo")))
}

/// The merges that CLIP uses, one pair of pieces a line, the most frequent first. A version line stands before them.
fn merges(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    let lines: Vec<&str> = text.lines().skip(1).take(MERGES).collect();
    if lines.len() != MERGES || lines.iter().any(|line| line.split(' ').count() != 2) {
        panic!("{} does not hold {MERGES} pairs of pieces behind its first line", file.display());
    }
    lines.join("\n")
}

fn main() {
    let manifest = cargo_env("CARGO_MANIFEST_DIR").join("Cargo.toml");
    let file = package_dir(PACKAGE, "CLIP's vocabulary", &manifest).join(FILE);
    for input in [Path::new("build.rs"), Path::new("Cargo.toml"), &file] {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    let output = cargo_env("OUT_DIR").join("clip_merges.txt");
    fs::write(&output, merges(&file)).unwrap_or_else(|error| panic!("cannot write {}: {error}", output.display()));
}
