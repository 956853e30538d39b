//! Plans are kept: what streams draws what stays, bit for bit, and a phase takes what was planned, byte for byte. On
//! `cpu:discrete`, which fills memory that is given back with NaN, so that a stale weight would show.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use pinhole::builtin;
use pinhole::convert::{self, WriteOptions};
use pinhole::error::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Generated, MemoryOptions, Request};
use pinhole::plan::{Component, Limits, Offload, Plan, Way, budget};
use pinhole::size::Size;
use pinhole::source::Source;
use pinhole::trace::{Exposure, Kind, Span, Trace};
use pinhole_quant::recipe::FileType;
use proptest::prelude::*;
use tempfile::TempDir;

fn pipeline(source: &Source, device: &str) -> Pipeline {
    let model = pinhole::pipeline::open(source).unwrap();
    let mut pipeline = Pipeline::with_threads(model, Device::by_name(device).unwrap(), 1, CancelFlag::new()).unwrap();
    // The text encoders are part of what is measured, for every picture.
    pipeline.set_remembered_bytes(0);
    pipeline
}

fn request(width: usize, height: usize) -> Request {
    Request {
        prompt: "a red circle".into(),
        width: Some(width),
        height: Some(height),
        steps: Some(2),
        batch: 1,
        ..Request::default()
    }
}

/// What `pipeline` draws within `vram` bytes, which must be what was planned.
fn draw(pipeline: &mut Pipeline, request: &Request, vram: Option<usize>, offload: Offload) -> Generated {
    pipeline.set_memory(MemoryOptions { vram, offload, host: None });
    let generated = pipeline.generate_watched(request, &mut |_: Event| Ok(())).unwrap();
    check(&generated, vram);
    generated
}

fn check(generated: &Generated, vram: Option<usize>) {
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
        assert!(vram.is_none_or(|vram| phase.measured.peak <= vram));
    }
    assert_eq!(generated.memory.peak, generated.plan.peak());
}

fn assert_same(a: &Generated, b: &Generated, what: &str) {
    let bits = |generated: &Generated| generated.latents.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(a) == bits(b), "{what}: other latents");
    assert!(a.images == b.images, "{what}: other pictures");
}

/// The budget that the refusal names.
fn least(pipeline: &mut Pipeline, request: &Request, offload: Offload) -> usize {
    pipeline.set_memory(MemoryOptions { vram: Some(1), offload, host: None });
    match pipeline.plan(request).unwrap_err() {
        Error::OverBudget { needed, given: 1, .. } => needed,
        other => panic!("{other}"),
    }
}

fn streamed(plan: &Plan) -> usize {
    plan.components.iter().map(|component| component.streamed()).sum()
}

/// Every component by itself in as little as works and `part` of `parts` of what all its weights would take more.
fn each_within(components: &[Component], part: usize, parts: usize) -> Plan {
    let mut plans = Vec::new();
    for component in components {
        let alone = std::slice::from_ref(component);
        let within = |bytes| budget::plan(alone, Offload::Auto, &Limits { bytes: Some(bytes), ..Limits::default() });
        let most = budget::plan(alone, Offload::Model, &Limits::default()).unwrap().peak();
        let least = within(1).unwrap_err().least;
        plans.push(within(least + (most - least) * part / parts).unwrap().components.remove(0));
    }
    Plan { components: plans, ..Plan::default() }
}

#[test]
fn streamed_equals_resident_in_every_format() {
    let dir = TempDir::new().unwrap();
    let mini = builtin::mini().unwrap();
    for file_type in FileType::all() {
        let path = dir.path().join(format!("{file_type}.gguf"));
        let model = pinhole::pipeline::open(&mini).unwrap();
        convert::plan(&model.source, &model.networks(), file_type)
            .unwrap()
            .write(&path, WriteOptions::default(), &mut |_| Ok(()))
            .unwrap();
        let source = Source::open(&path).unwrap();
        let mut pipeline = pipeline(&source, "cpu:discrete");
        let request = request(64, 48);
        let resident = draw(&mut pipeline, &request, None, Offload::None);
        assert!(resident.plan.all_resident && streamed(&resident.plan) == 0);

        let by_component = draw(&mut pipeline, &request, None, Offload::Model);
        assert_same(&resident, &by_component, "model");
        let sequential = draw(&mut pipeline, &request, None, Offload::Sequential);
        assert_same(&resident, &sequential, "sequential");

        // In one way: parts of an attention may end on other bits than the whole.
        let mut components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
        components.iter_mut().for_each(|component| component.variants.truncate(1));
        let mut counts = BTreeSet::new();
        for part in 0..=8 {
            let plan = each_within(&components, part, 8);
            let some = pipeline.generate_as(plan.clone(), &request, &mut |_: Event| Ok(())).unwrap();
            check(&some, None);
            assert_same(&resident, &some, &format!("{file_type}: {plan:?}"));
            counts.insert(streamed(&plan));
        }
        println!("{file_type}: stages that stream: {counts:?}");
        assert!(counts.contains(&0) && counts.len() >= 5, "{counts:?}");
        // In the least that works all stream; otherwise small ones stay.
        let (all, most) = (*counts.last().unwrap(), streamed(&sequential.plan));
        assert!(most < all && most > all * 3 / 4, "{most} of {all}");
    }
}

