// Sizes and offsets of the structs that cross into Rust, as compiled. tests/layout.rs lists the same ones.
#include "shim.h"

#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

static const size_t layout[] = {
    sizeof(struct ggml_tensor),
    offsetof(struct ggml_tensor, type),
    offsetof(struct ggml_tensor, buffer),
    offsetof(struct ggml_tensor, ne),
    offsetof(struct ggml_tensor, nb),
    offsetof(struct ggml_tensor, op),
    offsetof(struct ggml_tensor, op_params),
    offsetof(struct ggml_tensor, flags),
    offsetof(struct ggml_tensor, src),
    offsetof(struct ggml_tensor, view_src),
    offsetof(struct ggml_tensor, view_offs),
    offsetof(struct ggml_tensor, data),
    offsetof(struct ggml_tensor, name),
    offsetof(struct ggml_tensor, extra),

    sizeof(struct ggml_init_params),
    offsetof(struct ggml_init_params, mem_size),
    offsetof(struct ggml_init_params, mem_buffer),
    offsetof(struct ggml_init_params, no_alloc),

    sizeof(struct ggml_type_traits),
    offsetof(struct ggml_type_traits, type_name),
    offsetof(struct ggml_type_traits, blck_size),
    offsetof(struct ggml_type_traits, type_size),
    offsetof(struct ggml_type_traits, is_quantized),
    offsetof(struct ggml_type_traits, to_float),
    offsetof(struct ggml_type_traits, from_float_ref),

    sizeof(struct ggml_backend_dev_caps),
    offsetof(struct ggml_backend_dev_caps, async),
    offsetof(struct ggml_backend_dev_caps, host_buffer),
    offsetof(struct ggml_backend_dev_caps, buffer_from_host_ptr),
    offsetof(struct ggml_backend_dev_caps, events),

    sizeof(struct ggml_backend_dev_props),
    offsetof(struct ggml_backend_dev_props, name),
    offsetof(struct ggml_backend_dev_props, description),
    offsetof(struct ggml_backend_dev_props, memory_free),
    offsetof(struct ggml_backend_dev_props, memory_total),
    offsetof(struct ggml_backend_dev_props, type),
    offsetof(struct ggml_backend_dev_props, device_id),
    offsetof(struct ggml_backend_dev_props, caps),

    sizeof(struct ggml_backend_feature),
    sizeof(struct ggml_tallocr),
    sizeof(struct ggml_cplan),
    sizeof(struct ggml_threadpool_params),
    sizeof(enum ggml_type),
    sizeof(ggml_guid),
    GGML_TYPE_COUNT,
    GGML_OP_COUNT,
    GGML_UNARY_OP_COUNT,
};

size_t ph_layout(size_t * values, size_t count) {
    const size_t known = sizeof(layout) / sizeof(layout[0]);
    for (size_t i = 0; i < known && i < count; i++) {
        values[i] = layout[i];
    }
    return known;
}
