//! Files that are wrong in one way each, as bytes.

use std::fs;
use std::path::Path;

use super::Verdict::{self, OnlyRead, Refused};
use super::fixtures::{
    ARRAY, BOOL, RawGguf, RawTensor, STRING, U8, U32, array, nested, safetensors, small_safetensors, string, text,
    typed,
};

type File = (String, Vec<u8>, Verdict);

/// Those that are given for every part as well.
pub(super) const IN_EVERY_PLACE: [&str; 10] = [
    "small.gguf",
    "cut-20.gguf",
    "magic-ggjt.gguf",
    "deep-10000.gguf",
    "cut-50.safetensors",
    "no-json-2.safetensors",
    "empty",
    "page",
    "pointer",
    "pickle",
];

pub(super) fn all() -> Vec<File> {
    [gguf_headers(), gguf_metadata(), gguf_tensors(), safetensors_headers(), safetensors_tensors(), others(), bundles()]
        .concat()
}

fn gguf(name: impl AsRef<str>, file: &RawGguf, verdict: Verdict) -> File {
    (format!("{}.gguf", name.as_ref()), file.bytes(), verdict)
}

fn gguf_headers() -> Vec<File> {
    let small = RawGguf::small;
    let mut files = vec![
        gguf("small", &small(), OnlyRead),
        gguf("no-tensors", &RawGguf::empty(), OnlyRead),
        gguf("version-2", &RawGguf { version: 2, ..small() }, OnlyRead),
        gguf("magic-ggjt", &RawGguf { magic: *b"ggjt", ..small() }, Refused),
        gguf("magic-zip", &RawGguf { magic: *b"PK\x03\x04", ..small() }, Refused),
        gguf("big-endian", &RawGguf { version: 3 << 24, ..small() }, Refused),
        gguf("big-endian-magic", &RawGguf { magic: *b"FUGG", ..small() }, Refused),
        gguf("more-tensors", &RawGguf { tensor_count: Some(4), ..small() }, Refused),
        gguf("fewer-keys", &RawGguf { key_count: Some(4), ..small() }, Refused),
        gguf("more-keys", &RawGguf { key_count: Some(6), ..small() }, Refused),
    ];
    for version in [0, 1, 4, u32::MAX] {
        files.push(gguf(format!("version-{version}"), &RawGguf { version, ..small() }, Refused));
    }
    for count in [1000, 1 << 17, 1 << 32, u64::MAX] {
        files.push(gguf(format!("tensors-{count}"), &RawGguf { tensor_count: Some(count), ..small() }, Refused));
        files.push(gguf(format!("keys-{count}"), &RawGguf { key_count: Some(count), ..small() }, Refused));
    }
    let (bytes, header) = (small().bytes(), small().header().len());
    for length in [3, 4, 6, 12, 20, header / 2, header - 1, header, bytes.len() - 1] {
        files.push((format!("cut-{length}.gguf"), bytes[..length].to_vec(), Refused));
    }
    files
}

