//! The UNet against diffusers' in float32: weights and inputs are the same, by formula; the expected numbers were recorded by
//! `tests/reference/unet.py`.

use crate::support::{Golden, formula};
use pinhole::bind::Bound;
use pinhole::bind::alias::{self, UnetLayout};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::layers::sinusoid;
use pinhole::models::unet::{Config, Size, Unet};
use pinhole::plan::measure::Subject;
use pinhole::plan::{Runs, Way};
use pinhole::stage::Cadence;
use pinhole_quant::metrics;

const CASES: [&str; 5] = ["unet_sd1", "unet_sd2", "unet_sdxl", "unet_tiny", "unet_ssd"];

/// A golden's model with its weights.
struct Case {
    name: &'static str,
    golden: Golden,
    net: Unet,
    bound: Bound,
    size: Size,
    _dir: tempfile::TempDir,
}

fn case(name: &'static str) -> Case {
    let golden = Golden::load(name);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("unet.safetensors");
    formula::write(&path, &golden, "unet");
    let config = Config::from_json(&golden.at("/unet/config").to_string(), &path).unwrap();
    let net = Unet::new(&config).unwrap();
    let layout = UnetLayout { layers: config.layers_by_level() };
    let index = pinhole::safetensors::open(&path).unwrap();
    let bound = Bound::new(net.model.manifest(), &index, "", &|name| alias::unet(&layout, name), &path).unwrap();
    assert!(bound.unused().is_empty(), "{name}: nothing wants {:?}", bound.unused());
    let extent = |key: &str| golden.integer(&format!("/request/{key}")) as usize;
    let batch = golden.list("/request/timesteps").len();
    let (width, height, text_tokens) = (extent("width"), extent("height"), extent("text_tokens"));
    // A condition more than there are items: which is which must matter.
    let size = Size { width, height, batch, text_tokens, conditions: batch + 1, controlled: batch };
    Case { name, golden, net, bound, size, _dir: dir }
}

impl Case {
    /// Numbers by the formula, as the reference makes them.
    fn values(&self, key: &str, len: usize) -> Vec<f32> {
        formula::values(self.name, key, len, 1.7)
    }

    /// What `part` gives for the items from the last to the first, and zeros for a condition that no item is under.
    fn conditions(&self, mut part: impl FnMut(usize) -> Vec<f32>) -> Vec<f32> {
        let mut all = Vec::new();
        (0..self.size.batch).rev().for_each(|item| all.extend(part(item)));
        let each = all.len() / self.size.batch;
        all.extend(vec![0.0; each]);
        all
    }

    fn fill(&self, session: &mut Session<'_>) {
        let (ports, config, size) = (&self.net.ports, self.net.config(), self.size);
        let times = self.golden.numbers("/request/timesteps");
        let time = self.conditions(|item| sinusoid(times[item], config.time_width()));
        session.set(ports.time, &time).unwrap();
        if let Some(added) = ports.added {
            let width = config.addition_time_embed_dim.unwrap();
            let pooled_width = config.added_width().unwrap() - 6 * width;
            let pooled = self.values("pooled", size.batch * pooled_width);
            let numbers = self.conditions(|item| {
                let sizes = self.golden.numbers(&format!("/request/sizes/{item}"));
                let mut all = pooled[item * pooled_width..][..pooled_width].to_vec();
                all.extend(sizes.iter().flat_map(|&size| sinusoid(size, width)));
                all
            });
            session.set(added, &numbers).unwrap();
        }
        let context = size.batch * size.text_tokens * config.cross_attention_dim;
        session.set(ports.context, &self.values("context", context)).unwrap();
        let latents = size.batch * config.in_channels * size.width * size.height;
        session.set(ports.latents, &self.values("latents", latents)).unwrap();
        let condition: Vec<i32> = (0..size.batch as i32).rev().collect();
        session.set_indices(ports.condition, &condition).unwrap();
    }

    /// The prediction, computed that `way`.
    fn predict(&self, way: Way) -> Vec<f32> {
        let (model, ledger) = (&self.net.model, Ledger::new());
        let mut backend = Backend::new(Device::cpu().unwrap(), 2, CancelFlag::new()).unwrap();
        let weights = DeviceWeights::load(model, &self.bound, backend.device(), &ledger).unwrap();
        let dims = self.net.dims(self.size);
        let mut session = Session::in_way(way, model, &weights, &dims, &backend, &ledger).unwrap();
        self.fill(&mut session);
        for cadence in [Cadence::Request, Cadence::Step] {
            session.run(&mut backend, cadence, |_, _| Ok(())).unwrap();
        }
        session.get(self.net.ports.prediction).unwrap()
    }
}

#[track_caller]
fn assert_nmse(what: &str, reference: &[f32], value: &[f32], most: f64) {
    let nmse = metrics::nmse(reference, value).unwrap_or_else(|| panic!("{what}: lengths differ or not finite"));
    println!("{what}: nmse {nmse:.2e} (at most {most:.0e})");
    assert!(nmse <= most, "{what}: nmse {nmse:e} is above {most:e}");
}

/// All weights moved by 1e-6 of themselves move the outputs by 5e-11 to 2e-10 (NMSE).
#[test]
fn one_forward_equals_diffusers() {
    for name in CASES {
        let case = case(name);
        assert_nmse(name, &case.golden.f32("output"), &case.predict(Way::Whole), 1e-10);
    }
}

/// To the rounding: kernels differ by how many tokens there are. float64 in place of float32 moves the outputs by 3e-12.
#[test]
fn parts_of_tokens_change_nothing() {
    for name in CASES {
        let case = case(name);
        let whole = case.predict(Way::Whole);
        for tokens in [64, 32] {
            assert_nmse(&format!("{name} by {tokens}"), &whole, &case.predict(Way::Tokens(tokens)), 1e-11);
        }
    }
}

#[test]
fn ways_are_found_by_the_largest_map() {
    let case = case("unet_sd1");
    let backend = Backend::new(Device::cpu().unwrap(), 1, CancelFlag::new()).unwrap();
    let (model, bound, dims) =
        (&case.net.model, &case.bound, case.net.dims(Size { width: 64, height: 48, ..case.size }));
    let runs = Runs::of_steps(1);
    let component = Subject { name: "unet", phase: pinhole::plan::Phase::Denoise, model, bound, dims, runs }
        .measure(&backend)
        .unwrap();
    let ways: Vec<Way> = component.variants.iter().map(|variant| variant.way).collect();
    assert_eq!(ways[..2], [Way::Whole, Way::Tokens(64 * 48 / 2)]);
}
