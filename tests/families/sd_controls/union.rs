//! ControlNets that tell kinds of pictures apart, and control LoRAs. The expected latents were recorded by `tests/reference/sd_union.py`.

use std::collections::BTreeMap;

use crate::support::lora::Tensor;

use super::*;

#[test]
fn kinds_have_names_and_have_to_be_told() {
    let made = Made::new("sdxl_union");
    let model = made.open(vec![made.at("union")]).unwrap();
    let with = |mode: Option<&str>| {
        let mut request = made.request("plain");
        request.controls[0].mode = mode.map(str::to_owned);
        pipeline::settings(&model, &request)
    };
    for (name, number) in [("Lineart", 3), ("canny", 3), ("ted", 2), ("5", 5)] {
        let settings = with(Some(name)).unwrap();
        assert_eq!(settings.controls[0].mode, Some(number), "{name}");
    }
    assert_eq!(with(Some("lineart")).unwrap().controls[0].mode_name, Some("canny"));
    let error = with(None).unwrap_err().to_string();
    assert!(error.starts_with("--control-mode: expected one of openpose, depth, scribble/hed/pidi/ted, "), "{error}");
    // ProMax's kinds are not those of the first.
    let error = with(Some("tile")).unwrap_err().to_string();
    assert!(error.ends_with("segment, or a number from 0 to 5, found `tile`"), "{error}");
    let mut request = made.request("plain");
    request.controls[0].preprocess = Preprocess::Inpaint;
    request.mask = Some(given::mask(request.width.unwrap(), request.height.unwrap()));
    let error = pipeline::settings(&model, &request).unwrap_err().to_string();
    assert!(error.contains("a union ControlNet takes its picture as it is"), "{error}");
    // diffusers cannot: with guidance, the prompt's pass alone follows.
    let guess = Request { cfg_scale: Some(5.0), steps: Some(1), ..made.request("guess") };
    generate(&mut on(model, "cpu:discrete"), &guess);
}

