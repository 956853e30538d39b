//! One matrix product: its sizes, and the loops around a kernel.

use std::ops::Range;

use pinhole_quant::DType;

use super::activations::Layout;
use super::format::Format;
use super::micro::Micro;
use super::panel::Panel;
use super::portable::{Portable, PortableWords};
use super::{BLOCK, Kernel};
#[cfg(target_arch = "x86_64")]
use super::{avx_vnni, avx2, avx512, few};
#[cfg(target_arch = "aarch64")]
use super::{dotprod, i8mm};

/// Where a product's result goes: for each token, the rows of one panel.
pub trait Columns {
    /// Takes the numbers of `token`, as many as the panel has rows. It comes once for every token.
    fn put(&mut self, token: usize, numbers: &[f32]);

    /// Whether the result is still wanted. If not, tokens that have not come yet may never come.
    fn wanted(&self) -> bool {
        true
    }
}

/// A part of the packed activations: as many tokens as the kernel takes at once (the last may be fewer), over a stretch of the
/// columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Its tokens.
    pub tokens: Range<usize>,
    /// Its columns, whole blocks.
    pub columns: Range<usize>,
    /// Where it lies.
    pub bytes: Range<usize>,
}

/// The product of weights `[k, rows]` with activations `[k, tokens]`, for one kernel.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    kernel: Kernel,
    format: Format,
    dtype: DType,
    k: usize,
    rows: usize,
    tokens: usize,
}

