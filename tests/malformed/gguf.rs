//! GGUF files.

use super::*;

fn open(bytes: &[u8]) -> Result<Gguf> {
    Gguf::from_map(Map::from_bytes("bad.gguf", bytes).unwrap())
}

/// Opens a bad file and looks for `parts` in what is said about it.
#[track_caller]
fn refused(file: &RawGguf, parts: &[&str]) {
    let message = message(open(&file.bytes()));
    contains(&message, &["bad.gguf: "]);
    contains(&message, parts);
}

#[track_caller]
fn refused_tensor(tensor: RawTensor, parts: &[&str]) {
    refused(&RawGguf::with_tensors(&[tensor]), parts);
}

/// Opens a file with one tensor, `w`, which no weight can be read from, and looks for `parts` in what is said where a weight
/// needs it.
#[track_caller]
fn of_no_use(tensor: RawTensor, parts: &[&str]) {
    let other = only_other(&open(&RawGguf::with_tensors(&[tensor]).bytes()).unwrap().index);
    let message = other.refusal().to_string();
    contains(&message, &["bad.gguf: tensor `w`"]);
    contains(&message, parts);
}

#[test]
fn the_fixture_itself_is_good() {
    let file = open(&RawGguf::small().bytes()).unwrap();
    check_index(&file.index);
    assert_eq!((file.version, file.alignment, file.index.len(), file.metadata.len()), (3, 32, 3, 5));
    let patch = file.index.get("patch_embedding").unwrap();
    assert_eq!(patch.shape, [2, 1, 1, 6]);
    assert_eq!(patch.file_shape, [2, 1, 1, 2, 3]);
    assert_eq!(file.metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().get(1), Some("ż"));
    assert!(open(&RawGguf { version: 2, ..RawGguf::small() }.bytes()).is_ok());
    assert!(open(&RawGguf::empty().header()).unwrap().index.is_empty());
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let bytes = RawGguf::small().bytes();
    for length in 0..bytes.len() {
        let message = message(open(&bytes[..length]));
        // While counts are read they bound what follows; then the missing bytes are named.
        contains(&message, &["bad.gguf: ", "found "]);
    }
}

#[test]
fn truncation_says_what_was_being_read() {
    let file = RawGguf::small();
    let header = file.header();
    let cut = |length: usize| message(open(&file.bytes()[..length]));
    contains(&cut(0), &["header: expected 4 bytes from byte 0 on, found the end of the file at byte 0"]);
    contains(&cut(6), &["header: expected 4 bytes from byte 4 on"]);
    contains(&cut(12), &["header: expected 8 bytes from byte 8 on"]);
    contains(&cut(20), &["header: expected at most 0 tensors in the 4 bytes that are left, found 3"]);
    contains(&cut(header.len() - 1), &["tensor `patch_embedding`: expected 8 bytes"]);
    contains(&cut(header.len()), &["tensor `vector`: expected 12 bytes", "a file of"]);
    contains(&cut(file.bytes().len() - 1), &["tensor `patch_embedding`: expected 48 bytes"]);
}

#[test]
fn any_byte_may_be_wrong() {
    let bytes = RawGguf::small().bytes();
    for position in 0..bytes.len() {
        for value in [0, 1, 2, 9, 0x1f, 0x20, 0x7f, 0x80, 0xff, !bytes[position]] {
            let mut bytes = bytes.clone();
            bytes[position] = value;
            if let Ok(file) = open(&bytes) {
                check_index(&file.index);
            }
        }
    }
}

#[test]
fn other_magic() {
    refused(&RawGguf { magic: *b"ggjt", ..RawGguf::small() }, &["`GGUF` in the first bytes, found `ggjt`"]);
    refused(&RawGguf { magic: *b"PK\x03\x04", ..RawGguf::small() }, &["found `PK\\u{3}\\u{4}`"]);
}

#[test]
fn other_versions() {
    refused(&RawGguf { version: 1, ..RawGguf::small() }, &["version 2 or 3, found version 1", "convert it again"]);
    refused(&RawGguf { version: 0, ..RawGguf::small() }, &["found version 0"]);
    refused(&RawGguf { version: 4, ..RawGguf::small() }, &["found version 4"]);
}

