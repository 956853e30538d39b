//! A FLUX model on disk: its components as models with their weights found, tokenizers, schedule, defaults.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Component, ComponentKind, FLUX, Layout, Source, Text, TokenizerFiles};
use crate::bind::alias::{self, Aliases};
use crate::bind::{self, Bound};
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::clip::{self, Clip};
use crate::models::flux::{self, Flux};
use crate::models::t5::{self, T5};
use crate::sample::FlowMatchConfig;
use crate::stage::Model;
use crate::tensor::Shape;
use crate::text::{ClipTokenizer, T5Tokenizer, TokenizerConfig};
use crate::{Error, Result};

/// A model and where its weights are.
pub struct Part<M> {
    /// The model.
    pub net: M,
    /// Its weights.
    pub bound: Bound,
}

/// Everything that a FLUX request needs.
pub struct FluxModel {
    /// The denoiser.
    pub transformer: Part<Flux>,
    /// The encoder of the pooled prompt.
    pub clip: Part<Clip>,
    /// Its configuration.
    pub clip_config: clip::Config,
    /// The encoder of the prompt's tokens.
    pub t5: Part<T5>,
    /// Its configuration.
    pub t5_config: t5::Config,
    /// From latents to pictures.
    pub decoder: Part<Decoder>,
    /// From pictures to latents, where the file has it.
    pub encoder: Option<Part<Encoder>>,
    /// The autoencoder's configuration.
    pub vae: autoencoder_kl::Config,
    /// CLIP's tokenizer.
    pub clip_tokenizer: ClipTokenizer,
    /// T5's tokenizer.
    pub t5_tokenizer: T5Tokenizer,
    /// The schedule of sigmas.
    pub scheduler: FlowMatchConfig,
    /// What requests are made with where they do not say.
    pub defaults: Defaults,
}

/// Defaults of requests, by their names in `generation_config.json`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// Pixels across.
    pub width: Option<usize>,
    /// Pixels down.
    pub height: Option<usize>,
    /// Denoising steps.
    pub num_inference_steps: Option<usize>,
    /// Guidance as an input of the model.
    pub guidance_scale: Option<f32>,
    /// Classifier-free guidance, with a negative prompt.
    pub true_cfg_scale: Option<f32>,
    /// What not to draw.
    pub negative_prompt: Option<String>,
    /// Tokens of T5's input.
    pub max_sequence_length: Option<usize>,
}

impl Defaults {
    fn read(source: &Source) -> Result<Defaults> {
        let Some(Text { text, origin }) = &source.defaults else { return Ok(Defaults::default()) };
        serde_json::from_str(text)
            .map_err(|error| Error::malformed(origin, "generation defaults", "JSON settings", error.to_string()))
    }
}

impl FluxModel {
    /// Finds all parts in `source`. Reads headers and configurations, no weights.
    ///
    /// # Errors
    /// [`Error::NotAModel`] where a part is missing, [`Error::Mismatch`] where parts do not fit together, and what
    /// reading them returns.
    pub fn open(source: &Source) -> Result<FluxModel> {
        if source.architecture != FLUX {
            return Err(Error::NotAModel {
                path: source.path.clone(),
                found: match source.architecture.as_str() {
                    "" => "its metadata names no architecture".to_owned(),
                    other => format!("a model of the architecture `{other}`"),
                },
                hint: Some("this version runs flux".into()),
            });
        }
        require_configurations(source)?;
        let transformer = transformer(source.component(ComponentKind::Transformer)?)?;
        let (clip, clip_config) = clip_part(source.component(ComponentKind::TextEncoder)?)?;
        let (t5, t5_config) = t5_part(source.component(ComponentKind::TextEncoder2)?)?;
        let (decoder, encoder, vae) = autoencoder(source.component(ComponentKind::Vae)?)?;
        let clip_tokenizer = {
            let (files, config) = tokenizer(source, ComponentKind::TextEncoder)?;
            ClipTokenizer::from_json(&files.tokenizer.text, &config, &files.tokenizer.origin)?
        };
        let t5_tokenizer = {
            let (files, config) = tokenizer(source, ComponentKind::TextEncoder2)?;
            T5Tokenizer::from_json(&files.tokenizer.text, &config, &files.tokenizer.origin)?
        };
        let scheduler = match &source.scheduler {
            Some(Text { text, origin }) => FlowMatchConfig::from_json(text, origin)?,
            None if transformer.net.config().guidance_embeds => FlowMatchConfig::flux_dev(),
            None => FlowMatchConfig::flux_schnell(),
        };
        let model = FluxModel {
            transformer,
            clip,
            clip_config,
            t5,
            t5_config,
            decoder,
            encoder,
            vae,
            clip_tokenizer,
            t5_tokenizer,
            scheduler,
            defaults: Defaults::read(source)?,
        };
        model.check(&source.path)?;
        Ok(model)
    }

