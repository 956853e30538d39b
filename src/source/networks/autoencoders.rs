//! Autoencoders.

use std::path::Path;

use super::super::weight_file::WeightFile;
use super::super::{Component, HasModel, Network, Networks, Part, Text};
use super::reading::{read_off, runnable, shapes};
use crate::bind::Bound;
use crate::bind::alias::{self, Aliases};
use crate::index::tensor_at;
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::autoencoder_tiny::{self, TinyDecoder, TinyEncoder};
use crate::models::autoencoder_wan;
use crate::{Error, Result};

/// A KL autoencoder: from latents to pictures, and back if the file has the weights.
pub struct AutoencoderKl {
    /// From latents to pictures.
    pub decoder: Part<Decoder>,
    /// From pictures to latents. Files for text to image sometimes come without it.
    pub encoder: Option<Part<Encoder>>,
    /// The settings.
    pub config: autoencoder_kl::Config,
}

impl Networks for AutoencoderKl {
    fn networks(&self) -> Vec<Network<'_>> {
        let mut networks = self.decoder.networks();
        networks.extend(self.encoder.iter().flat_map(Networks::networks));
        networks
    }
}

/// The KL autoencoder of `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn autoencoder_kl(component: &Component) -> Result<AutoencoderKl> {
    autoencoder_kl_of(component, None)
}

/// The KL autoencoder of `component`, with latents that are multiplied by `scale`, if it is given and the file does not say.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn autoencoder_kl_of(component: &Component, scale: Option<f32>) -> Result<AutoencoderKl> {
    runnable(component, &alias::AUTOENCODER_KL)?;
    let config = match &component.config {
        Some(Text { text, origin }) => with_statistics(autoencoder_kl::Config::from_json(text, origin)?, component),
        None => {
            let aliases = alias::autoencoder_kl(alias::autoencoder_levels(&component.index, &component.prefix));
            let config = autoencoder_kl::Config::from_shapes(shapes(component, &aliases), &component.origin);
            let config = read_off(config, component, &aliases)?;
            autoencoder_kl::Config { scaling_factor: scale.unwrap_or(config.scaling_factor), ..config }
        }
    };
    let (levels, kind) = (config.levels(), &alias::AUTOENCODER_KL);
    let decoder = Part::new(Decoder::new(&config)?, component, kind, alias::autoencoder_kl(levels), &config)?;
    let decoder = decoder.without_strays(component)?;
    let encoder = match shapes(component, &alias::autoencoder_kl(levels))("encoder.conv_in.weight") {
        Some(_) => {
            let encoder = Part::new(Encoder::new(&config)?, component, kind, alias::autoencoder_kl(levels), &config)?;
            Some(encoder.without_strays(component)?)
        }
        None => None,
    };
    Ok(AutoencoderKl { decoder, encoder, config })
}

/// The causal autoencoder: from latents to pictures, and back if the file has the weights.
pub struct AutoencoderCausal {
    /// From latents to pictures.
    pub decoder: Part<autoencoder_wan::Decoder>,
    /// From pictures to latents.
    pub encoder: Option<Part<autoencoder_wan::Encoder>>,
    /// The same for films, if it was opened for them.
    pub film: Option<Film>,
    /// The settings.
    pub config: autoencoder_wan::Config,
}

/// The causal autoencoder for films.
pub struct Film {
    /// From latents to frames.
    pub decoder: Part<autoencoder_wan::FilmDecoder>,
    /// From frames to latents.
    pub encoder: Option<Part<autoencoder_wan::FilmEncoder>>,
    /// All weights, each once, of both directions.
    weights: Vec<Part<autoencoder_wan::Whole>>,
}

impl Networks for AutoencoderCausal {
    fn networks(&self) -> Vec<Network<'_>> {
        if let Some(film) = &self.film {
            return film.weights.iter().flat_map(Networks::networks).collect();
        }
        let mut networks = self.decoder.networks();
        networks.extend(self.encoder.iter().flat_map(Networks::networks));
        networks
    }
}

