//! Any bytes as a safetensors file: an error or a sound index, never a panic; and the same as the format's own reader
//! wherever the two mean to agree.

#![no_main]

#[path = "../../tests/fixtures/mod.rs"]
mod fixtures;

use libfuzzer_sys::fuzz_target;
use pinhole::index::{Index, Map};
use pinhole::safetensors::Safetensors;
use safetensors::tensor::{SafeTensors, TensorView};

fuzz_target!(|bytes: &[u8]| {
    let Ok(map) = Map::from_bytes("fuzz.safetensors", bytes) else { return };
    let ours = Safetensors::from_map(map);
    match (ours, SafeTensors::deserialize(bytes)) {
        (Ok(ours), Ok(theirs)) => {
            fixtures::check_index(&ours.index);
            same(&ours.index, &theirs);
        }
        (Ok(_), Err(error)) => panic!("accepted what the format's own reader refuses: {error}"),
        (Err(error), Ok(theirs)) => {
            let twice = error.to_string().contains("is there twice");
            let unusual = theirs.iter().any(|(name, view)| is_unusual(name, &view));
            assert!(twice || unusual, "refused what the format's own reader accepts: {error}");
        }
        (Err(_), Err(_)) => {}
    }
});

fn same(ours: &Index, theirs: &SafeTensors<'_>) {
    assert_eq!(ours.len(), theirs.len());
    for (name, view) in theirs.iter() {
        assert_eq!(ours.get(name).map(|tensor| tensor.bytes()), Some(view.data()), "{name}");
    }
}

/// Whether a tensor is one that the format allows and pinhole does not read.
fn is_unusual(name: &str, view: &TensorView<'_>) -> bool {
    let format = format!("{:?}", view.dtype());
    let exotic = format == "C64" || format == "F8_E8M0" || format.ends_with("FNUZ") || view.dtype().bitsize() < 8;
    let shape = view.shape();
    exotic
        || shape.contains(&0)
        || shape.len() > 8
        || name.is_empty()
        || name.len() > 512
        || name.contains(char::is_control)
}
