//! The CPU backend as built: it computes, and has the kernels that it should have.
#![allow(clippy::unwrap_used)]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};

use ggml_sys::*;

const K: usize = 96;
const M: usize = 40;
const N: usize = 17;

/// Small whole numbers, whose products and sums are exact in f32.
fn numbers(count: usize, step: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * step) % 13) as f32 - 6.0).collect()
}

/// `[M, N]` from `[K, M]` and `[K, N]`, by the definition.
fn expected(a: &[f32], b: &[f32]) -> Vec<f32> {
    let dot = |m: usize, n: usize| (0..K).map(|k| a[m * K + k] * b[n * K + k]).sum();
    (0..M * N).map(|i| dot(i % M, i / M)).collect()
}

/// # Safety
///
/// `tensor` is allocated and holds `values.len()` f32.
unsafe fn set(tensor: *mut ggml_tensor, values: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe { ggml_backend_tensor_set(tensor, values.as_ptr().cast::<c_void>(), 0, size_of_val(values)) }
}

#[test]
fn two_threads_multiply_matrices() {
    let (a_values, b_values) = (numbers(K * M, 5), numbers(K * N, 7));
    let mut product = vec![0.0f32; M * N];
    let status = guard_compute(|| {
        // SAFETY: every object is made here, used while it lives and freed once, and sizes are those of the tensors.
        unsafe {
            let ctx = ggml_init(ggml_init_params { mem_size: 1 << 20, mem_buffer: null_mut(), no_alloc: true });
            let a = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, K as i64, M as i64);
            let b = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, K as i64, N as i64);
            let y = ggml_mul_mat(ctx, a, b);
            let graph = ggml_new_graph(ctx);
            ggml_build_forward_expand(graph, y);

            let backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, null());
            ggml_backend_cpu_set_n_threads(backend, 2);
            let buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
            set(a, &a_values);
            set(b, &b_values);
            let status = ggml_backend_graph_compute(backend, graph);
            ggml_backend_tensor_get(y, product.as_mut_ptr().cast(), 0, size_of_val(&product[..]));

            ggml_backend_buffer_free(buffer);
            ggml_backend_free(backend);
            ggml_free(ctx);
            status
        }
    });
    assert_eq!(status, Ok(GGML_STATUS_SUCCESS));
    assert_eq!(product, expected(&a_values, &b_values));
}

fn text(text: *const c_char) -> String {
    // SAFETY: ggml's names are NUL-terminated and live for ever.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
}

/// `(name, value)` of what the CPU backend says it was compiled with.
fn features() -> Vec<(String, String)> {
    // SAFETY: the registry's devices live for ever; the list ends with a null name; the procedure of this name has this
    // type.
    unsafe {
        let reg = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
        let procedure = ggml_backend_reg_get_proc_address(reg, c"ggml_backend_get_features".as_ptr());
        let get: ggml_backend_get_features_t = std::mem::transmute(procedure);
        let mut feature = get.unwrap()(reg);
        let mut list = Vec::new();
        while !(*feature).name.is_null() {
            list.push((text((*feature).name), text((*feature).value)));
            feature = feature.add(1);
        }
        list
    }
}

#[test]
fn llamafile_and_repacking_are_compiled_in() {
    let features = features();
    for name in ["LLAMAFILE", "REPACK"] {
        assert!(features.contains(&(name.into(), "1".into())), "no {name} in {features:?}");
    }
}

#[test]
fn the_version_is_the_pinned_one() {
    // SAFETY: takes nothing.
    assert_eq!(text(unsafe { ggml_version() }), "0.26.0");
}
