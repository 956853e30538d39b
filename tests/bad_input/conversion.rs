//! Conversions that cannot begin, and those that do not end.

use std::fs;
use std::path::Path;

use pinhole::convert::{self, NonFinite, WriteOptions};
use pinhole::source::Source;
use pinhole::{Error, Result};
use pinhole_quant::recipe::FileType;

use crate::disk::{Disk, bundle, refused, show, weights_of};

fn options(overwrite: bool) -> WriteOptions {
    WriteOptions { overwrite, ..WriteOptions::default() }
}

fn convert(from: &Path, to: &Path, overwrite: bool) -> Result<()> {
    let source = Source::open(from)?;
    let model = pinhole::pipeline::open(&source)?;
    convert::plan(&model.source, &model.networks(), FileType::F16)?
        .write(to, options(overwrite), &mut |_| Ok(()))
        .map(|_| ())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_bundle_is_not_written_over_itself() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs::copy(bundle(), &path).unwrap();
    let before = fs::metadata(&path).unwrap().len();
    for overwrite in [false, true] {
        refused!(Option, convert(&path, &path, overwrite), "--output", "source");
        refused!(Option, convert(&path, &directory.path().join(".").join("model.gguf"), overwrite), "source");
    }
    #[cfg(unix)]
    {
        let link = directory.path().join("link.gguf");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        refused!(Option, convert(&path, &link, true), "source");
        refused!(Option, convert(&link, &path, true), "source");
        fs::remove_file(&link).unwrap();
    }
    assert_eq!((fs::metadata(&path).unwrap().len(), names(directory.path())), (before, vec!["model.gguf".to_owned()]));
}

#[test]
fn a_directory_is_not_written_over_a_file_of_itself() {
    let disk = Disk::new();
    for file in [&weights_of("vae"), "model_index.json", "tokenizer/tokenizer.json"] {
        let before = fs::metadata(disk.path(file)).unwrap().len();
        refused!(Option, convert(disk.root(), &disk.path(file), true), "--output", "source");
        assert_eq!(fs::metadata(disk.path(file)).unwrap().len(), before);
    }
    // Beside them is fine.
    convert(disk.root(), &disk.path("model.gguf"), false).unwrap();
}

#[test]
fn outputs_that_cannot_be() {
    let disk = Disk::new();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    refused!(Io, convert(disk.root(), &at("missing/out.gguf"), false), "missing/out.gguf");
    refused!(Io, convert(disk.root(), directory.path(), true), "directory");
    refused!(Io, convert(disk.root(), Path::new(""), false), "");
    fs::write(at("out.gguf"), "mine").unwrap();
    let error = refused!(Exists, convert(disk.root(), &at("out.gguf"), false), "out.gguf", "exists");
    assert!(error.hint().unwrap().contains("--overwrite"));
    assert_eq!(fs::read(at("out.gguf")).unwrap(), b"mine");
    convert(disk.root(), &at("out.gguf"), true).unwrap();
    pinhole::pipeline::open(&Source::open(&at("out.gguf")).unwrap()).unwrap();
    assert_eq!(names(directory.path()), ["out.gguf"]);
}

#[test]
fn a_cancelled_conversion_leaves_nothing_behind() {
    let disk = Disk::new();
    let source = Source::open(disk.root()).unwrap();
    let model = pinhole::pipeline::open(&source).unwrap();
    let plan = convert::plan(&model.source, &model.networks(), FileType::F16).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.gguf");
    for last in [0, 1, 50, 200] {
        let mut left = last;
        let written = plan.write(&output, options(false), &mut |progress| {
            assert!(progress.done <= progress.total);
            // At most something with a temporary name is there while it is written.
            assert!(names(directory.path()).iter().all(|name| name.ends_with(".part")));
            left -= 1;
            if left < 0 { Err(Error::Cancelled) } else { Ok(()) }
        });
        refused!(Cancelled, written, "cancelled");
        assert_eq!(names(directory.path()), [""; 0]);
    }
    // What was there before stays.
    fs::write(&output, "mine").unwrap();
    refused!(Cancelled, plan.write(&output, options(true), &mut |_| Err(Error::Cancelled)), "cancelled");
    assert_eq!((fs::read(&output).unwrap(), names(directory.path())), (b"mine".to_vec(), vec!["out.gguf".to_owned()]));
    // The same plan works all the same.
    plan.write(&output, options(true), &mut |_| Ok(())).unwrap();
    assert_eq!(fs::metadata(&output).unwrap().len(), plan.total_bytes);
}

/// Sets one number of the transformer's first projection, which is BF16.
fn spoilt(number: usize, bits: u16) -> Disk {
    spoilt_in("x_embedder.weight", number, bits)
}

/// Sets one number of the tensor `name` of the transformer, which is BF16.
fn spoilt_in(name: &str, number: usize, bits: u16) -> Disk {
    let disk = Disk::new();
    disk.edit_tensors("transformer", |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        tensor.bytes[2 * number..][..2].copy_from_slice(&bits.to_le_bytes());
    });
    disk
}

