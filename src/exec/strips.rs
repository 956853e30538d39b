//! A model computed a few rows at a time: maps in host memory, rows of them on the device.

use std::ops::Range;
use std::sync::Arc;

use super::DeviceWeights;
use super::maps::Maps;
use crate::ggml::{Arena, Backend, Buffer, Graph, Ledger, Placed};
use crate::plan::measure::maps_on_host;
use crate::plan::{PassCut, STAGE_TENSORS, StripRun};
use crate::stage::{Build, Dims, Exchanged, FeatureMap, GroupStatistics, Model, Reach, RowsRead, Strips, shape_of};
use crate::{Error, Result, reserve};

/// Everything that strips are computed with, made once.
pub(super) struct StripWork {
    maps: Maps,
    /// By stage.
    passes: Vec<Vec<Pass>>,
    /// For each band, the rows of each map that are there.
    bands: Vec<Vec<Range<usize>>>,
    /// Which of them is computed.
    band: usize,
    arena: Arena,
    /// Rows on their way between host and device.
    staging: Vec<u8>,
}

/// One pass of a stage.
struct Pass {
    graphs: Vec<StripGraph>,
    /// For each band, the rows of each strip, and which of `graphs` computes it.
    strips: Vec<Vec<(Range<usize>, usize)>>,
    /// The normalisations that all strips apply, in the order in which they ask.
    norms: Vec<(usize, GroupStatistics)>,
    /// The maps that it writes.
    written: Vec<usize>,
    /// Whether what strips read as a whole lies at one place for all of them.
    keeps_whole: bool,
}

/// The graph that computes all strips of one shape.
struct StripGraph {
    graph: Graph,
    reads: Vec<Read>,
    /// For each of the pass's norms, where the mean goes and where the scale.
    norms: Vec<(Placed, Placed)>,
    /// The map, and where its rows are found.
    writes: Vec<(usize, Placed)>,
}

struct Read {
    map: usize,
    height: usize,
    reach: Reach,
    place: Placed,
}

impl StripWork {
    /// In `strips` of so many bytes, and in so many bands.
    pub(super) fn new(
        model: &Model,
        weights: &DeviceWeights,
        dims: &Dims,
        strips: (usize, usize),
        backend: &Backend,
        ledger: &Ledger,
    ) -> Result<StripWork> {
        let device = backend.device();
        let run = StripRun::new(model, |id| weights.dtype(id), dims, strips, backend)?;
        let extents = model.maps().map(|map| Ok(shape_of(model, map, dims)?.dims())).collect::<Result<Vec<_>>>()?;
        let normed: Vec<usize> = run.normed.iter().map(|&map| model.position(map)).collect();
        let account = (!maps_on_host(device)).then_some(ledger);
        let maps = Maps::new(run.maps.total, &run.maps.offsets, &extents, |i| normed.contains(&i), account)?;
        let buffer = Buffer::allocate(device, run.exchanged, ledger, "ports")?;
        let builder = Builder { model, weights, dims, buffer: &buffer, backend };
        let mut passes = Vec::with_capacity(run.stages.len());
        for (stage, cuts) in model.stages().iter().zip(&run.stages) {
            let strips = stage.block.strips();
            let strips = strips.ok_or_else(|| Error::graph("strips", format!("{} has none", stage.name)))?;
            let each = cuts.iter().enumerate().map(|(pass, cut)| builder.pass(strips, pass, cut));
            passes.push(each.collect::<Result<Vec<_>>>()?);
        }
        let strip_graphs = passes.iter().flatten().flat_map(|pass| &pass.graphs);
        let graphs: Vec<&Graph> = strip_graphs.map(|strip| &strip.graph).collect();
        let mut arena = Arena::new(device, ledger)?;
        arena.assign(&graphs)?;
        backend.reserve(&graphs, &mut arena)?;
        let staging = reserve::zeros("a strip's ports", run.exchanged)?;
        let bands = run.bands.into_iter().map(|band| band.maps).collect();
        let mut work = StripWork { maps, passes, bands, band: 0, arena, staging };
        work.choose_band(0)?;
        Ok(work)
    }

    /// How many bands there are.
    pub(super) fn bands(&self) -> usize {
        self.bands.len()
    }

    /// What is computed from now on is of band number `band`.
    pub(super) fn choose_band(&mut self, band: usize) -> Result<()> {
        let rows = self.bands.get(band);
        self.maps.hold(rows.ok_or_else(|| Error::graph("strips", format!("band {band} of {}", self.bands.len())))?);
        self.band = band;
        Ok(())
    }

    /// The rows of the map at `position` that are there.
    pub(super) fn rows(&self, position: usize) -> Range<usize> {
        self.maps.rows(position)
    }

    /// The bytes of the map at `position`.
    pub(super) fn map(&self, position: usize) -> &[u8] {
        self.maps.whole(position)
    }

