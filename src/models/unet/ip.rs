//! IP-Adapters of Stable Diffusion: what a vision tower sees of pictures becomes tokens, which the UNet looks at beside those of the
//! prompt.
//!
//! Follows *IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models* (Ye et al., arXiv:2308.06721), and
//! `IPAdapterAttnProcessor2_0` of diffusers. Three forms: a projection of the one vector that CLIP gives for a picture, a
//! [resampler](crate::models::resampler) over all that its last but one layer says (Plus), or two layers over the embedding of a face
//! (FaceID), which comes with low-rank changes of the UNet's attentions. Tokens are made where prompts are encoded, by
//! a [`Projector`]; of each attention to the prompt, the UNet makes keys and values of them once a request.
//!
//! `E` width of what is seen, `J` width of a token, `n` tokens of a picture, `P` pictures, `C` channels of an attention, `B` batch.
//!
//! | stage of the projector | in                     | out             |
//! |------------------------|------------------------|-----------------|
//! | `ip.tokens`            | `ip.seen [E]`          | `ip.made [J, n]` |
//! | those of a resampler   | `seen [E, T]`          | `tokens [J, n]` |
//!
//! | stage of the UNet | in                               | out                                               |
//! |-------------------|----------------------------------|---------------------------------------------------|
//! | `ip.0..`          | `ip.tokens [J, nP, B]`, `ip.scale [1]` | keys and values of the attention, `[C, nP, B]` each |

use std::collections::HashMap;
use std::path::Path;

use pinhole_quant::DType;
use serde::Serialize;

use super::config::Config;
use super::layout::{Kind, layers};
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::models::layers::{LayerNorm, Linear};
use crate::models::resampler::{self, Resampler};
use crate::stage::{Block, Build, Cadence, Lifetime, Model, Port, Symbol};
use crate::tensor::Shape;
use crate::weights::{Role, Scope};
use crate::{Error, Result};

/// `P`: how many pictures an IP-Adapter is given.
pub const IP_PICTURES: Symbol = Symbol::new("pictures of the IP-Adapter");

/// What stands before the names of a resampler's weights.
const RESAMPLER: &str = "ip.resampler.";

/// Added to the variance when tokens are normalised: PyTorch's default.
const EPS: f32 = 1e-5;

/// How tokens are made of what is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IpForm {
    /// By a projection of one vector, `E` wide, to so many tokens.
    Projection {
        /// `E`.
        seen_dim: usize,
        /// `n`.
        tokens: usize,
    },
    /// By a resampler.
    Resampler(resampler::Config),
    /// Of a face: by two layers over one embedding, `E` wide.
    Face {
        /// `E`.
        seen_dim: usize,
        /// Width between the layers.
        hidden_dim: usize,
        /// `n`.
        tokens: usize,
    },
}

/// The sizes of an IP-Adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IpConfig {
    /// How tokens are made.
    pub form: IpForm,
    /// `J`.
    pub token_dim: usize,
    /// `C` of each attention to the prompt, in the order of files: on the way down, on the way up, in the middle.
    pub channels: Vec<usize>,
}

impl IpConfig {
    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a weight is missing, or the sizes make no adapter.
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<IpConfig> {
        let shapes = Shapes::new(&shape_of, origin);
        let form = match shapes.has("ip.resampler.latents") {
            true => IpForm::Resampler(resampler::Config::from_shapes(
                |name: &str| shape_of(&format!("{RESAMPLER}{name}")),
                origin,
            )?),
            false if shapes.has("ip.proj.0.weight") => {
                let [seen_dim, hidden_dim, ..] = shapes.dims("ip.proj.0.weight")?;
                let [_, numbers, ..] = shapes.dims("ip.proj.2.weight")?;
                let [token_dim, ..] = shapes.dims("ip.norm.weight")?;
                IpForm::Face { seen_dim, hidden_dim, tokens: numbers / token_dim } // extents are never 0
            }
            false => {
                let [seen_dim, numbers, ..] = shapes.dims("ip.proj.weight")?;
                let [token_dim, ..] = shapes.dims("ip.norm.weight")?;
                IpForm::Projection { seen_dim, tokens: numbers / token_dim } // extents are never 0
            }
        };
        let key = |i: usize| format!("ip.blocks.{i}.k.weight");
        let [token_dim, ..] = shapes.dims(&key(0))?;
        let mut channels = Vec::new();
        for i in 0..shapes.count(key) {
            channels.push(shapes.dims(&key(i))?[1]);
        }
        let config = IpConfig { form, token_dim, channels };
        config.validate(origin)?;
        Ok(config)
    }

    fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("width of what is seen", self.seen_dim(), MOST_WIDTH)?;
        limit("width of a token", self.token_dim, MOST_WIDTH)?;
        limit("tokens of a picture", self.tokens(), 1 << 12)?;
        limit("attentions", self.channels.len(), 16 * MOST_LAYERS)?;
        if let IpForm::Resampler(resampler) = &self.form {
            let found = resampler.output_dim;
            config::require(
                origin,
                "output_dim of the resampler",
                found == self.token_dim,
                || format!("the width of a token, {}", self.token_dim),
                found,
            )?;
        }
        Ok(())
    }

    /// Refuses an adapter of another model than `unet`. `origin` holds the adapter.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn fit(&self, origin: &Path, unet: &Config) -> Result<()> {
        let of_unet: Vec<usize> = attentions(unet).into_iter().map(|(_, channels)| channels).collect();
        let differ = self.channels.iter().zip(&of_unet).position(|(found, expected)| found != expected);
        let at = differ.map(|i| (format!("channels of attention {i}"), of_unet[i], self.channels[i]));
        let wrong = [
            (self.token_dim != unet.cross_attention_dim)
                .then(|| ("width of a token".to_owned(), unet.cross_attention_dim, self.token_dim)),
            (self.channels.len() != of_unet.len())
                .then(|| ("attentions to the prompt".to_owned(), of_unet.len(), self.channels.len())),
            at,
        ];
        match wrong.into_iter().flatten().next() {
            Some((at, expected, found)) => {
                let error = Error::mismatch(origin, at, format!("{expected}, as the UNet has"), found.to_string());
                Err(error.with_hint("the IP-Adapter is of another model"))
            }
            None => Ok(()),
        }
    }

    /// `E`.
    pub fn seen_dim(&self) -> usize {
        match &self.form {
            IpForm::Projection { seen_dim, .. } | IpForm::Face { seen_dim, .. } => *seen_dim,
            IpForm::Resampler(resampler) => resampler.embedding_dim,
        }
    }

    /// `n`.
    pub fn tokens(&self) -> usize {
        match &self.form {
            IpForm::Projection { tokens, .. } | IpForm::Face { tokens, .. } => *tokens,
            IpForm::Resampler(resampler) => resampler.num_queries,
        }
    }
}

/// The attentions to the prompt of a UNet in the order in which files of adapters have them: the names of their blocks, and their
/// channels. That is the order of diffusers' modules, in which the middle is the last.
fn attentions(unet: &Config) -> Vec<(String, usize)> {
    let mut layers = layers(unet);
    layers.sort_by_key(|layer| match layer.name.split('.').next() {
        Some("input_blocks") => 0,
        Some("output_blocks") => 1,
        _ => 2,
    });
    let mut all = Vec::new();
    for layer in layers {
        if let Kind::Transformer { channels, depth, .. } = layer.kind {
            all.extend((0..depth).map(|block| (format!("{}.{block}", layer.name), channels)));
        }
    }
    all
}

/// The attentions of a UNet by their names, with the numbers that adapters have for them: diffusers counts those within the picture, too.
pub fn ip_attentions(unet: &Config) -> HashMap<String, usize> {
    let mut numbers = HashMap::new();
    for (i, (block, _)) in attentions(unet).into_iter().enumerate() {
        if let Some((layer, block)) = block.rsplit_once('.') {
            for (attention, number) in [("attn1", 2 * i), ("attn2", 2 * i + 1)] {
                numbers.insert(format!("{layer}.transformer_blocks.{block}.{attention}"), number);
            }
        }
    }
    numbers
}

/// An IP-Adapter by itself: what its file has of weights.
pub struct IpAdapter {
    /// Its stages, ports and weights.
    pub model: Model,
    config: IpConfig,
}

impl IpAdapter {
    /// The adapter that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for sizes that no tensor can have.
    pub fn new(config: &IpConfig) -> Result<IpAdapter> {
        let mut model = Model::new();
        declare_projector(&mut model, config)?;
        Declared::declare(&mut model, config, Vec::new())?;
        Ok(IpAdapter { model, config: config.clone() })
    }

    /// The sizes.
    pub fn config(&self) -> &IpConfig {
        &self.config
    }
}

/// What makes tokens of what is seen of a picture.
pub struct Projector {
    /// Its stages, ports and weights, by the names that the adapter has for these.
    pub model: Model,
    /// `[E]`, or `[E, T]` with [`Symbol::IMAGE_TOKENS`] for `T`: in.
    pub seen: Port,
    /// `[J, n]`: out.
    pub tokens: Port,
}

