//! From a model's weights to the bytes of a file.
//!
//! [`Bound`] says, for each weight of a [`Manifest`], which tensors of a file, and which of their rows, make it up, one below the other:
//! one tensor as it is, three for a fused `qkv`, two swapped halves. While binding, nothing is read but scales and matrices that
//! lie transposed.

pub mod alias;
mod contents;
mod lacking;
pub mod lora;
mod piece;
mod scale;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alias::{Aliases, Alternative, Rows};
pub(crate) use contents::Content;
pub use lacking::{missing, refuse_parts_of_blocks, strays};
pub use piece::Piece;
use piece::{holds_weights, no_memory, squeezed, zeros};
use pinhole_quant::{DType, rows};

use crate::index::{FileTensor, Index, Storage};
use crate::tensor::Shape;
use crate::weights::{Manifest, Weight, WeightId};
use crate::{Error, Result};

/// Where every weight of a model comes from.
#[derive(Clone, Debug)]
pub struct Bound {
    pieces: Vec<Vec<Piece>>,
    /// What is added to the rows of tables that stay on the host.
    on_tables: Vec<(WeightId, Arc<lora::Delta>)>,
    unused: Vec<String>,
    origin: PathBuf,
}

impl Bound {
    /// Finds every weight of `manifest` in `index`, under `prefix` and one of its `aliases`. `origin` is the file or
    /// directory, for messages.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming the tensors that are missing, or the first whose shape is wrong.
    pub fn new(manifest: &Manifest, index: &Index, prefix: &str, aliases: Aliases<'_>, origin: &Path) -> Result<Bound> {
        Bound::over(manifest, (index, prefix), aliases, origin, None)
    }

    /// The same, except that a weight that the file does not have is that of the same name in `base`, if there is one.
    ///
    /// # Errors
    /// As [`new`](Bound::new); [`Error::Mismatch`] for a weight of another shape in `base`.
    pub fn over(
        manifest: &Manifest,
        (index, prefix): (&Index, &str),
        aliases: Aliases<'_>,
        origin: &Path,
        base: Option<(&Manifest, &Bound)>,
    ) -> Result<Bound> {
        let (mut pieces, mut missing, mut used) = (Vec::with_capacity(manifest.len()), Vec::new(), HashSet::new());
        for (_, weight) in manifest.iter() {
            match resolve(index, prefix, aliases(&weight.name)) {
                Some(found) => {
                    let mut found = fit(weight, found, origin)?;
                    for piece in &mut found {
                        let scale = scale::of(index, &piece.name, &piece.tensor, origin)?;
                        piece.scale = scale.factor;
                        used.insert(piece.name.clone());
                        used.extend(scale.beside);
                    }
                    pieces.push(found);
                }
                None => match lacking::unreadable(index, prefix, aliases(&weight.name)) {
                    Some(other) => return Err(other.refusal()),
                    None => match base.map(|base| below(weight, base)).transpose()?.flatten() {
                        Some(found) => pieces.push(found),
                        None => missing.push(weight.name.as_str()),
                    },
                },
            }
        }
        if !missing.is_empty() {
            return Err(lacking::several(index, prefix, aliases, (&missing, manifest), origin));
        }
        let unused = index.names().filter(|name| name.starts_with(prefix));
        let unused = unused.filter(|name| !used.contains(*name)).map(str::to_owned).collect();
        Ok(Bound { pieces, on_tables: Vec::new(), unused, origin: origin.to_owned() })
    }

    /// The weights of `manifest`, which are those of several networks, each given by what stands before its names, with its own
    /// manifest and where its weights are. The first is the network whose file or directory this is.
    ///
    /// # Errors
    /// [`Error::Graph`] where a weight is in none of them.
    pub fn joined(manifest: &Manifest, networks: &[(&str, &Manifest, &Bound)]) -> Result<Bound> {
        let mut by_name = HashMap::new();
        for (prefix, own, bound) in networks {
            for (id, weight) in own.iter() {
                by_name.insert(format!("{prefix}{}", weight.name), &bound.pieces[id.index()]);
            }
        }
        let [(.., first), ..] = networks else { return Err(Error::graph("bind", "no networks")) };
        let mut pieces = Vec::with_capacity(manifest.len());
        for (_, weight) in manifest.iter() {
            let found = by_name.get(&weight.name).map(|found| (*found).clone());
            pieces.push(found.ok_or_else(|| Error::graph("bind", format!("no network has {}", weight.name)))?);
        }
        Ok(Bound { pieces, on_tables: Vec::new(), unused: first.unused.clone(), origin: first.origin.clone() })
    }

