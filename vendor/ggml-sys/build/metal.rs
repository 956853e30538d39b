//! ggml's Metal backend, with its kernels as text inside the library, which the driver compiles. Follows
//! `src/ggml-metal/CMakeLists.txt` with `GGML_METAL_EMBED_LIBRARY`. Written from there and never run.

use std::fs;
use std::path::{Path, PathBuf};

use super::{new_build, out_dir, sources};

const OBJC: &[&str] = &["ggml-metal/ggml-metal-device.m", "ggml-metal/ggml-metal-context.m"];
const CPP: &[&str] = &[
    "ggml-metal/ggml-metal.cpp",
    "ggml-metal/ggml-metal-device.cpp",
    "ggml-metal/ggml-metal-common.cpp",
    "ggml-metal/ggml-metal-fusion.cpp",
    "ggml-metal/ggml-metal-ops.cpp",
    "ggml-metal/ggml-metal-tuning.cpp",
];

/// What kernels include of each other: put before the kernels that do, in this order.
const SHARED: &[&str] = &["common.h", "dequantize.h", "quantize.h", "fa_common.metal", "fa_vec_common.metal"];

fn read(path: &Path) -> String {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Kernel files, without those that others include.
fn kernels(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot read {}: {error}", dir.display()));
    let is_kernel = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "metal")
            && SHARED.iter().all(|shared| !path.ends_with(shared))
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_kernel).collect();
    files.sort();
    files
}

/// One kernel file with all that it includes in place.
fn whole_kernel(metal: &Path, kernel: &Path) -> String {
    let own = read(kernel);
    let includes = |shared: &&&str| **shared == "common.h" || own.contains(&format!("#include \"{shared}\""));
    let mut text: String =
        SHARED.iter().filter(includes).map(|shared| read(&metal.join("kernels").join(shared))).collect();
    text.push_str(&own);
    let (types, arguments) = (read(&metal.join("../ggml-common.h")), read(&metal.join("ggml-metal-impl.h")));
    let mut whole = String::with_capacity(text.len() + types.len() + arguments.len());
    for line in text.lines() {
        let included_before = SHARED.iter().any(|shared| line.contains(&format!("#include \"{shared}\"")));
        if included_before || line.contains("#pragma once") {
            continue;
        }
        if line.contains("__embed_ggml-common.h__") {
            whole.push_str(&types);
        } else if line.contains("#include \"ggml-metal-impl.h\"") {
            whole.push_str(&arguments);
        } else {
            whole.push_str(line);
        }
        whole.push('\n');
    }
    whole
}

/// An assembler file that carries the text of one kernel file between two symbols.
fn embed(metal: &Path, kernel: &Path) -> PathBuf {
    let kind = kernel.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
    let text = out_dir().join(format!("ggml-metal-embed-{kind}.metal"));
    let assembler = text.with_extension("s");
    let symbols = format!(
        ".section __DATA,__ggml_metallib\n.globl _ggml_metallib_{kind}_start\n_ggml_metallib_{kind}_start:\n\
         .incbin \"{}\"\n.globl _ggml_metallib_{kind}_end\n_ggml_metallib_{kind}_end:\n",
        text.display()
    );
    for (path, contents) in [(&text, whole_kernel(metal, kernel)), (&assembler, symbols)] {
        fs::write(path, contents).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
    assembler
}

/// The backend and its kernels.
pub(super) fn build_metal(ggml: &Path) {
    let metal = ggml.join("src/ggml-metal");
    let mut objc = new_build(ggml, false);
    objc.define("GGML_METAL_EMBED_LIBRARY", None);
    sources(&mut objc, ggml, OBJC);
    objc.compile("pinhole_ggml_metal_objc");

    let mut cpp = new_build(ggml, true);
    cpp.define("GGML_METAL_EMBED_LIBRARY", None);
    sources(&mut cpp, ggml, CPP);
    cpp.compile("pinhole_ggml_metal");

    let assembler: Vec<PathBuf> = kernels(&metal.join("kernels")).iter().map(|kernel| embed(&metal, kernel)).collect();
    cc::Build::new().files(assembler).compile("pinhole_ggml_metal_kernels");
    // ggml calls the runtime of Objective-C, and has constant strings. On a Mac, Foundation brings both; a stand-in for it does not.
    println!("cargo::rustc-link-lib=objc");
    for framework in ["CoreFoundation", "Foundation", "Metal", "MetalKit"] {
        println!("cargo::rustc-link-lib=framework={framework}");
    }
}
