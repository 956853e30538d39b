//! Diffusers directories with a damage each, folders as tools and people leave them, and files as other tools write them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Case;
use super::Verdict::{self, Fine, Refused, Warned, WrongNumbers};
use super::fixtures::{RawTensor, U32, array, typed};
use super::model::{self, Tensors, weights_of};

/// The texts of the directory without which it is no model.
const TEXTS: [&str; 9] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "vae/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer_2/tokenizer.json",
    "generation_config.json",
];

const COMPONENTS: [&str; 4] = ["transformer", "text_encoder", "text_encoder_2", "vae"];

/// A change of a folder.
type Damage<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);

pub(super) fn all(root: &Path, template: &Path) -> Vec<Case> {
    let mut cases = texts(root, template);
    cases.extend(weights(root, template));
    cases.extend(numbers(root, template));
    cases.extend(other_tools(root));
    cases.extend(special(root));
    cases
}

/// The model with what `damage` does to it. The name of its folder tells nothing, so that messages have to.
fn damaged(root: &Path, template: &Path, damage: impl FnOnce(&Path)) -> PathBuf {
    let dir = root.join(format!("model-{}", fs::read_dir(root).unwrap().count()));
    link(template, &dir);
    damage(&dir);
    dir
}

/// Links every file below `from` to its place below `to`.
fn link(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => link(&entry.path(), &target),
            false => fs::hard_link(entry.path(), &target).unwrap(),
        }
    }
}

/// Replaces a file, and not the other end of a link.
fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

fn pipe(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn symlink(to: &str, path: &Path) {
    let _ = fs::remove_file(path);
    std::os::unix::fs::symlink(to, path).unwrap();
}

/// What may stand in the place of any file, and makes it no such file.
fn replacements<'a>() -> Vec<Damage<'a>> {
    vec![
        ("empty", Box::new(|path: &Path| write(path, ""))),
        ("list", Box::new(|path: &Path| write(path, "[1, 2]"))),
        ("latin", Box::new(|path: &Path| write(path, b"{\"a\": \"\xff\"}"))),
        ("page", Box::new(|path: &Path| write(path, "<!DOCTYPE html><p>404"))),
        ("pointer", Box::new(|path: &Path| write(path, "version https://git-lfs.github.com/spec/v1\nsize 5\n"))),
        ("deep", Box::new(|path: &Path| write(path, "[".repeat(100_000)))),
        ("pipe", Box::new(pipe)),
        ("endless", Box::new(|path: &Path| symlink("/dev/zero", path))),
        ("gone", Box::new(|path: &Path| symlink("../../blobs/0123", path))),
        (
            "folder",
            Box::new(|path: &Path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            }),
        ),
    ]
}

fn texts(root: &Path, template: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    for text in TEXTS {
        for (what, damage) in replacements() {
            let name = format!("{text} {what}");
            let dir = damaged(root, template, |dir| damage(&dir.join(text)));
            // A folder without model_index.json is no diffusers directory, and holds nothing else.
            cases.push(Case::model(name, dir, text, Refused));
        }
    }
    cases
}

fn weights(root: &Path, template: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    for component in COMPONENTS {
        let file = weights_of(component);
        let bytes = fs::read(template.join(&file)).unwrap();
        let half = &bytes[..bytes.len() / 2];
        let mut damages = replacements();
        damages.push(("missing", Box::new(|path: &Path| fs::remove_file(path).unwrap())));
        damages.push(("half", Box::new(move |path: &Path| write(path, half))));
        damages.push(("zeros", Box::new(|path: &Path| write(path, [0; 100_000]))));
        for (what, damage) in damages {
            let name = format!("{file} {what}");
            let dir = damaged(root, template, |dir| damage(&dir.join(&file)));
            cases.push(Case::model(name, dir, component, Refused));
        }
        let name = format!("{component} moved");
        let dir = damaged(root, template, |dir| {
            fs::remove_dir_all(dir.join(component)).unwrap();
            symlink("../moved", &dir.join(component));
        });
        cases.push(Case::model(name, dir, component, Refused));
    }
    cases
}

/// Tensors and settings that do not go together, and numbers that are none.
fn numbers(root: &Path, template: &Path) -> Vec<Case> {
    let model = pinhole::open("mini").unwrap();
    let mut cases = Vec::new();
    let mut changed = |name: &str, component: &str, verdict: Verdict, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = model::tensors(&model, component);
        change(&mut tensors);
        let name = format!("{component} {name}");
        let dir = damaged(root, template, |dir| {
            write(&dir.join(weights_of(component)), model::safetensors(&tensors));
        });
        cases.push(Case::model(name, dir, component, verdict));
    };
    for component in COMPONENTS {
        let matrix = |tensors: &Tensors| {
            let found = tensors.iter().find(|(name, (extents, _))| extents.len() > 1 && name.ends_with("weight"));
            found.unwrap().0.clone()
        };
        changed("lacks a tensor", component, Refused, &|tensors| drop(tensors.remove(&matrix(tensors))));
        changed("has another shape", component, Refused, &|tensors| {
            let (extents, numbers) = tensors.get_mut(&matrix(tensors)).unwrap();
            extents[0] += 1;
            numbers.resize(extents.iter().product(), 0.0);
        });
        changed("has more", component, Fine, &|tensors| {
            tensors.insert("something.else".into(), (vec![3], vec![f32::MAX; 3]));
        });
        changed("is not a number", component, WrongNumbers, &|tensors| {
            tensors.get_mut(&matrix(tensors)).unwrap().1.fill(f32::NAN);
        });
    }
    for (name, file, from, to) in [
        ("class", "model_index.json", "FluxPipeline", "LTXPipeline"),
        ("schedule", "scheduler/scheduler_config.json", "FlowMatchEuler", "Dream"),
        ("layers", "transformer/config.json", "\"num_layers\": ", "\"num_layers\": 9"),
        ("heads", "transformer/config.json", "\"num_attention_heads\": ", "\"num_attention_heads\": 9999999999"),
        ("width", "text_encoder_2/config.json", "\"d_model\": ", "\"d_model\": 7"),
        ("channels", "vae/config.json", "\"latent_channels\": ", "\"latent_channels\": 1"),
    ] {
        let text = fs::read_to_string(template.join(file)).unwrap();
        let text = text.replace("\":", "\": ").replace(":  ", ": ");
        assert!(text.contains(from), "{file} has no {from}: {text}");
        let name = format!("setting {name}");
        let dir = damaged(root, template, |dir| write(&dir.join(file), text.replacen(from, to, 1)));
        // A class that is not run is named itself.
        let blamed = if name == "setting class" { to } else { file.split('/').next().unwrap() };
        cases.push(Case::model(name.clone(), dir, blamed, Refused));
    }
    cases
}

