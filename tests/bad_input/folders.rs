//! Files of other tools, together in a folder: which of them is meant.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pinhole::pipeline::Opened;
use pinhole::source::slot::{TEXT_ENCODER, TEXT_ENCODER_2, TRANSFORMER};
use pinhole::source::{Files, Slot, Source};
use pinhole::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use tempfile::TempDir;

use crate::disk::{link, refused};
use crate::support::foreign::Foreign;
use crate::support::spiece::spiece;
use crate::support::write_parts;

/// What the files in the folder are called.
const FILES: [&str; 4] = ["flux1.safetensors", "clip_l.safetensors", "t5xxl.safetensors", "ae.safetensors"];

/// A folder with a model's files and folders of tokenizers, written once for all tests.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    let directory = TEMPLATE.get_or_init(|| {
        let (directory, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let foreign = Foreign::load("loose");
        for file in FILES {
            foreign.write(directory.path(), file);
        }
        write_parts(parts.path(), &foreign.case);
        for folder in ["tokenizer", "tokenizer_2"] {
            fs::rename(parts.path().join(folder), directory.path().join(folder)).unwrap();
        }
        directory
    });
    directory.path()
}

/// A folder that shares its files with the template.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        let directory = tempfile::tempdir().unwrap();
        link(template(), directory.path());
        Folder(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn copy(&self, from: &str, to: &str) {
        fs::hard_link(self.path(from), self.path(to)).unwrap();
    }

    /// Opens the folder, with these options.
    fn with(&self, options: &[(&str, PathBuf)]) -> Result<Opened> {
        let mut files = Files::default();
        for (name, path) in options {
            files.add(name, path.clone());
        }
        pinhole::pipeline::open(&Source::assemble(Some(Source::open(self.0.path())?), &files)?)
    }

    fn open(&self) -> Result<Opened> {
        self.with(&[])
    }
}

/// The file that the component at `slot` is in.
fn origin(model: &Opened, slot: &Slot) -> PathBuf {
    model.source.component(slot).unwrap().origin.clone()
}

/// Writes a file with the tensors of `files`, each under a prefix. All are in single precision.
fn combine(files: &[(&Path, &str)], to: &Path) {
    let all: Vec<Vec<u8>> = files.iter().map(|(path, _)| fs::read(path).unwrap()).collect();
    let mut views = BTreeMap::new();
    for ((_, prefix), bytes) in files.iter().zip(&all) {
        for (name, view) in SafeTensors::deserialize(bytes).unwrap().iter() {
            views.insert(format!("{prefix}{name}"), (view.dtype(), view.shape().to_vec(), view.data()));
        }
    }
    let views = views
        .iter()
        .map(|(name, (dtype, shape, data))| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, to).unwrap();
}

#[test]
fn an_option_says_which_of_two() {
    for (name, file, slot) in [
        ("transformer", FILES[0], &TRANSFORMER),
        ("text_encoder", FILES[1], &TEXT_ENCODER),
        ("text_encoder_2", FILES[2], &TEXT_ENCODER_2),
    ] {
        let folder = Folder::new();
        folder.copy(file, "another.safetensors");
        let error = refused!(NotAModel, folder.open(), "it has 2 of", "another.safetensors", file);
        let option = error.hint().unwrap().strip_prefix("say which with ").unwrap().to_owned();
        assert_eq!(option, format!("{} FILE", slot.option));
        for said in [file, "another.safetensors"] {
            let model = folder.with(&[(name, folder.path(said))]).unwrap();
            assert_eq!(origin(&model, slot), folder.path(said));
        }
        // Nor is one needed that is damaged.
        fs::remove_file(folder.path(file)).unwrap();
        fs::write(folder.path(file), "<html>404</html>").unwrap();
        assert_eq!(origin(&folder.open().unwrap(), slot), folder.path("another.safetensors"));
        fs::remove_file(folder.path("another.safetensors")).unwrap();
        refused!(NotAModel, folder.open(), file, "a web page");
        // From elsewhere, where no tokenizer lies.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::hard_link(template().join(file), elsewhere.path().join(file)).unwrap();
        folder.with(&[(name, elsewhere.path().join(file))]).unwrap();
    }
}