#[test]
fn streamed_equals_resident_where_activations_are_lean() {
    let mut pipeline = pipeline(&builtin::mini().unwrap(), "cpu:discrete");
    let request = request(128, 96);
    let mut components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
    components.iter_mut().for_each(|component| drop(component.variants.drain(..component.variants.len() - 1)));
    assert!(components.iter().filter(|component| component.variants[0].way != Way::Whole).count() == 2);
    let mut as_planned = |offload| {
        let plan = budget::plan(&components, offload, &Limits::default()).unwrap();
        let generated = pipeline.generate_as(plan, &request, &mut |_: Event| Ok(())).unwrap();
        check(&generated, None);
        generated
    };
    let resident = as_planned(Offload::None);
    assert_same(&resident, &as_planned(Offload::Model), "model");
    assert_same(&resident, &as_planned(Offload::Sequential), "sequential");
}

#[test]
fn the_card_draws_what_the_cpu_draws() {
    let mini = builtin::mini().unwrap();
    let request = Request { negative_prompt: Some("blue".into()), cfg_scale: Some(2.0), batch: 2, ..request(48, 64) };
    let cpu = draw(&mut pipeline(&mini, "cpu"), &request, None, Offload::Auto);
    assert!(cpu.mapped_bytes > 0);
    let mut card = pipeline(&mini, "cpu:discrete");
    let sequential = draw(&mut card, &request, None, Offload::Sequential);
    assert_eq!(sequential.mapped_bytes, 0);
    assert_same(&cpu, &sequential, "sequential");
    let moved: u64 = sequential.phases.iter().map(|phase| phase.moved).sum();
    let planned: usize = sequential.plan.components.iter().map(|component| component.moved()).sum();
    // The plan counts what alignment adds.
    assert!(moved <= planned as u64 && moved > planned as u64 * 9 / 10, "{moved} of {planned}");
}

#[test]
fn a_refusal_names_what_works() {
    let mut pipeline = pipeline(&builtin::mini().unwrap(), "cpu:discrete");
    let request = request(256, 256);
    for offload in Offload::ALL {
        let needed = least(&mut pipeline, &request, offload);
        let vram = needed - 1;
        pipeline.set_memory(MemoryOptions { vram: Some(vram), offload, host: None });
        let error = pipeline.generate_watched(&request, &mut |_: Event| panic!("nothing may begin")).unwrap_err();
        let hint = error.hint().unwrap().to_owned();
        println!("{error}\nhint: {hint}");
        let named = hint.split("--vram ").nth(1).unwrap().parse::<Size>().unwrap();
        let plan = |pipeline: &mut Pipeline, request: &Request, vram| {
            pipeline.set_memory(MemoryOptions { vram: Some(vram), offload, host: None });
            pipeline.plan(request)
        };
        assert!(plan(&mut pipeline, &request, named.0 as usize).unwrap().peak() <= named.0 as usize);
        assert!(plan(&mut pipeline, &request, needed).is_ok());
        if let Some(size) = hint.strip_prefix("try ").unwrap().split_once(", or ").map(|(size, _)| size) {
            let (width, height) = size.split_once('x').unwrap();
            let smaller = self::request(width.parse().unwrap(), height.parse().unwrap());
            assert!(plan(&mut pipeline, &smaller, vram).is_ok(), "{size}");
        }
    }
    draw(&mut pipeline, &request, None, Offload::Auto);
}

#[test]
fn weights_that_stay_serve_the_next_request() {
    let mut pipeline = pipeline(&builtin::mini().unwrap(), "cpu:discrete");
    let first = draw(&mut pipeline, &request(48, 48), None, Offload::None);
    let again = draw(&mut pipeline, &request(48, 48), None, Offload::None);
    assert_same(&first, &again, "second request");
    // Other sizes and other modes after it find an account that is as planned.
    draw(&mut pipeline, &request(96, 32), None, Offload::None);
    draw(&mut pipeline, &request(96, 32), None, Offload::Sequential);
    draw(&mut pipeline, &request(48, 48), None, Offload::None);
}

