use pinhole_quant::DType;
use pinhole_quant::gguf::{Layout, TensorSpec, Value, Writer};

use super::run::{Workplace, mini_bytes, safetensors, safetensors_with};

/// A GGUF file of other tools: one tensor of FLUX, a label.
fn foreign_gguf() -> Vec<u8> {
    let name = "model.diffusion_model.double_blocks.0.img_attn.qkv.weight";
    let spec = TensorSpec { name: name.into(), dims: vec![32, 2], dtype: DType::Q8_0 };
    let metadata: Vec<(String, Value)> =
        vec![("general.architecture".into(), "flux".into()), ("general.file_type".into(), 7u32.into())];
    let layout = Layout::new(&metadata, &[spec], 32).unwrap();
    let mut writer = Writer::new(Vec::new(), layout).unwrap();
    writer.write_tensor(name, &[0; 68]).unwrap();
    writer.finish().unwrap()
}

#[test]
fn success() {
    let place = Workplace::new();
    place.write("vae/diffusion_pytorch_model.safetensors", &safetensors(&[("x", &[1, 2], &[1.0, 2.0])]));
    place.run(&["inspect", "mini"]).snapshot("inspect_mini");
    place.run(&["inspect", "vae"]).snapshot("inspect_component_folder");
}

#[test]
fn parts_that_are_not_whole() {
    let place = Workplace::new();
    place.write("flux.gguf", &foreign_gguf());
    place.write("ae.safetensors", &safetensors(&[("decoder.up.0.block.0.conv1.bias", &[3], &[1.0, 2.0, 3.0])]));
    place.run(&["inspect", "flux.gguf", "--tensors"]).snapshot("inspect_foreign_gguf");
    place.run(&["inspect", "ae.safetensors", "--check"]).snapshot("inspect_safetensors");
    place.run(&["inspect", "flux.gguf", "--json"]).snapshot("inspect_json");
}

#[test]
fn tensors_that_no_weight_is_read_from_are_shown() {
    let header = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "scaled_fp8":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[4,4]},
        "packed":{"dtype":"F4","shape":[2,4],"data_offsets":[4,8]}}"#;
    let place = Workplace::new();
    let length = (header.len() as u64).to_le_bytes();
    place.write("odd.safetensors", &[&length[..], header.as_bytes(), &[0; 8]].concat());
    place.run(&["inspect", "odd.safetensors", "--tensors", "--check"]).snapshot("inspect_others");
}

