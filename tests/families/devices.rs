//! Several devices draw what one draws, to the bit, and each takes what was planned for it. On `cpu:discrete` devices of one thread each,
//! which fill memory that is given back with NaN.

use std::sync::Arc;

use crate::support::lora::{A_B, Module, RANK, numbers, write_lora};
use crate::support::{Golden, sd1};
use crate::{sd_controls, stable_diffusion, wan, wan_caches, z_image};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::{self, Additions, Event, Generated, MemoryOptions, Opened, Pipeline, Request};
use pinhole::plan::devices::Among;
use pinhole::plan::{ComponentPlan, Offload, Phase, Plan, TokenShare};
use pinhole::source::Source;
use pinhole::{Error, builtin};

const ONE: &str = "cpu:discrete";
const TWO: &str = "cpu:discrete0,cpu:discrete1";
const THREE: &str = "cpu:discrete,cpu:discrete1,cpu:discrete2";
const FOUR: &str = "cpu:discrete,cpu:discrete1,cpu:discrete2,cpu:discrete3";

fn devices(names: &str) -> Vec<Device> {
    names.split(',').map(|name| Device::by_name(name).unwrap()).collect()
}

fn on(model: &Arc<Opened>, names: &str) -> Pipeline {
    let devices = devices(names);
    let threads = devices.len();
    let mut pipeline = Pipeline::on_devices(Arc::clone(model), &devices, threads, CancelFlag::new()).unwrap();
    // The text encoders are part of what is measured, for every picture.
    pipeline.set_remembered_bytes(0);
    // Of small pictures a forecast may say this or that.
    pipeline.set_among(Among { tokens: false, ..Among::AUTO });
    pipeline
}

pub(crate) fn draw(pipeline: &mut Pipeline, request: &Request, offload: Offload) -> Generated {
    pipeline.set_memory(MemoryOptions { offload, ..MemoryOptions::default() });
    generate(pipeline, request)
}

pub(crate) fn generate(pipeline: &mut Pipeline, request: &Request) -> Generated {
    let generated = pipeline.generate(request).unwrap();
    for phase in &generated.phases {
        let (of, device) = (phase.phase, phase.device);
        assert_eq!(phase.measured.peak, phase.planned, "{of:?} on device {device}: {:?}", phase.measured);
    }
    for (at, held) in generated.devices.iter().enumerate() {
        assert_eq!(held.measured.peak, generated.plan.peak_on(at), "{}", held.device);
        assert!(held.limit.is_none_or(|limit| held.measured.peak <= limit), "{held:?}");
    }
    generated
}

pub(crate) fn assert_same(one: &Generated, other: &Generated, what: &str) {
    let bits = |generated: &Generated| generated.latents.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(one.computed, other.computed, "{what}: other steps");
    assert!(bits(one) == bits(other), "{what}: other latents");
    assert!(one.images == other.images, "{what}: other pictures");
}

const TOKENS: Among = Among { tokens: true, ..Among::NOTHING };

/// Draws on one device; and on several that have the tokens `among` them, in as many `parts` for each pass, with weights that stay and that
/// stream.
fn tokens_apart(name: &str, (model, request): (Arc<Opened>, Request), ways: &[(&str, Among, usize, Offload)]) {
    let expected = draw(&mut on(&model, ONE), &request, Offload::Sequential);
    for &(devices, among, parts, offload) in ways {
        let what = format!("{name} on {devices}, {}", offload.name());
        let mut pipeline = on(&model, devices);
        pipeline.set_among(among);
        let found = draw(&mut pipeline, &request, offload);
        assert_same(&expected, &found, &what);
        for (device, plan) in found.plan.devices().enumerate() {
            let denoisers = plan.components.iter().filter(|own| own.phase == Phase::Denoise);
            let mut least = 0;
            for own in denoisers {
                let share = TokenShare { number: device % parts, of: parts };
                assert_eq!(own.placement.share, share, "{what}, device {device}");
                assert_eq!(own.streamed() > 0, offload == Offload::Sequential, "{what}, device {device}");
                let computed =
                    found.computed.first().map_or(own.runs.steps, |steps| steps.iter().filter(|&&x| x).count());
                least += own.work.exchanged() * computed.min(own.runs.steps);
            }
            let of_device = found.phases.iter().filter(|phase| phase.device == device && phase.phase == Phase::Denoise);
            let exchanged: u64 = of_device.map(|phase| phase.exchanged).sum();
            assert!(exchanged > least as u64, "{what}, device {device}: {exchanged} of {least} bytes");
        }
    }
}

