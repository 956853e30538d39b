//! Stages without memory: which ports they touch, and what they take.

use std::ops::Range;
use std::sync::Arc;

use pinhole_quant::DType;

use super::bands::Band;
use crate::ggml::{Arena, Backend, Buffer, Device, Placed, Scratch};
use crate::stage::shape_of;
use crate::stage::{Build, Cadence, Dims, FeatureMap, Half, Lifetime, Model, Pieces, Port, Stage, TokenShare, Touched};
use crate::weights::WeightId;
use crate::{Error, Result};

/// How many tensors a stage's graph may have. Contexts take room for it in address space; only what is used is touched.
pub(crate) const STAGE_TENSORS: usize = 8192;

/// The maps that a stage touches, by position: ports first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touch {
    pub(crate) read: Vec<usize>,
    pub(crate) written: Vec<usize>,
}

impl Touch {
    /// The maps of both.
    fn join(&mut self, other: Touch) {
        for (all, more) in [(&mut self.read, other.read), (&mut self.written, other.written)] {
            all.extend(more);
            all.sort_unstable();
            all.dedup();
        }
    }
}

/// What one stage was found to do and to take.
#[derive(Clone)]
struct Found {
    touch: Touch,
    activations: usize,
    scratch: Scratch,
    /// The most tokens that it can compute in pieces.
    tokens: usize,
    /// Whether it can compute attention in parts of its heads.
    heads: bool,
    /// Bytes of the keys and values that several devices gather.
    gathered: usize,
    /// Multiplications and additions of products and of attention.
    arithmetic: u64,
    /// All that it touches, in the first of its forms.
    touched: Touched,
}

/// What a dry run over the stages of a model found, with no memory behind it.
#[derive(Clone)]
pub(crate) struct DryRun {
    stages: Vec<Found>,
    /// By stage: whether it counts; empty if all do.
    own: Vec<bool>,
}

/// Where ports, or all maps, lie in one block.
pub(crate) struct MapBlock {
    pub(crate) offsets: Vec<usize>,
    pub(crate) total: usize,
}

impl DryRun {
    /// Builds every stage at size `dims`, with weights of the formats that `dtype` says, in `pieces`.
    ///
    /// # Errors
    /// [`Error::Graph`] where a stage cannot be built at this size.
    pub(crate) fn new(
        model: &Model,
        dtype: impl Fn(WeightId) -> Option<DType>,
        dims: &Dims,
        pieces: Pieces,
        backend: &Backend,
    ) -> Result<DryRun> {
        let nowhere: Arc<Buffer> = Buffer::nowhere(backend.device())?;
        let ports = model.ports().iter().map(|spec| Ok(Placed::nowhere(&nowhere, spec.dtype, spec.shape(dims)?)));
        let ports = ports.collect::<Result<Vec<_>>>()?;
        let weights = weights_nowhere(model, dtype, &nowhere);
        let is_shared = pieces.share != TokenShare::ALL;
        let built = |stage: &Stage, pieces: Pieces, half| {
            let graph = backend.graph(STAGE_TENSORS)?;
            let b = Build::new(&graph, model, dims, &weights, &ports).in_parts(pieces);
            let b = if is_shared { b.in_half(half, &nowhere, 0) } else { b };
            stage.block.build(&b)?;
            let touched = b.finish()?;
            // What has no token of the device computes nothing.
            let taken = match graph.nodes() {
                0 => (0, Scratch::default(), 0),
                _ => (Arena::measure(&graph)?, backend.scratch(&graph)?, graph.arithmetic()?),
            };
            backend.reuse(graph);
            Ok::<_, Error>((touched, taken))
        };
        let positions = |ports: &[Port]| ports.iter().map(|port| port.index()).collect();
        let mut stages = Vec::with_capacity(model.stages().len());
        for stage in model.stages() {
            let (touched, (mut activations, mut scratch, mut arithmetic)) = built(stage, pieces, Half::Main)?;
            if !touched.gathered.is_empty() {
                let (_, (more, beside, before)) = built(stage, pieces, Half::Gathering)?;
                (activations, scratch) = (activations.max(more), scratch.join(beside));
                arithmetic = arithmetic.saturating_add(before);
            }
            let touch =
                |touched: &Touched| Touch { read: positions(&touched.read), written: positions(&touched.written) };
            let touch = match is_shared {
                // Ports live as long as on any of the devices, whichever tokens are whose.
                true => touch(&built(stage, Pieces { share: TokenShare::ALL, ..pieces }, Half::Main)?.0),
                false => touch(&touched),
            };
            let (tokens, heads, gathered) = (touched.tokens, touched.heads, touched.gathered_bytes);
            stages.push(Found { touch, activations, scratch, tokens, heads, gathered, arithmetic, touched });
        }
        Ok(DryRun { stages, own: Vec::new() })
    }

