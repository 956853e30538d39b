//! The result in cells, as Winograd's filtering computes it.

use std::ops::Range;

use super::geometry::Geometry;

/// Columns and rows of a cell.
pub(super) const CELL: [usize; 2] = [4, 2];
/// Cells that are computed together: a span.
pub(super) const SPAN: usize = 16;
/// The most cells of a tile side by side: rows above and below it are read and transformed as well.
const TILE_ACROSS: usize = 32;

/// How the cells of all pictures lie. A cell begins in a column that 4 divides and in an even row of the whole picture. If a strip begins with
/// an odd row, its first cells lack their upper half.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Cells side by side.
    pub(super) across: usize,
    /// Rows of cells of one picture, and of all.
    pub(super) down: usize,
    rows: usize,
    /// Columns and rows of the result.
    result: [usize; 2],
    /// Rows that the first row of cells lacks.
    lacking: usize,
}

/// Some cells: a part of some rows, which are counted through all pictures.
#[derive(Clone, Debug)]
pub(super) struct Tile {
    pub(super) grid: Grid,
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Rows of a tile that are of one picture.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) picture: usize,
    /// Rows of cells of this picture.
    pub(super) rows: Range<usize>,
    /// The number of its first cell in the tile.
    pub(super) first: usize,
}

/// Neighbouring cells of one row in one span.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) picture: usize,
    /// The first cell's place in the span.
    pub(super) lane: usize,
    /// The result's pixels in them: columns, and which of the two rows.
    pub(super) columns: Range<usize>,
    pub(super) halves: Range<usize>,
    /// The row of the result that is the first of `halves`.
    pub(super) y: usize,
}

impl Grid {
    pub(super) fn new(geometry: &Geometry) -> Grid {
        let [w, h] = geometry.result;
        let lacking = usize::from(geometry.odd);
        let down = (h + lacking).div_ceil(CELL[1]);
        Grid { across: w.div_ceil(CELL[0]), down, rows: down * geometry.pictures, result: [w, h], lacking }
    }

    /// Columns and rows of tiles that have at most `cells` cells: as many rows as fill spans best.
    pub(super) fn tile_size(&self, cells: usize) -> [usize; 2] {
        let across = self.across.div_ceil(self.across.div_ceil(TILE_ACROSS.min(cells)));
        let most = (cells / across).clamp(1, self.rows);
        let fewest = (most / 2 + 1..=most).rev();
        let down = fewest.min_by_key(|rows| (rows * across).next_multiple_of(SPAN) * most / rows).unwrap_or(most);
        [across, down]
    }

    /// How many tiles of this size there are.
    pub(super) fn tiles(&self, [across, down]: [usize; 2]) -> usize {
        self.across.div_ceil(across) * self.rows.div_ceil(down)
    }

    /// Tile number `tile` of all that are of this size.
    pub(super) fn tile(self, [across, down]: [usize; 2], tile: usize) -> Tile {
        let per_row = self.across.div_ceil(across);
        let (x, y) = (tile % per_row * across, tile / per_row * down);
        Tile { grid: self, columns: x..self.across.min(x + across), rows: y..self.rows.min(y + down) }
    }

    /// How many rows above the padded input the first windows begin, and above the result the first cells.
    #[inline(always)]
    pub(super) fn lacking(&self) -> usize {
        self.lacking
    }
}

impl Tile {
    /// How many cells it has.
    #[inline(always)]
    pub(super) fn cells(&self) -> usize {
        self.columns.len() * self.rows.len()
    }

    /// How many spans that is.
    #[inline(always)]
    pub(super) fn spans(&self) -> usize {
        self.cells().div_ceil(SPAN)
    }

    /// Its rows, picture by picture.
    #[inline(always)]
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        let (down, rows, across) = (self.grid.down, self.rows.clone(), self.columns.len());
        (rows.start / down..rows.end.div_ceil(down)).map(move |picture| {
            let start = rows.start.max(picture * down);
            let end = rows.end.min((picture + 1) * down);
            let first = (start - rows.start) * across;
            Part { picture, rows: start - picture * down..end - picture * down, first }
        })
    }

    /// The cells of span number `span`, row by row.
    #[inline(always)]
    pub(super) fn runs(&self, span: usize) -> [Option<Run>; SPAN] {
        let Grid { down, result: [w, h], lacking, .. } = self.grid;
        let (columns, first_row, across) = (self.columns.clone(), self.rows.start, self.columns.len());
        let cells = span * SPAN..self.cells().min((span + 1) * SPAN);
        let rows = cells.start / across..cells.end.div_ceil(across);
        let mut runs = [const { None }; SPAN];
        for (run, row) in runs.iter_mut().zip(rows) {
            let start = cells.start.max(row * across);
            let end = cells.end.min((row + 1) * across);
            let x = (columns.start + start - row * across) * CELL[0];
            let (picture, pair) = ((first_row + row) / down, (first_row + row) % down * CELL[1]);
            let halves = pair.max(lacking) - pair..CELL[1].min(h + lacking - pair);
            *run = Some(Run {
                picture,
                lane: start - cells.start,
                columns: x..w.min(x + (end - start) * CELL[0]),
                y: pair + halves.start - lacking,
                halves,
            });
        }
        runs
    }
}