#[test]
fn flux_and_sdxl_have_their_tokens_on_several_devices() {
    let plain = Request { cfg_scale: Some(1.0), batch: 2, ..Request::new("a red heart") };
    let ways = [(TWO, TOKENS, 2, Offload::None), (FOUR, TOKENS, 4, Offload::Sequential)];
    tokens_apart("mini", mini(plain), &ways);
    // Passes of prompts of their own lengths, one after the other on all devices; and each on two devices.
    let guided = Request { cfg_scale: Some(2.0), ..Request::new("a red heart") };
    let both = Among { passes: true, ..TOKENS };
    let ways = [(THREE, TOKENS, 3, Offload::Sequential), (FOUR, both, 2, Offload::None)];
    tokens_apart("mini with guidance", mini(guided), &ways);
    let (golden, dir) = (Golden::load("sdxl"), tempfile::tempdir().unwrap());
    sd1::write_directory(dir.path(), &golden, golden.at("/scheduler"));
    let model = Arc::new(pipeline::open(&Source::open(dir.path()).unwrap()).unwrap());
    let request = Request { steps: Some(2), ..stable_diffusion::request(&golden, "without_cfg") };
    tokens_apart("sdxl", (model, request), &[(TWO, TOKENS, 2, Offload::Sequential)]);
}

#[test]
fn z_image_with_a_lora_has_its_tokens_on_several_devices() {
    let (golden, _dir, model) = z_image_with_a_lora();
    let request = Request { steps: Some(2), ..z_image::request(&golden, "base_batch") };
    let ways = [(TWO, TOKENS, 2, Offload::Sequential), (FOUR, Among { passes: true, ..TOKENS }, 2, Offload::None)];
    tokens_apart("z-image with a LoRA", (model, request), &ways);
}

#[test]
fn wan_has_its_tokens_on_several_devices() {
    let (golden, dir) = wan::directory("t2v_pair");
    let model = Arc::new(wan::open(dir.path()));
    let ways = [(TWO, TOKENS, 2, Offload::Sequential), (THREE, TOKENS, 3, Offload::Sequential)];
    tokens_apart("wan", (model, Request { steps: Some(3), ..wan::request(&golden, "pair") }), &ways);
    for key in ["first_block_pair", "taylorseer"] {
        let (dir, request) = wan_caches::written(key);
        let model = Arc::new(wan::open(&dir.path().join("wan")));
        tokens_apart(key, (model, request), &[(TWO, TOKENS, 2, Offload::Sequential)]);
    }
}

/// One part of the tokens may need less of a device than all of them, and less than there is.
#[test]
fn each_device_keeps_to_a_budget_of_its_own() {
    let (model, request) = mini(Request { cfg_scale: Some(1.0), ..Request::new("a red heart") });
    let expected = draw(&mut on(&model, ONE), &request, Offload::Auto);
    let mut pipeline = on(&model, TWO);
    pipeline.set_among(TOKENS);
    pipeline.set_memory(MemoryOptions::default());
    let whole = expected.plan.here("transformer").unwrap().parts;
    pipeline.set_budgets(&[None, Some(whole.total() - whole.others - whole.weights / 2)]).unwrap();
    let found = generate(&mut pipeline, &request);
    assert_same(&expected, &found, "budgets");
    let streamed = found.plan.devices().map(|plan| plan.here("transformer").map_or(0, ComponentPlan::streamed));
    let streamed: Vec<usize> = streamed.collect();
    assert!(streamed[0] == 0 && streamed[1] > 0, "{streamed:?}");
}

#[test]
fn tokens_are_divided_where_a_forecast_finds_that_quicker() {
    let (model, small) = mini(Request { cfg_scale: Some(1.0), ..Request::new("a red heart") });
    let request = Request { width: Some(512), height: Some(512), ..small };
    let parts = |names: &str, among| {
        let mut pipeline = on(&model, names);
        pipeline.set_among(among);
        let plan = pipeline.plan(&request).unwrap();
        plan.component("transformer").unwrap().placement.share.of
    };
    assert_eq!(parts(TWO, Among::AUTO), 2);
    let slow = "cpu:discrete@1M,cpu:discrete1@1M";
    assert_eq!([parts(slow, Among::AUTO), parts(slow, TOKENS), parts(TWO, Among::NOTHING)], [1, 2, 1]);
    // Passes come first, and leave none.
    let guided = Request { cfg_scale: Some(2.0), ..request.clone() };
    let mut pipeline = on(&model, TWO);
    pipeline.set_among(Among::AUTO);
    let plan = pipeline.plan(&guided).unwrap();
    assert_eq!(plan.component("transformer").unwrap().batch.turn.of, 2);
}

