//! Pipes, devices and links to nothing in the place of files: an error at once, from everything that opens what a user names.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pinhole::bind::lora::Lora;
use pinhole::image::{Image, Picture};
use pinhole::inspect::{Report, Subject};
use pinhole::source::{Files, Source};
use pinhole::{Error, Result};

use crate::disk::{Disk, show};

/// Longer than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every text of a diffusers directory.
const TEXTS: [&str; 11] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "generation_config.json",
    "transformer/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "vae/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
];

/// What `work` returns, unless it waits for something.
fn soon<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    // If it waits, the thread is left to the end of the process.
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what} waits, or reads without end"))
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn open(path: &Path) -> Result<()> {
    pinhole::pipeline::open(&Source::open(path)?).map(|_| ())
}

/// Opens the model and inspects it: the first error, and how many problems there are.
fn opened_and_inspected(disk: &Disk, what: &str) -> (Error, usize) {
    let root = disk.root().to_owned();
    soon(what, move || {
        let error = open(&root).unwrap_err();
        let problems = match Subject::open(&root) {
            Ok(subject) => Report::of(&root, &subject).problems.len(),
            Err(_) => 1,
        };
        (error, problems)
    })
}

#[test]
fn texts_of_a_model() {
    for text in TEXTS {
        for (what, found) in
            [("pipe", "not a regular file"), ("zero", "not a regular file"), ("gone", "it is a link to ")]
        {
            let disk = Disk::new();
            let path = disk.path(text);
            let _ = fs::remove_file(&path);
            match what {
                "pipe" => pipe(&path),
                "zero" => symlink("/dev/zero", &path).unwrap(),
                _ => symlink("../../blobs/0123", &path).unwrap(),
            }
            let (error, problems) = opened_and_inspected(&disk, &format!("{text}, {what}"));
            show(&error);
            let message = error.to_string();
            assert!(message.contains(text) && message.contains(found), "{what}: {message}");
            assert!(problems > 0, "{text}, {what}");
        }
    }
}

#[test]
fn weights_of_a_model() {
    for component in ["transformer", "text_encoder", "text_encoder_2", "vae"] {
        let weights = crate::disk::weights_of(component);
        for (what, found) in
            [("pipe", "not a regular file"), ("gone", "it is a link to ../../blobs/0123, which is not there")]
        {
            let disk = Disk::new();
            disk.remove(&weights);
            match what {
                "pipe" => pipe(&disk.path(&weights)),
                _ => symlink("../../blobs/0123", disk.path(&weights)).unwrap(),
            }
            let (error, problems) = opened_and_inspected(&disk, &format!("{weights}, {what}"));
            show(&error);
            assert!(error.to_string().contains(found) && problems > 0, "{weights}, {what}: {error}");
        }
        // The whole folder.
        let disk = Disk::new();
        disk.remove(component);
        symlink("../moved", disk.path(component)).unwrap();
        let (error, _) = opened_and_inspected(&disk, component);
        assert!(error.to_string().contains("it is a link to ../moved"), "{error}");
    }
}

#[test]
fn files_that_are_given() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    pipe(&path);
    let message = |what: &str, work: fn(&Path) -> Result<()>| {
        let path = path.clone();
        let error = soon(what, move || work(&path).unwrap_err());
        assert!(error.to_string().contains("not a regular file"), "{what}: {error}");
    };
    message("a model", open);
    message("a picture", |path| Picture::open(path).map(|_| ()));
    message("a picture to compare", |path| Image::open_png(path).map(|_| ()));
    message("a LoRA", |path| Lora::open(path).map(|_| ()));
    message("noise", |path| pinhole::safetensors::open(path).map(|_| ()));
    message("inspect", |path| Subject::open(path).map(|_| ()));
    message("a part", |path| {
        let mut files = Files::default();
        files.add("transformer", path.to_owned());
        Source::assemble(None, &files).map(|_| ())
    });
    let bundle = crate::disk::bundle();
    message("a tokenizer", |path| {
        let mut files = Files::default();
        files.add("tokenizer_2", path.to_owned());
        let base = Source::open(crate::disk::bundle())?;
        pinhole::pipeline::open(&Source::assemble(Some(base), &files)?).map(|_| ())
    });
    assert!(bundle.is_file());
}

/// A folder of files has what it needs: a pipe beside them is nothing to it.
#[test]
fn pipes_in_a_folder() {
    let directory = tempfile::tempdir().unwrap();
    fs::hard_link(crate::disk::bundle(), directory.path().join("model.gguf")).unwrap();
    for name in ["pipe", "pipe.json", "pipe.txt"] {
        pipe(&directory.path().join(name));
    }
    let root = directory.path().to_owned();
    soon("a folder", move || open(&root)).unwrap();
    pipe(&directory.path().join("pipe.safetensors"));
    let root = directory.path().to_owned();
    let error = soon("a folder", move || open(&root).unwrap_err());
    assert!(error.to_string().contains("pipe.safetensors: not a regular file"), "{error}");
}
