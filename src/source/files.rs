//! Models that lie in files of other tools: one for each part, several parts in one, or all together in a folder.

use std::path::{Path, PathBuf};

use super::recognise::{self, recognise};
use super::weight_file::WeightFile;
use super::{Component, ComponentKind, Layout, Source, TokenizerFiles, diffusers, list, tokenizers};
use crate::{Error, Result};

use ComponentKind::{TextEncoder, TextEncoder2};

/// Files that are given one by one, each for a part of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The denoiser.
    pub transformer: Option<PathBuf>,
    /// CLIP.
    pub text_encoder: Option<PathBuf>,
    /// T5.
    pub text_encoder_2: Option<PathBuf>,
    /// The autoencoder.
    pub vae: Option<PathBuf>,
    /// CLIP's tokenizer: a `tokenizer.json`, or a folder with one or with `vocab.json` and `merges.txt`.
    pub tokenizer: Option<PathBuf>,
    /// T5's tokenizer: a `tokenizer.json`, a folder with one, or a GGUF file that carries it.
    pub tokenizer_2: Option<PathBuf>,
}

impl Files {
    /// The file for the part `kind`.
    pub fn of(&self, kind: ComponentKind) -> Option<&Path> {
        let path = match kind {
            ComponentKind::Transformer => &self.transformer,
            TextEncoder => &self.text_encoder,
            TextEncoder2 => &self.text_encoder_2,
            ComponentKind::Vae => &self.vae,
        };
        path.as_deref()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Files::default()
    }
}

/// A part of a model with the tokenizer that its file brings.
type Given = (Component, Option<TokenizerFiles>);

/// `base` with the parts that `files` gives in the place of its own; without a base, what `files` gives.
pub(super) fn assemble(base: Option<Source>, files: &Files) -> Result<Source> {
    let mut source = base.unwrap_or_else(|| {
        let path = ComponentKind::ALL.into_iter().find_map(|kind| files.of(kind)).unwrap_or(Path::new(""));
        Source::empty(path, Layout::Files)
    });
    for kind in ComponentKind::ALL {
        let Some(path) = files.of(kind) else { continue };
        let (component, tokenizer) = given(path, kind)?;
        source.components.retain(|(other, _)| *other != kind);
        source.components.push((kind, component));
        if let (Some(place), Some(tokenizer)) = (source.tokenizer_of(kind), tokenizer) {
            *place = Some(tokenizer);
        }
    }
    source.components.sort_by_key(|(kind, _)| *kind);
    for (kind, path) in [(TextEncoder, &files.tokenizer), (TextEncoder2, &files.tokenizer_2)] {
        if let (Some(place), Some(path)) = (source.tokenizer_of(kind), path) {
            *place = Some(tokenizers::given(path, kind)?);
        }
    }
    fall_back(&mut source)?;
    Ok(source)
}

/// The part `kind` of what lies at `path`: a file, a folder of a diffusers directory, or a whole model.
fn given(path: &Path, kind: ComponentKind) -> Result<Given> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
    if !metadata.is_dir() {
        return in_file(&WeightFile::open(path)?, kind);
    }
    if diffusers::is_model(path) {
        let mut source = diffusers::open(path)?;
        let component = source.component(kind)?.clone();
        return Ok((component, source.tokenizer_of(kind).and_then(Option::take)));
    }
    let component = diffusers::component(path)?;
    require(&component, kind)?;
    Ok((component, beside(path, kind)?))
}

/// The part `kind` of `file`.
fn in_file(file: &WeightFile, kind: ComponentKind) -> Result<Given> {
    let carried = file.metadata.as_ref().map(|metadata| tokenizers::carried(metadata, kind)).transpose()?;
    let tokenizer = match carried.flatten() {
        None => beside(&file.path, kind)?,
        carried => carried,
    };
    Ok((file.component(kind)?, tokenizer))
}

/// Refuses a folder whose weights are not those of a `kind`.
fn require(component: &Component, kind: ComponentKind) -> Result<()> {
    if recognise::parts(&component.index).iter().any(|part| part.kind == kind) {
        return Ok(());
    }
    let held = recognise(component.index.iter().map(|(name, _)| name));
    let held = if held.is_empty() { "nothing that pinhole recognises".to_owned() } else { held.join("; ") };
    let found = format!("a folder that holds {held}, and no {}", kind.words());
    Err(Error::NotAModel { path: component.origin.clone(), found, hint: None })
}

/// The tokenizer in the folder that diffusers gives it, beside the weights at `path`.
fn beside(path: &Path, kind: ComponentKind) -> Result<Option<TokenizerFiles>> {
    let (Some(parent), Some(name)) = (path.parent(), kind.tokenizer()) else { return Ok(None) };
    let folder = parent.join(name);
    if folder.is_dir() { diffusers::tokenizer_in(&folder, kind) } else { Ok(None) }
}

/// The parts of a model in one file.
pub(super) fn open_file(file: &WeightFile) -> Result<Source> {
    let mut source = Source::empty(&file.path, Layout::Files);
    add(&mut source, file)?;
    if source.components.is_empty() {
        return Err(Error::NotAModel {
            path: file.path.clone(),
            found: file.holds(),
            hint: Some("`pinhole inspect` says more; this version runs FLUX.1".into()),
        });
    }
    fall_back(&mut source)?;
    Ok(source)
}

/// Adds all parts that `file` has.
fn add(source: &mut Source, file: &WeightFile) -> Result<()> {
    for kind in file.kinds() {
        let (component, tokenizer) = in_file(file, kind)?;
        source.components.push((kind, component));
        if let Some(place) = source.tokenizer_of(kind) {
            *place = tokenizer;
        }
    }
    Ok(())
}

/// Fills in tokenizers that nobody has to bring.
fn fall_back(source: &mut Source) -> Result<()> {
    for (kind, component) in source.components.clone() {
        if let Some(place @ None) = source.tokenizer_of(kind) {
            *place = tokenizers::public(&component, kind)?;
        }
    }
    Ok(())
}

/// The parts of a model in the files of the folder `dir`; `None` where no file there has any.
pub(super) fn open_folder(dir: &Path) -> Result<Option<Source>> {
    let mut source = Source::empty(dir, Layout::Files);
    let files = weight_files(dir)?;
    for file in &files {
        if let Some(kind) = file.kinds().find(|kind| source.component(*kind).is_ok()) {
            return Err(several(dir, kind, &files));
        }
        add(&mut source, file)?;
    }
    fall_back(&mut source)?;
    Ok((!source.components.is_empty()).then_some(source))
}

/// The files in `dir` with weights of a FLUX model, by name. Files that are no models are passed over, and so are
/// bundles: each is a model of its own.
fn weight_files(dir: &Path) -> Result<Vec<WeightFile>> {
    let entries = std::fs::read_dir(dir).map_err(|source| Error::io("open", dir, source))?;
    let has_weights = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "safetensors" || extension == "gguf") && path.is_file()
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(has_weights).collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let file = WeightFile::open(&path)?;
        if file.kinds().next().is_some() && !file.is_bundle() {
            files.push(file);
        }
    }
    Ok(files)
}

fn several(dir: &Path, kind: ComponentKind, files: &[WeightFile]) -> Error {
    let name = |file: &WeightFile| file.path.file_name().map(|name| name.to_string_lossy().into_owned());
    let names: Vec<String> =
        files.iter().filter(|file| file.kinds().any(|other| other == kind)).filter_map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Error::NotAModel {
        path: dir.to_owned(),
        found: format!("it has {} of {} ({})", names.len(), kind.words(), list(&names)),
        hint: Some(format!("say which with {} FILE", kind.option())),
    }
}
