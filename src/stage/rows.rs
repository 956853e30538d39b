//! Feature maps by rows: how a stage over pixels is computed a strip at a time.
//!
//! Such a stage comes in **passes**. A pass reads some rows of its maps, writes the strip's rows of others, and begins
//! when the pass before it has written every strip: by then the statistics of what was written are known, which group
//! normalisation needs of the whole picture. A block is written once, in passes, and computed in one of two ways: as one graph
//! over whole maps, or strip by strip. It asks for rows and never sees which; the strips of a map put together are the
//! whole map, because rows beyond the strip (its halo) are read and not made up.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use super::{Build, Dims, Extent, Lifetime, Model, Port};
use crate::ggml::{Buffer, Placed, Tensor};
use crate::tensor::Shape;
use crate::{Error, Result};

/// A map between two passes of one stage. Where a stage is one graph it is one of the graph's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inner(pub(super) usize);

/// A feature map `[w, h, c, B]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeatureMap {
    /// Between two stages.
    Port(Port),
    /// Between two passes of a stage.
    Inner(Inner),
}

impl From<Port> for FeatureMap {
    fn from(port: Port) -> FeatureMap {
        FeatureMap::Port(port)
    }
}

impl From<Inner> for FeatureMap {
    fn from(inner: Inner) -> FeatureMap {
        FeatureMap::Inner(inner)
    }
}

/// Which rows of a map a strip needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Of a map as high as what is written: the strip's, and so many more above and below.
    Around(usize),
    /// Of a map half as high: those that the strip comes from when every row is doubled, and so many rows of the doubled map
    /// more above and below.
    Half(usize),
    /// Of a map twice as high: two for each of the strip's, and so many more below.
    Twice(usize),
    /// Of a map twice as high: two for each of the strip's, and so many more above.
    TwiceAbove(usize),
    /// All of them: the pass cannot be cut into strips.
    All,
}

impl Reach {
    /// The rows, of a map of `height` rows, that `strip` needs.
    pub fn rows(self, strip: &Range<usize>, height: usize) -> Range<usize> {
        let (start, end) = match self {
            Reach::Around(halo) => (strip.start.saturating_sub(halo), strip.end + halo),
            Reach::Half(halo) => (strip.start.saturating_sub(halo) / 2, (strip.end + halo).div_ceil(2)),
            Reach::Twice(below) => (2 * strip.start, 2 * strip.end + below),
            Reach::TwiceAbove(above) => ((2 * strip.start).saturating_sub(above), 2 * strip.end),
            Reach::All => (0, height),
        };
        start..end.min(height)
    }

    /// How many rows more than its own a strip needs, on a side.
    fn halo(self) -> usize {
        match self {
            Reach::Around(halo) | Reach::Half(halo) | Reach::Twice(halo) | Reach::TwiceAbove(halo) => halo,
            Reach::All => 0,
        }
    }
}

/// A stage over pixels that can be computed a few rows at a time.
pub trait Strips {
    /// How many passes it comes in.
    fn passes(&self) -> usize;

    /// The map whose rows all passes are cut along. Everything that they write is as high.
    fn rows_of(&self) -> FeatureMap;

    /// Adds the operations of `pass`, over the rows that `b` is for.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn build_pass(&self, b: &Build<'_>, pass: usize) -> Result<()>;
}

/// Which statistics a group normalisation needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupStatistics {
    /// How many groups there are.
    pub groups: usize,
    /// What is added to the variance.
    pub eps: f32,
}

/// A strip that a graph is built for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strip {
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// Of how many.
    pub(crate) height: usize,
    /// Bytes that the rows of a map should not exceed by much; what a block makes in pieces should not either.
    pub(crate) most_bytes: usize,
}

/// The farthest that a pass looks beyond its strip.
const MOST_HALO: usize = 2;

impl Strip {
    /// Strips of one height for which this is the same have graphs of the same shapes.
    pub(crate) fn shape(&self) -> [usize; 4] {
        // Near an edge a halo is cut off; doubled rows begin with the first or the second of a pair, and convolutions compute rows in pairs.
        let Strip { rows, height, .. } = self;
        [rows.len(), rows.start.min(MOST_HALO), (height - rows.end).min(MOST_HALO), rows.start % 2]
    }
}

/// Rows that a strip reads.
#[derive(Clone, Debug)]
pub(crate) struct RowsRead {
    pub(crate) map: FeatureMap,
    pub(crate) reach: Reach,
    pub(crate) place: Placed,
    tensor: Tensor,
}

