//! Models that lie in files of other tools: one for each part, several parts in one, or all together in a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::component::list;
use super::model::Given;
use super::recognise::{self, recognise};
use super::slot::{self, SAFETY_CHECKER, SLOTS, TRANSFORMER, TRANSFORMER_2};
use super::tokenizers::{self, Lexicon};
use super::weight_file::WeightFile;
use super::{Component, Layout, Place, Slot, Source, Text, bundle, diffusers, folder};
use crate::bind::alias::Kind;
use crate::{Error, Result, file};

/// Files that are given one by one, each for a place in a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Weights: a file, a folder of a diffusers directory, a folder of files, or a whole model. Of several networks of one kind in
    /// a file, `FILE:PREFIX` means the one whose names begin so.
    pub parts: Vec<(&'static Slot, PathBuf)>,
    /// Tokenizers: a `tokenizer.json`, for T5 a `spiece.model`, a folder with one (or, for CLIP, with `vocab.json` and
    /// `merges.txt`), or a GGUF file that carries it.
    pub tokenizers: Vec<(&'static Slot, PathBuf)>,
}

impl Files {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tokenizers.is_empty()
    }
}

/// A network with the places where its tokenizer may lie.
type Found = (Component, Vec<Lexicon>);

impl Given {
    fn open(path: &Path, slot: &'static Slot) -> Result<Given> {
        let (path, prefix) = without_prefix(path);
        if !file::is_directory(&path)? {
            return Ok(Given::File(Arc::new(WeightFile::open(&path)?), prefix));
        }
        let folder = folder::of(&path)?;
        if folder::is_model(&folder) {
            return Ok(Given::Model(Box::new(diffusers::open(&folder)?)));
        }
        let component = Component::open(&folder, slot);
        if component.as_ref().is_ok_and(|component| component.config.is_some()) {
            return Ok(Given::Folder(Box::new(component?)));
        }
        // A part of a download, without what lies at the top.
        let inner = folder.join(slot.name);
        if inner.is_dir() {
            return Ok(Given::Folder(Box::new(Component::open(&inner, slot)?)));
        }
        // Without a configuration, it is a folder of files like any other.
        match open_folder(&folder)? {
            Some(source) => Ok(Given::Model(Box::new(source))),
            None => Ok(Given::Folder(Box::new(component?))),
        }
    }

    /// The network for `place`.
    fn take(&self, place: &Place) -> Result<Found> {
        let Place { slot, kind, .. } = *place;
        match self {
            Given::File(file, prefix) => in_file(file, place, prefix.as_deref()),
            Given::Folder(component) => {
                require(component, kind)?;
                // The folder of a text encoder by itself has its tokenizer as well.
                let mut lexicons = vec![Lexicon::Among(component.origin.clone())];
                lexicons.extend(Lexicon::beside(component.origin.parent(), slot));
                Ok(((**component).clone(), lexicons))
            }
            Given::Model(source) => match own(source, place, &[])? {
                Some(found) => Ok(found),
                None => Err(source.component(slot).err().unwrap_or_else(|| diffusers::no_model(&source.path))),
            },
        }
    }
}

/// The network for `place` in what lies at `path`, which is given beside a model: a file, a folder of files, or a folder of a
/// diffusers directory or all of one.
///
/// # Errors
/// As [`Source::open`]; [`Error::NotAModel`] if there is no such network.
pub fn beside(path: &Path, place: &Place) -> Result<Component> {
    let (component, _) = Given::open(path, place.slot)?.take(place)?;
    require(&component, place.kind)?;
    Ok(component)
}

/// `FILE:PREFIX` as a file and what stands before the names of the network in it that is meant; a path alone if something is
/// there.
fn without_prefix(path: &Path) -> (PathBuf, Option<String>) {
    if !file::is_there(path)
        && let Some((file, prefix)) = path.to_str().and_then(|text| text.rsplit_once(':'))
        && Path::new(file).is_file()
    {
        return (file.into(), Some(prefix.to_owned()));
    }
    (path.to_owned(), None)
}