#[test]
fn names_are_hints() {
    let folder = Folder::new();
    for (from, to) in FILES.into_iter().zip(["flux1.sft", "clip_l", "t5xxl.bin", "ae.GGUF"]) {
        folder.rename(from, to);
    }
    folder.open().unwrap();
    // Hidden files, and what downloads leave behind, are not looked at.
    fs::write(folder.path("._flux1.safetensors"), "\0\x05\x16\x07").unwrap();
    folder.copy("flux1.sft", "flux1.safetensors.part");
    folder.copy("t5xxl.bin", "t5.gguf.1");
    fs::write(folder.path("notes.txt"), "x".repeat(100)).unwrap();
    folder.open().unwrap();
    // Nor need names be text.
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let odd = std::ffi::OsStr::from_bytes(b"t5-\xe9.safetensors");
        fs::rename(folder.path("t5xxl.bin"), folder.0.path().join(odd)).unwrap();
        folder.open().unwrap();
    }
    folder.copy("flux1.sft", "flux1");
    refused!(NotAModel, folder.open(), "it has 2 of transformer (flux1, flux1.sft)");
}

#[test]
fn shards_in_a_flat_folder() {
    let folder = Folder::new();
    let bytes = fs::read(folder.path(FILES[0])).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut views: Vec<_> = tensors.iter().collect();
    views.sort_by_key(|(name, _)| *name);
    let mut map = serde_json::Map::new();
    let half = views.len() / 2;
    for (i, views) in [&views[..half], &views[half..]].into_iter().enumerate() {
        let name = format!("flux1-0000{}-of-00002.safetensors", i + 1);
        views.iter().for_each(|(tensor, _)| drop(map.insert((*tensor).to_owned(), name.clone().into())));
        let views = views
            .iter()
            .map(|(name, view)| (*name, TensorView::new(view.dtype(), view.shape().to_vec(), view.data()).unwrap()));
        serialize_to_file(views, None, &folder.path(&name)).unwrap();
    }
    refused!(NotAModel, folder.open(), "it has 2 of transformer");
    fs::remove_file(folder.path(FILES[0])).unwrap();
    let count = |model: Opened| model.source.component(&TRANSFORMER).unwrap().index.len();
    assert_eq!(count(folder.open().unwrap()), views.len());
    let index = folder.path("flux1.safetensors.index.json");
    fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    assert_eq!(count(folder.open().unwrap()), views.len());
    assert_eq!(count(Folder::new().with(&[("transformer", index.clone())]).unwrap()), views.len());
    let shard = folder.path("flux1-00002-of-00002.safetensors");
    assert_eq!(count(Folder::new().with(&[("transformer", shard.clone())]).unwrap()), views.len());
    // The folder of a part.
    let part = tempfile::tempdir().unwrap();
    for name in ["flux1-00001-of-00002.safetensors", "flux1-00002-of-00002.safetensors"] {
        fs::hard_link(folder.path(name), part.path().join(name)).unwrap();
    }
    assert_eq!(count(Folder::new().with(&[("transformer", part.path().to_owned())]).unwrap()), views.len());
    fs::remove_file(&shard).unwrap();
    refused!(Mismatch, folder.open(), "flux1-00002-of-00002.safetensors", "beside the index");
    fs::remove_file(&index).unwrap();
    refused!(Mismatch, folder.open(), "flux1-00002-of-00002.safetensors", "none of this name");
    // None of that matters if another takes its place.
    folder.with(&[("transformer", template().join(FILES[0]))]).unwrap();
    fs::write(&index, r#"{"weight_map": {"a": "gone-00001-of-00001.safetensors"}}"#).unwrap();
    fs::remove_file(folder.path("flux1-00001-of-00002.safetensors")).unwrap();
    fs::hard_link(template().join(FILES[0]), folder.path(FILES[0])).unwrap();
    folder.open().unwrap();
}

#[test]
fn a_folder_with_a_bundle_is_the_bundle() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::hard_link(crate::disk::bundle(), at("model.gguf")).unwrap();
    fs::write(at("README.md"), "a model").unwrap();
    pinhole::pipeline::open(&Source::open(directory.path()).unwrap()).unwrap();
    fs::hard_link(crate::disk::bundle(), at("other.gguf")).unwrap();
    refused!(NotAModel, Source::open(directory.path()), "model.gguf", "other.gguf");
}