/// A normalisation that a strip applies: the mean, and one over the standard deviation, `[1, 1, c, B]` each.
#[derive(Clone, Debug)]
pub(crate) struct NormRead {
    pub(crate) map: FeatureMap,
    pub(crate) norm: GroupStatistics,
    pub(crate) mean: Placed,
    pub(crate) scale: Placed,
}

/// Rows that a strip writes.
#[derive(Clone, Debug)]
pub(crate) struct RowsWritten {
    pub(crate) map: FeatureMap,
    pub(crate) place: Placed,
}

/// What the graph of a strip exchanges with the maps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exchanged {
    pub(crate) reads: Vec<RowsRead>,
    pub(crate) norms: Vec<NormRead>,
    pub(crate) writes: Vec<RowsWritten>,
    /// Bytes of all their places.
    pub(crate) bytes: usize,
}

/// What a [`Build`] for one strip knows beyond one for whole maps.
pub(super) struct StripBuild<'a> {
    model: &'a Model,
    strip: Strip,
    buffer: &'a Arc<Buffer>,
    used: Cell<usize>,
    exchanged: RefCell<Exchanged>,
    written: RefCell<Vec<(Tensor, Placed)>>,
}

impl<'a> StripBuild<'a> {
    pub(super) fn new(model: &'a Model, strip: Strip, buffer: &'a Arc<Buffer>) -> StripBuild<'a> {
        let (used, exchanged, written) = (Cell::new(0), RefCell::default(), RefCell::default());
        StripBuild { model, strip, buffer, used, exchanged, written }
    }

    /// The next `dims` of the buffer; nowhere where it has no memory.
    fn place(&self, dims: &[usize]) -> Result<Placed> {
        let shape = Shape::new(dims).ok_or_else(|| Error::graph("strip", format!("rows of extents {dims:?}")))?;
        let dtype = pinhole_quant::DType::F32;
        let bytes = shape.bytes(dtype).and_then(|n| n.checked_next_multiple_of(self.buffer.device().alignment()));
        let start = self.used.get();
        let end = bytes.and_then(|bytes| start.checked_add(bytes));
        self.used.set(end.ok_or_else(|| Error::graph("strip", format!("rows of extents {dims:?}")))?);
        if self.buffer.size() == 0 {
            return Ok(Placed::nowhere(self.buffer, dtype, shape));
        }
        Placed::new(self.buffer, start, dtype, shape)
    }
}

/// The shape of `map` in a request of size `dims`.
pub(crate) fn shape_of(model: &Model, map: FeatureMap, dims: &Dims) -> Result<Shape> {
    match map {
        FeatureMap::Port(port) => match model.ports().get(port.index()) {
            Some(spec) => spec.shape(dims),
            None => Err(Error::graph("map", format!("{port:?} is not of this model"))),
        },
        FeatureMap::Inner(inner) => match model.inners.get(inner.0) {
            Some((name, extents)) => super::port::resolve(name, extents, dims),
            None => Err(Error::graph("map", format!("{inner:?} is not of this model"))),
        },
    }
}

impl Model {
    /// Adds a map between two passes of one stage.
    pub fn inner(&mut self, name: impl Into<String>, extents: &[Extent]) -> Inner {
        self.inners.push((name.into(), extents.to_vec()));
        Inner(self.inners.len() - 1)
    }

    /// All feature maps: ports first, then inner ones.
    pub(crate) fn maps(&self) -> impl Iterator<Item = FeatureMap> {
        let ports = (0..self.ports.len()).map(|i| FeatureMap::Port(Port(i)));
        ports.chain((0..self.inners.len()).map(|i| FeatureMap::Inner(Inner(i))))
    }

    /// Whether every stage can be computed a few rows at a time.
    pub fn has_strips(&self) -> bool {
        !self.stages.is_empty() && self.stages.iter().all(|stage| stage.block.strips().is_some())
    }

    /// Whether runs leave maps to the next ones.
    pub(crate) fn keeps_maps(&self) -> bool {
        self.ports.iter().any(|port| port.lifetime == Lifetime::Request)
    }

    /// The position of `map` among all maps.
    pub(crate) fn position(&self, map: FeatureMap) -> usize {
        match map {
            FeatureMap::Port(port) => port.index(),
            FeatureMap::Inner(inner) => self.ports.len() + inner.0,
        }
    }
}