    /// The same, to be filled.
    pub(super) fn map_mut(&mut self, position: usize) -> &mut [u8] {
        self.maps.whole_mut(position)
    }

    /// Computes `stage`.
    pub(super) fn compute(&mut self, stage: usize, backend: &mut Backend) -> Result<()> {
        let StripWork { maps, passes, band, arena, staging, .. } = self;
        for pass in &passes[stage] {
            // Before anything is overwritten: a pass may write the map that it normalises.
            let norms: Vec<_> = pass.norms.iter().map(|(map, norm)| maps.statistics(*map, *norm)).collect();
            pass.written.iter().for_each(|&map| maps.begin(map));
            for (i, (rows, graph)) in pass.strips[*band].iter().enumerate() {
                let strip = &pass.graphs[*graph];
                for read in &strip.reads {
                    let there = i > 0 && pass.keeps_whole && read.reach == Reach::All;
                    if !there {
                        let rows = read.reach.rows(rows, read.height);
                        let bytes = &mut staging[..read.place.bytes()];
                        maps.read(read.map, &rows, bytes);
                        read.place.write(bytes)?;
                    }
                }
                for ((mean, scale), (means, scales)) in strip.norms.iter().zip(&norms) {
                    mean.write(means)?;
                    scale.write(scales)?;
                }
                backend.compute(&strip.graph, arena)?;
                for (map, place) in &strip.writes {
                    let bytes = &mut staging[..place.bytes()];
                    place.read(bytes)?;
                    maps.write(*map, rows, bytes);
                }
            }
        }
        Ok(())
    }
}

/// What graphs of strips are built with.
struct Builder<'a> {
    model: &'a Model,
    weights: &'a DeviceWeights,
    dims: &'a Dims,
    buffer: &'a Arc<Buffer>,
    backend: &'a Backend,
}

impl Builder<'_> {
    /// The pass of `strips` that is cut as `cut` says.
    fn pass(&self, strips: &dyn Strips, pass: usize, cut: &PassCut) -> Result<Pass> {
        let mut graphs = Vec::with_capacity(cut.shapes.len());
        let mut all = Vec::with_capacity(cut.shapes.len());
        for strip in &cut.shapes {
            let graph = self.backend.graph(STAGE_TENSORS)?;
            let b = Build::for_strip(&graph, self.dims, self.weights.places(), self.model, strip.clone(), self.buffer);
            strips.build_pass(&b, pass)?;
            let exchanged = b.finish_strip()?;
            graphs.push(self.strip_graph(graph, &exchanged)?);
            all.push(exchanged);
        }
        // Nothing, if no band needs it.
        let first = &all.first().cloned().unwrap_or_default();
        let position = |map| self.model.position(map);
        Ok(Pass {
            graphs,
            strips: cut.strips.clone(),
            norms: first.norms.iter().map(|norm| (position(norm.map), norm.norm)).collect(),
            written: first.writes.iter().map(|write| position(write.map)).collect(),
            keeps_whole: all.iter().all(|exchanged| wholes(exchanged) == wholes(first)),
        })
    }

    /// `graph` with the places of what it exchanges with the host.
    fn strip_graph(&self, graph: Graph, exchanged: &Exchanged) -> Result<StripGraph> {
        let position = |map| self.model.position(map);
        let read = |read: &RowsRead| {
            let [_, height, ..] = shape_of(self.model, read.map, self.dims)?.dims();
            Ok(Read { map: position(read.map), height, reach: read.reach, place: read.place.clone() })
        };
        Ok(StripGraph {
            graph,
            reads: exchanged.reads.iter().map(read).collect::<Result<_>>()?,
            norms: exchanged.norms.iter().map(|norm| (norm.mean.clone(), norm.scale.clone())).collect(),
            writes: exchanged.writes.iter().map(|write| (position(write.map), write.place.clone())).collect(),
        })
    }
}

/// The places of what is read as a whole, which all lie before everything else; `None` where they do not.
fn wholes(exchanged: &Exchanged) -> Option<Vec<(FeatureMap, usize)>> {
    let (wholes, others): (Vec<&RowsRead>, Vec<&RowsRead>) =
        exchanged.reads.iter().partition(|read| read.reach == Reach::All);
    let end = wholes.iter().map(|read| read.place.offset()).max().unwrap_or(0);
    let norms = exchanged.norms.iter().flat_map(|norm| [norm.mean.offset(), norm.scale.offset()]);
    let writes = exchanged.writes.iter().map(|write| write.place.offset());
    let mut after = others.iter().map(|read| read.place.offset()).chain(norms).chain(writes);
    let places = wholes.iter().map(|read| (read.map, read.place.offset())).collect();
    (wholes.is_empty() || after.all(|offset| offset > end)).then_some(places)
}
