//! Bundles that are cut off or overwritten in places.

use std::fs;

use pinhole::Result;
use pinhole::index::Map;
use pinhole::pipeline::Opened;
use pinhole::source::Source;
use proptest::prelude::*;

use crate::disk::{bundle, refused};

fn open(bytes: &[u8]) -> Result<Opened> {
    pinhole::pipeline::open(&Source::from_map(Map::from_bytes("model.gguf", bytes)?)?)
}

/// Where the bytes of `text` begin.
fn find(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
}

#[test]
fn the_bundle_itself_is_good() {
    pinhole::pipeline::open(&Source::open(bundle()).unwrap()).unwrap();
}

#[test]
fn a_bundle_is_cut_off() {
    let bytes = fs::read(bundle()).unwrap();
    refused!(NotAModel, open(&bytes[..3]), "model.gguf");
    let config = find(&bytes, "pinhole.transformer.config");
    let tokenizer = find(&bytes, "pinhole.tokenizer.tokenizer_2");
    let tensor = find(&bytes, "dit.double_blocks.0.img_attn.qkv.weight");
    let half = bytes.len() / 2;
    // The last tensor may be followed by a page of padding.
    let last = bytes.len() - 4097;
    for length in [4, 8, 20, 30, config + 3, config + 100, tokenizer + 200, tensor + 5, half, last] {
        refused!(Malformed, open(&bytes[..length]), "model.gguf", "expected", "found");
    }
}

#[test]
fn a_download_that_goes_on_after_the_end() {
    let mut bytes = fs::read(bundle()).unwrap();
    bytes.extend([0; 100]);
    // Nothing refers to what is there.
    open(&bytes).unwrap();
}

/// Replaces `from` by `to`, which is as long.
fn replaced(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(bundle()).unwrap();
    let place = find(&bytes, from);
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn bundles_that_say_something_else() {
    refused!(NotAModel, open(&replaced("general.architecture", "general.architectura")), "architecture");
    // Without a version it is a file of another tool, whose names tell what it holds.
    open(&replaced("pinhole.version", "pinhole.verzion")).unwrap();
    refused!(NotAModel, open(&replaced("pinhole.components", "pinhole.componentz")), "no components");
    refused!(
        NotAModel,
        open(&replaced("pinhole.tokenizer.tokenizer_2", "pinhole.tokenizer.tokenizer_3")),
        "tokenizer_2"
    );
    refused!(Mismatch, open(&replaced("dit.img_in.weight", "dit.img_in.weighd")), "model.gguf", "weights");
    refused!(Malformed, open(&replaced("\"num_layers\"", "\"num_layers:")), "model.gguf");
    let mut newer = fs::read(bundle()).unwrap();
    let value = find(&newer, "pinhole.version") + "pinhole.version".len() + 4;
    newer[value] = 200;
    let error = refused!(Mismatch, open(&newer), "pinhole.version", "at most 1", "200");
    assert!(error.hint().unwrap().contains("newer"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a few bytes of the header become, the bundle opens or is refused by name.
    #[test]
    fn any_bytes_of_the_header_may_be_wrong(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = fs::read(bundle()).unwrap();
        let header = find(&bytes, "dit.double_blocks.0.img_attn.qkv.weight") + 10_000;
        for (place, byte) in changes {
            bytes[place.index(header)] = byte;
        }
        if let Err(error) = open(&bytes) {
            prop_assert!(error.to_string().contains("model.gguf"), "{}", error);
        }
    }
}
