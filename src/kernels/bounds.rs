//! No kernel touches anything beside what it is given: operands and results begin where the memory before them may not be touched, or end where
//! that behind them may not. A kernel that does ends the tests with a signal.

use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr;

use half::f16;
use pinhole_quant::{DType, rows};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::*;

/// Where memory begins or ends that may not be touched.
#[derive(Clone, Copy, Debug)]
enum Fence {
    Before,
    Behind,
}

const FENCES: [Fence; 2] = [Fence::Before, Fence::Behind];

/// Numbers beside memory that may not be touched.
struct Fenced<T> {
    map: *mut c_void,
    bytes: usize,
    first: *mut T,
    len: usize,
}

impl<T: Copy> Fenced<T> {
    fn new(numbers: &[T], fence: Fence) -> Fenced<T> {
        let (page, size) = (rustix::param::page_size(), size_of_val(numbers));
        let open = size.next_multiple_of(page);
        let bytes = open + 2 * page;
        // SAFETY: a map of its own, whose pages between the first and the last are opened. The numbers fit there, and are aligned since
        // their size is a multiple of a number's.
        unsafe {
            let map = mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::empty(), MapFlags::PRIVATE).unwrap();
            let start = map.byte_add(page);
            mprotect(start, open, MprotectFlags::READ | MprotectFlags::WRITE).unwrap();
            let first = match fence {
                Fence::Before => start,
                Fence::Behind => start.byte_add(open - size),
            };
            let first = first.cast::<T>();
            ptr::copy_nonoverlapping(numbers.as_ptr(), first, numbers.len());
            Fenced { map, bytes, first, len: numbers.len() }
        }
    }
}