/// The names of the components of each device that run in `phase`.
pub(crate) fn of_phase(plan: &Plan, phase: Phase) -> Vec<Vec<&'static str>> {
    let mut names = Vec::new();
    for plan in plan.devices() {
        names.push(plan.components.iter().filter(|own| own.phase == phase).map(|own| own.name).collect());
    }
    names
}

pub(crate) fn mini(request: Request) -> (Arc<Opened>, Request) {
    let model = Arc::new(pipeline::open(&builtin::mini().unwrap()).unwrap());
    (model, Request { width: Some(64), height: Some(48), steps: Some(2), ..request })
}

/// Draws on one device, on two with weights that stay, and on four with weights that stream.
fn passes_apart(name: &str, (model, request): (Arc<Opened>, Request)) {
    let expected = draw(&mut on(&model, ONE), &request, Offload::Sequential);
    for (devices, offload) in [(TWO, Offload::None), (FOUR, Offload::Sequential)] {
        let what = format!("{name} on {devices}, {}", offload.name());
        let found = draw(&mut on(&model, devices), &request, offload);
        assert_same(&expected, &found, &what);
        let denoising = of_phase(&found.plan, Phase::Denoise);
        assert!(!denoising[0].is_empty() && denoising[0] == denoising[1], "{what}: {denoising:?}");
        assert!(denoising[2..].iter().all(Vec::is_empty), "{what}: {denoising:?}");
        for device in [0, 1] {
            let of_device = found.phases.iter().filter(|phase| phase.device == device);
            let moved = of_device.filter(|phase| phase.phase == Phase::Denoise).map(|phase| phase.moved).sum::<u64>();
            assert!(moved > 0, "{what}: nothing moved to device {device}");
        }
    }
}

#[test]
fn flux_and_sdxl_compute_their_passes_side_by_side() {
    let guided = Request { negative_prompt: Some("blue".into()), cfg_scale: Some(2.0), ..Request::new("a red heart") };
    passes_apart("mini", mini(Request { batch: 2, ..guided.clone() }));
    passes_apart("a prompt of its own length", mini(Request { negative_prompt: None, ..guided }));
    let (golden, dir) = (Golden::load("sdxl"), tempfile::tempdir().unwrap());
    sd1::write_directory(dir.path(), &golden, golden.at("/scheduler"));
    let model = Arc::new(pipeline::open(&Source::open(dir.path()).unwrap()).unwrap());
    passes_apart("sdxl", (model, Request { steps: Some(2), ..stable_diffusion::request(&golden, "batch") }));
}

#[test]
fn a_controlnet_is_beside_each_pass() {
    // Guessing, it runs in one of the passes alone.
    let (model, request) = sd_controls::opened("sdxl_controls", "guess");
    passes_apart("sdxl with a ControlNet", (model, Request { steps: Some(2), ..request }));
}

/// What a ControlNet adds is computed where the stages are that read it, and of the same tokens.
#[test]
fn a_controlnet_has_its_tokens_and_its_stages_on_several_devices() {
    let (model, request) = sd_controls::opened("sdxl_controls", "guess");
    let request = Request { steps: Some(2), ..request };
    let plain = Request { cfg_scale: Some(1.0), negative_prompt: None, control_guess: false, ..request.clone() };
    stages_apart("sdxl with a ControlNet", (Arc::clone(&model), plain), Offload::Auto, 0.8);
    tokens_apart("sdxl with a ControlNet", (model, request), &[(TWO, TOKENS, 2, Offload::Sequential)]);
}

#[test]
fn z_image_with_a_lora_computes_its_passes_side_by_side() {
    let (golden, _dir, model) = z_image_with_a_lora();
    let request = Request { steps: Some(2), ..z_image::request(&golden, "base_batch") };
    passes_apart("z-image with a LoRA", (model, request));
}

pub(crate) fn z_image_with_a_lora() -> (Golden, tempfile::TempDir, Arc<Opened>) {
    let (golden, dir) = z_image::model();
    let lora = write_lora(dir.path(), "lora", "diffusion_model.", vec![module()], A_B);
    let additions = Additions { loras: vec![(lora, 0.5)], ..Additions::default() };
    let model = pipeline::open_with(&Source::open(dir.path()).unwrap(), &additions).unwrap();
    assert_eq!(model.loras[0].warning(), None);
    (golden, dir, Arc::new(model))
}

