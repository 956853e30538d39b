//! Stages: the pieces that a model is measured, placed, streamed and run in.
//!
//! A [`Model`] is a list of stages in the order in which they run. A stage names the weights it needs (declared by
//! its [`Block`]) and builds one graph; between stages, tensors live in **ports**. Planner and executor see only
//! this; a model never sees a device, a number format or a file.

mod branch;
mod dims;
mod port;
mod rows;
mod share;
mod skip;
mod spans;
mod tokens;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use pinhole_quant::DType;

pub use branch::{Branch, Form};
pub use dims::{Dims, Extent, Span, Symbol};
pub use port::{Lifetime, Port, PortSpec};
pub(crate) use rows::{Exchanged, RowsRead, Strip, shape_of};
pub use rows::{FeatureMap, GroupStatistics, Inner, Reach, Strips};
pub use share::TokenShare;
pub(crate) use share::{Gathered, Half, Pieces};
pub use skip::Part;
pub(crate) use spans::Spans;

use crate::ggml::{Buffer, Graph, Placed, Tensor};
use crate::tensor::Shape;
use crate::weights::{Manifest, Scope, WeightId};
use crate::{Error, Result};

/// What a stage computes: made by its `declare`, which records weights, and holding their ids.
pub trait Block: Send + Sync {
    /// Adds the stage's operations to the graph of `b`: reads ports and weights, writes ports.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn build(&self, b: &Build<'_>) -> Result<()>;

    /// How the stage is computed a few rows at a time; `None` where it cannot be.
    fn strips(&self) -> Option<&dyn Strips> {
        None
    }
}

/// When a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cadence {
    /// Once a request, before the first step.
    Request,
    /// Once in every step.
    Step,
    /// In every step that does not skip it.
    Skippable,
    /// In every step that skips what is [`Skippable`](Cadence::Skippable), in its place.
    Instead,
}

impl Cadence {
    /// Whether it is of steps, and not of the request.
    pub fn is_of_steps(self) -> bool {
        self != Cadence::Request
    }
}

/// One piece of a model.
#[derive(Clone)]
pub struct Stage {
    /// Its name: `double.3`.
    pub name: String,
    /// When it runs.
    pub cadence: Cadence,
    /// Its weights, in the order of the manifest.
    pub weights: Vec<WeightId>,
    /// What it computes.
    pub block: Arc<dyn Block>,
    /// A size that steps have in which it runs: where that is 0, it does not. `None` if it always runs.
    pub runs_if: Option<Symbol>,
}

/// A model: weights, ports, and stages in the order in which they run.
#[derive(Clone, Default)]
pub struct Model {
    manifest: Manifest,
    ports: Vec<PortSpec>,
    inners: Vec<(String, Vec<Extent>)>,
    stages: Vec<Stage>,
    host_weights: Vec<WeightId>,
    branches: branch::Branches,
    /// What stands before the names of all that is declared now.
    prefix: String,
    /// The network within this one that it stands for.
    within: Option<Within>,
}

/// A network within a model.
#[derive(Clone, Copy, Debug)]
struct Within {
    /// In which steps it runs.
    runs_if: Option<Symbol>,
    /// Whether it computes for the first guidance pass alone.
    of_first_pass: bool,
}

impl Model {
    /// A model without stages.
    pub fn new() -> Model {
        Model::default()
    }

    /// Adds a port.
    pub fn port(&mut self, name: impl Into<String>, extents: &[Extent], dtype: DType, lifetime: Lifetime) -> Port {
        let name = format!("{}{}", self.prefix, name.into());
        let of_first_pass = self.within.is_some_and(|within| within.of_first_pass);
        self.ports.push(PortSpec { name, extents: extents.to_vec(), dtype, lifetime, of_first_pass });
        Port(self.ports.len() - 1)
    }

    /// Declares a network within this one, which computes for the first guidance pass: `prefix` stands before the names of its ports,
    /// stages and weights. Its stages of steps [run if](Stage::runs_if) that is so.
    ///
    /// # Errors
    /// What `declare` returns.
    pub fn within<R>(
        &mut self,
        (prefix, runs_if): (&str, Option<Symbol>),
        declare: impl FnOnce(&mut Model) -> Result<R>,
    ) -> Result<R> {
        self.declare_within(prefix, Within { runs_if, of_first_pass: true }, declare)
    }