#[test]
fn big_endian_files_are_recognised() {
    refused(&RawGguf { version: 3 << 24, ..RawGguf::small() }, &["little-endian file, found a big-endian one"]);
    refused(&RawGguf { magic: *b"FUGG", ..RawGguf::small() }, &["little-endian file, found a big-endian one"]);
}

#[test]
fn huge_counts() {
    for count in [1000, 1 << 17, 1 << 32, u64::MAX] {
        let found = format!("found {count}");
        refused(&RawGguf { tensor_count: Some(count), ..RawGguf::small() }, &["header", "tensors", &found]);
        refused(&RawGguf { key_count: Some(count), ..RawGguf::small() }, &["header", "metadata entries", &found]);
    }
}

#[test]
fn counts_that_are_a_little_wrong() {
    refused(&RawGguf { tensor_count: Some(4), ..RawGguf::small() }, &["tensor"]);
    refused(&RawGguf { key_count: Some(4), ..RawGguf::small() }, &["tensor"]);
    refused(&RawGguf { key_count: Some(6), ..RawGguf::small() }, &["expected", "found"]);
}

#[test]
fn huge_string_lengths() {
    let huge = (1u64 << 40).to_le_bytes();
    refused(&RawGguf::with_entry("k", typed(STRING, &huge)), &["metadata `k`", "bytes of text", "found 1099511627776"]);
    // 24 bytes of header need no padding to 8.
    let file = RawGguf { key_count: Some(1), alignment: 8, data: vec![0xff; 64], ..RawGguf::empty() };
    refused(&file, &["metadata entry 0", "bytes of text"]);
}

#[test]
fn huge_arrays() {
    for kind in [U8, U32, STRING, ARRAY, BOOL, 12] {
        for count in [1000, 1 << 40, u64::MAX, u64::MAX / 8 + 1] {
            let file = RawGguf::with_entry("k", array(kind, count, &[]));
            refused(&file, &["metadata `k`", "elements of type", &format!("found {count}")]);
        }
    }
}

#[test]
fn deep_arrays() {
    assert!(open(&RawGguf::with_entry("k", nested(4)).bytes()).is_ok());
    for depth in [5, 100, 10_000] {
        refused(&RawGguf::with_entry("k", nested(depth)), &["metadata `k`", "at most 4 deep"]);
    }
}

#[test]
fn unknown_value_types() {
    refused(&RawGguf::with_entry("k", typed(13, &[0; 8])), &["metadata `k`", "from 0 to 12, found type 13"]);
    refused(&RawGguf::with_entry("k", array(99, 0, &[])), &["metadata `k`", "found type 99"]);
}

#[test]
fn bools_that_are_neither() {
    refused(&RawGguf::with_entry("k", typed(BOOL, &[2])), &["metadata `k`", "a bool of 0 or 1, found 2"]);
    refused(&RawGguf::with_entry("k", array(BOOL, 2, &[1, 255])), &["metadata `k`", "found 255"]);
}

#[test]
fn text_that_is_no_utf8() {
    refused(&RawGguf::with_entry("k", text(b"a\xff")), &["metadata `k`", "text in UTF-8", "from index 1"]);
    let tokens = array(STRING, 1, &fixtures::string(b"\xc3"));
    refused(&RawGguf::with_entry("k", tokens), &["metadata `k`", "text in UTF-8"]);
    let mut file = RawGguf::small();
    file.metadata[2].0 = b"\xff".to_vec();
    refused(&file, &["metadata entry 2", "text in UTF-8"]);
    file = RawGguf::small();
    file.tensors[1].name = b"\xff".to_vec();
    refused(&file, &["tensor entry 1", "text in UTF-8"]);
}

#[test]
fn bad_keys() {
    refused(&RawGguf::with_entry("", text(b"")), &["metadata entry 5", "not empty"]);
    refused(&RawGguf::with_entry("a\x1bb", text(b"")), &["`a\\u{1b}b`"]);
    refused(&RawGguf::with_entry("some.flag", text(b"")), &["metadata `some.flag`", "used once", "2 and 5"]);
    refused(&RawGguf::with_entry(&"k".repeat(65536), text(b"")), &["metadata entry 5", "at most 65535"]);
}

