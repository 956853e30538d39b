//! ControlNets beside Stable Diffusion 1 and XL, against diffusers in float32: with and without guidance, in some of the steps, guessing,
//! for inpainting, two at once. And IP-Adapters. The expected latents were recorded by `tests/reference/sd_controls.py`.

mod full_size;
mod image_prompts;
mod t2i_adapters;
mod union;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::drawing::{bits, generate, kept_to_plan, on};
use crate::support::{self, Golden, Layout, given, sd1};
use pinhole::convert::{self, WriteOptions};
use pinhole::image::Picture;
use pinhole::pipeline::{
    self, Additions, Control, Event, Generated, MemoryOptions, Opened, Phase, Preprocess, Request,
};
use pinhole::plan::{Component, Limits, Offload, budget};
use pinhole::source::Source;
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use serde_json::Value;
use tempfile::TempDir;

/// How far latents may be from diffusers'. On the processor that they were recorded beside they are up to 1e-10 away; others round in
/// another order.
const MOST: f64 = 5e-10;

/// A golden, and its model and ControlNets as directories.
struct Made {
    golden: Golden,
    dir: TempDir,
}

impl Made {
    fn new(name: &str) -> Made {
        let (golden, dir) = (Golden::load(name), tempfile::tempdir().unwrap());
        let base = Golden::load(golden.text("/model"));
        sd1::write_directory(&dir.path().join("model"), &base, base.at("/scheduler"));
        for net in golden.at("/components").as_object().unwrap().keys() {
            support::write_component(&dir.path().join(net), &golden, net, &Layout::default());
        }
        Made { golden, dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a case has for each ControlNet, by the key.
    fn controls(&self, case: &str) -> &[Value] {
        self.golden.list(&format!("/cases/{case}/controls"))
    }

    /// The folders of a case's ControlNets.
    fn folders(&self, case: &str) -> Vec<PathBuf> {
        let first = self.controls(case).iter().filter(|control| control["joins"] != true);
        first.map(|control| self.at(control["net"].as_str().unwrap())).collect()
    }

    fn open(&self, controls: Vec<PathBuf>) -> pinhole::Result<Opened> {
        let additions = Additions { controls, ..Additions::default() };
        pipeline::open_with(&Source::open(&self.at("model"))?, &additions)
    }

    /// The request of a case.
    fn request(&self, case: &str) -> Request {
        let at = |key: &str| self.golden.at(&format!("/cases/{case}/{key}"));
        let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
        let number = |key: &str| at(key).as_f64().map(|number| number as f32);
        let (width, height) = (whole("width").unwrap(), whole("height").unwrap());
        Request {
            prompt: at("prompt").as_str().unwrap().to_owned(),
            negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
            width: Some(width),
            height: Some(height),
            steps: whole("steps"),
            seed: at("seed").as_u64().unwrap(),
            cfg_scale: number("cfg_scale"),
            strength: number("strength"),
            image: number("strength").map(|_| given::picture(width, height)),
            mask: at("masked").as_bool().unwrap().then(|| given::mask(width, height)),
            batch: whole("batch").unwrap(),
            controls: self.controls(case).iter().map(|control| followed(control, width, height)).collect(),
            control_guess: at("guess").as_bool().unwrap(),
            ..Request::default()
        }
    }
}

/// The model of a case with its ControlNets, and its request.
pub(super) fn opened(golden: &str, case: &str) -> (Arc<Opened>, Request) {
    let made = Made::new(golden);
    (Arc::new(made.open(made.folders(case)).unwrap()), made.request(case))
}

/// What a ControlNet follows, as the golden has it.
fn followed(control: &Value, width: usize, height: usize) -> Control {
    let is = |key: &str| control[key].as_bool().unwrap();
    let picture = if is("turned") { turned(width, height) } else { given::picture(width, height) };
    let number = |key: &str| control[key].as_f64().unwrap();
    let preprocess = if is("inpaint") { Preprocess::Inpaint } else { Preprocess::None };
    let (scale, start, end) = (number("scale") as f32, number("start"), number("end"));
    let mode = control["mode"].as_u64().map(|mode| mode.to_string());
    let joins = control["joins"] == true;
    Control { scale, start, end, mode, preprocess, joins, ..Control::new(picture) }
}

/// The picture with left and right exchanged.
fn turned(width: usize, height: usize) -> Arc<Picture> {
    let picture = given::picture(width, height);
    let rows = picture.image().rgb().chunks_exact(3 * width);
    let turned: Vec<u8> = rows.flat_map(|row| row.chunks_exact(3).rev().flatten().copied()).collect();
    Arc::new(Picture::from_rgb8(width, height, &turned).unwrap())
}

#[test]
fn latents_equal_diffusers() {
    let mut wrong = Vec::new();
    for name in ["sd1_controls", "sdxl_controls", "sdxl_union"] {
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

/// What a plan counts of weights that begin at whole addresses, and that does not move.
const PADDING: u64 = 1 << 10;

/// Bytes that moved to the device in the steps, as planned and as measured.
fn moved(generated: &Generated) -> [u64; 2] {
    let plan = generated.plan.components.iter().find(|component| component.phase == Phase::Denoise).unwrap();
    let phase = generated.phases.iter().find(|phase| phase.phase == Phase::Denoise).unwrap();
    [plan.moved() as u64, phase.moved]
}

#[test]
fn streamed_equals_resident() {
    for (name, case) in [
        ("sd1_controls", "batch"),
        ("sd1_controls", "two"),
        ("sd1_controls", "guess"),
        ("sdxl_controls", "two"),
        ("sdxl_union", "two"),
    ] {
        let made = Made::new(name);
        let request = Request { steps: Some(4), ..made.request(case) };
        for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
            let folders = made.folders(case);
            let files = match file_type {
                None => folders,
                Some(file_type) => folders.iter().map(|folder| converted(folder, file_type)).collect(),
            };
            let mut pipeline = on(made.open(files).unwrap(), "cpu:discrete");
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{case} {file_type:?}: other latents");
            let [planned, measured] = moved(&streamed);
            assert!(planned.abs_diff(measured) < PADDING, "{case} {file_type:?}: {planned} and {measured}");
        }
    }
}

#[test]
fn steps_that_a_control_has_no_part_in_bring_nothing_of_it() {
    let made = Made::new("sd1_controls");
    let mut pipeline = on(made.open(made.folders("plain")).unwrap(), "cpu:discrete");
    pipeline.set_memory(MemoryOptions { vram: None, offload: Offload::Sequential, host: None });
    let mut all = Vec::new();
    for end in [1.0, 0.75, 0.5, 0.0] {
        let mut request =
            Request { steps: Some(4), sampler: Some(pinhole::sample::Sampler::Euler), ..made.request("plain") };
        request.controls[0].end = end;
        let (mut stages, mut done) = (0, 0);
        let generated = pipeline
            .generate_watched(&request, &mut |event: Event| {
                match event {
                    Event::Begin { phase: Phase::Denoise, stages: count, .. } => (stages, done) = (count, 0),
                    Event::Stage => done += 1,
                    Event::End { phase: Phase::Denoise } => assert_eq!(done, stages),
                    _ => {}
                }
                Ok(())
            })
            .unwrap();
        kept_to_plan(&generated);
        let [planned, measured] = moved(&generated);
        assert!(planned.abs_diff(measured) < PADDING, "up to {end}: {planned} and {measured}");
        all.push(measured);
    }
    println!("{all:?}");
    let step = all[0] - all[1];
    assert!(step > 0 && all[1] - all[2] == step);
    // Two steps less, and what it computes once a request.
    assert!(all[2] - all[3] > 2 * step);
    // What was not there in one request is there in the next.
    pipeline.set_memory(MemoryOptions { vram: None, offload: Offload::None, host: None });
    let mut request = Request { steps: Some(2), ..made.request("without_cfg") };
    let whole = bits(&generate(&mut pipeline, &request));
    request.controls[0].end = 0.0;
    assert!(whole != bits(&generate(&mut pipeline, &request)));
    request.controls[0].end = 1.0;
    let mut other = on(made.open(made.folders("plain")).unwrap(), "cpu:discrete");
    request.controls[0].end = 0.0;
    let without = bits(&generate(&mut other, &request));
    request.controls[0].end = 1.0;
    assert!(whole == bits(&generate(&mut other, &request)) && whole != without);
    // Without a ControlNet, the same latents.
    let plain = Request { controls: Vec::new(), ..request };
    assert!(without == bits(&generate(&mut on(made.open(Vec::new()).unwrap(), "cpu:discrete"), &plain)));
}

#[test]
fn passes_one_after_the_other_draw_the_same() {
    for (name, case) in
        [("sd1_controls", "guess"), ("sd1_controls", "batch"), ("sd1_controls", "two"), ("sdxl_controls", "guess")]
    {
        let made = Made::new(name);
        let request = Request { steps: Some(2), batch: 2, ..made.request(case) };
        let mut pipeline = on(made.open(made.folders(case)).unwrap(), "cpu:discrete");
        pipeline.set_memory(MemoryOptions { offload: Offload::None, ..MemoryOptions::default() });
        let whole = generate(&mut pipeline, &request);
        let components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
        let denoiser = components.iter().find(|component| component.phase == Phase::Denoise).unwrap();
        for variant in &denoiser.variants {
            let components: Vec<Component> = components
                .iter()
                .map(|component| match component.phase {
                    Phase::Denoise => Component { variants: vec![variant.clone()], ..component.clone() },
                    _ => component.clone(),
                })
                .collect();
            let plan = budget::plan(&components, Offload::Sequential, &Limits::default()).unwrap();
            let found = pipeline.generate_as(plan, &request, &mut |_: Event| Ok(())).unwrap();
            kept_to_plan(&found);
            let nmse = metrics::nmse(&whole.latents, &found.latents).unwrap();
            println!("{name} {case} {}, {:?}: {nmse:.1e}", variant.batch, variant.way);
            assert!(nmse < 1e-12, "{name} {case}, {:?}: {nmse}", variant.batch);
            let [planned, measured] = moved(&found);
            assert!(
                planned.abs_diff(measured) < PADDING,
                "{name} {case}, {:?}: {planned} and {measured}",
                variant.batch
            );
        }
    }
}

/// A case, what is changed in its request, and what is said of that.
type Wrong = (&'static str, fn(&mut Request), &'static str);

#[test]
fn requests_that_cannot_work() {
    let made = Made::new("sd1_controls");
    let cases: &[Wrong] = &[
        (
            "plain",
            |r| r.controls.clear(),
            "--control-image: expected a picture for the ControlNet to follow, found none",
        ),
        (
            "two",
            |r| r.controls.truncate(1),
            "--control-image: expected a picture for each of the 2 ControlNets, found 1",
        ),
        (
            "plain",
            |r| r.controls[0].mode = Some("canny".into()),
            "--control-mode: expected nothing, since this ControlNet has no modes, found `canny`",
        ),
        (
            "mask_alone",
            |r| r.mask = None,
            "--mask: expected a mask of its picture, since this ControlNet paints within one, found none",
        ),
        (
            "plain",
            |r| r.mask = Some(given::mask(104, 72)),
            "--mask: expected a mask together with its picture, found a mask alone",
        ),
        ("plain", |r| r.controls[0].start = 2.0, "--control-start: expected a number from 0 to 1, found 2"),
    ];
    for (case, change, expected) in cases {
        let mut request = made.request(case);
        change(&mut request);
        let error = pipeline::settings(&made.open(made.folders(case)).unwrap(), &request).unwrap_err();
        assert_eq!(error.to_string(), *expected, "{case}");
    }
    let guess = Request { control_guess: true, ..Request::new("a") };
    let error = pipeline::settings(&made.open(Vec::new()).unwrap(), &guess).unwrap_err().to_string();
    assert_eq!(error, "--control-guess: expected a ControlNet that guesses, found none");
}

/// What is said of the ControlNets at `paths` beside the model.
fn not_opened(made: &Made, path: PathBuf) -> String {
    let error = made.open(vec![path]).err().unwrap();
    format!("{error} ({})", error.hint().unwrap_or_default())
}

#[test]
fn networks_that_do_not_fit() {
    let (made, xl) = (Made::new("sd1_controls"), Made::new("sdxl_controls"));
    let error = not_opened(&made, xl.at("plain"));
    assert!(
        error.contains("block_out_channels: expected [64, 96, 160], as the UNet has, found [64, 128, 192]"),
        "{error}"
    );
    assert!(error.ends_with("(this ControlNet was trained for another model)"), "{error}");
    let error = not_opened(&xl, made.at("plain"));
    assert!(error.contains("as the UNet has"), "{error}");
    let error = not_opened(&made, made.at("model/unet"));
    assert!(
        error.contains("holds Stable Diffusion UNet, diffusers names, and no ControlNet of Stable Diffusion"),
        "{error}"
    );
    assert!(made.open(vec![made.at("plain"); 9]).is_err());
    // A ControlNet is no UNet.
    let parts = vec![(&pinhole::source::slot::UNET, made.at("plain"))];
    let files = pinhole::source::Files { parts, ..pinhole::source::Files::default() };
    let source = Source::assemble(Some(Source::open(&made.at("model")).unwrap()), &files).unwrap();
    let error = pipeline::open(&source).err().unwrap();
    assert!(
        error.to_string().contains("holds ControlNet of Stable Diffusion, diffusers names, and no UNet"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--control"), "{error:?}");
}

/// The tensors of the ControlNet `net` with other names, as one file without a configuration.
fn renamed(made: &Made, net: &str, name: impl Fn(&str) -> String) -> PathBuf {
    let mut tensors = std::collections::BTreeMap::new();
    for weight in support::synth::weights(&made.golden, net) {
        let values = weight.values();
        tensors.insert(name(&weight.name), support::lora::Tensor { shape: weight.shape, values });
    }
    support::lora::write(made.dir.path(), &format!("{net}-alone"), &tensors, Vec::new())
}

/// The original name of a ControlNet's weight.
fn original(golden: &Golden, name: &str) -> String {
    // What tells kinds of pictures apart has one name.
    if ["task_", "control_add_", "transformer_layes.", "spatial_ch_"].iter().any(|own| name.starts_with(own)) {
        return name.to_owned();
    }
    let (stem, leaf) = name.rsplit_once('.').unwrap();
    let own = |rest: &str, before: &str| rest.strip_prefix(before).map(str::to_owned);
    let stem = if let Some(number) = own(stem, "controlnet_down_blocks.") {
        format!("zero_convs.{number}.0")
    } else if stem == "controlnet_mid_block" {
        "middle_block_out.0".to_owned()
    } else if let Some(place) = own(stem, "controlnet_cond_embedding.") {
        let number = match place.as_str() {
            "conv_in" => 0,
            "conv_out" => 7,
            block => block.strip_prefix("blocks.").unwrap().parse::<usize>().unwrap() + 1,
        };
        format!("input_hint_block.{}", 2 * number)
    } else {
        sd1::unet(golden, stem)
    };
    format!("{stem}.{leaf}")
}

#[test]
fn single_files_say_the_same() {
    for (name, net) in [("sd1_controls", "plain"), ("sdxl_controls", "plain"), ("sdxl_union", "union")] {
        let made = Made::new(name);
        let request = Request { steps: Some(1), ..made.request("plain") };
        let drawn = |file: PathBuf| bits(&generate(&mut on(made.open(vec![file]).unwrap(), "cpu"), &request));
        let by_folder = drawn(made.at(net));
        let names: [&dyn Fn(&str) -> String; 3] = [&str::to_owned, &|name| original(&made.golden, name), &|name| {
            format!("control_model.{}", original(&made.golden, name))
        }];
        for rename in names {
            assert!(by_folder == drawn(renamed(&made, net, rename)), "{name}");
        }
    }
}

/// The ControlNet in `folder` as a GGUF of its own, beside it.
fn converted(folder: &Path, file_type: &str) -> PathBuf {
    let path = folder.with_extension(format!("{file_type}.gguf"));
    let alone = pipeline::alone(&Source::open(folder).unwrap()).unwrap().unwrap();
    let options = convert::Options {
        target: convert::Target::Component(alone.slot),
        ..convert::Options::from(file_type.parse::<FileType>().unwrap())
    };
    let plan = convert::plan(&alone.source, &alone.networks.networks(), options).unwrap();
    plan.write(&path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
    path
}