    /// Whether the parts fit together.
    fn check(&self, path: &Path) -> Result<()> {
        let flux = self.transformer.net.config();
        let pairs = [
            ("the width of CLIP and pooled_projection_dim", self.clip_config.hidden_size, flux.pooled_projection_dim),
            ("the width of T5 and joint_attention_dim", self.t5_config.d_model, flux.joint_attention_dim),
            ("four times the latent channels and in_channels", 4 * self.vae.latent_channels, flux.in_channels),
            ("the channels that go into and come out of the transformer", flux.in_channels, flux.out_channels()),
            ("the channels of a picture and 3", self.vae.out_channels, 3),
            ("pixels to a latent and 8", self.vae.factor(), 8),
        ];
        for (what, a, b) in pairs {
            if a != b {
                return Err(Error::mismatch(path, what, "equal numbers", format!("{a} and {b}")));
            }
        }
        let rows = [
            ("rows of CLIP's token embedding", self.clip_config.vocab_size, self.clip_tokenizer.vocab_size()),
            ("CLIP's positions", self.clip_config.max_position_embeddings, self.clip_tokenizer.length()),
            ("rows of T5's token embedding", self.t5_config.vocab_size, self.t5_tokenizer.vocab_size()),
        ];
        for (what, has, needs) in rows {
            if has < needs {
                let expected = format!("at least {needs}, which the tokenizer needs");
                return Err(Error::mismatch(path, what, expected, has.to_string()));
            }
        }
        Ok(())
    }

    /// The tensors of component `kind` that no weight wanted.
    pub fn unused(&self, kind: ComponentKind) -> Vec<&str> {
        unused(&self.networks(), kind)
    }

    /// Every network of the source, in bundle order.
    pub fn networks(&self) -> Vec<Network<'_>> {
        let mut networks = vec![
            transformer_network(&self.transformer),
            clip_network(&self.clip, &self.clip_config),
            t5_network(&self.t5, &self.t5_config),
        ];
        networks.extend(vae_networks(&self.decoder, self.encoder.as_ref(), &self.vae));
        networks
    }
}

/// A model with its weights, and the component that they belong to; the autoencoder has two, for its two ways.
#[derive(Clone)]
pub struct Network<'a> {
    /// The component.
    pub kind: ComponentKind,
    /// The model.
    pub model: &'a Model,
    /// Its weights.
    pub bound: &'a Bound,
    /// Its settings as JSON, by the names in `config.json`.
    pub config: serde_json::Value,
}

/// The tensors of component `kind`, one of `networks`, that no weight wanted.
pub fn unused<'a>(networks: &[Network<'a>], kind: ComponentKind) -> Vec<&'a str> {
    let bounds: Vec<&Bound> =
        networks.iter().filter(|network| network.kind == kind).map(|network| network.bound).collect();
    // The autoencoder's two halves each leave the other's weights: unused is what both leave.
    let [first, rest @ ..] = bounds.as_slice() else { return Vec::new() };
    let unused = first.unused().iter().filter(|name| rest.iter().all(|bound| bound.unused().contains(name)));
    unused.map(String::as_str).collect()
}

impl Network<'_> {
    /// Whether its configuration is the one that [`FluxModel::open`] reads off the shapes where a file brings none.
    pub fn follows_from_shapes(&self) -> bool {
        let manifest = self.model.manifest();
        let shape =
            |name: &str| manifest.iter().find(|(_, weight)| weight.name == name).map(|(_, weight)| weight.shape);
        let json = match self.kind {
            ComponentKind::Transformer => flux::Config::from_shapes(shape).map(serde_json::to_value),
            ComponentKind::TextEncoder => {
                clip::Config::from_shapes(shape, Path::new("")).ok().map(serde_json::to_value)
            }
            ComponentKind::TextEncoder2 => t5::Config::from_shapes(shape, Path::new("")).ok().map(serde_json::to_value),
            // Each of the two has half of the shapes.
            ComponentKind::Vae => None,
        };
        json.and_then(Result::ok).is_some_and(|json| json == self.config)
    }
}

