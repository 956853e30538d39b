//! Prompts that went through the text encoders, kept in a folder for other processes.
//!
//! A file holds what became of one prompt, under a name made of everything that it depends on: the prompt's tokens, the
//! [digest](super::digest) of the text encoders, the device, this version. The folder is this user's alone, and every file
//! carries a checksum.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use pinhole_quant::DType;
use safetensors::tensor::{Dtype, TensorView, serialize};
use sha2::{Digest as _, Sha256};

use super::digest::{self, Digest, Memory, add, hex};
use super::opened::Opened;
use super::private_folder::PrivateFolder;
use super::prompts::{ArraySpec, Prompt};
use crate::ggml::{CancelFlag, Device};
use crate::index::{FileTensor, Map};
use crate::kernels::Kernel;
use crate::safetensors::Safetensors;
use crate::tensor::Shape;
use crate::text::Encoded;
use crate::{Error, Result};

/// Bytes of all files in a folder: beyond them, those that were not used for longest go. A prompt of 512 tokens with
/// 4096 numbers each takes 8 MiB.
const MOST_BYTES: u64 = 1 << 30;
/// Bytes of a file beside its numbers.
const HEADER: usize = 1 << 16;
/// How the names of its files begin and end. Nothing else in the folder is touched.
const PREFIX: &str = "prompt-";
const SUFFIX: &str = ".safetensors";
/// The same of files with the digest of text encoders.
const ENCODERS: &str = "encoders-";
const DIGEST: &str = ".sha256";
/// What a file says of its numbers, under this name.
const CHECKSUM: &str = "sha256";

/// A folder with prompts, for models on a device.
pub(super) struct PromptCache {
    folder: PrivateFolder,
    /// What keys depend on beside the model.
    device: [String; 3],
    /// The digest of the text encoders, once it was needed.
    encoders: OnceLock<Digest>,
}

/// What a file is named after.
pub(super) struct Key(String);

impl PromptCache {
    /// That in `folder`, which is made if there is none.
    ///
    /// # Errors
    /// As [`PrivateFolder::open`].
    pub(super) fn open(folder: &Path, device: Device) -> Result<PromptCache> {
        let device = [device.name(), device.description(), kernel(device)];
        Ok(PromptCache { folder: PrivateFolder::open(folder)?, device, encoders: OnceLock::new() })
    }

    /// The key of the prompt that has these tokens, for the text encoders of `model`, which is always the same.
    ///
    /// # Errors
    /// As [`digest::of`].
    pub(super) fn key(&self, model: &Opened, tokens: &[Encoded], cancel: &CancelFlag) -> Result<Key> {
        let encoders = match self.encoders.get() {
            Some(known) => known,
            None => {
                let digest = digest::of(model, Some(self), cancel)?;
                self.encoders.get_or_init(|| digest)
            }
        };
        let mut hash = Sha256::new();
        add(&mut hash, env!("CARGO_PKG_VERSION").as_bytes());
        for part in &self.device {
            add(&mut hash, part.as_bytes());
        }
        add(&mut hash, encoders);
        for encoded in tokens {
            let ids: Vec<u8> = encoded.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            add(&mut hash, &ids);
            if !encoded.weights.is_empty() {
                add(&mut hash, &to_bytes(&encoded.weights));
            }
        }
        let taught = model.encoders.taught(tokens)?;
        if !taught.is_empty() {
            add(&mut hash, &to_bytes(&taught));
        }
        Ok(Key(hex(&hash.finalize())))
    }

    /// The prompt of `key`, which consists of `arrays`, if it is there.
    ///
    /// # Errors
    /// Those of [`PrivateFolder::read`] and [`Safetensors::from_map`], and [`Error::Mismatch`], for a file that is there and is
    /// none of ours.
    pub(super) fn find(&self, key: &Key, arrays: &[ArraySpec]) -> Result<Option<Prompt>> {
        let numbers_bytes = arrays.iter().map(|array| array.elements() * size_of::<f32>()).sum::<usize>();
        let Some(bytes) = self.folder.read(&key.file(), numbers_bytes + HEADER)? else { return Ok(None) };
        let path = self.folder.path_of(&key.file());
        let file = Safetensors::from_map(Map::from_bytes(&path, &bytes)?)?;
        let mut prompt = Vec::with_capacity(arrays.len());
        for array in arrays {
            prompt.push(numbers(&path, array.name, file.index.get(array.name), &array.dims)?);
        }
        let prompt = Prompt(prompt);
        let (expected, found) = (checksum(key, &prompt), file.metadata.get(CHECKSUM));
        match found {
            Some(found) if *found == expected => Ok(Some(prompt)),
            Some(found) => Err(Error::mismatch(&path, "checksum", expected, found)),
            None => Err(Error::mismatch(&path, "checksum", expected, "none")),
        }
    }