#[test]
fn bad_alignments() {
    for alignment in [0, 1, 4, 24, 33, u32::MAX] {
        let file = RawGguf::with_entry("general.alignment", typed(U32, &alignment.to_le_bytes()));
        refused(&file, &["`general.alignment`", "a power of two", &format!("found {alignment}")]);
    }
    let file = RawGguf::with_entry("general.alignment", text(b"32"));
    refused(&file, &["`general.alignment`", "expected u32, found string"]);
    let file = RawGguf::with_entry("general.alignment", typed(U32, &(1u32 << 31).to_le_bytes()));
    refused(&file, &["tensor `vector`", "from byte 2147483648 on"]);
}

#[test]
fn duplicate_tensors() {
    let mut file = RawGguf::small();
    file.tensors[2].name = b"vector".to_vec();
    refused(&file, &["tensor `vector`", "used once"]);
}

#[test]
fn bad_tensor_names() {
    refused_tensor(RawTensor::new("", &[1], 0, 0), &["tensor ``", "1 to 512 bytes"]);
    refused_tensor(RawTensor::new(&"n".repeat(513), &[1], 0, 0), &["found 513 bytes"]);
    refused_tensor(RawTensor::new("a\nb", &[1], 0, 0), &["tensor `a\\nb`", "control characters"]);
    assert!(open(&RawGguf::with_tensors(&[RawTensor::new(&"n".repeat(127), &[1], 0, 0)]).bytes()).is_ok());
}

#[test]
fn every_type_of_ggml_is_known() {
    for dtype in pinhole_quant::DType::all() {
        let file = RawGguf::with_tensors(&[RawTensor::new("w", &[256], dtype.id(), 0)]);
        let bytes = [file.bytes(), vec![0; 2048]].concat();
        let tensor = open(&bytes).unwrap().index.get("w").unwrap().clone();
        assert_eq!(tensor.storage, dtype);
        assert_eq!(tensor.bytes().len(), 256 / dtype.block_size() * dtype.block_bytes());
    }
}

#[test]
fn retired_and_unknown_types() {
    let retired = [(4, "q4_2"), (5, "q4_3"), (31, "q4_0_4_4"), (33, "q4_0_8_8"), (36, "iq4_nl_4_4")];
    for (id, name) in retired {
        of_no_use(RawTensor::new("w", &[256], id, 0), &[&format!("found type {id} ({name})")]);
    }
    for id in [43, 1000, u32::MAX] {
        of_no_use(RawTensor::new("w", &[256], id, 0), &[&format!("found type {id}")]);
    }
    refused_tensor(RawTensor::new("w", &[256], 43, 1 << 40), &["tensor `w`", "a file of"]);
    refused_tensor(RawTensor::new("w", &[256], 43, 16), &["tensor `w`", "multiple of 32, found 16"]);
}

#[test]
fn unusual_ranks_and_extents() {
    let shape = |dims: &[u64]| {
        let file = open(&RawGguf::with_tensors(&[RawTensor::new("w", dims, 0, 0)]).bytes()).unwrap();
        check_index(&file.index);
        file.index.get("w").unwrap().shape.dims()
    };
    assert_eq!(shape(&[]), [1; 4]);
    assert_eq!(shape(&[2, 1, 3, 1, 1, 2, 1]), [2, 1, 3, 2]);
    assert_eq!(shape(&[1; 64]), [1; 4]);
    refused_tensor(RawTensor::new("w", &[1; 65], 0, 0), &["at most 64 dimensions, found 65"]);
    let rank = Some(u32::MAX);
    refused_tensor(RawTensor { rank, ..RawTensor::new("w", &[1], 0, 0) }, &["found 4294967295"]);
    of_no_use(RawTensor::new("w", &[3, 0], 0, 0), &["at least 1, found f32 [3, 0]"]);
    of_no_use(RawTensor::new("w", &[0, u64::MAX, u64::MAX], 8, 0), &["at least 1"]);
    // Where the padding behind the last tensor is missing, an empty one lies behind the end.
    let mut file = RawGguf::with_tensors(&[RawTensor::new("a", &[1], 0, 0), RawTensor::new("w", &[0], 0, 32)]);
    file.data.truncate(4);
    assert_eq!(open(&file.bytes()).unwrap().index.others().len(), 1);
}