/// One component of a source, opened without the others.
pub enum Lone {
    /// The denoiser.
    Transformer(Part<Flux>),
    /// CLIP.
    TextEncoder(Part<Clip>, clip::Config),
    /// T5.
    TextEncoder2(Part<T5>, t5::Config),
    /// Decoder and encoder.
    Vae(Part<Decoder>, Option<Part<Encoder>>, autoencoder_kl::Config),
}

impl Lone {
    /// Finds the component `kind` in `source`.
    ///
    /// # Errors
    /// As [`FluxModel::open`].
    pub fn open(source: &Source, kind: ComponentKind) -> Result<Lone> {
        let component = source.component(kind)?;
        Ok(match kind {
            ComponentKind::Transformer => Lone::Transformer(transformer(component)?),
            ComponentKind::TextEncoder => clip_part(component).map(|(part, config)| Lone::TextEncoder(part, config))?,
            ComponentKind::TextEncoder2 => t5_part(component).map(|(part, config)| Lone::TextEncoder2(part, config))?,
            ComponentKind::Vae => {
                autoencoder(component).map(|(decoder, encoder, config)| Lone::Vae(decoder, encoder, config))?
            }
        })
    }

    /// Its networks.
    pub fn networks(&self) -> Vec<Network<'_>> {
        match self {
            Lone::Transformer(part) => vec![transformer_network(part)],
            Lone::TextEncoder(part, config) => vec![clip_network(part, config)],
            Lone::TextEncoder2(part, config) => vec![t5_network(part, config)],
            Lone::Vae(decoder, encoder, config) => vae_networks(decoder, encoder.as_ref(), config),
        }
    }
}

fn transformer_network(part: &Part<Flux>) -> Network<'_> {
    network(ComponentKind::Transformer, &part.net.model, &part.bound, part.net.config())
}

fn clip_network<'a>(part: &'a Part<Clip>, config: &clip::Config) -> Network<'a> {
    network(ComponentKind::TextEncoder, &part.net.model, &part.bound, config)
}

fn t5_network<'a>(part: &'a Part<T5>, config: &t5::Config) -> Network<'a> {
    network(ComponentKind::TextEncoder2, &part.net.model, &part.bound, config)
}

fn vae_networks<'a>(
    decoder: &'a Part<Decoder>,
    encoder: Option<&'a Part<Encoder>>,
    config: &autoencoder_kl::Config,
) -> Vec<Network<'a>> {
    let decoder = network(ComponentKind::Vae, &decoder.net.model, &decoder.bound, config);
    let encoder = encoder.map(|part| network(ComponentKind::Vae, &part.net.model, &part.bound, config));
    std::iter::once(decoder).chain(encoder).collect()
}

fn network<'a>(kind: ComponentKind, model: &'a Model, bound: &'a Bound, config: &impl Serialize) -> Network<'a> {
    // Plain structs of numbers and names: nothing that JSON has not.
    Network { kind, model, bound, config: serde_json::to_value(config).unwrap_or_default() }
}

/// diffusers writes a configuration for every component; without it, what shapes do not tell would be a guess.
fn require_configurations(source: &Source) -> Result<()> {
    let lacks = |(_, component): &(ComponentKind, &Component)| {
        component.layout == Layout::Diffusers && component.config.is_none()
    };
    source.components().find(lacks).map_or(Ok(()), |(_, component)| {
        Err(Error::NotAModel {
            path: component.origin.clone(),
            found: "no config.json in it".into(),
            hint: Some("the folder is incomplete: copy or download it again".into()),
        })
    })
}

fn bind<M>(net: M, model: impl Fn(&M) -> &Model, component: &Component, aliases: Aliases) -> Result<Part<M>> {
    let Component { index, prefix, origin, .. } = component;
    let bound = Bound::new(model(&net).manifest(), index, prefix, aliases, origin)?;
    Ok(Part { net, bound })
}

/// Shapes of a component's weights by canonical name.
fn shapes(component: &Component, aliases: Aliases) -> impl Fn(&str) -> Option<Shape> {
    move |name| bind::shape_of(&component.index, &component.prefix, aliases, name)
}

