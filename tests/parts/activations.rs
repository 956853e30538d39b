//! Less memory for what is computed on the way, and the same results: pictures in strips, tokens in parts.

use std::path::Path;
use std::sync::LazyLock;

use crate::support::bundle;
use pinhole::bind::Bound;
use pinhole::builtin;
use pinhole::convert::{self, WriteOptions};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::autoencoder_kl::{self, Decoder, Encoder};
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Generated, Request};
use pinhole::plan::{Component, Limits, Offload, Way, budget};
use pinhole::sample::randn;
use pinhole::size::Size;
use pinhole::source::Source;
use pinhole::source::networks::{AutoencoderKl, autoencoder_kl as autoencoder};
use pinhole::source::slot::VAE;
use pinhole::stage::{Cadence, Dims, Model, Port, Symbol};
use pinhole::synthetic::{self, Architecture};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use proptest::prelude::*;

const THREADS: usize = 2;

/// Strips are held to the whole to this, in units of the largest number.
const MOST_ERROR: f32 = 1e-5;

/// What `model` gives in `output` for random numbers in `input`, computed that `way`, and its peak on the device.
fn computed(
    (model, bound): (&Model, &Bound),
    dims: &Dims,
    way: Way,
    (input, output): (Port, Port),
) -> (Vec<f32>, usize) {
    let device = Device::by_name("cpu:discrete").unwrap();
    let (mut backend, ledger) = (Backend::new(device, THREADS, CancelFlag::new()).unwrap(), Ledger::new());
    let weights = DeviceWeights::load(model, bound, device, &ledger).unwrap();
    let mut session = Session::in_way(way, model, &weights, dims, &backend, &ledger).unwrap();
    let numbers = model.ports()[input.index()].shape(dims).unwrap().elements();
    let mut first = Vec::new();
    // Twice: nothing of a picture may be left when the next begins.
    for _ in 0..2 {
        session.set(input, &randn(5, numbers).unwrap()).unwrap();
        session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
        let output = session.get(output).unwrap();
        assert!(first.is_empty() || first == output);
        first = output;
    }
    (first, ledger.usage().peak)
}

#[track_caller]
fn assert_close(what: &str, whole: &[f32], found: &[f32]) {
    assert_eq!(whole.len(), found.len(), "{what}");
    let largest = whole.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let error = whole.iter().zip(found).fold(0f32, |error, (a, b)| error.max((a - b).abs()));
    println!("{what}: {:.1e}", error / largest);
    assert!(largest.is_finite() && error <= MOST_ERROR * largest, "{what}: {error:e} of {largest:e}");
}

fn latents(width: usize, height: usize, batch: usize) -> Dims {
    Dims::new().with(Symbol::LATENT_WIDTH, width).with(Symbol::LATENT_HEIGHT, height).with(Symbol::BATCH, batch)
}

/// The miniature's autoencoder, in half precision as bundles have it, and in single.
static MINI: LazyLock<[AutoencoderKl; 2]> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    [builtin::mini().unwrap(), mini_f32(&directory.path().join("f32.gguf"))]
        .map(|source| autoencoder(source.component(&VAE).unwrap()).unwrap())
});