/// Calls a function that is generic over the kernel for the product's format, its rows and tokens.
macro_rules! dispatch {
    ($product:expr, $name:ident($($argument:expr),*)) => {
        match ($product.kernel, $product.format) {
            #[cfg(target_arch = "x86_64")]
            (Kernel::Avx2, Format::Q4_0) => $name::<avx2::Bytes<8>, { avx2::ROWS }, { avx2::TOKENS }>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            (Kernel::Avx2, Format::Q4_1 | Format::Q4K) => {
                $name::<avx2::Bytes<0>, { avx2::ROWS }, { avx2::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            (Kernel::Avx2, _) | (Kernel::AvxVnni, Format::Q6K) => {
                $name::<avx2::Words, { avx2::ROWS }, { avx2::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            (Kernel::AvxVnni, Format::Q4_0 | Format::Q5_0 | Format::Q8_0) => {
                $name::<avx_vnni::Vnni<{ avx512::OFFSET }>, { avx2::ROWS }, { avx2::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            (Kernel::AvxVnni, _) => {
                $name::<avx_vnni::Vnni<0>, { avx2::ROWS }, { avx2::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            (Kernel::Avx512Vnni, Format::Q4_0 | Format::Q5_0 | Format::Q8_0) => {
                $name::<avx512::Vnni<{ avx512::OFFSET }>, { avx512::ROWS }, { avx512::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            (Kernel::Avx512Vnni, Format::Q6K) => {
                $name::<avx512::VnniOfHalves, { avx512::ROWS }, { avx512::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            (Kernel::Avx512Vnni, _) => {
                $name::<avx512::Vnni<0>, { avx512::ROWS }, { avx512::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "aarch64")]
            (Kernel::Dotprod, Format::Q4_0 | Format::Q5_0 | Format::Q8_0) => {
                $name::<dotprod::Dotprod<false>, { dotprod::ROWS }, { dotprod::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "aarch64")]
            (Kernel::Dotprod, _) => {
                $name::<dotprod::Dotprod<true>, { dotprod::ROWS }, { dotprod::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "aarch64")]
            (Kernel::I8mm, Format::Q4_0 | Format::Q5_0 | Format::Q8_0) => {
                $name::<i8mm::I8mm<false>, { i8mm::ROWS }, { i8mm::TOKENS }>($($argument),*)
            }
            #[cfg(target_arch = "aarch64")]
            (Kernel::I8mm, _) => $name::<i8mm::I8mm<true>, { i8mm::ROWS }, { i8mm::TOKENS }>($($argument),*),
            (_, Format::Q6K) => $name::<PortableWords, 8, 4>($($argument),*),
            _ => $name::<Portable, 8, 4>($($argument),*),
        }
    };
}

impl Product {
    /// The product of these sizes. `None` where the processor lacks the instructions, there is no kernel for the format, blocks
    /// do not divide `k`, or sizes overflow.
    pub fn new(kernel: Kernel, dtype: DType, k: usize, rows: usize, tokens: usize) -> Option<Product> {
        let format = Format::of(dtype).filter(|_| kernel.is_available() && kernel.multiplies(dtype))?;
        dtype.row_bytes(k)?.checked_mul(rows)?;
        let product = Product { kernel, format, dtype, k, rows, tokens };
        (k / BLOCK).checked_mul(product.layout().record_bytes())?.checked_mul(product.groups())?;
        Some(product)
    }

    /// Tokens, columns of the result.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows of the weights, and of the result.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of a row of weights.
    pub fn row_bytes(&self) -> usize {
        self.k / self.dtype.block_size() * self.dtype.block_bytes()
    }

    /// How its activations lie. Products of equal layout, `k` and tokens can share them.
    pub fn layout(&self) -> Layout {
        #[cfg(target_arch = "x86_64")]
        if self.has_few_tokens() {
            return few::LAYOUT;
        }
        fn layout<M: Micro<R, T>, const R: usize, const T: usize>() -> Layout {
            M::LAYOUT
        }
        dispatch!(self, layout())
    }

    /// Whether there are too few tokens for panels.
    #[cfg(target_arch = "x86_64")]
    fn has_few_tokens(&self) -> bool {
        self.tokens <= few::TOKENS && matches!(self.kernel, Kernel::Avx2 | Kernel::AvxVnni | Kernel::Avx512Vnni)
    }

    /// Groups of tokens that the kernel takes at once.
    fn groups(&self) -> usize {
        self.tokens.div_ceil(self.layout().tokens)
    }

    /// Tiles of the activations: those of all tokens over the first stretch of columns, then over the next, as panels of the
    /// weights meet them.
    pub fn tiles(&self) -> usize {
        self.groups() * self.k.div_ceil(self.layout().stretch)
    }

    /// Tile number `i`.
    pub fn tile(&self, i: usize) -> Tile {
        let (layout, groups) = (self.layout(), self.groups());
        let (start, group) = (i / groups * layout.stretch, i % groups);
        let columns = start..self.k.min(start + layout.stretch);
        let first = self.records_bytes(groups * start + group * columns.len());
        Tile {
            tokens: group * layout.tokens..self.tokens.min((group + 1) * layout.tokens),
            bytes: first..first + self.records_bytes(columns.len()),
            columns,
        }
    }

    /// Bytes of all activations as the kernel wants them: its tiles, one after another.
    pub fn packed_bytes(&self) -> usize {
        self.records_bytes(self.groups() * self.k)
    }

    /// Rows of weights that are computed together.
    pub fn panel_rows(&self) -> usize {
        fn rows<M: Micro<R, T>, const R: usize, const T: usize>() -> usize {
            R
        }
        #[cfg(target_arch = "x86_64")]
        if self.has_few_tokens() {
            return super::format::EIGHT;
        }
        dispatch!(self, rows())
    }

    /// Panels of rows.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(self.panel_rows())
    }

    /// Bytes of `numbers` columns of a group of tokens, whole blocks.
    pub fn records_bytes(&self, numbers: usize) -> usize {
        numbers / BLOCK * self.layout().record_bytes()
    }

    /// Quantizes `tokens`, those of one tile, to `records`: the tile, or that part of it which belongs to some of its columns,
    /// where tokens have the numbers of these alone. They are whole blocks.
    ///
    /// # Panics
    /// Where there are more tokens, or lengths are others.
    pub fn pack(&self, tokens: &[&[f32]], records: &mut [u8]) {
        fn pack<M: Micro<R, T>, const R: usize, const T: usize>(tokens: &[&[f32]], tile: &mut [u8]) {
            // SAFETY: `Product::new` saw that the processor has the kernel's instructions.
            unsafe { M::pack(tokens, tile) }
        }
        let numbers = tokens.first().map_or(0, |token| token.len());
        assert!(tokens.len() <= self.layout().tokens && tokens.iter().all(|token| token.len() == numbers));
        assert!(numbers.is_multiple_of(BLOCK));
        assert_eq!(records.len(), self.records_bytes(numbers));
        #[cfg(target_arch = "x86_64")]
        if self.has_few_tokens() {
            // SAFETY: `Product::new` saw that the processor has the kernel's instructions, these among them.
            return unsafe { few::pack(tokens, records) };
        }
        dispatch!(self, pack(tokens, records))
    }

    /// Multiplies the rows of one panel, `weights` (each row's bytes), with all tokens, `packed`, into `out`. What `workspace`
    /// holds does not matter.
    ///
    /// # Panics
    /// Where there are more rows than a panel has, or lengths are others than those of the product.
    pub fn multiply(&self, weights: &[&[u8]], packed: &[u8], workspace: &mut Workspace, out: &mut impl Columns) {
        assert!(weights.len() <= self.panel_rows());
        assert!(weights.iter().all(|row| row.len() == self.row_bytes()));
        assert_eq!(packed.len(), self.packed_bytes());
        #[cfg(target_arch = "x86_64")]
        if self.has_few_tokens() {
            // SAFETY: `Product::new` saw that the processor has the kernel's instructions, these among them.
            let products = unsafe { few::products(self.format, weights, packed, self.tokens) };
            for (token, numbers) in products[..self.tokens].iter().enumerate() {
                out.put(token, &numbers[..weights.len()]);
            }
            return;
        }
        dispatch!(self, multiply(self, weights, packed, workspace, out))
    }
}

/// Sums that are kept together, on the stack: 64 KiB, those of 1024 tokens with 16 rows. Fewer would unpack the weights more
/// often.
const SUMS: usize = 16 << 10;

/// What a thread computes panels in: 85 KiB, which are meant to be on its stack.
pub struct Workspace {
    panel: Panel,
    sums: [f32; SUMS],
}

impl Workspace {
    /// One for any products, one panel after another.
    #[allow(clippy::new_without_default)] // 85 KiB are not to come from where no one looks.
    pub fn new() -> Workspace {
        Workspace { panel: Panel::new(), sums: [0.0; SUMS] }
    }
}

/// The loops around the kernel `M`: over shares of the groups, as many groups as the buffer has room for; over the stretches of
/// columns; and over the share's groups, one tile each.
///
/// Sums stay in a buffer of their own until they are whole. The result's columns lie a whole row of it apart, mostly a multiple
/// of the page: to go back to them after every stretch is to miss the caches and the translation of addresses each time.
fn multiply<M: Micro<R, T>, const R: usize, const T: usize>(
    product: &Product,
    weights: &[&[u8]],
    packed: &[u8],
    Workspace { panel, sums }: &mut Workspace,
    out: &mut impl Columns,
) {
    let sums = sums.as_chunks_mut::<R>().0.as_chunks_mut::<T>().0;
    let groups = product.groups();
    // Shares of equal size: a small last one would not be worth its unpacking.
    let share = groups.div_ceil(groups.div_ceil(sums.len()).max(1)).max(1);
    for first in (0..groups).step_by(share) {
        if !out.wanted() {
            return;
        }
        let sums = &mut sums[..share.min(groups - first)];
        sums.fill([[0.0; R]; T]);
        add_stretches::<M, R, T>(product, panel, weights, packed, first, sums);
        let tokens = first * T..product.tokens;
        for (token, sums) in tokens.zip(sums.as_flattened()) {
            out.put(token, &sums[..weights.len()]);
        }
    }
}

/// Adds to `sums` of the groups of tokens from `first` on the products of one panel's rows, stretch after stretch of the columns.
fn add_stretches<M: Micro<R, T>, const R: usize, const T: usize>(
    product: &Product,
    panel: &mut Panel,
    weights: &[&[u8]],
    packed: &[u8],
    first: usize,
    sums: &mut [[[f32; R]; T]],
) {
    let (numbers, bytes) = (product.dtype.block_size(), product.dtype.block_bytes());
    for i in (first..product.tiles()).step_by(product.groups()) {
        let tile = product.tile(i);
        let mut rows: [&[u8]; R] = [&[]; R];
        for (stretch, row) in rows.iter_mut().zip(weights) {
            *stretch = &row[tile.columns.start / numbers * bytes..tile.columns.end / numbers * bytes];
        }
        // SAFETY: `Product::new` saw that the processor has the kernel's instructions.
        unsafe { M::unpack(panel, product.format, &rows[..weights.len()]) };
        let tiles = packed[tile.bytes.start..].chunks_exact(tile.bytes.len());
        for (group, (records, sums)) in (first..).zip(tiles.zip(&mut *sums)) {
            let tokens = T.min(product.tokens - group * T);
            // SAFETY: as above; the records are whole, and no more than the panel's blocks.
            unsafe { M::tile(product.format, panel, records, tokens, sums) };
        }
    }
}
