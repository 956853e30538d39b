//! IP-Adapters of FLUX.1: what a vision tower sees of pictures becomes keys and values beside those of the blocks.
//!
//! Two forms. XLabs' (reference: diffusers' `FluxIPAdapterAttnProcessor`) is in the double blocks, and is added to what they give.
//! InstantX' (reference: `IPAFluxAttnProcessor2_0` beside its weights) is in all blocks, and is added to what attention gives.
//!
//! `E` width of what is seen of a picture, `J` width of a token, `n` tokens of a picture, `P` pictures, `D` hidden, `B` batch. None
//! of it changes between steps, so that all of it is computed once a request.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `ip.tokens` | `ip.seen [E, P, B]` | `ip.tokens [J, nP, B]` |
//! | of InstantX: `ip.inner` | `ip.seen` | `ip.inner [2E, P, B]` |
//! | `ip.tokens.0..`, `ip.tokens` | `ip.inner` | some of `ip.tokens`; all of them, normalised |
//! | `ip.double.0..`, `ip.single.0..` | `ip.tokens`, `ip.scale [1]` | keys and values of the block, `[D, nP, B]` each |

use std::path::Path;

use pinhole_quant::DType;
use serde::Serialize;

use super::config::Config;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::models::layers::{LayerNorm, Linear};
use crate::stage::{Block, Build, Cadence, Lifetime, Model, Port, Symbol};
use crate::tensor::Shape;
use crate::weights::{Role, Scope};
use crate::{Error, Result};

/// `P`: how many pictures an IP-Adapter is given.
pub const IP_PICTURES: Symbol = Symbol::new("pictures of the IP-Adapter");

/// Added to the variance when tokens are normalised, and to the mean square of keys.
const EPS: f32 = 1e-5;

/// How many parts are enough that one is no larger than a block of the transformer: 72 MiB of InstantX' published adapter in F16.
const MOST_PARTS: u8 = 32;

/// Whose adapter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IpForm {
    /// XLabs': a token is a projection of what CLIP sees.
    Xlabs,
    /// InstantX': tokens are made by two layers of what SigLIP sees.
    InstantX,
}

/// The sizes of an IP-Adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IpConfig {
    /// Whose it is.
    pub form: IpForm,
    /// `E`.
    pub seen_dim: usize,
    /// `J`.
    pub token_dim: usize,
    /// `n`.
    pub tokens: usize,
    /// `D`.
    pub hidden: usize,
    /// `H`: how many heads attention has. Divides `D`.
    pub heads: usize,
    /// How many double blocks have keys and values.
    pub double: usize,
    /// How many single blocks have them.
    pub single: usize,
}

impl IpConfig {
    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. How many heads there
    /// are is the transformer's, `beside`, to say.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a weight is missing, or the sizes make no adapter of that transformer.
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path, beside: &Config) -> Result<IpConfig> {
        let shapes = Shapes::new(&shape_of, origin);
        let form = if shapes.has("ip.proj.0.weight") { IpForm::InstantX } else { IpForm::Xlabs };
        let [token_dim, ..] = shapes.dims("ip.norm.weight")?;
        let [seen_dim, numbers] = match form {
            IpForm::Xlabs => {
                let [inputs, outputs, ..] = shapes.dims("ip.proj.weight")?;
                [inputs, outputs]
            }
            IpForm::InstantX => {
                // A file of pinhole's has it in parts, as the stages take it.
                let parts = shapes.count(|i| format!("ip.proj.2.{i}.weight"));
                let outputs = match parts {
                    0 => shapes.dims("ip.proj.2.weight")?[1],
                    _ => shapes.dims("ip.proj.2.0.weight")?[1] * parts,
                };
                [shapes.dims("ip.proj.0.weight")?[0], outputs]
            }
        };
        let [_, hidden, ..] = shapes.dims("ip.double.0.k.weight")?;
        let config = IpConfig {
            form,
            seen_dim,
            token_dim,
            tokens: numbers / token_dim, // extents are never 0
            hidden,
            heads: beside.num_attention_heads,
            double: shapes.count(|i| format!("ip.double.{i}.k.weight")),
            single: shapes.count(|i| format!("ip.single.{i}.k.weight")),
        };
        config.validate(origin)?;
        config.fit(origin, beside)?;
        Ok(config)
    }

    fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("width of what is seen", self.seen_dim, MOST_WIDTH / 2)?;
        limit("width of a token", self.token_dim, MOST_WIDTH)?;
        limit("tokens of a picture", self.tokens, 1 << 12)?;
        limit("double blocks", self.double, MOST_LAYERS)?;
        config::limit(origin, "single blocks", self.single, 0..=MOST_LAYERS)
    }

    /// Refuses an adapter of another model than `beside`.
    fn fit(&self, origin: &Path, beside: &Config) -> Result<()> {
        let single = if self.form == IpForm::InstantX { beside.num_single_layers } else { 0 };
        for (what, found, expected) in [
            ("hidden width", self.hidden, beside.hidden()),
            ("width of a token", self.token_dim, beside.joint_attention_dim),
            ("double blocks", self.double, beside.num_layers),
            ("single blocks", self.single, single),
        ] {
            if found != expected {
                let error = Error::mismatch(origin, what, expected.to_string(), found.to_string());
                return Err(error.with_hint("the IP-Adapter is of another model"));
            }
        }
        Ok(())
    }

    fn numbers(&self) -> usize {
        self.tokens * self.token_dim
    }

    /// In how many parts the last projection of InstantX is computed, each with its share of a picture's tokens: it is by far the
    /// largest matrix.
    pub fn parts(&self) -> u8 {
        (1..=MOST_PARTS).rev().find(|parts| self.tokens.is_multiple_of(usize::from(*parts))).unwrap_or(1)
    }
}