    /// The same of a network that computes for each guidance pass in which it runs.
    ///
    /// # Errors
    /// What `declare` returns.
    pub fn within_passes<R>(
        &mut self,
        (prefix, runs_if): (&str, Option<Symbol>),
        declare: impl FnOnce(&mut Model) -> Result<R>,
    ) -> Result<R> {
        self.declare_within(prefix, Within { runs_if, of_first_pass: false }, declare)
    }

    fn declare_within<R>(
        &mut self,
        prefix: &str,
        within: Within,
        declare: impl FnOnce(&mut Model) -> Result<R>,
    ) -> Result<R> {
        let before = std::mem::replace(&mut self.prefix, prefix.to_owned());
        let outside = self.within.replace(within);
        let declared = declare(self);
        (self.prefix, self.within) = (before, outside);
        declared
    }

    /// Adds a stage, whose block `declare` makes.
    ///
    /// # Errors
    /// What `declare` returns.
    pub fn stage<B: Block + 'static>(
        &mut self,
        name: impl Into<String>,
        cadence: Cadence,
        declare: impl FnOnce(&mut Scope<'_>) -> Result<B>,
    ) -> Result<()> {
        let mut weights = Vec::new();
        let block = Arc::new(declare(&mut Scope::below(&mut self.manifest, &mut weights, &self.prefix))?);
        let name = format!("{}{}", self.prefix, name.into());
        let runs_if = self.within.and_then(|within| within.runs_if).filter(|_| cadence.is_of_steps());
        self.stages.push(Stage { name, cadence, weights, block, runs_if });
        Ok(())
    }

    /// Says that the stage that was declared last does not run in steps where `symbol` is 0.
    pub fn last_runs_if(&mut self, symbol: Symbol) {
        if let Some(stage) = self.stages.last_mut() {
            stage.runs_if = Some(symbol);
        }
    }

    /// Declares weights that stay on the host: tables whose rows are gathered there.
    ///
    /// # Errors
    /// What `declare` returns.
    pub fn on_host<R>(&mut self, declare: impl FnOnce(&mut Scope<'_>) -> Result<R>) -> Result<R> {
        declare(&mut Scope::below(&mut self.manifest, &mut self.host_weights, &self.prefix))
    }

    /// The weights.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The ports.
    pub fn ports(&self) -> &[PortSpec] {
        &self.ports
    }

    /// The port at `position` among them.
    pub(crate) fn port_at(&self, position: usize) -> Port {
        Port(position)
    }

    /// The stages.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// For each stage, whether it does not run in steps of size `dims`.
    pub(crate) fn idle(&self, dims: &Dims) -> Vec<bool> {
        self.stages.iter().map(|stage| stage.runs_if.is_some_and(|symbol| dims.find(symbol) == Some(0))).collect()
    }

    /// The stages of a request, or those of a step, among them what a step may skip. A model lists all of either one after the other.
    pub fn at(&self, cadence: Cadence) -> Range<usize> {
        let mut positions =
            (0..self.stages.len()).filter(|i| self.stages[*i].cadence.is_of_steps() == cadence.is_of_steps());
        let first = positions.next();
        first.map_or(0..0, |first| first..positions.next_back().unwrap_or(first) + 1)
    }
}

/// What a [`Block`] builds with: a graph, and the places of weights and ports.
pub struct Build<'a> {
    /// The graph; its methods are the operations.
    pub g: &'a Graph,
    branches: &'a branch::Branches,
    dims: &'a Dims,
    weights: &'a [Option<Placed>],
    ports: &'a [Placed],
    leaves: RefCell<Vec<(Leaf, Tensor)>>,
    writes: RefCell<Vec<(Port, Tensor)>>,
    written_in_parts: RefCell<Vec<(Port, Range<usize>)>>,
    /// The tokens of ports that are read.
    reads: RefCell<Vec<(Port, Range<usize>)>>,
    inners: RefCell<Vec<(Inner, Tensor)>>,
    /// How much is computed at a time.
    pieces: Pieces,
    /// The most tokens that a block asked to compute in pieces.
    most_tokens: Cell<usize>,
    /// Whether a block asked to compute attention in parts of its heads.
    asked_heads: Cell<bool>,
    half: Half,
    /// Where what all tokens look at lies, and from where on there; `None` if it is an intermediate result like others.
    gathering: Option<(&'a Arc<Buffer>, usize)>,
    gathered_bytes: Cell<usize>,
    gathers: RefCell<Vec<Gathered>>,
    strip: Option<rows::StripBuild<'a>>,
}

/// The ports that a stage reads and writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) read: Vec<Port>,
    pub(crate) written: Vec<Port>,
    /// The most tokens that the stage can compute in pieces; 0 if it computes none so.
    pub(crate) tokens: usize,
    /// Whether it can compute attention in parts of its heads.
    pub(crate) heads: bool,
    /// The tokens that it reads and writes, of each port.
    pub(crate) reads: Vec<(Port, Spans)>,
    pub(crate) writes: Vec<(Port, Spans)>,
    /// What is gathered for its attention, and how many bytes that takes.
    pub(crate) gathered: Vec<Gathered>,
    pub(crate) gathered_bytes: usize,
}

