//! Transformers of random shapes, at random sizes, within random budgets: a plan is kept to the byte and draws what a device that
//! holds everything draws, or its refusal names a budget that works.

use crate::support::bundle;
use crate::support::denoiser::{self, Size};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::flux::{Config, Flux};
use pinhole::plan::Phase;
use pinhole::plan::measure::Subject;
use pinhole::plan::{Component, Limits, Offload, Plan, Runs, budget};
use pinhole::source::Part;
use pinhole::source::Source;
use pinhole::source::networks::flux as transformer;
use pinhole::source::slot::TRANSFORMER;
use pinhole::stage::Cadence;
use pinhole_quant::recipe::FileType;
use proptest::prelude::*;

const STEPS: usize = 2;
const RUNS: Runs = Runs::of_steps(STEPS);

fn configs() -> impl Strategy<Value = Config> {
    let axes = prop_oneof![Just(vec![8, 12, 12]), Just(vec![16, 24, 24])];
    let blocks = (0usize..4, 0usize..5).prop_filter("a model without blocks", |(double, single)| double + single > 0);
    (axes, blocks, 1usize..5, 1usize..4, any::<bool>()).prop_map(|(axes, (double, single), heads, width, guidance)| {
        Config {
            in_channels: 16 * width,
            num_layers: double,
            num_single_layers: single,
            attention_head_dim: axes.iter().sum(),
            num_attention_heads: heads,
            joint_attention_dim: 64 * width,
            pooled_projection_dim: 32 * heads,
            guidance_embeds: guidance,
            axes_dims_rope: axes,
            ..Config::default()
        }
    })
}

fn file_types() -> impl Strategy<Value = FileType> {
    prop::sample::select(FileType::all().collect::<Vec<_>>())
}

/// A transformer with random weights, by way of a bundle.
fn random(config: &Config, file_type: FileType) -> Part<Flux> {
    let flux = Flux::new(config).unwrap();
    let parts = [(&TRANSFORMER, vec![&flux.model], serde_json::to_string(config).unwrap())];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("random.gguf");
    bundle::filled(&path, &parts, file_type, bundle::numbers);
    transformer(Source::open(&path).unwrap().component(&TRANSFORMER).unwrap()).unwrap()
}

fn measured(part: &Part<Flux>, size: Size, backend: &Backend) -> Component {
    let (model, bound) = (&part.net.model, &part.bound);
    let subject = Subject { name: "transformer", phase: Phase::Denoise, model, bound, dims: size.dims(), runs: RUNS };
    subject.measure(backend).unwrap()
}

/// The bits of what it predicts in each step as `plan` says, and the most that was allocated.
fn computed(part: &Part<Flux>, size: Size, plan: &Plan, backend: &mut Backend) -> (Vec<u32>, usize) {
    let (net, ledger) = (&part.net, Ledger::new());
    let component = &plan.components[0];
    ledger.set_limit(plan.limit);
    let weights =
        DeviceWeights::place(&net.model, &part.bound, backend.device(), &ledger, &component.placement, RUNS).unwrap();
    let mut session = Session::in_way(component.way, &net.model, &weights, &size.dims(), backend, &ledger).unwrap();
    denoiser::set_request(&mut session, net, size).unwrap();
    session.run(backend, Cadence::Request, |_, _| Ok(())).unwrap();
    let mut bits = Vec::new();
    for step in 0..STEPS {
        session.set(net.ports.latents, &denoiser::latents(net, size, 3 + step as u64).unwrap()).unwrap();
        session.run(backend, Cadence::Step, |_, _| Ok(())).unwrap();
        let velocity = session.get(net.ports.velocity).unwrap();
        assert!(velocity.iter().all(|x| x.is_finite()));
        bits.extend(velocity.into_iter().map(f32::to_bits));
    }
    (bits, ledger.usage().peak)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_plan_is_kept_or_the_refusal_names_what_works(
        config in configs(),
        file_type in file_types(),
        (text, rows, columns) in (1usize..20, 1usize..7, 1usize..7),
        mode in 0usize..4,
        part in 0usize..1200,
    ) {
        let (random, size) = (random(&config, file_type), Size { columns, rows, text, reference: [0; 2] });
        let mut backend = Backend::new(Device::by_name("cpu:discrete").unwrap(), 2, CancelFlag::new()).unwrap();
        // In one way: parts of an attention may end on other bits than the whole.
        let mut component = measured(&random, size, &backend);
        component.variants.truncate(1);
        let within = |offload, bytes| {
            budget::plan(std::slice::from_ref(&component), offload, &Limits { bytes, ..Limits::default() })
        };
        let resident = within(Offload::Model, None).unwrap();
        let budget = resident.peak() * part / 1000;
        let offload = Offload::ALL[mode];
        let plan = within(offload, Some(budget)).or_else(|refusal| {
            assert!(refusal.least > budget);
            within(offload, Some(refusal.least))
        });
        let plan = plan.unwrap();
        let (found, peak) = computed(&random, size, &plan, &mut backend);
        prop_assert_eq!(peak, plan.peak());
        prop_assert!(plan.limit.is_some_and(|limit| peak <= limit));
        let (expected, peak) = computed(&random, size, &resident, &mut backend);
        prop_assert_eq!(peak, resident.peak());
        prop_assert!(found == expected, "{} of {:?}", file_type, plan);
    }
}