/// The settings of the causal autoencoder of `component`.
fn causal_config(component: &Component) -> Result<autoencoder_wan::Config> {
    runnable(component, &alias::AUTOENCODER_WAN)?;
    match &component.config {
        Some(Text { text, origin }) => autoencoder_wan::Config::from_json(text, origin),
        None => {
            let aliases = alias::autoencoder_wan(alias::autoencoder_wan_blocks(&component.index, &component.prefix));
            let config = autoencoder_wan::Config::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)
        }
    }
}

/// The causal autoencoder of `component`, for pictures.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn autoencoder_causal(component: &Component) -> Result<AutoencoderCausal> {
    let (config, kind) = (causal_config(component)?, &alias::AUTOENCODER_WAN);
    let aliases = || alias::autoencoder_wan(config.num_res_blocks + 1);
    let decoder = Part::new(autoencoder_wan::Decoder::new(&config)?, component, kind, aliases(), &config)?;
    let decoder = decoder.without_strays(component)?;
    let encoder = match shapes(component, &aliases())("encoder.conv1.bias") {
        Some(_) => {
            let encoder = Part::new(autoencoder_wan::Encoder::new(&config)?, component, kind, aliases(), &config)?;
            Some(encoder.without_strays(component)?)
        }
        None => None,
    };
    Ok(AutoencoderCausal { decoder, encoder, film: None, config })
}

/// The causal autoencoder of `component`, for films, and for pictures too.
///
/// # Errors
/// As [`flux()`](super::flux()); [`Error::Mismatch`] if its kernels are those of pictures, or a latent frame is not four frames.
pub fn autoencoder_causal_of_films(component: &Component) -> Result<AutoencoderCausal> {
    let (config, kind) = (causal_config(component)?, &alias::AUTOENCODER_WAN);
    let aliases = || alias::autoencoder_wan(config.num_res_blocks + 1);
    config.validate_films(&component.origin)?;
    refuse_flat(component, &aliases(), &config)?;
    let weights = |whole: autoencoder_wan::Whole| {
        Part::new(whole, component, kind, aliases(), &config)?.without_strays(component)
    };
    let whole = weights(autoencoder_wan::Whole::decoder(&config)?)?;
    let decoder = beside(&whole, autoencoder_wan::Decoder::new(&config)?, aliases())?;
    let film = beside(&whole, autoencoder_wan::FilmDecoder::new(&config)?, aliases())?;
    let mut film = Film { decoder: film, encoder: None, weights: vec![whole] };
    let mut encoder = None;
    if shapes(component, &aliases())("encoder.conv1.bias").is_some() {
        let whole = weights(autoencoder_wan::Whole::encoder(&config)?)?;
        encoder = Some(beside(&whole, autoencoder_wan::Encoder::new(&config)?, aliases())?);
        film.encoder = Some(beside(&whole, autoencoder_wan::FilmEncoder::new(&config)?, aliases())?);
        film.weights.push(whole);
    }
    Ok(AutoencoderCausal { decoder, encoder, film: Some(film), config })
}

/// `net`, whose weights are all among those of `whole`.
fn beside<N: HasModel>(
    whole: &Part<autoencoder_wan::Whole>,
    net: N,
    aliases: impl Fn(&str) -> Vec<alias::Alternative> + Send + Sync + 'static,
) -> Result<Part<N>> {
    let bound = Bound::joined(net.model().manifest(), &[("", whole.net.model.manifest(), &whole.bound)])?;
    Ok(whole.beside(net, bound, aliases))
}

/// Refuses the autoencoder of `component` if its kernels have no planes: some files are made for Qwen-Image alone.
fn refuse_flat(component: &Component, aliases: Aliases<'_>, config: &autoencoder_wan::Config) -> Result<()> {
    let Component { index, prefix, origin, .. } = component;
    let (kernel, bias) = ("decoder.conv1.weight", "decoder.conv1.bias");
    let sizes = (shapes(component, aliases)(kernel), shapes(component, aliases)(bias));
    let (Some(shape), Some(outputs)) = sizes else { return Ok(()) };
    let is_flat = shape.elements() == 9 * config.z_dim * outputs.elements();
    if !is_flat || index.has(&format!("{prefix}{kernel}.0")) {
        return Ok(());
    }
    let error = Error::mismatch(origin, tensor_at(kernel), "a kernel over three frames", format!("shape {shape}"));
    Err(error.with_hint("this autoencoder is for pictures alone: take Wan's own, wan_2.1_vae.safetensors"))
}

