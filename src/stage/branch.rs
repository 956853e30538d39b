//! Branches: what is added to the products of weights that a model has, as a LoRA does, without a word in the model's file.

use std::collections::HashMap;
use std::ops::Range;

use super::{Build, Model};
use crate::weights::{Role, Scope, WeightId};
use crate::{Error, Result};

/// A change beside a matrix or a convolution: `scale * gain * form(intake * x)` is added to some of its outputs, before its bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    /// The outputs of the weight that it is added to.
    pub rows: Range<usize>,
    /// Which of the outputs of `form` comes first there.
    pub from: usize,
    /// What is computed.
    pub form: Form,
    /// A factor of all of it.
    pub scale: f32,
    /// A factor for each input, `[inputs]`.
    pub intake: Option<WeightId>,
    /// A factor for each of `rows`.
    pub gain: Option<WeightId>,
}

/// What a [`Branch`] computes of its input.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Matrices (or kernels) one after another: down and up of a low-rank change, or one that is as large as the weight. Of
    /// kernels, the first that is larger than one pixel has the convolution's stride and padding.
    Chain(Vec<WeightId>),
    /// The Kronecker product of two such chains: output `o1 * O2 + o2` of input `i1 * I2 + i2` is `left[o1, i1] * right[o2, i2]`.
    Kronecker {
        /// Which block: matrices.
        left: Vec<WeightId>,
        /// Within a block: matrices, or kernels.
        right: Vec<WeightId>,
    },
    /// The product with the weight itself, so that a factor for each row or column of it can be had.
    Product,
}

/// The branches of a model by the weight that they belong to.
#[derive(Clone, Debug, Default)]
pub(super) struct Branches(HashMap<WeightId, Vec<Branch>>);

impl Branches {
    pub(super) fn of(&self, id: WeightId) -> &[Branch] {
        self.0.get(&id).map_or(&[], Vec::as_slice)
    }
}

impl Model {
    /// Declares one more weight, `name`, wherever `beside` is needed: in every stage that has it, or on the host.
    ///
    /// # Errors
    /// [`Error::Graph`] for extents that no tensor can have, or a weight of another model.
    pub fn weight_beside(&mut self, beside: WeightId, name: &str, dims: &[usize], role: Role) -> Result<WeightId> {
        let stages: Vec<usize> = self.stages_of(beside);
        let on_host = self.host_weights.contains(&beside);
        if stages.is_empty() && !on_host {
            return Err(Error::graph("declare", format!("{name} beside {beside:?}, which no stage has")));
        }
        let mut declared = Vec::new();
        let id = Scope::root(&mut self.manifest, &mut declared).weight(name, dims, role)?;
        stages.into_iter().for_each(|stage| self.stages[stage].weights.push(id));
        if on_host {
            self.host_weights.push(id);
        }
        Ok(id)
    }

    /// The positions of the stages that need the weight `id`.
    pub fn stages_of(&self, id: WeightId) -> Vec<usize> {
        (0..self.stages.len()).filter(|&stage| self.stages[stage].weights.contains(&id)).collect()
    }

    /// Whether the weight `id` stays on the host.
    pub fn is_on_host(&self, id: WeightId) -> bool {
        self.host_weights.contains(&id)
    }

    /// Adds `branch` to the matrix or convolution `to`. Its weights were declared [beside](Self::weight_beside) that.
    pub fn branch(&mut self, to: WeightId, branch: Branch) {
        self.branches.0.entry(to).or_default().push(branch);
    }

    /// The branches of the weight `id`, in the order in which they were added.
    pub fn branches(&self, id: WeightId) -> &[Branch] {
        self.branches.of(id)
    }
}

impl<'a> Build<'a> {
    /// The branches of the weight `id`. The layers that multiply with weights ask for them, and models do not.
    pub(crate) fn branches(&self, id: WeightId) -> &'a [Branch] {
        self.branches.of(id)
    }
}
