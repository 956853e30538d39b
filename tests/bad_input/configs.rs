//! Settings that contradict the weights, or make no sense at all.

use pinhole::Error;
use pinhole::pipeline::{Event, Request};
use pinhole::sample::Sampler;
use serde_json::{Value, json};

use crate::disk::{Disk, refused, show};
use crate::requests::small;

#[test]
fn more_layers_than_weights() {
    for (component, key, missing) in [
        ("transformer", "num_layers", "missing: transformer_blocks.1."),
        ("transformer", "num_single_layers", "missing: single_transformer_blocks.3."),
        ("text_encoder", "num_hidden_layers", "missing: encoder.layers.2."),
        ("text_encoder_2", "num_layers", "missing: encoder.block.3."),
        ("vae", "layers_per_block", "_blocks."),
    ] {
        let disk = Disk::new();
        disk.edit(&format!("{component}/config.json"), |config| {
            config[key] = (config[key].as_u64().unwrap() + 1).into();
        });
        let error = refused!(Mismatch, disk.open(), component);
        assert!(error.hint().unwrap().contains(missing), "{:?}", error.hint());
    }
}

/// Files hold more than models want (a projection of CLIP's, say), so that this is no error; but it can be seen.
#[test]
fn fewer_layers_than_weights() {
    let disk = Disk::new();
    disk.edit("transformer/config.json", |config| config["num_single_layers"] = json!(2));
    let unused = disk.open().unwrap().denoiser.networks()[0].bound.unused().to_vec();
    assert!(unused.iter().any(|name| name == "single_transformer_blocks.2.proj_mlp.weight"), "{unused:?}");
    let mut warnings = Vec::new();
    disk.pipeline()
        .generate_watched(&small(), &mut |event: Event| {
            warnings.extend(match event {
                Event::Warning(text) => Some(text),
                _ => None,
            });
            Ok(())
        })
        .unwrap();
    assert!(warnings.iter().any(|text| text.contains("transformer") && text.contains("unused")), "{warnings:?}");
}

#[test]
fn widths_that_are_not_those_of_the_weights() {
    for (component, key, value) in [
        ("transformer", "joint_attention_dim", json!(512)),
        ("transformer", "num_attention_heads", json!(5)),
        ("transformer", "guidance_embeds", json!(true)),
        ("text_encoder", "hidden_size", json!(1024)),
        ("text_encoder", "vocab_size", json!(49408)),
        ("text_encoder_2", "d_ff", json!(100)),
        ("text_encoder_2", "num_heads", json!(3)),
        ("vae", "block_out_channels", json!([32, 32, 64, 128])),
        ("vae", "latent_channels", json!(4)),
    ] {
        let disk = Disk::new();
        disk.edit(&format!("{component}/config.json"), |config| config[key] = value);
        refused!(Mismatch, disk.open(), component, "expected", "found");
    }
}

#[test]
fn settings_that_contradict_each_other() {
    for (component, key, value) in [
        ("transformer", "axes_dims_rope", json!([8, 28, 30])),
        ("transformer", "axes_dims_rope", json!([32, 32])),
        ("transformer", "axes_dims_rope", json!([9, 27, 28])),
        ("transformer", "num_attention_heads", json!(0)),
        ("transformer", "patch_size", json!(2)),
        ("text_encoder", "num_attention_heads", json!(7)),
        ("text_encoder_2", "relative_attention_num_buckets", json!(1)),
        ("vae", "norm_num_groups", json!(5)),
        ("vae", "down_block_types", json!(["DownEncoderBlock2D"])),
        ("vae", "scaling_factor", json!(0.0)),
    ] {
        let disk = Disk::new();
        disk.edit(&format!("{component}/config.json"), |config| config[key] = value);
        refused!(Mismatch, disk.open(), &format!("{component}/config.json"), key, "expected");
    }
}

#[test]
fn components_that_do_not_fit_together() {
    // The transformer of a model with a narrower CLIP.
    let disk = Disk::new();
    disk.edit("transformer/config.json", |config| config["pooled_projection_dim"] = json!(256));
    disk.edit_tensors("transformer", |tensors| {
        let tensor = tensors.get_mut("time_text_embed.text_embedder.linear_1.weight").unwrap();
        tensor.bytes.truncate(tensor.bytes.len() / 2);
        tensor.shape[1] /= 2;
    });
    refused!(Mismatch, disk.open(), "CLIP", "pooled_projection_dim", "512", "256");
}

#[test]
fn no_settings_at_all() {
    let disk = Disk::new();
    for text in ["", "null", "[]", "{\"num_layers\": }", "3", "\"text\""] {
        disk.write("transformer/config.json", text);
        refused!(Malformed, disk.open(), "transformer/config.json");
    }
    disk.write("transformer/config.json", b"\xff");
    refused!(Io, disk.open(), "transformer/config.json");
    // Without one, what shapes do not tell would be a guess.
    for component in ["transformer", "text_encoder", "text_encoder_2", "vae"] {
        let disk = Disk::new();
        disk.remove(&format!("{component}/config.json"));
        refused!(NotAModel, disk.open(), component, "no config.json");
    }
}

/// What no one means.
fn absurdities() -> Vec<Value> {
    vec![
        json!(null),
        json!(0),
        json!(-1),
        json!(3),
        json!(1_000_000_000_000_000_000u64),
        json!(u64::MAX),
        json!(1e18),
        json!(1e300),
        json!(-0.0),
        json!(1e-300),
        json!(0.5),
        json!(true),
        json!("text"),
        json!(""),
        json!([]),
        json!([0]),
        json!([null]),
        json!([1u64 << 62, 1u64 << 62, 1u64 << 62]),
        json!({}),
        json!({"a": 1}),
    ]
}

