//! Files of other tools for Wan: what they draw is what a diffusers directory with the same numbers draws.

use std::fs;
use std::path::Path;

use super::wan::{bits, directory, generate, on, open, request, with};
use crate::support::Golden;
use crate::support::numbers::Format;
use crate::support::qwen_image::write_original_vae;
use crate::support::sd1::write_tensors;
use crate::support::spiece::spiece;
use crate::support::wan::{
    Kernel, original, write_fp8, write_gguf, write_single, write_umt5, write_umt5_gguf, write_umt5_pth,
};
use crate::support::z_image::tensors;
use pinhole::pipeline::{Additions, Request};
use pinhole::source::slot::{TEXT_ENCODER, TRANSFORMER};
use pinhole_quant::metrics;
use tempfile::TempDir;

/// A picture, and two steps.
fn short(golden: &Golden) -> Request {
    Request { steps: Some(2), ..request(golden, "one_frame") }
}

/// What the model at `path` draws.
fn drawn(path: &Path, request: &Request) -> Vec<f32> {
    generate(&mut on(open(path), "cpu"), request).latents
}

fn nmse(what: &str, expected: &[f32], found: &[f32], most: f64) {
    let nmse = metrics::nmse(expected, found).unwrap();
    println!("{what}: nmse {nmse:.2e} (at most {most:.0e})");
    assert!(nmse <= most, "{what}: {nmse:.2e}");
}

#[test]
fn files_of_other_tools_draw_the_same() {
    let (golden, dir) = directory("t2v");
    let at = |name: &str| dir.path().join(name);
    write_single(&at("wan2.1_t2v_1.3B_bf16.safetensors"), &golden, "transformer", "model.diffusion_model.");
    write_gguf(&at("wan2.1-t2v-F32.gguf"), &golden, "transformer", (Format::F32, Kernel::Whole));
    write_gguf(&at("wan2.1-t2v-folded-F32.gguf"), &golden, "transformer", (Format::F32, Kernel::Folded));
    write_umt5(&at("umt5-xxl-enc.safetensors"), &golden, true);
    write_umt5(&at("umt5_xxl.safetensors"), &golden, false);
    write_umt5_pth(&at("models_t5_umt5-xxl-enc-bf16.pth"), &golden);
    let case = short(&golden);
    let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
    for parts in [
        &[(&TRANSFORMER, "wan2.1_t2v_1.3B_bf16.safetensors"), (&TEXT_ENCODER, "umt5-xxl-enc.safetensors")][..],
        &[(&TRANSFORMER, "wan2.1-t2v-F32.gguf"), (&TEXT_ENCODER, "umt5_xxl.safetensors")],
        &[(&TRANSFORMER, "wan2.1-t2v-folded-F32.gguf"), (&TEXT_ENCODER, "models_t5_umt5-xxl-enc-bf16.pth")],
    ] {
        let model = with(dir.path(), parts, &Additions::default()).unwrap();
        let found = generate(&mut on(model, "cpu"), &case);
        assert!(bits(&expected) == bits(&found), "{parts:?}");
    }
}

/// A folder of loose files, as people have it: with an autoencoder, and without a tokenizer by itself.
fn loose(golden: &Golden) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_original_vae(&folder.path().join("wan_2.1_vae.safetensors"), golden, false);
    folder
}

#[test]
fn pairs_of_ggufs_draw_the_same() {
    let (golden, dir) = directory("t2v");
    let case = short(&golden);
    let expected = drawn(dir.path(), &case);
    for (format, most) in [(Format::F32, 0.0), (Format::Q8_0, 1e-3)] {
        for kernel in [Kernel::Whole, Kernel::Folded] {
            let folder = loose(&golden);
            write_gguf(&folder.path().join("Wan2.1-T2V-1.3B.gguf"), &golden, "transformer", (format, kernel));
            write_umt5_gguf(&folder.path().join("umt5-xxl-encoder.gguf"), &golden, format);
            nmse(&format!("{format:?}"), &expected, &drawn(folder.path(), &case), most);
        }
    }
}

#[test]
fn comfyui_files_in_8_bits_draw_what_their_numbers_say() {
    let (golden, dir) = directory("t2v");
    let case = short(&golden);
    let whole = drawn(dir.path(), &case);
    for is_scaled in [true, false] {
        let folder = loose(&golden);
        let at = |name: &str| folder.path().join(name);
        let transformer = original(&golden, "transformer", "model.diffusion_model.", Kernel::Whole);
        write_fp8(&at("wan2.1_t2v_1.3B_fp8.safetensors"), transformer, is_scaled, &[]);
        let pieces = [("spiece_model", spiece())];
        write_fp8(&at("umt5_xxl_fp8.safetensors"), tensors(&golden, "text_encoder"), is_scaled, &pieces);
        let found = drawn(folder.path(), &case);
        // A directory with the numbers that these files stand for.
        for (component, file) in
            [("transformer", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")]
        {
            let numbers = write_fp8(&at("unused"), tensors(&golden, component), is_scaled, &[]);
            write_tensors(&dir.path().join(component).join(file), &numbers);
        }
        fs::remove_file(at("unused")).unwrap();
        let what = if is_scaled { "scaled" } else { "plain" };
        nmse(what, &drawn(dir.path(), &case), &found, 1e-5);
        nmse(&format!("{what}, from the whole numbers"), &whole, &found, 0.1);
    }
}
