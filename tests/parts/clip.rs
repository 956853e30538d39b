//! What CLIP's text encoder can be asked for, against transformers in float32; recorded by `tests/reference/clip.py`.

use crate::support::{Golden, formula};
use pinhole::bind::{Bound, alias};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::clip::{Clip, Config, Output, causal_mask};
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole_quant::metrics;

/// The hidden states and the projected pooled vector that the golden's model gives as `output`.
fn encoded(golden: &Golden, output: Output) -> (Vec<f32>, Option<Vec<f32>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clip.safetensors");
    formula::write(&path, golden, "clip");
    let config = Config::from_json(&golden.at("/clip/config").to_string(), &path).unwrap();
    let clip = Clip::with(&config, output).unwrap();
    let index = pinhole::safetensors::open(&path).unwrap();
    let bound = Bound::new(clip.model.manifest(), &index, "", &alias::clip, &path).unwrap();
    let (ids, width) = (golden.ids("/ids"), config.hidden_size);
    let mut hidden = bound.gather(clip.token_embedding, width, &ids).unwrap();
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let positions = bound.gather(clip.position_embedding, width, &rows).unwrap();
    hidden.iter_mut().zip(positions).for_each(|(token, position)| *token += position);

    let ledger = Ledger::new();
    let mut backend = Backend::new(Device::cpu().unwrap(), 2, CancelFlag::new()).unwrap();
    let weights = DeviceWeights::load(&clip.model, &bound, backend.device(), &ledger).unwrap();
    let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, ids.len());
    let mut session = Session::new(&clip.model, &weights, &dims, &backend, &ledger).unwrap();
    session.set(clip.hidden, &hidden).unwrap();
    session.set(clip.mask, &causal_mask(ids.len()).unwrap()).unwrap();
    if let Some(pooled) = clip.pooled {
        let end = i32::try_from(config.pooled_position(&ids)).unwrap();
        session.set_indices(pooled.end, &[end]).unwrap();
    }
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    (session.get(clip.states).unwrap(), clip.pooled.map(|pooled| session.get(pooled.pooled).unwrap()))
}

#[track_caller]
fn assert_nmse(what: &str, reference: &[f32], value: &[f32]) {
    let nmse = metrics::nmse(reference, value).unwrap_or_else(|| panic!("{what}: lengths differ or not finite"));
    println!("{what}: nmse {nmse:.2e}");
    assert!(nmse <= 1e-10, "{what}: nmse {nmse:e} is above 1e-10");
}

#[test]
fn every_output_equals_transformers() {
    let golden = Golden::load("clip");
    let outputs = [
        ("last", Output::LAST),
        ("second_last", Output::SECOND_LAST),
        ("second_last", Output::SECOND_LAST_PROJECTED),
        ("skipped", Output { skipped: 2, ..Output::LAST }),
        ("last", Output { projected: true, ..Output::LAST }),
    ];
    for (name, output) in outputs {
        let (states, pooled) = encoded(&golden, output);
        assert_nmse(&format!("{name} {output:?}"), &golden.f32(name), &states);
        assert_eq!(pooled.is_some(), output.projected);
        if let Some(pooled) = pooled {
            assert_nmse("pooled", &golden.f32("pooled"), &pooled);
        }
    }
}
