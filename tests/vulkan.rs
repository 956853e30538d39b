//! The offload corpus on a Vulkan device. Mesa's software device will do: `.ci/vulkan` says what it needs.
//!
//! Pipelines are compiled at first use, many seconds each on a software device and a minute for convolutions, so it is the
//! denoiser of the miniature that runs here, at a few tokens, and formats are few.
#![cfg(feature = "vulkan")]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "vulkan/attention.rs"]
mod attention;
#[path = "vulkan/families.rs"]
mod families;
#[path = "vulkan/films.rs"]
mod films;
mod support;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ggml_sys::account::{self, Memory};
use pinhole::bind::{Bound, alias, lora};
use pinhole::builtin;
use pinhole::convert::{self, WriteOptions};
use pinhole::error::Error;
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, Buffer, CancelFlag, Device, Ledger};
use pinhole::image::View;
use pinhole::models::flux::Flux;
use pinhole::models::step_cache::{Cached, DecidedBy};
use pinhole::models::vision::{Family, Output};
use pinhole::pipeline::{BESIDE, FAMILIES};
use pinhole::plan::Phase;
use pinhole::plan::measure::Subject;
use pinhole::plan::{Component, Limits, Offload, Placement, Runs, budget};
use pinhole::sample::randn;
use pinhole::source::Source;
use pinhole::source::slot::{
    CONTROLNET, ID_PROJECTOR, IMAGE_EMBEDDER, IMAGE_ENCODER, IP_ADAPTER, TINY_VAE, TRANSFORMER,
};
use pinhole::source::{Part, Place, Slot, networks};
use pinhole::stage::{self, Cadence, Dims, Model, Port, Symbol};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use support::denoiser::{self, Size};
use support::sd1::{Tensor, write_tensors};
use support::{Golden, Layout};
use tempfile::TempDir;

const SMALL: Size = Size { columns: 3, rows: 2, text: 5, reference: [0; 2] };
const STEPS: usize = 3;
const RUNS: Runs = Runs::of_steps(STEPS);

/// Large enough that activations are converted into larger buffers than for [`SMALL`].
const LARGE: Size = Size { columns: 16, rows: 10, text: 32, reference: [0; 2] };

/// Budgets from the least that works to that for all weights.
const PARTS: usize = 6;

/// Tests share one device and one account of its memory.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device() -> Device {
    Device::by_name("vulkan0").expect("a Vulkan device; for Mesa's software device set GGML_VK_VISIBLE_DEVICES=0")
}

/// The miniature in `file_type`.
fn converted(dir: &Path, file_type: &str) -> Source {
    let mini = builtin::mini().unwrap();
    let model = pinhole::pipeline::open(&mini).unwrap();
    let path = dir.join(format!("{file_type}.gguf"));
    let file_type: FileType = file_type.parse().unwrap();
    let planned = convert::plan(&model.source, &model.networks(), file_type).unwrap();
    planned.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
    Source::open(&path).unwrap()
}

/// The denoiser of a model on a device.
struct Denoiser {
    size: Size,
    transformer: Part<Flux>,
    /// The same with a step cache, where every second step is skipped.
    cached: Option<Cached>,
    backend: Backend,
    ledger: Ledger,
}

/// What runs of `transformer`.
fn model_of<'a>(transformer: &'a Part<Flux>, cached: &'a Option<Cached>) -> &'a Model {
    cached.as_ref().map_or(&transformer.net.model, |cached| &cached.model)
}

/// Computes a step, or what is not skipped of one.
fn step(session: &mut Session<'_>, backend: &mut Backend, cached: &Option<Cached>, skipped: bool) -> Result<(), Error> {
    let Some(Cached { ports, .. }) = cached else { return session.run(backend, Cadence::Step, |_, _| Ok(())) };
    session.run_part(backend, stage::Part::Lead, |_, _| Ok(()))?;
    let probe = session.get(ports.probe.unwrap())?;
    assert!(probe.iter().all(|x| x.is_finite()) && probe.iter().any(|&x| x != 0.0));
    if skipped {
        return session.run_part(backend, stage::Part::Shortcut, |_, _| Ok(()));
    }
    session.set(ports.computed, &vec![1.0; ports.width])?;
    session.run_part(backend, stage::Part::Rest, |_, _| Ok(()))
}