#[test]
fn tokenizers_beside_the_weights() {
    let folder = Folder::new();
    for name in ["tokenizer", "tokenizer_2"] {
        fs::remove_dir_all(folder.path(name)).unwrap();
    }
    let error = refused!(NotAModel, folder.open(), "no tokenizer");
    let hint = error.hint().unwrap();
    assert_eq!(hint, "give them with --tokenizer FILE, --tokenizer-2 FILE");
    for name in ["vocab.json", "merges.txt"] {
        fs::hard_link(template().join("tokenizer").join(name), folder.path(name)).unwrap();
    }
    fs::write(folder.path("spiece.model"), spiece()).unwrap();
    let model = folder.open().unwrap();
    assert_eq!(model.source.tokenizer(&TEXT_ENCODER_2).unwrap().tokenizer.origin, folder.path("spiece.model"));
    // One for the other is none.
    fs::hard_link(template().join("tokenizer/tokenizer.json"), folder.path("tokenizer.json")).unwrap();
    refused!(NotAModel, folder.open(), "no tokenizer_2");
    fs::remove_file(folder.path("tokenizer.json")).unwrap();
    fs::hard_link(template().join("tokenizer_2/tokenizer.json"), folder.path("tokenizer.json")).unwrap();
    refused!(NotAModel, folder.open(), "no tokenizer");
}

#[test]
fn a_running_average_is_passed_over() {
    let folder = Folder::new();
    let flux = template().join(FILES[0]);
    combine(
        &[(&flux, "model.diffusion_model."), (&flux, "model_ema.diffusion_model.")],
        &folder.path("both.safetensors"),
    );
    fs::remove_file(folder.path(FILES[0])).unwrap();
    let prefix = |model: Opened| model.source.component(&TRANSFORMER).unwrap().prefix.clone();
    assert_eq!(prefix(folder.open().unwrap()), "model.diffusion_model.");
    let given = |prefix: &str| {
        let path = folder.path(&format!("both.safetensors:{prefix}"));
        folder.with(&[("transformer", path)])
    };
    assert_eq!(prefix(given("model_ema.diffusion_model").unwrap()), "model_ema.diffusion_model.");
    assert_eq!(prefix(given("model.diffusion_model.").unwrap()), "model.diffusion_model.");
    refused!(
        NotAModel,
        given("other"),
        "it holds 2 of transformer, as `model.diffusion_model`, `model_ema.diffusion_model`"
    );
}

#[test]
fn what_names_its_place_comes_first() {
    let folder = Folder::new();
    let clip = template().join(FILES[1]);
    let file = folder.path("clips.safetensors");
    fs::remove_file(folder.path(FILES[1])).unwrap();
    let prefix = |model: Opened| model.source.component(&TEXT_ENCODER).unwrap().prefix.clone();
    combine(&[(&clip, "text_encoders.clip_g.transformer."), (&clip, "text_encoders.clip_l.transformer.")], &file);
    assert_eq!(prefix(folder.open().unwrap()), "text_encoders.clip_l.transformer.");
    combine(&[(&clip, "text_encoder."), (&clip, "text_encoder_2.")], &file);
    assert_eq!(prefix(folder.open().unwrap()), "text_encoder.");
    combine(&[(&clip, "one."), (&clip, "other.")], &file);
    let error = refused!(NotAModel, folder.open(), "it holds 2 of CLIP text encoder, as `one`, `other`");
    // What the hint says works.
    let said = error.hint().unwrap().strip_prefix("say which with --text-encoder ").unwrap();
    assert_eq!(prefix(folder.with(&[("text_encoder", said.into())]).unwrap()), "other.");
    let error: Error = folder.with(&[("text_encoder", folder.path("none.safetensors:one"))]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("none.safetensors:one"), "{error}");
}
