//! The causal autoencoder against diffusers in float32, with films: of Wan 2.1's kind and of Wan 2.2's. What is expected was recorded by
//! `tests/reference/wan_vae.py`.

use std::fs;
use std::path::Path;

use crate::support::fixtures::RawGguf;
use crate::support::numbers::Format;
use crate::support::sd1::{Tensor, write_tensors};
use crate::support::{self, Golden, Layout, bundle, z_image};
use pinhole::bind::{Bound, alias};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::autoencoder_wan::{Config, FilmDecoder, FilmEncoder, Whole};
use pinhole::plan::measure::Subject;
use pinhole::plan::{HostBound, HostLimit, Limits, Offload, Phase, Plan, Runs, Way, budget};
use pinhole::source::networks::{self, AutoencoderCausal};
use pinhole::source::slot::VAE;
use pinhole::source::{Component, Networks, Part, Place, Source};
use pinhole::stage::{Cadence, Dims, Model, Port, Symbol};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use tempfile::TempDir;

/// Two threads, as many as the smallest machine that runs the tests has.
const THREADS: usize = 2;

/// How far films and moments may be from the reference's.
const MOST: f64 = 1e-7;

/// The kinds that the golden has.
const KINDS: [&str; 2] = ["wan_2_1", "wan_2_2"];

/// The autoencoder `kind` of the golden, as a folder of a diffusers directory.
fn directory(golden: &Golden, kind: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    support::write_component(dir.path(), golden, kind, &Layout::default());
    dir
}

/// The folder of a diffusers directory, or the file, at `path`.
fn component(path: &Path) -> pinhole::Result<Component> {
    if path.is_dir() {
        return Component::open(path, &VAE);
    }
    let place = Place::needed(&VAE, &alias::AUTOENCODER_WAN, |component| {
        Ok(Box::new(networks::autoencoder_causal(component)?))
    });
    Source::lone(path, &place)
}

fn open(path: &Path) -> pinhole::Result<AutoencoderCausal> {
    networks::autoencoder_causal_of_films(&component(path)?)
}

/// Latents of the golden: their numbers in the autoencoder's space, and columns, rows and frames.
fn latents(golden: &Golden, kind: &str, vae: &AutoencoderCausal) -> (Vec<f32>, [usize; 3]) {
    let shape = golden.shape(&format!("{kind}.latents"));
    let mut latents = golden.f32(&format!("{kind}.latents"));
    let (means, deviations) = (&vae.config.latents_mean, &vae.config.latents_std);
    let channels = latents.chunks_exact_mut(shape[1] * shape[2] * shape[3]);
    for (channel, (mean, std)) in channels.zip(means.iter().zip(deviations)) {
        channel.iter_mut().for_each(|x| *x = *x / (1.0 / std) + mean);
    }
    (latents, [shape[3], shape[2], shape[1]])
}

fn dims([w, h, _]: [usize; 3]) -> Dims {
    Dims::new().with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h)
}

/// One direction of an autoencoder, with a film's ports: of the first latent frame, and of those that follow.
struct Side<'a> {
    model: &'a Model,
    bound: &'a Bound,
    first: (Port, Port),
    following: (Port, Port),
    cleared: &'a [Port],
}

