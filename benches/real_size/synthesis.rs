//! A bundle that holds only a transformer, with random weights of a trained model's size.

use std::error::Error;
use std::path::Path;

use pinhole::models::flux::{Config, Flux};
use pinhole::source::{ComponentKind, keys};
use pinhole::weights::{Role, Weight};
use pinhole_quant::gguf::{Array, Layout, Strings, TensorSpec, Value, Writer};
use pinhole_quant::output::AtomicFile;
use pinhole_quant::recipe::{self, FileType, Recipe};
use pinhole_quant::{DType, rows};
use rayon::prelude::*;
use serde_json::json;

/// How many numbers are made at once.
const CHUNK: usize = 4 << 20;

/// Writes the model to `path`, whole or not at all.
pub(crate) fn write(path: &Path, flux: &Flux, file_type: FileType) -> Result<(), Box<dyn Error>> {
    let mut recipe = Recipe::new(file_type, "flux");
    let weights: Vec<(&Weight, DType)> = flux
        .model
        .manifest()
        .iter()
        .map(|(_, weight)| {
            let choice = recipe.choose(&recipe::Weight {
                prefix: "dit.",
                name: &weight.name,
                role: weight.role,
                row_len: weight.shape.row(),
                elements: weight.shape.elements(),
                source: DType::BF16,
            });
            (weight, choice.dtype)
        })
        .collect();
    let specs: Vec<TensorSpec> = weights
        .iter()
        .map(|(weight, dtype)| TensorSpec {
            name: format!("{}{}", ComponentKind::Transformer.prefix(), weight.name),
            dims: weight.shape.dims()[..weight.shape.rank()].to_vec(),
            dtype: *dtype,
        })
        .collect();
    let layout = Layout::new(&metadata(flux.config(), file_type), &specs, 4096)?;
    let mut writer = Writer::new(AtomicFile::create(path, false)?, layout)?;
    for (i, ((weight, dtype), spec)) in weights.iter().zip(&specs).enumerate() {
        writer.begin(&spec.name)?;
        let row = weight.shape.row();
        let (mut left, chunk) = (weight.shape.elements(), (CHUNK / row).max(1) * row);
        while left > 0 {
            let numbers = random(weight, chunk.min(left), (i as u64) << 40 | left as u64);
            let mut bytes =
                vec![0; dtype.row_bytes(row).ok_or("a row that blocks do not divide")? * (numbers.len() / row)];
            rows::quantize_parallel(*dtype, &numbers, row, &mut bytes)?;
            writer.write(&bytes)?;
            left -= numbers.len();
        }
        writer.end()?;
    }
    writer.finish()?.commit()?;
    Ok(())
}

fn metadata(config: &Config, file_type: FileType) -> Vec<(String, Value)> {
    let mut names = Strings::with_capacity(1);
    names.push(ComponentKind::Transformer.name());
    let text = json!({
        "in_channels": config.in_channels,
        "num_layers": config.num_layers,
        "num_single_layers": config.num_single_layers,
        "attention_head_dim": config.attention_head_dim,
        "num_attention_heads": config.num_attention_heads,
        "joint_attention_dim": config.joint_attention_dim,
        "pooled_projection_dim": config.pooled_projection_dim,
        "guidance_embeds": config.guidance_embeds,
        "axes_dims_rope": config.axes_dims_rope,
    });
    vec![
        (keys::ARCHITECTURE.into(), "flux".into()),
        (keys::QUANTIZATION_VERSION.into(), 2.into()),
        (keys::FILE_TYPE.into(), file_type.number().into()),
        (keys::VERSION.into(), 1.into()),
        (keys::COMPONENTS.into(), Value::Array(Array::String(names))),
        (keys::component_config(ComponentKind::Transformer.name()), text.to_string().into()),
    ]
}

/// Uniform numbers that keep the variance of what a matrix multiplies; about 1 for norm scales.
fn random(weight: &Weight, len: usize, seed: u64) -> Vec<f32> {
    let (scale, offset) = match weight.role {
        Role::Vector if weight.name.ends_with(".scale") => (0.1, 1.0),
        Role::Vector => (0.02, 0.0),
        _ => ((3.0 / weight.shape.row() as f32).sqrt(), 0.0),
    };
    let mut numbers = vec![0.0; len];
    numbers.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, numbers)| {
        let mut state = (seed ^ (chunk as u64) << 20) | 1;
        for number in numbers {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *number = ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale + offset;
        }
    });
    numbers
}
