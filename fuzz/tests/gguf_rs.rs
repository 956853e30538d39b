//! The GGUF reader held against the crate gguf-rs, on files that both mean to read: at most four dimensions, no arrays in
//! arrays, types up to 39, metadata whose value JSON can hold.

use std::io::Cursor;

use gguf_rs::{ByteOrder, GGUFContainer, GGUFModel};
use pinhole::gguf::{Array, Gguf, Value};
use pinhole::index::Map;
use pinhole_quant::DType;
use pinhole_quant::gguf::{Layout, TensorSpec, Writer};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::Value as Json;

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e6f32..1e6).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,40}".prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e6f64..1e6).prop_map(Value::F64),
        vec(any::<i32>(), 0..9).prop_map(|numbers| Value::Array(Array::I32(numbers))),
        vec(-1e6f32..1e6, 0..9).prop_map(|numbers| Value::Array(Array::F32(numbers))),
        vec(any::<bool>(), 0..9).prop_map(|truths| Value::Array(Array::Bool(truths))),
        vec(".{0,9}", 0..9).prop_map(|strings| Value::Array(Array::String(strings.iter().collect()))),
    ]
}

fn any_form() -> impl Strategy<Value = (DType, Vec<usize>)> {
    let dtypes: Vec<_> = DType::all().filter(|dtype| dtype.id() < 40).collect();
    (prop::sample::select(dtypes), vec(1usize..4, 1..5)).prop_map(|(dtype, mut dims)| {
        dims[0] *= dtype.block_size();
        (dtype, dims)
    })
}

fn decode(bytes: &[u8]) -> GGUFModel {
    // The container begins behind the magic.
    let reader = Box::new(Cursor::new(bytes[4..].to_vec()));
    GGUFContainer::new(ByteOrder::LE, reader, u64::MAX).decode().unwrap()
}

fn json(value: &Value) -> Json {
    match value {
        Value::U8(n) => (*n).into(),
        Value::I8(n) => (*n).into(),
        Value::U16(n) => (*n).into(),
        Value::I16(n) => (*n).into(),
        Value::U32(n) => (*n).into(),
        Value::I32(n) => (*n).into(),
        Value::F32(n) => (*n).into(),
        Value::Bool(truth) => (*truth).into(),
        Value::String(text) => text.as_str().into(),
        Value::U64(n) => (*n).into(),
        Value::I64(n) => (*n).into(),
        Value::F64(n) => (*n).into(),
        Value::Array(Array::I32(numbers)) => numbers.as_slice().into(),
        Value::Array(Array::F32(numbers)) => numbers.as_slice().into(),
        Value::Array(Array::Bool(truths)) => truths.as_slice().into(),
        Value::Array(Array::String(strings)) => strings.iter().collect(),
        other => panic!("{} is not generated", other.describe()),
    }
}

proptest! {
    #[test]
    fn both_readers_see_the_same(
        metadata in btree_map("[a-z_]{1,20}", any_value(), 0..8),
        tensors in btree_map("[a-z._]{1,63}", any_form(), 0..8),
        alignment in prop::sample::select(vec![8u32, 32, 4096]),
    ) {
        let metadata: Vec<_> = metadata.into_iter().collect();
        let specs: Vec<_> =
            tensors.into_iter().map(|(name, (dtype, dims))| TensorSpec { name, dims, dtype }).collect();
        let layout = Layout::new(&metadata, &specs, alignment).unwrap();
        let mut writer = Writer::new(Vec::new(), layout.clone()).unwrap();
        for tensor in layout.tensors() {
            writer.write_tensor(&tensor.name, &vec![0; tensor.bytes as usize]).unwrap();
        }
        let bytes = writer.finish().unwrap();

        let ours = Gguf::from_map(Map::from_bytes("f.gguf", &bytes).unwrap()).unwrap();
        let theirs = decode(&bytes);
        prop_assert_eq!(theirs.get_version(), format!("v{}", ours.version));
        prop_assert_eq!(theirs.alignment(), ours.alignment);
        prop_assert_eq!(theirs.metadata().len(), ours.metadata.len());
        for (key, value) in ours.metadata.iter() {
            prop_assert_eq!(theirs.metadata().get(key), Some(&json(value)), "{}", key);
        }
        prop_assert_eq!(theirs.tensors().len(), ours.index.len());
        for (theirs_tensor, (name, tensor)) in theirs.tensors().iter().zip(ours.index.iter()) {
            prop_assert_eq!(theirs_tensor.name.as_str(), name);
            let dims: Vec<_> = theirs_tensor.shape.iter().map(|&extent| extent as usize).collect();
            prop_assert_eq!(&dims, &tensor.file_shape);
            prop_assert_eq!(Some(tensor.storage), DType::from_id(theirs_tensor.kind).map(Into::into));
            prop_assert_eq!(theirs.data_offset() + theirs_tensor.offset, tensor.offset() as u64);
        }
    }
}
