//! A model in strips, with no memory behind it: how each pass is cut, and what that takes.

use std::ops::Range;
use std::sync::Arc;

use pinhole_quant::DType;

use super::bands::{Band, Film, PassMaps};
use super::dry_run::{self, Lives, MapBlock, STAGE_TENSORS, Touch};
use crate::ggml::{Arena, Backend, Buffer, Graph, Placed, Scratch};
use crate::stage::{Build, Dims, Exchanged, FeatureMap, Model, Reach, Stage, Strip, Strips, shape_of};
use crate::weights::WeightId;
use crate::{Error, Result};

/// How one pass of a stage is cut.
#[derive(Clone, Debug)]
pub(crate) struct PassCut {
    /// One strip for each graph that is built.
    pub(crate) shapes: Vec<Strip>,
    /// For each band, from the top to the bottom: the rows, and the position of the graph in `shapes`.
    pub(crate) strips: Vec<Vec<(Range<usize>, usize)>>,
}

/// What a dry run in strips found.
pub(crate) struct StripRun {
    /// By stage and pass.
    pub(crate) stages: Vec<Vec<PassCut>>,
    /// Bytes of the rows that the largest strip exchanges with the maps.
    pub(crate) exchanged: usize,
    /// Bytes of the largest strip's intermediate results.
    pub(crate) activations: usize,
    /// Bytes that the backend takes beside.
    pub(crate) scratch: usize,
    /// Where the maps lie in host memory.
    pub(crate) maps: MapBlock,
    /// The maps whose statistics are needed.
    pub(crate) normed: Vec<FeatureMap>,
    /// The rows that are computed and there, one band after the other.
    pub(crate) bands: Vec<Band>,
}

impl StripRun {
    /// Cuts every pass such that the rows of a map take about `most_bytes`, in so many bands, and builds a strip of each shape.
    ///
    /// # Errors
    /// [`Error::Graph`] where a stage cannot be built at this size or not in strips, and for bands of maps whose statistics are needed.
    pub(crate) fn new(
        model: &Model,
        dtype: impl Fn(WeightId) -> Option<DType>,
        dims: &Dims,
        (most_bytes, count): (usize, usize),
        backend: &Backend,
    ) -> Result<StripRun> {
        let nowhere = Buffer::nowhere(backend.device())?;
        let weights = dry_run::weights_nowhere(model, dtype, &nowhere);
        let mut cutter = Cutter { model, dims, most_bytes, backend, weights, nowhere, found: Found::default() };
        let (mut passes, mut steps, mut touched) = (Vec::new(), Vec::new(), Vec::new());
        for stage in model.stages() {
            let strips = strips_of(stage)?;
            cutter.found.touch = Touch::default();
            let (mut maps, mut rows) = (Vec::new(), Vec::new());
            for pass in 0..strips.passes() {
                let (found, step) = cutter.look(strips, pass)?;
                maps.push(found);
                rows.push(step);
            }
            passes.push(maps);
            steps.push(rows);
            touched.push(std::mem::take(&mut cutter.found.touch));
        }
        if count > 1 && !cutter.found.normed.is_empty() {
            return Err(Error::graph("bands", "statistics are of whole maps"));
        }
        let heights = model.maps().map(|map| Ok(shape_of(model, map, dims)?.dims()[1])).collect::<Result<Vec<_>>>()?;
        let bands = Film { model, passes: &passes, heights: &heights }.bands(count);
        let mut stages = Vec::with_capacity(steps.len());
        for (at, (stage, steps)) in model.stages().iter().zip(steps).enumerate() {
            let strips = strips_of(stage)?;
            let mut cuts = Vec::with_capacity(steps.len());
            for (pass, step) in steps.into_iter().enumerate() {
                let rows: Vec<_> = bands.iter().map(|band| band.passes[at][pass].clone()).collect();
                cuts.push(cutter.cut(strips, pass, (&rows, step))?);
            }
            stages.push(cuts);
        }
        let Found { exchanged, activations, scratch, normed, .. } = cutter.found;
        let scratch = scratch.bytes();
        let maps = Lives { model, stages: &touched }.pack_maps(dims, backend.device(), &bands)?;
        Ok(StripRun { stages, exchanged, activations, scratch, maps, normed, bands })
    }
}

/// How `stage` is computed in strips.
fn strips_of(stage: &Stage) -> Result<&dyn Strips> {
    stage.block.strips().ok_or_else(|| Error::graph("strips", format!("{} has none", stage.name)))
}

/// The most that any strip was found to take.
#[derive(Default)]
struct Found {
    exchanged: usize,
    activations: usize,
    scratch: Scratch,
    normed: Vec<FeatureMap>,
    /// Of the stage at hand.
    touch: Touch,
}