/// `base` with the parts that `files` gives in the place of its own; without a base, what `files` gives.
pub(super) fn assemble(base: Option<Source>, files: &Files) -> Result<Source> {
    let mut source = base.unwrap_or_else(|| {
        let path = files.parts.first().map(|(_, path)| without_prefix(path).0);
        Source::empty(&path.unwrap_or_default(), Layout::Files)
    });
    for (slot, path) in &files.parts {
        source.given.push((slot, Given::open(path, slot)?));
    }
    source.given_tokenizers.extend(files.tokenizers.iter().cloned());
    Ok(source)
}

/// See [`Source::lone`].
pub(super) fn lone(path: &Path, place: &Place) -> Result<Component> {
    Ok(Given::open(path, place.slot)?.take(place)?.0)
}

/// See [`Source::arranged`].
pub(super) fn arrange(mut source: Source, places: &[Place]) -> Result<Source> {
    for (slot, _) in &source.given {
        known(places, slot, slot.option)?;
    }
    for (slot, _) in &source.given_tokenizers {
        known(places, slot, slot.tokenizer_option)?;
    }
    for place in places {
        let found = match source.given.iter().find(|(slot, _)| *slot == place.slot) {
            Some((_, given)) => {
                let (component, mut lexicons) = given.take(place)?;
                lexicons.extend(source.lexicons(place.slot));
                Some((component, lexicons))
            }
            None => own(&source, place, places)?,
        };
        if let Some((component, lexicons)) = found {
            add_tokenizer(&mut source, place, &component, lexicons)?;
            source.components.retain(|other| other.slot != place.slot);
            source.components.push(component);
        }
    }
    source.components.sort_by_key(|component| slot::order(component.slot));
    source.passed_over.extend(source.broken_files());
    source.passed_over.extend(unopened(&source, places));
    source.feature_extractor = feature_extractor(&source)?;
    for (_, given) in &source.given {
        if let Given::Model(model) = given {
            source.passed_over.extend(model.broken_files());
        }
    }
    source.loose.clear();
    source.broken.clear();
    source.unopened.clear();
    source.lexicons.clear();
    source.given_slots.extend(source.given.drain(..).map(|(slot, _)| slot));
    source.given_tokenizers.clear();
    Ok(source)
}

/// What is wrong with folders that could not be opened, and that a model of these `places` can do without.
fn unopened(source: &Source, places: &[Place]) -> Vec<String> {
    let mut said = Vec::new();
    for (slot, folder) in &source.unopened {
        let is_missed = source.components.iter().all(|component| component.slot != *slot);
        let passed_over = places.iter().any(|place| place.slot == *slot && place.can_be_passed_over());
        if let (true, true, Err(error)) = (is_missed, passed_over, Component::open(folder, slot)) {
            said.push(format!("{error}; nothing is read from it"));
        }
    }
    said
}

/// How the safety checker of `source` is given pictures: what its model says, or what lies beside it.
fn feature_extractor(source: &Source) -> Result<Option<Text>> {
    const FILE: &str = "preprocessor_config.json";
    let Ok(Component { layout, origin, .. }) = source.component(&SAFETY_CHECKER) else { return Ok(None) };
    if *layout == Layout::Bundle {
        return Ok(source.feature_extractor.clone());
    }
    let folder = if origin.is_dir() { Some(origin.as_path()) } else { origin.parent() };
    let Some(folder) = folder else { return Ok(None) };
    match Text::read(&folder.join(FILE))? {
        None if origin.is_dir() => {
            let beside = folder.parent().map(|parent| parent.join("feature_extractor").join(FILE));
            beside.map_or(Ok(None), |path| Text::read(&path))
        }
        own => Ok(own),
    }
}

/// Refuses a slot that none of `places` has.
fn known(places: &[Place], slot: &Slot, option: &'static str) -> Result<()> {
    if places.iter().any(|place| place.slot == slot) {
        return Ok(());
    }
    let names: Vec<&str> = places.iter().map(|place| place.slot.name).collect();
    Err(Error::option(option, format!("a part of this kind of model: {}", list(&names)), slot.name))
}

