//! ggml's CUDA backend, compiled with nvcc for one architecture. Follows `src/ggml-cuda/CMakeLists.txt`.

use std::path::{Path, PathBuf};
use std::{env, fs};

use super::{define_platform, manifest_dir, out_dir};

/// Flash attention over these formats of keys and values is compiled in; pinhole's are F16 or F32 (which ggml makes F16).
const FLASH_ATTENTION: &str = "f16-f16";

/// The formats of keys and values that ggml has kernels for.
const FLASH_ATTENTION_TYPES: &[&str] = &["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "f16"];

/// Instances of templates, by the beginnings of their files' names.
const INSTANCES: &[&str] = &["fattn-tile", "fattn-mma", "mmq", "mmf", "fattn-vec-instance-f16-f16"];

/// The toolkit: the folder with `bin/nvcc` and `include/cuda_runtime.h`.
fn toolkit() -> PathBuf {
    let named = ["PINHOLE_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"].iter().find_map(env::var_os).map(PathBuf::from);
    let home = named.or_else(toolkit_of_nvcc).unwrap_or_else(|| PathBuf::from("/usr/local/cuda"));
    if !home.join("include/cuda_runtime.h").is_file() || !home.join("bin/nvcc").is_file() {
        panic!(
            "no CUDA toolkit in {}\nhint: PINHOLE_CUDA_HOME, CUDA_HOME or CUDA_PATH names the folder with bin/nvcc and \
             include/cuda_runtime.h, or nvcc is in PATH; CONTRIBUTING.md says which Python packages make one",
            home.display()
        );
    }
    home
}

/// The toolkit that the `nvcc` in `PATH` is of, through whatever links lead to it.
fn toolkit_of_nvcc() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let nvcc = env::split_paths(&path).map(|dir| dir.join("nvcc")).find(|nvcc| nvcc.is_file())?;
    Some(nvcc.canonicalize().ok()?.parent()?.parent()?.to_owned())
}

/// What to compile for, as nvcc's `-arch` has it: by default the card of the machine that compiles. `sm_80` makes code for
/// Ampere, with the PTX that the driver of every newer card can translate.
fn architecture() -> String {
    env::var("PINHOLE_CUDA_ARCH").unwrap_or_else(|_| "native".to_owned())
}

fn library_dir(home: &Path) -> PathBuf {
    let dirs = ["lib64", "lib"].map(|name| home.join(name));
    dirs.iter().find(|dir| dir.is_dir()).unwrap_or(&dirs[0]).clone()
}

fn cuda_files(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot read {}: {error}", dir.display()));
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted);
    let mut files: Vec<PathBuf> = paths.filter(named).collect();
    files.sort();
    files
}

fn new_cuda_build(ggml: &Path, home: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.cuda(true).cudart("none").compiler(home.join("bin/nvcc")).std("c++17").opt_level(3).debug(false);
    build.flag(format!("-arch={}", architecture())).flag("-use_fast_math").flag("-extended-lambda").flag("-w");
    build.flag("-Xcompiler=-fexceptions,-fvisibility=hidden,-fPIC,-w");
    build.flag(format!("-Xcompiler=-ffile-prefix-map={}=ggml", ggml.display()));
    build.warnings(false);
    build.include(ggml.join("include")).include(ggml.join("src")).include(home.join("include")).include(out_dir());
    build.define("NDEBUG", None).define("GGML_SCHED_MAX_COPIES", "4").define("GGML_CUDA_USE_GRAPHS", None);
    define_platform(&mut build);
    build
}

fn define_flash_attention(build: &mut cc::Build) {
    build.define("GGML_CUDA_FA_QUANTS", Some(format!("\"{FLASH_ATTENTION}\"").as_str()));
    for k in FLASH_ATTENTION_TYPES {
        for v in FLASH_ATTENTION_TYPES {
            let compiled = if format!("{k}-{v}") == FLASH_ATTENTION { "1" } else { "0" };
            build.define(&format!("GGML_CUDA_FA_{k}_{v}").to_uppercase(), compiled);
        }
    }
}

/// The backend, and the account of what it allocates.
pub(super) fn build_cuda(ggml: &Path) {
    for name in ["PINHOLE_CUDA_HOME", "PINHOLE_CUDA_ARCH", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let (home, dir) = (toolkit(), ggml.join("src/ggml-cuda"));
    println!("cargo::rerun-if-changed={}", dir.display());
    let mut build = new_cuda_build(ggml, &home);
    define_flash_attention(&mut build);
    build.flag("-include").flag(manifest_dir().join("shim/account_cuda.h"));
    build.files(cuda_files(&dir, |name| name.ends_with(".cu")));
    let is_instance = |name: &str| INSTANCES.iter().any(|start| name.starts_with(start)) && name.ends_with(".cu");
    build.files(cuda_files(&dir.join("template-instances"), is_instance));
    build.compile("pinhole_ggml_cuda");

    for file in ["shim/account_cuda.cpp", "shim/account_cuda.h"] {
        println!("cargo::rerun-if-changed={file}");
    }
    new_cuda_build(ggml, &home).file("shim/account_cuda.cpp").compile("pinhole_ggml_account_cuda");
    println!("cargo::rustc-link-search=native={}", library_dir(&home).display());
    println!("cargo::rustc-link-lib=static=cudart_static");
    link_cublas(&library_dir(&home));
    for library in ["dl", "rt", "pthread"] {
        println!("cargo::rustc-link-lib={library}");
    }
}

/// cuBLAS by its plain name, or by its version's where that is all there is, as in the Python packages.
fn link_cublas(dir: &Path) {
    let versions = cuda_files(dir, |name| name.starts_with("libcublas.so."));
    let version = versions.last().and_then(|path| path.file_name()?.to_str());
    match version.filter(|_| !dir.join("libcublas.so").exists() && !dir.join("cublas.lib").exists()) {
        Some(name) => println!("cargo::rustc-link-lib=dylib:+verbatim={name}"),
        None => println!("cargo::rustc-link-lib=cublas"),
    }
}