impl Projector {
    /// That of the adapter that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for sizes that no tensor can have.
    pub fn new(config: &IpConfig) -> Result<Projector> {
        let mut model = Model::new();
        let (seen, tokens) = declare_projector(&mut model, config)?;
        Ok(Projector { model, seen, tokens })
    }
}

/// Declares the stages that make tokens. Gives the ports of what is seen and of the tokens.
fn declare_projector(model: &mut Model, config: &IpConfig) -> Result<(Port, Port)> {
    if let IpForm::Resampler(resampler) = &config.form {
        return model.within_passes((RESAMPLER, None), |model| Resampler::declare(model, resampler));
    }
    let (seen_dim, count, width) = (config.seen_dim(), config.tokens(), config.token_dim);
    let seen = model.port("ip.seen", &[seen_dim.into()], DType::F32, Lifetime::Pass);
    let tokens = model.port("ip.made", &[width.into(), count.into()], DType::F32, Lifetime::Pass);
    model.stage("ip.tokens", Cadence::Request, |s| {
        let mut proj = Vec::new();
        if let IpForm::Face { hidden_dim, .. } = config.form {
            proj.push(Linear::declare(&mut s.sub("ip.proj.0"), seen_dim, hidden_dim, Role::MatMul)?);
            proj.push(Linear::declare(&mut s.sub("ip.proj.2"), hidden_dim, count * width, Role::MatMul)?);
        } else {
            proj.push(Linear::declare(&mut s.sub("ip.proj"), seen_dim, count * width, Role::MatMul)?);
        }
        let norm = LayerNorm::declare(&mut s.sub("ip.norm"), width, EPS)?;
        Ok(Tokens { proj, norm, seen, tokens })
    })?;
    Ok((seen, tokens))
}

/// The tokens of one picture, or of one face.
struct Tokens {
    /// One layer, or several with GELU between them.
    proj: Vec<Linear>,
    norm: LayerNorm,
    seen: Port,
    tokens: Port,
}

impl Block for Tokens {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut numbers = b.read(self.seen)?;
        for (i, layer) in self.proj.iter().enumerate() {
            let x = if i > 0 { b.g.gelu_erf(numbers)? } else { numbers };
            numbers = layer.build(b, x)?; // in the end [nJ]
        }
        let [width, count, ..] = b.shape(self.tokens)?.dims();
        b.write(self.tokens, self.norm.build(b, b.g.reshape(numbers, &[width, count])?)?)
    }
}

/// The ports of an IP-Adapter that the host fills.
#[derive(Clone, Copy, Debug)]
pub struct IpPorts {
    /// `[J, nP, B]`: the tokens of all pictures.
    pub tokens: Port,
    /// `[1]`: how much they count.
    pub scale: Port,
}

/// An adapter within a UNet.
pub(super) struct Declared {
    pub(super) ports: IpPorts,
    /// What each attention looks at, by the name of its block.
    beside: Vec<(String, Beside)>,
}

impl Declared {
    /// Declares what is computed once a request of the adapter `config`, for the blocks `names`.
    fn declare(model: &mut Model, config: &IpConfig, names: Vec<String>) -> Result<Declared> {
        let (batch, count) = (Symbol::BATCH.into(), IP_PICTURES * config.tokens());
        let mut port = |name: &str, extents: &[_]| model.port(name, extents, DType::F32, Lifetime::Request);
        let ports = IpPorts {
            tokens: port("ip.tokens", &[config.token_dim.into(), count, batch]),
            scale: port("ip.scale", &[1.into()]),
        };
        let mut beside = Vec::with_capacity(config.channels.len());
        let mut names = names.into_iter();
        for (i, &channels) in config.channels.iter().enumerate() {
            let extents = [channels.into(), count, batch];
            let mut port = |of: &str| model.port(format!("ip.{i}.{of}"), &extents, DType::F32, Lifetime::Request);
            let own = Beside { k: port("k"), v: port("v") };
            model.stage(format!("ip.{i}"), Cadence::Request, |s| {
                let mut s = s.sub("ip.blocks");
                KeysAndValues::declare(&mut s.sub(i), (config.token_dim, channels), ports, own)
            })?;
            beside.push((names.next().unwrap_or_default(), own));
        }
        Ok(Declared { ports, beside })
    }

    /// The same for the blocks of `unet`.
    pub(super) fn within(model: &mut Model, config: &IpConfig, unet: &Config) -> Result<Declared> {
        Declared::declare(model, config, attentions(unet).into_iter().map(|(name, _)| name).collect())
    }

    /// What stands beside the prompt for the block `name`.
    pub(super) fn of(&self, name: &str) -> Option<Beside> {
        self.beside.iter().find(|(known, _)| known == name).map(|(_, beside)| *beside)
    }
}

