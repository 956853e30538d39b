//! What a repository is read from: a diffusers directory, the folder of a part, or its only file with weights.

use crate::error::{Error, Result};
use crate::listing::{Listed, Listing};
use crate::name::last_step;

/// What lies at the top of a diffusers directory.
const MODEL_INDEX: &str = "model_index.json";
/// The folders of diffusers directories that models are read from.
const FOLDERS: [&str; 15] = [
    "transformer",
    "transformer_2",
    "unet",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "vae",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "scheduler",
    "image_encoder",
    "feature_extractor",
    "processor",
    "safety_checker",
];

/// The files of a repository that a model is read from.
pub(crate) fn chosen<'a>(listing: &'a Listing, variant: Option<&str>) -> Result<Vec<&'a Listed>> {
    if listing.files.iter().any(|file| file.path == MODEL_INDEX) {
        let mut chosen: Vec<&Listed> = listing.files.iter().filter(|file| file.path == MODEL_INDEX).collect();
        for folder in FOLDERS {
            chosen.extend(of_folder(listing, &format!("{folder}/"), variant));
        }
        return Ok(chosen);
    }
    let weights: Vec<&Listed> = listing.weights().collect();
    let is_part = listing.files.iter().any(|file| file.path == "config.json");
    if is_part {
        let chosen = of_folder(listing, "", variant);
        if chosen.iter().any(|file| weights.contains(file)) {
            return Ok(chosen);
        }
    }
    match weights[..] {
        [only] => Ok(vec![only]),
        [] => Err(Error::name(
            &listing.repository.to_string(),
            "the repository has no weights that a model could be read from",
        )),
        _ => {
            let some: Vec<&str> = weights.iter().take(12).map(|file| file.path.as_str()).collect();
            let more = weights.len() - some.len();
            let more = if more == 0 { String::new() } else { format!(", and {more} more") };
            let problem = format!("the repository has {} files with weights", weights.len());
            Err(Error::name(&listing.repository.to_string(), problem).with_hint(format!(
                "name one: {}:FILE, of {}{more}",
                listing.repository,
                some.join(", ")
            )))
        }
    }
}

/// What is read of a folder, whose path ends in a slash: configurations, tokenizers, and one set of weights.
fn of_folder<'a>(listing: &'a Listing, folder: &str, variant: Option<&str>) -> Vec<&'a Listed> {
    let mut files: Vec<&Listed> = Vec::new();
    for file in &listing.files {
        if file.path.strip_prefix(folder).is_some_and(|rest| !rest.contains('/')) {
            files.push(file);
        }
    }
    let of = |ending: &str, variant: Option<&str>| -> Vec<&'a Listed> {
        let mut of = files.clone();
        of.retain(|file| weights_variant(last_step(&file.path), ending) == Some(variant.map(str::to_owned)));
        of
    };
    // The variant, or else all of it; PyTorch's own files where there is nothing else.
    let sets = [of(".safetensors", variant), of(".safetensors", None), of(".bin", variant), of(".bin", None)];
    let weights = sets.into_iter().find(|set| !set.is_empty()).unwrap_or_default();
    let mut chosen: Vec<&Listed> = files.into_iter().filter(|file| is_text(&file.path)).collect();
    chosen.extend(weights);
    chosen
}

/// Whether a file configures a part, or is a tokenizer.
fn is_text(path: &str) -> bool {
    let is_index = path.ends_with(".index.json");
    !is_index && [".json", ".txt", ".model", ".jinja"].iter().any(|ending| path.ends_with(ending))
}

/// Which variant of weights a file called `name` belongs to, as a shard, an index or by itself: `Some(None)` for those without a
/// variant, `None` if it has none with this ending.
fn weights_variant(name: &str, ending: &str) -> Option<Option<String>> {
    let stem = name.strip_suffix(".index.json").unwrap_or(name).strip_suffix(ending)?;
    let is_known = ["diffusion_pytorch_model", "model", "pytorch_model"].iter().any(|start| stem.starts_with(start));
    // model-00001-of-00002.fp16 and model.fp16-00001-of-00002 are both in use.
    let mut plain = String::new();
    for (i, piece) in stem.split('-').enumerate() {
        let rest = piece.trim_start_matches(|c: char| c.is_ascii_digit());
        if i == 0 {
            plain += piece;
        } else if rest != "of" && !rest.is_empty() {
            plain += rest;
        }
    }
    let variant = plain.split_once('.').map(|(_, variant)| variant.to_owned());
    is_known.then_some(variant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Checksum;
    use crate::name::{Repository, Site};

    fn listing(paths: &[&str]) -> Listing {
        let checksum = Checksum::sha256(&"a".repeat(64)).unwrap();
        let mut files = Vec::new();
        for path in paths {
            files.push(Listed { path: (*path).to_owned(), size: 1, checksum: checksum.clone() });
        }
        let repository = Repository::parse(Site::HuggingFace, "a/b").unwrap();
        Listing { repository, revision: "main".into(), commit: "c".repeat(40), files }
    }

    fn names(paths: &[&str], variant: Option<&str>) -> Result<Vec<String>> {
        let listing = listing(paths);
        chosen(&listing, variant).map(|files| files.into_iter().map(|file| file.path.clone()).collect())
    }

    #[test]
    fn variants_are_told_apart() {
        let of = |name: &str| weights_variant(name, ".safetensors");
        let fp16 = Some(Some("fp16".to_owned()));
        for plain in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "diffusion_pytorch_model.safetensors",
        ] {
            assert_eq!(of(plain), Some(None), "{plain}");
        }
        for half in
            ["model.fp16.safetensors", "model-00001-of-00002.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"]
        {
            assert_eq!(of(half), fp16, "{half}");
        }
        for other in ["model.bin", "config.json", "openvino_model.bin", "lora.safetensors"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_diffusers_directory_has_each_weight_once() {
        let paths = [
            "README.md",
            "model_index.json",
            "sd_xl_base_1.0.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/flax_model.msgpack",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.onnx",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "vae_1_0/config.json",
            "assets/model.safetensors",
        ];
        let plain = names(&paths, None).unwrap();
        let expected = [
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "scheduler/scheduler_config.json",
        ];
        assert_eq!(plain, expected);
        let half = names(&paths, Some("fp16")).unwrap();
        assert!(
            half.contains(&"unet/diffusion_pytorch_model.fp16.safetensors".into())
                && !half.iter().any(|name| name.contains("-of-"))
        );
        assert!(
            half.contains(&"text_encoder/model.fp16.safetensors".into())
                && !half.contains(&"text_encoder/model.safetensors".into())
        );
    }

    #[test]
    fn of_many_files_one_has_to_be_named() {
        assert_eq!(names(&["README.md", "only.gguf"], None).unwrap(), ["only.gguf"]);
        let part = ["config.json", "diffusion_pytorch_model.safetensors", "other.safetensors"];
        assert_eq!(names(&part, None).unwrap(), part[..2]);
        let error = names(&["x-Q4.gguf", "x-Q8.gguf"], None).unwrap_err();
        assert!(error.hint().unwrap().starts_with("name one: hf:a/b:FILE, of x-Q4.gguf, x-Q8.gguf"), "{error:?}");
        assert!(names(&["README.md"], None).is_err());
    }
}