/// A LoRA's part of one of the small Z-Image's layers.
fn module() -> Module {
    Module {
        name: "layers.1.attention.qkv".to_owned(),
        down: numbers(1, RANK * 384, 0.1),
        up: numbers(2, RANK * 1152, 0.1),
        inputs: 384,
        outputs: 1152,
    }
}

#[test]
fn wan_computes_its_passes_side_by_side() {
    let (golden, dir) = wan::directory("t2v_pair");
    let model = Arc::new(wan::open(dir.path()));
    passes_apart("wan", (model, Request { steps: Some(3), ..wan::request(&golden, "pair") }));
}

/// Each pass is decided by itself, wherever it is computed.
#[test]
fn step_caches_skip_what_they_skip_on_one_device() {
    for key in ["first_block_pair", "taylorseer_cfg"] {
        let (dir, request) = wan_caches::written(key);
        let model = Arc::new(wan::open(&dir.path().join("wan")));
        let expected = draw(&mut on(&model, ONE), &request, Offload::Sequential);
        assert!(expected.computed.iter().flatten().any(|computed| !computed), "{key}");
        let found = draw(&mut on(&model, TWO), &request, Offload::Sequential);
        assert_same(&expected, &found, key);
    }
}

/// What denoises has the first device, and what has no room there beside it goes to another.
#[test]
fn components_go_where_they_fit() {
    let (model, request) = mini(Request { cfg_scale: Some(1.0), ..Request::new("a red heart") });
    let expected = draw(&mut on(&model, ONE), &request, Offload::None);
    // All of it fits the first.
    let together = draw(&mut on(&model, TWO), &request, Offload::Auto);
    assert!(together.plan.all_resident && together.plan.others[0].components.is_empty());
    assert_same(&expected, &together, "together");
    let apart = draw(&mut on(&model, ONE), &request, Offload::Model);
    let phase = |phase| apart.plan.phase_peak(phase);
    // The denoiser and nothing else stays on the first.
    let first = phase(Phase::Denoise);
    let mut pipeline = on(&model, TWO);
    pipeline.set_memory(MemoryOptions::default());
    pipeline.set_budgets(&[Some(first), None]).unwrap();
    for _ in 0..2 {
        let found = generate(&mut pipeline, &request);
        assert_same(&expected, &found, "apart");
        assert!(found.plan.devices().all(|plan| plan.all_resident), "{:?}", found.plan);
        assert_eq!(of_phase(&found.plan, Phase::Denoise).concat().len(), 1);
        assert!(of_phase(&found.plan, Phase::Encode)[0].is_empty());
        assert_eq!(found.plan.limit, Some(first));
        let exchanged = |device| found.phases.iter().filter(|phase| phase.device == device).map(|p| p.exchanged).sum();
        let exchanged: [u64; 2] = [exchanged(0), exchanged(1)];
        assert!(exchanged.iter().all(|&bytes| bytes > 0), "{exchanged:?}");
    }
    // What a refusal names is planned, and kept to.
    let least = pipeline.least_budget(&request).unwrap();
    pipeline.set_budgets(&[Some(1), Some(1)]).unwrap();
    match pipeline.plan(&request).unwrap_err() {
        Error::OverBudget { needed, given, .. } => assert!(needed <= least && given == 1, "{needed} of {least}"),
        other => panic!("{other}"),
    }
    pipeline.set_budgets(&[Some(least), Some(least)]).unwrap();
    generate(&mut pipeline, &request);
}

#[test]
fn both_experts_stay_on_a_device_of_their_own() {
    let (golden, dir) = wan::directory("t2v_pair");
    let model = Arc::new(wan::open(dir.path()));
    let request = wan::request(&golden, "pair_plain");
    let expected = draw(&mut on(&model, ONE), &request, Offload::Auto);
    let found = draw(&mut on(&model, TWO), &request, Offload::Auto);
    assert_same(&expected, &found, "experts");
    let denoising = of_phase(&found.plan, Phase::Denoise);
    assert_eq!([denoising[0].len(), denoising[1].len()], [1, 1], "{denoising:?}");
    assert!(found.plan.devices().all(|plan| plan.all_resident) && !expected.plan.all_resident);
}

