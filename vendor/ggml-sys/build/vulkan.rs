//! ggml's Vulkan backend: shaders compiled by ggml's own generator with `glslc`, then C++. Follows
//! `src/ggml-vulkan/CMakeLists.txt`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use std::{env, fs};

use super::{cargo_env, new_build, out_dir, sources};

const CPP: &[&str] =
    &["ggml-vulkan/ggml-vulkan.cpp", "ggml-vulkan/ggml-vulkan-buffers.cpp", "ggml-vulkan/ggml-vulkan-debug.cpp"];

/// GLSL extensions that a `glslc` may lack, ggml's test for each, and the definition that switches its shaders on.
const EXTENSIONS: &[(&str, &str, &str)] = &[
    ("GL_KHR_cooperative_matrix", "coopmat.comp", "GGML_VULKAN_COOPMAT_GLSLC_SUPPORT"),
    ("GL_NV_cooperative_matrix2", "coopmat2.comp", "GGML_VULKAN_COOPMAT2_GLSLC_SUPPORT"),
    (
        "GL_NV_cooperative_matrix_decode_vector",
        "coopmat2_decode_vector.comp",
        "GGML_VULKAN_COOPMAT2_DECODE_VECTOR_GLSLC_SUPPORT",
    ),
    ("GL_EXT_integer_dot_product", "integer_dot.comp", "GGML_VULKAN_INTEGER_DOT_GLSLC_SUPPORT"),
    ("GL_EXT_bfloat16", "bfloat16.comp", "GGML_VULKAN_BFLOAT16_GLSLC_SUPPORT"),
    ("GL_EXT_float_e2m1", "float_e2m1.comp", "GGML_VULKAN_FLOAT_E2M1_GLSLC_SUPPORT"),
    ("GL_EXT_float_e4m3", "float_e4m3.comp", "GGML_VULKAN_FLOAT_E4M3_GLSLC_SUPPORT"),
];

/// The first header that has `vk::LayerSettingEXT`, which ggml uses.
const OLDEST_HEADER: u32 = 272;

fn glslc() -> String {
    env::var("PINHOLE_GLSLC").unwrap_or_else(|_| "glslc".to_owned())
}

/// Where `vulkan/vulkan.hpp` and `spirv/unified1/spirv.hpp` are.
fn headers_dir() -> PathBuf {
    if let Some(dir) = env::var_os("PINHOLE_VULKAN_HEADERS") {
        return PathBuf::from(dir);
    }
    match env::var_os("VULKAN_SDK") {
        Some(sdk) => PathBuf::from(sdk).join("include"),
        None => PathBuf::from("/usr/include"),
    }
}

fn header_version(headers: &Path) -> Option<u32> {
    let text = fs::read_to_string(headers.join("vulkan/vulkan_core.h")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("#define VK_HEADER_VERSION "))?.trim().parse().ok()
}

fn check_headers(headers: &Path) {
    let hint = "hint: PINHOLE_VULKAN_HEADERS names a folder with vulkan/vulkan.hpp and spirv/unified1/spirv.hpp of \
                Vulkan 1.3.272 or newer; CONTRIBUTING.md says where to get them";
    match header_version(headers) {
        None => panic!("no Vulkan headers in {}\n{hint}", headers.display()),
        Some(version) if version < OLDEST_HEADER => {
            panic!("the Vulkan headers in {} are 1.3.{version}, which is too old\n{hint}", headers.display())
        }
        Some(_) => {}
    }
    if !headers.join("spirv/unified1/spirv.hpp").is_file() {
        panic!("no SPIR-V headers in {}\n{hint}", headers.display());
    }
}

/// The definitions for what this `glslc` can compile.
fn supported_extensions(shaders: &Path) -> Vec<&'static str> {
    let supports = |extension: &str, test: &str| {
        let output = Command::new(glslc())
            .args(["-o", "-", "-fshader-stage=compute", "--target-env=vulkan1.3"])
            .arg(shaders.join("feature-tests").join(test))
            .output()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot run {}: {error}\nhint: install glslc (Debian: package glslc; others: shaderc), or name it in \
                     PINHOLE_GLSLC",
                    glslc()
                )
            });
        !String::from_utf8_lossy(&output.stderr).contains(&format!("extension not supported: {extension}"))
    };
    EXTENSIONS
        .iter()
        .filter(|(extension, test, _)| supports(extension, test))
        .map(|(_, _, definition)| *definition)
        .collect()
}

