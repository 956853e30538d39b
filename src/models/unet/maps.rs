//! The maps between layers, as ports.

use pinhole_quant::DType;

use super::config::MOST_LEVELS;
use crate::ggml::Tensor;
use crate::stage::{Build, Extent, Lifetime, Model, Port, Symbol};
use crate::{Error, Result};

/// How many tokens the map of each level is.
pub(super) const TOKENS: [Symbol; MOST_LEVELS] = [
    Symbol::new("tokens of level 0"),
    Symbol::new("tokens of level 1"),
    Symbol::new("tokens of level 2"),
    Symbol::new("tokens of level 3"),
    Symbol::new("tokens of level 4"),
    Symbol::new("tokens of level 5"),
    Symbol::new("tokens of level 6"),
    Symbol::new("tokens of level 7"),
];

/// A port of so many extents that holds for a request.
pub(super) fn input(model: &mut Model, name: &str, extents: &[Extent]) -> Port {
    model.port(name, extents, DType::F32, Lifetime::Request)
}

/// The number of a level, as extents count halvings.
pub(super) fn halvings(level: usize) -> Result<u8> {
    u8::try_from(level).map_err(|_| Error::graph("declare", format!("{level} levels")))
}

/// A map of so many channels at a level, of `items` of the batch.
pub(super) fn map_of(model: &mut Model, name: &str, (level, channels): (usize, usize), items: Symbol) -> Result<Port> {
    let times = halvings(level)?;
    let (width, height) = (Symbol::LATENT_WIDTH.halved(times), Symbol::LATENT_HEIGHT.halved(times));
    Ok(model.port(name, &[width, height, channels.into(), items.into()], DType::F32, Lifetime::Pass))
}

/// The first `count` of dimension `dim` of `x`.
pub(super) fn first(b: &Build<'_>, x: Tensor, dim: usize, count: usize) -> Result<Tensor> {
    match b.g.shape(x)?.dims()[dim] == count {
        true => Ok(x),
        false => b.g.slice(x, dim, 0, count),
    }
}