/// Every setting of `file` set to every absurdity: the model opens or is refused with the file's name and the setting's, in
/// no time and with no panic.
fn sweep(file: &str, open: impl Fn(&Disk) -> pinhole::Result<()>) {
    let disk = Disk::new();
    let original = disk.json(file);
    let folder = file.split('/').next().unwrap();
    for key in original.as_object().unwrap().keys() {
        for value in absurdities() {
            let mut changed = original.clone();
            changed[key] = value.clone();
            disk.write(file, changed.to_string());
            let Err(error) = open(&disk) else { continue };
            println!("{key} = {value}");
            show(&error);
            let message = error.to_string();
            assert!(!matches!(error, Error::Graph { .. }), "{file}: {key} = {value}: {message}");
            assert!(message.contains(folder) || message.contains("CLIP") || message.contains("T5"), "{key}: {message}");
        }
    }
}

#[test]
fn every_setting_of_the_transformer() {
    sweep("transformer/config.json", |disk| disk.open().map(|_| ()));
}

#[test]
fn every_setting_of_the_text_encoders() {
    sweep("text_encoder/config.json", |disk| disk.open().map(|_| ()));
    sweep("text_encoder_2/config.json", |disk| disk.open().map(|_| ()));
}

#[test]
fn every_setting_of_the_autoencoder() {
    sweep("vae/config.json", |disk| disk.open().map(|_| ()));
}

#[test]
fn every_setting_of_the_scheduler() {
    sweep("scheduler/scheduler_config.json", |disk| {
        let model = disk.open()?;
        for (steps, tokens) in [(1, 1), (4, 256), (50, 4096)] {
            match model.scheduler.levels(&Sampler::Euler.into(), steps, tokens).map(|levels| levels.sigmas) {
                Ok(sigmas) => assert!(sigmas.iter().all(|sigma| sigma.is_finite()) && sigmas.len() == steps + 1),
                Err(error) => assert!(matches!(error, Error::NotFinite { .. } | Error::Option { .. }), "{error:?}"),
            }
        }
        Ok(())
    });
}

#[test]
fn every_setting_of_the_tokenizers() {
    sweep("tokenizer/tokenizer_config.json", |disk| disk.open().map(|_| ()));
    sweep("tokenizer_2/tokenizer_config.json", |disk| disk.open().map(|_| ()));
}

/// What opens can be drawn with, or says why not: sizes are checked before, so that nothing is left for ggml to find.
#[test]
fn settings_that_open_give_a_picture_or_an_error() {
    let request = Request {
        width: Some(16),
        height: Some(16),
        steps: Some(2),
        max_sequence_length: Some(4),
        batch: 1,
        ..Request::default()
    };
    for (file, keys) in [
        ("transformer", &["num_layers", "num_single_layers"][..]),
        ("text_encoder", &["layer_norm_eps", "eos_token_id", "num_attention_heads", "hidden_act"]),
        ("text_encoder_2", &["layer_norm_epsilon", "relative_attention_max_distance", "feed_forward_proj"]),
        ("vae", &["scaling_factor", "shift_factor", "norm_num_groups"]),
        (
            "scheduler",
            &["shift", "base_shift", "max_shift", "use_dynamic_shifting", "shift_terminal", "num_train_timesteps"],
        ),
    ] {
        let disk = Disk::new();
        let file = format!("{file}/{}config.json", if file == "scheduler" { "scheduler_" } else { "" });
        let original = disk.json(&file);
        for (key, value) in keys.iter().flat_map(|key| absurdities().into_iter().map(move |value| (key, value))) {
            let mut changed = original.clone();
            changed[key] = value.clone();
            disk.write(&file, changed.to_string());
            let Ok(model) = disk.open() else { continue };
            match crate::disk::pipeline(model).generate_watched(&request, &mut |_: Event| Ok(())) {
                Ok(generated) => assert_eq!(generated.images.len(), 1),
                Err(error) => {
                    println!("{key} = {value}");
                    show(&error);
                    assert!(
                        matches!(error, Error::NotFinite { .. } | Error::Option { .. }),
                        "{key} = {value}: {error:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn defaults_that_make_no_request() {
    let request = Request { batch: 1, ..Request::default() };
    let disk = Disk::new();
    disk.write("generation_config.json", json!({ "num_inference_steps": 20000 }).to_string());
    refused!(
        Mismatch,
        disk.pipeline().settings(&request),
        "generation_config.json: defaults: num_inference_steps",
        "20000"
    );
    for key in ["width", "height", "num_inference_steps", "guidance_scale", "true_cfg_scale", "max_sequence_length"] {
        for value in absurdities() {
            let disk = Disk::new();
            disk.write("generation_config.json", json!({ key: value }).to_string());
            match disk.open() {
                Ok(model) => match crate::disk::pipeline(model).settings(&request) {
                    Ok(settings) => assert!(settings.cfg_scale.is_finite() && settings.steps > 0, "{key} = {value}"),
                    Err(error) => {
                        show(&error);
                        // The model's fault, not that of an option that no one gave.
                        assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
                        let message = error.to_string();
                        assert!(
                            message.contains("generation_config.json: defaults: ") && message.contains(key),
                            "{error}"
                        );
                        assert!(error.hint().is_some_and(|hint| hint.starts_with("give --")), "{error:?}");
                    }
                },
                Err(error) => {
                    show(&error);
                    assert!(error.to_string().contains("generation_config.json"), "{error}");
                }
            }
        }
    }
}
