//! Networks with their weights found.

use serde::Serialize;
use serde_json::Value;

use super::{Component, Slot};
use crate::Result;
use crate::bind::alias::{Aliases, Alternative, Kind};
use crate::bind::{self, Bound, lora};
use crate::stage::Model;
use crate::tensor::Shape;
use crate::weights::Manifest;

/// A network that is a list of stages.
pub trait HasModel: Send + Sync {
    /// Its stages, ports and weights.
    fn model(&self) -> &Model;

    /// The same, to be given more weights.
    fn model_mut(&mut self) -> &mut Model;
}

/// What files call the weights of a network: [`Aliases`](crate::bind::alias::Aliases) that it owns.
pub(super) type OwnAliases = Box<dyn Fn(&str) -> Vec<Alternative> + Send + Sync>;

/// A network and where its weights are.
pub struct Part<M> {
    /// The network.
    pub net: M,
    /// Its weights.
    pub bound: Bound,
    /// The place in a model that it was loaded for.
    pub slot: &'static Slot,
    /// What kind of network it is.
    pub kind: &'static Kind,
    /// Its settings as JSON, by the names in `config.json`.
    pub config: Value,
    /// Whether the settings are those that are read off the shapes if a file brings none.
    pub from_shapes: bool,
    /// Tensors of blocks that its configuration does not have.
    pub strays: Vec<String>,
    /// What stands before its names in the file.
    prefix: String,
    aliases: OwnAliases,
}

impl<M> Part<M> {
    /// The same with `net`, whose weights are where `bound` says, in its place.
    pub(super) fn with_network(self, net: M, bound: Bound) -> Part<M> {
        Part { net, bound, ..self }
    }

    /// The same with `net` in its place, which has the settings `config` and the same weights.
    pub(super) fn with_settings(self, net: M, config: &impl Serialize) -> Part<M> {
        let config = serde_json::to_value(config).unwrap_or_default();
        Part { net, config, from_shapes: false, ..self }
    }

    /// Another network of the same file, which has some of the same weights, where `bound` says.
    pub(super) fn beside<N>(
        &self,
        net: N,
        bound: Bound,
        aliases: impl Fn(&str) -> Vec<Alternative> + Send + Sync + 'static,
    ) -> Part<N> {
        let Part { slot, kind, ref config, from_shapes, ref strays, ref prefix, .. } = *self;
        let (config, strays, prefix) = (config.clone(), strays.clone(), prefix.clone());
        Part { net, bound, slot, kind, config, from_shapes, strays, prefix, aliases: Box::new(aliases) }
    }
}

impl<M: HasModel> Part<M> {
    /// Finds the weights of `net`, which has the settings `config`, in `component`.
    ///
    /// # Errors
    /// Those of [`Bound::new`].
    pub(super) fn new(
        net: M,
        component: &Component,
        kind: &'static Kind,
        aliases: impl Fn(&str) -> Vec<Alternative> + Send + Sync + 'static,
        config: &impl Serialize,
    ) -> Result<Part<M>> {
        let Component { index, prefix, origin, .. } = component;
        let bound = Bound::new(net.model().manifest(), index, prefix, &aliases, origin)?;
        Ok(Part::bound((net, bound), component, kind, aliases, config))
    }

    /// The same of a network whose weights were found.
    pub(super) fn bound(
        (net, bound): (M, Bound),
        component: &Component,
        kind: &'static Kind,
        aliases: impl Fn(&str) -> Vec<Alternative> + Send + Sync + 'static,
        config: &impl Serialize,
    ) -> Part<M> {
        let Component { prefix, slot, .. } = component;
        // A plain struct of numbers and names holds nothing that JSON lacks.
        let config = serde_json::to_value(config).unwrap_or_default();
        let (strays, prefix, aliases) = (Vec::new(), prefix.clone(), Box::new(aliases));
        Part { net, bound, slot, kind, config, from_shapes: false, strays, prefix, aliases }
    }

    /// The same with what the file of `component` has of more blocks.
    ///
    /// # Errors
    /// Those of [`bind::refuse_parts_of_blocks`] if the component has no configuration: a network of fewer blocks would draw
    /// something else.
    pub(super) fn without_strays(self, component: &Component) -> Result<Part<M>> {
        let strays = self.strays_of(self.net.model().manifest(), component);
        self.with_strays(strays, component)
    }

    /// As [`without_strays`](Part::without_strays), where the whole network has the weights of `manifest`.
    pub(super) fn without_strays_of(self, manifest: &Manifest, component: &Component) -> Result<Part<M>> {
        let strays = self.strays_of(manifest, component);
        self.with_strays(strays, component)
    }