/// Rows.
impl Build<'_> {
    /// The rows of `map` that `reach` says, fewer where the picture ends.
    ///
    /// # Errors
    /// [`Error::Graph`] for a map of another model, or an inner one that no pass has written.
    pub fn read_rows(&self, map: impl Into<FeatureMap>, reach: Reach) -> Result<Tensor> {
        self.read_newest_rows(map, reach, usize::MAX)
    }

    /// The same of the last `most` pictures of the map, which are a film's newest frames, or of all if there are no more.
    ///
    /// # Errors
    /// As [`read_rows`](Self::read_rows).
    pub fn read_newest_rows(&self, map: impl Into<FeatureMap>, reach: Reach, most: usize) -> Result<Tensor> {
        let map = map.into();
        let Some(strip) = &self.strip else {
            let whole = self.whole(map)?;
            let [.., pictures] = self.g.shape(whole)?.dims();
            let newest = pictures.min(most);
            return if newest == pictures { Ok(whole) } else { self.g.slice(whole, 3, pictures - newest, newest) };
        };
        if reach.halo() > MOST_HALO {
            return Err(Error::graph("read_rows", format!("{reach:?}, where {MOST_HALO} rows are the most")));
        }
        let [w, height, c, batch] = shape_of(strip.model, map, self.dims)?.dims();
        let rows = reach.rows(&strip.strip.rows, height);
        let dims = [w, rows.len(), c, batch.min(most)];
        if let Some(read) = strip.exchanged.borrow().reads.iter().find(|read| read.map == map) {
            if read.reach == reach && self.g.shape(read.tensor)? == dims {
                return Ok(read.tensor);
            }
            let message = format!("{map:?} is read as {reach:?} of {most} pictures and as {:?}", read.reach);
            return Err(Error::graph("read_rows", message));
        }
        let place = strip.place(&dims)?;
        let tensor = self.g.leaf(&place)?;
        strip.exchanged.borrow_mut().reads.push(RowsRead { map, reach, place, tensor });
        Ok(tensor)
    }

    fn whole(&self, map: FeatureMap) -> Result<Tensor> {
        match map {
            FeatureMap::Port(port) => self.read(port),
            FeatureMap::Inner(inner) => {
                let known = self.inners.borrow().iter().find(|(other, _)| *other == inner).map(|(_, tensor)| *tensor);
                known.ok_or_else(|| Error::graph("read_rows", format!("{inner:?} is read before it is written")))
            }
        }
    }

    /// Writes `value`, the strip's rows of `map`.
    ///
    /// # Errors
    /// [`Error::Graph`] where shapes differ.
    pub fn write_rows(&self, map: impl Into<FeatureMap>, value: Tensor) -> Result<()> {
        let map = map.into();
        let Some(strip) = &self.strip else {
            return match map {
                FeatureMap::Port(port) => self.write(port, value),
                FeatureMap::Inner(inner) => {
                    self.inners.borrow_mut().push((inner, value));
                    Ok(())
                }
            };
        };
        let [w, height, c, batch] = shape_of(strip.model, map, self.dims)?.dims();
        let rows = strip.strip.rows.len();
        let found = self.g.shape(value)?;
        if found != [w, rows, c, batch] || height != strip.strip.height {
            let message = format!("{found} to {map:?}: {rows} rows of [{w}, {height}, {c}, {batch}]");
            return Err(Error::graph("write_rows", message));
        }
        let place = strip.place(&[w, rows, c, batch])?;
        strip.written.borrow_mut().push((value, place.clone()));
        strip.exchanged.borrow_mut().writes.push(RowsWritten { map, place });
        Ok(())
    }

    /// How many bytes a block should make at a time of what it makes in pieces: `whole`, or less in a strip.
    pub fn piece_bytes(&self, whole: usize) -> usize {
        self.strip.as_ref().map_or(whole, |strip| strip.strip.most_bytes.min(whole))
    }

    /// Whether the rows that are read begin where the picture does, and end where it does: where they do not, a
    /// convolution finds neighbours and not zeros.
    pub fn at_edges(&self) -> (bool, bool) {
        self.strip
            .as_ref()
            .map_or((true, true), |strip| (strip.strip.rows.start == 0, strip.strip.rows.end == strip.strip.height))
    }

    /// Whether the strip begins with an odd row of the picture: pinhole's convolutions compute rows in pairs.
    pub fn begins_odd(&self) -> bool {
        self.strip.as_ref().is_some_and(|strip| strip.strip.rows.start % 2 == 1)
    }

    /// `value`, which has `halo` rows more than the strip on either side but at the picture's edges, without them.
    ///
    /// # Errors
    /// [`Error::Graph`] where it has no such rows.
    pub fn crop(&self, value: Tensor, halo: usize) -> Result<Tensor> {
        let Some(strip) = &self.strip else { return Ok(value) };
        let Strip { rows, height, .. } = &strip.strip;
        self.cut(value, Reach::Around(halo).rows(rows, *height), rows.clone())
    }

    /// Of `rows` rows that [`Reach::Half`] of `halo` read, each doubled: the first that is the strip's or one of `halo` more,
    /// and how many there are.
    ///
    /// # Errors
    /// [`Error::Graph`] where they are not among them.
    pub fn rows_of_doubled(&self, rows: usize, halo: usize) -> Result<[usize; 2]> {
        let Some(strip) = &self.strip else { return Ok([0, rows.saturating_mul(2)]) };
        let Strip { rows: own, height, .. } = &strip.strip;
        let from = Reach::Half(halo).rows(own, height / 2);
        let wanted = Reach::Around(halo).rows(own, *height);
        let first = wanted.start.checked_sub(2 * from.start).filter(|first| first + wanted.len() <= 2 * rows);
        let first = first.ok_or_else(|| Error::graph("crop", format!("rows {wanted:?} of {from:?} doubled")))?;
        Ok([first, wanted.len()])
    }

    /// `value`, which holds the rows `has`, with only the rows `wanted`.
    fn cut(&self, value: Tensor, has: Range<usize>, wanted: Range<usize>) -> Result<Tensor> {
        if has == wanted {
            return Ok(value);
        }
        let start = wanted.start.checked_sub(has.start);
        let start = start.ok_or_else(|| Error::graph("crop", format!("rows {wanted:?} of {has:?}")))?;
        self.g.slice(value, 1, start, wanted.len())
    }

    /// The mean of each channel's group over all of `map`, and one over its standard deviation, `[1, 1, c, B]` each. `None` where the graph has the whole map and can see for itself.
    ///
    /// # Errors
    /// [`Error::Graph`] for a map of another model.
    pub fn statistics(&self, map: impl Into<FeatureMap>, norm: GroupStatistics) -> Result<Option<(Tensor, Tensor)>> {
        let map = map.into();
        let Some(strip) = &self.strip else { return Ok(None) };
        let [_, _, c, batch] = shape_of(strip.model, map, self.dims)?.dims();
        let (mean, scale) = (strip.place(&[1, 1, c, batch])?, strip.place(&[1, 1, c, batch])?);
        let tensors = (self.g.leaf(&mean)?, self.g.leaf(&scale)?);
        strip.exchanged.borrow_mut().norms.push(NormRead { map, norm, mean, scale });
        Ok(Some(tensors))
    }

    /// Completes the graph of a strip, and says what it exchanges with the maps.
    pub(crate) fn finish_strip(self) -> Result<Exchanged> {
        let Some(strip) = self.strip else { return Err(Error::graph("strip", "the graph is for whole maps")) };
        if !self.writes.borrow().is_empty() {
            return Err(Error::graph("strip", "a pass wrote a port as a whole"));
        }
        let written = strip.written.take();
        for (value, _) in &written {
            self.g.output(*value)?;
        }
        for (value, place) in &written {
            // All that a strip exchanges lies side by side.
            self.g.store_alone(*value, place)?;
        }
        Ok(Exchanged { bytes: strip.used.get(), ..strip.exchanged.take() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_end_with_the_picture() {
        assert_eq!(Reach::Around(1).rows(&(4..8), 10), 3..9);
        assert_eq!(Reach::Around(2).rows(&(0..9), 10), 0..10);
        assert_eq!(Reach::Twice(1).rows(&(3..5), 12), 6..11);
        assert_eq!(Reach::Twice(1).rows(&(3..6), 12), 6..12);
        assert_eq!(Reach::TwiceAbove(1).rows(&(0..3), 12), 0..6);
        assert_eq!(Reach::TwiceAbove(1).rows(&(3..6), 12), 5..12);
        assert_eq!(Reach::All.rows(&(3..6), 12), 0..12);
    }

    #[test]
    fn doubled_rows_come_from_the_fewest() {
        // Rows 2..4 of the doubled map lie beside 1 and 4, which are copies of 0 and 2.
        assert_eq!(Reach::Half(1).rows(&(2..4), 6), 0..3);
        assert_eq!(Reach::Half(1).rows(&(3..5), 6), 1..3);
        assert_eq!(Reach::Half(1).rows(&(0..1), 6), 0..1);
        assert_eq!(Reach::Half(1).rows(&(11..12), 6), 5..6);
    }
}
