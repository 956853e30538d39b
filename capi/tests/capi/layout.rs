//! Every struct of the header, as C and as Rust lay it out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::mem::{align_of, offset_of, size_of};
use std::process::Command;

use pinhole_capi::{control, convert, device, input, model, plan, request, result, session, upscale};

use crate::rig::{STRICT, folder, root, run};

/// By struct: its size and alignment under "", and the offset of each member.
type Layouts = BTreeMap<(String, String), Vec<usize>>;

macro_rules! layouts {
    ($($c:literal = $rust:ty { $($member:ident),* $(,)? })*) => {{
        let mut all = Layouts::new();
        $(
            all.insert(($c.into(), String::new()), vec![size_of::<$rust>(), align_of::<$rust>()]);
            $(
                let name = stringify!($member).trim_end_matches('_');
                all.insert(($c.into(), name.into()), vec![offset_of!($rust, $member)]);
            )*
        )*
        all
    }};
}

fn rust() -> Layouts {
    layouts! {
        "pinhole_device_info" = device::DeviceInfo {
            struct_size, name, description, kind, is_default, memory_free, memory_total,
        }
        "pinhole_files" = model::Files {
            struct_size, base, transformer, text_encoder, text_encoder_2, vae, tokenizer, tokenizer_2, unet,
            loras, lora_strengths, lora_count, redux, ip_adapter, image_encoders, image_encoder_count, controls,
            control_count, id_projector, takes_id, reserved, tiny_vae, embeddings, embedding_words, embedding_count,
            embeddings_folder, safety_checker, upscaler, refiner, scheduler_config, zero_cond_t, reserved_2,
            transformer_2, lora_experts,
        }
        "pinhole_model_info" = model::ModelInfo {
            struct_size, architecture, width, height, steps, max_sequence_length, guidance, cfg_scale, takes_guidance,
            latent_channels, file_size, parameters,
        }
        "pinhole_session_options" = session::SessionOptions {
            struct_size, device, vram, offload, threads, host_memory, prompt_cache,
            devices, device_count, device_vram, devices_by,
        }
        "pinhole_progress" = pinhole_capi::Progress {
            struct_size, phase, step, steps, stage, stages, reserved, bytes_moved, bytes_total, seconds, seconds_left,
        }
        "pinhole_request" = request::Request {
            struct_size, prompt, negative_prompt, width, height, steps, batch, seed, guidance, cfg_scale, sampler,
            max_sequence_length, noise, noise_count, embeddings, cancel, progress, warning, preview, user_data,
            preview_interval, reserved, inputs, input_count, strength, posterior, original_width, original_height,
            crop_left, crop_top, image_cfg_scale, reference_resize, schedule, eta, sigmas, sigma_count, rescale_cfg,
            reserved_2, ip_scale, reserved_3, controls, control_count, cache, cache_threshold, control_preprocess, canny_low,
            canny_high, reserved_4, id_embedding, id_embedding_count, tiny_vae_for,
            shift, prompt_syntax, safety, refiner_start, aesthetic_score, negative_aesthetic_score, upscale, upscale_strength,
            upscale_space, upscale_steps, control_guess, frames, fps, frame, cfg_scale_2, boundary, video,
            attention, guide_scale, trace, video_mask,
        }
        "pinhole_control" = control::Control {
            struct_size, start, end, scale, preprocess, mode, canny_low, canny_high, joins, reserved,
        }
        "pinhole_input" = input::Input {
            struct_size, use_, reserved, path, data, size, pixels, width, height, weight, reserved_2,
        }
        "pinhole_result_info" = result::ResultInfo {
            struct_size, seed, width, height, steps, batch, guidance, cfg_scale, max_sequence_length, reserved, peak_bytes,
            planned_peak_bytes, bytes_moved, bytes_mapped, seconds_encode, seconds_denoise, seconds_decode, frames, fps,
        }
        "pinhole_result_device" = result::ResultDevice {
            struct_size, name, limit_bytes, planned_peak_bytes, peak_bytes,
        }
        "pinhole_plan_info" = plan::PlanInfo {
            struct_size, peak_bytes, limit_bytes, all_resident, reserved, components,
        }
        "pinhole_plan_component" = plan::PlanComponent {
            struct_size, name, phase, stages, streamed_stages, slots, peak_bytes, weight_bytes, slot_bytes,
            other_weight_bytes, port_bytes, activation_bytes, scratch_bytes, overhead_bytes, mapped_bytes,
            moved_once_bytes, moved_each_step_bytes, parts_each_step,
            pictures_at_once, device, reserved,
        }
        "pinhole_convert_options" = convert::ConvertOptions {
            struct_size, source, output, type_, component, tensors, tensor_count, allow_requantize, allow_nonfinite,
            overwrite, threads, cancel, progress, warning, user_data,
        }
        "pinhole_upscale_options" = upscale::UpscaleOptions {
            struct_size, model, input, outscale, device, vram, host_memory, offload, threads, cancel, progress, warning,
            user_data,
        }
    }
}

/// The structs that the header defines, with their members: read from its text, so that none is forgotten above.
fn declared() -> Vec<(String, String)> {
    let header = fs::read_to_string(root().join("include/pinhole.h")).unwrap();
    let (mut members, mut inside) = (Vec::new(), None::<String>);
    for line in header.lines() {
        if let Some(name) = line.strip_prefix("typedef struct ").and_then(|line| line.strip_suffix(" {")) {
            members.push((name.to_owned(), String::new()));
            inside = Some(name.to_owned());
        } else if line.starts_with('}') {
            inside = None;
        } else if let (Some(name), Some(declaration)) = (&inside, line.trim().strip_suffix(';')) {
            let member = declaration.split('[').next().unwrap().rsplit([' ', '*']).next().unwrap();
            members.push((name.clone(), member.to_owned()));
        }
    }
    members.sort();
    members
}

/// What the C compiler says of them.
fn c(members: &[(String, String)]) -> Layouts {
    let mut source = String::from("#include <pinhole.h>\n#include <stdio.h>\nint main(void) {\n");
    source.push_str("struct align { char c; };\n");
    for (name, member) in members {
        let _ = match member.as_str() {
            "" => writeln!(
                source,
                "{{ struct a {{ char c; {name} s; }}; printf(\"{name}  %zu %zu\\n\", sizeof({name}), offsetof(struct a, s)); }}"
            ),
            member => writeln!(source, "printf(\"{name} {member} %zu\\n\", offsetof({name}, {member}));"),
        };
    }
    source.push_str("return 0; }\n");
    let folder = folder("layout");
    let (file, program) = (folder.join("layout.c"), folder.join("layout"));
    fs::write(&file, source).unwrap();
    let mut compile = Command::new("cc");
    run(compile.args(STRICT).arg("-I").arg(root().join("include")).arg(&file).arg("-o").arg(&program));
    let output = run(&mut Command::new(&program));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let numbers = words[2..].iter().map(|number| number.parse().unwrap()).collect();
            ((words[0].to_owned(), words[1].to_owned()), numbers)
        })
        .collect()
}

#[test]
fn structs_are_laid_out_as_in_the_header() {
    let declared = declared();
    assert!(declared.len() > 100, "{declared:?}");
    assert_eq!(c(&declared), rust());
}