/// An IP-Adapter by itself: what it has of weights.
pub struct IpAdapter {
    /// Its stages, ports and weights, as a transformer has them that is made [with](super::Flux::with) it.
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
        Declared::declare(&mut model, config)?;
        Ok(IpAdapter { model, config: config.clone() })
    }

    /// The sizes.
    pub fn config(&self) -> &IpConfig {
        &self.config
    }
}

/// The ports of an IP-Adapter that the host fills.
#[derive(Clone, Copy, Debug)]
pub struct IpPorts {
    /// `[E, P, B]`: what is seen of each picture.
    pub seen: Port,
    /// `[1]`: how much it counts.
    pub scale: Port,
}

/// An adapter within a model.
pub(super) struct Declared {
    pub(super) ports: IpPorts,
    double: Vec<Beside>,
    single: Vec<Beside>,
}

impl Declared {
    /// Declares the stages of `config` in `model`.
    pub(super) fn declare(model: &mut Model, config: &IpConfig) -> Result<Declared> {
        let batch = Symbol::BATCH.into();
        let seen = [config.seen_dim.into(), IP_PICTURES.into(), batch];
        let mut port = |name: &str, extents: &[_]| model.port(name, extents, DType::F32, Lifetime::Request);
        let ports = IpPorts { seen: port("ip.seen", &seen), scale: port("ip.scale", &[1.into()]) };
        let tokens = port("ip.tokens", &[config.token_dim.into(), IP_PICTURES * config.tokens, batch]);
        match config.form {
            IpForm::Xlabs => model.stage("ip.tokens", Cadence::Request, |scope| {
                Tokens::declare(&mut scope.sub("ip"), config, (ports.seen, tokens))
            })?,
            IpForm::InstantX => declare_tokens(model, config, (ports.seen, tokens))?,
        }
        let mut declared = Declared { ports, double: Vec::new(), single: Vec::new() };
        for (kind, count) in [("double", config.double), ("single", config.single)] {
            for i in 0..count {
                let extents = [config.hidden.into(), IP_PICTURES * config.tokens, batch];
                let mut port =
                    |of: &str| model.port(format!("ip.{kind}.{i}.{of}"), &extents, DType::F32, Lifetime::Request);
                let beside = Beside { k: port("k"), v: port("v"), heads: config.heads, form: config.form };
                model.stage(format!("ip.{kind}.{i}"), Cadence::Request, |scope| {
                    let mut scope = scope.sub("ip");
                    let mut scope = scope.sub(kind);
                    KeysAndValues::declare(&mut scope.sub(i), config, (tokens, ports.scale), beside)
                })?;
                if kind == "double" { declared.double.push(beside) } else { declared.single.push(beside) }
            }
        }
        Ok(declared)
    }

    /// What stands beside double block number `i`.
    pub(super) fn double(&self, i: usize) -> Option<Beside> {
        self.double.get(i).copied()
    }