/// The miniature as a bundle in single precision.
fn mini_f32(path: &Path) -> Source {
    let mini = builtin::mini().unwrap();
    let model = pinhole::pipeline::open(&mini).unwrap();
    let plan = convert::plan(&model.source, &model.networks(), FileType::F32).unwrap();
    plan.write(path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
    Source::open(path).unwrap()
}

/// As wide as real ones, but with two levels and random weights.
fn wide() -> AutoencoderKl {
    let config = autoencoder_kl::Config {
        block_out_channels: vec![64, 256],
        layers_per_block: 1,
        latent_channels: 4,
        norm_num_groups: 32,
        mid_block_add_attention: true,
        down_block_types: vec!["DownEncoderBlock2D".into(); 2],
        up_block_types: vec!["UpDecoderBlock2D".into(); 2],
        ..autoencoder_kl::Config::default()
    };
    let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
    let parts = [(&VAE, vec![&decoder.model, &encoder.model], serde_json::to_string(&config).unwrap())];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wide.gguf");
    bundle::filled(&path, &parts, FileType::F32, bundle::numbers);
    autoencoder(Source::open(&path).unwrap().component(&VAE).unwrap()).unwrap()
}

#[test]
fn strips_of_a_wide_autoencoder_equal_the_whole() {
    let AutoencoderKl { decoder, encoder, .. } = wide();
    let encoder = encoder.unwrap();
    // The widest rows take 28 KiB: one row, two, ten and all of 20 and 24.
    let sizes = [24 << 10, 90 << 10, 280 << 10, 64 << 20];
    for dims in [latents(10, 8, 1), latents(5, 9, 2)] {
        for (part, ports) in [
            ((&decoder.net.model, &decoder.bound), (decoder.net.latents, decoder.net.picture)),
            ((&encoder.net.model, &encoder.bound), (encoder.net.picture, encoder.net.moments)),
        ] {
            let (whole, whole_peak) = computed(part, &dims, Way::Whole, ports);
            let mut last = usize::MAX;
            for bytes in sizes.into_iter().rev() {
                let way = Way::Strips(bytes);
                let (found, peak) = computed(part, &dims, way, ports);
                assert_close(&format!("{way}, peak {peak} of {whole_peak}"), &whole, &found);
                assert!(peak <= last, "{way}: {peak} after {last}");
                last = peak;
            }
            assert!(last < whole_peak, "{last} of {whole_peak}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn strips_of_any_height_equal_the_whole(
        (w, h) in (1usize..7, 1usize..7), batch in 1usize..3, kib in 0usize..100, single in 0usize..2
    ) {
        let AutoencoderKl { decoder, encoder, .. } = &MINI[single];
        let dims = latents(2 * w, 2 * h, batch);
        let way = Way::Strips(kib << 10);
        let mut parts = vec![((&decoder.net.model, &decoder.bound), (decoder.net.latents, decoder.net.picture))];
        parts.extend(encoder.iter().map(|encoder| {
            ((&encoder.net.model, &encoder.bound), (encoder.net.picture, encoder.net.moments))
        }));
        for (part, ports) in parts {
            let (whole, _) = computed(part, &dims, Way::Whole, ports);
            let (found, _) = computed(part, &dims, way, ports);
            assert_close(&format!("{w}x{h}x{batch} {way}, {single}"), &whole, &found);
        }
    }
}

/// What is drawn where the component `name` has only its variant `i`.
fn drawn_in(pipeline: &mut Pipeline, components: &[Component], name: &str, i: usize) -> Generated {
    let mut components = components.to_vec();
    for component in components.iter_mut().filter(|component| component.name == name) {
        component.variants = vec![component.variants[i].clone()];
    }
    let plan = budget::plan(&components, Offload::Sequential, &Limits::default()).unwrap();
    let generated = pipeline.generate_as(plan, &request(), &mut |_: Event| Ok(())).unwrap();
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
    }
    generated
}

fn request() -> Request {
    Request {
        prompt: "a red circle".into(),
        negative_prompt: Some("blue".into()),
        cfg_scale: Some(2.0),
        width: Some(144),
        height: Some(112),
        steps: Some(2),
        batch: 2,
        ..Request::default()
    }
}

/// What every variant of the component `name` draws, the whole first.
fn drawn_in_every_way(source: &Source, name: &str) -> Vec<(Way, Generated)> {
    let device = Device::by_name("cpu:discrete").unwrap();
    let model = pinhole::pipeline::open(source).unwrap();
    let mut pipeline = Pipeline::with_threads(model, device, THREADS, CancelFlag::new()).unwrap();
    let components = pipeline.measure(&pipeline.settings(&request()).unwrap()).unwrap();
    let variants = &components.iter().find(|component| component.name == name).unwrap().variants;
    let ways: Vec<Way> = variants.iter().map(|variant| variant.way).collect();
    assert!(ways.len() > 1 && ways[0] == Way::Whole, "{ways:?}");
    let mut drawn = Vec::new();
    for (i, &way) in ways.iter().enumerate() {
        let generated = drawn_in(&mut pipeline, &components, name, i);
        assert_eq!(generated.plan.component(name).unwrap().way, way);
        drawn.push((way, generated));
    }
    drawn
}

#[test]
fn pictures_in_strips_are_the_same() {
    let drawn = drawn_in_every_way(&builtin::mini().unwrap(), "decoder");
    let whole = &drawn[0].1;
    for (way, found) in &drawn[1..] {
        assert!(whole.latents == found.latents, "{way}");
        for (a, b) in whole.images.iter().zip(&found.images) {
            let off = a.rgb().iter().zip(b.rgb()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off <= 1, "{way}: pixels are {off} apart");
        }
    }
}

#[test]
fn tokens_in_parts_give_the_same_latents() {
    // In single precision: where activations are rounded to 8 bits to meet a quantized matrix, the last bit of an attention
    // can become the first of eight.
    let directory = tempfile::tempdir().unwrap();
    let drawn = drawn_in_every_way(&mini_f32(&directory.path().join("f32.gguf")), "transformer");
    let whole = &drawn[0].1;
    for (way, found) in &drawn[1..] {
        let nmse = metrics::nmse(&whole.latents, &found.latents).unwrap();
        println!("{way}: nmse {nmse:.1e}");
        assert!(nmse <= 1e-6, "{way}: nmse {nmse:e}");
    }
}

#[test]
fn flux_dev_fits_a_small_card() {
    let directory = tempfile::tempdir().unwrap();
    for (name, most) in [("bf16", 1.0), ("q8_0", 1.0), ("q6_k", 1.0), ("q4_k_s", 0.6), ("q4_1", 0.6)] {
        let path = directory.path().join(format!("{name}.gguf"));
        let (architecture, file_type) = (Architecture::FLUX_DEV, name.parse().unwrap());
        let options = synthetic::Options { architecture, file_type, blocks: None, hollow: true, only: None };
        synthetic::write(&path, &options, |_| Ok(())).unwrap();
        let model = pinhole::pipeline::open(&Source::open(&path).unwrap()).unwrap();
        let device = Device::by_name("cpu:discrete").unwrap();
        let pipeline = Pipeline::with_threads(model, device, THREADS, CancelFlag::new()).unwrap();
        let request = Request {
            width: Some(1024),
            height: Some(1024),
            steps: Some(50),
            max_sequence_length: Some(512),
            batch: 1,
            ..Request::default()
        };
        let components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
        let within = |bytes| {
            let limits = Limits { bytes: Some(bytes), ..Limits::default() };
            budget::plan(&components, Offload::Auto, &limits)
        };
        let refusal = within(1).unwrap_err();
        println!("{name}: least {}, for the {}", Size(refusal.least as u64), refusal.component);
        for bytes in [refusal.least, 4 << 30] {
            for component in within(bytes).unwrap().components {
                println!("{name} in {bytes}: {} {}: {:?}", component.name, component.way, component.parts);
            }
        }
        assert!(refusal.least as f64 <= most * (1u64 << 30) as f64, "{name}: {}", refusal.least);
    }
}