/// Adds the tokenizer of `component`, which takes `place`: what the user gave, or else the first at `lexicons`, or else the one
/// in its place, or else the public one.
fn add_tokenizer(source: &mut Source, place: &Place, component: &Component, lexicons: Vec<Lexicon>) -> Result<()> {
    let given = source.given_tokenizers.iter().find(|(slot, _)| *slot == place.slot);
    let lexicons = match given {
        Some((_, path)) => vec![Lexicon::Given(path.clone())],
        None => lexicons,
    };
    for lexicon in lexicons {
        if let Some(files) = lexicon.read(component, place)? {
            if matches!(lexicon, Lexicon::Given(_)) {
                source.given_readers.push(place.slot);
            }
            source.set_tokenizer(place.slot, files);
            return Ok(());
        }
    }
    if source.tokenizer(place.slot).is_none()
        && let Some(files) = tokenizers::public(component, place.kind)?
    {
        source.set_tokenizer(place.slot, files);
    }
    Ok(())
}

/// The network for `place` that `source` has by itself.
fn own(source: &Source, place: &Place, places: &[Place]) -> Result<Option<Found>> {
    if let Ok(component) = source.component(place.slot) {
        return Ok(Some((component.clone(), source.lexicons(place.slot))));
    }
    if let Some((slot, folder)) = source.unopened.iter().find(|(slot, _)| *slot == place.slot) {
        if place.can_be_passed_over() {
            return Ok(None);
        }
        return Ok(Some((Component::open(folder, slot)?, source.lexicons(place.slot))));
    }
    if place.found { loose(source, place, places) } else { Ok(None) }
}

/// The network for `place`, which is one of `places`, in the loose files of `source`.
fn loose(source: &Source, place: &Place, places: &[Place]) -> Result<Option<Found>> {
    let mut having: Vec<&Arc<WeightFile>> = source.loose.iter().filter(|file| file.has(place.kind)).collect();
    having.retain(|file| !file.is_for_another(place, places));
    // PyTorch's own file lies beside the same network in another format.
    if having.iter().any(|file| !file.is_pickle) {
        having.retain(|file| !file.is_pickle);
    }
    of_two(source, place, &mut having);
    match having[..] {
        [] => {
            if !place.can_be_passed_over() {
                // It may be in a damaged one.
                source.say_what_is_broken()?;
            }
            Ok(None)
        }
        [file] => in_file(file, place, None).map(Some),
        _ => match called_as(&having, place.slot)[..] {
            [file] => in_file(file, place, None).map(Some),
            _ => Err(several(&source.path, place, &having)),
        },
    }
}

/// How the name of a file says which of two denoisers it holds, the one that begins with noise or the one that goes on: in letters alone,
/// without what stands between them.
const EXPERTS: [(&Slot, &str); 2] = [(&TRANSFORMER, "highnoise"), (&TRANSFORMER_2, "lownoise")];

/// Keeps of `files` those that may be for `place`, if it is one of two for denoisers of one kind: nothing in a file says which it is, except
/// its name.
fn of_two(source: &Source, place: &Place, files: &mut Vec<&Arc<WeightFile>>) {
    let says = |file: &WeightFile, slot: &Slot| {
        let name = file.path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let said = EXPERTS.iter().any(|(other, word)| *other == slot && plain.contains(word));
        said || name == slot.name
    };
    if place.slot == &TRANSFORMER_2 {
        let taken = source.component(&TRANSFORMER).map(|first| first.origin.as_path()).unwrap_or(Path::new(""));
        files.retain(|file| says(file, &TRANSFORMER_2) && file.path != taken);
    } else if place.slot == &TRANSFORMER && files.len() > 1 {
        let is_said = files.iter().any(|file| says(file, &TRANSFORMER));
        files.retain(|file| if is_said { says(file, &TRANSFORMER) } else { !says(file, &TRANSFORMER_2) });
    }
}