/// Draws with a denoiser that stays on two devices which have room for `part` of its weights each: each has some of its stages.
fn stages_apart(name: &str, (model, request): (Arc<Opened>, Request), offload: Offload, part: f64) -> Generated {
    let expected = draw(&mut on(&model, ONE), &request, Offload::Model);
    let whole = expected.plan.components.iter().find(|own| own.phase == Phase::Denoise).unwrap();
    let vram = whole.parts.total() - ((1.0 - part) * whole.parts.weights as f64) as usize;
    let mut pipeline = on(&model, TWO);
    pipeline.set_memory(MemoryOptions { vram: Some(vram), offload, host: None });
    let found = generate(&mut pipeline, &request);
    let shares: Vec<&ComponentPlan> = found.plan.shares(whole.name).into_iter().map(|(_, own)| own).collect();
    assert_eq!(shares.len(), 2, "{name}: {shares:?}");
    assert_eq!(shares.iter().map(|own| own.stages()).sum::<usize>(), whole.stages(), "{name}");
    for own in shares {
        // The way to compute is that of one device, or the bits would be others.
        assert_eq!((own.way, own.batch), (whole.way, whole.batch), "{name}");
    }
    let bits = |generated: &Generated| generated.latents.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(expected.computed, found.computed, "{name}: other steps");
    assert!(bits(&expected) == bits(&found), "{name}: other latents");
    found
}

/// How many stages of what denoises stream.
fn streamed(generated: &Generated) -> usize {
    let all = generated.plan.devices().flat_map(|plan| &plan.components);
    all.filter(|own| own.phase == Phase::Denoise).map(|own| own.streamed()).sum()
}

#[test]
fn stages_are_divided_where_no_device_has_room_for_all() {
    let plain = mini(Request { cfg_scale: Some(1.0), batch: 2, ..Request::new("a red heart") });
    // One of the devices alone is refused.
    let found = stages_apart("mini", plain.clone(), Offload::Model, 0.7);
    let mut one = on(&plain.0, ONE);
    one.set_memory(MemoryOptions { vram: found.plan.limit, offload: Offload::Model, host: None });
    assert!(matches!(one.plan(&plain.1), Err(Error::OverBudget { .. })));
    assert!(streamed(&stages_apart("mini, streamed", plain, Offload::Auto, 0.4)) > 0);
    let (golden, dir) = (Golden::load("sdxl"), tempfile::tempdir().unwrap());
    sd1::write_directory(dir.path(), &golden, golden.at("/scheduler"));
    let model = Arc::new(pipeline::open(&Source::open(dir.path()).unwrap()).unwrap());
    let request = Request { steps: Some(2), ..stable_diffusion::request(&golden, "without_cfg") };
    stages_apart("sdxl", (model, request), Offload::Auto, 0.8);
    let (golden, dir) = z_image::model();
    let model = Arc::new(pipeline::open(&Source::open(dir.path()).unwrap()).unwrap());
    let request = Request { steps: Some(2), ..z_image::request(&golden, "cut") };
    stages_apart("z-image", (model, request), Offload::Auto, 0.8);
    let (golden, dir) = wan::directory("t2v");
    let model = Arc::new(wan::open(dir.path()));
    stages_apart("wan", (model, wan::request(&golden, "cut")), Offload::Auto, 0.8);
    for key in ["teacache", "taylorseer"] {
        let (dir, request) = wan_caches::written(key);
        let model = Arc::new(wan::open(&dir.path().join("wan")));
        stages_apart(key, (model, request), Offload::Auto, 0.8);
    }
}

/// What two devices need is less than what one needs where each can have some of the stages, and a refusal names it.
#[test]
fn a_refusal_names_a_budget_for_which_stages_are_divided() {
    let (model, request) = mini(Request { cfg_scale: Some(1.0), ..Request::new("a red heart") });
    let within = |names: &str, vram| {
        let mut pipeline = on(&model, names);
        pipeline.set_memory(MemoryOptions { vram: Some(vram), offload: Offload::Model, host: None });
        pipeline
    };
    let [one, two] = [ONE, TWO].map(|names| match within(names, 1 << 10).plan(&request).unwrap_err() {
        Error::OverBudget { needed, given, hint, .. } => {
            assert!(given == 1 << 10 && hint.unwrap().contains("--vram"), "{names}");
            needed
        }
        other => panic!("{other}"),
    });
    assert!(two < one, "{two} bytes on each of two, {one} on one");
    let found = generate(&mut within(TWO, two), &request);
    assert_eq!(found.plan.shares("transformer").len(), 2, "{:?}", found.plan);
    assert!(within(TWO, two - two / 256).plan(&request).is_err());
}

