//! Matrix products of blocks by pinhole's own [kernels](crate::kernels), as operations of a graph.
//!
//! ggml runs them on its own threads, like any operation. There are two for a product: activations are quantized into a
//! tensor, which every product of the same activations shares, and weights are multiplied with it. That tensor lies in the
//! graph's memory, so that nothing is allocated on the way and what a graph takes is known before it runs.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ggml_sys as sys;
use pinhole_quant::DType;

use super::call::Call;
use super::halt::Halt;
use super::{CancelFlag, Graph, Tensor};
use crate::kernels::{BLOCK, Columns, Kernel, Layout, Product, Tile, Workspace};
use crate::{Error, Result};

/// The most rows of a panel and tokens of a tile, of any kernel.
const MOST: usize = 32;

/// Bytes before the activations, so that they begin a cache line: a [`Claims`] in the first of them.
const HEADER: usize = 64;

/// Which panels are taken. The threads of a product take one after another, so that one that is held up holds up no one.
#[repr(C)]
struct Claims {
    /// The next panel that no one has.
    next: AtomicU32,
    /// Threads that found none left. The last of them makes the claims new for the next product.
    done: AtomicU32,
}

/// A product, as its operations know it.
pub(super) struct Plan {
    product: Product,
    halt: Arc<Halt>,
}

/// The products of a graph.
pub(super) struct Products {
    kernel: Option<Kernel>,
    /// Boxed, since operations hold their addresses.
    #[allow(clippy::vec_box)]
    plans: Vec<Box<Plan>>,
    /// Activations that are quantized already: whose they are, how, and the result.
    packed: Vec<(Tensor, Layout, Tensor)>,
    /// Rows that are two one after the other: these need not be joined before they are quantized.
    concats: Vec<(Tensor, [Tensor; 2])>,
    halt: Arc<Halt>,
}

impl Products {
    pub(super) fn new() -> Products {
        Products {
            kernel: Kernel::best(),
            plans: Vec::new(),
            packed: Vec::new(),
            concats: Vec::new(),
            halt: Arc::default(),
        }
    }

    /// The kernel for products that are built from now on.
    pub(super) fn kernel(&self) -> Option<Kernel> {
        self.kernel
    }

    /// Rows of `joined` are those of `parts`, one after the other.
    pub(super) fn note_concat(&mut self, joined: Tensor, parts: [Tensor; 2]) {
        self.concats.push((joined, parts));
    }

    /// What ends operations before they are done.
    pub(super) fn halt(&self) -> Arc<Halt> {
        self.halt.clone()
    }

    /// An address for operations, valid as long as this value.
    fn plan(&mut self, product: Product) -> *mut c_void {
        let plan = Box::new(Plan { product, halt: self.halt.clone() });
        let address: *const Plan = &raw const *plan;
        self.plans.push(plan);
        address.cast_mut().cast()
    }
}

impl Graph {
    /// The kernel for matrix products that are built from now on, where it is the better choice; `None` leaves all to ggml.
    /// A new graph on the CPU has the [best](Kernel::best).
    pub fn set_kernel(&self, kernel: Option<Kernel>) {
        self.noted_setting(Call::OwnKernels(kernel.is_some()), || self.products.borrow_mut().kernel = kernel);
    }

    /// `w x`, and `bias` added, by a kernel of pinhole's, or `None` where there is none. Operands fit each other
    /// (`mul_mat` and `linear` have checked it), `w` is F32 or blocks with contiguous rows, `x` is F32 with contiguous rows,
    /// `bias` is contiguous.
    pub(super) fn own_product(&self, w: Tensor, x: Tensor, bias: Option<Tensor>) -> Result<Option<Tensor>> {
        let ([k, rows, w2, w3], x_dims) = (self.shape(w)?.dims(), self.shape(x)?.dims());
        let tokens = x_dims[1..].iter().product(); // of a tensor that exists
        let (kernel, dtype) = (self.products.borrow().kernel, self.dtype(w)?);
        // However few tokens there are: a part of a product then equals the whole, and a picture alone the same picture in a batch, to
        // the bit.
        let possible = self.device().runs_own_operations() && w2 * w3 == 1;
        let Some(kernel) = kernel.filter(|_| possible) else { return Ok(None) };
        let Some(product) = Product::new(kernel, dtype, k, rows, tokens) else {
            // ggml's with F16 round activations to F16, and take 0.9 of the time of pinhole's with AVX2. With AVX-512 neither was measured.
            return if dtype == DType::F16 { Ok(None) } else { self.float_product(kernel, w, x, bias) };
        };
        let packed = self.packed(&product, x)?;
        let plan = self.products.borrow_mut().plan(product);
        let bias = bias.map_or(Ok(std::ptr::null_mut()), |bias| self.raw(bias))?;
        let count = if bias.is_null() { 2 } else { 3 };
        let mut operands = [self.raw(w)?, self.raw(packed)?, bias];
        let [m, n1, n2, n3] = [rows, x_dims[1], x_dims[2], x_dims[3]].map(|extent| extent as i64);
        let result = self.node("mul_mat", |context| {
            let (operands, threads) = (operands.as_mut_ptr(), sys::GGML_N_TASKS_MAX);
            // SAFETY: live tensors; the plan lives as long as the graph.
            unsafe {
                sys::ggml_custom_4d(
                    context,
                    sys::GGML_TYPE_F32,
                    m,
                    n1,
                    n2,
                    n3,
                    operands,
                    count,
                    Some(multiply),
                    threads,
                    plan,
                )
            }
        });
        result.map(Some)
    }

