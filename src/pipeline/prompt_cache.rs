//! Prompts that went through the text encoders, kept in a folder for other processes.
//!
//! A file holds what became of one prompt, under a name made of everything that it depends on: the prompt's tokens, the
//! weights of the text encoders, the device, this version. Of the weights a few bytes of each are read, so that a cached
//! prompt spares the gigabytes that they are.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pinhole_quant::DType;
use pinhole_quant::output::AtomicFile;
use safetensors::tensor::{Dtype, TensorView, serialize};
use sha2::{Digest, Sha256};

use super::opened::Opened;
use super::prompts::{ArraySpec, Prompt};
use crate::bind::Bound;
use crate::ggml::Device;
use crate::index::FileTensor;
use crate::kernels::Kernel;
use crate::tensor::Shape;
use crate::text::Encoded;
use crate::weights::Manifest;
use crate::{Error, Result};

/// Bytes of all files in a folder: beyond them, those that were not used for longest go. A prompt of 512 tokens with
/// 4096 numbers each takes 8 MiB.
const MOST_BYTES: u64 = 1 << 30;
/// How the names of its files begin and end. Nothing else in the folder is touched.
const PREFIX: &str = "prompt-";
const SUFFIX: &str = ".safetensors";
/// Bytes of each weight that stand for it.
const SAMPLE: usize = 64;

/// A folder with prompts, for a model on a device.
pub(super) struct PromptCache {
    folder: PathBuf,
    /// What all keys depend on.
    encoders: Sha256,
}

/// What a file is named after.
pub(super) struct Key(String);

impl PromptCache {
    /// That in `folder`, which is made where there is none.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be made.
    pub(super) fn open(folder: &Path, model: &Opened, device: Device) -> Result<PromptCache> {
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        let mut encoders = Sha256::new();
        for part in [env!("CARGO_PKG_VERSION"), &device.name(), &device.description(), kernel(device)] {
            add_bytes(&mut encoders, part.as_bytes());
        }
        for network in model.encoders.networks() {
            add_bytes(&mut encoders, network.config.to_string().as_bytes());
            add_weights(&mut encoders, network.model.manifest(), network.bound);
        }
        Ok(PromptCache { folder: folder.to_owned(), encoders })
    }

    /// The key of the prompt that has these tokens.
    pub(super) fn key(&self, tokens: &[Encoded]) -> Key {
        let mut hash = self.encoders.clone();
        for encoded in tokens {
            let ids: Vec<u8> = encoded.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            add_bytes(&mut hash, &ids);
        }
        let mut name = String::with_capacity(64);
        for byte in hash.finalize() {
            // Writing to a string never fails.
            let _ = write!(name, "{byte:02x}");
        }
        Key(name)
    }

    /// The prompt of `key`, which consists of `arrays`, if it is there.
    ///
    /// # Errors
    /// Those of [`crate::safetensors::open`], and [`Error::Mismatch`], for a file that is there and is none of ours.
    pub(super) fn find(&self, key: &Key, arrays: &[ArraySpec]) -> Result<Option<Prompt>> {
        let path = self.path(key);
        if !path.try_exists().map_err(|error| Error::io("open", &path, error))? {
            return Ok(None);
        }
        // Where it cannot be marked as used, as in a folder that others fill, it goes earlier.
        let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        let index = crate::safetensors::open(&path)?;
        let numbers = |array: &ArraySpec| numbers(&path, array.name, index.get(array.name), &array.dims);
        Ok(Some(Prompt(arrays.iter().map(numbers).collect::<Result<_>>()?)))
    }

    /// Keeps `prompt`, which consists of `arrays`, under `key`, and forgets what was not used for longest if that is too much.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub(super) fn keep(&self, key: &Key, prompt: &Prompt, arrays: &[ArraySpec]) -> Result<()> {
        let path = self.path(key);
        let malformed = |error: safetensors::SafeTensorError| Error::io("write", &path, io::Error::other(error));
        let bytes: Vec<Vec<u8>> = prompt.0.iter().map(|numbers| to_bytes(numbers)).collect();
        let mut tensors = Vec::new();
        for (array, bytes) in arrays.iter().zip(&bytes) {
            let extents = array.dims.iter().rev().copied().collect();
            tensors.push((array.name, TensorView::new(Dtype::F32, extents, bytes).map_err(malformed)?));
        }
        let about = HashMap::from([("pinhole".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
        let contents = serialize(tensors, Some(about)).map_err(malformed)?;
        write(&path, &contents)?;
        self.forget(&path);
        Ok(())
    }

    fn path(&self, Key(key): &Key) -> PathBuf {
        self.folder.join(format!("{PREFIX}{key}{SUFFIX}"))
    }

    /// Removes the files that were not used for longest beyond [`MOST_BYTES`], but for `newest`.
    fn forget(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let ours = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
        let entries = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(ours));
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let about = entry.metadata().ok()?;
                Some((about.modified().ok()?, about.len(), entry.path()))
            })
            .collect();
        files.sort_unstable_by(|one, other| other.cmp(one));
        let mut bytes = 0;
        for (_, size, path) in files {
            bytes += size;
            if bytes > MOST_BYTES && path != newest {
                // Another process may have removed it meanwhile.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Whose matrix products the encoders are computed with.
fn kernel(device: Device) -> &'static str {
    if device.is_cpu() { Kernel::best().map_or("ggml", Kernel::name) } else { "ggml" }
}

fn add_bytes(hash: &mut Sha256, bytes: &[u8]) {
    // With their number, so that no two lists of texts run together to the same.
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Names, formats and some bytes from the middle of every weight.
fn add_weights(hash: &mut Sha256, manifest: &Manifest, bound: &Bound) {
    for (id, weight) in manifest.iter() {
        add_bytes(hash, weight.name.as_bytes());
        for piece in bound.pieces(id) {
            let bytes = piece.bytes();
            let middle = bytes.len() / 2;
            add_bytes(hash, piece.storage().name().as_bytes());
            hash.update((piece.start() as u64).to_le_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            add_bytes(hash, &bytes[middle..bytes.len().min(middle + SAMPLE)]);
        }
    }
}

/// The numbers of `tensor`, which is to have these extents, fastest first.
fn numbers(path: &Path, name: &str, tensor: Option<&FileTensor>, dims: &[usize]) -> Result<Vec<f32>> {
    let at = format!("tensor `{name}`");
    let expected = || format!("f32 {dims:?}");
    let Some(tensor) = tensor else { return Err(Error::mismatch(path, at, expected(), "none")) };
    if tensor.storage != DType::F32 || Shape::new(dims) != Some(tensor.shape) {
        let found = format!("{} {:?}", tensor.storage, tensor.shape.dims());
        return Err(Error::mismatch(path, at, expected(), found));
    }
    let numbers: Vec<f32> =
        tensor.bytes().as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect();
    match numbers.iter().all(|number| number.is_finite()) {
        true => Ok(numbers),
        false => Err(Error::mismatch(path, at, "finite numbers", "NaN or infinity")),
    }
}

fn to_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path, true).map_err(Error::output)?;
    file.write_all(contents).map_err(|error| Error::io("write", path, error))?;
    file.commit().map_err(Error::output)
}
