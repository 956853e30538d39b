//! Diffusers directories as people and download tools leave them.

use std::fs;
use std::path::{Path, PathBuf};

use pinhole::source::slot::{TEXT_ENCODER_2, TRANSFORMER};
use pinhole::source::{Files, Source};
use pinhole::{Error, Result};
use safetensors::Dtype;
use serde_json::json;

use crate::disk::{Disk, link, refused, weights_of};
use crate::support::spiece::spiece;
use crate::support::{Golden, Layout, golden, write_component};

/// Opens the model at `base` with one part given by option.
fn with(base: &Path, name: &str, path: PathBuf) -> Result<pinhole::pipeline::Opened> {
    let mut files = Files::default();
    files.add(name, path);
    pinhole::pipeline::open(&Source::assemble(Some(Source::open(base)?), &files)?)
}

/// A file or folder that an option gives is in the place of one that is missing or damaged, and is not asked for again.
#[test]
fn what_an_option_replaces_is_not_needed() {
    let other = Disk::new();
    for (component, name) in [
        ("transformer", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
        ("text_encoder_2", "model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
    ] {
        let file = other.path(&format!("{component}/{name}"));
        let damages: [&dyn Fn(&Disk); 4] = [
            &|disk| disk.remove(component),
            &|disk| disk.remove(&weights_of(component)),
            &|disk| disk.write(&weights_of(component), "<html>404</html>"),
            &|disk| disk.write(&format!("{component}/config.json"), b"\xff"),
        ];
        for damage in damages {
            let disk = Disk::new();
            damage(&disk);
            disk.open().map(|_| ()).unwrap_err();
            // The folder has the configuration; the file alone is read off its shapes.
            with(disk.root(), component, other.path(component)).unwrap();
            with(disk.root(), component, other.root().to_owned()).unwrap();
            let opened = with(disk.root(), component, file.clone());
            assert!(!opened.is_err_and(|error| error.to_string().contains(disk.root().to_str().unwrap())));
        }
    }
    for name in ["tokenizer", "tokenizer_2"] {
        let disk = Disk::new();
        disk.write(&format!("{name}/tokenizer.json"), b"\xff");
        disk.open().map(|_| ()).unwrap_err();
        with(disk.root(), name, other.path(name)).unwrap();
        with(disk.root(), name, other.path(&format!("{name}/tokenizer.json"))).unwrap();
        // A whole model, to take it from.
        with(disk.root(), name, other.root().to_owned()).unwrap();
    }
}

/// What the tools of Hugging Face leave: `refs/main` names the snapshot.
#[test]
fn a_folder_of_a_download_stands_for_its_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("models--black-forest-labs--FLUX.1-schnell");
    let snapshot = |name: &str| root.join("snapshots").join(name);
    fs::create_dir_all(root.join("blobs")).unwrap();
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::create_dir_all(snapshot("")).unwrap();
    let open = || pinhole::pipeline::open(&Source::open(&root)?);
    refused!(NotAModel, open(), "nothing in its `snapshots`");
    let whole = Disk::new();
    link(whole.root(), &snapshot("aaaa"));
    fs::write(root.join(".DS_Store"), "").unwrap();
    // With one snapshot, no reference is needed.
    fs::write(root.join("refs/main"), b"\xff").unwrap();
    open().unwrap();
    fs::remove_file(root.join("refs/main")).unwrap();
    let model = open().unwrap();
    assert_eq!(model.source.path, root);
    assert_eq!(model.source.component(&TRANSFORMER).unwrap().origin, snapshot("aaaa/transformer"));
    fs::create_dir_all(snapshot("bbbb")).unwrap();
    let error = refused!(NotAModel, open(), "aaaa, bbbb", "refs/main");
    assert!(error.hint().unwrap().contains("snapshots/aaaa"));
    fs::write(root.join("refs/main"), "aaaa\n").unwrap();
    open().unwrap();
    for other in [&b"cccc"[..], b"../snapshots/aaaa", b"", b"\0", b"\xff"] {
        fs::write(root.join("refs/main"), other).unwrap();
        refused!(NotAModel, open(), "several snapshots");
    }
    let error = refused!(NotAModel, Source::open(&root.join("snapshots")), "it holds aaaa, bbbb");
    assert!(error.hint().unwrap().ends_with("snapshots/aaaa"));
    fs::write(root.join("refs/main"), "aaaa").unwrap();
    // As a part, as a tokenizer, and for `inspect`.
    let disk = Disk::new();
    disk.remove("transformer");
    disk.remove("tokenizer_2");
    let mut files = Files::default();
    files.add("transformer", root.clone());
    files.add("tokenizer_2", root.clone());
    let source = Source::assemble(Some(Source::open(disk.root()).unwrap()), &files).unwrap();
    pinhole::pipeline::open(&source).unwrap();
    pinhole::inspect::Subject::open(&root).unwrap();
    let error = refused!(NotAModel, Source::open(directory.path()), "models--black-forest-labs");
    assert!(error.hint().unwrap().contains("the folder of one model"));
}

/// Cuts the weights of a component into shards.
fn sharded(disk: &Disk, component: &str, dtype: Dtype) {
    disk.remove(component);
    let layout = Layout { dtype, max_shard_bytes: Some(4_000_000), ..Layout::default() };
    write_component(&disk.path(component), &Golden::load("schnell"), component, &layout);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn shards_need_no_index() {
    let disk = Disk::new();
    sharded(&disk, "transformer", Dtype::BF16);
    let tensors = |disk: &Disk| disk.open().unwrap().source.component(&TRANSFORMER).unwrap().index.len();
    let all = tensors(&disk);
    disk.remove("transformer/diffusion_pytorch_model.safetensors.index.json");
    assert_eq!(tensors(&disk), all);
    // A shard that is given stands for all of them.
    let shards: Vec<String> =
        names(&disk.path("transformer")).into_iter().filter(|name| name.contains("-of-")).collect();
    assert!(shards.len() > 2);
    let whole = Disk::new();
    let shard = disk.path(&format!("transformer/{}", shards[1]));
    let model = with(whole.root(), "transformer", shard).unwrap();
    assert_eq!(model.source.component(&TRANSFORMER).unwrap().index.len(), all);
    disk.remove(&format!("transformer/{}", shards[2]));
    let error = refused!(Mismatch, disk.open(), &shards[2], "shard", "none of this name");
    assert!(error.hint().unwrap().contains("download"));
}

/// A download of one precision brings the other's index along, and nothing else of it.
#[test]
fn an_index_without_its_shards_is_passed_over() {
    let disk = Disk::new();
    sharded(&disk, "transformer", Dtype::BF16);
    let folder = disk.path("transformer");
    let shards: Vec<String> = names(&folder).into_iter().filter(|name| name.contains("-of-")).collect();
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    let text = fs::read_to_string(disk.path(index)).unwrap();
    for name in &shards {
        let renamed = name.replace("_model-", "_model.fp16-");
        fs::rename(folder.join(name), folder.join(renamed)).unwrap();
    }
    disk.open().unwrap();
    disk.write(
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        text.replace("_model-", "_model.fp16-"),
    );
    disk.open().unwrap();
    // By option, such an index is known by what it holds.
    let given = disk.path("transformer/diffusion_pytorch_model.safetensors.index.fp16.json");
    with(Disk::new().root(), "transformer", given.clone()).unwrap();
    fs::copy(&given, folder.join("weights.json")).unwrap();
    with(Disk::new().root(), "transformer", folder.join("weights.json")).unwrap();
    for name in names(&folder).into_iter().filter(|name| name.contains("-of-")) {
        fs::remove_file(folder.join(name)).unwrap();
    }
    let error = refused!(Mismatch, disk.open(), "index.json", "beside the index");
    assert!(error.hint().unwrap().contains("download"));
}

#[test]
fn one_file_of_any_name_will_do() {
    for name in ["flux1-schnell.safetensors", "weights.sft", "weights"] {
        let disk = Disk::new();
        fs::rename(disk.path(&weights_of("transformer")), disk.path(&format!("transformer/{name}"))).unwrap();
        disk.open().unwrap();
        disk.write("transformer/other.safetensors", fs::read(disk.path(&weights_of("vae"))).unwrap());
        refused!(NotAModel, disk.open(), "diffusion_pytorch_model.safetensors");
    }
}

/// As they stand in published repositories, `tokenizer_config.json` included, which need not name a class.
#[test]
fn tokenizers_without_a_tokenizer_json() {
    let disk = Disk::new();
    disk.remove("tokenizer_2/tokenizer.json");
    disk.write("tokenizer_2/spiece.model", spiece());
    disk.edit("tokenizer_2/tokenizer_config.json", |config| {
        config.as_object_mut().unwrap().retain(|key, _| key == "model_max_length");
        config["extra_ids"] = json!(100);
    });
    let prompt = "a small yellow star on a blue background";
    let ids = |disk: &Disk| {
        let model = disk.open().unwrap();
        let settings = pinhole::pipeline::settings(&model, &crate::requests::small()).unwrap();
        model.encoders.tokenize(prompt, &settings).unwrap()
    };
    let wanted = ids(&Disk::new());
    assert_eq!(ids(&disk), wanted);
    disk.remove("tokenizer_2/tokenizer_config.json");
    let request = pinhole::pipeline::Request { max_sequence_length: Some(32), ..crate::requests::small() };
    let model = disk.open().unwrap();
    let settings = pinhole::pipeline::settings(&model, &request).unwrap();
    let whole = Disk::new().open().unwrap();
    assert_eq!(
        model.encoders.tokenize(prompt, &settings).unwrap(),
        whole.encoders.tokenize(prompt, &settings).unwrap()
    );
    // Nor does the other need any but its two files.
    for name in ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"] {
        disk.remove(name);
    }
    let model = disk.open().unwrap();
    assert_eq!(
        model.encoders.tokenize(prompt, &settings).unwrap(),
        whole.encoders.tokenize(prompt, &settings).unwrap()
    );
    // By option: each of the files, or the folder.
    let given = |name: &str, path: &str| with(Disk::new().root(), name, disk.path(path)).map(|_| ());
    for path in ["tokenizer_2", "tokenizer_2/spiece.model"] {
        given("tokenizer_2", path).unwrap();
    }
    for path in ["tokenizer", "tokenizer/vocab.json", "tokenizer/merges.txt"] {
        given("tokenizer", path).unwrap();
    }
    refused!(NotAModel, given("tokenizer_2", "tokenizer"), "no tokenizer for T5");
    let error = refused!(NotAModel, given("tokenizer", "tokenizer_2/spiece.model"), "no tokenizer for CLIP");
    assert!(error.hint().unwrap().contains("merges.txt"));
    refused!(Malformed, given("tokenizer_2", "tokenizer/vocab.json"), "vocab.json");
    disk.write("tokenizer_2/spiece.model", &spiece()[..100]);
    refused!(Malformed, disk.open(), "tokenizer_2/spiece.model", "SentencePiece");
}

/// As in the files of Stable Diffusion 2; the ids are those of transformers 5.24.
#[test]
fn an_older_list_of_marks_counts() {
    let ids = |disk: &Disk| {
        let model = disk.open().unwrap();
        let settings = pinhole::pipeline::settings(&model, &crate::requests::small()).unwrap();
        model.encoders.tokenize("red ! star", &settings).unwrap()[0].ids.clone()
    };
    let disk = Disk::new();
    disk.remove("tokenizer/tokenizer.json");
    assert_eq!(ids(&disk)[..7], [696, 347, 287, 379, 697, 697, 697]);
    disk.write("tokenizer/special_tokens_map.json", r#"{"pad_token": "!", "other": NaN, "bos_token": null}"#);
    assert_eq!(ids(&disk)[..7], [696, 347, 0, 379, 697, 0, 0]);
    disk.remove("tokenizer/tokenizer_config.json");
    assert_eq!(ids(&disk)[..7], [696, 347, 0, 379, 697, 0, 0]);
    disk.write("tokenizer/tokenizer_config.json", r#"{"added_tokens_decoder": {}}"#);
    assert_eq!(ids(&disk)[..7], [696, 347, 287, 379, 697, 697, 697]);
    disk.write("tokenizer/tokenizer_config.json", "{}");
    disk.write("tokenizer/special_tokens_map.json", "[]");
    refused!(Malformed, disk.open(), "special_tokens_map.json", "a JSON object of tokens");
}

/// The names of files say nothing that their contents do not.
#[test]
fn a_tokenizer_is_known_by_its_content() {
    let disk = Disk::new();
    fs::copy(golden::directory().join("tokenizers/t5/tokenizer.json"), disk.path("words.gguf")).unwrap();
    with(disk.root(), "tokenizer_2", disk.path("words.gguf")).unwrap();
    fs::copy(crate::disk::bundle(), disk.path("bundle.json")).unwrap();
    with(disk.root(), "tokenizer_2", disk.path("bundle.json")).unwrap();
    with(disk.root(), "text_encoder_2", disk.path("bundle.json")).unwrap();
    disk.write("words", spiece());
    with(disk.root(), "tokenizer_2", disk.path("words")).unwrap();
}

/// transformers' repositories have the tokenizer beside the weights of the text encoder.
#[test]
fn a_text_encoder_brings_its_tokenizer() {
    let (disk, other) = (Disk::new(), Disk::new());
    disk.remove("tokenizer_2");
    disk.open().map(|_| ()).unwrap_err();
    fs::write(other.path("text_encoder_2/spiece.model"), spiece()).unwrap();
    other.remove("tokenizer_2");
    let model = with(disk.root(), "text_encoder_2", other.path("text_encoder_2")).unwrap();
    let origin = &model.source.tokenizer(&TEXT_ENCODER_2).unwrap().tokenizer.origin;
    assert_eq!(*origin, other.path("text_encoder_2/spiece.model"));
}

/// Of a download of one component there is only its folder.
#[test]
fn a_part_of_a_download() {
    let (disk, part) = (Disk::new(), tempfile::tempdir().unwrap());
    link(&disk.path("transformer"), &part.path().join("transformer"));
    disk.remove("transformer");
    let model = with(disk.root(), "transformer", part.path().to_owned()).unwrap();
    assert_eq!(model.source.component(&TRANSFORMER).unwrap().origin, part.path().join("transformer"));
    refused!(NotAModel, with(disk.root(), "vae", part.path().to_owned()), "no diffusion_pytorch_model.safetensors");
}

/// JSON has no such numbers, and Python writes them all the same.
#[test]
fn numbers_that_json_lacks() {
    let disk = Disk::new();
    for file in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "vae/config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer_config.json",
    ] {
        let text = disk.json(file).to_string();
        disk.write(file, text.replacen('{', r#"{"some": NaN, "more": [Infinity, -Infinity, "NaN"], "#, 1));
    }
    disk.write("generation_config.json", r#"{"width": 64, "height": 64, "temperature": Infinity}"#);
    let model = disk.open().unwrap();
    assert_eq!(model.rules.defaults.width, 64);
    let subject = pinhole::inspect::Subject::open(disk.root()).unwrap();
    let report = pinhole::inspect::Report::of(disk.root(), &subject);
    assert!(report.problems.is_empty() && report.scheduler.iter().count() > 1);
}

/// Every error of an option names what the option gave.
#[test]
fn what_is_given_is_blamed() {
    let disk = Disk::new();
    disk.write("page", "<html>404</html>");
    let error = with(disk.root(), "transformer", disk.path("page")).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NotAModel { .. }) && error.to_string().contains("page"), "{error}");
}
