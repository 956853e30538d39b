//! T2I-Adapters beside Stable Diffusion 1 and XL. The expected latents were recorded by `tests/reference/t2i_adapters.py`.

use super::*;

#[test]
fn latents_equal_diffusers() {
    let mut wrong = Vec::new();
    for name in ["sd1_adapters", "sdxl_adapters"] {
        let made = Made::new(name);
        for case in made.golden.at("/cases").as_object().unwrap().keys() {
            let mut pipeline = on(made.open(made.folders(case)).unwrap(), "cpu");
            let generated = generate(&mut pipeline, &made.request(case));
            let nmse = metrics::nmse(&made.golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
            println!("{name} {case}: nmse {nmse:.2e}");
            if nmse > MOST {
                wrong.push(format!("{name} {case}: {nmse:.2e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn streamed_equals_resident() {
    for (name, case) in [("sd1_adapters", "two"), ("sd1_adapters", "light"), ("sdxl_adapters", "part")] {
        let made = Made::new(name);
        let request = Request { steps: Some(2), ..made.request(case) };
        for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
            let files = made.folders(case).into_iter();
            let files = files.map(|folder| file_type.map_or(folder.clone(), |to| converted(&folder, to))).collect();
            let mut pipeline = on(made.open(files).unwrap(), "cpu:discrete");
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{name} {case} {file_type:?}: other latents");
        }
    }
}

/// TencentARC's name of an adapter's weight, with two blocks in each body.
fn original(name: &str, is_light: bool) -> String {
    let own = name.strip_prefix("adapter.").unwrap();
    let parts: Vec<&str> = own.split('.').collect();
    match parts[..] {
        ["body", _, "resnets", ..] if is_light => own.replacen(".resnets.", ".body.", 1),
        ["body", ..] if is_light => own.to_owned(),
        ["body", body, "resnets", block, layer, leaf] => {
            let number = 2 * body.parse::<usize>().unwrap() + block.parse::<usize>().unwrap();
            format!("body.{number}.{layer}.{leaf}")
        }
        ["body", body, "in_conv", leaf] => format!("body.{}.in_conv.{leaf}", 2 * body.parse::<usize>().unwrap()),
        _ => own.to_owned(),
    }
}

#[test]
fn single_files_say_the_same() {
    for (name, net) in
        [("sd1_adapters", "full"), ("sd1_adapters", "gray"), ("sd1_adapters", "light"), ("sdxl_adapters", "full")]
    {
        let made = Made::new(name);
        let request = Request { steps: Some(1), ..made.request(net) };
        let drawn = |file: PathBuf| bits(&generate(&mut on(made.open(vec![file]).unwrap(), "cpu"), &request));
        let by_folder = drawn(made.at(net));
        let names: [&dyn Fn(&str) -> String; 2] = [&str::to_owned, &|name| original(name, net == "light")];
        for rename in names {
            assert!(by_folder == drawn(renamed(&made, net, rename)), "{name} {net}");
        }
    }
}

#[test]
fn adapters_that_do_not_fit() {
    let (made, xl, nets) = (Made::new("sd1_adapters"), Made::new("sdxl_adapters"), Made::new("sd1_controls"));
    let error = not_opened(&made, xl.at("full"));
    assert!(
        error.contains("feature 0: expected 64 channels at level 0, as the UNet has, found 64 channels at level 1"),
        "{error}"
    );
    assert!(error.ends_with("(this T2I-Adapter was trained for another model)"), "{error}");
    let guess = Request { control_guess: true, ..made.request("full") };
    let error = pipeline::settings(&made.open(made.folders("full")).unwrap(), &guess).unwrap_err().to_string();
    assert!(error.contains("ControlNets of this kind do not guess"), "{error}");
    let odd = Request { width: Some(72), ..xl.request("full") };
    let error = pipeline::settings(&xl.open(xl.folders("full")).unwrap(), &odd).unwrap_err().to_string();
    assert!(error.starts_with("--width: expected a multiple of 16 from 16 to"), "{error}");
    // Both at once.
    let both = nets.open(vec![nets.at("plain"), made.at("full")]).unwrap();
    let mut request = nets.request("without_cfg");
    request.controls.push(request.controls[0].clone());
    generate(&mut on(both, "cpu"), &request);
}
