//! Compiles ggml with `cc`, from the sources that Cargo fetched (see Cargo.toml), and the shim: the CPU backend always, the
//! others by Cargo features, each in a file of its own under `build`.
//!
//! The file lists and definitions follow ggml's own `src/CMakeLists.txt` and `src/ggml-cpu/CMakeLists.txt`.
//!
//! Environment:
//! - `PINHOLE_GGML_DIR`: another ggml checkout to build, instead of the pinned package's;
//! - `PINHOLE_TARGET_CPU`: the processor to compile for, in the compiler's own words (`x86-64-v3`, `znver4`,
//!   `apple-m1`, `armv8.2-a+dotprod`); `native`, the default, is the machine that compiles; `portable` is every x86-64 processor
//!   since about 2009, and each at its best;
//! - `PINHOLE_ACCELERATE`: `off` builds for macOS without Apple's Accelerate framework, whose headers only a Mac has;
//! - `PINHOLE_VULKAN_HEADERS`, `PINHOLE_GLSLC`: headers and shader compiler for the feature `vulkan`;
//! - `PINHOLE_CUDA_HOME`, `PINHOLE_CUDA_ARCH`: toolkit and architecture for the feature `cuda`.

use std::path::{Path, PathBuf};
use std::{env, fs};

use pinhole_package_dir::package_dir;

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/instructions.rs"]
mod instructions;
#[cfg(feature = "metal")]
#[path = "build/metal.rs"]
mod metal;
#[path = "build/variants.rs"]
mod variants;
#[cfg(feature = "vulkan")]
#[path = "build/vulkan.rs"]
mod vulkan;

const PACKAGE: &str = "llama-cpp-sys-2";
/// The ggml that `src/bindings.rs` was made from.
const BINDINGS_VERSION: &str = "0.26.0";

/// The core: tensors, graphs, allocation, number formats. Left out are ggml.cpp, which installs a terminate handler, and
/// ggml-opt.cpp and gguf.cpp, which nothing here calls.
const BASE_C: &[&str] = &["ggml.c", "ggml-alloc.c", "ggml-quants.c"];
const BASE_CPP: &[&str] = &["ggml-backend.cpp", "ggml-backend-meta.cpp", "ggml-threading.cpp"];

/// The list of backends and devices.
const REGISTRY_CPP: &[&str] = &["ggml-backend-reg.cpp", "ggml-backend-dl.cpp"];

/// Except ggml-cpu.c, which is part of shim/cpu.c.
const CPU_C: &[&str] = &["ggml-cpu/quants.c"];
const CPU_CPP: &[&str] = &[
    "ggml-cpu/ops.cpp",
    "ggml-cpu/llamafile/sgemm.cpp",
    "ggml-cpu/repack.cpp",
    "ggml-cpu/amx/amx.cpp",
    "ggml-cpu/amx/mmq.cpp",
    "ggml-cpu/binary-ops.cpp",
    "ggml-cpu/ggml-cpu.cpp",
    "ggml-cpu/tiled/tiled-kernel.cpp",
    "ggml-cpu/tiled/tiled.cpp",
    "ggml-cpu/traits.cpp",
    "ggml-cpu/unary-ops.cpp",
    "ggml-cpu/vec.cpp",
];

fn cargo_env(name: &str) -> String {
    // Cargo sets the variables that are asked for here for every build script.
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: build.rs has to be run by cargo"))
}

fn target_arch() -> String {
    cargo_env("CARGO_CFG_TARGET_ARCH")
}

fn is_x86() -> bool {
    matches!(target_arch().as_str(), "x86" | "x86_64")
}

fn is_arm() -> bool {
    matches!(target_arch().as_str(), "arm" | "aarch64")
}

fn is_linux() -> bool {
    cargo_env("CARGO_CFG_TARGET_OS") == "linux"
}

fn is_apple() -> bool {
    cargo_env("CARGO_CFG_TARGET_VENDOR") == "apple"
}

/// Whether Apple's framework for vectors is there to be compiled and linked with.
fn has_accelerate() -> bool {
    is_apple() && env::var_os("PINHOLE_ACCELERATE").is_none_or(|value| value != "off")
}

fn is_windows() -> bool {
    cargo_env("CARGO_CFG_TARGET_OS") == "windows"
}

