//! A digest of everything that the text encoders of a model are: where it is the same, every prompt becomes the same.
//!
//! It is a digest of all bytes of their weights, which takes seconds for large ones. So the process remembers it for as long
//! as the files have the same stamp (device, inode, size and times), and a folder may remember it for others.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use pinhole_quant::workers;
use sha2::{Digest as _, Sha256};

use super::opened::Opened;
use crate::bind::Content;
use crate::ggml::CancelFlag;
use crate::index::{Map, Stamp};
use crate::{Error, Result, reserve};

/// 32 bytes of SHA-256.
pub(super) type Digest = [u8; 32];

/// How many bytes one thread takes at a time, and how many it reads at once.
const STRETCH: usize = 16 << 20;
const READ: usize = 1 << 20;
/// After so many stretches, a stop is looked for.
const BATCH: usize = 16;
/// How many digests the process remembers.
const REMEMBERED: usize = 64;

/// What the process found: stamps and digest.
static KNOWN: Mutex<Vec<(Digest, Digest)>> = Mutex::new(Vec::new());

/// Where digests are remembered beyond the process. A digest's name is one too.
pub(super) trait Memory {
    /// The digest that has the name `key`.
    fn recall(&self, key: &Digest) -> Option<Digest>;

    /// Remembers `digest` under `key`, if it can.
    fn remember(&self, key: &Digest, digest: &Digest);
}

/// The digest of the text encoders of `model`.
///
/// # Errors
/// What reading the files returns; [`Error::Cancelled`](crate::Error::Cancelled) if `cancel` is raised meanwhile.
pub(super) fn of(model: &Opened, memory: Option<&dyn Memory>, cancel: &CancelFlag) -> Result<Digest> {
    let begun = SystemTime::now();
    let (key, stamps) = key(model)?;
    let known = recall(&key).or_else(|| memory.and_then(|memory| memory.recall(&key)));
    if let Some(digest) = known {
        return Ok(digest);
    }
    let digest = everything(model, cancel)?;
    // A file that is being written to may change and keep its stamp. What lies in memory has none, and is there at once.
    let settled = !stamps.is_empty() && stamps.iter().all(|stamp| stamp.is_settled(begun));
    if settled && self::key(model)?.0 == key {
        remember(&key, &digest);
        if let Some(memory) = memory {
            memory.remember(&key, &digest);
        }
    }
    Ok(digest)
}

fn recall(key: &Digest) -> Option<Digest> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().find(|(other, _)| other == key).map(|&(_, digest)| digest)
}

fn remember(key: &Digest, digest: &Digest) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() == REMEMBERED {
        known.remove(0);
    }
    known.push((*key, *digest));
}

/// What stands for the encoders without reading their files: the stamps of these, and where in them every weight lies.
fn key(model: &Opened) -> Result<(Digest, Vec<Stamp>)> {
    let (mut hash, mut stamps) = (Sha256::new(), Vec::new());
    for network in model.encoders.networks() {
        add(&mut hash, settings(model, network.slot.name).as_bytes());
        for Content { what, piece } in network.bound.contents(network.model.manifest()) {
            add(&mut hash, what.as_bytes());
            let (map, span) = piece.span();
            match map.stamp() {
                Some(stamp) => {
                    add(&mut hash, &stamp.to_bytes());
                    add(&mut hash, format!("{span:?}").as_bytes());
                    stamps.push(stamp);
                }
                None => add(&mut hash, piece.bytes()),
            }
        }
    }
    Ok((hash.finalize().into(), stamps))
}

/// What the encoder at `slot` is beside its weights: its settings, and the branches of its LoRAs.
fn settings(model: &Opened, slot: &str) -> String {
    let mut text = String::new();
    for network in model.encoders.networks().iter().filter(|network| network.slot.name == slot) {
        text.push_str(&network.config.to_string());
        for (id, weight) in network.model.manifest().iter() {
            let branches = network.model.branches(id);
            if !branches.is_empty() {
                text.push_str(&format!("{} {branches:?}", weight.name));
            }
        }
    }
    text
}

/// The digest, from every byte.
fn everything(model: &Opened, cancel: &CancelFlag) -> Result<Digest> {
    let mut hash = Sha256::new();
    for network in model.encoders.networks() {
        add(&mut hash, settings(model, network.slot.name).as_bytes());
        let mut stretches: Vec<(&Arc<Map>, Range<usize>)> = Vec::new();
        let contents = network.bound.contents(network.model.manifest());
        for Content { what, piece } in &contents {
            add(&mut hash, what.as_bytes());
            let (map, span) = piece.span();
            for start in span.clone().step_by(STRETCH) {
                stretches.push((map, start..span.end.min(start + STRETCH)));
            }
        }
        for batch in stretches.chunks(BATCH) {
            cancel.check()?;
            let mut digests = vec![Digest::default(); batch.len()];
            workers::try_for_each(batch.iter().zip(&mut digests).collect(), |((map, range), digest)| {
                *digest = stretch(map, range.clone())?;
                Ok::<(), Error>(())
            })?;
            digests.iter().for_each(|digest| hash.update(digest));
        }
    }
    Ok(hash.finalize().into())
}

fn stretch(map: &Map, range: Range<usize>) -> Result<Digest> {
    let (mut hash, mut room) = (Sha256::new(), reserve::zeros::<u8>("a digest", READ.min(range.len()))?);
    for start in range.clone().step_by(READ) {
        let part = &mut room[..READ.min(range.end - start)];
        map.read(start, part)?;
        hash.update(part);
    }
    Ok(hash.finalize().into())
}

/// Adds `bytes` with their number, so that no two lists run together to the same.
pub(super) fn add(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// A digest in hexadecimal digits.
pub(super) fn hex(digest: &[u8]) -> String {
    let mut text = String::with_capacity(2 * digest.len());
    for byte in digest {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