/// The control LoRA of the golden as Stability AI publishes such files, or as `change` makes of that.
fn control_lora(made: &Made, name: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> PathBuf {
    let mut tensors = BTreeMap::new();
    let base = Golden::load(made.golden.text("/model"));
    for weight in support::synth::weights(&made.golden, "lora") {
        let values = weight.values();
        tensors.insert(original(&base, &weight.name), Tensor { shape: weight.shape, values });
    }
    tensors.insert("lora_controlnet".into(), Tensor { shape: vec![0], values: Vec::new() });
    change(&mut tensors);
    support::lora::write(made.dir.path(), name, &tensors, Vec::new())
}

#[test]
fn control_loras_equal_diffusers() {
    let made = Made::new("sdxl_control_lora");
    let file = control_lora(&made, "control-lora", |_| {});
    let mut pipeline = on(made.open(vec![file]).unwrap(), "cpu");
    let mut wrong = Vec::new();
    for case in made.golden.at("/cases").as_object().unwrap().keys() {
        let generated = generate(&mut pipeline, &made.request(case));
        let nmse = metrics::nmse(&made.golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("control lora {case}: nmse {nmse:.2e}");
        if nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Beside UNets of every type, with one more ControlNet and with a LoRA of the UNet.
#[test]
fn control_loras_stream_as_they_stay() {
    let (made, nets) = (Made::new("sdxl_control_lora"), Made::new("sdxl_controls"));
    let file = control_lora(&made, "control-lora", |tensors| {
        // The mark may have a number.
        tensors.insert("lora_controlnet".into(), Tensor { shape: vec![1], values: vec![0.0] });
    });
    let directory = pipeline::open(&Source::open(&made.at("model")).unwrap()).unwrap();
    let mut drawn = Vec::new();
    for file_type in ["f32", "q8_0", "q4_k_s"] {
        let path = made.at(&format!("{file_type}.gguf"));
        let plan = convert::plan(&directory.source, &directory.networks(), file_type.parse::<FileType>().unwrap());
        plan.unwrap().write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
        let controls = vec![file.clone(), nets.at("plain")];
        let additions = Additions { controls, ..Additions::default() };
        let model = pipeline::open_with(&Source::open(&path).unwrap(), &additions).unwrap();
        let mut request = Request { steps: Some(2), ..made.request("plain") };
        request.controls.push(request.controls[0].clone());
        let mut card = on(model, "cpu:discrete");
        let mut draw = |offload| {
            card.set_memory(MemoryOptions { vram: None, offload, host: None });
            generate(&mut card, &request)
        };
        let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
        assert!(resident.plan.all_resident && !streamed.plan.all_resident);
        assert!(bits(&resident) == bits(&streamed), "{file_type}");
        drawn.push(resident.latents);
    }
    let far = |i: usize| metrics::nmse(&drawn[0], &drawn[i]).unwrap();
    println!("q8_0 {:.1e}, q4_k_s {:.1e}", far(1), far(2));
    assert!(far(1) < 6e-3 && far(2) < 5e-2);
}

#[test]
fn control_loras_that_do_not_fit() {
    let (made, first) = (Made::new("sdxl_control_lora"), Made::new("sd1_controls"));
    let file = control_lora(&made, "control-lora", |_| {});
    let error = not_opened(&first, file.clone());
    assert!(
        error.contains("tensor ") && error.ends_with("(this control LoRA was trained for another model)"),
        "{error}"
    );
    let stem = "input_blocks.4.1.transformer_blocks.0.attn1.to_q";
    let lacking = control_lora(&made, "lacking", |tensors| drop(tensors.remove(&format!("{stem}.up"))));
    let error = not_opened(&made, lacking);
    assert!(error.contains(&format!("{stem}.up`: expected a tensor, found none")), "{error}");
    let without = control_lora(&made, "without", |tensors| drop(tensors.remove("zero_convs.2.0.bias")));
    let error = not_opened(&made, without);
    assert!(error.contains("zero_convs.2.0.bias"), "{error}");
    // Alone, it is no network.
    let error = pipeline::alone(&Source::open(&file).unwrap()).err().unwrap();
    assert!(error.to_string().contains("holds a control LoRA, which is a ControlNet only beside its UNet"), "{error}");
}

#[test]
fn several_pictures_of_one_network() {
    let made = Made::new("sdxl_union");
    let mut request = made.request("joined");
    let mut pipeline = on(made.open(made.folders("joined")).unwrap(), "cpu:discrete");
    pipeline.set_memory(MemoryOptions { offload: Offload::None, ..MemoryOptions::default() });
    let resident = generate(&mut pipeline, &request);
    pipeline.set_memory(MemoryOptions { offload: Offload::Sequential, ..MemoryOptions::default() });
    assert_eq!(bits(&resident), bits(&generate(&mut pipeline, &request)));
    let settings = pipeline.settings(&request).unwrap();
    let described =
        ("ControlNet 0", "Model: union, Weight: 0.7+0.9, Guidance Start: 0, Guidance End: 1, Mode: canny+depth");
    assert!(settings.named(0, None).contains(&(described.0, described.1.to_owned())), "{:?}", settings.named(0, None));
    // In another order, they say the same, except for rounding.
    request.controls.reverse();
    for (i, control) in request.controls.iter_mut().enumerate() {
        control.joins = i > 0;
    }
    let nmse = metrics::nmse(&resident.latents, &generate(&mut pipeline, &request).latents).unwrap();
    assert!(nmse < MOST, "{nmse:e}");
    // A kind is asked of each.
    request.controls[1].mode = None;
    let said = pipeline.settings(&request).unwrap_err().to_string();
    assert!(said.starts_with("--control-mode: expected one of openpose, ") && said.ends_with("found none"), "{said}");

    let plain = Made::new("sdxl_controls");
    let request = plain.request("plain");
    let model = plain.open(plain.folders("plain")).unwrap();
    let mut controls = request.controls.clone();
    controls.push(Control { joins: true, ..controls[0].clone() });
    let said = pipeline::settings(&model, &Request { controls, ..request }).unwrap_err().to_string();
    let expected =
        "--control-image: expected one picture for each ControlNet, except union ControlNets of Stable Diffusion XL";
    assert!(said.starts_with(expected), "{said}");
}