fn is_msvc() -> bool {
    cargo_env("CARGO_CFG_TARGET_ENV") == "msvc"
}

fn has_cuda() -> bool {
    cfg!(feature = "cuda")
}

fn has_metal() -> bool {
    cfg!(feature = "metal")
}

fn has_vulkan() -> bool {
    cfg!(feature = "vulkan")
}

fn is_cross() -> bool {
    cargo_env("HOST") != cargo_env("TARGET")
}

fn manifest_dir() -> PathBuf {
    PathBuf::from(cargo_env("CARGO_MANIFEST_DIR"))
}

fn out_dir() -> PathBuf {
    PathBuf::from(cargo_env("OUT_DIR"))
}

/// Where ggml's sources are: `PINHOLE_GGML_DIR`, or inside the pinned package.
fn ggml_dir() -> PathBuf {
    let dir = match env::var_os("PINHOLE_GGML_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let manifest = manifest_dir().join("Cargo.toml");
            package_dir(PACKAGE, "ggml's source", &manifest).join("llama.cpp").join("ggml")
        }
    };
    if !dir.join("include/ggml.h").is_file() {
        panic!(
            "no ggml sources in {}\nhint: PINHOLE_GGML_DIR names ggml's own folder, where include/ggml.h is",
            dir.display()
        );
    }
    dir
}