fn gguf_metadata() -> Vec<File> {
    let mut files = Vec::new();
    let mut entry = |name: String, key: &str, value: Vec<u8>, verdict| {
        files.push(gguf(name, &RawGguf::with_entry(key, value), verdict));
    };
    entry("long-text".into(), "k", typed(STRING, &(1u64 << 40).to_le_bytes()), Refused);
    for kind in [U8, U32, STRING, ARRAY, BOOL, 12] {
        for count in [1000, 1 << 40, u64::MAX] {
            entry(format!("array-{kind}-{count}"), "k", array(kind, count, &[]), Refused);
        }
    }
    entry("deep-4".into(), "k", nested(4), OnlyRead);
    entry("deep-5".into(), "k", nested(5), Refused);
    entry("deep-10000".into(), "k", nested(10_000), Refused);
    entry("value-type".into(), "k", typed(13, &[0; 8]), Refused);
    entry("element-type".into(), "k", array(99, 0, &[]), Refused);
    entry("bool".into(), "k", typed(BOOL, &[2]), Refused);
    entry("bools".into(), "k", array(BOOL, 2, &[1, 255]), Refused);
    entry("text-latin".into(), "k", text(b"a\xff"), Refused);
    entry("token-latin".into(), "k", array(STRING, 1, &string(b"\xc3")), Refused);
    entry("key-empty".into(), "", text(b""), Refused);
    entry("key-escape".into(), "a\x1bb", text(b""), Refused);
    entry("key-twice".into(), "some.flag", text(b""), Refused);
    entry("key-long".into(), &"k".repeat(65536), text(b""), Refused);
    for alignment in [0, 1, 4, 24, 33, 1 << 31, u32::MAX] {
        let value = typed(U32, &u32::to_le_bytes(alignment));
        entry(format!("alignment-{alignment}"), "general.alignment", value, Refused);
    }
    entry("alignment-text".into(), "general.alignment", text(b"32"), Refused);
    // Values that have a meaning, of another type or size.
    entry("architecture-number".into(), "pinhole.version", text(b"one"), Refused);
    entry("newer".into(), "pinhole.version", typed(U32, &9u32.to_le_bytes()), Refused);
    entry("no-components".into(), "pinhole.version", typed(U32, &1u32.to_le_bytes()), Refused);
    entry("piece".into(), "split.count", typed(U32, &3u32.to_le_bytes()), Refused);
    entry("piece-text".into(), "split.count", text(b"3"), OnlyRead);
    entry("orig-shape-of-nothing".into(), "comfy.gguf.orig_shape.x", array(5, 1, &7u32.to_le_bytes()), OnlyRead);
    for (name, list) in [("lie", &[5u32][..]), ("empty", &[]), ("zero", &[0, 3]), ("huge", &[u32::MAX >> 1; 9])] {
        let extents: Vec<u8> = list.iter().flat_map(|extent| extent.to_le_bytes()).collect();
        let value = array(5, list.len() as u64, &extents);
        entry(format!("orig-shape-{name}"), "comfy.gguf.orig_shape.vector", value, OnlyRead);
    }
    files
}

fn gguf_tensors() -> Vec<File> {
    let mut files = Vec::new();
    let mut tensors = |name: &str, tensors: &[RawTensor], verdict| {
        files.push(gguf(name, &RawGguf::with_tensors(tensors), verdict));
    };
    let one = |dims: &[u64], type_id, offset| vec![RawTensor::new("w", dims, type_id, offset)];
    for id in [4, 31, 36, 43, 1000, u32::MAX] {
        tensors(&format!("type-{id}"), &one(&[32], id, 0), OnlyRead);
    }
    tensors("type-43-outside", &one(&[256], 43, 1 << 40), Refused);
    tensors("extent-0", &one(&[3, 0], 0, 0), OnlyRead);
    tensors("rows-of-33", &one(&[33], 8, 0), OnlyRead);
    tensors("dims-65", &one(&[1; 65], 0, 0), Refused);
    tensors("dims-lie", &[RawTensor { rank: Some(u32::MAX), ..RawTensor::new("w", &[1], 0, 0) }], Refused);
    tensors("dims-7", &one(&[2, 1, 3, 1, 1, 2, 1], 0, 0), OnlyRead);
    for (i, dims) in
        [&[1 << 62][..], &[1 << 32, 1 << 32], &[u64::MAX], &[1 << 40, 1, 1, 1 << 20, 1 << 20]].iter().enumerate()
    {
        tensors(&format!("overflow-{i}"), &one(dims, 0, 0), Refused);
    }
    tensors("misaligned", &one(&[1], 0, 16), Refused);
    tensors("outside", &one(&[1], 0, 1 << 40), Refused);
    tensors("offset-overflow", &one(&[1], 0, u64::MAX - 31), Refused);
    tensors("past-the-end", &one(&[45], 0, 0), Refused);
    tensors("name-empty", &[RawTensor::new("", &[1], 0, 0)], Refused);
    tensors("name-long", &[RawTensor::new(&"n".repeat(513), &[1], 0, 0)], Refused);
    tensors("name-newline", &[RawTensor::new("a\nb", &[1], 0, 0)], Refused);
    tensors("twice", &[RawTensor::new("a", &[1], 0, 0), RawTensor::new("a", &[1], 0, 32)], Refused);
    tensors("shared", &[RawTensor::new("a", &[9], 0, 32), RawTensor::new("b", &[8], 0, 64)], Refused);
    tensors("gap", &[RawTensor::new("late", &[4], 0, 128), RawTensor::new("early", &[4], 0, 0)], OnlyRead);
    files
}

