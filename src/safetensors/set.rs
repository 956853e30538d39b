//! Which files of a folder belong together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::open::open;
use super::sharded::{self, is_index_name, open_sharded};
use crate::error::{Error, Result};
use crate::file;
use crate::index::Index;

/// What shards end in.
const EXTENSIONS: [&str; 3] = [".safetensors", ".sft", ".bin"];

/// The name of a shard: `model-00002-of-00003.safetensors`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Numbered {
    /// What all shards of the model begin with: `model`.
    pub stem: String,
    /// How many digits the numbers have.
    digits: usize,
    /// How many shards there are.
    count: usize,
    /// What follows the number.
    rest: String,
}

impl Numbered {
    /// What the name of a file says, if it is that of a shard.
    pub fn parse(name: &str) -> Option<Numbered> {
        let extension = EXTENSIONS.into_iter().find(|extension| name.ends_with(extension))?;
        let (before, count) = name.strip_suffix(extension)?.rsplit_once("-of-")?;
        let (stem, number) = before.rsplit_once('-')?;
        let (place, shards) = (digits(number)?, digits(count)?);
        let (stem, rest) = (stem.to_owned(), format!("-of-{count}{extension}"));
        (1..=shards).contains(&place).then_some(Numbered { stem, digits: number.len(), count: shards, rest })
    }

    /// The name of shard `number`.
    fn name(&self, number: usize) -> String {
        format!("{}-{number:0digits$}{}", self.stem, self.rest, digits = self.digits)
    }

    /// The names of all shards.
    fn names(&self) -> impl Iterator<Item = String> {
        (1..=self.count).map(|number| self.name(number))
    }

    /// The tensors of all shards, which lie in `dir`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if one is missing, [`Error::Malformed`] if two have a tensor of the same name; those of
    /// [`open`](super::open).
    pub fn open(&self, dir: &Path) -> Result<Index> {
        let mut index = Index::default();
        for name in self.names() {
            let path = dir.join(name);
            if !file::is_there(&path) {
                let error = Error::mismatch(&path, "shard", format!("{} of them", self.count), "none of this name");
                return Err(
                    error.with_hint("the model is incomplete: download the missing file into the same directory")
                );
            }
            index.append(open(&path)?)?;
        }
        Ok(index)
    }
}

/// A number in a shard's name.
fn digits(text: &str) -> Option<usize> {
    let only = !text.is_empty() && text.len() <= 6 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| only)
}

/// One or more files with the tensors of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// A file by itself, of whatever format.
    File(PathBuf),
    /// Shards, by the index that names them.
    Index(PathBuf),
    /// Shards without an index, in a folder.
    Shards(PathBuf, Numbered),
}

impl Set {
    /// Its tensors. A file has to be of safetensors, or PyTorch's own.
    ///
    /// # Errors
    /// Those of [`open`](super::open), [`open_sharded`] and [`Numbered::open`].
    pub fn open(&self) -> Result<Index> {
        match self {
            Set::File(path) => open(path),
            Set::Index(path) => open_sharded(path),
            Set::Shards(dir, shards) => shards.open(dir),
        }
    }

    /// The file that stands for it in messages.
    pub fn path(&self) -> PathBuf {
        match self {
            Set::File(path) | Set::Index(path) => path.clone(),
            Set::Shards(dir, shards) => dir.join(shards.name(1)),
        }
    }
}

/// How the files called `names` in `dir` belong together. An index belongs to the shards that it names, if any of them is
/// there, and is passed over otherwise; shards without one belong together by their numbers.
pub fn sets(dir: &Path, mut names: Vec<String>) -> Vec<Set> {
    names.sort();
    let mut sets = Vec::new();
    for name in names.iter().filter(|name| is_index_name(name)) {
        let path = dir.join(name);
        match sharded::shards(&path) {
            Ok(shards) if !shards.iter().any(|shard| names.contains(shard)) => {}
            Ok(_) | Err(_) => sets.push(Set::Index(path)),
        }
    }
    for set in &sets {
        let Set::Index(path) = set else { continue };
        let shards = sharded::shards(path).unwrap_or_default();
        names.retain(|name| !shards.contains(name));
    }
    names.retain(|name| !is_index_name(name));
    let mut numbered = BTreeSet::new();
    for name in names {
        match Numbered::parse(&name) {
            Some(shards) => drop(numbered.insert(shards)),
            None => sets.push(Set::File(dir.join(name))),
        }
    }
    sets.extend(numbered.into_iter().map(|shards| Set::Shards(dir.to_owned(), shards)));
    sets
}