/// Weights near 1e28, whose blocks would have an infinite scale.
#[test]
fn blocks_whose_scale_overflows_are_named_and_let_through_where_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.gguf");
    let disk = spoilt_in("transformer_blocks.0.ff.net.0.proj.weight", 700, 0x6e01);
    let source = Source::open(disk.root()).unwrap();
    let model = pinhole::pipeline::open(&source).unwrap();
    for name in ["q8_0", "q4_k_s", "q4_1", "q2_k", "iq4_nl"] {
        let plan = convert::plan(&model.source, &model.networks(), name.parse::<FileType>().unwrap()).unwrap();
        let planned = plan.tensors.iter().find(|tensor| tensor.name == "dit.double_blocks.0.img_mlp.0.weight").unwrap();
        assert!(planned.to.is_quantized(), "{name}");
        let write =
            |allow_nonfinite| plan.write(&output, WriteOptions { overwrite: true, allow_nonfinite }, &mut |_| Ok(()));
        let error = write(false).unwrap_err();
        show(&error);
        let message = error.to_string();
        assert!(
            message.contains("number 700 of tensor transformer_blocks.0.ff.net.0.proj.weight")
                && message.contains("998"),
            "{message}"
        );
        assert_eq!(error.hint(), Some("bf16 and f32 have room for it; --allow-nonfinite makes it 0"));
        assert_eq!(names(directory.path()), [""; 0]);
        assert_eq!(
            write(true).unwrap(),
            [NonFinite { tensor: "dit.double_blocks.0.img_mlp.0.weight".into(), count: 1 }]
        );
        let written = Source::open(&output).unwrap();
        let written = pinhole::pipeline::open(&written).unwrap();
        let network = &written.networks()[0];
        let (id, _) = network.model.manifest().find("img_in.weight").unwrap();
        assert!(network.bound.read_f32(id).unwrap().iter().all(|number| number.is_finite()));
        fs::remove_file(&output).unwrap();
    }
}

#[test]
fn weights_that_are_not_finite_are_named_and_let_through_where_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.gguf");
    // NaN, and numbers that BF16 has and F16 has not.
    for (bits, what) in [(0x7fc0, "not finite"), (0xff80, "not finite"), (0x4780, "65536")] {
        let disk = spoilt(700, bits);
        let source = Source::open(disk.root()).unwrap();
        let model = pinhole::pipeline::open(&source).unwrap();
        let write = |file_type: FileType, allow_nonfinite: bool| {
            let plan = convert::plan(&model.source, &model.networks(), file_type).unwrap();
            plan.write(&output, WriteOptions { overwrite: true, allow_nonfinite }, &mut |_| Ok(()))
        };
        let error = write(FileType::F16, false).unwrap_err();
        show(&error);
        let message = error.to_string();
        assert!(message.contains("number 700 of tensor x_embedder.weight") && message.contains(what), "{message}");
        assert!(error.hint().unwrap().contains("--allow-nonfinite"));
        assert_eq!(names(directory.path()), [""; 0]);
        let found = vec![NonFinite { tensor: "dit.img_in.weight".into(), count: 1 }];
        assert_eq!(write(FileType::F16, true).unwrap(), found);
        let finite_in_bf16 = bits == 0x4780;
        assert_eq!(write(FileType::BF16, true).unwrap(), if finite_in_bf16 { vec![] } else { found });
        fs::remove_file(&output).unwrap();
    }
}

/// ggml promises nothing for such numbers, and one must not spoil those that share a block with it.
#[test]
fn what_is_not_finite_becomes_nothing_in_a_block() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new();
    disk.edit_tensors("transformer", |tensors| {
        let tensor = tensors.get_mut("single_transformer_blocks.0.proj_mlp.weight").unwrap();
        tensor.bytes[2 * 5..][..2].copy_from_slice(&0x7f80u16.to_le_bytes());
    });
    let source = Source::open(disk.root()).unwrap();
    let model = pinhole::pipeline::open(&source).unwrap();
    for file_type in [FileType::Q8_0, FileType::Q4_K_S, FileType::IQ4_NL, FileType::Q2_K] {
        let output = directory.path().join(file_type.name());
        let plan = convert::plan(&model.source, &model.networks(), file_type).unwrap();
        refused!(NotFinite, plan.write(&output, options(false), &mut |_| Ok(())), "number 5 of tensor");
        let found = plan.write(&output, WriteOptions { overwrite: false, allow_nonfinite: true }, &mut |_| Ok(()));
        assert_eq!(found.unwrap().iter().map(|found| found.count).sum::<u64>(), 1);
        let bundle = Source::open(&output).unwrap();
        let bundle = pinhole::pipeline::open(&bundle).unwrap();
        for network in bundle.networks() {
            for (id, weight) in network.model.manifest().iter() {
                let numbers = network.bound.read_f32(id).unwrap();
                assert!(numbers.iter().all(|number| number.is_finite()), "{file_type}: {}", weight.name);
            }
        }
    }
}

#[test]
fn types_that_do_not_exist() {
    for text in ["q9_0", "", "q8_0,q4_0", "unet=q8_0", "q8_0,vae=", "iq2_xxs"] {
        let Err(error) = text.parse::<convert::Types>() else { continue };
        show(&error);
        assert!(matches!(error, Error::Option { option: "--type", .. }), "{error:?}");
    }
}