impl Denoiser {
    fn new(source: &Source, device: Device) -> Denoiser {
        Denoiser::of(networks::flux(source.component(&TRANSFORMER).unwrap()).unwrap(), device)
    }

    fn of(transformer: Part<Flux>, device: Device) -> Denoiser {
        let backend = Backend::new(device, 2, CancelFlag::new()).unwrap();
        Denoiser { size: SMALL, transformer, cached: None, backend, ledger: Ledger::new() }
    }

    fn component(&self) -> Component {
        let transformer = &self.transformer;
        let subject = Subject {
            name: "transformer",
            phase: Phase::Denoise,
            model: model_of(transformer, &self.cached),
            bound: &transformer.bound,
            dims: self.size.dims(),
            runs: RUNS,
        };
        subject.measure(&self.backend).unwrap()
    }

    /// Where its weights go; with `part` of [`PARTS`] between the least that works and all.
    fn placement(&self, part: usize) -> Placement {
        let component = [self.component()];
        let within =
            |bytes| budget::plan(&component, Offload::Auto, &Limits { bytes: Some(bytes), ..Limits::default() });
        let all = budget::plan(&component, Offload::Model, &Limits::default()).unwrap();
        if part == PARTS {
            return all.components.into_iter().next().unwrap().placement;
        }
        let most = all.peak();
        let least = within(1).unwrap_err().least;
        within(least + (most - least) * part / PARTS).unwrap().components.remove(0).placement
    }

    /// What it predicts in each of a few steps, each from the one before.
    fn run(&mut self, placement: &Placement) -> Result<Vec<f32>, Error> {
        let begun = Instant::now();
        self.backend.recover()?;
        let transformer = &self.transformer;
        let (net, model) = (&transformer.net, model_of(transformer, &self.cached));
        let weights =
            DeviceWeights::place(model, &transformer.bound, self.backend.device(), &self.ledger, placement, RUNS)?;
        let mut session = Session::new(model, &weights, &self.size.dims(), &self.backend, &self.ledger)?;
        denoiser::set_request(&mut session, net, self.size)?;
        if let Some(cached) = &self.cached {
            session.clear(cached.ports.residual)?;
        }
        session.run(&mut self.backend, Cadence::Request, |_, _| Ok(()))?;
        let (mut latents, mut all) = (denoiser::latents(net, self.size, 3)?, Vec::new());
        for i in 0..STEPS {
            session.set(net.ports.latents, &latents)?;
            step(&mut session, &mut self.backend, &self.cached, i % 2 == 1)?;
            let velocity = session.get(net.ports.velocity)?;
            latents.iter_mut().zip(&velocity).for_each(|(x, v)| *x -= 0.3 * v);
            all.extend(velocity);
        }
        let streamed = placement.slot_of.iter().flatten().count();
        println!("{streamed} stages streamed, {} bytes moved: {:.1?}", weights.moved_bytes(), begun.elapsed());
        Ok(all)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Whether all cases run, as `PINHOLE_EVERY_TYPE=1` asks for; else some of each kind: a software device has to compile every shader that
/// is new to it, which can take minutes.
fn every_type() -> bool {
    std::env::var_os("PINHOLE_EVERY_TYPE").is_some()
}

/// All types, or one of each kind of kernel.
fn types() -> Vec<&'static str> {
    match every_type() {
        true => FileType::all().map(FileType::name).collect(),
        false => vec!["q8_0", "q4_k_s", "bf16"],
    }
}

#[test]
fn streamed_equals_resident() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    for file_type in types() {
        let mut denoiser = Denoiser::new(&converted(dir.path(), file_type), device());
        let resident = denoiser.placement(PARTS);
        assert!(resident.slot_of.iter().all(Option::is_none));
        let expected = denoiser.run(&resident).unwrap();
        assert!(expected.iter().all(|x| x.is_finite()));
        let mut streamed = Vec::new();
        // From none that stay on, and then the first again: with everything warm, an order that was right by chance shows. Placements
        // are the same in all types, so one of them goes through all.
        let parts = if file_type == "q8_0" || every_type() { (0..PARTS).collect() } else { vec![0, PARTS - 1] };
        for part in parts.into_iter().chain([0]) {
            let placement = denoiser.placement(part);
            streamed.push(placement.slot_of.iter().flatten().count());
            let found = denoiser.run(&placement).unwrap();
            assert!(bits(&found) == bits(&expected), "{file_type} within {part} of {PARTS}");
        }
        println!("{file_type}: of {} stages, streamed {streamed:?}", resident.slot_of.len());
        let [first, .., last, again] = streamed[..] else { panic!("{streamed:?}") };
        assert!(first > last && first == again);
    }
}

