//! Metadata values as bytes.

use super::value::{Array, Value};

/// Appends a string: its length as `u64`, then its bytes.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends a value's type id, then the value.
pub(super) fn typed_value(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(&value.kind().id().to_le_bytes());
    match value {
        Value::U8(n) => out.push(*n),
        Value::I8(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::U16(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I16(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::U32(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I32(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::F32(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(text) => string(out, text),
        Value::Array(elements) => array(out, elements),
        Value::U64(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I64(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::F64(n) => out.extend_from_slice(&n.to_le_bytes()),
    }
}

/// Appends an array: the type id of its elements, their number as `u64`, the elements.
fn array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.kind().id().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&b| u8::from(b))),
        Array::String(strings) => strings.iter().for_each(|text| string(out, text)),
        Array::Array(inner) => inner.iter().for_each(|elements| self::array(out, elements)),
        Array::U64(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
    }
}