    /// The pieces of `id`, first rows first.
    ///
    /// # Panics
    /// For an id of another, longer manifest.
    pub fn pieces(&self, id: WeightId) -> &[Piece] {
        &self.pieces[id.index()]
    }

    /// Binds `id`, the weight that was declared last, to `pieces`.
    ///
    /// # Errors
    /// [`Error::Graph`] where weights before it are not bound, or the pieces do not make it up.
    fn add(&mut self, manifest: &Manifest, id: WeightId, pieces: Vec<Piece>) -> Result<()> {
        let weight = manifest.get(id);
        let numbers: usize = pieces.iter().map(Piece::len).sum();
        if id.index() != self.pieces.len() || numbers != weight.shape.elements() {
            let message = format!("{} of {} from {numbers} numbers", weight.name, weight.shape);
            return Err(Error::graph("bind", message));
        }
        self.pieces.push(pieces);
        Ok(())
    }

    /// Gives the rows of `name`, which are as long as `before` has them, zeros until they are as long as `after` has them. Nothing else
    /// differs between the two.
    ///
    /// # Errors
    /// [`Error::Graph`] for manifests that differ in more; those of [`read_f32`](Bound::read_f32).
    pub(crate) fn widen(&mut self, before: &Manifest, after: &Manifest, name: &str) -> Result<()> {
        let mut widened = None;
        for ((id, was), (_, is)) in before.iter().zip(after.iter()) {
            if was.name == name && is.name == name {
                widened = Some((id, was.shape, is.shape));
            } else if (&was.name, was.shape) != (&is.name, is.shape) {
                return Err(Error::graph("widen", format!("{} and {}", was.name, is.name)));
            }
        }
        let Some((id, was, is)) = widened.filter(|_| before.len() == after.len()) else {
            return Err(Error::graph("widen", format!("no {name}")));
        };
        let mut numbers = zeros(is.elements())?;
        let narrow = self.read_f32(id)?;
        for (row, narrow) in numbers.chunks_exact_mut(is.row()).zip(narrow.chunks_exact(was.row())) {
            let kept = narrow.len().min(row.len());
            row[..kept].copy_from_slice(&narrow[..kept]);
        }
        self.pieces[id.index()] = vec![Piece::in_memory(name, &self.origin, &numbers)?];
        Ok(())
    }

    /// Reads the numbers of `id` from number `start` on.
    ///
    /// # Errors
    /// [`Error::Graph`] where it has fewer; [`Error::Mismatch`] for a storage that holds no weights.
    fn read_numbers(&self, id: WeightId, start: usize, out: &mut [f32]) -> Result<()> {
        let mut filled = 0;
        for part in self.parts(id, start..start + out.len()) {
            part.read_f32(&mut out[filled..filled + part.len()])?;
            filled += part.len();
        }
        match filled == out.len() {
            true => Ok(()),
            false => {
                Err(Error::graph("read", format!("{} numbers from {start} on, and {filled} are there", out.len())))
            }
        }
    }

    /// What gives `numbers` of `id`.
    pub(crate) fn parts(&self, id: WeightId, numbers: Range<usize>) -> Vec<Piece> {
        let (mut parts, mut first) = (Vec::new(), 0);
        for piece in self.pieces(id) {
            let (start, end) = (numbers.start.max(first), numbers.end.min(first + piece.len()));
            if start < end {
                parts.push(piece.part(start - first, end - start));
            }
            first += piece.len();
        }
        parts
    }

    /// The tensors of the file, under the prefix, that no weight wanted.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// The file or directory.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The rows of one tensor that are the whole weight, if there are some.
    pub fn in_one_piece(&self, id: WeightId) -> Option<&Piece> {
        match self.pieces(id) {
            [piece] => Some(piece),
            _ => None,
        }
    }

    /// The format that holds the weight exactly: that of its pieces where all have one that ggml knows, F16 for 8-bit
    /// floats, and F32 for a mixture.
    pub fn dtype(&self, id: WeightId) -> DType {
        let mut dtypes = self.pieces(id).iter().map(|piece| match piece.storage() {
            Storage::Number(dtype) => dtype,
            Storage::F8E4M3 | Storage::F8E5M2 => DType::F16,
            _ => DType::F32,
        });
        let first = dtypes.next().unwrap_or(DType::F32);
        if dtypes.all(|dtype| dtype == first) { first } else { DType::F32 }
    }