    /// The same for a device that computes only its `own` stages, if these are some. A port that none of them touches takes nothing there,
    /// and all others live as long as if it computed every stage: so they are there when other devices give or take their contents.
    pub(crate) fn of_stages(mut self, own: &[bool]) -> DryRun {
        self.own = own.to_vec();
        self
    }

    /// What was found of the stages that count.
    fn counted(&self) -> impl Iterator<Item = &Found> {
        self.stages.iter().enumerate().filter(|(stage, _)| self.own.get(*stage) != Some(&false)).map(|(_, found)| found)
    }

    /// By port: whether a stage that counts touches it, as `touched` says.
    pub(crate) fn touches(&self, ports: usize, touched: impl Fn(&Touch) -> &Vec<usize>) -> Vec<bool> {
        let mut all = vec![false; ports];
        for &position in self.counted().flat_map(|found| touched(&found.touch)) {
            if let Some(is_touched) = all.get_mut(position) {
                *is_touched = true;
            }
        }
        all
    }

    /// The same for each of `forms`, sizes of one session: what a stage takes in the one in which it takes most.
    ///
    /// # Errors
    /// As [`new`](DryRun::new).
    pub(crate) fn of_forms(
        model: &Model,
        dtype: impl Fn(WeightId) -> Option<DType>,
        forms: &[Dims],
        pieces: Pieces,
        backend: &Backend,
    ) -> Result<DryRun> {
        let mut all = DryRun { stages: Vec::new(), own: Vec::new() };
        for dims in forms {
            let stages = DryRun::new(model, &dtype, dims, pieces, backend)?.stages;
            if all.stages.is_empty() {
                all.stages = stages;
                continue;
            }
            for (most, found) in all.stages.iter_mut().zip(stages) {
                most.touch.join(found.touch);
                most.activations = most.activations.max(found.activations);
                most.scratch = most.scratch.join(found.scratch);
                most.tokens = most.tokens.max(found.tokens);
                most.heads |= found.heads;
                most.gathered = most.gathered.max(found.gathered);
            }
        }
        Ok(all)
    }

    /// Bytes that the intermediate results of the largest stage take.
    pub(crate) fn activations(&self) -> usize {
        self.counted().map(|found| found.activations).max().unwrap_or(0)
    }

    /// Bytes of the keys and values that several devices gather: those of the stage that gathers most.
    pub(crate) fn gathered(&self) -> usize {
        self.counted().map(|found| found.gathered).max().unwrap_or(0)
    }

    /// Multiplications and additions in one pass over the stages of a step.
    pub(super) fn arithmetic(&self, model: &Model) -> u64 {
        let steps = model.at(Cadence::Step).filter(|&stage| model.stages()[stage].cadence != Cadence::Instead);
        steps.map(|stage| self.arithmetic_of(stage)).fold(0, u64::saturating_add)
    }

    /// Multiplications and additions of stage number `stage`, if it counts.
    pub(crate) fn arithmetic_of(&self, stage: usize) -> u64 {
        if self.own.get(stage) == Some(&false) { 0 } else { self.stages[stage].arithmetic }
    }

    /// What stage number `stage` touches, in the first of its forms.
    pub(crate) fn touched(&self, stage: usize) -> &Touched {
        &self.stages[stage].touched
    }

    /// The ports that the stages of a step read and that hold something else for each pass, as the stages of a request left it.
    pub(crate) fn of_a_pass(&self, model: &Model) -> Vec<Port> {
        let kept = self.of_a_part(model);
        self.of_steps(model, |touch| &touch.read)
            .filter(|port| {
                let spec = &model.ports()[port.index()];
                spec.lifetime == Lifetime::Request && spec.differs_between_passes() && !kept.contains(port)
            })
            .collect()
    }

