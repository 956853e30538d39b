//! Attention without a matrix of scores.

use ggml_sys as sys;
use pinhole_quant::DType;

use super::call::Call;
use super::{Graph, Tensor};
use crate::{Error, Result};

/// A width of heads that the kernels of every device know. CUDA's know few others: not 160, which Stable Diffusion 1 has.
const WIDE: usize = 256;

impl Graph {
    /// `softmax(scale * q k^T + mask) v` without the matrix of scores: `q [d, n, heads, batch]`, `k [d, m, groups, batch]` and
    /// `v` as `k` give `[d, heads, n, batch]`. The groups divide the heads: neighbouring heads share keys and values. `mask
    /// [m, n]`, of F16 and the same for all heads, is added to the scores: see [`to_f16`](Self::to_f16). It lets every query see a key.
    pub fn flash_attention(&self, q: Tensor, k: Tensor, v: Tensor, scale: f32, mask: Option<Tensor>) -> Result<Tensor> {
        self.noted(
            || {
                Call::FlashAttention(
                    q.number(),
                    k.number(),
                    v.number(),
                    scale.to_bits(),
                    mask.map(|mask| mask.number()),
                )
            },
            || {
                for operand in [q, k, v] {
                    self.require_f32("flash_attention", operand)?;
                }
                let ([d, n, heads, batch], ks, vs) = (self.shape(q)?.dims(), self.shape(k)?, self.shape(v)?);
                let [width, m, groups, items] = ks.dims();
                if ks != vs || width != d || !heads.is_multiple_of(groups) || items != batch {
                    return Err(self.mismatch("flash_attention", q, k));
                }
                let mask = mask.map(|mask| self.mask_of(mask, [m, n])).transpose()?;
                let (q, k, v) = (self.rows_contiguous(q)?, self.rows_contiguous(k)?, self.rows_contiguous(v)?);
                if let Some(attended) = self.own_attention([q, k, v], scale, mask)? {
                    return Ok(attended);
                }
                if self.device().sums_heads_in_f16(d)? {
                    return self.attend_in_parts([q, k, v], scale, mask);
                }
                match self.attend([q, k, v], scale, mask) {
                    Err(Error::Device { .. }) if d < WIDE => self.attend_wide([q, k, v], scale, mask, WIDE),
                    attended => attended,
                }
            },
        )
    }

    /// The same with heads filled up with zeros to `width`, which add nothing to a score and are cut off the result.
    fn attend_wide(&self, qkv: [Tensor; 3], scale: f32, mask: Option<Tensor>, width: usize) -> Result<Tensor> {
        let [d, ..] = self.shape(qkv[0])?.dims();
        let [q, k, v] = qkv.map(|operand| self.pad(operand, width - d, 0));
        self.contiguous(self.slice(self.attend([q?, k?, v?], scale, mask)?, 0, 0, d)?)
    }

    /// ggml's operation, of operands that were checked and have contiguous rows.
    pub(super) fn attend(&self, [q, k, v]: [Tensor; 3], scale: f32, mask: Option<Tensor>) -> Result<Tensor> {
        let mask = match mask {
            Some(mask) => self.raw(mask)?,
            None => std::ptr::null_mut(),
        };
        let (q, k, v) = (self.raw(q)?, self.raw(k)?, self.raw(v)?);
        let attended = self.node("flash_attention", |context| {
            // SAFETY: live F32 tensors with contiguous rows, of equal head sizes and batches; groups divide heads; the mask is
            // absent, or contiguous F16 with a row for each query.
            unsafe { sys::ggml_flash_attn_ext(context, q, k, v, mask, scale, 0.0, 0.0) }
        })?;
        let raw = self.raw(attended)?;
        // SAFETY: a live flash attention.
        unsafe { sys::ggml_prec_set_acc(raw, sys::GGML_PREC_F32) };
        Ok(attended)
    }

    /// `mask`, in order, if it is one of F16 for `[keys, queries]`.
    fn mask_of(&self, mask: Tensor, dims: [usize; 2]) -> Result<Tensor> {
        let (dtype, shape) = (self.dtype(mask)?, self.shape(mask)?);
        if dtype != DType::F16 || shape != dims {
            let message = format!("a mask of {dtype} {shape}, where f16 {dims:?} is needed");
            return Err(Error::graph("flash_attention", message));
        }
        self.contiguous(mask)
    }

