//! The synthetic models of the goldens are the same here as in Python, to the last bit.

use std::fs;

use crate::support::{Golden, Layout, synth, write_component, write_model};
use half::bf16;
use safetensors::{Dtype, SafeTensors};

const CASES: [&str; 4] = ["dev", "schnell", "loose", "odd_vae"];

#[test]
fn every_weight_equals_pythons() {
    for case in CASES {
        let golden = Golden::load(case);
        for component in golden.at("/components").as_object().unwrap().keys() {
            for weight in synth::weights(&golden, component) {
                let (values, name) = (weight.values(), &weight.name);
                assert_eq!(values[..weight.first.len()], weight.first, "{case}: {component}/{name}");
                assert_eq!(synth::checksum(&values), weight.checksum, "{case}: {component}/{name}");
            }
        }
    }
}

#[test]
fn the_checksum_sees_the_order() {
    assert_ne!(synth::checksum(&[1.0, 2.0]), synth::checksum(&[2.0, 1.0]));
}

#[test]
fn a_written_model_holds_every_weight_once() {
    let (dir, golden) = (tempfile::tempdir().unwrap(), Golden::load("schnell"));
    write_model(dir.path(), &golden, &Layout::default());
    for file in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer.json",
    ] {
        assert!(dir.path().join(file).is_file(), "{file}");
    }
    for (key, component) in golden.at("/components").as_object().unwrap() {
        let bytes = fs::read(dir.path().join(key).join(component["file"].as_str().unwrap())).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let weights = synth::weights(&golden, key);
        assert_eq!(file.len(), weights.len());
        for weight in weights {
            let stored = file.tensor(&weight.name).unwrap();
            assert_eq!(stored.shape(), weight.shape);
            assert!(stored.data().chunks(4).zip(weight.values()).all(|(b, v)| b == v.to_le_bytes()), "{}", weight.name);
        }
    }
}

#[test]
fn shards_and_their_index_hold_the_same_in_bf16() {
    let (dir, golden) = (tempfile::tempdir().unwrap(), Golden::load("odd_vae"));
    let layout = Layout { dtype: Dtype::BF16, max_shard_bytes: Some(600_000), ..Layout::default() };
    write_component(dir.path(), &golden, "vae", &layout);
    let index = fs::read(dir.path().join("diffusion_pytorch_model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let weights = synth::weights(&golden, "vae");
    assert_eq!(map.len(), weights.len());
    let mut files: Vec<_> = map.values().map(|file| file.as_str().unwrap()).collect();
    files.sort_unstable();
    files.dedup();
    assert!(files.len() > 1 && files[0].ends_with(&format!("-00001-of-{:05}.safetensors", files.len())), "{files:?}");
    for weight in weights {
        let bytes = fs::read(dir.path().join(map[&weight.name].as_str().unwrap())).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let stored = file.tensor(&weight.name).unwrap();
        let rounded: Vec<u8> = weight.values().iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(stored.data(), rounded, "{}", weight.name);
    }
}
