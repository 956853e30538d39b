//! Stages as graphs, each made once, with the ports between them.

use std::collections::HashSet;

use super::DeviceWeights;
use crate::ggml::{Arena, Backend, Buffer, Graph, Ledger, Placed};
use crate::plan::{DryRun, STAGE_TENSORS};
use crate::stage::{Build, Dims, Half, Model, Pieces, Port, TokenShare, Touched};
use crate::{Error, Result};

/// A graph for every stage in every form, and ports on the device. Of a model whose stages are on several devices, those that are here.
pub(super) struct GraphWork {
    /// `None` for a port that no stage here touches.
    pub(super) ports: Vec<Option<Placed>>,
    /// Those of the first form, then those of the next.
    pub(super) graphs: Vec<Graph>,
    /// By form and stage: the place in `graphs`.
    pub(super) graph_of: Vec<Option<usize>>,
    /// The same of the graph that goes before it, where devices gather what all tokens look at.
    pub(super) gathering_of: Vec<Option<usize>>,
    /// By form and stage, where several devices have the tokens among them: what the stage touches.
    pub(super) touched: Vec<Touched>,
    /// By port: whether a stage here reads it.
    pub(super) read: Vec<bool>,
    /// The ports that each stage here writes.
    pub(super) written: Vec<Vec<Port>>,
    pub(super) arena: Arena,
    /// What a stage reads before one writes it.
    pub(super) inputs: Vec<Port>,
    /// What the stages of a request leave to those of a step, for each pass something else.
    pub(super) of_a_pass: Vec<Port>,
}

impl GraphWork {
    pub(super) fn new(
        model: &Model,
        weights: &DeviceWeights,
        forms: &[Dims],
        pieces: Pieces,
        backend: &Backend,
        ledger: &Ledger,
    ) -> Result<GraphWork> {
        let device = backend.device();
        let [dims, ..] = forms else { return Err(Error::graph("session", "no sizes")) };
        let own = weights.own();
        let found = DryRun::of_forms(model, |id| weights.dtype(id), forms, pieces, backend)?.of_stages(own);
        let of_a_pass = found.of_a_pass(model);
        let block = found.pack_ports(model, dims, device)?;
        let buffer = Buffer::allocate(device, block.total + found.gathered(), ledger, "ports")?;
        let is_shared = pieces.share != TokenShare::ALL;
        let count = model.ports().len();
        let read = found.touches(count, |touch| &touch.read);
        let is_written = found.touches(count, |touch| &touch.written);
        let nowhere = Buffer::nowhere(device)?;
        let (mut places, mut ports) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (at, (spec, &offset)) in model.ports().iter().zip(&block.offsets).enumerate() {
            let shape = spec.shape(dims)?;
            let is_here = own.is_empty() || read[at] || is_written[at];
            let place = is_here.then(|| Placed::new(&buffer, offset, spec.dtype, shape)).transpose()?;
            places.push(place.clone().unwrap_or_else(|| Placed::nowhere(&nowhere, spec.dtype, shape)));
            ports.push(place);
        }
        let (mut graphs, mut graph_of) = (Vec::with_capacity(model.stages().len() * forms.len()), Vec::new());
        let (mut gathering_of, mut touches) = (Vec::new(), Vec::new());
        let (mut inputs, mut seen) = (Vec::new(), HashSet::new());
        let mut written = vec![Vec::new(); model.stages().len()];
        for dims in forms {
            for (number, stage) in model.stages().iter().enumerate() {
                if own.get(number) == Some(&false) {
                    graph_of.push(None);
                    continue;
                }
                let build = |half| {
                    let graph = backend.graph(STAGE_TENSORS)?;
                    let b = Build::new(&graph, model, dims, weights.places(), &places).in_parts(pieces);
                    let b = if is_shared { b.in_half(half, &buffer, block.total) } else { b };
                    stage.block.build(&b)?;
                    let touched = b.finish()?;
                    Ok::<_, Error>((graph, touched))
                };
                let (graph, touched) = build(Half::Main)?;
                graph_of.push(if is_shared { keep(graph, &mut graphs) } else { Some(put(graph, &mut graphs)) });
                for &port in &touched.written {
                    if !written[number].contains(&port) {
                        written[number].push(port);
                    }
                }
                inputs.extend(touched.read.iter().filter(|port| !seen.contains(*port)));
                seen.extend(touched.read.iter().chain(&touched.written).copied());
                if is_shared {
                    let gathers = !touched.gathered.is_empty();
                    let before = gathers.then(|| build(Half::Gathering)).transpose()?;
                    gathering_of.push(before.and_then(|(graph, _)| keep(graph, &mut graphs)));
                    touches.push(touched);
                }
            }
        }
        let all: Vec<&Graph> = graphs.iter().collect();
        let mut arena = Arena::new(device, ledger)?;
        arena.assign(&all)?;
        backend.reserve(&all, &mut arena)?;
        Ok(GraphWork {
            ports,
            graphs,
            graph_of,
            gathering_of,
            touched: touches,
            read,
            written,
            arena,
            inputs,
            of_a_pass,
        })
    }
}

/// Adds `graph` to `graphs`, and says where it is there; `None` if it computes nothing: a stage that has no token of this device.
fn keep(graph: Graph, graphs: &mut Vec<Graph>) -> Option<usize> {
    (graph.nodes() > 0).then(|| put(graph, graphs))
}

fn put(graph: Graph, graphs: &mut Vec<Graph>) -> usize {
    graphs.push(graph);
    graphs.len() - 1
}