impl<'a> Side<'a> {
    fn decoder(part: &'a Part<FilmDecoder>) -> Side<'a> {
        let net = &part.net;
        let (first, following) = ((net.first_latents, net.first_picture), (net.latents, net.pictures));
        Side { model: &net.model, bound: &part.bound, first, following, cleared: &net.cleared }
    }

    fn encoder(part: &'a Part<FilmEncoder>) -> Side<'a> {
        let net = &part.net;
        let (first, following) = ((net.first_picture, net.first_moments), (net.pictures, net.moments));
        Side { model: &net.model, bound: &part.bound, first, following, cleared: &net.cleared }
    }

    /// What comes of the chunks `given`, each by itself.
    fn run(
        &self,
        (session, dims): (&mut Session<'_>, &Dims),
        backend: &mut Backend,
        given: &[Vec<f32>],
    ) -> Vec<Vec<f32>> {
        let mut made = vec![Vec::new(); given.len()];
        for band in 0..session.bands() {
            session.choose_band(band).unwrap();
            self.cleared.iter().for_each(|&port| session.clear(port).unwrap());
            for (i, (chunk, made)) in given.iter().zip(&mut made).enumerate() {
                let ((from, to), cadence) = match i {
                    0 => (self.first, Cadence::Request),
                    _ => (self.following, Cadence::Step),
                };
                session.set(from, chunk).unwrap();
                session.run(backend, cadence, |_, _| Ok(())).unwrap();
                let [w, h, channels, frames] = self.model.ports()[to.index()].shape(dims).unwrap().dims();
                let (rows, found) = (session.rows(to).unwrap(), session.get(to).unwrap());
                assert_eq!(found.len(), w * rows.len() * channels * frames);
                made.resize(w * h * channels * frames, f32::NAN);
                for (plane, found) in made.chunks_exact_mut(w * h).zip(found.chunks_exact((w * rows.len()).max(1))) {
                    plane[w * rows.start..w * rows.end].copy_from_slice(found);
                }
            }
        }
        made
    }

    /// The same on `device`, computed that `way` with all weights there.
    fn computed(&self, device: &str, way: Way, dims: &Dims, given: &[Vec<f32>]) -> (Vec<Vec<f32>>, usize) {
        let device = Device::by_name(device).unwrap();
        let (mut backend, ledger) = (Backend::new(device, THREADS, CancelFlag::new()).unwrap(), Ledger::new());
        let weights = DeviceWeights::load(self.model, self.bound, device, &ledger).unwrap();
        let mut session = Session::in_way(way, self.model, &weights, dims, &backend, &ledger).unwrap();
        (self.run((&mut session, dims), &mut backend, given), ledger.usage().peak)
    }
}

/// The latents of each latent frame, `[w, h, C]`.
fn latent_frames(latents: &[f32], [w, h, frames]: [usize; 3]) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for frame in 0..frames {
        all.push(latents.chunks_exact(w * h).skip(frame).step_by(frames).flatten().copied().collect());
    }
    all
}

/// The film of the golden, `[3, F, H, W]`, as the chunks that its latent frames stand for, each frame `[W, H, 3]` and in patches.
fn chunks(film: &[f32], [w, h, frames]: [usize; 3], vae: &AutoencoderCausal) -> Vec<Vec<f32>> {
    let (factor, count) = (vae.config.factor(), 4 * frames - 3);
    let mut chunks = Vec::new();
    for latent in 0..frames {
        let mut chunk = Vec::new();
        for number in if latent == 0 { 0..1 } else { 4 * latent - 3..4 * latent + 1 } {
            let planes = film.chunks_exact(w * h * factor * factor).skip(number).step_by(count);
            chunk.extend(vae.config.taken(planes.flatten().copied().collect(), w * factor).unwrap());
        }
        chunks.push(chunk);
    }
    chunks
}

fn nmse(what: &str, wanted: &[f32], found: &[f32]) {
    let nmse = metrics::nmse(wanted, found).unwrap();
    println!("{what}: nmse {nmse:.2e}");
    assert!(nmse <= MOST, "{what}: {nmse:.2e}");
}

#[test]
fn films_equal_diffusers() {
    let golden = Golden::load("wan_vae");
    for kind in KINDS {
        let dir = directory(&golden, kind);
        let vae = open(dir.path()).unwrap();
        let film = vae.film.as_ref().unwrap();
        let (own, size) = latents(&golden, kind, &vae);
        let side = Side::decoder(&film.decoder);
        let (made, _) = side.computed("cpu", Way::Whole, &dims(size), &latent_frames(&own, size));
        let (factor, wanted) = (vae.config.factor(), golden.f32(&format!("{kind}.film")));
        let chunks = chunks(&wanted, size, &vae);
        for (latent, (found, wanted)) in made.iter().zip(&chunks).enumerate() {
            let clamped: Vec<f32> = found.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
            nmse(&format!("{kind}: film, latent frame {latent}"), wanted, &clamped);
            let each = found.len() / if latent == 0 { 1 } else { 4 };
            let frame = vae.config.given(found[..each].to_vec(), size[0] * factor).unwrap();
            assert_eq!(frame.len(), size[0] * size[1] * factor * factor * 3);
        }
        let side = Side::encoder(film.encoder.as_ref().unwrap());
        let (made, _) = side.computed("cpu", Way::Whole, &dims(size), &chunks);
        let wanted = latent_frames(&golden.f32(&format!("{kind}.moments")), size);
        for (latent, (found, wanted)) in made.iter().zip(&wanted).enumerate() {
            nmse(&format!("{kind}: moments, latent frame {latent}"), wanted, found);
        }
        pictures_are_first_frames(&vae, size, (&latent_frames(&own, size)[0], &chunks[0]), (&chunks[0], &wanted[0]));
    }
}

/// A picture is a film of one frame: both directions, each with what is given and what is expected.
fn pictures_are_first_frames(
    vae: &AutoencoderCausal,
    size: [usize; 3],
    decoded: (&[f32], &[f32]),
    encoded: (&[f32], &[f32]),
) {
    let dims = dims(size).with(Symbol::BATCH, 1);
    let encoder = vae.encoder.as_ref().unwrap();
    for (what, (model, bound), (from, to), (given, wanted)) in [
        (
            "picture",
            (&vae.decoder.net.model, &vae.decoder.bound),
            (vae.decoder.net.latents, vae.decoder.net.picture),
            decoded,
        ),
        ("its moments", (&encoder.net.model, &encoder.bound), (encoder.net.picture, encoder.net.moments), encoded),
    ] {
        let device = Device::cpu().unwrap();
        let (mut backend, ledger) = (Backend::new(device, THREADS, CancelFlag::new()).unwrap(), Ledger::new());
        let weights = DeviceWeights::load(model, bound, device, &ledger).unwrap();
        let mut session = Session::new(model, &weights, &dims, &backend, &ledger).unwrap();
        session.set(from, given).unwrap();
        session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
        let found: Vec<f32> = session.get(to).unwrap();
        let clamped: Vec<f32> = found.iter().map(|x| if what == "picture" { x.clamp(-1.0, 1.0) } else { *x }).collect();
        nmse(what, wanted, &clamped);
    }
}

#[test]
fn films_in_strips_are_the_same() {
    let golden = Golden::load("wan_vae");
    for kind in KINDS {
        let dir = directory(&golden, kind);
        let vae = open(dir.path()).unwrap();
        let film = vae.film.as_ref().unwrap();
        let (own, size) = latents(&golden, kind, &vae);
        let chunks = chunks(&golden.f32(&format!("{kind}.film")), size, &vae);
        let sides = [
            (Side::decoder(&film.decoder), latent_frames(&own, size)),
            (Side::encoder(film.encoder.as_ref().unwrap()), chunks),
        ];
        for (i, (side, given)) in sides.iter().enumerate() {
            let (whole, most) = side.computed("cpu:discrete", Way::Whole, &dims(size), given);
            // From one row to all of them.
            for bytes in [1, 24 << 10, 64 << 10, 1 << 20] {
                let (found, peak) = side.computed("cpu:discrete", Way::Strips(bytes), &dims(size), given);
                println!("{kind}, side {i}, strips of {bytes}: peak {peak} of {most}");
                // To the bit: no statistics are taken, and rows of convolutions do not depend on each other.
                assert!(found == whole && peak < most, "{kind}, side {i}, strips of {bytes}");
            }
        }
    }
}

#[test]
fn films_in_bands_are_the_same() {
    let golden = Golden::load("wan_vae");
    let device = Device::by_name("cpu:discrete").unwrap();
    let backend = Backend::new(device, THREADS, CancelFlag::new()).unwrap();
    for kind in KINDS {
        let dir = directory(&golden, kind);
        let vae = open(dir.path()).unwrap();
        let film = vae.film.as_ref().unwrap();
        let (own, size) = latents(&golden, kind, &vae);
        let (side, given) = (Side::decoder(&film.decoder), latent_frames(&own, size));
        let (whole, _) = side.computed("cpu:discrete", Way::Whole, &dims(size), &given);
        for (count, strips) in [(2, 1 << 20), (3, 24 << 10), (7, 1)] {
            let (found, _) = side.computed("cpu:discrete", Way::Bands { count, strips }, &dims(size), &given);
            // To the bit, as strips are.
            assert!(found == whole, "{kind}, {count} bands in strips of {strips}");
        }
        // A film high enough that bands are lower than it: every one takes less of the host than the one before.
        let high = [2, 40, 0];
        let (model, bound, runs) = (side.model, side.bound, Runs::of_films(1, given.len() - 1));
        let subject = Subject { name: "decoder", phase: Phase::Decode, model, bound, dims: dims(high), runs };
        let components = [subject.measure(&backend).unwrap()];
        let mut least = Vec::new();
        for bands in [2, 4, 8] {
            let variants = components[0].variants.iter().filter(|variant| variant.way.bands() == bands);
            least.extend(variants.map(|variant| variant.host).min());
        }
        assert!(least.len() == 3 && least.is_sorted_by(|more, less| more > less), "{least:?}");
        let frames = vec![pinhole::sample::randn(3, high[0] * high[1] * vae.config.z_dim).unwrap(); given.len()];
        let whole = budget::plan(&components, Offload::Model, &Limits::default()).unwrap();
        let whole = planned(&side, &subject, &whole, &frames);
        let (bound, bytes) =
            (HostBound::Memory, least[1] + components[0].stages.iter().map(|stage| stage.file).sum::<usize>());
        let host = HostLimit { bound, bytes, process: 0, graph: 0, shared: false };
        let device = components[0].variants.iter().map(|variant| variant.bytes()).min().unwrap();
        let limits = Limits { bytes: Some(2 * device), of_host: [Some(host), None], ..Limits::default() };
        let plan = budget::plan(&components, Offload::Auto, &limits).unwrap();
        println!("{kind}: {}, {} bytes on the host of {bytes}", plan.components[0].way, plan.components[0].host);
        assert!(plan.components[0].way.bands() > 1 && planned(&side, &subject, &plan, &frames) == whole);
    }
}

/// What `side` gives as `plan` has it.
fn planned(side: &Side<'_>, subject: &Subject<'_>, plan: &Plan, given: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let device = Device::by_name("cpu:discrete").unwrap();
    let (mut backend, ledger) = (Backend::new(device, THREADS, CancelFlag::new()).unwrap(), Ledger::new());
    let component = plan.component(subject.name).unwrap();
    let runs = component.way.runs(component.batch.runs(subject.runs));
    let weights = DeviceWeights::place(side.model, side.bound, device, &ledger, &component.placement, runs).unwrap();
    let mut session = Session::in_way(component.way, side.model, &weights, &subject.dims, &backend, &ledger).unwrap();
    let made = side.run((&mut session, &subject.dims), &mut backend, given);
    assert_eq!(ledger.usage().peak, component.parts.total(), "{:?}", component.parts);
    made
}

#[test]
fn budgets_are_kept_to_the_byte() {
    let golden = Golden::load("wan_vae");
    let device = Device::by_name("cpu:discrete").unwrap();
    let backend = Backend::new(device, THREADS, CancelFlag::new()).unwrap();
    for kind in KINDS {
        let dir = directory(&golden, kind);
        let vae = open(dir.path()).unwrap();
        let film = vae.film.as_ref().unwrap();
        let (own, size) = latents(&golden, kind, &vae);
        let sides = [
            (Side::decoder(&film.decoder), latent_frames(&own, size)),
            (Side::encoder(film.encoder.as_ref().unwrap()), chunks(&golden.f32(&format!("{kind}.film")), size, &vae)),
        ];
        for (i, (side, given)) in sides.iter().enumerate() {
            let runs = Runs::of_films(1, given.len() - 1);
            let (model, bound) = (side.model, side.bound);
            let subject = Subject { name: "decoder", phase: Phase::Decode, model, bound, dims: dims(size), runs };
            let components = [subject.measure(&backend).unwrap()];
            let least = budget::least(&components, Offload::Auto, &Limits::default());
            let resident = budget::plan(&components, Offload::Model, &Limits::default()).unwrap();
            let whole = planned(side, &subject, &resident, given);
            let mut seen = Vec::new();
            for bytes in [least, least + least / 8, 2 * least] {
                let limits = Limits { bytes: Some(bytes), ..Limits::default() };
                let plan = budget::plan(&components, Offload::Auto, &limits).unwrap();
                assert!(plan.peak() <= bytes);
                let found = planned(side, &subject, &plan, given);
                let plan = &plan.components[0];
                seen.push((plan.way, plan.streamed()));
                let way = plan.way;
                match way {
                    Way::Whole => assert!(found == whole, "{kind}, side {i}, {way}"),
                    _ => nmse(&format!("{kind}, side {i}, {way}"), &whole.concat(), &found.concat()),
                }
            }
            println!("{kind}, side {i}: least {least} of {}: {seen:?}", resident.peak());
            assert!(seen.iter().any(|(_, streamed)| *streamed > 0), "{seen:?}");
        }
    }
}

/// The name that Wan's first publisher gives a tensor of the model `kind`, which has one residual block on each level, and two in the
/// decoder.
fn in_original(name: &str, kind: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let nested = kind == "wan_2_2";
    let (block, rest) = match parts[..] {
        ["decoder", "up_blocks", level, "resnets", block, ref rest @ ..] => (Some(("upsamples", level, block)), rest),
        ["decoder", "up_blocks", level, "upsamplers", _, ref rest @ ..] => (Some(("upsamples", level, "2")), rest),
        ["decoder", "up_blocks", level, "upsampler", ref rest @ ..] => (Some(("upsamples", level, "2")), rest),
        ["encoder", "down_blocks", level, "resnets", block, ref rest @ ..] => {
            (Some(("downsamples", level, block)), rest)
        }
        ["encoder", "down_blocks", level, "downsampler", ref rest @ ..] => (Some(("downsamples", level, "1")), rest),
        _ => (None, &parts[..]),
    };
    let side = parts[0];
    let mut name = match block {
        Some((kind, level, block)) if nested => format!("{side}.{kind}.{level}.{kind}.{block}.{}", rest.join(".")),
        Some((kind, level, block)) => {
            let number = 3 * level.parse::<usize>().unwrap() + block.parse::<usize>().unwrap();
            format!("{side}.{kind}.{number}.{}", rest.join("."))
        }
        None => rest.join("."),
    };
    for (theirs, ours) in [
        ("encoder.down_blocks.", "encoder.downsamples."),
        ("mid_block.resnets.0.", "middle.0."),
        ("mid_block.attentions.0.", "middle.1."),
        ("mid_block.resnets.1.", "middle.2."),
        (".norm1.", ".residual.0."),
        (".conv1.", ".residual.2."),
        (".norm2.", ".residual.3."),
        (".conv2.", ".residual.6."),
        (".conv_shortcut.", ".shortcut."),
        (".conv_in.", ".conv1."),
        (".norm_out.", ".head.0."),
        (".conv_out.", ".head.2."),
        ("post_quant_conv.", "conv2."),
        ("quant_conv.", "conv1."),
    ] {
        name = name.replace(theirs, ours);
    }
    name
}

#[test]
fn files_of_other_tools_decode_the_same() {
    let golden = Golden::load("wan_vae");
    for kind in KINDS {
        let dir = directory(&golden, kind);
        let expected = open(dir.path()).unwrap();
        let (own, size) = latents(&golden, kind, &expected);
        let given = latent_frames(&own, size);
        let decoded = |vae: &AutoencoderCausal| {
            let film = vae.film.as_ref().unwrap();
            Side::decoder(&film.decoder).computed("cpu", Way::Whole, &dims(size), &given).0
        };
        let wanted = decoded(&expected);
        let mut tensors: Vec<Tensor> = z_image::tensors(&golden, kind)
            .into_iter()
            .map(|tensor| Tensor { name: in_original(&tensor.name, kind), ..tensor })
            .collect();
        let (file, folded) = (dir.path().join("original.safetensors"), dir.path().join("folded.gguf"));
        write_tensors(&file, &tensors);
        for tensor in tensors.iter_mut().filter(|tensor| tensor.shape.len() == 5) {
            let [outputs, inputs, planes, h, w] = tensor.shape[..] else { unreachable!() };
            tensor.shape = vec![outputs * inputs, planes, h, w];
        }
        let mut gguf = RawGguf::empty();
        z_image::push(&mut gguf, &tensors, Format::F32);
        fs::write(&folded, gguf.bytes()).unwrap();
        for path in [&file, &folded] {
            let found = open(path).unwrap();
            let same = Config {
                latents_mean: expected.config.latents_mean.clone(),
                latents_std: expected.config.latents_std.clone(),
                ..found.config.clone()
            };
            assert_eq!(same, expected.config, "{}", path.display());
            assert!(decoded(&found) == wanted, "{}", path.display());
            let names = |vae: &AutoencoderCausal| {
                let networks = vae.networks();
                networks.iter().map(|network| network.model.manifest().len()).collect::<Vec<_>>()
            };
            assert_eq!(names(&found), names(&expected));
        }
    }
}

#[test]
fn kernels_of_pictures_are_refused_for_films() {
    let golden = Golden::load("wan_vae");
    let dir = tempfile::tempdir().unwrap();
    let mut tensors: Vec<Tensor> = z_image::tensors(&golden, "wan_2_1")
        .into_iter()
        .map(|tensor| Tensor { name: in_original(&tensor.name, "wan_2_1"), ..tensor })
        .collect();
    for tensor in tensors.iter_mut().filter(|tensor| tensor.shape.len() == 5) {
        let [outputs, inputs, planes, h, w] = tensor.shape[..] else { unreachable!() };
        let kernels = tensor.values.chunks_exact(planes * h * w);
        tensor.values = kernels.flat_map(|kernel| kernel[(planes - 1) * h * w..].to_vec()).collect();
        tensor.shape = vec![outputs, inputs, h, w];
    }
    tensors.retain(|tensor| !tensor.name.contains("time_conv"));
    let path = dir.path().join("flat.safetensors");
    write_tensors(&path, &tensors);
    let Err(error) = open(&path) else { panic!("films of kernels of pictures") };
    let error = error.to_string();
    assert!(error.contains("a kernel over three frames"), "{error}");
    assert!(networks::autoencoder_causal(&component(&path).unwrap()).is_ok());
}

/// The decoder of `config` with random weights in half precision.
fn random(config: &Config) -> AutoencoderCausal {
    let whole = Whole::decoder(config).unwrap();
    let parts = [(&VAE, vec![&whole.model], serde_json::to_string(config).unwrap())];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wan.gguf");
    bundle::filled(&path, &parts, FileType::F16, bundle::numbers);
    networks::autoencoder_causal_of_films(Source::open(&path).unwrap().component(&VAE).unwrap()).unwrap()
}

/// The decoder at 832x480, as `PINHOLE_WAN=1` has it, with `PINHOLE_FRAMES` latent frames: what plans say, and, if there are frames, what
/// one of them takes under `PINHOLE_VRAM` MiB.
#[test]
#[ignore = "takes minutes, and gigabytes of host memory"]
fn a_film_of_full_size_is_decoded() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<usize>().ok());
    let device = Device::by_name("cpu:discrete").unwrap();
    let backend = Backend::new(device, THREADS, CancelFlag::new()).unwrap();
    let config = match number("PINHOLE_WAN") {
        Some(2) => Config::of_ti2v_5b(),
        _ => Config::default(),
    };
    let vae = random(&config);
    let (frames, size) = (number("PINHOLE_FRAMES").unwrap_or(0), [832 / config.factor(), 480 / config.factor(), 0]);
    let side = Side::decoder(&vae.film.as_ref().unwrap().decoder);
    let runs = Runs::of_films(1, frames.max(2) - 1);
    let (model, bound) = (side.model, side.bound);
    let subject = Subject { name: "decoder", phase: Phase::Decode, model, bound, dims: dims(size), runs };
    let components = [subject.measure(&backend).unwrap()];
    for variant in &components[0].variants {
        println!(
            "{}: {} MiB on the device, {} MiB on the host",
            variant.way,
            variant.bytes() >> 20,
            variant.host >> 20
        );
    }
    println!("least: {} MiB", budget::least(&components, Offload::Auto, &Limits::default()) >> 20);
    for mib in [256, 512, 1024, 4096] {
        let limits = Limits { bytes: Some(mib << 20), ..Limits::default() };
        let Ok(plan) = budget::plan(&components, Offload::Auto, &limits) else { continue };
        let component = &plan.components[0];
        println!("{mib} MiB: {}, {} streamed, {:?}", component.way, component.streamed(), component.parts);
    }
    if frames > 0 {
        let limits = Limits { bytes: Some(number("PINHOLE_VRAM").unwrap_or(1024) << 20), ..Limits::default() };
        let plan = budget::plan(&components, Offload::Auto, &limits).unwrap();
        let given = vec![pinhole::sample::randn(3, size[0] * size[1] * config.z_dim).unwrap(); frames];
        let start = std::time::Instant::now();
        let made = planned(&side, &subject, &plan, &given);
        assert!(made.iter().flatten().all(|x| x.is_finite()));
        println!("{frames} latent frames: {:.1} s, {}", start.elapsed().as_secs_f64(), status());
    }
}

/// What the system says of this process's memory.
fn status() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("RssAnon"))
        .collect::<Vec<_>>()
        .join(", ")
}
