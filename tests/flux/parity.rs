//! pinhole against diffusers in float32, component by component and as a whole: weights and noise are the same, the
//! expected numbers were recorded by `tests/reference/record.py`.

use std::path::Path;

use crate::support::{self, Golden, Layout, Parts};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::image::Image;
use pinhole::kernels::Kernel;
use pinhole::models::autoencoder_kl::{self, Decoder, Encoder};
use pinhole::models::clip::causal_mask;
use pinhole::models::flux::sinusoid;
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Generated, Opened, Request};
use pinhole::sample::randn;
use pinhole::source::Source;
use pinhole::source::networks::{self, AutoencoderKl};
use pinhole::source::slot::VAE;
use pinhole::source::{Component, Part};
use pinhole::stage::{Cadence, Dims, Model, Symbol};
use pinhole_quant::metrics;

/// Two threads, as many as the smallest machine that runs the tests has.
const THREADS: usize = 2;

/// The most that single precision may differ from diffusers', where only sums are in another order: 6e-12 is what is seen. A
/// processor for which pinhole has no kernels computes GELU by ggml's tables of F16 numbers.
fn exact() -> f64 {
    if Kernel::best().is_some() { 1e-10 } else { 1e-6 }
}

/// A golden's model on disk, opened.
struct Case {
    golden: Golden,
    model: Parts,
    opened: Opened,
    _dir: tempfile::TempDir,
}

fn case(name: &str) -> Case {
    case_as(name, &Layout::default())
}

fn case_as(name: &str, layout: &Layout) -> Case {
    let golden = Golden::load(name);
    let dir = tempfile::tempdir().unwrap();
    support::write_model(dir.path(), &golden, layout);
    let source = Source::open(dir.path()).unwrap();
    let (model, opened) = (Parts::open(&source).unwrap(), pinhole::pipeline::open(&source).unwrap());
    Case { golden, model, opened, _dir: dir }
}

/// A backend and an account for one model.
struct Machine {
    backend: Backend,
    ledger: Ledger,
}

impl Machine {
    fn new() -> Machine {
        let backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
        Machine { backend, ledger: Ledger::new() }
    }

    /// A session of `part` for which `fill` sets the inputs, run from the first stage to the last.
    fn run<'m, M>(
        &mut self,
        part: &'m Part<M>,
        model: impl Fn(&'m M) -> &'m Model,
        dims: &Dims,
        fill: impl FnOnce(&mut Session<'m>),
    ) -> Session<'m> {
        let model = model(&part.net);
        let weights = DeviceWeights::load(model, &part.bound, self.backend.device(), &self.ledger).unwrap();
        let mut session = Session::new(model, &weights, dims, &self.backend, &self.ledger).unwrap();
        fill(&mut session);
        for cadence in [Cadence::Request, Cadence::Step] {
            session.run(&mut self.backend, cadence, |_, _| Ok(())).unwrap();
        }
        session
    }
}

#[track_caller]
fn assert_nmse(what: &str, reference: &[f32], value: &[f32], most: f64) {
    let nmse = metrics::nmse(reference, value).unwrap_or_else(|| panic!("{what}: lengths differ or not finite"));
    println!("{what}: nmse {nmse:.2e} (at most {most:.0e})");
    assert!(nmse <= most, "{what}: nmse {nmse:e} is above {most:e}");
}

const CASES: [&str; 3] = ["dev", "schnell", "loose"];

#[test]
fn token_ids_are_identical() {
    for name in CASES {
        let Case { golden, opened, .. } = case(name);
        let length = golden.integer("/generate/max_sequence_length") as usize;
        let mut prompts = vec![(golden.text("/generate/prompt"), "/generate/token_ids")];
        if let Some(negative) = golden.at("/generate/negative_prompt").as_str() {
            prompts.push((negative, "/generate/negative_token_ids"));
        }
        for (prompt, ids) in prompts {
            let request = Request { max_sequence_length: Some(length), ..golden.request("/generate") };
            let settings = pinhole::pipeline::settings(&opened, &request).unwrap();
            let [clip, t5] = &opened.encoders.tokenize(prompt, &settings).unwrap()[..] else { panic!("two readers") };
            assert_eq!(clip.ids, golden.ids(&format!("{ids}/clip")));
            assert_eq!(t5.ids, golden.ids(&format!("{ids}/t5")));
        }
    }
}