    /// Keeps `prompt`, which consists of `arrays`, under `key`, and forgets what was not used for longest if that is too much.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub(super) fn keep(&self, key: &Key, prompt: &Prompt, arrays: &[ArraySpec]) -> Result<()> {
        let path = self.folder.path_of(&key.file());
        let malformed = |error: safetensors::SafeTensorError| Error::io("write", &path, io::Error::other(error));
        let bytes: Vec<Vec<u8>> = prompt.0.iter().map(|numbers| to_bytes(numbers)).collect();
        let mut tensors = Vec::new();
        for (array, bytes) in arrays.iter().zip(&bytes) {
            let extents = array.dims.iter().rev().copied().collect();
            tensors.push((array.name, TensorView::new(Dtype::F32, extents, bytes).map_err(malformed)?));
        }
        let about = HashMap::from([
            ("pinhole".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            (CHECKSUM.to_owned(), checksum(key, prompt)),
        ]);
        let contents = serialize(tensors, Some(about)).map_err(malformed)?;
        self.folder.write(&key.file(), &contents)?;
        self.forget(&path);
        Ok(())
    }

    /// Removes the files that were not used for longest beyond [`MOST_BYTES`], except `newest`.
    fn forget(&self, newest: &Path) {
        let mut files = self.folder.files(|name: &str| {
            (name.starts_with(PREFIX) && name.ends_with(SUFFIX))
                || (name.starts_with(ENCODERS) && name.ends_with(DIGEST))
        });
        files.sort_unstable_by(|one, other| (other.used, &other.path).cmp(&(one.used, &one.path)));
        let mut bytes = 0;
        for file in files {
            bytes += file.bytes;
            if bytes > MOST_BYTES && file.path != newest {
                // Another process may have removed it meanwhile.
                let _ = fs::remove_file(file.path);
            }
        }
    }
}

/// A file of a digest has the digest, and behind it the digest of the file's name and itself.
impl Memory for PromptCache {
    fn recall(&self, key: &Digest) -> Option<Digest> {
        let bytes = self.folder.read(&digest_file(key), 2 * size_of::<Digest>()).ok()??;
        let (digest, check) = bytes.split_first_chunk()?;
        (check == seal(key, digest)).then_some(*digest)
    }

    fn remember(&self, key: &Digest, digest: &Digest) {
        // If it cannot be written, it is found anew the next time.
        let _ = self.folder.write(&digest_file(key), &[*digest, seal(key, digest)].concat());
    }
}

fn digest_file(key: &Digest) -> String {
    format!("{ENCODERS}{}{DIGEST}", hex(key))
}

fn seal(key: &Digest, digest: &Digest) -> Digest {
    Sha256::digest([*key, *digest].concat()).into()
}

impl Key {
    fn file(&self) -> String {
        format!("{PREFIX}{}{SUFFIX}", self.0)
    }
}

/// That of the numbers of `prompt` under `key`.
fn checksum(Key(key): &Key, prompt: &Prompt) -> String {
    let mut hash = Sha256::new();
    add(&mut hash, key.as_bytes());
    for numbers in &prompt.0 {
        add(&mut hash, &to_bytes(numbers));
    }
    hex(&hash.finalize())
}

/// Whose matrix products the encoders are computed with.
fn kernel(device: Device) -> String {
    match device.is_cpu() {
        true => Kernel::best().map_or("ggml", Kernel::name).to_owned(),
        false if device.is_remote() => device.rounding(),
        false => "ggml".to_owned(),
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
