//! Number formats against code that is not ours: what pinhole writes, and blocks that no one wrote, are decoded by the
//! Python package `gguf` to the same numbers, to the last bit.
//!
//! `tests/goldens/rows.gguf` is pinhole's own, of numbers from a formula; `PINHOLE_RECORD=1` makes it anew.
//! `tests/reference/rows.py` writes `blocks.gguf`, with random blocks of every format that the package knows, decodes both
//! files and records digests in `rows.json`.

use std::collections::BTreeSet;
use std::fs;

use crate::support::golden;
use crate::support::synth::Weight;
use pinhole::gguf::Gguf;
use pinhole_quant::DType;
use pinhole_quant::gguf::{Layout, TensorSpec, Writer};
use pinhole_quant::rows::{self, RowError};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The formats for which ggml first builds search grids, which takes it a quarter of a minute: decoded, not written.
const GRIDS: [DType; 4] = [DType::IQ3_XXS, DType::IQ3_S, DType::IQ2_S, DType::IQ1_M];

/// Formats of ggml's that the package does not decode; it does not even open a file that has them.
const UNKNOWN_TO_GGUF: [DType; 2] = [DType::Q1_0, DType::Q2_0];

/// A row that every block divides.
const ROW: usize = 256;

fn written() -> impl Iterator<Item = DType> {
    DType::all()
        .filter(|dtype| rows::can_quantize(*dtype) && ![GRIDS.as_slice(), &UNKNOWN_TO_GGUF].concat().contains(dtype))
}

/// The tensors of a format: a single row, an odd number of longer ones, rows of one block each, and unusual rows.
fn tensors(dtype: DType) -> Vec<(TensorSpec, Vec<f32>)> {
    let block = dtype.block_size().max(32);
    let numbers = |case: &str, rows: usize, row: usize| {
        let name = format!("{dtype}.{case}");
        let spec = TensorSpec { name: name.clone(), dims: vec![row, rows], dtype };
        (spec, formula(&name, rows * row))
    };
    let (special, numbers_of_special) = numbers("special", 5, ROW);
    vec![
        numbers("single", 1, ROW),
        numbers("odd", 3, 2 * ROW),
        numbers("blocks", 7, block),
        (special, unusual(numbers_of_special)),
    ]
}

/// Numbers from -0.1 to 0.1, about those of a trained matrix.
fn formula(name: &str, len: usize) -> Vec<f32> {
    let (component, name, shape) = ("rows".into(), name.into(), vec![len]);
    Weight { component, name, shape, scale: 0.1, offset: 0.0, first: Vec::new(), checksum: 0 }.values()
}

/// Five rows: of zeros, tiny, huge, with one number far from the rest, and of one number.
fn unusual(mut numbers: Vec<f32>) -> Vec<f32> {
    for (i, row) in numbers.chunks_exact_mut(ROW).enumerate() {
        match i {
            0 => row.fill(0.0),
            1 => row.iter_mut().for_each(|number| *number *= 1e-5),
            2 => row.iter_mut().for_each(|number| *number *= 1e5),
            3 => row[17] = 50.0,
            _ => row.fill(-1.5),
        }
    }
    numbers
}

/// The file of all formats, as pinhole writes it.
fn file() -> Vec<u8> {
    let tensors: Vec<(TensorSpec, Vec<f32>)> = written().flat_map(tensors).collect();
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = Writer::new(Vec::new(), Layout::new(&[], &specs, 32).unwrap()).unwrap();
    for (spec, numbers) in tensors {
        let row = spec.dims[0];
        let mut bytes = vec![0; spec.dtype.row_bytes(row).unwrap() * (numbers.len() / row)];
        let quantized = rows::quantize_parallel(spec.dtype, &numbers, row, &mut bytes);
        // NVFP4's scales stop at their largest, which is an error, and the bytes are ggml's all the same.
        let stops = matches!(quantized, Err(RowError::TooLarge { dtype: DType::NVFP4, .. }));
        assert!(stops || quantized.is_ok(), "{quantized:?}");
        writer.write_tensor(&spec.name, &bytes).unwrap();
    }
    writer.finish().unwrap()
}

fn recorded() -> Value {
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(golden::directory().join("rows.json")).unwrap()).unwrap();
    assert_eq!(golden["format"], 1);
    golden
}

fn digest(numbers: &[f32]) -> String {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asserts that every tensor of `name` reads as recorded; returns the formats that were read.
fn assert_decoded(name: &str) -> BTreeSet<DType> {
    let golden = recorded();
    let tensors = golden[name].as_object().unwrap();
    let gguf = Gguf::open(&golden::directory().join(format!("{name}.gguf"))).unwrap();
    let mut formats = BTreeSet::new();
    for (tensor, found) in gguf.index.iter() {
        let pinhole::index::Storage::Number(dtype) = found.storage else { panic!("{tensor}: {}", found.storage) };
        let mut numbers = vec![f32::NAN; found.shape.elements()];
        rows::dequantize_parallel(dtype, found.bytes(), &mut numbers).unwrap();
        let expected = tensors.get(tensor).unwrap_or_else(|| panic!("{tensor} is not recorded"));
        let first: Vec<f32> =
            expected["first"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect();
        assert_eq!(numbers[..first.len()], first, "{tensor}");
        assert_eq!(digest(&numbers), expected["sha256"].as_str().unwrap(), "{tensor}");
        formats.insert(dtype);
    }
    assert_eq!(gguf.index.len(), tensors.len());
    formats
}

#[test]
fn the_bytes_are_those_that_were_decoded() {
    let path = golden::directory().join("rows.gguf");
    let bytes = file();
    if std::env::var_os("PINHOLE_RECORD").is_some() {
        fs::write(&path, &bytes).unwrap();
    }
    assert!(fs::read(path).unwrap() == bytes, "quantizing gives other bytes than were recorded");
}

#[test]
fn what_pinhole_writes_is_what_gguf_reads() {
    assert_eq!(assert_decoded("rows"), written().collect());
}

#[test]
fn every_format_that_gguf_knows_is_read_alike() {
    let formats = assert_decoded("blocks");
    let known: BTreeSet<String> =
        recorded()["known"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_lowercase()).collect();
    assert_eq!(formats.iter().map(|dtype| dtype.name().to_owned()).collect::<BTreeSet<_>>(), known);
    // All that pinhole reads and that hold more than one number in a block, except for those that gguf does not know.
    let blocks = DType::all().filter(|dtype| dtype.is_quantized() && rows::can_dequantize(*dtype));
    assert!(blocks.filter(|dtype| !UNKNOWN_TO_GGUF.contains(dtype)).all(|dtype| formats.contains(&dtype)));
}
