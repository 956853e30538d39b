//! The one list of a model's weights: names, shapes, roles.
//!
//! Converter, binder, planner, executor and `inspect` all read a [`Manifest`]; only a model's `declare` methods
//! write one, through a [`Scope`].

pub use pinhole_quant::recipe::Role;

use crate::tensor::Shape;
use crate::{Error, Result};

/// One weight, under its canonical name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The canonical name, without a component's prefix.
    pub name: String,
    /// Its shape, in ggml order.
    pub shape: Shape,
    /// What it is for, as far as precision goes.
    pub role: Role,
}

/// A weight of one [`Manifest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(usize);

impl WeightId {
    /// Its position in the manifest.
    pub fn index(self) -> usize {
        self.0
    }
}

/// All weights of a model, in stage order.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    weights: Vec<Weight>,
}

impl Manifest {
    /// Every weight with its id, in stage order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (WeightId, &Weight)> {
        self.weights.iter().enumerate().map(|(i, weight)| (WeightId(i), weight))
    }

    /// The weight `id`.
    ///
    /// # Panics
    /// For an id of another, longer manifest.
    pub fn get(&self, id: WeightId) -> &Weight {
        &self.weights[id.0]
    }

    /// The weight that is called `name`, and its id.
    pub fn find(&self, name: &str) -> Option<(WeightId, &Weight)> {
        self.iter().find(|(_, weight)| weight.name == name)
    }

    /// The shape, in ggml order, of the weight that is called `name`.
    pub fn shape(&self, name: &str) -> Option<Shape> {
        self.find(name).map(|(_, weight)| weight.shape)
    }

    /// How many weights there are.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// How many numbers all weights hold together.
    pub fn parameters(&self) -> usize {
        self.weights.iter().map(|weight| weight.shape.elements()).sum()
    }
}

/// A place in the tree of names, where a model declares its weights.
pub struct Scope<'a> {
    manifest: &'a mut Manifest,
    declared: &'a mut Vec<WeightId>,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The root: ids of what is declared below it are added to `declared`.
    pub(crate) fn root(manifest: &'a mut Manifest, declared: &'a mut Vec<WeightId>) -> Scope<'a> {
        Scope::below(manifest, declared, "")
    }

    /// As [`root`](Scope::root), with `prefix` before every name.
    pub(crate) fn below(manifest: &'a mut Manifest, declared: &'a mut Vec<WeightId>, prefix: &str) -> Scope<'a> {
        Scope { manifest, declared, prefix: prefix.to_owned() }
    }

    /// The scope `name` below this one.
    pub fn sub(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        Scope { manifest: self.manifest, declared: self.declared, prefix: format!("{}{name}.", self.prefix) }
    }

    /// Declares `name` with extents in ggml order.
    ///
    /// # Errors
    /// [`Error::Graph`] for extents that no tensor can have (a configuration of zeros, say).
    pub fn weight(&mut self, name: &str, dims: &[usize], role: Role) -> Result<WeightId> {
        let name = format!("{}{name}", self.prefix);
        let shape = Shape::new(dims).ok_or_else(|| Error::graph("declare", format!("{name} with extents {dims:?}")))?;
        let id = WeightId(self.manifest.len());
        self.manifest.weights.push(Weight { name, shape, role });
        self.declared.push(id);
        Ok(id)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn scopes_name_weights() {
        let (mut manifest, mut declared) = (Manifest::default(), Vec::new());
        let mut root = Scope::root(&mut manifest, &mut declared);
        let mut block = root.sub("double_blocks").sub(3).weight("qkv.weight", &[8, 24], Role::MatMul).unwrap();
        assert_eq!(manifest.get(block).name, "double_blocks.3.qkv.weight");
        let mut root = Scope::root(&mut manifest, &mut declared);
        block = root.weight("bias", &[8], Role::Vector).unwrap();
        assert_eq!((block.index(), declared.len(), manifest.parameters()), (1, 2, 200));
        assert!(Scope::root(&mut manifest, &mut declared).weight("none", &[0], Role::Vector).is_err());
    }
}