#[test]
fn streamed_equals_resident_where_steps_are_skipped() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let source = converted(dir.path(), "q4_k_s");
    let run = |decided: Option<DecidedBy>, part| {
        let mut denoiser = Denoiser::new(&source, device());
        denoiser.cached = decided.map(|by| denoiser.transformer.net.cached(by).unwrap());
        let placement = denoiser.placement(part);
        bits(&denoiser.run(&placement).unwrap())
    };
    let whole = run(None, PARTS);
    for decided in [DecidedBy::FirstBlock, DecidedBy::Input] {
        let resident = run(Some(decided), PARTS);
        assert!(resident != whole, "{decided:?}: nothing was skipped");
        assert!(run(Some(decided), 0) == resident, "{decided:?}");
    }
}

/// With weights in F32, which both compute with, the device differs by rounding activations to F16 in front of products: by a
/// relative 2^-11 at most each, 8e-8 in the mean square. Some 40 products follow one another in a step, with independent
/// errors that add up as squares. 9.4e-7 was seen at most, of all families, and 1.4e-7 after three steps of FLUX.1's.
const NMSE_OF_A_STEP: f64 = 3e-6;

#[test]
fn the_device_computes_what_the_cpu_computes() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let source = converted(dir.path(), "f32");
    let run = |device: Device| {
        let mut denoiser = Denoiser::new(&source, device);
        let placement = denoiser.placement(if device.is_cpu() { PARTS } else { 0 });
        denoiser.run(&placement).unwrap()
    };
    let (cpu, vulkan) = (run(Device::cpu().unwrap()), run(device()));
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = cpu.iter().zip(&vulkan).map(|(a, b)| square(a - b)).sum();
    let nmse = error / cpu.iter().map(|&x| square(x)).sum::<f64>();
    println!("nmse {nmse:.1e}");
    assert!(nmse < NMSE_OF_A_STEP, "{nmse:.1e}");
    assert!(nmse > 0.0, "the same device computed both");
}

/// A network that makes one array of another.
struct Function<'a> {
    model: &'a Model,
    bound: &'a Bound,
    dims: Dims,
    input: (Port, Vec<f32>),
    output: Port,
}

impl Function<'_> {
    /// Its output on `device`.
    fn on(&self, device: Device) -> Vec<f32> {
        let Function { model, bound, dims, input: (port, values), output } = self;
        let (mut backend, ledger) = (Backend::new(device, 2, CancelFlag::new()).unwrap(), Ledger::new());
        let runs = Runs::of_request(1);
        let subject = Subject { name: "function", phase: Phase::Encode, model, bound, dims: dims.clone(), runs };
        let plan = budget::plan(&[subject.measure(&backend).unwrap()], Offload::Model, &Limits::default()).unwrap();
        let placement = &plan.components[0].placement;
        let weights = DeviceWeights::place(model, bound, device, &ledger, placement, runs).unwrap();
        let mut session = Session::new(model, &weights, dims, &backend, &ledger).unwrap();
        session.set(*port, values).unwrap();
        session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
        session.get(*output).unwrap()
    }

    /// Holds the device's output to the CPU's.
    fn is_the_same_on_both(&self, name: &str) {
        let (cpu, vulkan) = (self.on(Device::cpu().unwrap()), self.on(device()));
        let nmse = metrics::nmse(&cpu, &vulkan).unwrap();
        println!("{name}: nmse {nmse:.1e}");
        assert!(nmse < NMSE_OF_A_STEP, "{name}: {nmse:.1e}");
        assert!(nmse > 0.0, "{name}: the same device computed both");
    }
}