    /// `a`, which is F32, rounded to F16: a mask for [`flash_attention`](Self::flash_attention).
    pub fn to_f16(&self, a: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::ToF16(a.number()),
            || {
                self.require_f32("to_f16", a)?;
                let raw = self.raw(self.contiguous(a)?)?;
                // SAFETY: a live, contiguous F32 tensor.
                self.node("to_f16", |context| unsafe { sys::ggml_cast(context, raw, sys::GGML_TYPE_F16) })
            },
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ggml::{Arena, Backend, Buffer, CancelFlag, Ledger, Placed, devices};
    use crate::tensor::Shape;

    /// What `attend` gives for `[24, 70, 2, 1]` queries, keys and values, and a mask.
    fn attended(attend: impl FnOnce(&Graph, [Tensor; 3], Tensor) -> Result<Tensor>) -> Vec<f32> {
        let (device, ledger) = (devices().unwrap()[0], Ledger::new());
        let graph = Graph::new(device, 64).unwrap();
        let placed = |dims: &[usize], phase: f32| {
            let shape = Shape::new(dims).unwrap();
            let buffer = Buffer::allocate(device, 4 * shape.elements(), &ledger, "test").unwrap();
            let place = Placed::new(&buffer, 0, DType::F32, shape).unwrap();
            let numbers = (0..shape.elements()).flat_map(|i| (i as f32 * phase).sin().to_ne_bytes());
            place.write(&numbers.collect::<Vec<_>>()).unwrap();
            place
        };
        let operands = [0.7, 1.3, 0.3].map(|phase| graph.leaf(&placed(&[24, 70, 2], phase)).unwrap());
        let mask = graph.to_f16(graph.leaf(&placed(&[70, 70], 0.9)).unwrap()).unwrap();
        let result = attend(&graph, operands, mask).unwrap();
        let out = placed(&[24, 2, 70], 0.0);
        graph.store(result, &out).unwrap();
        let mut arena = Arena::new(device, &ledger).unwrap();
        arena.assign(&[&graph]).unwrap();
        Backend::new(device, 1, CancelFlag::new()).unwrap().compute(&graph, &mut arena).unwrap();
        let mut bytes = vec![0; out.bytes()];
        out.read(&mut bytes).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_ne_bytes(value)).collect()
    }

    /// The squared error of `found`, as a part of what is `expected`.
    fn error(expected: &[f32], found: &[f32]) -> f32 {
        let differences: f32 = expected.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum();
        differences / expected.iter().map(|number| number.powi(2)).sum::<f32>()
    }

    #[test]
    fn zeros_beside_a_head_change_nothing() {
        let narrow = attended(|g, [q, k, v], _| g.flash_attention(q, k, v, 0.2, None));
        let wide = attended(|g, qkv, _| g.attend_wide(qkv, 0.2, None, 40));
        assert!(error(&narrow, &wide) < 1e-10);
    }

    #[test]
    fn products_are_attention_in_any_parts() {
        for is_masked in [false, true] {
            let mask_of = |mask| is_masked.then_some(mask);
            let expected = attended(|g, [q, k, v], mask| g.flash_attention(q, k, v, 0.2, mask_of(mask)));
            let whole = attended(|g, qkv, mask| g.attend_by_products(qkv, 0.2, mask_of(mask), usize::MAX));
            let parts = attended(|g, qkv, mask| g.attend_by_products(qkv, 0.2, mask_of(mask), 1));
            // All that is multiplied is rounded to F16. The means of sines are small beside them.
            assert!(error(&expected, &whole) < 1e-5, "{}", error(&expected, &whole));
            // ggml may take other kernels for other numbers of queries.
            assert!(error(&whole, &parts) < 1e-10, "{}", error(&whole, &parts));
        }
        let unmasked = attended(|g, qkv, _| g.attend_by_products(qkv, 0.2, None, 1));
        let masked = attended(|g, qkv, mask| g.attend_by_products(qkv, 0.2, Some(mask), 1));
        assert!(error(&unmasked, &masked) > 1e-3, "the mask changes nothing");
    }
}
