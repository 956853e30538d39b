//! A way through layers, as their stages are declared: the UNet's own, or that of a ControlNet.

use std::vec::IntoIter;

use pinhole_quant::DType;

use super::config::Config;
use super::embedding::{Embedding, Projection, embedding_width};
use super::ip::Declared as DeclaredIp;
use super::layout::{Kind, Layer};
use super::maps::{TOKENS, input, map_of};
use super::ports::Ports;
use super::resnet::{Convolve, Resnet, ResnetPlaces, Upsample};
use super::transformer::{ProjIn, ProjOut, TransformerBlock};
use crate::models::layers::{Conv2d, Linear};
use crate::stage::{Cadence, Lifetime, Model, Port, Symbol};
use crate::weights::Role;
use crate::{Error, Result};

/// The stages of a request. Gives the port of what each residual block adds, in the order of `layers`. `told` is the port of the kinds of
/// pictures, and its width.
pub(super) fn declare_embeddings(
    model: &mut Model,
    config: &Config,
    ports: &Ports,
    (layers, told): (&[Layer], Option<(usize, Port)>),
) -> Result<Vec<Port>> {
    let width = embedding_width(config);
    let conditions = |width: usize| [width.into(), Symbol::CONDITIONS.into()];
    let embedding = input(model, "embedding", &conditions(width));
    model.stage("embedding", Cadence::Request, |s| Embedding::declare(s, config, ports, (told, embedding)))?;
    let mut added = Vec::new();
    for layer in layers {
        let Kind::Resnet { outputs, .. } = layer.kind else { continue };
        let name = format!("{}.embedding", layer.name);
        let to = input(model, &name, &conditions(outputs));
        model.stage(name, Cadence::Request, |s| {
            Projection::declare(&mut s.sub(&layer.name), (width, outputs), (embedding, to))
        })?;
        added.push(to);
    }
    Ok(added)
}

/// A way through layers that are being declared.
pub(super) struct Path<'a> {
    pub(super) config: &'a Config,
    pub(super) ports: &'a Ports,
    /// The items of the batch that are on their way.
    pub(super) items: Symbol,
    /// Where the last layer left its map.
    pub(super) from: Port,
    /// Maps that a layer on the way up is joined to: last kept, first used.
    pub(super) kept: Vec<Port>,
    /// What residual blocks add.
    pub(super) added: IntoIter<Port>,
    /// What attentions look at beside the prompt.
    pub(super) ip: Option<&'a DeclaredIp>,
}

impl Path<'_> {
    /// Declares `layer`.
    pub(super) fn layer(&mut self, model: &mut Model, layer: &Layer) -> Result<()> {
        let (Layer { name, level, kind, kept }, config, from) = (layer, self.config, self.from);
        if let Kind::Transformer { .. } = kind {
            self.from = self.transformer(model, layer)?;
        } else {
            let to = map_of(model, name, (*level, layer.channels()), self.items)?;
            match *kind {
                Kind::Resnet { inputs, outputs, joins } => {
                    let joined = if joins { self.kept.pop() } else { None };
                    let added = self.added.next();
                    let added = added.ok_or_else(|| Error::graph("declare", format!("{name} has no embedding")))?;
                    let places = ResnetPlaces { from, joined, added, condition: self.ports.condition, to };
                    model.stage(name, Cadence::Step, |s| {
                        Resnet::declare(&mut s.sub(name), config, (inputs, outputs), places)
                    })?;
                }
                Kind::Upsample { channels } => {
                    model.stage(name, Cadence::Step, |s| Upsample::declare(&mut s.sub(name), channels, (from, to)))?;
                }
                Kind::Downsample { channels } | Kind::Transformer { channels, .. } => {
                    model.stage(name, Cadence::Step, |s| {
                        let conv = Conv2d::declare(&mut s.sub(name).sub("op"), channels, channels, 3)?.with(2, 1);
                        Ok(Convolve { conv, from, to })
                    })?;
                }
            }
            self.from = to;
        }
        if *kept {
            self.kept.push(self.from);
        }
        Ok(())
    }

    /// Declares the stages of a transformer over the last map. Gives the map that it leaves.
    fn transformer(&self, model: &mut Model, layer: &Layer) -> Result<Port> {
        let (Layer { name, level, kind, .. }, config, from) = (layer, self.config, self.from);
        let Kind::Transformer { channels, heads, depth } = *kind else { return Ok(from) };
        let to = map_of(model, name, (*level, channels), self.items)?;
        let count = TOKENS.get(*level).ok_or_else(|| Error::graph("declare", format!("{level} levels")))?;
        let extents = [channels.into(), (*count).into(), self.items.into()];
        let tokens = model.port(format!("{name}.tokens"), &extents, DType::F32, Lifetime::Pass);
        model.stage(format!("{name}.in"), Cadence::Step, |s| {
            ProjIn::declare(&mut s.sub(name), config, channels, (from, tokens))
        })?;
        for block in 0..depth {
            model.stage(format!("{name}.{block}"), Cadence::Step, |s| {
                let mut s = s.sub(name);
                let mut s = s.sub("transformer_blocks");
                let ip = self.ip.and_then(|ip| ip.of(&format!("{name}.{block}")));
                let places = (tokens, self.ports.context, ip);
                TransformerBlock::declare(&mut s.sub(block), config, (channels, heads), places)
            })?;
        }
        model.stage(format!("{name}.out"), Cadence::Step, |s| {
            let proj_out = Linear::declare(&mut s.sub(name).sub("proj_out"), channels, channels, Role::MatMul)?;
            Ok(ProjOut { proj_out, tokens, from, to })
        })?;
        Ok(to)
    }
}