    /// The ports that the stages of a step leave to those of the next, for each part of a batch something else.
    pub(crate) fn of_a_part(&self, model: &Model) -> Vec<Port> {
        self.of_steps(model, |touch| &touch.written)
            .filter(|port| model.ports()[port.index()].lifetime == Lifetime::Request)
            .collect()
    }

    /// The ports that the stages of a step touch in a way, each once.
    fn of_steps(&self, model: &Model, touched: impl Fn(&Touch) -> &Vec<usize>) -> impl Iterator<Item = Port> {
        let steps = model.at(Cadence::Step).filter(|stage| self.own.get(*stage) != Some(&false));
        let steps = steps.filter_map(|stage| self.stages.get(stage));
        let mut positions: Vec<usize> = steps.flat_map(|found| touched(&found.touch).iter().copied()).collect();
        positions.sort_unstable();
        positions.dedup();
        positions.into_iter().map(|position| model.port_at(position))
    }

    /// The most tokens that any stage can compute in pieces, 0 if none does; and whether any can compute attention in parts of its heads.
    pub(crate) fn pieces(&self) -> (usize, bool) {
        let most = self.stages.iter().map(|found| found.tokens).max().unwrap_or(0);
        (most, self.stages.iter().any(|found| found.heads))
    }

    /// Bytes that the backend takes beside.
    pub(crate) fn scratch(&self) -> usize {
        self.counted().fold(Scratch::default(), |all, found| all.join(found.scratch)).bytes()
    }

    /// Gives every port its place in one block: those that are never alive together share it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for ports beyond what addresses can count.
    pub(crate) fn pack_ports(&self, model: &Model, dims: &Dims, device: Device) -> Result<MapBlock> {
        let stages: Vec<Touch> = self.stages.iter().map(|found| found.touch.clone()).collect();
        let ports = model.ports().len();
        let mut absent = vec![false; ports];
        if !self.own.is_empty() {
            let [read, written] =
                [self.touches(ports, |touch| &touch.read), self.touches(ports, |touch| &touch.written)];
            for (absent, (read, written)) in absent.iter_mut().zip(read.into_iter().zip(written)) {
                *absent = !read && !written;
            }
        }
        Lives { model, stages: &stages }.pack(ports, dims, device, |port, height| if absent[port] { 0 } else { height })
    }
}

/// Every weight at a place without memory.
pub(super) fn weights_nowhere(
    model: &Model,
    dtype: impl Fn(WeightId) -> Option<DType>,
    nowhere: &Arc<Buffer>,
) -> Vec<Option<Placed>> {
    model
        .manifest()
        .iter()
        .map(|(id, weight)| dtype(id).map(|dtype| Placed::nowhere(nowhere, dtype, weight.shape)))
        .collect()
}

/// When maps are touched.
pub(super) struct Lives<'a> {
    pub(super) model: &'a Model,
    /// By stage.
    pub(super) stages: &'a [Touch],
}

