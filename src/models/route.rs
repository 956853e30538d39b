//! A model that is a chain of layers over pixels.

use pinhole_quant::DType;

use crate::Result;
use crate::stage::{Block, Build, Cadence, Extent, FeatureMap, Inner, Lifetime, Model, Port, Strips, Symbol};
use crate::weights::Scope;

/// A layer from pixels to pixels.
pub(super) trait Layer: Send + Sync {
    /// How many passes it comes in: see [`Strips`].
    fn passes(&self) -> usize {
        1
    }

    /// Adds the operations of `pass` from some rows of `from` to some rows of `to`, which may be the same port.
    fn build_pass(&self, b: &Build<'_>, pass: usize, from: Port, to: Port) -> Result<()>;
}

/// The extents of pixels between two stages, for latents of `w` by `h`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Pixels {
    /// How many channels there are.
    pub(super) channels: usize,
    /// The width in units of `w`, and the height in units of `h`.
    pub(super) factor: usize,
}

impl Pixels {
    /// Their extents as a map of so many pictures.
    fn extents(self, pictures: Extent) -> [Extent; 4] {
        let Pixels { channels, factor } = self;
        [Symbol::LATENT_WIDTH * factor, Symbol::LATENT_HEIGHT * factor, channels.into(), pictures]
    }
}

/// A chain under construction: the model so far, and where its last layer left its result.
pub(super) struct Route {
    model: Model,
    at: Port,
    pixels: Pixels,
    /// How many pictures a map has.
    pictures: Extent,
    /// What stands before the names of stages and of ports.
    prefix: &'static str,
    cadence: Cadence,
}

impl Route {
    /// A chain without layers, whose input is the port `name`.
    pub(super) fn new(name: &str, pixels: Pixels) -> Route {
        let (pictures, prefix, cadence) = (Symbol::BATCH.into(), "", Cadence::Request);
        let mut model = Model::new();
        let at = model.port(name, &pixels.extents(pictures), DType::F32, Lifetime::Pass);
        Route { model, at, pixels, pictures, prefix, cadence }
    }

    /// As [`new`](Route::new), of `frames` pictures in a row, whose stages run at `cadence`, in a model that may have other chains.
    /// `prefix` stands before the names of its stages and ports.
    pub(super) fn of_frames(
        mut model: Model,
        (prefix, cadence): (&'static str, Cadence),
        frames: usize,
        (name, pixels): (&str, Pixels),
    ) -> Route {
        let pictures = frames.into();
        let at = model.port(format!("{prefix}{name}"), &pixels.extents(pictures), DType::F32, Lifetime::Pass);
        Route { model, at, pixels, pictures, prefix, cadence }
    }

    /// What follows has `frames` pictures in a row.
    pub(super) fn set_frames(&mut self, frames: usize) {
        self.pictures = frames.into();
    }

    /// A map of one picture that keeps its contents from run to run. Chains of a model that ask for the same name share it.
    pub(super) fn kept(&mut self, name: &str, pixels: Pixels) -> Port {
        let known = self.model.ports().iter().position(|port| port.name == name);
        match known {
            Some(position) => self.model.port_at(position),
            None => self.model.port(name, &pixels.extents(1.into()), DType::F32, Lifetime::Request),
        }
    }

    /// All ports that keep their contents.
    pub(super) fn kept_ports(&self) -> Vec<Port> {
        let specs = self.model.ports().iter().enumerate();
        let kept = specs.filter(|(_, spec)| spec.lifetime == Lifetime::Request);
        kept.map(|(position, _)| self.model.port_at(position)).collect()
    }

    /// The port of the last layer's result.
    pub(super) fn at(&self) -> Port {
        self.at
    }

    /// What the last layer's result is.
    pub(super) fn pixels(&self) -> Pixels {
        self.pixels
    }

    /// A map between two passes of the layer that comes next.
    pub(super) fn inner(&mut self, name: &str, pixels: Pixels) -> Inner {
        self.model.inner(name, &pixels.extents(self.pictures))
    }

    /// The same, with all channels of a pixel side by side: `[channels * w, h, 1, B]`.
    pub(super) fn inner_by_pixels(&mut self, name: &str, Pixels { channels, factor }: Pixels) -> Inner {
        let width = Symbol::LATENT_WIDTH * (factor * channels);
        self.model.inner(name, &[width, Symbol::LATENT_HEIGHT * factor, 1.into(), self.pictures])
    }

    /// Adds a layer that keeps the shape of the pixels, as the stage `stage`, in place.
    pub(super) fn keep<L: Layer + 'static>(
        &mut self,
        stage: &str,
        declare: impl FnOnce(&mut Scope<'_>) -> Result<L>,
    ) -> Result<()> {
        let port = self.at;
        self.model.stage(format!("{}{stage}", self.prefix), self.cadence, |scope: &mut Scope<'_>| {
            Ok(Through { from: port, to: port, layer: declare(scope)? })
        })
    }

    /// Adds a layer that gives `pixels`, as the stage `stage`, in a new port called `port`.
    pub(super) fn lead<L: Layer + 'static>(
        &mut self,
        (stage, port): (&str, &str),
        pixels: Pixels,
        declare: impl FnOnce(&mut Scope<'_>) -> Result<L>,
    ) -> Result<()> {
        let port = format!("{}{port}", self.prefix);
        let to = self.model.port(port, &pixels.extents(self.pictures), DType::F32, Lifetime::Pass);
        let from = std::mem::replace(&mut self.at, to);
        self.pixels = pixels;
        self.model.stage(format!("{}{stage}", self.prefix), self.cadence, |scope: &mut Scope<'_>| {
            Ok(Through { from, to, layer: declare(scope)? })
        })
    }

    /// The model.
    pub(super) fn finish(self) -> Model {
        self.model
    }
}

/// A stage that is one layer.
struct Through<L> {
    from: Port,
    to: Port,
    layer: L,
}

impl<L: Layer> Block for Through<L> {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        (0..self.layer.passes()).try_for_each(|pass| self.build_pass(b, pass))
    }

    fn strips(&self) -> Option<&dyn Strips> {
        Some(self)
    }
}

impl<L: Layer> Strips for Through<L> {
    fn passes(&self) -> usize {
        self.layer.passes()
    }

    fn rows_of(&self) -> FeatureMap {
        self.to.into()
    }

    fn build_pass(&self, b: &Build<'_>, pass: usize) -> Result<()> {
        self.layer.build_pass(b, pass, self.from, self.to)
    }
}