#[test]
fn sizes_that_overflow() {
    for dims in [&[1 << 62][..], &[1 << 32, 1 << 32], &[u64::MAX], &[1 << 40, 1, 1, 1 << 20, 1 << 20]] {
        refused_tensor(RawTensor::new("w", dims, 0, 0), &["tensor `w`", "memory can hold"]);
    }
    refused_tensor(RawTensor::new("w", &[1 << 60], 0, 0), &["tensor `w`", "4611686018427387904 bytes"]);
}

#[test]
fn rows_that_blocks_do_not_divide() {
    of_no_use(RawTensor::new("w", &[33], 8, 0), &["multiple of 32 numbers, found q8_0 [33]"]);
    of_no_use(RawTensor::new("w", &[128, 2], 12, 0), &["multiple of 256 numbers, found q4_k [128, 2]"]);
}

/// ComfyUI-GGUF cuts tensors into rows that blocks divide, and writes down what they were.
#[test]
fn rows_that_were_cut_otherwise() {
    const I32: u32 = 5;
    let with = |dims: &[u64], type_id, extents: &[i32], kind| {
        let mut file = RawGguf::with_tensors(&[RawTensor::new("w", dims, type_id, 0)]);
        let list: Vec<u8> = extents.iter().flat_map(|extent| extent.to_le_bytes()).collect();
        file.push("comfy.gguf.orig_shape.w", array(kind, extents.len() as u64, &list));
        open(&file.bytes()).unwrap().index
    };
    let shape = |index: &Index| {
        check_index(index);
        index.get("w").unwrap().shape.dims()
    };
    let index = with(&[6, 7], 0, &[3, 14], I32);
    assert_eq!((shape(&index), &index.get("w").unwrap().file_shape[..]), ([14, 3, 1, 1], &[6, 7][..]));
    assert_eq!(shape(&with(&[42], 0, &[2, 3, 7, 1, 1], U32)), [1, 1, 7, 6]);
    assert_eq!(shape(&with(&[32, 2], 8, &[64], I32)), [64, 1, 1, 1]);
    // Blocks may go on in the next row.
    let index = with(&[32, 2], 8, &[4, 16], I32);
    assert_eq!(index.get("w").unwrap().shape.dims(), [16, 4, 1, 1]);
    for (extents, kind) in [
        (&[5][..], I32),
        (&[], I32),
        (&[0, 64], I32),
        (&[-8, -8], I32),
        (&[8, 8], 6),
        (&[i32::MAX; 4], I32),
        (&[i32::MAX; 9], I32),
    ] {
        let index = with(&[32, 2], 8, extents, kind);
        let refusal = only_other(&index).refusal();
        contains(&refusal.to_string(), &["tensor `w`", "a shape of 64 numbers", "comfy.gguf.orig_shape.w"]);
    }
}

#[test]
fn misplaced_tensors() {
    refused_tensor(RawTensor::new("w", &[1], 0, 16), &["tensor `w`", "multiple of 32, found 16"]);
    refused_tensor(RawTensor::new("w", &[1], 0, 1 << 40), &["tensor `w`", "a file of"]);
    refused_tensor(RawTensor::new("w", &[1], 0, u64::MAX - 31), &["tensor `w`", "inside the file"]);
    refused_tensor(RawTensor::new("w", &[45], 0, 0), &["tensor `w`", "180 bytes"]);
}

#[test]
fn tensors_that_share_bytes() {
    let (a, b) = (RawTensor::new("a", &[9], 0, 32), RawTensor::new("b", &[8], 0, 64));
    refused(&RawGguf::with_tensors(&[b, a]), &["tensor `b`", "bytes of its own", "inside tensor `a`"]);
    let same = [RawTensor::new("a", &[8], 0, 0), RawTensor::new("b", &[8], 0, 0)];
    refused(&RawGguf::with_tensors(&same), &["inside tensor"]);
}

#[test]
fn gaps_and_order_are_free() {
    let tensors = [RawTensor::new("late", &[4], 0, 128), RawTensor::new("early", &[4], 0, 0)];
    let file = open(&RawGguf::with_tensors(&tensors).bytes()).unwrap();
    assert_eq!(file.index.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["late", "early"]);
    check_index(&file.index);
}
