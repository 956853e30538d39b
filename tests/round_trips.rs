//! Whatever is written is read back the same.

#![allow(missing_docs, clippy::unwrap_used)]

mod fixtures;

use std::collections::{BTreeMap, HashMap};

use fixtures::check_index;
use pinhole::gguf::Gguf;
use pinhole::index::Map;
use pinhole::safetensors::Safetensors;
use pinhole_quant::DType;
use pinhole_quant::gguf::{ALIGNMENT_KEY, Array, Layout, TensorSpec, Value, Writer};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};

/// Numbers that equal themselves, so that comparing values needs no exception.
fn any_f32() -> impl Strategy<Value = f32> {
    prop::num::f32::NORMAL | prop::num::f32::ZERO | prop::num::f32::INFINITE | prop::num::f32::SUBNORMAL
}

fn any_array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any_f32(), 0..9).prop_map(Array::F32),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(".{0,9}", 0..9).prop_map(|strings| Array::String(strings.iter().collect())),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(any_f32().prop_map(f64::from), 0..9).prop_map(Array::F64),
    ];
    flat.prop_recursive(3, 16, 4, |inner| vec(inner, 0..4).prop_map(Array::Array))
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any_f32().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,40}".prop_map(Value::String),
        any_array().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any_f32().prop_map(|number| Value::F64(number.into())),
    ]
}

/// A number format with extents that its block divides.
fn any_form() -> impl Strategy<Value = (DType, Vec<usize>)> {
    let dtypes: Vec<_> = DType::all().collect();
    (prop::sample::select(dtypes), vec(1usize..4, 1..5)).prop_map(|(dtype, mut dims)| {
        dims[0] *= dtype.block_size();
        (dtype, dims)
    })
}

/// Bytes that depend on the tensor, so that swapped tensors are noticed.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + seed * 7 + 1) as u8).collect()
}

fn view_bytes(dtype: Dtype, shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * dtype.bitsize() / 8
}

proptest! {
    #[test]
    fn gguf(
        metadata in btree_map("[a-z0-9._]{1,20}", any_value(), 0..8),
        tensors in btree_map("[ -~]{1,63}", any_form(), 0..8),
        alignment in prop::sample::select(vec![8u32, 32, 64, 4096]),
    ) {
        let metadata: Vec<_> = metadata.into_iter().filter(|(key, _)| key != ALIGNMENT_KEY).collect();
        let specs: Vec<_> = tensors
            .into_iter()
            .map(|(name, (dtype, dims))| TensorSpec { name, dims, dtype })
            .collect();
        let layout = Layout::new(&metadata, &specs, alignment).unwrap();
        let mut writer = Writer::new(Vec::new(), layout.clone()).unwrap();
        for (seed, tensor) in layout.tensors().iter().enumerate() {
            writer.write_tensor(&tensor.name, &pattern(seed, tensor.bytes as usize)).unwrap();
        }
        let bytes = writer.finish().unwrap();
        prop_assert_eq!(bytes.len() as u64, layout.total_bytes());

        let file = Gguf::from_map(Map::from_bytes("written.gguf", &bytes).unwrap()).unwrap();
        check_index(&file.index);
        prop_assert_eq!(file.version, 3);
        prop_assert_eq!(file.alignment, u64::from(alignment));
        let read: Vec<_> = file.metadata.iter().filter(|(key, _)| *key != ALIGNMENT_KEY).collect();
        let written: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        prop_assert_eq!(read, written);
        prop_assert_eq!(file.index.len(), specs.len());
        for (seed, ((name, tensor), (spec, placed))) in
            file.index.iter().zip(specs.iter().zip(layout.tensors())).enumerate()
        {
            prop_assert_eq!(name, &spec.name);
            prop_assert_eq!(tensor.storage, spec.dtype);
            prop_assert_eq!(&tensor.file_shape, &spec.dims);
            prop_assert_eq!(tensor.offset() as u64, placed.offset);
            prop_assert_eq!(tensor.bytes(), pattern(seed, placed.bytes as usize));
        }
    }

    #[test]
    fn safetensors_files(
        tensors in btree_map(
            "[ -~]{1,40}",
            (
                prop::sample::select(vec![
                    Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::BOOL,
                    Dtype::U8, Dtype::U16, Dtype::U32, Dtype::U64, Dtype::I8, Dtype::I16, Dtype::I32, Dtype::I64,
                ]),
                vec(1usize..4, 0..7),
            ),
            0..8,
        ),
        // Not empty: the crate writes broken JSON for an empty map beside no tensors.
        metadata in prop::option::of(prop::collection::hash_map(".{0,9}", ".{0,9}", 1..4)),
    ) {
        let tensors: BTreeMap<_, _> = tensors.into_iter().filter(|(name, _)| name != "__metadata__").collect();
        let data: Vec<_> =
            tensors.values().enumerate().map(|(seed, (dtype, shape))| pattern(seed, view_bytes(*dtype, shape))).collect();
        let views = tensors.iter().zip(&data).map(|((name, (dtype, shape)), bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, metadata.clone()).unwrap();

        let file = Safetensors::from_map(Map::from_bytes("written.safetensors", &bytes).unwrap()).unwrap();
        check_index(&file.index);
        let found: HashMap<_, _> = file.metadata.into_iter().collect();
        prop_assert_eq!(found, metadata.unwrap_or_default());
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(file.index.len(), theirs.len());
        for (name, view) in theirs.iter() {
            let tensor = file.index.get(name).unwrap();
            prop_assert_eq!(tensor.bytes(), view.data());
            let dims: Vec<_> = view.shape().iter().rev().copied().collect();
            let dims = if dims.is_empty() { vec![1] } else { dims };
            prop_assert_eq!(&tensor.file_shape, &dims);
        }
    }

    #[test]
    fn noise_is_never_more_than_an_error(bytes in vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        let bytes = if magic { [&b"GGUF\x03\0\0\0"[..], &bytes].concat() } else { bytes };
        if let Ok(file) = Gguf::from_map(Map::from_bytes("noise", &bytes).unwrap()) {
            check_index(&file.index);
        }
        if let Ok(file) = Safetensors::from_map(Map::from_bytes("noise", &bytes).unwrap()) {
            check_index(&file.index);
        }
    }
}