/// Builds ggml's generator for the machine that compiles.
fn build_generator(shaders: &Path, extensions: &[&str]) -> PathBuf {
    let generator = out_dir().join("vulkan-shaders-gen");
    let host = cargo_env("HOST");
    let compiler = cc::Build::new().cpp(true).host(&host).target(&host).opt_level(1).debug(false).get_compiler();
    let mut command = compiler.to_command();
    command.args(["-std=c++17", "-w"]).args(extensions.iter().map(|definition| format!("-D{definition}")));
    run(command.arg("-o").arg(&generator).arg(shaders.join("vulkan-shaders-gen.cpp")).arg("-lpthread"));
    generator
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    if !status.success() {
        panic!("failed with {status}: {command:?}");
    }
}

/// Every shader file (`*.comp`), in order.
fn shader_files(shaders: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(shaders).unwrap_or_else(|error| panic!("cannot read {}: {error}", shaders.display()));
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "comp"))
        .collect();
    files.sort();
    files
}

/// What the generated files depend on: shaders, and what the compiler supports.
fn fingerprint(shaders: &Path, extensions: &[&str]) -> String {
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = fs::read_dir(shaders).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let newest = entries.map(|path| modified(&path)).max();
    format!("{}\n{newest:?}\n{}\n{extensions:?}\n", shaders.display(), glslc())
}

/// Compiles every shader to SPIR-V, as arrays in C++: some 1500 runs of `glslc`, which are not repeated while nothing
/// that they depend on has changed.
fn build_shaders(shaders: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let out = out_dir();
    let target = |file: &PathBuf| out.join(format!("{}.cpp", file.file_name().unwrap_or_default().to_string_lossy()));
    let files = shader_files(shaders);
    let targets = files.iter().map(target).collect();
    let (stamp, fingerprint) = (out.join("vulkan-shaders.stamp"), fingerprint(shaders, extensions));
    if fs::read_to_string(&stamp).is_ok_and(|old| old == fingerprint) {
        return targets;
    }
    let generator = build_generator(shaders, extensions);
    let generate = || {
        let mut command = Command::new(&generator);
        command.arg("--output-dir").arg(out.join("vulkan-shaders.spv"));
        command.arg("--target-hpp").arg(out.join("ggml-vulkan-shaders.hpp"));
        command
    };
    run(&mut generate());
    let next = AtomicUsize::new(0);
    let compile = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut command = generate();
            command.arg("--glslc").arg(glslc()).arg("--source").arg(file).arg("--target-cpp").arg(target(file));
            run(&mut command);
        }
    };
    // The generator runs as many compilers as there are cores over the variants of one file, but many files have only a few:
    // a second one keeps the cores busy, where one for each core would run the square of them.
    std::thread::scope(|scope| {
        scope.spawn(compile);
        compile();
    });
    fs::write(&stamp, fingerprint).unwrap_or_else(|error| panic!("cannot write {}: {error}", stamp.display()));
    targets
}

/// The backend, its shaders, and the account of what it allocates.
pub(super) fn build_vulkan(ggml: &Path) {
    for name in ["PINHOLE_VULKAN_HEADERS", "PINHOLE_GLSLC", "VULKAN_SDK"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let (headers, shaders) = (headers_dir(), ggml.join("src/ggml-vulkan/vulkan-shaders"));
    check_headers(&headers);
    println!("cargo::rerun-if-changed={}", shaders.display());
    let extensions = supported_extensions(&shaders);
    let generated = build_shaders(&shaders, &extensions);

    let mut build = new_build(ggml, true);
    build.flag("-isystem").flag(&headers);
    for definition in &extensions {
        build.define(definition, None);
    }
    // Every entry point of Vulkan is looked up through this function, so that the shim can stand before those that
    // allocate: see shim/vulkan.cpp.
    build.define("vkGetInstanceProcAddr", "ph_vkGetInstanceProcAddr");
    sources(&mut build, ggml, CPP);
    build.compile("pinhole_ggml_vulkan");

    // Nothing in these but arrays, tens of megabytes of them.
    new_build(ggml, true)
        .opt_level(0)
        .warnings(false)
        .flag("-w")
        .files(generated)
        .compile("pinhole_ggml_vulkan_shaders");

    println!("cargo::rerun-if-changed=shim/vulkan.cpp");
    let mut account = new_build(ggml, true);
    account.flag("-isystem").flag(&headers).extra_warnings(true).file("shim/vulkan.cpp");
    account.compile("pinhole_ggml_vulkan_shim");
    println!("cargo::rustc-link-lib=vulkan");
}