fn safetensors_headers() -> Vec<File> {
    let mut files = vec![
        ("small.safetensors".into(), small_safetensors(), OnlyRead),
        ("no-tensors.safetensors".into(), safetensors("{}", 0), OnlyRead),
    ];
    let bytes = small_safetensors();
    for length in [5, 7, 8, 50, bytes.len() - 1] {
        files.push((format!("cut-{length}.safetensors"), bytes[..length].to_vec(), Refused));
    }
    for length in [100, 100_000_001, 1 << 40, u64::MAX] {
        let mut bytes = safetensors("{}", 0);
        bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
        files.push((format!("header-of-{length}.safetensors"), bytes, Refused));
    }
    let deep = format!(r#"{{"w":{}"#, "[".repeat(10_000));
    for (i, header) in ["", "{", "[]", "{} x", &"[".repeat(10_000), &deep].into_iter().enumerate() {
        files.push((format!("no-json-{i}.safetensors"), safetensors(header, 0), Refused));
    }
    let mut latin = safetensors("{}", 0);
    latin[8] = 0xff;
    files.push(("header-latin.safetensors".into(), latin, Refused));
    files
}

/// A header with one tensor, `w`.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

fn safetensors_tensors() -> Vec<File> {
    let entry = r#""w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let good = one("U8", "[1]", "[0,1]");
    let cases: Vec<(&str, String, usize, Verdict)> = vec![
        ("twice", format!("{{{entry},{entry}}}"), 1, Refused),
        ("metadata-twice", r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, Refused),
        ("metadata-number", r#"{"__metadata__":{"a":1}}"#.into(), 0, Refused),
        ("no-fields", r#"{"w":{}}"#.into(), 0, Refused),
        ("number", r#"{"w":1}"#.into(), 0, Refused),
        ("extent-1.5", one("U8", "[1.5]", "[0,1]"), 1, Refused),
        ("extent-minus", one("U8", "[-1]", "[0,1]"), 1, Refused),
        ("extent-2-64", one("U8", "[18446744073709551616]", "[0,1]"), 1, Refused),
        ("one-offset", one("U8", "[1]", "[0]"), 1, Refused),
        ("name-empty", good.replace("\"w\"", "\"\""), 1, Refused),
        ("name-escape", good.replace("\"w\"", "\"a\\u001bb\""), 1, Refused),
        ("c64", one("C64", "[1]", "[0,8]"), 8, OnlyRead),
        ("f4", one("F4", "[2]", "[0,1]"), 1, OnlyRead),
        ("q99", one("Q99", "[1]", "[0,1]"), 1, OnlyRead),
        ("extent-0", one("F32", "[2,0]", "[0,0]"), 0, OnlyRead),
        ("f4-outside", one("F4", "[2]", "[0,18446744073709551615]"), 0, Refused),
        ("too-few-bytes", one("F32", "[3]", "[0,8]"), 8, Refused),
        ("backwards", one("F32", "[3]", "[12,0]"), 12, Refused),
        ("overflow", one("U8", "[4294967296,4294967296]", "[0,8]"), 8, Refused),
        ("gap-before", one("U8", "[4]", "[4,8]"), 8, Refused),
        ("past-the-end", one("U8", "[4]", "[0,4]"), 3, Refused),
        ("bytes-behind", one("U8", "[4]", "[0,4]"), 5, Refused),
        ("only-bytes", "{}".into(), 1, Refused),
    ];
    cases
        .into_iter()
        .map(|(name, header, data, verdict)| (format!("{name}.safetensors"), safetensors(&header, data), verdict))
        .collect()
}

/// What is neither of the two formats.
fn others() -> Vec<File> {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 23802932552\n";
    let refusal = br#"{"error":"Access to model x/y is restricted and you are not in the authorized list."}"#;
    let files: [(&str, &[u8]); 16] = [
        ("empty", b""),
        ("empty.gguf", b""),
        ("one-byte", b"G"),
        ("page", b"<!DOCTYPE html><html><body>404</body></html>"),
        ("page.gguf", b"<html>Sign in</html>"),
        ("pointer", pointer),
        ("pointer.safetensors", pointer),
        ("refusal", refusal),
        ("not-found", b"Entry not found"),
        ("letter", b"this is a letter and no model, however long one looks at it"),
        ("zeros", &[0; 4096]),
        ("ones", &[0xff; 4096]),
        ("pickle", b"PK\x03\x04archive/data.pkl"),
        ("old.bin", b"\x80\x02}q\x00."),
        ("archive", b"7z\xbc\xaf\x27\x1c"),
        ("picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    ];
    let mut all: Vec<File> = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec(), Refused)).collect();
    let index = |text: &str| text.as_bytes().to_vec();
    for (name, text) in [
        ("index-empty", ""),
        ("index-list", r#"{"weight_map":[]}"#),
        ("index-number", r#"{"weight_map":{"a":1}}"#),
        ("index-gone", r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#),
        ("index-above", r#"{"weight_map":{"a":"../small.safetensors"}}"#),
        ("index-root", r#"{"weight_map":{"a":"/etc/passwd"}}"#),
        ("index-twice", r#"{"weight_map":{"a":"small.safetensors","a":"small.safetensors"}}"#),
        ("index-of-other", r#"{"weight_map":{"none.of.these":"small.safetensors"}}"#),
        ("index-of-itself", r#"{"weight_map":{"a":"index-of-itself.safetensors.index.json"}}"#),
    ] {
        all.push((format!("{name}.safetensors.index.json"), index(text), Refused));
    }
    all
}

/// The built-in model's file, cut short or changed in a place.
fn bundles() -> Vec<File> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini/mini.gguf");
    let path =
        if path.exists() { path } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/mini.gguf") };
    let bytes = fs::read(path).unwrap();
    let find = |text: &str| bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    let tensor = find("dit.double_blocks.0.img_attn.qkv.weight");
    let mut files = Vec::new();
    for length in [30, find("pinhole.transformer.config") + 100, tensor + 5, bytes.len() / 2, bytes.len() - 4097] {
        files.push((format!("bundle-cut-{length}.gguf"), bytes[..length].to_vec(), Refused));
    }
    for (name, from, to) in [
        ("architecture", "general.architecture", "general.architectura"),
        ("components", "pinhole.components", "pinhole.componentz"),
        ("tokenizer", "pinhole.tokenizer.tokenizer_2", "pinhole.tokenizer.tokenizer_3"),
        ("weight", "dit.img_in.weight", "dit.img_in.weighd"),
        ("config", "\"num_layers\"", "\"num_layers:"),
        ("schedule", "\"FlowMatchEuler", "\"FlowMatchEulex"),
    ] {
        let (mut changed, at) = (bytes.clone(), find(from));
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        files.push((format!("bundle-{name}.gguf"), changed, Refused));
    }
    let mut longer = bytes.clone();
    longer.extend([0; 100]);
    files.push(("bundle-longer.gguf".into(), longer, Verdict::Fine));
    files
}
