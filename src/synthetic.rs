//! Models of real size with random weights, made directly in their type: what plans, benches and tests of memory run where
//! the published weights are not at hand. They draw noise.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use pinhole_quant::gguf::{Array, Layout, Strings, TensorSpec, Value, WriteError, Writer};
use pinhole_quant::output::AtomicFile;
use pinhole_quant::recipe::{self, FileType, Recipe};
use pinhole_quant::{DType, rows};
use rayon::prelude::*;
use serde_json::json;

use crate::builtin;
use crate::convert::{BUNDLE_ALIGNMENT, QUANTIZATION_VERSION, Types, output_error, write_error};
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::clip::{self, Clip};
use crate::models::flux::{self, Flux};
use crate::models::t5::{self, T5};
use crate::source::{self, ComponentKind, FLUX, keys};
use crate::stage::Model;
use crate::weights::{Role, Weight};
use crate::{Error, Result};

/// How many numbers are made of each kind of row, and repeated.
const CHUNK: usize = 4 << 20;

/// A published model, as far as sizes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// FLUX.1-dev.
    FluxDev,
    /// FLUX.1-schnell.
    FluxSchnell,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 2] = [Architecture::FluxDev, Architecture::FluxSchnell];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::FluxDev => "flux-dev",
            Architecture::FluxSchnell => "flux-schnell",
        }
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(name: &str) -> Result<Architecture, String> {
        let found = Architecture::ALL.into_iter().find(|architecture| architecture.name() == name);
        found.ok_or_else(|| format!("`{name}` is not flux-dev or flux-schnell"))
    }
}

/// What a synthetic model is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whose sizes it has.
    pub architecture: Architecture,
    /// The type of its transformer; the other components follow, as when a model is converted.
    pub file_type: FileType,
    /// How many double and single blocks it has; all of them by default.
    pub blocks: Option<usize>,
    /// Whether weights are zeros that take no room on the disk, where the file system can: enough to plan with.
    pub hollow: bool,
    /// The one component that it has; all of them by default.
    pub only: Option<ComponentKind>,
}

impl Options {
    /// Whether the component `kind` is made.
    fn has(&self, kind: ComponentKind) -> bool {
        self.only.is_none_or(|only| only == kind)
    }
}

/// The networks of a model.
struct Networks {
    transformer: Flux,
    clip: Clip,
    t5: T5,
    decoder: Decoder,
    encoder: Encoder,
}

impl Networks {
    fn new(options: &Options) -> Result<Networks> {
        let vae = autoencoder_kl::Config::from_json(&vae().to_string(), Path::new("vae"))?;
        Ok(Networks {
            transformer: Flux::new(&transformer(options))?,
            clip: Clip::new(&clip::Config::from_json(&clip().to_string(), Path::new("text_encoder"))?)?,
            t5: T5::new(&t5::Config::from_json(&t5().to_string(), Path::new("text_encoder_2"))?)?,
            decoder: Decoder::new(&vae)?,
            encoder: Encoder::new(&vae)?,
        })
    }

    fn models(&self) -> [(ComponentKind, &Model); 5] {
        [
            (ComponentKind::Transformer, &self.transformer.model),
            (ComponentKind::TextEncoder, &self.clip.model),
            (ComponentKind::TextEncoder2, &self.t5.model),
            (ComponentKind::Vae, &self.decoder.model),
            (ComponentKind::Vae, &self.encoder.model),
        ]
    }
}

/// Writes the bundle `path`, whole or not at all. `after` hears of the bytes of each tensor that is written.
///
/// # Errors
/// [`Error::Io`] and [`Error::Exists`] of the file; what `after` returns.
pub fn write(path: &Path, options: &Options, mut after: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let networks = Networks::new(options)?;
    let weights = choose(&networks, options);
    let specs: Vec<TensorSpec> = weights.iter().map(Chosen::spec).collect();
    let failed = |error: WriteError| write_error(path, error);
    let layout = Layout::new(&metadata(options)?, &specs, BUNDLE_ALIGNMENT).map_err(failed)?;
    if options.hollow {
        return hollow(path, &layout);
    }
    let mut writer = Writer::new(AtomicFile::create(path, false).map_err(output_error)?, layout).map_err(failed)?;
    let mut made = Made::default();
    for (weight, spec) in weights.iter().zip(&specs) {
        writer.begin(&spec.name).map_err(failed)?;
        let mut left = weight.bytes()?;
        after(left as u64)?;
        let rows = made.rows(weight)?;
        while left > 0 {
            let part = rows.len().min(left);
            writer.write(&rows[..part]).map_err(failed)?;
            left -= part;
        }
        writer.end().map_err(failed)?;
    }
    writer.finish().map_err(failed)?.commit().map_err(output_error)
}