    /// The whole weight as f32.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Mismatch`] for a storage that holds no weights.
    pub fn read_f32(&self, id: WeightId) -> Result<Vec<f32>> {
        let mut out = zeros(self.pieces(id).iter().map(Piece::len).sum())?;
        let mut rest = out.as_mut_slice();
        for piece in self.pieces(id) {
            let (here, after) = rest.split_at_mut(piece.len());
            piece.read_f32(here)?;
            rest = after;
        }
        Ok(out)
    }

    /// The bytes of the weight in `dtype`: joined as they are where the pieces are of that format, converted otherwise.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Mismatch`] for a storage that holds no weights.
    pub fn read_as(&self, id: WeightId, row: usize, dtype: DType) -> Result<Vec<u8>> {
        let pieces = self.pieces(id);
        if pieces.iter().all(|piece| piece.is_stored_as(dtype)) {
            let mut bytes = Vec::new();
            let total = pieces.iter().map(|piece| piece.bytes().len()).sum();
            bytes.try_reserve_exact(total).map_err(|_| no_memory(total))?;
            pieces.iter().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
            return Ok(bytes);
        }
        let numbers = self.read_f32(id)?;
        let total = dtype.row_bytes(row).and_then(|bytes| bytes.checked_mul(numbers.len() / row.max(1)));
        let total = total.ok_or_else(|| no_memory(usize::MAX))?;
        let mut bytes = zeros(total)?;
        rows::quantize_parallel(dtype, &numbers, row, &mut bytes).map_err(|error| {
            Error::mismatch(&self.origin, pieces[0].name(), "a weight to convert", error.to_string())
        })?;
        Ok(bytes)
    }

    /// Rows `ids` of the table `id`, whose rows are `row` numbers long, one after the other.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a row that the table has not.
    pub fn gather(&self, id: WeightId, row: usize, ids: &[u32]) -> Result<Vec<f32>> {
        let mut out = zeros(row * ids.len())?;
        for (&id_row, out) in ids.iter().zip(out.chunks_exact_mut(row)) {
            let mut start = id_row as usize * row;
            let piece = self.pieces(id).iter().find(|piece| {
                let inside = start < piece.len();
                start -= if inside { 0 } else { piece.len() };
                inside
            });
            let piece = piece.ok_or_else(|| {
                let found = self.pieces(id).iter().map(Piece::len).sum::<usize>() / row.max(1);
                let at = self.pieces(id).first().map_or("", Piece::name);
                Error::mismatch(&self.origin, at, format!("a table with a row {id_row}"), format!("{found} rows"))
            })?;
            let rows =
                Piece { numbers: piece.numbers.start + start..piece.numbers.start + start + row, ..piece.clone() };
            rows.read_f32(out)?;
            for (_, delta) in self.on_tables.iter().filter(|(table, _)| *table == id) {
                delta.add_row(id_row as usize, out)?;
            }
        }
        Ok(out)
    }
}

/// Where `weight` is in the network of `base`; `None` if it has no weight of this name.
fn below(weight: &Weight, (manifest, bound): (&Manifest, &Bound)) -> Result<Option<Vec<Piece>>> {
    let Some((id, own)) = manifest.iter().find(|(_, own)| own.name == weight.name) else { return Ok(None) };
    if own.shape != weight.shape {
        let (expected, found) = (format!("shape {}", weight.shape), own.shape.to_string());
        return Err(Error::mismatch(&bound.origin, format!("weight {}", weight.name), expected, found));
    }
    Ok(Some(bound.pieces(id).to_vec()))
}

/// A tensor that was found, and which of its rows are meant.
type Found<'a> = (String, &'a FileTensor, Rows);

/// The first alternative whose parts are all in the index.
fn resolve<'a>(index: &'a Index, prefix: &str, alternatives: Vec<Alternative>) -> Option<Vec<Found<'a>>> {
    alternatives.into_iter().filter(|parts| !parts.is_empty()).find_map(|parts| {
        parts
            .into_iter()
            .map(|part| {
                let name = format!("{prefix}{}", part.name);
                index.get(&name).map(|tensor| (name, tensor, part.rows))
            })
            .collect()
    })
}

