//! Ports: the tensors that live between stages.

use pinhole_quant::DType;

use super::dims::{Dims, Extent, Symbol};
use crate::tensor::{MAX_DIMS, Shape};
use crate::{Error, Result};

/// How long a port's contents are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// To the end of the request, once it is written: modulation, rotary tables, position bias.
    Request,
    /// Within one pass over the stages of a request or of a step: alive from its writer to its last reader. If the host fills it, it
    /// is alive from the start of the pass; if the host reads it, to the end, or to where it is [decided](super::Part) what a step skips, if
    /// it is written before that. Undefined in the next pass.
    Pass,
}

/// A tensor that outlives a stage.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Its name, for messages and plans.
    pub name: String,
    /// Its extents in ggml order.
    pub extents: Vec<Extent>,
    /// F32, or I32 for indices.
    pub dtype: DType,
    /// How long its contents are needed.
    pub lifetime: Lifetime,
    /// Whether it is of a network that computes for the first guidance pass, and whose results count for the others as well.
    pub of_first_pass: bool,
}

impl PortSpec {
    /// Its shape for a request.
    ///
    /// # Errors
    /// [`Error::Graph`] where the extents overflow, or a symbol is zero or has no value.
    pub fn shape(&self, dims: &Dims) -> Result<Shape> {
        resolve(&self.name, &self.extents, dims)
    }

    /// Whether its contents are those of a guidance pass, or of several.
    pub(crate) fn differs_between_passes(&self) -> bool {
        let symbols = [Symbol::BATCH, Symbol::CONDITIONS, Symbol::TABLES];
        !self.of_first_pass && self.extents.iter().any(|extent| symbols.iter().any(|&symbol| extent.is_of(symbol)))
    }
}

/// The shape of what is called `name`.
pub(super) fn resolve(name: &str, extents: &[Extent], dims: &Dims) -> Result<Shape> {
    let extents = extents.iter().map(|extent| extent.resolve(dims)).collect::<Result<Vec<usize>>>();
    let extents = extents.map_err(|error| Error::graph("port", format!("{name}: {error}")))?;
    let shape = if extents.len() <= MAX_DIMS { Shape::new(&extents) } else { None };
    shape.ok_or_else(|| Error::graph("port", format!("{name} has impossible extents {extents:?}")))
}

/// A port of one [`Model`](super::Model).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port(pub(super) usize);

impl Port {
    /// Its position among the model's ports.
    pub fn index(self) -> usize {
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn extents_resolve_with_the_request() {
        let extents = vec![256.into(), Symbol::IMAGE_TOKENS.into(), Symbol::BATCH * 2];
        let (name, dtype, lifetime) = ("img".to_owned(), DType::F32, Lifetime::Pass);
        let port = PortSpec { name, extents, dtype, lifetime, of_first_pass: false };
        let dims = Dims::new().with(Symbol::IMAGE_TOKENS, 117).with(Symbol::BATCH, 1);
        assert_eq!(port.shape(&dims).unwrap(), [256, 117, 2]);
        assert!(port.shape(&dims.clone().with(Symbol::BATCH, 0)).is_err());
        assert!(port.shape(&dims.with(Symbol::BATCH, usize::MAX)).is_err());
        let error = port.shape(&Dims::new()).unwrap_err().to_string();
        assert!(error.contains("img: ") && error.contains("no image tokens"), "{error}");
    }
}