/// The size of what [`write()`] writes.
///
/// # Errors
/// None, but for sizes that no file has.
pub fn total_bytes(options: &Options) -> Result<u64> {
    let networks = Networks::new(options)?;
    let specs: Vec<TensorSpec> = choose(&networks, options).iter().map(Chosen::spec).collect();
    let layout = Layout::new(&metadata(options)?, &specs, BUNDLE_ALIGNMENT);
    layout.map(|layout| layout.total_bytes()).map_err(|error| Error::graph("synthetic", error.to_string()))
}

/// The header, and a hole as large as the tensors.
fn hollow(path: &Path, layout: &Layout) -> Result<()> {
    let file = File::create_new(path).and_then(|mut file| {
        file.write_all(layout.header())?;
        file.set_len(layout.total_bytes())
    });
    file.map_err(|source| Error::io("write", path, source))
}

/// A weight with its format.
struct Chosen<'a> {
    kind: ComponentKind,
    weight: &'a Weight,
    dtype: DType,
}

impl Chosen<'_> {
    fn spec(&self) -> TensorSpec {
        let shape = self.weight.shape;
        TensorSpec {
            name: format!("{}{}", self.kind.prefix(), self.weight.name),
            dims: shape.dims()[..shape.rank()].to_vec(),
            dtype: self.dtype,
        }
    }

    fn bytes(&self) -> Result<usize> {
        let bytes = self.weight.shape.bytes(self.dtype);
        bytes.ok_or_else(|| Error::graph("synthetic", format!("{} is too large", self.weight.name)))
    }
}

fn choose<'a>(networks: &'a Networks, options: &Options) -> Vec<Chosen<'a>> {
    let types = Types::from(options.file_type);
    let mut chosen = Vec::new();
    for (kind, model) in networks.models().into_iter().filter(|(kind, _)| options.has(*kind)) {
        let mut recipe = Recipe::new(types.of(kind), FLUX);
        chosen.extend(model.manifest().iter().map(|(_, weight)| {
            let seen = recipe::Weight {
                prefix: kind.prefix(),
                name: &weight.name,
                role: weight.role,
                row_len: weight.shape.row(),
                elements: weight.shape.elements(),
                source: DType::BF16,
            };
            Chosen { kind, weight, dtype: recipe.choose(&seen).dtype }
        }));
    }
    chosen
}

/// Rows that were made, by format, length and kind: weights of one kind repeat them.
#[derive(Default)]
struct Made(HashMap<(DType, usize, bool), Vec<u8>>);

impl Made {
    fn rows(&mut self, chosen: &Chosen<'_>) -> Result<&[u8]> {
        let Chosen { weight, dtype, .. } = *chosen;
        let is_scale = weight.role == Role::Vector && weight.name.ends_with(".scale");
        let row = weight.shape.row();
        match self.0.entry((dtype, row, is_scale)) {
            Entry::Occupied(made) => Ok(made.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(rows_of(weight, dtype, is_scale)?)),
        }
    }
}

fn rows_of(weight: &Weight, dtype: DType, is_scale: bool) -> Result<Vec<u8>> {
    let row = weight.shape.row();
    let numbers = random(weight, (CHUNK / row).max(1) * row, is_scale);
    let failed = |error: String| Error::graph("synthetic", format!("{}: {error}", weight.name));
    let bytes = dtype.row_bytes(row).ok_or_else(|| failed(format!("{row} numbers in {dtype}")))?;
    let mut made = vec![0; bytes * (numbers.len() / row)];
    rows::quantize_parallel(dtype, &numbers, row, &mut made).map_err(|error| failed(error.to_string()))?;
    Ok(made)
}