/// `config` of an autoencoder whose file normalises latents, though its settings do not say so.
fn with_statistics(config: autoencoder_kl::Config, component: &Component) -> autoencoder_kl::Config {
    let has_statistics = shapes(component, &alias::autoencoder_kl(config.levels()))("bn.running_mean").is_some();
    let eps = config.batch_norm_eps.or(has_statistics.then_some(autoencoder_kl::BATCH_NORM_EPS));
    autoencoder_kl::Config { batch_norm_eps: eps, ..config }
}

/// A tiny autoencoder: from latents to pictures, and back if there are the weights.
pub struct AutoencoderTiny {
    /// From latents to pictures.
    pub decoder: Part<TinyDecoder>,
    /// From pictures to latents. The first publisher has it in a file of its own.
    pub encoder: Option<Part<TinyEncoder>>,
    /// The settings.
    pub config: autoencoder_tiny::Config,
}

impl Networks for AutoencoderTiny {
    fn networks(&self) -> Vec<Network<'_>> {
        let mut networks = self.decoder.networks();
        networks.extend(self.encoder.iter().flat_map(Networks::networks));
        networks
    }
}

/// The tiny autoencoder of `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn autoencoder_tiny(component: &Component) -> Result<AutoencoderTiny> {
    runnable(component, &alias::AUTOENCODER_TINY)?;
    let (aliases, kind) = (&alias::autoencoder_tiny, &alias::AUTOENCODER_TINY);
    let beside = tiny_encoder(component)?;
    let config = match &component.config {
        Some(Text { text, origin }) => {
            let config = autoencoder_tiny::Config::from_json(text, origin)?;
            if beside.is_some() {
                config.validate_encoder(origin)?;
            }
            config
        }
        None => {
            let config = autoencoder_tiny::Config::from_shapes(shapes(component, aliases), &component.origin);
            let config = read_off(config, component, aliases)?;
            match &beside {
                Some(encoder) => {
                    read_off(config.with_encoder(shapes(encoder, aliases), &encoder.origin), encoder, aliases)?
                }
                None => config,
            }
        }
    };
    let decoder = Part::new(TinyDecoder::new(&config)?, component, kind, alias::autoencoder_tiny, &config)?;
    let decoder = decoder.without_strays(component)?;
    let mut derived = autoencoder_tiny::Config::from_shapes(|name| decoder.shape(name), Path::new("")).ok();
    let mut encoder = None;
    if let Some(component) = &beside {
        let part = Part::new(TinyEncoder::new(&config)?, component, kind, alias::autoencoder_tiny, &config)?;
        let part = part.without_strays(component)?;
        derived = derived.and_then(|config| config.with_encoder(|name| part.shape(name), Path::new("")).ok());
        encoder = Some(part.compared(derived.clone()));
    }
    Ok(AutoencoderTiny { decoder: decoder.compared(derived), encoder, config })
}

/// What the names of the first publisher's two files, and of what stands before their tensors in one for both, differ in.
const TINY: [&str; 2] = ["decoder", "encoder"];

/// Where the encoder of the tiny autoencoder `component` is: in the same file, or in the one beside it that is called so. `None` if there
/// is none.
fn tiny_encoder(component: &Component) -> Result<Option<Component>> {
    const FIRST: &str = "encoder.layers.0.weight";
    let has_encoder = |component: &Component| shapes(component, &alias::autoencoder_tiny)(FIRST).is_some();
    let [decoder, encoder] = TINY;
    if has_encoder(component) {
        return Ok(Some(component.clone()));
    }
    let same = Component { prefix: component.prefix.replace(decoder, encoder), ..component.clone() };
    if same.prefix != component.prefix && has_encoder(&same) {
        return Ok(Some(same));
    }
    let Some(name) = component.origin.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
    let path = component.origin.with_file_name(name.replace(decoder, encoder));
    if path == component.origin || !path.is_file() {
        return Ok(None);
    }
    let file = WeightFile::open(&path)?;
    let other = Component { index: file.index, prefix: String::new(), origin: path, ..component.clone() };
    Ok(has_encoder(&other).then_some(other))
}
