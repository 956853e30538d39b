//! The bindings against the headers as ggml's own compiler read them (shim/layout.c), so that a stale bindings.rs or
//! a compiler that lays a struct out otherwise is seen.

use std::mem::{offset_of, size_of};

use ggml_sys::testing::ph_layout;
use ggml_sys::*;

/// In the order of shim/layout.c.
const EXPECTED: &[(&str, usize)] = &[
    ("ggml_tensor", size_of::<ggml_tensor>()),
    ("ggml_tensor.type", offset_of!(ggml_tensor, type_)),
    ("ggml_tensor.buffer", offset_of!(ggml_tensor, buffer)),
    ("ggml_tensor.ne", offset_of!(ggml_tensor, ne)),
    ("ggml_tensor.nb", offset_of!(ggml_tensor, nb)),
    ("ggml_tensor.op", offset_of!(ggml_tensor, op)),
    ("ggml_tensor.op_params", offset_of!(ggml_tensor, op_params)),
    ("ggml_tensor.flags", offset_of!(ggml_tensor, flags)),
    ("ggml_tensor.src", offset_of!(ggml_tensor, src)),
    ("ggml_tensor.view_src", offset_of!(ggml_tensor, view_src)),
    ("ggml_tensor.view_offs", offset_of!(ggml_tensor, view_offs)),
    ("ggml_tensor.data", offset_of!(ggml_tensor, data)),
    ("ggml_tensor.name", offset_of!(ggml_tensor, name)),
    ("ggml_tensor.extra", offset_of!(ggml_tensor, extra)),
    ("ggml_init_params", size_of::<ggml_init_params>()),
    ("ggml_init_params.mem_size", offset_of!(ggml_init_params, mem_size)),
    ("ggml_init_params.mem_buffer", offset_of!(ggml_init_params, mem_buffer)),
    ("ggml_init_params.no_alloc", offset_of!(ggml_init_params, no_alloc)),
    ("ggml_type_traits", size_of::<ggml_type_traits>()),
    ("ggml_type_traits.type_name", offset_of!(ggml_type_traits, type_name)),
    ("ggml_type_traits.blck_size", offset_of!(ggml_type_traits, blck_size)),
    ("ggml_type_traits.type_size", offset_of!(ggml_type_traits, type_size)),
    ("ggml_type_traits.is_quantized", offset_of!(ggml_type_traits, is_quantized)),
    ("ggml_type_traits.to_float", offset_of!(ggml_type_traits, to_float)),
    ("ggml_type_traits.from_float_ref", offset_of!(ggml_type_traits, from_float_ref)),
    ("ggml_backend_dev_caps", size_of::<ggml_backend_dev_caps>()),
    ("ggml_backend_dev_caps.async", offset_of!(ggml_backend_dev_caps, async_)),
    ("ggml_backend_dev_caps.host_buffer", offset_of!(ggml_backend_dev_caps, host_buffer)),
    ("ggml_backend_dev_caps.buffer_from_host_ptr", offset_of!(ggml_backend_dev_caps, buffer_from_host_ptr)),
    ("ggml_backend_dev_caps.events", offset_of!(ggml_backend_dev_caps, events)),
    ("ggml_backend_dev_props", size_of::<ggml_backend_dev_props>()),
    ("ggml_backend_dev_props.name", offset_of!(ggml_backend_dev_props, name)),
    ("ggml_backend_dev_props.description", offset_of!(ggml_backend_dev_props, description)),
    ("ggml_backend_dev_props.memory_free", offset_of!(ggml_backend_dev_props, memory_free)),
    ("ggml_backend_dev_props.memory_total", offset_of!(ggml_backend_dev_props, memory_total)),
    ("ggml_backend_dev_props.type", offset_of!(ggml_backend_dev_props, type_)),
    ("ggml_backend_dev_props.device_id", offset_of!(ggml_backend_dev_props, device_id)),
    ("ggml_backend_dev_props.caps", offset_of!(ggml_backend_dev_props, caps)),
    ("ggml_backend_feature", size_of::<ggml_backend_feature>()),
    ("ggml_tallocr", size_of::<ggml_tallocr>()),
    ("ggml_cplan", size_of::<ggml_cplan>()),
    ("ggml_threadpool_params", size_of::<ggml_threadpool_params>()),
    ("enum ggml_type", size_of::<ggml_type>()),
    ("ggml_guid", size_of::<ggml_guid>()),
    ("GGML_TYPE_COUNT", GGML_TYPE_COUNT as usize),
    ("GGML_OP_COUNT", GGML_OP_COUNT as usize),
    ("GGML_UNARY_OP_COUNT", GGML_UNARY_OP_COUNT as usize),
];

#[test]
fn bindings_have_the_compiled_layout() {
    let mut compiled = [0; EXPECTED.len()];
    // SAFETY: `compiled` is writable for its length.
    let known = unsafe { ph_layout(compiled.as_mut_ptr(), compiled.len()) };
    assert_eq!(known, EXPECTED.len(), "shim/layout.c and this list have different lengths");
    for ((name, bound), compiled) in EXPECTED.iter().zip(compiled) {
        assert_eq!(*bound, compiled, "{name}");
    }
}