/// Uniform numbers that keep the variance of what a matrix multiplies; about 1 for norm scales.
fn random(weight: &Weight, len: usize, is_scale: bool) -> Vec<f32> {
    let (scale, offset) = match weight.role {
        Role::Vector if is_scale => (0.1, 1.0),
        Role::Vector => (0.02, 0.0),
        _ => ((3.0 / weight.shape.row() as f32).sqrt(), 0.0),
    };
    let mut numbers = vec![0.0; len];
    numbers.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, numbers)| {
        let mut state = (weight.shape.row() as u64) << 32 | (chunk as u64) << 1 | 1;
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

/// The metadata of a bundle, with the miniature's tokenizers: they know fewer words than the published ones, and every id
/// of theirs is one here.
fn metadata(options: &Options) -> Result<Vec<(String, Value)>> {
    let mini = builtin::mini()?;
    let mut names = Strings::with_capacity(ComponentKind::ALL.len());
    ComponentKind::ALL.iter().filter(|kind| options.has(**kind)).for_each(|kind| names.push(kind.name()));
    let mut metadata: Vec<(String, Value)> = vec![
        (keys::ARCHITECTURE.into(), FLUX.into()),
        (keys::QUANTIZATION_VERSION.into(), QUANTIZATION_VERSION.into()),
        (keys::FILE_TYPE.into(), options.file_type.number().into()),
        (keys::VERSION.into(), source::VERSION.into()),
        (keys::NAME.into(), format!("synthetic {}", options.architecture.name()).into()),
        (keys::COMPONENTS.into(), Value::Array(Array::String(names))),
    ];
    let transformer = serde_json::to_value(transformer(options)).unwrap_or_default();
    let configs = [
        (ComponentKind::Transformer, transformer),
        (ComponentKind::TextEncoder, clip()),
        (ComponentKind::TextEncoder2, t5()),
        (ComponentKind::Vae, vae()),
    ];
    let configs = configs.into_iter().filter(|(kind, _)| options.has(*kind));
    metadata.extend(configs.map(|(kind, config)| (keys::component_config(kind.name()), config.to_string().into())));
    for (name, files) in [("tokenizer", &mini.tokenizer), ("tokenizer_2", &mini.tokenizer_2)] {
        let Some(files) = files else { continue };
        metadata.push((keys::tokenizer(name), files.tokenizer.text.as_str().into()));
    }
    metadata.push((keys::DEFAULTS.into(), defaults(options.architecture).to_string().into()));
    Ok(metadata)
}

fn transformer(options: &Options) -> flux::Config {
    let published = match options.architecture {
        Architecture::FluxDev => flux::Config::dev(),
        Architecture::FluxSchnell => flux::Config::schnell(),
    };
    match options.blocks {
        Some(blocks) => flux::Config { num_layers: blocks, num_single_layers: blocks, ..published },
        None => published,
    }
}

/// CLIP ViT-L's text encoder.
fn clip() -> serde_json::Value {
    json!({
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "eos_token_id": 2,
    })
}

/// T5 v1.1 XXL's encoder.
fn t5() -> serde_json::Value {
    json!({
        "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
        "num_heads": 64, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu",
    })
}

/// FLUX.1's autoencoder.
fn vae() -> serde_json::Value {
    json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2, "norm_num_groups": 32, "mid_block_add_attention": true, "use_quant_conv": false,
        "use_post_quant_conv": false, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    })
}

fn defaults(architecture: Architecture) -> serde_json::Value {
    match architecture {
        Architecture::FluxDev => {
            json!({ "num_inference_steps": 50, "guidance_scale": 3.5, "max_sequence_length": 512 })
        }
        Architecture::FluxSchnell => json!({ "num_inference_steps": 4, "max_sequence_length": 256 }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::source::Source;
    use crate::source::flux::FluxModel;

    #[test]
    fn a_hollow_model_opens_and_has_the_published_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dev.gguf");
        let options = Options {
            architecture: Architecture::FluxDev,
            file_type: FileType::Q4_K_S,
            blocks: None,
            hollow: true,
            only: None,
        };
        write(&path, &options, |_| Ok(())).unwrap();
        let model = FluxModel::open(&Source::open(&path).unwrap()).unwrap();
        let parameters = |model: &Model| model.manifest().iter().map(|(_, w)| w.shape.elements()).sum::<usize>();
        assert_eq!(parameters(&model.transformer.net.model), 11_901_408_320);
        assert!(matches!(write(&path, &options, |_| Ok(())), Err(Error::Io { .. })));
    }
}
