//! `PINHOLE_TARGET_CPU=portable`: the CPU backend compiled for several levels of x86-64: shim/variants.c takes the highest that the
//! processor has. Linux and GNU's linker only.
//!
//! All have the same names, and templates of C++ that the linker would merge: the code for one processor would then be run on another. So
//! each becomes one object first in which all is local, except for what the rest calls, and that has the level in its name.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{cpu_builds, is_linux, new_build, out_dir, target_arch};

/// The levels of the x86-64 psABI, and what stands before the names of each. The first is what such a build needs.
const LEVELS: &[(&str, &str)] = &[("x86-64-v2", "ph_v2_"), ("x86-64-v3", "ph_v3_"), ("x86-64-v4", "ph_v4_")];

/// What is called from outside: the functions of shim/variants.c.
const CALLED: &[&str] = &[
    "ggml_backend_cpu_reg",
    "ggml_backend_cpu_set_abort_callback",
    "ggml_backend_cpu_set_n_threads",
    "ggml_backend_cpu_set_threadpool",
    "ggml_graph_compute",
    "ggml_graph_plan",
    "ggml_threadpool_free",
    "ggml_threadpool_new",
    "ph_barrier",
];

/// Weak in all of them, and the one of shim.cpp holds.
const SHARED: &str = "ggml_barrier";

/// The compiler's flag for what such a build needs.
pub(super) fn least_flag() -> String {
    flag(LEVELS[0].0)
}

fn flag(level: &str) -> String {
    format!("-march={level}")
}

/// All levels, and what chooses.
pub(super) fn build(ggml: &Path) {
    if !is_linux() || target_arch() != "x86_64" {
        panic!(
            "PINHOLE_TARGET_CPU=portable is for x86-64 and Linux\nhint: name a processor, as x86-64-v3 or armv8.2-a"
        );
    }
    println!("cargo::rustc-cfg=portable");
    println!("cargo::rerun-if-changed=shim/variants.c");
    let mut all = new_build(ggml, false);
    for (level, prefix) in LEVELS {
        let object = merged(level, &objects(ggml, level));
        hide(&object, prefix);
        all.object(object);
    }
    all.file("shim/variants.c").extra_warnings(true).compile("pinhole_ggml_cpu_variants");
    // What the objects call in C++'s library.
    println!("cargo::rustc-link-lib=stdc++");
}

/// The CPU backend for `level`, compiled.
fn objects(ggml: &Path, level: &str) -> Vec<PathBuf> {
    let mut objects = Vec::new();
    for mut build in cpu_builds(ggml, &flag(level)) {
        // Symbols that are unique in a process cannot be made local.
        build.flag_if_supported("-fno-gnu-unique").out_dir(out_dir().join(level));
        objects.extend(build.compile_intermediates());
    }
    objects
}

/// One object of `objects`. Groups that linkers merge by name become plain sections.
fn merged(level: &str, objects: &[PathBuf]) -> PathBuf {
    let object = out_dir().join(level).join("merged.o");
    run(Command::new("ld").args(["-r", "--force-group-allocation", "-o"]).arg(&object).args(objects));
    object
}

/// Makes all names in `object` local, except for those that are called, which get `prefix`.
fn hide(object: &Path, prefix: &str) {
    let mut command = Command::new("objcopy");
    command.arg(format!("--keep-global-symbol={SHARED}"));
    for name in CALLED {
        command
            .arg(format!("--keep-global-symbol={prefix}{name}"))
            .arg(format!("--redefine-sym={name}={prefix}{name}"));
    }
    run(command.arg(object));
}

fn run(command: &mut Command) {
    let status =
        command.status().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}\nhint: install binutils"));
    if !status.success() {
        panic!("failed with {status}: {command:?}");
    }
}