    /// What stands beside single block number `i`.
    pub(super) fn single(&self, i: usize) -> Option<Beside> {
        self.single.get(i).copied()
    }
}

/// Declares InstantX' tokens: two layers, the second in parts, and a norm.
fn declare_tokens(model: &mut Model, config: &IpConfig, (seen, tokens): (Port, Port)) -> Result<()> {
    let (outside, within) = (config.seen_dim, 2 * config.seen_dim);
    let extents = [within.into(), IP_PICTURES.into(), Symbol::BATCH.into()];
    let inner = model.port("ip.inner", &extents, DType::F32, Lifetime::Pass);
    model.stage("ip.inner", Cadence::Request, |scope| {
        let linear = Linear::declare(&mut scope.sub("ip").sub("proj").sub(0), outside, within, Role::MatMul)?;
        Ok(Inner { linear, seen, inner })
    })?;
    let parts = usize::from(config.parts());
    for part in 0..parts {
        model.stage(format!("ip.tokens.{part}"), Cadence::Request, |scope| {
            let mut scope = scope.sub("ip");
            let mut scope = scope.sub("proj");
            let mut scope = scope.sub(2);
            let linear = Linear::declare(&mut scope.sub(part), within, config.numbers() / parts, Role::MatMul)?;
            Ok(SomeTokens { linear, inner, tokens, first: part * config.tokens / parts, of: config.tokens })
        })?;
    }
    model.stage("ip.tokens", Cadence::Request, |scope| {
        let norm = LayerNorm::declare(&mut scope.sub("ip").sub("norm"), config.token_dim, EPS)?;
        Ok(Normed { norm, tokens })
    })
}

/// XLabs': the tokens of all pictures.
struct Tokens {
    proj: Linear,
    norm: LayerNorm,
    seen: Port,
    tokens: Port,
    width: usize,
}

impl Tokens {
    fn declare(scope: &mut Scope<'_>, config: &IpConfig, (seen, tokens): (Port, Port)) -> Result<Tokens> {
        let proj = Linear::declare(&mut scope.sub("proj"), config.seen_dim, config.numbers(), Role::MatMul)?;
        let norm = LayerNorm::declare(&mut scope.sub("norm"), config.token_dim, EPS)?;
        Ok(Tokens { proj, norm, seen, tokens, width: config.token_dim })
    }
}

impl Block for Tokens {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let x = self.proj.build(b, b.read(self.seen)?)?; // [nJ, P, B]
        let [numbers, pictures, batch, _] = b.g.shape(x)?.dims();
        let x = b.g.reshape(x, &[self.width, numbers / self.width * pictures, batch])?;
        b.write(self.tokens, self.norm.build(b, x)?)
    }
}

/// The first of InstantX' layers.
struct Inner {
    linear: Linear,
    seen: Port,
    inner: Port,
}

impl Block for Inner {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.inner, b.g.gelu_erf(self.linear.build(b, b.read(self.seen)?)?)?)
    }
}

/// Some of the tokens of every picture, from number `first` on, of so many.
struct SomeTokens {
    linear: Linear,
    inner: Port,
    tokens: Port,
    first: usize,
    of: usize,
}

impl Block for SomeTokens {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let [width, ..] = b.shape(self.tokens)?.dims();
        let x = self.linear.build(b, b.read(self.inner)?)?;
        let [numbers, pictures, batch, _] = b.g.shape(x)?.dims();
        for picture in 0..pictures {
            let own = b.g.contiguous(b.g.slice(x, 1, picture, 1)?)?;
            let own = b.g.reshape(own, &[width, numbers / width, batch])?;
            b.write_tokens(self.tokens, picture * self.of + self.first, own)?;
        }
        Ok(())
    }
}

/// The tokens of all pictures, normalised.
struct Normed {
    norm: LayerNorm,
    tokens: Port,
}

impl Block for Normed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.tokens, self.norm.build(b, b.read(self.tokens)?)?)
    }
}

/// The keys and values of one block.
struct KeysAndValues {
    k: Linear,
    v: Linear,
    tokens: Port,
    scale: Port,
    beside: Beside,
}

