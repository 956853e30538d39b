//! Conversions that cannot begin, and those that do not end.

use std::fs;
use std::path::Path;

use pinhole::source::Source;
use pinhole::source::flux::FluxModel;
use pinhole::{Error, Result, convert};
use pinhole_quant::recipe::FileType;

use crate::disk::{Disk, bundle, refused, show, weights_of};

fn convert(from: &Path, to: &Path, overwrite: bool) -> Result<()> {
    let source = Source::open(from)?;
    let model = FluxModel::open(&source)?;
    convert::plan(&source, &model.networks(), FileType::F16)?.write(to, overwrite, &mut |_| Ok(()))
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
    FluxModel::open(&Source::open(&at("out.gguf")).unwrap()).unwrap();
    assert_eq!(names(directory.path()), ["out.gguf"]);
}

#[test]
fn a_cancelled_conversion_leaves_nothing_behind() {
    let disk = Disk::new();
    let source = Source::open(disk.root()).unwrap();
    let model = FluxModel::open(&source).unwrap();
    let plan = convert::plan(&source, &model.networks(), FileType::F16).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.gguf");
    for last in [0, 1, 50, 200] {
        let mut left = last;
        let written = plan.write(&output, false, &mut |progress| {
            assert!(progress.done <= progress.total);
            // Something is there while it is written.
            assert_eq!(names(directory.path()).len(), 1);
            left -= 1;
            if left < 0 { Err(Error::Cancelled) } else { Ok(()) }
        });
        refused!(Cancelled, written, "cancelled");
        assert_eq!(names(directory.path()), [""; 0]);
    }
    // What was there before stays.
    fs::write(&output, "mine").unwrap();
    refused!(Cancelled, plan.write(&output, true, &mut |_| Err(Error::Cancelled)), "cancelled");
    assert_eq!((fs::read(&output).unwrap(), names(directory.path())), (b"mine".to_vec(), vec!["out.gguf".to_owned()]));
    // The same plan works all the same.
    plan.write(&output, true, &mut |_| Ok(())).unwrap();
    assert_eq!(fs::metadata(&output).unwrap().len(), plan.total_bytes);
}

#[test]
fn types_that_do_not_exist() {
    for text in ["q9_0", "", "q8_0,q4_0", "unet=q8_0", "q8_0,vae=", "iq2_xxs"] {
        let Err(error) = text.parse::<convert::Types>() else { continue };
        show(&error);
        assert!(matches!(error, Error::Option { option: "--type", .. }), "{error:?}");
    }
}