/// The transformer of `component`, without the rest of a model.
///
/// # Errors
/// As [`FluxModel::open`].
pub fn transformer(component: &Component) -> Result<Part<Flux>> {
    let config = match &component.config {
        Some(Text { text, origin }) => flux::Config::from_json(text, origin)?,
        None => flux::Config::from_shapes(shapes(component, alias::flux)).ok_or_else(|| {
            let found = "weights without its input or output layers";
            Error::mismatch(&component.origin, "transformer", "the weights of FLUX", found)
        })?,
    };
    bind(Flux::new(&config)?, |net| &net.model, component, alias::flux)
}

fn clip_part(component: &Component) -> Result<(Part<Clip>, clip::Config)> {
    let config = match &component.config {
        Some(Text { text, origin }) => clip::Config::from_json(text, origin)?,
        None => clip::Config::from_shapes(shapes(component, alias::clip), &component.origin)?,
    };
    Ok((bind(Clip::new(&config)?, |net| &net.model, component, alias::clip)?, config))
}

fn t5_part(component: &Component) -> Result<(Part<T5>, t5::Config)> {
    let config = match &component.config {
        Some(Text { text, origin }) => t5::Config::from_json(text, origin)?,
        None => t5::Config::from_shapes(shapes(component, alias::t5), &component.origin)?,
    };
    Ok((bind(T5::new(&config)?, |net| &net.model, component, alias::t5)?, config))
}

/// The autoencoder in the folder `dir`, as diffusers lays it out, without the rest of a model.
///
/// # Errors
/// As [`FluxModel::open`].
pub fn autoencoder_in(dir: &Path) -> Result<(Part<Decoder>, Part<Encoder>, autoencoder_kl::Config)> {
    let component = super::diffusers::component(dir)?;
    let (decoder, encoder, config) = autoencoder(&component)?;
    let encoder = encoder.ok_or_else(|| Error::mismatch(dir, "weights", "an encoder", "a decoder only"))?;
    Ok((decoder, encoder, config))
}

/// Decoder, encoder where the file has one, and their settings.
pub type Autoencoder = (Part<Decoder>, Option<Part<Encoder>>, autoencoder_kl::Config);

/// The autoencoder of `component`.
///
/// # Errors
/// As [`FluxModel::open`].
pub fn autoencoder(component: &Component) -> Result<Autoencoder> {
    let config = match &component.config {
        Some(Text { text, origin }) => autoencoder_kl::Config::from_json(text, origin)?,
        // Files without a configuration have the original names, which do not depend on the number of levels.
        None => {
            let shapes = shapes(component, alias::autoencoder_kl(1));
            autoencoder_kl::Config::from_shapes(shapes, &component.origin)?
        }
    };
    let aliases = alias::autoencoder_kl(config.levels());
    let decoder = bind(Decoder::new(&config)?, |net| &net.model, component, aliases)?;
    // Files for text-to-image sometimes come without the encoder.
    let encoder = match shapes(component, aliases)("encoder.conv_in.weight") {
        Some(_) => Some(bind(Encoder::new(&config)?, |net| &net.model, component, aliases)?),
        None => None,
    };
    Ok((decoder, encoder, config))
}

fn tokenizer(source: &Source, kind: ComponentKind) -> Result<(&TokenizerFiles, TokenizerConfig)> {
    let files = match kind {
        ComponentKind::TextEncoder => source.tokenizer.as_ref(),
        _ => source.tokenizer_2.as_ref(),
    };
    let files = files.ok_or_else(|| no_tokenizer(source, kind))?;
    let config = match &files.config {
        Some(Text { text, origin }) => TokenizerConfig::from_json(text, origin)?,
        None => TokenizerConfig::default(),
    };
    Ok((files, config))
}

fn no_tokenizer(source: &Source, kind: ComponentKind) -> Error {
    let name = kind.tokenizer().unwrap_or_default();
    let hint = match source.layout {
        Layout::Files => {
            let option = name.replace('_', "-");
            format!("give one with --{option}: a tokenizer.json, a folder with one, or a GGUF file that carries it")
        }
        _ => format!("transformers writes one: AutoTokenizer.from_pretrained(DIR).save_pretrained({name:?})"),
    };
    let found = format!("it has no {name} with a tokenizer.json");
    Error::NotAModel { path: source.path.clone(), found, hint: Some(hint) }
}
