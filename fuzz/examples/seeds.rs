//! Writes the seed corpora into `corpus/`: valid files for the fuzzers to bend.

#[path = "../../tests/fixtures/mod.rs"]
mod fixtures;

use std::fs;
use std::io::Result;
use std::path::Path;

use fixtures::{RawGguf, RawTensor};
use pinhole_quant::DType;

fn main() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    write(&corpus.join("gguf"), gguf())?;
    write(&corpus.join("safetensors"), safetensors())?;
    write(&corpus.join("pictures"), pictures()?)
}

fn write(directory: &Path, seeds: Vec<Vec<u8>>) -> Result<()> {
    fs::create_dir_all(directory)?;
    seeds.iter().enumerate().try_for_each(|(number, seed)| fs::write(directory.join(format!("seed-{number}")), seed))
}

fn gguf() -> Vec<Vec<u8>> {
    let mut seeds = vec![RawGguf::small().bytes(), RawGguf::empty().bytes()];
    seeds.push(RawGguf { version: 2, ..RawGguf::small() }.bytes());
    seeds.push(RawGguf { version: 1, ..RawGguf::small() }.bytes());
    seeds.push(RawGguf { magic: *b"FUGG", ..RawGguf::small() }.bytes());
    seeds.push(RawGguf::with_entry("deep", fixtures::nested(4)).bytes());
    let mut aligned = RawGguf::with_entry("general.alignment", fixtures::typed(fixtures::U32, &64u32.to_le_bytes()));
    aligned.alignment = 64;
    aligned.tensors.truncate(1);
    seeds.push(aligned.bytes());
    // One of each value type, scalar and in an array; the bytes are good for any of them.
    let mut values = RawGguf::empty();
    for kind in (0..13).filter(|&kind| kind != fixtures::ARRAY) {
        values.push(&format!("scalar{kind}"), fixtures::typed(kind, &[0; 8][..width(kind)]));
        values.push(&format!("array{kind}"), fixtures::array(kind, 2, &[0; 16][..2 * width(kind)]));
    }
    seeds.push(values.bytes());
    for dtype in DType::all() {
        let tensor = RawTensor::new("w", &[dtype.block_size() as u64, 2], dtype.id(), 0);
        let data = vec![0; 2 * dtype.block_bytes()];
        seeds.push(RawGguf { tensors: vec![tensor], data, ..RawGguf::empty() }.bytes());
    }
    seeds
}

/// Bytes of a value of this type; strings are empty.
fn width(kind: u32) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    }
}

fn safetensors() -> Vec<Vec<u8>> {
    let mut seeds = vec![fixtures::small_safetensors(), fixtures::safetensors("{}", 0)];
    let formats = [
        "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8",
        "BOOL", "C64", "F4",
    ];
    for format in formats {
        for bytes in [1, 2, 4, 8] {
            let header = format!(r#"{{"w":{{"dtype":"{format}","shape":[1,1],"data_offsets":[0,{bytes}]}}}}"#);
            seeds.push(fixtures::safetensors(&header, bytes));
        }
    }
    let twice =
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    seeds.push(fixtures::safetensors(twice, 1));
    seeds
}

fn pictures() -> Result<Vec<Vec<u8>>> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/pictures");
    fs::read_dir(goldens)?.map(|entry| fs::read(entry?.path())).collect()
}