#[test]
fn clip_equals_transformers() {
    for name in CASES {
        let Case { golden, model, .. } = case(name);
        let clip = &model.clip;
        let ids = golden.ids("/generate/token_ids/clip");
        let width = model.clip_config.hidden_size;
        let mut hidden = clip.bound.gather(clip.net.token_embedding, width, &ids).unwrap();
        let rows: Vec<u32> = (0..ids.len() as u32).collect();
        let positions = clip.bound.gather(clip.net.position_embedding, width, &rows).unwrap();
        hidden.iter_mut().zip(positions).for_each(|(token, position)| *token += position);
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, ids.len());
        let session = Machine::new().run(
            clip,
            |net| &net.model,
            &dims,
            |session| {
                session.set(clip.net.mask, &causal_mask(ids.len()).unwrap()).unwrap();
                session.set(clip.net.hidden, &hidden).unwrap();
            },
        );
        let states = session.get(clip.net.hidden).unwrap();
        assert_nmse(&format!("{name} clip"), &golden.f32("clip.last_hidden_state"), &states, exact());
        let row = model.clip_config.pooled_position(&ids) * width;
        assert_nmse(&format!("{name} pooled"), &golden.f32("clip.pooled"), &states[row..row + width], exact());
    }
}

/// T5's hidden states for the golden's prompt.
fn t5_states(Case { golden, model, .. }: &Case) -> Vec<f32> {
    let t5 = &model.t5;
    let ids = golden.ids("/generate/token_ids/t5");
    let hidden = t5.bound.gather(t5.net.token_embedding, model.t5_config.d_model, &ids).unwrap();
    let dims = Dims::new()
        .with(Symbol::BATCH, 1)
        .with(Symbol::TEXT_TOKENS, ids.len())
        .with(Symbol::TEXT_PAIRS, ids.len() * ids.len());
    let mut machine = Machine::new();
    let session = machine.run(
        t5,
        |net| &net.model,
        &dims,
        |session| {
            session.set_indices(t5.net.buckets, &model.t5_config.buckets(ids.len()).unwrap()).unwrap();
            session.set(t5.net.hidden, &hidden).unwrap();
        },
    );
    session.get(t5.net.hidden).unwrap()
}

#[test]
fn t5_equals_transformers() {
    for name in CASES {
        let case = case(name);
        assert_nmse(&format!("{name} t5"), &case.golden.f32("t5.last_hidden_state"), &t5_states(&case), exact());
    }
}

/// Half-precision files keep their feed-forward outputs in F16, whose inputs are scaled to stay in its range.
#[test]
fn t5_in_half_precision_stays_close() {
    for (dtype, most) in [(safetensors::Dtype::F16, 1e-5), (safetensors::Dtype::BF16, 1e-3)] {
        let case = case_as("dev", &Layout { dtype, ..Layout::default() });
        assert_nmse(&format!("t5 in {dtype:?}"), &case.golden.f32("t5.last_hidden_state"), &t5_states(&case), most);
    }
}

#[test]
fn shards_make_the_same_picture() {
    let whole = case("schnell");
    let sharded = case_as("schnell", &Layout { max_shard_bytes: Some(1 << 20), ..Layout::default() });
    let request = Request { steps: Some(1), ..whole.golden.request("/generate") };
    let [a, b] = [whole.opened, sharded.opened].map(|model| generate(model, &request));
    assert_eq!(a.latents, b.latents);
}

#[test]
fn one_forward_of_the_transformer_equals_diffusers() {
    for name in CASES {
        let Case { golden, model, .. } = case(name);
        let flux = &model.transformer;
        let (columns, rows) =
            (golden.integer("/generate/width") as usize / 16, golden.integer("/generate/height") as usize / 16);
        let text = golden.shape("forward.txt")[0];
        let dims = Dims::new()
            .with(Symbol::BATCH, 1)
            .with(Symbol::CONDITIONS, 1)
            .with(Symbol::IMAGE_TOKENS, rows * columns)
            .with(Symbol::TEXT_TOKENS, text)
            .with(Symbol::JOINT_TOKENS, text + rows * columns);
        let ports = flux.net.ports;
        let (cos, sin) = flux.net.rotary(text, &[[rows, columns]]).unwrap();
        let session = Machine::new().run(
            flux,
            |net| &net.model,
            &dims,
            |session| {
                let embedded = |input: &str| sinusoid(golden.f32(input)[0] * 1000.0);
                session.set(ports.time, &embedded("forward.timestep")).unwrap();
                if let Some(guidance) = ports.guidance {
                    session.set(guidance, &embedded("forward.guidance")).unwrap();
                }
                session.set(ports.pooled, &golden.f32("forward.pooled")).unwrap();
                session.set(ports.text, &golden.f32("forward.txt")).unwrap();
                session.set(ports.latents, &golden.f32("forward.img")).unwrap();
                session.set(ports.cos, &cos).unwrap();
                session.set(ports.sin, &sin).unwrap();
                session.set_indices(ports.condition, &[0]).unwrap();
            },
        );
        let velocity = session.get(ports.velocity).unwrap();
        assert_nmse(&format!("{name} forward"), &golden.f32("forward.output"), &velocity, exact());
    }
}