/// The shape that `name` has in `index`, so that a configuration can be read off the weights. Parts are taken as rows one
/// below the other, and kernels over time as they lie. Whether weights can be read from them is not asked here: [`Bound::new`] says it of each that it needs.
pub fn shape_of(index: &Index, prefix: &str, aliases: Aliases<'_>, name: &str) -> Option<Shape> {
    let shape = |part: &alias::Part| Some((index.shape(&format!("{prefix}{}", part.name))?, part.rows));
    let found = aliases(name)
        .into_iter()
        .filter(|parts| !parts.is_empty())
        .find_map(|parts| parts.iter().map(shape).collect::<Option<Vec<_>>>())?;
    let [(first, rows), rest @ ..] = found.as_slice() else { return None };
    if rest.is_empty() && matches!(rows, Rows::All | Rows::LastPlane | Rows::Plane(_) | Rows::Flat) {
        return Some(*first);
    }
    if rest.is_empty() && *rows == Rows::Columns {
        return transposed(*first);
    }
    let rows = found.iter().map(|(shape, rows)| shape.rows() / rows.fraction().1);
    Shape::new(&[first.row(), rows.sum::<usize>()])
}

/// Checks that the parts make up the weight, and turns them into pieces.
fn fit(weight: &Weight, found: Vec<Found<'_>>, origin: &Path) -> Result<Vec<Piece>> {
    let expected = weight.shape;
    let shapes = found.iter().map(|(_, tensor, _)| tensor.shape.to_string()).collect::<Vec<_>>().join(" + ");
    let names = found.iter().map(|(name, _, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let wrong = || Error::mismatch(origin, format!("tensor {names}"), format!("shape {expected}"), shapes.clone());
    let mut pieces = Vec::with_capacity(found.len());
    let single = found.len() == 1;
    for (name, tensor, rows) in found {
        if rows == Rows::Columns {
            if !single || transposed(tensor.shape).is_none_or(|shape| shape != expected) {
                return Err(wrong());
            }
            pieces.push(Piece::columns(&name, tensor)?);
            continue;
        }
        if let Some(at) = plane_of(rows) {
            pieces.push(Piece::planes(&name, tensor, expected, at).filter(|_| single).ok_or_else(wrong)?);
            continue;
        }
        let (at, of) = rows.fraction();
        let each = tensor.shape.elements() / of;
        let numbers = at * each..(at + 1) * each;
        // A stack of rows needs rows of the weight's length; parts of a row-less vector are fine.
        let stackable = expected.rank() == 1 || tensor.shape.row() == expected.row();
        let same = match rows {
            Rows::All if single => squeezed(tensor.shape) == squeezed(expected),
            Rows::Flat => single && is_flat(tensor, expected),
            _ => stackable,
        };
        let whole_blocks = numbers.start.is_multiple_of(tensor.storage.block_size())
            && numbers.end.is_multiple_of(tensor.storage.block_size());
        if !same || !whole_blocks || !tensor.shape.elements().is_multiple_of(of) {
            return Err(wrong());
        }
        pieces.push(Piece { name, tensor: tensor.clone(), numbers, planes: None, scale: 1.0 });
    }
    if pieces.iter().map(Piece::len).sum::<usize>() != expected.elements() {
        return Err(wrong());
    }
    for piece in &pieces {
        if !holds_weights(piece.storage()) {
            return Err(piece.unreadable(piece.storage().to_string()));
        }
    }
    Ok(pieces)
}

/// Whether a kernel, as it lies in a file or with its last two extents put together, has as many numbers for each output as a row of a
/// matrix of `expected` has.
fn is_flat(tensor: &FileTensor, expected: Shape) -> bool {
    let [row, outputs, ..] = expected.dims();
    let last = tensor.file_shape.last().copied().unwrap_or(0);
    let is_whole = squeezed(tensor.shape) == squeezed(expected) || last == outputs || last.is_multiple_of(outputs);
    is_whole && tensor.shape.elements() == row * outputs
}

/// Which plane of a kernel over time is meant, if one is; `Some(None)` for the last.
fn plane_of(rows: Rows) -> Option<Option<usize>> {
    match rows {
        Rows::LastPlane => Some(None),
        Rows::Plane(at) => Some(Some(at.into())),
        _ => None,
    }
}

/// The shape of the transpose of a matrix of `shape`; `None` if that is no matrix.
fn transposed(shape: Shape) -> Option<Shape> {
    let [columns, rows, 1, 1] = shape.dims() else { return None };
    Shape::new(&[rows, columns])
}
