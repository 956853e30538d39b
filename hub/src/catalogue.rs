//! The list of models that have a name here: `catalogue.json`, which says where they lie, and no more than public documents say. Sizes and
//! checksums are not in it: they come from the hub.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::name::{Repository, Site, is_safe_path, nearest};

/// The list that is part of the program.
const BUILT_IN: &str = include_str!("../catalogue.json");

/// Models, their parts, and LoRAs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Repositories that let in only accounts that have accepted their terms.
    gated: Vec<String>,
    /// What has a name, in the order in which it is listed.
    pub entries: Vec<Entry>,
}

/// Something that has a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What kind of thing it is.
    pub kind: Kind,
    /// What it is, in words.
    #[serde(rename = "is")]
    pub words: String,
    /// The licence of its own weights, as its page names it, if that is known. Parts have their own.
    pub licence: Option<String>,
    /// The documents that say where it lies.
    pub source: Vec<String>,
    /// Options of `generate` that it wants.
    pub options: Option<String>,
    /// In which types there are files, the one that is meant without a type first.
    pub types: Vec<Variant>,
}

/// What an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A whole model.
    Model,
    /// A text encoder, an autoencoder, a vision tower: a part of models.
    Part,
    /// A LoRA.
    Lora,
}

/// An entry in one type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The type: `q4_k_s`, `diffusers`, or `original` for files in one type only.
    #[serde(rename = "type")]
    pub dtype: String,
    /// Files by the place that they take in a model, as `OWNER/NAME:FILE` or `@PART[:TYPE]`.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// A diffusers directory: `OWNER/NAME`.
    directory: Option<String>,
    /// Which of several weights in each of its folders: `fp16`.
    variant: Option<String>,
}

/// What there is to fetch of a [`Variant`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Single files.
    Files(Vec<PlacedFile>),
    /// A diffusers directory.
    Directory {
        /// Where.
        repository: Repository,
        /// Which of several weights in each folder.
        variant: Option<String>,
    },
}

/// A file, and the place that it takes in a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedFile {
    /// The place: `transformer`, `vae`, `lora`, ...
    pub place: String,
    /// Where it lies.
    pub repository: Repository,
    /// Its path there.
    pub file: String,
}

impl Catalogue {
    /// The list that is part of the program.
    pub fn built_in() -> &'static Catalogue {
        static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
        // `the_built_in_catalogue_is_sound` reads it.
        CATALOGUE.get_or_init(|| {
            serde_json::from_str(BUILT_IN).unwrap_or(Catalogue { gated: Vec::new(), entries: Vec::new() })
        })
    }

    /// The entry called `name`.
    ///
    /// # Errors
    /// [`Error::Name`] with the nearest names.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        let found = self.entries.iter().find(|entry| entry.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let error = Error::name(name, "no model of the catalogue has that name");
            let near = self.nearest(name);
            error.with_hint(match near[..] {
                [] => "`pinhole models --all` lists them; any file of Hugging Face is hf:OWNER/NAME:FILE".to_owned(),
                _ => format!("the nearest: {}; `pinhole models --all` lists them", near.join(", ")),
            })
        })
    }

    /// The names that are most like `name`.
    pub fn nearest(&self, name: &str) -> Vec<&str> {
        nearest(name, self.entries.iter().map(|entry| entry.name.as_str()))
    }

    /// Whether a repository lets in only accounts that have accepted its terms.
    pub fn is_gated(&self, repository: &Repository) -> bool {
        self.gated.contains(&repository.id())
    }

    /// What there is to fetch of `variant`.
    ///
    /// # Errors
    /// [`Error::Name`] for a list that contradicts itself.
    pub fn contents(&self, variant: &Variant) -> Result<Contents> {
        if let Some(directory) = &variant.directory {
            let repository = Repository::parse(Site::HuggingFace, directory)?;
            return Ok(Contents::Directory { repository, variant: variant.variant.clone() });
        }
        let mut files = Vec::new();
        for (place, file) in &variant.files {
            files.push(self.file(place, file, true)?);
        }
        Ok(Contents::Files(files))
    }

    /// The file that `text` means, for `place`. A part of a part is none.
    fn file(&self, place: &str, text: &str, may_be_part: bool) -> Result<PlacedFile> {
        if let Some(part) = text.strip_prefix('@').filter(|_| may_be_part) {
            let (name, dtype) = part.split_once(':').map_or((part, None), |(name, dtype)| (name, Some(dtype)));
            let variant = self.entry(name)?.variant(dtype)?;
            let file = variant.files.get(place).ok_or_else(|| Error::name(text, format!("it is no {place}")))?;
            return self.file(place, file, false);
        }
        let (id, file) = text.split_once(':').ok_or_else(|| Error::name(text, "expected OWNER/NAME:FILE"))?;
        if !is_safe_path(file) {
            return Err(Error::name(text, "expected a file of a repository"));
        }
        let repository = Repository::parse(Site::HuggingFace, id)?;
        Ok(PlacedFile { place: place.to_owned(), repository, file: file.to_owned() })
    }
}

