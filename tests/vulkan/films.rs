//! The causal autoencoder of films, on a device and on the CPU.

use std::time::Instant;

use pinhole::bind::Bound;
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::plan::Way;
use pinhole::sample::randn;
use pinhole::source::Component;
use pinhole::source::networks::{self, AutoencoderCausal};
use pinhole::source::slot::VAE;
use pinhole::stage::{Cadence, Dims, Model, Port, Symbol};
use pinhole_quant::metrics;
use tempfile::TempDir;

use super::support::{self, Golden, Layout};
use super::{NMSE_OF_A_STEP, alone, device, every_type};

/// Columns and rows of the latents.
const SIZE: [usize; 2] = [5, 3];

/// One direction of an autoencoder: the ports of a film's first latent frame, and of those that follow.
struct Side<'a> {
    model: &'a Model,
    weights: &'a Bound,
    first: [Port; 2],
    following: [Port; 2],
    cleared: &'a [Port],
}

impl Side<'_> {
    /// What comes of `chunks`, one for each latent frame, on `device`.
    fn run(&self, device: Device, way: Way, chunks: &[Vec<f32>]) -> Vec<f32> {
        let begun = Instant::now();
        let (mut backend, ledger) = (Backend::new(device, 2, CancelFlag::new()).unwrap(), Ledger::new());
        let weights = DeviceWeights::load(self.model, self.weights, device, &ledger).unwrap();
        let dims = Dims::new().with(Symbol::LATENT_WIDTH, SIZE[0]).with(Symbol::LATENT_HEIGHT, SIZE[1]);
        let mut session = Session::in_way(way, self.model, &weights, &dims, &backend, &ledger).unwrap();
        for &port in self.cleared {
            session.clear(port).unwrap();
        }
        let mut made = Vec::new();
        for (i, chunk) in chunks.iter().enumerate() {
            let ([from, to], cadence) =
                if i == 0 { (self.first, Cadence::Request) } else { (self.following, Cadence::Step) };
            session.set(from, chunk).unwrap();
            session.run(&mut backend, cadence, |_, _| Ok(())).unwrap();
            made.extend(session.get(to).unwrap());
        }
        println!("{} {way}: {:.1?}", device.name(), begun.elapsed());
        made
    }

    /// Compares what the device and the CPU make of two latent frames.
    fn compare(&self, what: &str, lengths: [usize; 2]) {
        let chunks: Vec<Vec<f32>> = (5..).zip(lengths).map(|(seed, length)| randn(seed, length).unwrap()).collect();
        let cpu = self.run(Device::cpu().unwrap(), Way::Whole, &chunks);
        // From two rows on: the widest maps are then in several strips.
        let strips = self.run(device(), Way::Strips(64 << 10), &chunks);
        let nmse = metrics::nmse(&cpu, &strips).unwrap();
        println!("{what}: nmse {nmse:.1e}");
        assert!(nmse < NMSE_OF_A_STEP, "{what}: {nmse:.1e}");
        if every_type() {
            let nmse = metrics::nmse(&cpu, &self.run(device(), Way::Whole, &chunks)).unwrap();
            println!("{what}, whole: nmse {nmse:.1e}");
            assert!(nmse < NMSE_OF_A_STEP, "{what}, whole: {nmse:.1e}");
        }
    }
}

/// The autoencoder `kind` of the golden.
fn open(dir: &TempDir, kind: &str) -> AutoencoderCausal {
    support::write_component(dir.path(), &Golden::load("wan_vae"), kind, &Layout::default());
    networks::autoencoder_causal_of_films(&Component::open(dir.path(), &VAE).unwrap()).unwrap()
}

#[test]
fn films_are_decoded_there() {
    let _alone = alone();
    for kind in if every_type() { &["wan_2_1", "wan_2_2"][..] } else { &["wan_2_1"] } {
        let dir = TempDir::new().unwrap();
        let vae = open(&dir, kind);
        let film = vae.film.as_ref().unwrap();
        let (net, area) = (&film.decoder.net, SIZE[0] * SIZE[1]);
        let decoder = Side {
            model: &net.model,
            weights: &film.decoder.bound,
            first: [net.first_latents, net.first_picture],
            following: [net.latents, net.pictures],
            cleared: &net.cleared,
        };
        decoder.compare(&format!("{kind}, decoded"), [vae.config.z_dim * area; 2]);
        if !every_type() {
            continue;
        }
        let encoder = film.encoder.as_ref().unwrap();
        let (net, pixels) = (&encoder.net, 3 * area * vae.config.factor() * vae.config.factor());
        let encoder = Side {
            model: &net.model,
            weights: &encoder.bound,
            first: [net.first_picture, net.first_moments],
            following: [net.pictures, net.moments],
            cleared: &net.cleared,
        };
        encoder.compare(&format!("{kind}, encoded"), [pixels, 4 * pixels]);
    }
}
