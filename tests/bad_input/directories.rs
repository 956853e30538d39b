//! Directories that are no model, or not all of one.

use std::fs;
use std::path::Path;

use pinhole::source::Source;
use safetensors::Dtype;

use crate::disk::{Disk, refused, weights_of};
use crate::support::{Golden, Layout, write_model};

#[test]
fn the_model_itself_is_good() {
    Disk::new().open().unwrap();
}

#[test]
fn nothing_at_all() {
    refused!(Io, Source::open(Path::new("no/such/model")), "cannot open no/such/model");
}

#[test]
fn an_empty_directory() {
    let directory = tempfile::tempdir().unwrap();
    let error = refused!(NotAModel, Source::open(directory.path()), "without model_index.json");
    assert!(error.hint().is_some());
}

#[test]
fn a_directory_of_other_things() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["flux1-dev.bin", "notes.txt"] {
        fs::write(directory.path().join(name), "x").unwrap();
    }
    refused!(NotAModel, Source::open(directory.path()), "model_index.json", "flux1-dev.bin", "notes.txt");
    // A damaged file may be the one that was wanted.
    fs::write(directory.path().join("flux1-dev.safetensors"), "x").unwrap();
    refused!(NotAModel, Source::open(directory.path()), "flux1-dev.safetensors", "unknown kind");
}

#[test]
fn files_of_other_kinds() {
    let directory = tempfile::tempdir().unwrap();
    let open = |bytes: &[u8]| {
        let path = directory.path().join("model");
        fs::write(&path, bytes).unwrap();
        Source::open(&path)
    };
    refused!(NotAModel, open(b""), "an empty file");
    refused!(Malformed, open(b"PK\x03\x04"), "zip archive");
    refused!(Malformed, open(b"\x80\x00\x00\x00\x00\x00\x00\x00{\"a\""), "header length");
    refused!(NotAModel, open(b"\x02\x00\x00\x00\x00\x00\x00\x00{}"), "safetensors");
    refused!(NotAModel, open(b"\xff\xfe\xfd\xfc"), "unknown kind");
    refused!(NotAModel, open(b"\x80\x02}q\x00"), "Python pickle");
    refused!(NotAModel, open(b"\x1f\x8b\x08\x00"), "an archive");
}

/// What people find where a download failed.
const FAILED: [(&[u8], &str); 5] = [
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 246144152\n",
        "a pointer of Git LFS to a file of 246144152",
    ),
    (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "a web page"),
    (br#"{"error":"Invalid credentials in Authorization header"}"#, "an answer and not the file, `{\\\"error"),
    (b"Entry not found", "an answer and not the file, `Entry not found`"),
    (&[0; 1 << 12], "zeros"),
];

#[test]
fn failed_downloads_are_called_that() {
    let directory = tempfile::tempdir().unwrap();
    for (bytes, found) in FAILED {
        for name in ["model.safetensors", "model.gguf"] {
            let path = directory.path().join(name);
            fs::write(&path, bytes).unwrap();
            let error = refused!(NotAModel, Source::open(&path), name, found);
            assert!(error.hint().unwrap().contains("download"), "{:?}", error.hint());
        }
        for component in ["transformer", "text_encoder", "text_encoder_2", "vae"] {
            let disk = Disk::new();
            disk.write(&weights_of(component), bytes);
            refused!(NotAModel, disk.open(), &weights_of(component), found);
        }
    }
    // Texts may be JSON; they may be no pages, pointers or answers.
    for name in ["transformer/config.json", "tokenizer_2/tokenizer.json", "model_index.json"] {
        for (bytes, found) in &FAILED[..4] {
            let disk = Disk::new();
            disk.write(name, bytes);
            refused!(NotAModel, disk.open(), name, found);
        }
    }
}

#[test]
fn another_pipeline() {
    let disk = Disk::new();
    disk.edit("model_index.json", |index| index["_class_name"] = "StableDiffusion3Pipeline".into());
    let error = refused!(NotAModel, disk.open(), "StableDiffusion3Pipeline");
    assert!(error.hint().unwrap().contains("FluxPipeline"));
}

#[test]
fn an_index_that_is_none() {
    let disk = Disk::new();
    for (text, found) in
        [("", "EOF"), ("{", "EOF"), ("[]", "[]"), ("{}", "null"), (r#"{"_class_name": 3}"#, "3"), ("\u{feff}{}", "")]
    {
        disk.write("model_index.json", text);
        refused!(Malformed, disk.open(), "model_index.json", found);
    }
    disk.write("model_index.json", b"\xff\xfe");
    refused!(Io, disk.open(), "model_index.json");
}

#[test]
fn a_component_is_missing() {
    for component in ["transformer", "text_encoder", "text_encoder_2", "vae"] {
        let disk = Disk::new();
        disk.remove(component);
        refused!(NotAModel, disk.open(), &format!("and no {component}"));
    }
}

#[test]
fn the_weights_of_a_component_are_missing() {
    for component in ["transformer", "text_encoder", "text_encoder_2", "vae"] {
        let disk = Disk::new();
        disk.remove(&weights_of(component));
        refused!(NotAModel, disk.open(), component, "safetensors");
        // A damaged one of PyTorch's is no replacement.
        disk.write(&weights_of(component).replace(".safetensors", ".bin"), "PK\x03\x04archive");
        refused!(Malformed, disk.open(), component, "archive");
    }
}

#[test]
fn a_shard_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout { dtype: Dtype::BF16, max_shard_bytes: Some(4_000_000), ..Layout::default() };
    write_model(directory.path(), &Golden::load("schnell"), &layout);
    let open = || pinhole::pipeline::open(&Source::open(directory.path())?);
    open().unwrap();
    let mut shards: Vec<_> = fs::read_dir(directory.path().join("transformer"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    shards.sort();
    assert!(shards.len() > 2);
    fs::remove_file(&shards[1]).unwrap();
    let name = shards[1].file_name().unwrap().to_str().unwrap();
    let error = refused!(Mismatch, open(), "safetensors.index.json", name);
    assert!(error.hint().unwrap().contains("download"));
    // A shard of another model has the name.
    fs::copy(&shards[0], &shards[1]).unwrap();
    refused!(Mismatch, open(), "no such tensor there");
}