struct Cutter<'a> {
    model: &'a Model,
    dims: &'a Dims,
    most_bytes: usize,
    backend: &'a Backend,
    weights: Vec<Option<Placed>>,
    nowhere: Arc<Buffer>,
    found: Found,
}

impl Cutter<'_> {
    /// What a pass does with maps, and how many rows a strip of it has.
    fn look(&mut self, strips: &dyn Strips, pass: usize) -> Result<(PassMaps, usize)> {
        let height = self.height(strips)?;
        let (graph, whole) = self.build(strips, pass, 0..height)?;
        self.backend.reuse(graph);
        check(&whole)?;
        self.touch(&whole);
        let reads = whole.reads.iter().map(|read| (self.model.position(read.map), read.reach)).collect();
        let writes = whole.writes.iter().map(|write| self.model.position(write.map)).collect();
        Ok((PassMaps { reads, writes, height }, self.rows_at_a_time(&whole, height)?))
    }

    /// Cuts the `rows` of each band of a pass into strips of `step` rows.
    fn cut(&mut self, strips: &dyn Strips, pass: usize, (rows, step): (&[Range<usize>], usize)) -> Result<PassCut> {
        let height = self.height(strips)?;
        let mut cut = PassCut { shapes: Vec::new(), strips: Vec::new() };
        for rows in rows {
            let mut band = Vec::new();
            for start in rows.clone().step_by(step) {
                let strip = self.strip(start..rows.end.min(start + step), height);
                let known = cut.shapes.iter().position(|other| other.shape() == strip.shape());
                band.push((strip.rows.clone(), known.unwrap_or(cut.shapes.len())));
                if known.is_none() {
                    cut.shapes.push(strip);
                }
            }
            cut.strips.push(band);
        }
        for strip in &cut.shapes {
            let (graph, exchanged) = self.build(strips, pass, strip.rows.clone())?;
            let Found { exchanged: bytes, activations, scratch, .. } = &mut self.found;
            *bytes = exchanged.bytes.max(*bytes);
            *activations = Arena::measure(&graph)?.max(*activations);
            *scratch = scratch.join(self.backend.scratch(&graph)?);
            self.backend.reuse(graph);
        }
        Ok(cut)
    }

    /// How many rows there are in all.
    fn height(&self, strips: &dyn Strips) -> Result<usize> {
        let [_, height, ..] = shape_of(self.model, strips.rows_of(), self.dims)?.dims();
        Ok(height)
    }

    fn strip(&self, rows: Range<usize>, height: usize) -> Strip {
        Strip { rows, height, most_bytes: self.most_bytes }
    }

    fn build(&self, strips: &dyn Strips, pass: usize, rows: Range<usize>) -> Result<(Graph, Exchanged)> {
        let graph = self.backend.graph(STAGE_TENSORS)?;
        let strip = self.strip(rows, self.height(strips)?);
        let b = Build::for_strip(&graph, self.dims, &self.weights, self.model, strip, &self.nowhere);
        strips.build_pass(&b, pass)?;
        let exchanged = b.finish_strip()?;
        Ok((graph, exchanged))
    }

    fn touch(&mut self, exchanged: &Exchanged) {
        let Found { touch, normed, .. } = &mut self.found;
        touch.read.extend(exchanged.reads.iter().map(|read| self.model.position(read.map)));
        touch.written.extend(exchanged.writes.iter().map(|write| self.model.position(write.map)));
        for norm in &exchanged.norms {
            if !normed.contains(&norm.map) {
                normed.push(norm.map);
            }
        }
    }

    /// How many of `height` rows a strip has, where all of them together exchange `whole`.
    fn rows_at_a_time(&self, whole: &Exchanged, height: usize) -> Result<usize> {
        let maps = whole.reads.iter().filter(|read| read.reach != Reach::All).map(|read| read.map);
        let mut row_bytes = 1;
        for map in maps.chain(whole.writes.iter().map(|write| write.map)) {
            let bytes = shape_of(self.model, map, self.dims)?.bytes(DType::F32).unwrap_or(usize::MAX);
            row_bytes = row_bytes.max(bytes / height);
        }
        let rows = (self.most_bytes / row_bytes).clamp(1, height);
        // An even number: then all strips but the first and the last are of one shape.
        Ok(if rows == height { rows } else { (rows & !1).max(1) })
    }
}

/// A strip must not overwrite what the next one reads.
fn check(exchanged: &Exchanged) -> Result<()> {
    for write in &exchanged.writes {
        if exchanged.reads.iter().any(|read| read.map == write.map && read.reach != Reach::Around(0)) {
            return Err(Error::graph("strips", format!("{:?} is written while neighbours read it", write.map)));
        }
    }
    Ok(())
}
