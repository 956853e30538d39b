//! A transformer in a folder of a diffusers directory, sharded, with random weights in bf16.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use pinhole::bind::alias;
use pinhole::models::flux::{Config, Flux};
use pinhole_quant::output::AtomicFile;
use rayon::prelude::*;
use serde_json::json;

/// Most bytes of a shard, as diffusers cuts them.
const SHARD: usize = 10_000_000_000;

/// How many numbers are made at once.
const CHUNK: usize = 4 << 20;

/// A tensor as diffusers has it: extents slowest first.
struct Tensor {
    name: String,
    shape: Vec<usize>,
}

impl Tensor {
    fn numbers(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Writes the transformer of `config` below `cache`, unless it is there. Returns its folder.
pub(crate) fn make(cache: &Path, config: &Config) -> Result<PathBuf, Box<dyn Error>> {
    let folder = cache.join(format!("flux-{}-{}-bf16", config.num_layers, config.num_single_layers));
    let index = folder.join("diffusion_pytorch_model.safetensors.index.json");
    if index.is_file() {
        return Ok(folder);
    }
    eprintln!("writing {}", folder.display());
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("config.json"), serde_json::to_string_pretty(config)?)?;
    let shards = shards(tensors(&Flux::new(config)?, config.hidden()));
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("diffusion_pytorch_model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_shard(&folder.join(&name), shard, i as u64)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.clone())));
    }
    // Last, so that what is there is whole.
    fs::write(index, serde_json::to_string(&json!({ "metadata": {}, "weight_map": weight_map }))?)?;
    Ok(folder)
}

/// The tensors of `flux`, whose width is `hidden`, under diffusers' names: queries, keys and values apart.
fn tensors(flux: &Flux, hidden: usize) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for (_, weight) in flux.model.manifest().iter() {
        let parts = alias::flux(&weight.name).pop().unwrap_or_default();
        let matrix = weight.shape.rank() > 1;
        let rows = if matrix { weight.shape.rows() } else { weight.shape.row() };

        // Halves of one tensor have one name, and fused layers begin with three of the model's width.
        let fused = parts.len() > 2;
        let first = parts.first().map(|part| part.name.clone());
        for (i, part) in parts.iter().enumerate() {
            let rows = match i {
                3 => rows - 3 * hidden,
                _ if fused => hidden,
                _ => rows,
            };
            if i == 0 || Some(&part.name) != first.as_ref() {
                let shape = if matrix { vec![rows, weight.shape.row()] } else { vec![rows] };
                tensors.push(Tensor { name: part.name.clone(), shape });
            }
        }
    }
    tensors
}

fn shards(tensors: Vec<Tensor>) -> Vec<Vec<Tensor>> {
    let (mut shards, mut used) = (vec![Vec::new()], 0);
    for tensor in tensors {
        let bytes = 2 * tensor.numbers();
        if used + bytes > SHARD {
            shards.push(Vec::new());
            used = 0;
        }
        used += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

fn write_shard(path: &Path, tensors: &[Tensor], seed: u64) -> Result<(), Box<dyn Error>> {
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for tensor in tensors {
        let end = offset + 2 * tensor.numbers();
        let entry = json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(AtomicFile::create(path, true)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (i, tensor) in tensors.iter().enumerate() {
        let scale = if tensor.shape.len() > 1 { 0.02 } else { 1.0 };
        let mut left = tensor.numbers();
        while left > 0 {
            let numbers = random(left.min(CHUNK), scale, seed << 56 | (i as u64) << 40 | left as u64);
            let bytes: Vec<[u8; 2]> = numbers.par_iter().map(|&number| bf16::from_f32(number).to_le_bytes()).collect();
            file.write_all(bytes.as_flattened())?;
            left -= numbers.len();
        }
    }
    file.into_inner()?.commit()?;
    Ok(())
}

/// Numbers about as a trained matrix has them: the sum of four uniform ones, of standard deviation `scale`.
pub(crate) fn random(len: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut numbers = vec![0.0; len];
    numbers.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, numbers)| {
        let mut state = (seed ^ (chunk as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
        for number in numbers {
            // Marsaglia's xorshift64; a 16-bit piece has a variance of 65536^2 / 12, four of them a third of 65536^2.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let sum: i64 = (0..4).map(|i| (state >> (16 * i) & 0xffff) as i64 - 0x8000).sum();
            *number = sum as f32 * (3f32.sqrt() / 65536.0) * scale;
        }
    });
    numbers
}