    /// `x` as the kernel of `product` wants it.
    fn packed(&self, product: &Product, x: Tensor) -> Result<Tensor> {
        let layout = product.layout();
        let known = self.products.borrow().packed.iter().find(|known| (known.0, known.1) == (x, layout)).copied();
        if let Some((.., packed)) = known {
            return Ok(packed);
        }
        let plan = self.products.borrow_mut().plan(*product);
        let bytes = HEADER.saturating_add(product.packed_bytes());
        let bytes = i64::try_from(bytes).map_err(|_| Error::graph("mul_mat", "impossibly many activations"))?;
        let mut operands = [self.raw(x)?, std::ptr::null_mut()];
        let mut count = 1;
        if let Some(parts) = self.joined_of(x)? {
            (operands, count) = ([self.raw(parts[0])?, self.raw(parts[1])?], 2);
        }
        let packed = self.node("mul_mat", |context| {
            let (operands, threads) = (operands.as_mut_ptr(), sys::GGML_N_TASKS_MAX);
            // SAFETY: a live tensor; the plan lives as long as the graph.
            unsafe {
                sys::ggml_custom_4d(
                    context,
                    sys::GGML_TYPE_I8,
                    bytes,
                    1,
                    1,
                    1,
                    operands,
                    count,
                    Some(pack),
                    threads,
                    plan,
                )
            }
        })?;
        self.products.borrow_mut().packed.push((x, layout, packed));
        Ok(packed)
    }

    /// The two tensors whose rows make those of `x`, where they can be quantized as they are: in whole blocks.
    fn joined_of(&self, x: Tensor) -> Result<Option<[Tensor; 2]>> {
        let known = self.products.borrow().concats.iter().find(|known| known.0 == x).map(|known| known.1);
        let Some(parts) = known else { return Ok(None) };
        for part in parts {
            let [nb0, ..] = self.strides(part)?;
            if nb0 != size_of::<f32>() || !self.shape(part)?.row().is_multiple_of(BLOCK) {
                return Ok(None);
            }
        }
        Ok(Some(parts))
    }
}

/// Quantizes the activations `dst.src[0]` into `dst`: thread `ith` of `nth` takes its share of the tiles.
unsafe extern "C-unwind" fn pack(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, plan: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, and the address that `packed` gave it, of a plan that the graph
    // keeps.
    let (plan, dst) = unsafe { (&*plan.cast::<Plan>(), &*dst) };
    plan.halt.catch(|cancel| {
        let product = &plan.product;
        if ith == 0 {
            // SAFETY: `dst` begins with `HEADER` bytes, and no other thread touches them during this operation.
            unsafe { dst.data.cast::<u8>().write_bytes(0, HEADER) };
        }
        let (ith, nth) = (ith.unsigned_abs() as usize, nth.unsigned_abs() as usize);
        for i in product.tiles() * ith / nth..product.tiles() * (ith + 1) / nth {
            if cancel.is_raised() {
                break;
            }
            let tile = product.tile(i);
            // SAFETY: `dst` has all tiles behind its header, and each belongs to one thread.
            let records = unsafe {
                std::slice::from_raw_parts_mut(dst.data.cast::<u8>().add(HEADER + tile.bytes.start), tile.bytes.len())
            };
            // SAFETY: the operands of this operation, whose rows, joined, are the activations that the product was made for.
            unsafe { pack_tile(product, &tile, &[dst.src[0], dst.src[1]], records) };
        }
        Ok(())
    });
}

/// Quantizes one tile, whose columns may be those of one of `parts` or of both, one after the other.
///
/// # Safety
/// `parts` are null or F32 in memory that no one writes to, with contiguous rows, as many as the product has tokens.
unsafe fn pack_tile(product: &Product, tile: &Tile, parts: &[*mut sys::ggml_tensor], mut records: &mut [u8]) {
    let mut before = 0; // columns of the parts that came
    // SAFETY: the caller's promise.
    for x in parts.iter().filter_map(|part| unsafe { part.as_ref() }) {
        let all = before..before + x.ne[0].unsigned_abs() as usize;
        before = all.end;
        let columns = tile.columns.start.max(all.start)..tile.columns.end.min(all.end);
        if columns.is_empty() {
            continue;
        }
        let mut rows: [&[f32]; MOST] = [&[]; MOST];
        for (row, token) in rows.iter_mut().zip(tile.tokens.clone()) {
            // SAFETY: the product was made for as many tokens as `x` has.
            *row = unsafe { &row_of(x, token)[columns.start - all.start..columns.end - all.start] };
        }
        let (packed, rest) = records.split_at_mut(product.records_bytes(columns.len()));
        product.pack(&rows[..tile.tokens.len()], packed);
        records = rest;
    }
}