/// Who listens can end what several devices do, and the next request finds them ready.
#[test]
fn a_listener_ends_what_all_devices_do() {
    let guided = Request { negative_prompt: Some("blue".into()), cfg_scale: Some(2.0), ..Request::new("a red heart") };
    let (model, request) = mini(guided);
    let mut pipeline = on(&model, TWO);
    for offload in [Offload::None, Offload::Sequential] {
        pipeline.set_memory(MemoryOptions { offload, ..MemoryOptions::default() });
        let mut stages = 0;
        let refused = pipeline.generate_watched(&request, &mut |event: Event| {
            stages += usize::from(matches!(event, Event::Stage));
            if stages < 40 { Ok(()) } else { Err(Error::Cancelled) }
        });
        assert!(matches!(refused, Err(Error::Cancelled)), "{:?}", refused.map(|generated| generated.timings));
        let expected = draw(&mut on(&model, ONE), &request, offload);
        assert_same(&expected, &draw(&mut pipeline, &request, offload), "afterwards");
    }
}

/// Wherever a device fails, the error names it and the request that follows is drawn: by all devices if it starts again, and by the
/// others if it does not.
#[test]
fn a_device_that_fails_is_named_and_the_next_request_is_drawn() {
    let guided = Request { negative_prompt: Some("blue".into()), cfg_scale: Some(2.0), ..Request::new("a red heart") };
    let (model, request) = mini(guided);
    let ways = [
        ("cpu:discrete,cpu:discrete1", "cpu:discrete1", Among { passes: true, ..Among::NOTHING }),
        ("cpu:discrete,cpu:discrete1", "cpu:discrete1", Among { tokens: true, ..Among::NOTHING }),
        ("cpu:discrete,cpu:discrete1", "cpu:discrete", Among { passes: true, ..Among::NOTHING }),
    ];
    let expected = draw(&mut on(&model, ONE), &request, Offload::None);
    for (names, failing, among) in ways {
        for (graph, for_good) in [(1, ""), (7, ""), (20, ""), (7, "!"), (20, "!")] {
            let told = format!("{failing}!{graph}{for_good}");
            let names: Vec<&str> = names.split(',').map(|name| if name == failing { &*told } else { name }).collect();
            let mut pipeline = on(&model, &names.join(","));
            pipeline.set_among(among);
            let error = pipeline.generate(&request).map(|_| ()).expect_err(&told);
            assert!(matches!(&error, Error::Device { device, .. } if device == failing), "{told}: {error:?}");
            let found = draw(&mut pipeline, &request, Offload::None);
            assert_same(&expected, &found, &told);
            let held: Vec<bool> = found.devices.iter().map(|device| device.measured.peak > 0).collect();
            let both = for_good.is_empty();
            assert_eq!(held, [both || failing == "cpu:discrete1", both || failing == "cpu:discrete"], "{told}");
        }
    }
    let mut alone = on(&model, "cpu:discrete!3!");
    for _ in 0..2 {
        let error = alone.generate(&request).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("cpu:discrete"), "{error}");
    }
    for name in ["cpu:discrete!0", "cpu:discrete!", "cpu:discrete!x", "cpu!1", "cpu:discrete1!2!3"] {
        assert!(Device::by_name(name).is_err(), "{name}");
    }
}

#[test]
fn devices_that_cannot_work_together_are_refused() {
    let (model, _) = mini(Request::new(""));
    let start = |devices: &[Device]| Pipeline::on_devices(Arc::clone(&model), devices, 2, CancelFlag::new());
    let refused = |devices: &[Device]| start(devices).map(|_| ()).unwrap_err().to_string();
    // Number 0 needs no number.
    let twice = refused(&devices("cpu:discrete,cpu:discrete0"));
    assert!(twice.contains("--device") && twice.contains("cpu:discrete twice"), "{twice}");
    assert!(refused(&[]).contains("--device"));
    let lengths = start(&devices(TWO)).unwrap().set_budgets(&[Some(1); 3]).unwrap_err().to_string();
    assert!(lengths.contains("--vram") && lengths.contains("3 sizes"), "{lengths}");
    for name in ["cpu:discrete16", "cpu:discrete01", "cpu:discretex", "cpu1"] {
        assert!(Device::by_name(name).is_err(), "{name}");
    }
    assert_eq!(Device::by_name("cpu:discrete3@1G").unwrap().name(), "cpu:discrete3");
}
