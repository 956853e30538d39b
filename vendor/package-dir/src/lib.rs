//! Where Cargo put a package whose files a build script uses. A crate of its own, since packages take no files from one another.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of `package`, which brings `what`. `cargo metadata` fetches and verifies it if that was not done yet. `manifest` is the
/// `Cargo.toml` that asks for it.
///
/// # Panics
///
/// If it is not found: that is how a build script says what is wrong.
pub fn package_dir(package: &str, what: &str, manifest: &Path) -> PathBuf {
    let metadata: serde_json::Value = serde_json::from_slice(&cargo_metadata(what, manifest))
        .unwrap_or_else(|error| panic!("`cargo metadata` printed no JSON: {error}"));
    let found = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|found| found["name"] == package)
        .and_then(|found| found["manifest_path"].as_str())
        .unwrap_or_else(|| panic!("`cargo metadata` lists no package {package}; see {}", manifest.display()));
    PathBuf::from(found).with_file_name("")
}

fn cargo_metadata(what: &str, manifest: &Path) -> Vec<u8> {
    let cargo =
        env::var_os("CARGO").unwrap_or_else(|| panic!("CARGO is not set: a build script has to be run by cargo"));
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(manifest)
        .output()
        .unwrap_or_else(|error| panic!("cannot run `cargo metadata`: {error}"));
    if !output.status.success() {
        panic!(
            "`cargo metadata --locked` failed, so {what} was not found:\n{}\n\
             hint: Cargo.lock pins it and has to be there and up to date; `cargo fetch --locked` brings it for building \
             without a network",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    output.stdout
}
