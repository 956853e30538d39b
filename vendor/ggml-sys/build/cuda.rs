//! ggml's CUDA backend, compiled with nvcc for one architecture. Follows `src/ggml-cuda/CMakeLists.txt`.

use std::path::{Path, PathBuf};
use std::{env, fs};

use super::{define_platform, manifest_dir, new_build, out_dir};

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
/// Ampere, with the PTX that the driver of every newer card can translate. Several, with `,` between them, make code for each, and
/// the PTX of the last.
fn architecture_flags() -> Vec<String> {
    let named = env::var("PINHOLE_CUDA_ARCH").unwrap_or_else(|_| "native".to_owned());
    if !named.contains(',') {
        return vec![format!("-arch={named}")];
    }
    let numbers: Vec<&str> = named.split(',').map(|name| name.trim().trim_start_matches("sm_")).collect();
    let codes = numbers.iter().map(|number| format!("-gencode=arch=compute_{number},code=sm_{number}"));
    let newest = numbers.last().map(|number| format!("-gencode=arch=compute_{number},code=compute_{number}"));
    codes.chain(newest).collect()
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

/// What nvcc is given for every file. `ggml`, `out` and `root` are the folders of ggml's sources, of generated headers, and of this
/// package; `home` is the toolkit's.
fn flags(ggml: &str, out: &str, home: &str) -> Vec<String> {
    let mut flags: Vec<String> =
        ["-std=c++17", "-O3", "-use_fast_math", "-extended-lambda", "-w"].map(str::to_owned).to_vec();
    flags.push(format!("-Xcompiler=-fexceptions,-fvisibility=hidden,-fPIC,-w,-ffile-prefix-map={ggml}=ggml"));
    flags.extend(
        [format!("{ggml}/include"), format!("{ggml}/src"), format!("{home}/include"), out.to_owned()]
            .map(|dir| format!("-I{dir}")),
    );
    flags.extend(["NDEBUG", "GGML_SCHED_MAX_COPIES=4", "GGML_CUDA_USE_GRAPHS"].map(|name| format!("-D{name}")));
    flags
}

/// What is added for ggml's own files: which kernels of flash attention there are, and the account of what is allocated.
fn ggml_flags(root: &str) -> Vec<String> {
    let mut flags = vec![format!("-DGGML_CUDA_FA_QUANTS=\"{FLASH_ATTENTION}\"")];
    for k in FLASH_ATTENTION_TYPES {
        for v in FLASH_ATTENTION_TYPES {
            let compiled = u8::from(format!("{k}-{v}") == FLASH_ATTENTION);
            flags.push(format!("-D{}={compiled}", format!("GGML_CUDA_FA_{k}_{v}").to_uppercase()));
        }
    }
    flags.extend(["-include".to_owned(), format!("{root}/shim/account_cuda.h")]);
    flags
}

/// The backend's files, relative to ggml's folder.
fn files(ggml: &Path) -> Vec<PathBuf> {
    let dir = ggml.join("src/ggml-cuda");
    let is_instance = |name: &str| INSTANCES.iter().any(|start| name.starts_with(start)) && name.ends_with(".cu");
    let mut files = cuda_files(&dir, |name| name.ends_with(".cu"));
    files.extend(cuda_files(&dir.join("template-instances"), is_instance));
    files.iter().filter_map(|file| Some(file.strip_prefix(ggml).ok()?.to_owned())).collect()
}

fn new_cuda_build(ggml: &Path, home: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.cuda(true).cudart("none").compiler(home.join("bin/nvcc")).no_default_flags(true).warnings(false);
    for flag in architecture_flags() {
        build.flag(flag);
    }
    let folder = |path: &Path| path.display().to_string();
    for flag in flags(&folder(ggml), &folder(&out_dir()), &folder(home)) {
        build.flag(flag);
    }
    define_platform(&mut build);
    build
}

/// The backend, and the account of what it allocates.
pub(super) fn build_cuda(ggml: &Path) {
    for name in ["PINHOLE_CUDA_HOME", "PINHOLE_CUDA_ARCH", "PINHOLE_CUDA_LATER", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed={}", ggml.join("src/ggml-cuda").display());
    for file in
        ["shim/account_cuda.cpp", "shim/account_cuda.h", "shim/cublas.c", "shim/cuda_fault.c", "shim/cuda_fault.h"]
    {
        println!("cargo::rerun-if-changed={file}");
    }
    if let Some(makefile) = env::var_os("PINHOLE_CUDA_LATER") {
        return write_makefile(ggml, Path::new(&makefile));
    }
    let home = toolkit();
    let mut build = new_cuda_build(ggml, &home);
    for flag in ggml_flags(&manifest_dir().display().to_string()) {
        build.flag(flag);
    }
    build.files(files(ggml).iter().map(|file| ggml.join(file)));
    build.compile("pinhole_ggml_cuda");
    new_cuda_build(ggml, &home).file("shim/account_cuda.cpp").compile("pinhole_ggml_account_cuda");
    let mut libraries = new_build(ggml, false);
    libraries.include(home.join("include")).extra_warnings(true);
    libraries.files(["shim/cublas.c", "shim/cuda_fault.c"]).compile("pinhole_ggml_cuda_libraries");
    println!("cargo::rustc-link-search=native={}", library_dir(&home).display());
    println!("cargo::rustc-link-lib=static=cudart_static");
    for library in ["dl", "rt", "pthread"] {
        println!("cargo::rustc-link-lib={library}");
    }
}

/// Compiles nothing, but writes what would be compiled as a makefile: for another machine, which has a toolkit and a card but
/// no Rust. See scripts/gpu-table.
fn write_makefile(ggml: &Path, path: &Path) {
    let quoted = |flags: Vec<String>| flags.iter().map(|flag| format!("'{flag}'")).collect::<Vec<_>>().join(" ");
    let platform = quoted(["-D_XOPEN_SOURCE=600", "-D_GNU_SOURCE"].map(str::to_owned).to_vec());
    let object = |file: &PathBuf| format!("{}.o", file.file_stem().unwrap_or_default().to_string_lossy());
    let files = files(ggml);
    let objects: Vec<String> = files.iter().map(object).collect();
    let mut text = format!(
        "# ggml's CUDA backend. Given: GGML, OUT, ROOT, CUDA (folders), ARCH.\n\
         FLAGS := -arch=$(ARCH) {} {platform}\n\
         GGML_FLAGS := {}\n\
         libpinhole_cuda.a: account_cuda.o cublas.o cuda_fault.o {}\n\tar rcs $@ $^\n\
         account_cuda.o: $(ROOT)/shim/account_cuda.cpp\n\t$(CUDA)/bin/nvcc $(FLAGS) -c $< -o $@\n\
         %.o: $(ROOT)/shim/%.c\n\tcc -std=gnu11 -O2 -fPIC -fvisibility=hidden {platform} -I$(CUDA)/include -c $< -o $@\n",
        quoted(flags("$(GGML)", "$(OUT)", "$(CUDA)")),
        quoted(ggml_flags("$(ROOT)")),
        objects.join(" ")
    );
    for (file, object) in files.iter().zip(&objects) {
        let file = file.display();
        text += &format!("{object}: $(GGML)/{file}\n\t$(CUDA)/bin/nvcc $(FLAGS) $(GGML_FLAGS) -c $< -o $@\n");
    }
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