/// Row number `token` of `x`, counted through all its dimensions.
///
/// # Safety
/// `x` is F32 in memory that no one writes to, its rows are contiguous, and it has so many.
pub(super) unsafe fn row_of(x: &sys::ggml_tensor, token: usize) -> &[f32] {
    let [k, n1, n2, _] = x.ne.map(|extent| extent.unsigned_abs() as usize);
    let offset = token % n1 * x.nb[1] + token / n1 % n2 * x.nb[2] + token / n1 / n2 * x.nb[3];
    // SAFETY: the caller's promise; ggml aligns tensors to 32 bytes, and strides of F32 are multiples of 4.
    unsafe { std::slice::from_raw_parts(x.data.cast::<u8>().add(offset).cast(), k) }
}

/// Multiplies the weights `dst.src[0]` with the quantized activations `dst.src[1]`, and adds `dst.src[2]` where there is one.
unsafe extern "C-unwind" fn multiply(dst: *mut sys::ggml_tensor, _ith: c_int, nth: c_int, plan: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, and the address that `own_product` gave it, of a plan that the
    // graph keeps; the operation has two operands or three.
    let (plan, dst, w, packed) = unsafe {
        let dst = &*dst;
        (&*plan.cast::<Plan>(), dst, &*dst.src[0], &*dst.src[1])
    };
    // SAFETY: `pack` has written the header, and during this operation all threads use it by these atomics.
    let claims = unsafe { &*packed.data.cast::<Claims>() };
    plan.halt.catch(|cancel| {
        let product = &plan.product;
        // SAFETY: as many bytes follow the header; `pack` wrote them, and no one writes to them now.
        let packed =
            unsafe { std::slice::from_raw_parts(packed.data.cast::<u8>().add(HEADER), product.packed_bytes()) };
        let mut workspace = Workspace::new();
        loop {
            let panel = claims.next.fetch_add(1, Ordering::Relaxed) as usize;
            if panel >= product.panels() || cancel.is_raised() {
                return Ok(());
            }
            // SAFETY: `w` has the product's rows and `dst` its rows and tokens, a third operand as many numbers as there are
            // rows; `panel` is this thread's alone.
            unsafe { multiply_panel(product, panel, w, packed, &mut workspace, dst, cancel) };
        }
    });
    if claims.done.fetch_add(1, Ordering::AcqRel) + 1 == nth.unsigned_abs() {
        // Every thread has stopped claiming; ggml's barrier orders this before the next operation.
        claims.next.store(0, Ordering::Relaxed);
        claims.done.store(0, Ordering::Relaxed);
    }
}

/// Computes the rows of one panel.
///
/// # Safety
/// `w` and `dst` are in memory and have the sizes of the product; no one else writes to these rows of `dst`, or to `w`.
unsafe fn multiply_panel(
    product: &Product,
    panel: usize,
    w: &sys::ggml_tensor,
    packed: &[u8],
    workspace: &mut Workspace,
    dst: &sys::ggml_tensor,
    cancel: &CancelFlag,
) {
    let first = panel * product.panel_rows();
    let rows = product.panel_rows().min(product.rows() - first);
    let mut weights: [&[u8]; MOST] = [&[]; MOST];
    for (i, row) in weights[..rows].iter_mut().enumerate() {
        // SAFETY: the caller's promise: row `first + i` exists and has so many bytes.
        *row =
            unsafe { std::slice::from_raw_parts(w.data.cast::<u8>().add((first + i) * w.nb[1]), product.row_bytes()) };
    }
    // SAFETY: a contiguous vector of F32 with a number for each row of the product.
    let bias =
        unsafe { dst.src[2].as_ref().map(|bias| std::slice::from_raw_parts(bias.data.cast::<f32>().add(first), rows)) };
    // SAFETY: `first` is below the number of rows.
    let start = unsafe { dst.data.cast::<f32>().add(first) };
    let mut columns = PanelOf { start, stride: product.rows(), rows, tokens: product.tokens(), bias, cancel };
    product.multiply(&weights[..rows], packed, workspace, &mut columns);
}

/// The rows of one panel in the result, which is contiguous.
struct PanelOf<'a> {
    start: *mut f32,
    stride: usize,
    rows: usize,
    tokens: usize,
    /// What is added to every token's numbers.
    bias: Option<&'a [f32]>,
    cancel: &'a CancelFlag,
}

impl Columns for PanelOf<'_> {
    fn put(&mut self, token: usize, numbers: &[f32]) {
        assert!(token < self.tokens);
        // SAFETY: `multiply_panel` made this value for a result of so many tokens, in which these rows are its own.
        let column = unsafe { std::slice::from_raw_parts_mut(self.start.add(token * self.stride), self.rows) };
        match self.bias {
            Some(bias) => column.iter_mut().zip(numbers).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias),
            None => column.copy_from_slice(numbers),
        }
    }

    fn wanted(&self) -> bool {
        !self.cancel.is_raised()
    }
}