/// The transformer as other tools write it.
fn other_tools(root: &Path) -> Vec<Case> {
    let model = pinhole::open("mini").unwrap();
    let tensors = model::tensors(&model, "transformer");
    let part = |name: &str, bytes: &[u8], verdict: Verdict| {
        let path = root.join(name);
        write(&path, bytes);
        Case::part(name, "--transformer", path, name, verdict)
    };
    let whole = model::gguf(&tensors);
    let mut cases = vec![part("plain.gguf", &whole.bytes(), Fine)];

    // stable-diffusion.cpp.
    let mut prefixed = whole.clone();
    prefixed.metadata.clear();
    for tensor in &mut prefixed.tensors {
        tensor.name = [b"model.diffusion_model.", &tensor.name[..]].concat();
    }
    cases.push(part("prefixed.gguf", &prefixed.bytes(), Fine));

    // ComfyUI-GGUF cuts a matrix into rows of 256, and says what it was.
    let name = "img_in.weight";
    let extents: Vec<u8> = tensors[name].0.iter().flat_map(|&extent| (extent as u32).to_le_bytes()).collect();
    let place = whole.tensors.iter().position(|tensor| tensor.name == name.as_bytes()).unwrap();
    let cut = |type_id: u32, extents: &[u8]| {
        let mut file = whole.clone();
        let numbers: u64 = file.tensors[place].dims.iter().product();
        file.tensors[place] =
            RawTensor { type_id, ..RawTensor::new(name, &[256, numbers / 256], 0, file.tensors[place].offset) };
        file.push(&format!("comfy.gguf.orig_shape.{name}"), array(5, (extents.len() / 4) as u64, extents));
        file
    };
    cases.push(part("cut-rows.gguf", &cut(0, &extents).bytes(), Fine));
    cases.push(part("cut-rows-lie.gguf", &cut(0, &[7, 0, 0, 0, 7, 0, 0, 0]).bytes(), Refused));
    // Blocks of 256 numbers may go on in the next row.
    cases.push(part("cut-rows-blocks.gguf", &cut(12, &extents).bytes(), Fine));

    // llama.cpp's tool cuts a file into pieces.
    let pieces = root.join("pieces");
    fs::create_dir(&pieces).unwrap();
    for number in 0..3u16 {
        let mut piece = model::gguf(
            &tensors.iter().skip(number.into()).step_by(3).map(|(name, found)| (name.clone(), found.clone())).collect(),
        );
        piece.push("split.no", typed(2, &number.to_le_bytes()));
        piece.push("split.count", typed(2, &3u16.to_le_bytes()));
        piece.push("split.tensors.count", typed(5, &(tensors.len() as u32).to_le_bytes()));
        fs::write(pieces.join(format!("dit-{:05}-of-00003.gguf", number + 1)), piece.bytes()).unwrap();
    }
    let piece = "dit-00002-of-00003.gguf";
    cases.push(Case::part("a piece", "--transformer", pieces.join(piece), piece, Refused));
    cases.push(Case::part("pieces", "--transformer", pieces.clone(), "dit-0000", Refused));
    cases.push(Case::model("pieces as a model", pieces, "dit-0000", Refused));

    // A damaged file beside a whole one.
    let folder = root.join("neighbours");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("dit.gguf"), whole.bytes()).unwrap();
    let neighbour = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    neighbour("half.gguf", &whole.bytes()[..100_000]);
    let mut case = Case::part("a damaged neighbour", "--transformer", folder, "half.gguf", Warned);
    case.inspected = case.given[1].1.clone();
    cases.push(case);
    let mut newer = whole;
    newer.push("general.alignment", typed(U32, &3u32.to_le_bytes()));
    cases.push(part("alignment-3.gguf", &newer.bytes(), Refused));
    cases
}

/// What is no file, given as each part and as the model.
fn special(root: &Path) -> Vec<Case> {
    pipe(&root.join("a-pipe"));
    symlink("/dev/zero", &root.join("a-device"));
    symlink("nothing/there", &root.join("a-dead-link"));
    symlink("a-loop", &root.join("a-loop"));
    fs::create_dir(root.join("an-empty-folder")).unwrap();
    write(&root.join("no-rights"), "GGUF");
    let mut mode = fs::metadata(root.join("no-rights")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0);
    fs::set_permissions(root.join("no-rights"), mode).unwrap();
    let mut cases = Vec::new();
    for name in ["a-pipe", "a-device", "a-dead-link", "a-loop", "an-empty-folder", "no-rights", "not-there"] {
        cases.push(Case::model(name, root.join(name), name, Refused));
        for option in super::PARTS {
            cases.push(Case::part(format!("{name} as {option}"), option, root.join(name), name, Refused));
        }
    }
    cases
}
