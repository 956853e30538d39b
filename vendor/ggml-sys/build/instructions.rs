//! Which instructions the CPU backend was compiled for: what the compiler says of its own flags, so that it holds for `native` too.
//! A processor without them would end the program with a signal; `src/processor.rs` looks before.

use std::path::Path;

use super::{new_build, target_cpu, target_cpu_flag};

/// The compiler's macros, and what Rust's feature detection calls the same instructions. Those that compilers choose by themselves, and
/// those that ggml asks for by these macros.
const MACROS: &[(&str, &str)] = &[
    ("__SSE3__", "sse3"),
    ("__SSSE3__", "ssse3"),
    ("__SSE4_1__", "sse4.1"),
    ("__SSE4_2__", "sse4.2"),
    ("__POPCNT__", "popcnt"),
    ("__AVX__", "avx"),
    ("__F16C__", "f16c"),
    ("__FMA__", "fma"),
    ("__BMI__", "bmi1"),
    ("__BMI2__", "bmi2"),
    ("__LZCNT__", "lzcnt"),
    ("__MOVBE__", "movbe"),
    ("__AVX2__", "avx2"),
    ("__AVXVNNI__", "avxvnni"),
    ("__AVX512F__", "avx512f"),
    ("__AVX512BW__", "avx512bw"),
    ("__AVX512CD__", "avx512cd"),
    ("__AVX512DQ__", "avx512dq"),
    ("__AVX512VL__", "avx512vl"),
    ("__AVX512VBMI__", "avx512vbmi"),
    ("__AVX512VNNI__", "avx512vnni"),
    ("__AVX512BF16__", "avx512bf16"),
    ("__GFNI__", "gfni"),
    ("__ARM_FEATURE_DOTPROD", "dotprod"),
    ("__ARM_FEATURE_FP16_VECTOR_ARITHMETIC", "fp16"),
    ("__ARM_FEATURE_MATMUL_INT8", "i8mm"),
    ("__ARM_FEATURE_SVE", "sve"),
];

/// Hands the crate the name of the processor and the names of the instructions.
pub(super) fn tell(ggml: &Path) {
    let names = names_under(ggml, &target_cpu_flag());
    println!("cargo::rustc-env=PINHOLE_COMPILED_FOR={}", target_cpu());
    println!("cargo::rustc-env=PINHOLE_INSTRUCTIONS={}", names.join(","));
}

/// What the compiler may use under `flag`.
fn names_under(ggml: &Path, flag: &str) -> Vec<&'static str> {
    let mut command = new_build(ggml, false).get_compiler().to_command();
    let command = command.args([flag, "-dM", "-E", "-x", "c", if cfg!(windows) { "NUL" } else { "/dev/null" }]);
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    if !output.status.success() {
        panic!("{command:?} fails: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let defined: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#define ")?.split(' ').next()).collect();
    MACROS.iter().filter(|(macro_name, _)| defined.contains(macro_name)).map(|(_, name)| *name).collect()
}
