//! Safetensors files.

use super::*;

fn open(bytes: &[u8]) -> Result<Safetensors> {
    Safetensors::from_map(Map::from_bytes("bad.safetensors", bytes).unwrap())
}

/// Opens a bad file and looks for `parts` in what is said about it.
#[track_caller]
fn refused(header: &str, data: usize, parts: &[&str]) {
    let message = message(open(&safetensors(header, data)));
    contains(&message, &["bad.safetensors: "]);
    contains(&message, parts);
}

/// Opens a file with one tensor, `w`, which no weight can be read from, and looks for `found` in what is said where a weight
/// needs it.
#[track_caller]
fn of_no_use(header: &str, data: usize, found: &str) {
    let other = only_other(&open(&safetensors(header, data)).unwrap().index);
    assert_eq!(other.bytes, data);
    contains(&other.refusal().to_string(), &["bad.safetensors: tensor `w`", &format!("found {found}")]);
}

/// A header with one tensor, `w`.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn the_fixture_itself_is_good() {
    let file = open(&small_safetensors()).unwrap();
    check_index(&file.index);
    assert_eq!(file.metadata["format"], "pt");
    assert_eq!(file.index.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a.bias", "b.weight", "scale", "conv"]);
    assert_eq!(file.index.get("b.weight").unwrap().shape, [3, 2]);
    assert_eq!(file.index.get("b.weight").unwrap().bytes(), (8..20).collect::<Vec<u8>>());
    assert_eq!(file.index.get("scale").unwrap().file_shape, [1]);
    assert_eq!(file.index.get("conv").unwrap().shape, [2, 1, 1, 6]);
    assert!(open(&safetensors("{}", 0)).unwrap().index.is_empty());
    assert!(open(&safetensors(r#"{"__metadata__":null}  "#, 0)).is_ok());
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let bytes = small_safetensors();
    for length in 0..bytes.len() {
        message(open(&bytes[..length]));
    }
    contains(&message(open(&bytes[..5])), &["header length: expected 8 bytes, found a file of 5 bytes"]);
    contains(&message(open(&bytes[..50])), &["header length: expected at most 42"]);
    contains(&message(open(&bytes[..bytes.len() - 1])), &["tensor `conv`: expected 12 bytes"]);
}

#[test]
fn any_byte_may_be_wrong() {
    let bytes = small_safetensors();
    for position in 0..bytes.len() {
        for value in [0, 1, b'"', b'0', b'9', b'}', b',', 0x7f, 0x80, 0xff, !bytes[position]] {
            let mut bytes = bytes.clone();
            bytes[position] = value;
            if let Ok(file) = open(&bytes) {
                check_index(&file.index);
            }
        }
    }
}

#[test]
fn huge_header_lengths() {
    for length in [100, 100_000_001, 1 << 40, u64::MAX] {
        let mut bytes = safetensors("{}", 0);
        bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
        contains(&message(open(&bytes)), &["header length: expected at most 2", &format!("found {length}")]);
    }
}

#[test]
fn files_of_other_formats_are_called_that() {
    for (begin, named) in [
        (&b"GGUF\x03\0\0\0\x05"[..], "a GGUF file"),
        (b"PK\x03\x04archive/", "a zip archive or a file of PyTorch's"),
        (b"\x80\x02}q\x01(X\x05\0\0", "a zip archive or a file of PyTorch's"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a picture"),
    ] {
        let error = open(begin).unwrap_err();
        contains(&message(Err::<(), _>(error)), &["bad.safetensors is no model", named]);
    }
    // Lengths of headers that begin in the same way.
    let header = format!("{{{}}}", " ".repeat(0x280 - 2));
    assert!(open(&safetensors(&header, 0)).is_ok());
}

#[test]
fn headers_that_are_no_json() {
    refused("", 0, &["header: expected a JSON object of tensors, found EOF"]);
    refused("{", 0, &["header", "EOF"]);
    refused("[]", 0, &["header", "invalid type: sequence"]);
    refused("{} x", 0, &["header", "trailing characters"]);
    refused(&"[".repeat(10_000), 0, &["header"]);
    refused(&format!(r#"{{"w":{}"#, "[".repeat(10_000)), 0, &["header", "`w`"]);
    let mut bytes = safetensors("{}", 0);
    bytes[8] = 0xff;
    contains(&message(open(&bytes)), &["header"]);
}

#[test]
fn duplicate_names() {
    let entry = r#""w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    refused(&format!("{{{entry},{entry}}}"), 1, &["header", "`w` is there twice"]);
    let escaped = entry.replace('w', "\\u0077");
    refused(&format!("{{{entry},{escaped}}}"), 1, &["`w` is there twice"]);
    refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, &["`__metadata__` is there twice"]);
    let field = r#"{"w":{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    refused(field, 4, &["`w`", "duplicate field"]);
}

#[test]
fn incomplete_entries() {
    refused(r#"{"w":{}}"#, 0, &["`w`", "missing field"]);
    refused(r#"{"w":1}"#, 0, &["`w`", "invalid type"]);
    refused(&one("U8", "[1.5]", "[0,1]"), 1, &["`w`", "1.5"]);
    refused(&one("U8", "[-1]", "[0,1]"), 1, &["`w`", "-1"]);
    refused(&one("U8", "[1]", "[0]"), 1, &["`w`"]);
    refused(&one("U8", "[18446744073709551616]", "[0,1]"), 1, &["`w`"]);
    refused(r#"{"__metadata__":{"a":1}}"#, 0, &["`__metadata__`"]);
}

#[test]
fn bad_names() {
    refused(&one("U8", "[1]", "[0,1]").replace("\"w\"", "\"\""), 1, &["tensor ``", "1 to 512 bytes"]);
    refused(&one("U8", "[1]", "[0,1]").replace("\"w\"", "\"a\\u001bb\""), 1, &["`a\\u{1b}b`", "control"]);
}

#[test]
fn other_number_formats() {
    of_no_use(&one("C64", "[1]", "[0,8]"), 8, "`C64`");
    of_no_use(&one("F4", "[2]", "[0,1]"), 1, "`F4`");
    of_no_use(&one("F8_E8M0", "[3,2]", "[0,6]"), 6, "`F8_E8M0`");
    of_no_use(&one("Q99", "[1]", "[0,1]"), 1, "`Q99`");
    of_no_use(&one("Q99", "[9,0]", "[0,0]"), 0, "`Q99`");
    of_no_use(&one("", "[]", "[0,5]"), 5, "``");
    refused(&one("F4", "[2]", "[0,1]"), 0, &["tensor `w`: expected 1 bytes", "a file of"]);
    refused(&one("F4", "[2]", "[1,0]"), 0, &["tensor `w`"]);
    refused(&one("F4", "[2]", "[0,18446744073709551615]"), 0, &["tensor `w`", "a file of"]);
}

#[test]
fn sizes_that_do_not_fit() {
    refused(&one("F32", "[3]", "[0,8]"), 8, &["tensor `w`: expected 12 bytes for f32 [3], found 0..8"]);
    refused(&one("F32", "[3]", "[12,0]"), 12, &["tensor `w`"]);
    refused(&one("F32", "[4611686018427387904]", "[0,8]"), 8, &["tensor `w`", "memory can hold"]);
    refused(&one("U8", "[4294967296,4294967296]", "[0,8]"), 8, &["tensor `w`", "memory can hold"]);
    refused(&one("F32", "[2,0]", "[0,4]"), 4, &["tensor `w`: expected 0 bytes for f32 [2, 0], found 0..4"]);
    of_no_use(&one("F32", "[2,0]", "[0,0]"), 0, "f32 [2, 0]");
    of_no_use(&one("F8_E4M3", "[0]", "[0,0]"), 0, "f8_e4m3 [0]");
    assert!(open(&safetensors(&one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1)).is_ok());
}

#[test]
fn misplaced_tensors() {
    refused(&one("U8", "[4]", "[4,8]"), 8, &["tensor `w`", "from offset 0 on", "found 4"]);
    refused(&one("U8", "[4]", "[0,4]"), 3, &["tensor `w`", "4 bytes from byte", "a file of"]);
    refused(&one("U8", "[4]", "[0,4]"), 5, &["data", "where the last tensor ends"]);
    refused("{}", 1, &["data", "where the last tensor ends"]);
    let two = |second: &str| {
        let a = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        format!(r#"{{{a},"b":{{"dtype":"U8","shape":[4],"data_offsets":{second}}}}}"#)
    };
    assert!(open(&safetensors(&two("[4,8]"), 8)).is_ok());
    refused(&two("[0,4]"), 8, &["tensor `b`", "from offset 4 on", "found 0"]);
    refused(&two("[2,6]"), 8, &["tensor `b`", "found 2"]);
    refused(&two("[5,9]"), 9, &["tensor `b`", "found 5"]);
}