#[test]
fn a_request_that_ends_early_leaves_nothing_behind() {
    let mut pipeline = pipeline(&builtin::mini().unwrap(), "cpu:discrete@50M");
    pipeline.set_memory(MemoryOptions { vram: None, offload: Offload::Sequential, host: None });
    let request = request(48, 48);
    for stop_after in [0, 1, 5, 30] {
        let mut stages = 0;
        let ended = pipeline.generate_watched(&request, &mut |event: Event| {
            stages += usize::from(event == Event::Stage);
            if stages > stop_after { Err(Error::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(ended, Err(Error::Cancelled)));
        let threads = std::fs::read_dir("/proc/self/task").map(|tasks| {
            let name =
                |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.unwrap().path().join("comm"));
            tasks.filter_map(|task| name(task).ok()).filter(|name| name.trim() == "uploads").count()
        });
        // Other tests' uploads are not this one's; it is enough that its own do not pile up.
        println!("{threads:?} upload threads");
    }
    pipeline.set_memory(MemoryOptions { vram: None, offload: Offload::Sequential, host: None });
    check(&pipeline.generate_watched(&request, &mut |_: Event| Ok(())).unwrap(), None);
}

static MINI: LazyLock<Source> = LazyLock::new(|| builtin::mini().unwrap());

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]
    #[test]
    fn any_budget_is_kept_or_refused(
        (columns, rows) in (1usize..8, 1usize..8), steps in 1usize..3, cfg: bool, mode in 0usize..4, part in 0usize..1300
    ) {
        let mut pipeline = pipeline(&MINI, "cpu:discrete");
        let request = Request {
            steps: Some(steps),
            cfg_scale: cfg.then_some(2.0),
            ..request(16 * columns, 16 * rows)
        };
        let offload = Offload::ALL[mode];
        pipeline.set_memory(MemoryOptions { vram: None, offload: Offload::Model, host: None });
        let vram = pipeline.plan(&request).unwrap().peak() * part / 1000;
        pipeline.set_memory(MemoryOptions { vram: Some(vram), offload, host: None });
        match pipeline.generate_watched(&request, &mut |_: Event| Ok(())) {
            Ok(generated) => check(&generated, Some(vram)),
            Err(Error::OverBudget { needed, .. }) => {
                prop_assert!(needed > vram);
                draw(&mut pipeline, &request, Some(needed), offload);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

/// What happened while `pipeline` drew, with all but small stages streamed.
fn traced(pipeline: &mut Pipeline, request: &Request) -> Vec<Span> {
    let trace = Trace::new();
    let _inside = trace.enter();
    draw(pipeline, request, None, Offload::Sequential);
    trace.spans()
}

/// Those of `kind` in the order in which they began, each with how many of the same name came before.
fn numbered(spans: &[Span], kind: Kind) -> HashMap<(String, usize), Span> {
    let (mut counts, mut numbered) = (HashMap::new(), HashMap::new());
    for span in spans.iter().filter(|span| span.kind == kind) {
        let count = counts.entry(span.name.clone()).or_insert(0);
        numbered.insert((span.name.clone(), *count), span.clone());
        *count += 1;
    }
    numbered
}

#[test]
fn only_the_first_upload_of_a_step_is_waited_for() {
    // A machine that is busy may let any upload come late, and none come early: one run without is enough.
    const RUNS: usize = 8;
    let mut pipeline = pipeline(&builtin::mini().unwrap(), "cpu:discrete");
    let request = Request { max_sequence_length: Some(64), ..request(256, 256) };
    let mut exposed = Vec::new();
    for _ in 0..RUNS {
        let spans = traced(&mut pipeline, &request);
        let denoise = spans.iter().find(|span| span.kind == Kind::Phase && span.name == "denoise").unwrap();
        let within: Vec<Span> = spans.iter().filter(|span| span.start >= denoise.start).cloned().collect();
        let exposure = Exposure::of(&within);
        assert!(exposure.uploads >= 2 * 6, "{exposure:?}");
        // Whatever the machine does: nothing is computed before its weights are there.
        let (uploads, stages) = (numbered(&within, Kind::Upload), numbered(&within, Kind::Stage));
        for (run, upload) in &uploads {
            assert!(
                upload.bytes.unwrap() > 0 && stages.get(run).is_none_or(|stage| upload.end <= stage.start),
                "{run:?}"
            );
        }
        let avoidable: Vec<_> = exposure.avoidable().cloned().collect();
        if avoidable.is_empty() {
            return;
        }
        exposed.push(avoidable);
    }
    panic!("in every run, uploads were waited for that are not the first of their step: {exposed:?}");
}