impl<T> Deref for Fenced<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` wrote so many there.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}

impl<T> DerefMut for Fenced<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; they are this value's alone.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<T> Drop for Fenced<T> {
    fn drop(&mut self) {
        // SAFETY: the map is this value's own.
        unsafe { munmap(self.map, self.bytes).unwrap() };
    }
}

/// Rows that are each beside such memory.
fn fenced_rows<T: Copy>(numbers: &[T], width: usize, fence: Fence) -> Vec<Fenced<T>> {
    numbers.chunks(width).map(|row| Fenced::new(row, fence)).collect()
}

fn slices<T>(rows: &[Fenced<T>]) -> Vec<&[T]> {
    rows.iter().map(|row| &**row).collect()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// Numbers in -1 to 1, without any pattern.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mixed = |i: u32| (i ^ seed.wrapping_mul(0x85EB_CA6B)).wrapping_mul(0x9E37_79B9);
    (0..len as u32).map(|i| (mixed(mixed(i) >> 7) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

struct Matrix {
    numbers: Vec<f32>,
    rows: usize,
    /// The first row of the panel at hand.
    panel: usize,
}

impl Columns for Matrix {
    fn put(&mut self, token: usize, numbers: &[f32]) {
        self.numbers[token * self.rows + self.panel..][..numbers.len()].copy_from_slice(numbers);
    }
}

fn product(kernel: Kernel, dtype: DType, k: usize, (weights, tokens): (&[&[u8]], &[f32]), fence: Fence) -> Vec<u32> {
    let count = tokens.len() / k;
    let product = Product::new(kernel, dtype, k, weights.len(), count).unwrap();
    let mut packed = Fenced::new(&vec![0u8; product.packed_bytes()], fence);
    for tile in (0..product.tiles()).map(|i| product.tile(i)) {
        let all: Vec<&[f32]> = tokens.chunks(k).collect();
        let some = all[tile.tokens].iter().map(|token| Fenced::new(&token[tile.columns.clone()], fence));
        let some: Vec<Fenced<f32>> = some.collect();
        let mut records = Fenced::new(&packed[tile.bytes.clone()], fence);
        product.pack(&slices(&some), &mut records);
        packed[tile.bytes].copy_from_slice(&records);
    }
    let mut out = Matrix { numbers: vec![f32::NAN; weights.len() * count], rows: weights.len(), panel: 0 };
    let mut workspace = Workspace::new();
    for panel in weights.chunks(product.panel_rows()) {
        product.multiply(panel, &packed, &mut workspace, &mut out);
        out.panel += panel.len();
    }
    bits(&out.numbers)
}

#[test]
fn products() {
    for (dtype, fence) in DType::all().flat_map(|dtype| FENCES.map(|fence| (dtype, fence))) {
        if !Kernel::Portable.multiplies(dtype) {
            continue;
        }
        // A single block, several panels of columns, rows that fill no panel; few tokens, and more than few.
        for (i, [blocks, rows_of, tokens]) in
            [[1, 1, 1], [1, 35, 5], [3, 17, 12], [5, 9, 14], [9, 33, 51]].into_iter().enumerate()
        {
            let k = blocks * dtype.block_size();
            let mut bytes = vec![0; dtype.row_bytes(k).unwrap() * rows_of];
            rows::quantize(dtype, &numbers(k * rows_of, i as u32), k, &mut bytes).unwrap();
            let weights = fenced_rows(&bytes, dtype.row_bytes(k).unwrap(), fence);
            let (weights, tokens) = (slices(&weights), numbers(k * tokens, 99));
            let plain = product(Kernel::Portable, dtype, k, (&weights, &tokens), fence);
            for kernel in Kernel::available().filter(|kernel| kernel.multiplies(dtype)) {
                assert_eq!(
                    plain,
                    product(kernel, dtype, k, (&weights, &tokens), fence),
                    "{kernel:?} {dtype} {fence:?}"
                );
            }
        }
    }
}

impl Tokens for Vec<Fenced<f32>> {
    fn token(&self, i: usize) -> &[f32] {
        &self[i]
    }
}

#[test]
fn products_of_floats() {
    for fence in FENCES {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for [k, rows, tokens] in [[1, 1, 1], [7, 3, 5], [31, 17, 6], [257, 33, 13], [300, 130, 7]] {
                // Any bytes will do for halves, except those of infinity and of what is no number.
                let all = numbers(rows * k, 3);
                let bytes: Vec<u8> = match dtype {
                    DType::F32 => all.iter().flat_map(|number| number.to_ne_bytes()).collect(),
                    _ => all.iter().flat_map(|number| f16::from_f32(*number).to_ne_bytes()).collect(),
                };
                let weights = fenced_rows(&bytes, bytes.len() / rows, fence);
                let activations = fenced_rows(&numbers(k * tokens, 4), k, fence);
                let by = |kernel| {
                    let product = FloatProduct::new(kernel, dtype, k, rows, tokens).unwrap();
                    let (mut space, mut found) = (product.space().unwrap(), vec![f32::NAN; rows * tokens]);
                    for i in 0..product.pieces() {
                        let first = product.piece(i)[0].start;
                        product.compute(
                            i,
                            |row| &weights[row],
                            &activations,
                            &mut space,
                            |token, numbers| {
                                found[token * rows + first..][..numbers.len()].copy_from_slice(numbers);
                            },
                        );
                    }
                    bits(&found)
                };
                let plain = by(Kernel::Portable);
                for kernel in Kernel::available() {
                    assert_eq!(plain, by(kernel), "{kernel:?} {dtype} {k} {rows} {tokens} {fence:?}");
                }
            }
        }
    }
}

/// Rows of tokens of so many heads.
struct Tokened {
    rows: Vec<Fenced<f32>>,
    heads: usize,
}

impl Tokened {
    fn new([width, heads, tokens]: [usize; 3], fence: Fence, seed: u32) -> Tokened {
        Tokened { rows: fenced_rows(&numbers(width * heads * tokens, seed), width, fence), heads }
    }
}

impl Rows for &Tokened {
    fn row(&self, token: usize, head: usize) -> &[f32] {
        &self.rows[token * self.heads + head]
    }
}

impl Outputs for Tokened {
    fn row(&mut self, query: usize, head: usize) -> &mut [f32] {
        &mut self.rows[query * self.heads + head]
    }
}

#[test]
fn attentions() {
    // Every head size that a model has, and odd ones.
    let widths = [1, 3, 7, 9, 13, 17, 31].into_iter().chain((8..=160).step_by(8)).chain([384, 512, 513, 700]);
    for (i, width) in widths.enumerate() {
        let (queries, keys) = ([1, 5, 12, 14, 27][i % 5], [1, 2, 15, 17, 33, 300][i % 6]);
        let heads = Heads { width, queries, keys, heads: 2, groups: 1 };
        for fence in FENCES {
            let q = Tokened::new([width, 2, queries], fence, 1);
            let [k, v] = [2, 3].map(|seed| Tokened::new([width, 1, keys], fence, seed));
            let mask: Vec<f16> = numbers(keys * queries, 5).into_iter().map(f16::from_f32).collect();
            let mask = Fenced::new(&mask, fence);
            for precision in [Precision::Exact, Precision::Codes] {
                let by = |kernel| {
                    let attention = Attention::new(kernel, heads, 0.3, precision).unwrap();
                    let mask = (i % 2 == 1).then_some(&*mask);
                    let attended = Attended { q: &q, k: &k, v: &v, mask };
                    let (mut space, mut result) =
                        (attention.space().unwrap(), Tokened::new([width, 2, queries], fence, 0));
                    for tile in 0..attention.tiles() {
                        attention.compute(tile, &attended, &mut space, &mut result);
                    }
                    result.rows.iter().map(|row| bits(row)).collect::<Vec<_>>()
                };
                let plain = by(Kernel::Portable);
                for kernel in Kernel::available() {
                    assert!(plain == by(kernel), "{kernel:?} {heads:?} {precision:?} {fence:?}");
                }
            }
        }
    }
}

/// A result in one piece of memory.
struct Pictures {
    numbers: Fenced<f32>,
    size: [usize; 2],
}

impl Planes for Pictures {
    fn row(&mut self, plane: usize, y: usize, x: usize, len: usize) -> &mut [f32] {
        let [w, h] = self.size;
        &mut self.numbers[(plane * h + y) * w + x..][..len]
    }
}

/// A convolution of two pictures with a kernel of `side`, a norm, a bias and a map.
fn convolution(geometry: Geometry, dtype: DType, fence: Fence, kernel: Kernel) -> Vec<u32> {
    let Geometry { inputs, outputs, side, input: [w, h], result, doubled, pictures, .. } = geometry;
    let fenced = |len: usize, seed| Fenced::new(&numbers(len, seed), fence);
    let stored = if doubled { [w / 2, h / 2] } else { [w, h] };
    let pixels = fenced(stored[0] * stored[1] * inputs * pictures, 1);
    let weights = numbers(side[0] * side[1] * inputs * outputs, 2);
    let bytes: Vec<u8> = match dtype {
        DType::F32 => weights.iter().flat_map(|number| number.to_ne_bytes()).collect(),
        _ => weights.iter().flat_map(|number| f16::from_f32(*number).to_ne_bytes()).collect(),
    };
    let bytes = Fenced::new(&bytes, fence);
    let [mean, scale] = [3, 4].map(|seed| fenced(inputs * pictures, seed));
    let [weight, shift] = [5, 6].map(|seed| fenced(inputs, seed));
    let normal = Normal { mean: &mean, scale: &scale, weight: &weight, bias: &shift };
    let source = Source { pixels: &pixels, stored, normal: Some(normal) };
    let (bias, map) = (fenced(outputs, 7), fenced(result[0] * result[1] * outputs * pictures, 8));
    let added = Added { bias: Some(&bias), map: Some(&map) };
    let mut out = Pictures { numbers: fenced(map.len(), 9), size: result };
    let pieces = Convolution::new(kernel, geometry, dtype).unwrap().pieces(3);
    let mut space = ConvolutionSpace::default();
    for piece in 0..pieces.count() {
        pieces.compute(piece, &source, Weights { dtype, bytes: &bytes }, added, &mut space, &mut out).unwrap();
    }
    bits(&out.numbers)
}

#[test]
fn convolutions() {
    // Few channels and many, which are computed in different ways; maps narrower than a vector, and wider than two.
    for (i, [w, h, inputs, outputs]) in
        [[1, 1, 1, 1], [5, 3, 3, 7], [9, 5, 17, 19], [21, 4, 33, 40], [35, 6, 16, 13]].into_iter().enumerate()
    {
        for (side, stride, doubled) in
            [([3, 3], 1, false), ([3, 3], 1, true), ([3, 3], 2, false), ([1, 1], 1, false), ([5, 7], 1, false)]
        {
            let padding = side.map(|side| side / 2);
            let input = if doubled { [2 * w, 2 * h] } else { [w, h] };
            let result = [0, 1].map(|at| (input[at] + 2 * padding[at] - side[at]) / stride + 1);
            let (first_row, odd, pictures) = (0, false, 2);
            let geometry =
                Geometry { inputs, outputs, side, stride, padding, input, result, doubled, first_row, odd, pictures };
            let dtype = [DType::F32, DType::F16, DType::BF16][i % 3];
            for fence in FENCES {
                let plain = convolution(geometry, dtype, fence, Kernel::Portable);
                for kernel in Kernel::available() {
                    assert!(plain == convolution(geometry, dtype, fence, kernel), "{kernel:?} {geometry:?} {fence:?}");
                }
            }
        }
    }
}

#[test]
fn functions_of_single_numbers() {
    for (len, fence) in (1..70).flat_map(|len| FENCES.map(|fence| (len, fence))) {
        for function in [
            Nonlinearity::Silu,
            Nonlinearity::GeluTanh,
            Nonlinearity::GeluErf,
            Nonlinearity::GeluQuick,
            Nonlinearity::Relu,
        ] {
            let from = Fenced::new(&numbers(len, 1), fence);
            let by = |kernel| {
                let (mut in_place, mut to) = (Fenced::new(&from, fence), Fenced::new(&vec![f32::NAN; len], fence));
                function.apply(kernel, &mut in_place);
                function.apply_to(kernel, &from, &mut to);
                assert_eq!(bits(&in_place), bits(&to));
                bits(&to)
            };
            for kernel in Kernel::available() {
                assert_eq!(by(Kernel::Portable), by(kernel), "{kernel:?} {len} {fence:?}");
            }
        }
    }
}

#[test]
fn norms_over_channels() {
    for (pixels, channels) in [(1, 1), (7, 3), (9, 16), (255, 5), (PIXELS, 2)] {
        for fence in FENCES {
            let planes = fenced_rows(&numbers(pixels * channels, 1), pixels, fence);
            let gamma = Fenced::new(&numbers(channels, 2), fence);
            let by = |kernel| {
                let mut found = vec![Vec::new(); channels];
                channel_norm_silu(kernel, &gamma, 1e-6, |i| &*planes[i], |i, numbers| found[i] = bits(numbers));
                found
            };
            for kernel in Kernel::available() {
                assert_eq!(by(Kernel::Portable), by(kernel), "{kernel:?} {pixels} {channels} {fence:?}");
            }
        }
    }
}