/// The version that ggml's CMakeLists.txt declares.
fn ggml_version(ggml: &Path) -> String {
    let path = ggml.join("CMakeLists.txt");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let part = |name: &str| {
        let set = format!("set(GGML_VERSION_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&set)?.strip_suffix(')'));
        value.unwrap_or_else(|| panic!("{} does not set GGML_VERSION_{name}", path.display()))
    };
    format!("{}.{}.{}", part("MAJOR"), part("MINOR"), part("PATCH"))
}

/// The bindings hold for one ggml only: with another, calls would go wrong with no message.
fn check_version(version: &str) {
    if version != BINDINGS_VERSION && cfg!(not(feature = "bindgen")) {
        panic!(
            "these sources are ggml {version}, and src/bindings.rs is for ggml {BINDINGS_VERSION}\n\
             hint: `cargo check -p pinhole-ggml-sys --features bindgen` makes bindings for them; change BINDINGS_VERSION in build.rs"
        );
    }
}

/// CMake makes this header from ggml-version.h.in.
fn write_version_header(version: &str) {
    let text = format!("#pragma once\n\n#define GGML_VERSION \"{version}\"\n#define GGML_COMMIT \"unknown\"\n");
    let path = out_dir().join("ggml-version.h");
    fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// What all of ggml is compiled with: optimised in every profile, since its kernels are hopeless otherwise.
fn new_build(ggml: &Path, cpp: bool) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(cpp).std(if cpp { "gnu++17" } else { "gnu11" }).opt_level(3).debug(false);
    // An assertion may unwind through C frames (see src/guard.rs), and a host may link another ggml beside this one.
    build.flag("-fexceptions").flag("-fvisibility=hidden");
    build.include(ggml.join("include")).include(ggml.join("src")).include(out_dir());
    // Assertions name their file, which would otherwise be a path of the machine that compiled.
    build.flag(format!("-ffile-prefix-map={}=ggml", ggml.display()));
    // Plain `assert` would abort past the guard. ggml's own assertions, GGML_ASSERT, stay in.
    build.define("NDEBUG", None).define("GGML_SCHED_MAX_COPIES", "4");
    define_platform(&mut build);
    build
}

fn define_platform(build: &mut cc::Build) {
    build.define("_XOPEN_SOURCE", "600");
    if is_linux() {
        build.define("_GNU_SOURCE", None);
    }
    if is_apple() {
        build.define("_DARWIN_C_SOURCE", None);
    }
    if is_windows() {
        build.define("_CRT_SECURE_NO_WARNINGS", None);
        // Windows 10: ggml.h says the same, too late for system headers that are included before it.
        build.define("_WIN32_WINNT", "0x0A00");
        if is_x86() && build.get_compiler().is_like_gnu() {
            // Windows aligns stacks to 16 bytes, and GCC puts vectors of 32 there as if they were aligned to as many:
            // https://gcc.gnu.org/bugzilla/show_bug.cgi?id=54412
            build.flag("-Wa,-muse-unaligned-vector-move");
        }
    }
}

/// Adds files of ggml's, whose warnings are upstream's to mend.
fn sources(build: &mut cc::Build, ggml: &Path, files: &[&str]) {
    build.warnings(false).flag("-w");
    for file in files {
        let path = ggml.join("src").join(file);
        println!("cargo::rerun-if-changed={}", path.display());
        build.file(path);
    }
}

/// The processor that the CPU backend is compiled for.
fn target_cpu() -> String {
    match env::var("PINHOLE_TARGET_CPU") {
        Ok(cpu) => cpu,
        Err(_) if is_cross() => panic!(
            "compiling for {} on {}: set PINHOLE_TARGET_CPU to the processor to compile for",
            cargo_env("TARGET"),
            cargo_env("HOST")
        ),
        Err(_) => "native".to_owned(),
    }
}

/// Whether the CPU backend is compiled for several processors: one of them is chosen when the program starts.
fn is_portable() -> bool {
    target_cpu() == "portable"
}

/// The processor's flag for the CPU backend: `-march` on x86 and for Arm architecture names, `-mcpu` for Arm processors.
fn target_cpu_flag() -> String {
    let cpu = target_cpu();
    if is_portable() {
        return variants::least_flag();
    }
    let by_processor = is_arm() && !cpu.starts_with("armv");
    format!("{}={cpu}", if by_processor { "-mcpu" } else { "-march" })
}

fn define_cpu(build: &mut cc::Build, ggml: &Path, flag: &str) {
    build.include(ggml.join("src/ggml-cpu")).flag(flag);
    build.define("GGML_USE_LLAMAFILE", None).define("GGML_USE_CPU_REPACK", None);
    if has_accelerate() {
        build.define("GGML_USE_ACCELERATE", None);
        build.define("ACCELERATE_NEW_LAPACK", None).define("ACCELERATE_LAPACK_ILP64", None);
    }
    if !is_x86() && !is_arm() {
        build.define("GGML_CPU_GENERIC", None);
    }
}

/// The core gets no processor flags and no fused multiply-add, so that quantizing a model gives the same bytes on every
/// machine.
fn build_base(ggml: &Path) {
    for (name, cpp, files) in [("pinhole_ggml_base_c", false, BASE_C), ("pinhole_ggml_base", true, BASE_CPP)] {
        let mut build = new_build(ggml, cpp);
        build.flag("-ffp-contract=off");
        if cpp {
            // The CPU's buffers are made here: their allocator keeps an account (shim/account.cpp).
            build.define("ggml_aligned_malloc", "ph_aligned_malloc").define("ggml_aligned_free", "ph_aligned_free");
        }
        sources(&mut build, ggml, files);
        build.compile(name);
    }
}

fn build_registry(ggml: &Path) {
    let mut build = new_build(ggml, true);
    build.define("GGML_USE_CPU", None);
    let backends = [(has_cuda(), "GGML_USE_CUDA"), (has_metal(), "GGML_USE_METAL"), (has_vulkan(), "GGML_USE_VULKAN")];
    for (_, definition) in backends.iter().filter(|(built, _)| *built) {
        build.define(definition, None);
    }
    sources(&mut build, ggml, REGISTRY_CPP);
    build.compile("pinhole_ggml_registry");
}

/// The CPU backend's parts in C and in C++, for the processor that `flag` names.
fn cpu_builds(ggml: &Path, flag: &str) -> [cc::Build; 2] {
    let mut c = new_build(ggml, false);
    let mut cpp = new_build(ggml, true);
    define_cpu(&mut c, ggml, flag);
    define_cpu(&mut cpp, ggml, flag);
    if is_x86() {
        sources(&mut c, ggml, &["ggml-cpu/arch/x86/quants.c"]);
        sources(&mut cpp, ggml, &["ggml-cpu/arch/x86/repack.cpp"]);
    }
    if is_arm() {
        sources(&mut c, ggml, &["ggml-cpu/arch/arm/quants.c"]);
        sources(&mut cpp, ggml, &["ggml-cpu/arch/arm/repack.cpp"]);
    }
    sources(&mut c, ggml, CPU_C);
    println!("cargo::rerun-if-changed={}", ggml.join("src/ggml-cpu/ggml-cpu.c").display());
    c.file("shim/cpu.c");
    sources(&mut cpp, ggml, CPU_CPP);
    [c, cpp]
}

fn build_cpu(ggml: &Path) {
    if is_portable() {
        return variants::build(ggml);
    }
    let [c, cpp] = cpu_builds(ggml, &target_cpu_flag());
    c.compile("pinhole_ggml_cpu_c");
    cpp.compile("pinhole_ggml_cpu");
}

fn build_shim(ggml: &Path) {
    for (name, cpp, file) in [
        ("pinhole_ggml_layout", false, "shim/layout.c"),
        ("pinhole_ggml_shim", true, "shim/shim.cpp"),
        ("pinhole_ggml_account", true, "shim/account.cpp"),
    ] {
        println!("cargo::rerun-if-changed={file}");
        // ggml's own header defines functions that no one here calls.
        new_build(ggml, cpp).extra_warnings(true).flag("-Wno-unused-function").file(file).compile(name);
    }
    println!("cargo::rerun-if-changed=shim/cpu.c");
    println!("cargo::rerun-if-changed=shim/shim.h");
    println!("cargo::rerun-if-changed=shim/account.h");
}

#[cfg(feature = "bindgen")]
fn build_bindings(ggml: &Path) {
    let root = manifest_dir();
    let headers =
        "#include \"ggml.h\"\n#include \"ggml-alloc.h\"\n#include \"ggml-backend.h\"\n#include \"ggml-cpu.h\"\n";
    let bindings = bindgen::builder()
        .header_contents("pinhole-ggml.h", headers)
        .clang_arg(format!("-I{}", ggml.join("include").display()))
        .allowlist_item("(ggml|GGML)_.*")
        // The one function that would drag in the C library's FILE.
        .blocklist_function("ggml_fopen")
        .allowlist_recursively(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .override_abi(bindgen::Abi::CUnwind, ".*")
        .derive_default(true)
        .merge_extern_blocks(true)
        .generate_comments(false)
        .disable_header_comment()
        .raw_line("// Made by bindgen from ggml's headers; `cargo check -p pinhole-ggml-sys --features bindgen` makes it anew.")
        .formatter(bindgen::Formatter::Rustfmt)
        .rustfmt_configuration_file(Some(root.join("../../rustfmt.toml")))
        .generate()
        .unwrap_or_else(|error| panic!("bindgen cannot read ggml's headers: {error}"))
        .to_string();
    write_if_changed(&root.join("src/bindings.rs"), &bindings);
}

/// Leaves an equal file alone, so that a build with the feature does not make the next one start over.
#[cfg(feature = "bindgen")]
fn write_if_changed(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

fn link_system() {
    if has_accelerate() {
        println!("cargo::rustc-link-lib=framework=Accelerate");
    }
    if is_windows() {
        println!("cargo::rustc-link-lib=advapi32");
        // Once, and not for each library as `cc` would: rustc takes this with modifiers only once. See .cargo/config.toml.
        println!("cargo::rustc-link-lib=static:-bundle=stdc++");
    }
}

fn main() {
    for file in ["build.rs", "build", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={file}");
    }
    for name in ["PINHOLE_GGML_DIR", "PINHOLE_TARGET_CPU", "PINHOLE_ACCELERATE"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if is_msvc() {
        panic!(
            "the guard relies on the Itanium C++ exception ABI, which MSVC does not have\nhint: use the `-gnu` target"
        );
    }

    let ggml = ggml_dir();
    println!("cargo::rerun-if-changed={}", ggml.join("include").display());
    let version = ggml_version(&ggml);
    check_version(&version);
    write_version_header(&version);
    // src/processor.rs reads these, also where nothing of ggml is compiled.
    println!("cargo::rustc-check-cfg=cfg(portable)");
    instructions::tell(&ggml);

    #[cfg(feature = "bindgen")]
    build_bindings(&ggml);
    if cfg!(feature = "bindgen") {
        // The bindings are all that this feature is for: nothing links with what it builds.
        return;
    }
    build_shim(&ggml);
    build_registry(&ggml);
    #[cfg(feature = "cuda")]
    cuda::build_cuda(&ggml);
    #[cfg(feature = "metal")]
    metal::build_metal(&ggml);
    #[cfg(feature = "vulkan")]
    vulkan::build_vulkan(&ggml);
    build_cpu(&ggml);
    build_base(&ggml);
    link_system();
}
