//! Folders of files, and lists of shards.

use super::*;

/// A file with the one tensor `name`.
fn shard(name: &str) -> Vec<u8> {
    safetensors(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#), 2)
}

/// A folder with these files.
fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(directory.path().join(name), bytes).unwrap());
    directory
}

const INDEX: &str = "model.safetensors.index.json";

fn sharded(index: &str, shards: &[(&str, Vec<u8>)]) -> Result<Index> {
    let directory = folder(&[&[(INDEX, index.as_bytes().to_vec())], shards].concat());
    open_sharded(&directory.path().join(INDEX))
}

#[test]
fn shards_become_one_index() {
    let index = r#"{"metadata":{"total_size":4},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let index = sharded(index, &[("1.safetensors", shard("a")), ("2.safetensors", shard("b"))]).unwrap();
    assert_eq!(index.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
    assert!(index.get("b").unwrap().path().ends_with("2.safetensors"));
    assert_eq!(index.maps().len(), 2);
}

#[test]
fn a_missing_shard_is_named() {
    let result = sharded(r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#, &[]);
    let hint = result.as_ref().unwrap_err().hint().map(str::to_owned);
    contains(&message(result), &[INDEX, "shard `model-00001-of-00002.safetensors`", "beside the index, found none"]);
    contains(&hint.unwrap(), &["download"]);
}

#[test]
fn a_shard_without_its_tensor() {
    let result = sharded(r#"{"weight_map":{"a":"s"}}"#, &[("s", shard("b"))]);
    contains(&message(result), &[INDEX, "tensor `a`", "`s`", "no such tensor"]);
}

#[test]
fn a_tensor_in_two_shards() {
    let index = r#"{"weight_map":{"a":"1","b":"2"}}"#;
    let both = safetensors(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
        2,
    );
    contains(&message(sharded(index, &[("1", shard("a")), ("2", both)])), &["tensor `a`", "used once", "another in"]);
}

#[test]
fn shards_elsewhere_are_refused() {
    for bad in ["../x", "/x", "a/b", "..", "", "a\\\\b"] {
        let result = sharded(&format!(r#"{{"weight_map":{{"a":"{bad}"}}}}"#), &[]);
        contains(&message(result), &[INDEX, "weight_map", "a file beside the index"]);
    }
}

#[test]
fn bad_indexes() {
    for bad in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#, "{\"weight_map\":{}} x"] {
        contains(&message(sharded(bad, &[])), &[INDEX, "index", "a JSON object with a `weight_map`"]);
    }
    contains(&message(sharded(r#"{"weight_map":{"a":"s","a":"t"}}"#, &[])), &["`a` is there twice"]);
}

#[test]
fn folders_are_searched_in_order() {
    let index = |shard: &str| format!(r#"{{"weight_map":{{"t":"{shard}"}}}}"#).into_bytes();
    let found = |files: &[(&str, Vec<u8>)]| {
        let index = find(folder(files).path(), &["diffusion_pytorch_model", "model"]).unwrap();
        index.iter().next().map(|(name, _)| name.to_owned()).unwrap()
    };
    let single = ("model.safetensors", shard("single"));
    let shards = [(INDEX, index("s.safetensors")), ("s.safetensors", shard("t"))];
    let fp16 = ("model.fp16.safetensors", shard("fp16"));
    let bf16 = ("model.bf16.safetensors", shard("bf16"));
    let first = ("diffusion_pytorch_model.safetensors", shard("first"));
    let all = [&shards[..], &[fp16.clone(), single.clone()]].concat();
    assert_eq!(found(&all), "single");
    assert_eq!(found(&[&all[..], &[first]].concat()), "first");
    assert_eq!(found(&[&shards[..], std::slice::from_ref(&fp16)].concat()), "t");
    assert_eq!(found(std::slice::from_ref(&fp16)), "fp16");
    assert_eq!(found(&[fp16, bf16]), "bf16");
    for name in
        ["model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json", "model.fp16.safetensors.index.json"]
    {
        assert_eq!(found(&[(name, index("s.safetensors")), ("s.safetensors", shard("t"))]), "t");
    }
}

#[test]
fn folders_without_weights() {
    let directory = folder(&[("config.json", b"{}".to_vec())]);
    contains(&message(find(directory.path(), &["a", "b"])), &["no a.safetensors or b.safetensors in it"]);
    let directory = folder(&[("model.bin", vec![])]);
    let error = find(directory.path(), &["model"]).unwrap_err();
    contains(error.hint().unwrap(), &["model.bin in it has an unusual name"]);
    let missing = find(&directory.path().join("missing"), &["model"]);
    assert!(matches!(missing, Err(Error::Io { action: "open", .. })));
}

#[test]
fn missing_files_and_directories_are_io_errors() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().join("missing"), directory.path().to_owned()] {
        assert!(matches!(Gguf::open(&path), Err(Error::Io { action: "open", .. })));
        assert!(matches!(Safetensors::open(&path), Err(Error::Io { action: "open", .. })));
        assert!(matches!(open_sharded(&path), Err(Error::Io { action: "open", .. })));
    }
}

#[test]
fn empty_files_are_malformed() {
    let directory = folder(&[("empty", vec![])]);
    let path = directory.path().join("empty");
    contains(&message(Gguf::open(&path)), &["empty: header", "end of the file at byte 0"]);
    contains(&message(Safetensors::open(&path)), &["empty: header length", "a file of 0 bytes"]);
}