fn generate(model: Opened, request: &Request) -> Generated {
    let mut pipeline = Pipeline::with_threads(model, Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    pipeline.generate_watched(request, &mut |_: Event| Ok(())).unwrap()
}

#[track_caller]
fn assert_psnr(what: &str, reference: &[u8], image: &Image, least: f64) {
    let psnr = metrics::psnr(reference, image.rgb()).unwrap_or_else(|| panic!("{what}: sizes differ"));
    println!("{what}: psnr {psnr:.1} dB (at least {least})");
    assert!(psnr >= least, "{what}: psnr {psnr} dB is below {least} dB");
}

#[test]
fn pictures_equal_diffusers() {
    for name in CASES {
        let Case { golden, opened: model, .. } = case(name);
        let request = golden.request("/generate");
        let noise = golden.f32("noise");
        let drawn = randn(request.seed, noise.len()).unwrap();
        assert!(metrics::max_error(&noise, &drawn).unwrap() <= 1e-6, "{name}: the noise differs from torch's");
        let generated = generate(model, &request);
        let last = format!("latents.{}", generated.settings.steps - 1);
        assert_nmse(&format!("{name} {last}"), &golden.f32(&last), &generated.latents, exact());
        assert_psnr(
            &format!("{name} picture"),
            &golden.u8("picture"),
            &generated.images[0],
            if Kernel::best().is_some() { 75.0 } else { 50.0 },
        );
    }
}

/// The autoencoder of a golden, alone.
fn vae(golden: &Golden, dir: &Path) -> (Part<Decoder>, Part<Encoder>, autoencoder_kl::Config) {
    support::write_component(dir, golden, "vae", &Layout::default());
    let AutoencoderKl { decoder, encoder, config } =
        networks::autoencoder_kl(&Component::open(dir, &VAE).unwrap()).unwrap();
    (decoder, encoder.unwrap(), config)
}

#[test]
fn autoencoders_equal_diffusers() {
    for name in ["dev", "schnell", "loose", "odd_vae"] {
        let golden = Golden::load(name);
        let dir = tempfile::tempdir().unwrap();
        let (decoder, encoder, config) = vae(&golden, dir.path());
        let dims = |shape: &[usize]| {
            let [.., height, width] = shape[..] else { panic!("{shape:?}") };
            Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, width).with(Symbol::LATENT_HEIGHT, height)
        };
        let session = Machine::new().run(
            &encoder,
            |net| &net.model,
            &dims(&golden.shape("encoder.mean")),
            |session| {
                session.set(encoder.net.picture, &golden.f32("encoder.input")).unwrap();
            },
        );
        let moments = session.get(encoder.net.moments).unwrap();
        let (mean, logvar) = moments.split_at(moments.len() / 2);
        assert_nmse(&format!("{name} encoder mean"), &golden.f32("encoder.mean"), mean, exact());
        assert_nmse(&format!("{name} encoder logvar"), &golden.f32("encoder.logvar"), logvar, exact());

        let (latents, picture, shape) = if name == "odd_vae" {
            (golden.f32("decoder.input"), golden.f32("decoder.output"), golden.shape("decoder.input"))
        } else {
            let last = format!("latents.{}", golden.integer("/generate/steps") - 1);
            let mut latents = golden.f32(&last);
            for x in &mut latents {
                *x = *x / config.scaling_factor + config.shift_factor;
            }
            (latents, golden.f32("decoded"), golden.shape(&last))
        };
        let session = Machine::new().run(
            &decoder,
            |net| &net.model,
            &dims(&shape),
            |session| {
                session.set(decoder.net.latents, &latents).unwrap();
            },
        );
        assert_nmse(&format!("{name} decoder"), &picture, &session.get(decoder.net.picture).unwrap(), exact());
    }
}