#[test]
fn a_vision_tower_sees_what_it_sees_on_the_cpu() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    support::write_component(dir.path(), &Golden::load("redux"), "image_encoder", &Layout::default());
    let component = pinhole::source::Component::open(dir.path(), &IMAGE_ENCODER).unwrap();
    for output in [Output::LAST, Output::Pooled { projected: false }] {
        let Part { net, bound, .. } = networks::vision(&component, Family::Siglip, output).unwrap();
        let config = net.config();
        let view = View::siglip(config.image_size, config.patch_size);
        let picture = support::given::picture(config.image_size, config.image_size);
        let input = (net.pixels, picture.image().patches(&view).unwrap());
        let tower = Function { model: &net.model, bound: &bound, dims: Dims::new(), input, output: net.result };
        tower.is_the_same_on_both(&format!("{output:?}"));
    }
}

/// What makes tokens of a face, in a file of its own.
static PROJECTOR: Place =
    Place::given(&ID_PROJECTOR, &alias::RESAMPLER, |component| Ok(Box::new(networks::resampler(component)?.0)));

/// What pictures and faces become in the prompt, and a picture from a tiny autoencoder.
#[test]
fn small_networks_compute_what_they_compute_on_the_cpu() {
    let _alone = alone();
    let folder = |golden: &str, component: &str, slot: &'static Slot| {
        let dir = TempDir::new().unwrap();
        support::write_component(dir.path(), &Golden::load(golden), component, &Layout::default());
        let component = pinhole::source::Component::open(dir.path(), slot).unwrap();
        (dir, component)
    };

    let (_redux, component) = folder("redux", "image_embedder", &IMAGE_EMBEDDER);
    let Part { net, bound, .. } = networks::redux(&component).unwrap();
    let tokens = 7;
    let input = (net.seen, randn(1, tokens * net.config().redux_dim).unwrap());
    let dims = Dims::new().with(Symbol::IMAGE_TOKENS, tokens);
    Function { model: &net.model, bound: &bound, dims, input, output: net.tokens }.is_the_same_on_both("Redux");

    let dir = TempDir::new().unwrap();
    let path = dir.path().join("projector.safetensors");
    let mut tensors = Vec::new();
    for weight in support::synth::weights(&Golden::load("infinite_you"), "projector") {
        let (name, values) = (format!("image_proj.{}", weight.name), weight.values());
        tensors.push(Tensor { name, shape: weight.shape.clone(), values });
    }
    write_tensors(&path, &tensors);
    let (part, config) = networks::resampler(&Source::lone(&path, &PROJECTOR).unwrap()).unwrap();
    let Part { net, bound, .. } = part;
    let input = (net.seen, randn(2, config.embedding_dim).unwrap());
    let dims = Dims::new().with(Symbol::IMAGE_TOKENS, 1);
    Function { model: &net.model, bound: &bound, dims, input, output: net.tokens }.is_the_same_on_both("a face");

    let (_tiny, component) = folder("tiny_vae", "tiny_vae of flux_control", &TINY_VAE);
    let tiny = networks::autoencoder_tiny(&component).unwrap();
    let Part { net, bound, .. } = tiny.decoder;
    let (w, h) = (5, 3);
    let input = (net.latents, randn(3, w * h * tiny.config.latent_channels).unwrap());
    let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
    let decoder = Function { model: &net.model, bound: &bound, dims, input, output: net.picture };
    decoder.is_the_same_on_both("a tiny autoencoder");
}

/// The first place of a family that is `slot`.
fn place_of(slot: &Slot) -> &'static Place {
    let mut places = FAMILIES.iter().flat_map(|family| family.places.iter().chain(family.beside));
    places.find(|place| place.slot == slot).unwrap()
}

/// What runs beside a transformer of FLUX.1, or makes another of it.
#[derive(Clone, Copy, Debug)]
enum Beside {
    /// A ControlNet that has modes.
    Control,
    /// InfiniteYou's.
    Face,
    Ip,
    Lora,
    Fill,
    /// A picture that it looks at.
    Kontext,
}

impl Beside {
    /// The golden whose transformer it is beside.
    fn golden(self) -> Golden {
        Golden::load(match self {
            Beside::Control => "flux_controls",
            Beside::Fill => "flux_fill",
            Beside::Kontext => "flux_kontext",
            Beside::Face | Beside::Ip | Beside::Lora => "dev",
        })
    }