/// What a graph's leaf stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Weight(WeightId),
    Port(Port),
    /// A port as what is written to.
    Written(Port),
}

impl<'a> Build<'a> {
    /// For one graph of `model`; `weights` and `ports` are indexed by id.
    pub(crate) fn new(
        g: &'a Graph,
        model: &'a Model,
        dims: &'a Dims,
        weights: &'a [Option<Placed>],
        ports: &'a [Placed],
    ) -> Build<'a> {
        g.set_weights_in_blocks(weights.iter().flatten().any(|place| place.dtype().is_quantized()));
        Build {
            g,
            branches: &model.branches,
            dims,
            weights,
            ports,
            leaves: RefCell::default(),
            writes: RefCell::default(),
            written_in_parts: RefCell::default(),
            reads: RefCell::default(),
            inners: RefCell::default(),
            pieces: Pieces::WHOLE,
            most_tokens: Cell::new(0),
            asked_heads: Cell::new(false),
            half: Half::Main,
            gathering: None,
            gathered_bytes: Cell::new(0),
            gathers: RefCell::default(),
            strip: None,
        }
    }

    /// The same, where blocks that can compute in `pieces`.
    pub(crate) fn in_parts(self, pieces: Pieces) -> Build<'a> {
        Build { pieces, ..self }
    }

    /// The same for one `half` of a stage that several devices compute together. What all tokens look at lies in `buffer`, from `start` on.
    pub(crate) fn in_half(self, half: Half, buffer: &'a Arc<Buffer>, start: usize) -> Build<'a> {
        Build { half, gathering: Some((buffer, start)), ..self }
    }

    /// For the graph of `strip`, whose rows lie in `buffer` one after the other in the order in which the block asks for
    /// them.
    pub(crate) fn for_strip(
        g: &'a Graph,
        dims: &'a Dims,
        weights: &'a [Option<Placed>],
        model: &'a Model,
        strip: Strip,
        buffer: &'a Arc<Buffer>,
    ) -> Build<'a> {
        Build { strip: Some(rows::StripBuild::new(model, strip, buffer)), ..Build::new(g, model, dims, weights, &[]) }
    }

    /// The value of `symbol` in this request.
    ///
    /// # Errors
    /// [`Error::Graph`] if the request has no value for it.
    pub fn dim(&self, symbol: Symbol) -> Result<usize> {
        self.dims.get(symbol)
    }

    /// The value of `symbol`, if this request has one.
    pub fn dim_if_any(&self, symbol: Symbol) -> Option<usize> {
        self.dims.find(symbol)
    }

    /// The weight `id`.
    ///
    /// # Errors
    /// [`Error::Graph`] where it is not on the device.
    pub fn weight(&self, id: WeightId) -> Result<Tensor> {
        let place = self.weights.get(id.index()).and_then(Option::as_ref);
        let place = place.ok_or_else(|| Error::graph("weight", format!("{id:?} is not on the device")))?;
        self.leaf(Leaf::Weight(id), place)
    }

    /// The shape of `port` in this request.
    ///
    /// # Errors
    /// [`Error::Graph`] for a port of another model.
    pub fn shape(&self, port: Port) -> Result<Shape> {
        Ok(self.place(port)?.shape())
    }

    /// What `port` holds when the stage begins.
    ///
    /// # Errors
    /// [`Error::Graph`] for a port of another model.
    pub fn read(&self, port: Port) -> Result<Tensor> {
        self.reads.borrow_mut().push((port, 0..usize::MAX));
        self.leaf(Leaf::Port(port), self.place(port)?)
    }

    /// Writes `value` to `port` when everything else in the stage has been computed, so that a stage may read and
    /// write the same port.
    ///
    /// # Errors
    /// [`Error::Graph`] where shapes differ.
    pub fn write(&self, port: Port, value: Tensor) -> Result<()> {
        let (found, expected) = (self.g.shape(value)?, self.place(port)?.shape());
        if found != expected {
            return Err(Error::graph("write", format!("{found} to {port:?}, which is {expected}")));
        }
        if self.half == Half::Gathering {
            return Ok(());
        }
        self.writes.borrow_mut().push((port, value));
        Ok(())
    }

    /// The parts, of equally many, in which a block should compute `heads` heads that look at all tokens.
    pub fn head_ranges(&self, heads: usize) -> Vec<Range<usize>> {
        self.asked_heads.set(true);
        let each = (1..=heads).find(|each| heads.is_multiple_of(*each) && each * self.pieces.head_parts >= heads);
        let each = each.unwrap_or(1);
        (0..heads).step_by(each).map(|first| first..first + each).collect()
    }

    /// Completes the graph with all that was written, and says which ports were read and which written.
    pub(crate) fn finish(self) -> Result<Touched> {
        let writes = self.writes.take();
        let read = self.leaves.take().into_iter().filter_map(|(leaf, _)| match leaf {
            Leaf::Port(port) => Some(port),
            Leaf::Weight(_) | Leaf::Written(_) => None,
        });
        let in_parts = self.written_in_parts.take();
        let written = writes.iter().map(|(port, _)| *port).chain(in_parts.iter().map(|(port, _)| *port));
        let whole = writes.iter().map(|(port, _)| (*port, 0..usize::MAX));
        let touched = Touched {
            read: read.collect(),
            written: written.collect(),
            tokens: self.most_tokens.get(),
            heads: self.asked_heads.get(),
            reads: by_port(self.reads.take()),
            writes: by_port(whole.chain(in_parts.iter().cloned())),
            gathered: self.gathers.take(),
            gathered_bytes: self.gathered_bytes.get(),
        };
        for &(_, value) in &writes {
            self.g.output(value)?;
        }
        for (port, value) in writes {
            let place = self.place(port)?;
            // Ports of one stage never share bytes.
            let writes = touched.written.iter().filter(|&&other| other == port).count();
            let is_alone = writes == 1 && !touched.read.contains(&port);
            if is_alone { self.g.store_alone(value, place)? } else { self.g.store(value, place)? }
        }
        Ok(touched)
    }

    fn place(&self, port: Port) -> Result<&Placed> {
        self.ports.get(port.0).ok_or_else(|| Error::graph("port", format!("{port:?} is not of this model")))
    }

    fn leaf(&self, leaf: Leaf, place: &Placed) -> Result<Tensor> {
        let known = self.leaves.borrow().iter().find(|(other, _)| *other == leaf).map(|(_, tensor)| *tensor);
        if let Some(tensor) = known {
            return Ok(tensor);
        }
        let tensor = self.g.leaf(place)?;
        self.leaves.borrow_mut().push((leaf, tensor));
        Ok(tensor)
    }
}

/// The tokens of each port.
fn by_port(touched: impl IntoIterator<Item = (Port, Range<usize>)>) -> Vec<(Port, Spans)> {
    let mut all: Vec<(Port, Spans)> = Vec::new();
    for (port, range) in touched {
        match all.iter_mut().find(|(known, _)| *known == port) {
            Some((_, spans)) => spans.add(range),
            None => all.push((port, Spans::one(range))),
        }
    }
    all
}
