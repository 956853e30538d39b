//! FLUX.1 Redux: from what SigLIP makes of a picture to tokens beside those of the prompt (Black Forest Labs; reference: diffusers'
//! `ReduxImageEncoder`).
//!
//! `E` width of the vision tower, `J` width of the prompt's hidden states, `T` tokens of the picture.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `redux` | `seen [E, T]` | `tokens [J, T]` |

use std::path::Path;

use pinhole_quant::DType;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self, MOST_WIDTH, Shapes};
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Cadence, Lifetime, Model, Port, Symbol};
use crate::tensor::Shape;
use crate::weights::Role;

/// The settings, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// `E`.
    pub redux_dim: usize,
    /// `J`.
    pub txt_in_features: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { redux_dim: 1152, txt_in_features: 4096 }
    }
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) if it is no such configuration, [`Error::Mismatch`](crate::Error::Mismatch) if
    /// it makes no model.
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) if a weight is missing.
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [redux_dim, ..] = shapes.dims("redux_up.weight")?;
        let [_, txt_in_features, ..] = shapes.dims("redux_down.weight")?;
        let config = Config { redux_dim, txt_in_features };
        config.validate(origin)?;
        Ok(config)
    }

    fn validate(&self, origin: &Path) -> Result<()> {
        config::limit(origin, "redux_dim", self.redux_dim, 1..=MOST_WIDTH)?;
        config::limit(origin, "txt_in_features", self.txt_in_features, 1..=MOST_WIDTH / 3)
    }
}

/// The embedder.
pub struct Redux {
    /// Its stage, ports and weights.
    pub model: Model,
    /// `[E, T]`: in.
    pub seen: Port,
    /// `[J, T]`: out.
    pub tokens: Port,
    config: Config,
}

impl Redux {
    /// The embedder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`](crate::Error::Graph) for sizes that no tensor can have.
    pub fn new(config: &Config) -> Result<Redux> {
        let mut model = Model::new();
        let Config { redux_dim, txt_in_features } = *config;
        let mut port = |name: &str, width: usize| {
            model.port(name, &[width.into(), Symbol::IMAGE_TOKENS.into()], DType::F32, Lifetime::Pass)
        };
        let (seen, tokens) = (port("seen", redux_dim), port("tokens", txt_in_features));
        model.stage("redux", Cadence::Request, |scope| {
            let up = Linear::declare(&mut scope.sub("redux_up"), redux_dim, 3 * txt_in_features, Role::MatMul)?;
            let down =
                Linear::declare(&mut scope.sub("redux_down"), 3 * txt_in_features, txt_in_features, Role::MatMul)?;
            Ok(Embedder { up, down, seen, tokens })
        })?;
        Ok(Redux { model, seen, tokens, config: config.clone() })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

struct Embedder {
    up: Linear,
    down: Linear,
    seen: Port,
    tokens: Port,
}

impl Block for Embedder {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.tokens(self.seen, |x, at| {
            let inner = b.g.silu(self.up.build(b, x)?)?; // [3J, n]
            b.write_tokens(self.tokens, at.start, self.down.build(b, inner)?)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_size() {
        let redux = Redux::new(&Config::default()).unwrap();
        assert_eq!(redux.model.manifest().parameters(), 64_503_808);
        assert_eq!(
            Config::from_shapes(|name| redux.model.manifest().shape(name), Path::new("f")).unwrap(),
            Config::default()
        );
    }
}