/// The keys and values of one attention.
struct KeysAndValues {
    k: Linear,
    v: Linear,
    from: IpPorts,
    to: Beside,
}

impl KeysAndValues {
    fn declare(
        s: &mut Scope<'_>,
        (width, channels): (usize, usize),
        from: IpPorts,
        to: Beside,
    ) -> Result<KeysAndValues> {
        let mut linear = |name| Linear::declare_unbiased(&mut s.sub(name), width, channels, Role::MatMul);
        Ok(KeysAndValues { k: linear("k")?, v: linear("v")?, from, to })
    }
}

impl Block for KeysAndValues {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let tokens = b.read(self.from.tokens)?; // [J, nP, B]
        b.write(self.to.k, self.k.build(b, tokens)?)?;
        // What is seen is a sum of values, so that these may be scaled as well.
        b.write(self.to.v, b.g.mul(self.v.build(b, tokens)?, b.read(self.from.scale)?)?)
    }
}

/// What an attention looks at beside the prompt.
#[derive(Clone, Copy)]
pub(super) struct Beside {
    /// `[C, nP, B]` each.
    k: Port,
    v: Port,
}

impl Beside {
    /// The same as heads, to look at.
    pub(super) fn attention(self, b: &Build<'_>, heads: usize) -> Result<Attention> {
        let split = |port| -> Result<Tensor> { b.g.split_rows(b.read(port)?, heads) };
        Ok(Attention::of(split(self.k)?, split(self.v)?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Unet;
    use super::*;

    fn config(unet: &Config, form: IpForm) -> IpConfig {
        let channels = attentions(unet).into_iter().map(|(_, channels)| channels).collect();
        IpConfig { form, token_dim: unet.cross_attention_dim, channels }
    }

    fn forms(token_dim: usize) -> [IpForm; 3] {
        let resampler = resampler::Config {
            embedding_dim: 1280,
            dim: 768,
            depth: 4,
            heads: 12,
            dim_head: 64,
            num_queries: 16,
            ff_inner_dim: 3072,
            output_dim: token_dim,
        };
        let face = IpForm::Face { seen_dim: 512, hidden_dim: 1024, tokens: 4 };
        [IpForm::Projection { seen_dim: 1024, tokens: 4 }, IpForm::Resampler(resampler), face]
    }

    #[test]
    fn sizes_are_read_off_the_shapes() {
        for unet in [Config::sd1(), Config::sdxl()] {
            for form in forms(unet.cross_attention_dim) {
                let config = config(&unet, form);
                let model = IpAdapter::new(&config).unwrap().model;
                let found = IpConfig::from_shapes(|name| model.manifest().shape(name), Path::new("f")).unwrap();
                assert_eq!(found, config);
                found.fit(Path::new("f"), &unet).unwrap();
                let error = found.fit(Path::new("f"), &Config::sd2()).unwrap_err();
                assert!(error.to_string().contains("width of a token: expected 1024, as the UNet has"), "{error}");
            }
        }
    }

    #[test]
    fn published_sizes() {
        let [plain, ..] = forms(768);
        let adapter = IpAdapter::new(&config(&Config::sd1(), plain)).unwrap().model;
        // ip-adapter_sd15: 16 attentions, and a projection of 1024 to four tokens.
        assert_eq!(adapter.manifest().parameters(), 22_319_616);
    }

    #[test]
    fn a_unet_has_the_weights_of_both() {
        let unet = Config::sd1();
        let plain = Unet::new(&unet).unwrap().model.manifest().parameters();
        for form in forms(768) {
            let config = config(&unet, form);
            let own = IpAdapter::new(&config).unwrap().model.manifest().parameters();
            let projector = Projector::new(&config).unwrap().model.manifest().parameters();
            let both = Unet::with(&unet, &[], Some(&config)).unwrap().model;
            assert_eq!(both.manifest().parameters() + projector, plain + own);
            let last = both.at(Cadence::Request).end;
            assert!(both.stages()[last..].iter().all(|stage| stage.cadence == Cadence::Step));
        }
    }

    #[test]
    fn attentions_have_numbers() {
        let numbers = ip_attentions(&Config::sdxl());
        assert_eq!(numbers.len(), 140);
        assert_eq!(numbers["input_blocks.4.1.transformer_blocks.1.attn1"], 2);
        assert_eq!(numbers["middle_block.1.transformer_blocks.9.attn2"], 139);
    }

    #[test]
    fn the_middle_is_the_last() {
        let names: Vec<String> = attentions(&Config::sd1()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            (names.len(), names[0].as_str(), names[15].as_str()),
            (16, "input_blocks.1.1.0", "middle_block.1.0")
        );
    }
}