    /// The transformer with it, as files in `dir`.
    fn transformer(self, dir: &Path) -> Part<Flux> {
        let write = |golden: &Golden, component: &str| {
            support::write_component(&dir.join(component), golden, component, &Layout::default());
        };
        let at = |slot: &Slot, folder: &str| Source::lone(&dir.join(folder), place_of(slot)).unwrap();
        write(&self.golden(), "transformer");
        let mut transformer = networks::flux(&at(&TRANSFORMER, "transformer")).unwrap();
        match self {
            Beside::Fill | Beside::Kontext => transformer,
            Beside::Control => {
                write(&self.golden(), "union");
                let control = networks::flux_control(&at(&CONTROLNET, "union")).unwrap();
                networks::flux_with(transformer, &[control], None).unwrap()
            }
            Beside::Face => {
                write(&Golden::load("infinite_you"), "controlnet");
                let mut control = networks::flux_control(&at(&CONTROLNET, "controlnet")).unwrap();
                control.net.read_face();
                networks::flux_with(transformer, &[control], None).unwrap()
            }
            Beside::Ip => {
                write(&Golden::load("ip_adapter_instantx"), "ip_adapter");
                let file = dir.join("ip_adapter").join("ip_adapter.safetensors");
                let place = BESIDE.iter().find(|place| *place.slot == IP_ADAPTER).unwrap();
                let component = pinhole::source::beside(&file, place).unwrap();
                let adapter = networks::flux_ip(&component, transformer.net.config()).unwrap();
                networks::flux_with(transformer, &[], Some(&adapter)).unwrap()
            }
            Beside::Lora => {
                let (golden, set) = (Golden::load("lora"), "xlabs");
                let file = golden.at(&format!("/sets/{set}")).as_object().unwrap().keys().next().unwrap().clone();
                let (tensors, metadata) = support::lora::file(&golden, set, &file);
                let path = support::lora::write(dir, &file, &tensors, metadata);
                lora::add(&path, 0.8, &mut [transformer.target()]).unwrap();
                transformer
            }
        }
    }
}

/// With what goes beside it, a transformer on the device is what it is on the CPU, and streamed what it is if it stays.
#[test]
fn what_goes_beside_the_transformer_runs_there() {
    let _alone = alone();
    let all = [Beside::Control, Beside::Ip, Beside::Face, Beside::Lora, Beside::Fill, Beside::Kontext];
    for beside in all.into_iter().take(if every_type() { 6 } else { 2 }) {
        let dir = TempDir::new().unwrap();
        let reference = if matches!(beside, Beside::Kontext) { [1, 4] } else { [0; 2] };
        let run = |device: Device, part: usize| {
            let mut denoiser = Denoiser::of(beside.transformer(dir.path()), device);
            denoiser.size = Size { reference, ..SMALL };
            let placement = denoiser.placement(part);
            denoiser.run(&placement).unwrap()
        };
        let (cpu, resident) = (run(Device::cpu().unwrap(), PARTS), run(device(), PARTS));
        assert!(bits(&run(device(), 0)) == bits(&resident), "{beside:?}");
        let nmse = metrics::nmse(&cpu, &resident).unwrap();
        println!("{beside:?}: nmse {nmse:.1e}");
        assert!(nmse < NMSE_OF_A_STEP, "{beside:?}: {nmse:.1e}");
    }
}

#[test]
fn more_than_the_device_has_is_an_error() {
    let _alone = alone();
    let device = device();
    let (_, total) = device.memory().unwrap();
    let ledger = Ledger::new();
    for bytes in [total + (1 << 20), 1 << 60] {
        let error = Buffer::allocate(device, bytes, &ledger, "weights").map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { bytes: asked, .. } if asked == bytes), "{error:?}");
    }
    assert_eq!(ledger.usage().total, 0);
    Buffer::allocate(device, 1 << 20, &ledger, "weights").unwrap();
}

/// Ends the refusals however the test ends.
struct Refusals;

impl Drop for Refusals {
    fn drop(&mut self) {
        account::allow_allocations(Memory::Device);
    }
}