#[test]
fn what_is_not_run_is_a_problem() {
    let place = Workplace::new();
    let (qkv, numbers) = ("double_blocks.0.img_attn.qkv.weight", &[1.0, 2.0][..]);
    let one = |names: &[&str]| {
        let tensors: Vec<(&str, &[usize], &[f32])> = names.iter().map(|name| (*name, &[1, 2][..], numbers)).collect();
        safetensors(&tensors)
    };
    let packed = format!("{qkv}.quant_state.bitsandbytes__nf4");
    place.write("nf4.safetensors", &one(&[qkv, &packed]));
    place.write("chroma.safetensors", &one(&[qkv, "distilled_guidance_layer.in_proj.weight"]));
    place.write("sd3.safetensors", &one(&["joint_blocks.0.x_block.attn.qkv.weight"]));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9524621312\n";
    place.write("pointer.safetensors", pointer);
    place.write("model/model_index.json", br#"{"_class_name": "FluxPipeline"}"#);
    place.write("model/text_encoder_2/model.safetensors", pointer);
    place.write("redux/model_index.json", br#"{"_class_name": "FluxPriorReduxPipeline"}"#);
    for (name, path) in [
        ("packed", "nf4.safetensors"),
        ("relative", "chroma.safetensors"),
        ("not_run", "sd3.safetensors"),
        ("pointer", "pointer.safetensors"),
        ("pointer_inside", "model"),
        ("redux", "redux"),
    ] {
        let outcome = place.run(&["inspect", path]);
        assert_eq!(outcome.code, 1, "{path}");
        outcome.snapshot(&format!("inspect_{name}"));
    }
}

#[test]
fn a_lora_says_what_it_is_for() {
    let place = Workplace::new();
    let metadata = [
        ("modelspec.title", "A style"),
        ("ss_base_model_version", "flux1"),
        ("modelspec.trigger_phrase", "in that style"),
    ];
    let numbers = [0.5; 16];
    let (qkv, text) =
        ("lora_unet_double_blocks_0_img_attn_qkv", "lora_te1_text_model_encoder_layers_0_self_attn_q_proj");
    let names =
        [qkv, text].map(|name| ["lora_down.weight", "lora_up.weight", "alpha"].map(|end| format!("{name}.{end}")));
    let tensors: [(&str, &[usize], &[f32]); 7] = [
        (&names[0][0], &[4, 4], &numbers),
        (&names[0][1], &[4, 4], &numbers),
        (&names[0][2], &[1], &[2.0]),
        (&names[1][0], &[2, 8], &numbers),
        (&names[1][1], &[8, 2], &numbers),
        (&names[1][2], &[1], &[0.5]),
        ("lora_unet_double_blocks_0_img_attn_norm_query_norm.diff", &[4], &numbers[..4]),
    ];
    place.write("style.safetensors", &safetensors_with(&metadata, &tensors));
    place.run(&["inspect", "style.safetensors"]).snapshot("inspect_lora");
    let report = place.json(&["inspect", "style.safetensors"])["lora"].clone();
    let expected = serde_json::json!({
        "family": "FLUX.1",
        "title": "A style",
        "base": "flux1",
        "triggers": "in that style",
        "modules": 3,
        "parts": {"denoiser": 2, "text_encoder": 1},
        "forms": {"difference": 1, "low rank": 2},
        "ranks": [2, 4],
        "alphas": [0.5, 2.0],
    });
    assert_eq!(report, expected);
    place.write("unknown.safetensors", &safetensors(&[("x.lora_A.weight", &[1, 2], &[1.0, 2.0])]));
    place.run(&["inspect", "unknown.safetensors"]).snapshot("inspect_lora_unknown");
}

#[test]
fn every_number_of_the_built_in_model_is_finite() {
    let report = Workplace::new().json(&["inspect", "mini", "--check", "--tensors"]);
    assert_eq!(report["check"]["numbers"], report["parameters"]);
    assert_eq!(report["check"]["not_finite"].as_array().unwrap().len(), 0);
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
    let listed = report["tensor_list"].as_array().unwrap();
    assert_eq!(listed.len() as u64, report["tensors"].as_u64().unwrap());
    let sum = |list: &serde_json::Value, key: &str| {
        list.as_array().unwrap().iter().map(|row| row[key].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(sum(&report["components"], "parameters"), report["parameters"].as_u64().unwrap());
    assert_eq!(sum(&report["types"], "bytes"), sum(&report["tensor_list"], "bytes"));
}

#[test]
fn numbers_that_are_not_finite_are_found() {
    let place = Workplace::new();
    // The first bad number lies behind the first slice.
    let mut numbers = vec![0.0; (1 << 22) + 10];
    numbers[(1 << 22) + 3] = f32::NAN;
    numbers[(1 << 22) + 5] = f32::NEG_INFINITY;
    place.write("bad.safetensors", &safetensors(&[("a", &[2], &[1.0, 2.0]), ("w", &[numbers.len()], &numbers)]));
    place.run(&["inspect", "bad.safetensors", "--check"]).snapshot("inspect_not_finite");
    assert_eq!(place.run(&["inspect", "bad.safetensors"]).code, 0);
}

#[test]
fn a_model_with_parts_missing() {
    let place = Workplace::new();
    place.write("model/model_index.json", br#"{"_class_name": "FluxPipeline"}"#);
    place.write("model/vae/diffusion_pytorch_model.safetensors", &safetensors(&[("x", &[1, 2], &[1.0, 2.0])]));
    place.run(&["inspect", "model"]).snapshot("inspect_incomplete");
}

#[test]
fn a_taught_word() {
    let place = Workplace::new();
    place.write("easy.safetensors", &safetensors(&[("emb_params", &[2, 8], &[0.5; 16])]));
    place.write("cat.safetensors", &safetensors(&[("<cat>", &[8], &[0.5; 8])]));
    let easy = place.json(&["inspect", "easy.safetensors"]);
    assert!(easy["holds"][0].as_str().unwrap().starts_with("a textual inversion"), "{easy}");
    assert_eq!((&easy["settings"]["vectors"], &easy["settings"]["width"]), (&2.into(), &8.into()));
    assert_eq!(place.json(&["inspect", "cat.safetensors"])["settings"]["word"], "<cat>");
}

#[test]
fn failures() {
    let place = Workplace::new();
    place.write("empty/readme.txt", b"nothing here");
    place.write("text.gguf", b"a file that is no GGUF");
    place.write("header.gguf", &mini_bytes()[..1000]);
    place.write("data.gguf", &mini_bytes()[..1_000_000]);
    place.write("cut.safetensors", &safetensors(&[("x", &[4], &[0.0; 4])])[..60]);
    place.write("other/model_index.json", br#"{"_class_name": "StableDiffusion3Pipeline"}"#);
    place.write("control.safetensors", b"\x10\0\0\0\0\0\0\0{\"\x1b[2J\": nonsense");
    for (name, path) in [
        ("missing", "missing.gguf"),
        ("no_model", "empty"),
        ("no_gguf", "text.gguf"),
        ("truncated_header", "header.gguf"),
        ("truncated_data", "data.gguf"),
        ("truncated_safetensors", "cut.safetensors"),
        ("other_pipeline", "other"),
        ("control_characters", "control.safetensors"),
    ] {
        place.run(&["inspect", path]).snapshot(&format!("inspect_{name}"));
    }
}