/// Those of `files` that are called what `slot` is called in files, if each of them is called what some slot is:
/// `clip_l.safetensors` beside `clip_g.safetensors`.
fn called_as<'a>(files: &[&'a Arc<WeightFile>], slot: &Slot) -> Vec<&'a Arc<WeightFile>> {
    let is_called = |file: &WeightFile, slot: &Slot| {
        let stem = file.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        slot.also.iter().chain([&slot.name]).any(|name| stem == *name)
    };
    if files.iter().any(|file| !SLOTS.into_iter().any(|slot| is_called(file, slot))) {
        return Vec::new();
    }
    files.iter().filter(|file| is_called(file, slot)).copied().collect()
}

/// The network for `place` in `file`: the one with `prefix`, if it is given.
fn in_file(file: &Arc<WeightFile>, place: &Place, prefix: Option<&str>) -> Result<Found> {
    let component = file.component(place.slot, place.kind, prefix)?;
    let mut lexicons = vec![Lexicon::Carried(Arc::clone(file))];
    lexicons.extend(Lexicon::beside(file.path.parent(), place.slot));
    Ok((component, lexicons))
}

/// Refuses a folder whose weights are not those of a `kind`.
fn require(component: &Component, kind: &Kind) -> Result<()> {
    if recognise::parts(&component.index).iter().any(|part| part.kind == kind) {
        return Ok(());
    }
    let held = recognise(component.index.names());
    let held = if held.is_empty() { "nothing that pinhole recognises".to_owned() } else { held.join("; ") };
    let found = format!("a folder that holds {held}, and no {}", kind.words);
    let hint = recognise::instead(&component.index).unwrap_or("`pinhole inspect` says more").to_owned();
    Err(Error::NotAModel { path: component.origin.clone(), found, hint: Some(hint) })
}

/// The networks in one file.
pub(super) fn open_file(file: WeightFile) -> Result<Source> {
    if file.kinds().next().is_none() {
        return Err(recognise::not_run(&file.path, &file.index).unwrap_or_else(|| Error::NotAModel {
            path: file.path.clone(),
            found: file.holds(),
            hint: Some("`pinhole inspect` says more".into()),
        }));
    }
    let mut source = Source::empty(&file.path, Layout::Files);
    source.loose.push(Arc::new(file));
    Ok(source)
}

/// The networks in the files of the folder `dir`, or the bundle that is alone there; `None` if no file there has any.
///
/// # Errors
/// Those of a damaged file, which may be the one that is wanted, if there is no other.
pub(super) fn open_folder(dir: &Path) -> Result<Option<Source>> {
    let mut source = Source::empty(dir, Layout::Files);
    let mut bundles = Vec::new();
    for set in folder::sets(dir)? {
        match WeightFile::of(&set) {
            Ok(file) if file.is_bundle() => bundles.push(file),
            Ok(file) if file.kinds().next().is_some() => source.loose.push(Arc::new(file)),
            Ok(_) => {}
            Err(_) => source.broken.push(set),
        }
    }
    if !source.loose.is_empty() {
        for slot in SLOTS {
            for lexicon in Lexicon::beside(Some(dir), slot) {
                source.lexicons.push((slot, lexicon));
            }
        }
        return Ok(Some(source));
    }
    source.say_what_is_broken()?;
    // Of several, each is a model of its own.
    match (bundles.pop(), bundles.pop()) {
        (Some(only), None) => bundle::open(only).map(Some),
        _ => Ok(None),
    }
}

fn several(dir: &Path, place: &Place, files: &[&Arc<WeightFile>]) -> Error {
    let mut names = Vec::new();
    for file in files {
        names.extend(file.path.file_name().and_then(|name| name.to_str()));
    }
    Error::NotAModel {
        path: dir.to_owned(),
        found: format!("it has {} of {} ({})", names.len(), place.kind.words, list(&names)),
        hint: Some(format!("say which with {} FILE", place.slot.option)),
    }
}

impl Files {
    /// Adds `path` for the slot `name`, if there is such a slot.
    pub fn add(&mut self, name: &str, path: PathBuf) {
        if let Some(slot) = slot::slot(name) {
            self.parts.push((slot, path));
        } else if let Some(slot) = SLOTS.into_iter().find(|slot| slot.tokenizer == Some(name)) {
            self.tokenizers.push((slot, path));
        }
    }
}