impl Lives<'_> {
    /// The stages during which the contents of the map at `position` matter.
    fn of(&self, position: usize) -> Range<usize> {
        let Lives { model, stages: touches } = self;
        let stages = model.stages();
        let reads = |stage: &usize| touches[*stage].read.contains(&position);
        let writes = |stage: &usize| touches[*stage].written.contains(&position);
        let first = (0..stages.len()).find(|stage| reads(stage) || writes(stage));
        let last = (0..stages.len()).rev().find(|stage| reads(stage) || writes(stage));
        let (Some(first), Some(last)) = (first, last) else { return 0..stages.len() };
        // What lies between two passes of a stage begins and ends there.
        let Some(spec) = model.ports().get(position) else { return first..last + 1 };
        let is_of_steps = stages[first].cadence.is_of_steps();
        if spec.lifetime == Lifetime::Request || is_of_steps != stages[last].cadence.is_of_steps() {
            return 0..stages.len();
        }
        let pass = model.at(stages[first].cadence);
        // What is read first was filled by the host before the pass; what is written last is fetched after it, or where it is decided
        // what is skipped, if it is there by then.
        let decided = if is_of_steps { model.decided(&pass) } else { pass.end };
        let fetched = if last < decided { decided } else { pass.end };
        let start = if reads(&first) { pass.start } else { first };
        let end = if writes(&last) { fetched } else { last + 1 };
        start..end
    }

    /// Gives every map, ports and inner ones, its place in one block, with room for the rows that the largest of `bands` has of it.
    pub(super) fn pack_maps(&self, dims: &Dims, device: Device, bands: &[Band]) -> Result<MapBlock> {
        self.pack(self.model.maps().count(), dims, device, |map, _| {
            bands.iter().map(|band| band.maps[map].len()).max().unwrap_or(0)
        })
    }

    /// The same for the first `count` maps, with so many rows of each as `rows` says for its position and height.
    fn pack(
        &self,
        count: usize,
        dims: &Dims,
        device: Device,
        rows: impl Fn(usize, usize) -> usize,
    ) -> Result<MapBlock> {
        let alignment = device.alignment();
        let too_large = || Error::OutOfMemory { what: "ports".into(), bytes: usize::MAX, hint: None };
        let mut blocks = Vec::with_capacity(count);
        for (position, map) in self.model.maps().take(count).enumerate() {
            let dtype = match map {
                FeatureMap::Port(port) => self.model.ports()[port.index()].dtype,
                FeatureMap::Inner(_) => DType::F32,
            };
            let shape = shape_of(self.model, map, dims)?;
            let [_, height, ..] = shape.dims(); // never 0
            let bytes = shape.bytes(dtype).ok_or_else(too_large)? / height * rows(position, height);
            let size = bytes.checked_next_multiple_of(alignment).ok_or_else(too_large)?;
            blocks.push(Block { live: self.of(position), size });
        }
        let (offsets, total) = pack(&blocks).ok_or_else(too_large)?;
        Ok(MapBlock { offsets, total })
    }
}

/// Bytes that are needed during some stages.
struct Block {
    live: Range<usize>,
    size: usize,
}

/// Offsets at which no two blocks that live at the same time overlap, and the size of the whole. Largest first, each as low
/// as it goes: the greedy rule of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020).
fn pack(blocks: &[Block]) -> Option<(Vec<usize>, usize)> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].size), i));
    let mut offsets = vec![0; blocks.len()];
    let (mut placed, mut total): (Vec<usize>, usize) = (Vec::new(), 0);
    for i in order {
        let Block { live, size } = &blocks[i];
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|j| blocks[**j].live.start < live.end && live.start < blocks[**j].live.end)
            .map(|&j| offsets[j]..offsets[j] + blocks[j].size)
            .collect();
        taken.sort_by_key(|range| range.start);
        let mut offset = 0usize;
        for range in taken {
            if offset.checked_add(*size)? <= range.start {
                break;
            }
            offset = offset.max(range.end);
        }
        offsets[i] = offset;
        total = total.max(offset.checked_add(*size)?);
        placed.push(i);
    }
    Some((offsets, total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_lives_apart_shares() {
        let blocks = [(0..2, 100), (2..4, 80), (1..3, 10)].map(|(live, size)| Block { live, size });
        let (offsets, total) = pack(&blocks).unwrap();
        assert_eq!((offsets, total), (vec![0, 0, 100], 110));
    }

    proptest! {
        #[test]
        fn nothing_that_lives_together_overlaps(ports in prop::collection::vec((0usize..20, 1usize..8, 1usize..1000), 1..40)) {
            let blocks: Vec<Block> =
                ports.iter().map(|&(start, len, size)| Block { live: start..start + len, size }).collect();
            let (offsets, total) = pack(&blocks).unwrap();
            for i in 0..blocks.len() {
                prop_assert!(offsets[i] + blocks[i].size <= total);
                for j in 0..i {
                    let (a, b) = (&blocks[i], &blocks[j]);
                    let together = a.live.start < b.live.end && b.live.start < a.live.end;
                    let apart = offsets[i] + a.size <= offsets[j] || offsets[j] + b.size <= offsets[i];
                    prop_assert!(!together || apart);
                }
            }
            prop_assert!(total <= blocks.iter().map(|block| block.size).sum());
        }
    }
}
