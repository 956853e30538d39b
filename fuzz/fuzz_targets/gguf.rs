//! Any bytes as a GGUF file: an error or a sound index, never a panic.

#![no_main]

#[path = "../../tests/fixtures/mod.rs"]
mod fixtures;

use libfuzzer_sys::fuzz_target;
use pinhole::gguf::Gguf;
use pinhole::index::Map;

fuzz_target!(|bytes: &[u8]| {
    let Ok(map) = Map::from_bytes("fuzz.gguf", bytes) else { return };
    let Ok(file) = Gguf::from_map(map) else { return };
    fixtures::check_index(&file.index);
    assert!(file.index.iter().all(|(_, tensor)| (tensor.offset() as u64).is_multiple_of(file.alignment)));
    for (key, value) in file.metadata.iter() {
        assert_eq!(file.metadata.get(key).map(|found| found.kind()), Some(value.kind()));
        let _ = file.metadata.integers(key);
        if let Ok(Some(strings)) = file.metadata.strings(key) {
            assert_eq!(strings.iter().count(), strings.len());
        }
    }
});