impl Entry {
    /// The entry in the type `dtype`; without one, in the first.
    ///
    /// # Errors
    /// [`Error::Name`] with the types that there are.
    pub fn variant(&self, dtype: Option<&str>) -> Result<&Variant> {
        let found = match dtype {
            None => self.types.first(),
            Some(dtype) => self.types.iter().find(|variant| variant.dtype == dtype),
        };
        found.ok_or_else(|| {
            let types: Vec<&str> = self.types.iter().map(|variant| variant.dtype.as_str()).collect();
            let name = format!("{}:{}", self.name, dtype.unwrap_or_default());
            let mut hint = format!("it is there as {}", types.join(", "));
            if types.contains(&"diffusers") {
                hint += "; `pinhole pull --convert TYPE` makes any other type";
            }
            Error::name(&name, "it is not there in that type").with_hint(hint)
        })
    }

    /// What to convert it from: its diffusers directory if it has one, or else the first type.
    ///
    /// # Errors
    /// As [`Entry::variant`].
    pub fn original(&self) -> Result<&Variant> {
        let directory = self.types.iter().find(|variant| variant.directory.is_some());
        directory.map_or_else(|| self.variant(None), Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_is_sound() {
        let catalogue: Catalogue = serde_json::from_str(BUILT_IN).unwrap();
        for (i, entry) in catalogue.entries.iter().enumerate() {
            assert!(catalogue.entries[i + 1..].iter().all(|other| other.name != entry.name), "{} twice", entry.name);
            let is_plain = entry
                .name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte));
            assert!(is_plain && !entry.types.is_empty() && !entry.source.is_empty(), "{}", entry.name);
            assert!(entry.source.iter().all(|source| source.starts_with("https://")), "{}", entry.name);
            for variant in &entry.types {
                assert_eq!(variant.dtype, variant.dtype.to_lowercase());
                let contents = catalogue.contents(variant).unwrap_or_else(|error| panic!("{}: {error}", entry.name));
                let Contents::Files(files) = contents else {
                    assert!(entry.kind == Kind::Model && variant.files.is_empty(), "{}", entry.name);
                    continue;
                };
                let has = |place: &str| files.iter().any(|file| file.place == place);
                match entry.kind {
                    Kind::Model => assert!(
                        has("transformer") && has("text_encoder") && has("vae"),
                        "{}:{}",
                        entry.name,
                        variant.dtype
                    ),
                    Kind::Part => assert!(files.len() == 1 && !has("transformer"), "{}", entry.name),
                    Kind::Lora => assert!(files.len() == 1 && has("lora") && entry.options.is_some(), "{}", entry.name),
                }
            }
        }
    }

    #[test]
    fn what_users_have_asked_for_is_there() {
        let names = [
            "flux1-dev",
            "flux1-schnell",
            "z-image-turbo",
            "flux2-klein-4b",
            "flux2-klein-9b",
            "qwen-image",
            "qwen-image-edit",
            "sd1.5",
            "sdxl",
            "wan2.1-t2v-1.3b",
            "wan2.1-t2v-14b",
            "wan2.2-ti2v-5b",
            "wan2.2-t2v-a14b",
            "wan2.2-i2v-a14b",
        ];
        for name in names {
            let entry = Catalogue::built_in().entry(name).unwrap();
            assert!(entry.kind == Kind::Model && entry.licence.is_some(), "{name}");
        }
    }

    #[test]
    fn a_wrong_name_or_type_is_answered_with_right_ones() {
        let catalogue = Catalogue::built_in();
        let error = catalogue.entry("z-imag-turbo").unwrap_err();
        assert!(error.hint().unwrap().starts_with("the nearest: z-image-turbo"), "{error:?}");
        let error = catalogue.entry("flux1-dev").unwrap().variant(Some("q1_0")).unwrap_err();
        assert!(error.hint().unwrap().starts_with("it is there as q4_k_s, q8_0"), "{error:?}");
        assert!(catalogue.entry("FLUX1-Dev").is_ok());
    }
}
