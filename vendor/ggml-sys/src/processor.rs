//! What the CPU backend was compiled for, and whether this processor can run it.

/// The processor that the CPU backend was compiled for, in the compiler's own words: `native`, `x86-64-v3`.
pub const COMPILED_FOR: &str = env!("PINHOLE_COMPILED_FOR");

/// The instructions that the CPU backend may use beyond those that every processor of its kind has, as Rust's feature
/// detection calls them.
pub fn instructions() -> impl Iterator<Item = &'static str> {
    env!("PINHOLE_INSTRUCTIONS").split(',').filter(|name| !name.is_empty())
}

/// The level of x86-64 whose code computes on this processor, in a build that has several.
#[cfg(portable)]
pub fn chosen() -> Option<&'static str> {
    unsafe extern "C" {
        safe fn ph_level() -> std::ffi::c_int;
    }
    Some(match ph_level() {
        4 => "x86-64-v4",
        3 => "x86-64-v3",
        _ => "x86-64-v2",
    })
}

/// The level of x86-64 whose code computes on this processor, in a build that has several.
#[cfg(not(portable))]
pub fn chosen() -> Option<&'static str> {
    None
}

/// Those of [`instructions`] that this processor has not. If there are any, what computes on the CPU would end the process with a signal.
pub fn lacking() -> Vec<&'static str> {
    instructions().filter(|name| !has(name)).collect()
}

/// Makes [`has`] and [`KNOWN`]: the macros of the standard library take literals only.
macro_rules! looks_for {
    ($detected:ident: $($name:tt)*) => {
        /// What [`has`] knows.
        pub const KNOWN: &[&str] = &[$($name),*];

        /// Whether this processor has the instructions called `name`.
        pub fn has(name: &str) -> bool {
            match name {
                $($name => std::arch::$detected!($name),)*
                _ => false,
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
looks_for!(is_x86_feature_detected:
    "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "f16c" "fma" "bmi1" "bmi2" "lzcnt" "movbe" "avx2" "avxvnni"
    "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512vbmi" "avx512vnni" "avx512bf16" "gfni");

#[cfg(target_arch = "aarch64")]
looks_for!(is_aarch64_feature_detected: "dotprod" "fp16" "i8mm" "sve");

/// What [`has`] knows: nothing, since no one tells about processors of this kind.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const KNOWN: &[&str] = &[];

/// Whether this processor has the instructions called `name`: all that are asked for, since no one can tell.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn has(_: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_can_be_looked_for() {
        let unknown: Vec<&str> = instructions().filter(|name| !KNOWN.contains(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert_eq!(lacking(), [""; 0], "the tests compute on this processor");
    }
}