#[test]
fn a_device_that_fills_up_is_an_error_and_the_next_run_works() {
    let _alone = alone();
    let mini = builtin::mini().unwrap();
    let mut denoiser = Denoiser::new(&mini, device());
    let placement = denoiser.placement(0);
    let expected = bits(&denoiser.run(&placement).unwrap());
    let mut failures = Vec::new();
    for after in 0.. {
        // A new backend, whose own buffers are not there yet.
        let mut denoiser = Denoiser::new(&mini, device());
        let refusals = Refusals;
        account::refuse_allocations(Memory::Device, after);
        let ran = denoiser.run(&placement);
        drop(refusals);
        match ran {
            Err(Error::OutOfMemory { what, bytes, .. }) => {
                println!("after {after} allocations: {bytes} bytes for {what}");
                failures.push(what);
            }
            Err(error) => panic!("after {after} allocations: {error:?}"),
            Ok(found) => {
                assert!(bits(&found) == expected, "with all it needs");
                break;
            }
        }
        assert!(bits(&denoiser.run(&placement).unwrap()) == expected, "after failure {after}");
        assert!(after < 100);
    }
    // Slots, ports and activations are pinhole's own; what the backend takes while it computes is not.
    assert!(failures.iter().any(|what| what.contains("slots")), "{failures:?}");
    assert!(failures.iter().any(|what| what.contains("work space")), "{failures:?}");
}

#[test]
fn what_backends_allocate_is_counted() {
    let _alone = alone();
    let ledger = Ledger::new();
    let before = account::read(Memory::Device);
    let buffer = Buffer::allocate(device(), 3 << 20, &ledger, "weights").unwrap();
    let held = account::read(Memory::Device).now - before.now;
    // Drivers round up to pages.
    assert!((3 << 20..(3 << 20) + (64 << 10)).contains(&held), "{held}");
    account::reset_peak(Memory::Device);
    drop(buffer);
    let after = account::read(Memory::Device);
    assert_eq!((after.now, after.peak), (before.now, before.now + held));
}

/// What allocations are rounded up to in plans, for each of the four buffers that the backend keeps.
const GRANULARITY: usize = 4 * (64 << 10);

#[test]
fn the_plan_bounds_what_the_backend_allocates() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    // The larger picture takes a minute on a software device.
    let sizes = if every_type() { &[SMALL, LARGE][..] } else { &[SMALL] };
    for file_type in ["q8_0", "q4_k_s", "f16", "bf16"] {
        let source = converted(dir.path(), file_type);
        for &size in sizes {
            let mut denoiser = Denoiser::new(&source, device());
            denoiser.size = size;
            let plan = budget::plan(&[denoiser.component()], Offload::Model, &Limits::default()).unwrap();
            let component = &plan.components[0];
            let before = account::read(Memory::Device).now;
            account::reset_peak(Memory::Device);
            denoiser.run(&component.placement).unwrap();
            let allocated = account::read(Memory::Device).peak - before;
            let planned = plan.peak() + device().overhead().unwrap();
            assert_eq!(denoiser.ledger.usage().peak, plan.peak());
            // What goes with the backend is what it kept.
            let held = account::read(Memory::Device).now;
            drop(denoiser);
            let (taken, scratch) = (held - account::read(Memory::Device).now, component.parts.scratch);
            println!("{file_type} {size:?}: {allocated} of {planned}; scratch {taken} of {scratch}");
            assert!(allocated <= planned, "{file_type} {size:?}: {allocated} allocated, {planned} planned");
            assert!(taken <= scratch, "{file_type} {size:?}: {taken} taken, {scratch} planned");
            // A bound, and not any: within twice what was taken.
            assert!(scratch <= 2 * taken + GRANULARITY, "{file_type} {size:?}: {taken} taken, {scratch} planned");
        }
    }
}

#[test]
fn what_a_backend_keeps_is_given_back_for_a_smaller_request() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    // In this format activations are converted into a buffer of the backend's on every device.
    let mut denoiser = Denoiser::new(&converted(dir.path(), "bf16"), device());
    let placement = denoiser.placement(PARTS);
    let mut held = |size| {
        denoiser.size = size;
        let plan = budget::plan(&[denoiser.component()], Offload::Model, &Limits::default()).unwrap();
        let before = account::read(Memory::Device).now;
        account::reset_peak(Memory::Device);
        let found = bits(&denoiser.run(&placement).unwrap());
        let (allocated, planned) =
            (account::read(Memory::Device).peak - before, plan.peak() + device().overhead().unwrap());
        assert!(allocated <= planned, "{size:?}: {allocated} allocated, {planned} planned");
        (account::read(Memory::Device).now, found)
    };
    let (_, expected) = held(SMALL);
    let ((large, _), (small, found)) = (held(LARGE), held(SMALL));
    println!("kept after the larger picture: {large}, after the smaller: {small}");
    assert!(small < large);
    assert!(found == expected);
}