    fn strays_of(&self, manifest: &Manifest, component: &Component) -> Vec<String> {
        bind::strays(manifest, &component.index, &component.prefix, &self.aliases)
    }

    fn with_strays(self, strays: Vec<String>, component: &Component) -> Result<Part<M>> {
        if component.config.is_none() {
            bind::refuse_parts_of_blocks(&strays, &component.origin)?;
        }
        Ok(Part { strays, ..self })
    }

    /// The same, with `from_shapes` set if `config`, which was read off the shapes of the weights, gives its settings.
    #[must_use]
    pub(super) fn compared(self, config: Option<impl Serialize>) -> Part<M> {
        let derived = config.and_then(|config| serde_json::to_value(config).ok());
        Part { from_shapes: derived.is_some_and(|derived| derived == self.config), ..self }
    }

    /// The same as the network `net`, which has the settings `config` and the same weights, except that `name` has more columns:
    /// zeros, at the end of each row.
    ///
    /// # Errors
    /// Those of [`Bound::widen`].
    pub(super) fn widened(mut self, net: M, name: &str, config: &impl Serialize) -> Result<Part<M>> {
        self.bound.widen(self.net.model().manifest(), net.model().manifest(), name)?;
        self.config = serde_json::to_value(config).unwrap_or_default();
        Ok(Part { net, from_shapes: false, ..self })
    }

    /// What a LoRA may change of it.
    pub fn target(&mut self) -> lora::Target<'_> {
        let Part { net, bound, slot, aliases, .. } = self;
        lora::Target { slot: slot.name, model: net.model_mut(), bound, aliases }
    }

    /// The shape of its weight `name`, in ggml order.
    pub(super) fn shape(&self, name: &str) -> Option<Shape> {
        self.net.model().manifest().shape(name)
    }
}

/// A network, the place that it takes in a model, and its weights. An autoencoder has two, one for each direction.
#[derive(Clone)]
pub struct Network<'a> {
    /// The place.
    pub slot: &'static Slot,
    /// What kind of network it is.
    pub kind: &'static Kind,
    /// The stages.
    pub model: &'a Model,
    /// The weights.
    pub bound: &'a Bound,
    /// The settings as JSON, by the names in `config.json`.
    pub config: &'a Value,
    /// Whether the settings are those that are read off the shapes if a file brings none.
    pub from_shapes: bool,
    /// Tensors of blocks that its configuration does not have.
    pub strays: &'a [String],
    /// What stands before its names in the file.
    prefix: &'a str,
    aliases: &'a OwnAliases,
}

impl<'a> Network<'a> {
    /// What files call its weights.
    pub fn aliases(&self) -> Aliases<'a> {
        self.aliases
    }

    /// What a LoRA finds there.
    pub fn base(&self) -> lora::Base<'a> {
        let Network { slot, model, bound, aliases, .. } = *self;
        lora::Base { slot: slot.name, manifest: model.manifest(), bound, aliases }
    }
}

/// Something that networks are in.
pub trait Networks: Send + Sync {
    /// Its networks, in the order of bundles.
    fn networks(&self) -> Vec<Network<'_>>;
}

impl<M: HasModel> Networks for Part<M> {
    fn networks(&self) -> Vec<Network<'_>> {
        let Part { net, bound, slot, kind, config, from_shapes, strays, prefix, aliases } = self;
        let (model, from_shapes) = (net.model(), *from_shapes);
        vec![Network { slot, kind, model, bound, config, from_shapes, strays, prefix, aliases }]
    }
}

/// As [`unused`], without what whole models of this kind have besides.
pub fn left_over<'a>(networks: &[Network<'a>], slot: &Slot) -> Vec<&'a str> {
    let Some(network) = networks.iter().find(|network| network.slot == slot) else { return Vec::new() };
    let mut left = unused(networks, slot);
    left.retain(|name| !network.kind.has_beside(name.strip_prefix(network.prefix).unwrap_or(name)));
    left
}

/// The tensors of the component at `slot` that no weight of `networks` is read from.
pub fn unused<'a>(networks: &[Network<'a>], slot: &Slot) -> Vec<&'a str> {
    let bounds: Vec<&Bound> =
        networks.iter().filter(|network| network.slot == slot).map(|network| network.bound).collect();
    // Each half of an autoencoder leaves the other's weights: unused is what both leave.
    let [first, rest @ ..] = bounds.as_slice() else { return Vec::new() };
    let unused = first.unused().iter().filter(|name| rest.iter().all(|bound| bound.unused().contains(name)));
    unused.map(String::as_str).collect()
}