impl KeysAndValues {
    fn declare(
        scope: &mut Scope<'_>,
        config: &IpConfig,
        (tokens, scale): (Port, Port),
        beside: Beside,
    ) -> Result<KeysAndValues> {
        let mut linear = |name| {
            let (mut scope, inputs, outputs) = (scope.sub(name), config.token_dim, config.hidden);
            match config.form {
                IpForm::Xlabs => Linear::declare(&mut scope, inputs, outputs, Role::MatMul),
                IpForm::InstantX => Linear::declare_unbiased(&mut scope, inputs, outputs, Role::MatMul),
            }
        };
        Ok(KeysAndValues { k: linear("k")?, v: linear("v")?, tokens, scale, beside })
    }
}

impl Block for KeysAndValues {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (tokens, Beside { heads, form, .. }) = (b.read(self.tokens)?, self.beside);
        let mut k = self.k.build(b, tokens)?; // [D, nP, B]
        let [hidden, count, batch, _] = b.g.shape(k)?.dims();
        if form == IpForm::InstantX {
            let normal = b.g.rms_norm(b.g.split_rows(k, heads)?, EPS)?; // [d, H, nP, B]
            k = b.g.reshape(normal, &[hidden, count, batch])?;
        }
        b.write(self.beside.k, k)?;
        // What is seen is a sum of values, so that these may be scaled as well.
        b.write(self.beside.v, b.g.mul(self.v.build(b, tokens)?, b.read(self.scale)?)?)
    }
}

/// What stands beside a block.
#[derive(Clone, Copy)]
pub(super) struct Beside {
    k: Port,
    v: Port,
    heads: usize,
    form: IpForm,
}

impl Beside {
    /// What some queries, `q [d, H, n, B]` before they are turned, see of the pictures: `[D, n, B]`.
    fn attend(self, b: &Build<'_>, q: Tensor) -> Result<Tensor> {
        let heads = |port| b.g.split_rows(b.read(port)?, self.heads);
        Attention::of(heads(self.k)?, heads(self.v)?).attend(b, q)
    }

    /// `attended [D, n, B]`, which attention gave for `q`, with what is added to that.
    pub(super) fn to_attended(of: Option<Beside>, b: &Build<'_>, attended: Tensor, q: Tensor) -> Result<Tensor> {
        match of.filter(|beside| beside.form == IpForm::InstantX) {
            Some(beside) => b.g.add(attended, beside.attend(b, q)?),
            None => Ok(attended),
        }
    }

    /// Whether it is added to what a block gives, and not to what attention does.
    pub(super) fn is_added_to_results(self) -> bool {
        self.form == IpForm::Xlabs
    }

    /// `x [D, n, B]`, which a block gave, with what is added to that.
    pub(super) fn to_result(of: Option<Beside>, b: &Build<'_>, x: Tensor, q: Tensor) -> Result<Tensor> {
        match of.filter(|beside| beside.is_added_to_results()) {
            Some(beside) => b.g.add(x, beside.attend(b, q)?),
            None => Ok(x),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Flux;
    use super::*;

    fn config(form: IpForm) -> IpConfig {
        let (seen_dim, tokens, single) = match form {
            IpForm::Xlabs => (768, 4, 0),
            IpForm::InstantX => (1152, 128, 38),
        };
        IpConfig { form, seen_dim, token_dim: 4096, tokens, hidden: 3072, heads: 24, double: 19, single }
    }

    #[test]
    fn sizes_are_read_off_the_shapes() {
        for form in [IpForm::Xlabs, IpForm::InstantX] {
            let config = config(form);
            let model = IpAdapter::new(&config).unwrap().model;
            let shape_of = |name: &str| model.manifest().shape(name);
            assert_eq!(IpConfig::from_shapes(shape_of, Path::new("f"), &Config::dev()).unwrap(), config);
            let other = Config { num_layers: 18, ..Config::dev() };
            assert!(IpConfig::from_shapes(shape_of, Path::new("f"), &other).is_err());
        }
    }

    #[test]
    fn a_transformer_has_the_weights_of_both() {
        let plain = Flux::new(&Config::dev()).unwrap().model.manifest().parameters();
        for form in [IpForm::Xlabs, IpForm::InstantX] {
            let config = config(form);
            let own = IpAdapter::new(&config).unwrap().model.manifest().parameters();
            let both = Flux::with(&Config::dev(), &[], Some(&config)).unwrap().model;
            assert_eq!(both.manifest().parameters(), plain + own);
            let last = both.at(Cadence::Request).end;
            assert!(both.stages()[last..].iter().all(|stage| stage.cadence == Cadence::Step));
        }
    }
}
