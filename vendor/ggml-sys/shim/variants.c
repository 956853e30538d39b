// One CPU backend for each level of x86-64, and which of them computes: the highest that the processor and the system have, found
// with the first call. build/variants.rs makes them, with these names.
#include "ggml-cpu.h"
#include "shim.h"

#include <cpuid.h>
#include <stdatomic.h>
#include <stdbool.h>

// Which registers the system saves: those of SSE and AVX are bits 1 and 2, those of AVX-512 bits 5 to 7.
static unsigned saved_registers(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_all(unsigned flags, unsigned wanted) {
    return (flags & wanted) == wanted;
}

// The level by the definitions of the x86-64 psABI. GCC's own question, __builtin_cpu_supports, wants a part of libgcc that Rust does
// not link.
static int find_level(void) {
    enum { AVX_STATE = 0x6, AVX512_STATE = 0xe6 };
    unsigned eax, ebx, ecx, edx, features, more;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) ||
        !has_all(ecx, bit_FMA | bit_MOVBE | bit_OSXSAVE | bit_AVX | bit_F16C) || !has_all(saved_registers(), AVX_STATE)) {
        return 2;
    }
    if (!__get_cpuid_count(7, 0, &eax, &features, &ecx, &edx) || !has_all(features, bit_BMI | bit_AVX2 | bit_BMI2) ||
        !__get_cpuid(0x80000001, &eax, &ebx, &more, &edx) || !has_all(more, bit_LZCNT)) {
        return 2;
    }
    const unsigned avx512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL;
    return has_all(features, avx512) && has_all(saved_registers(), AVX512_STATE) ? 4 : 3;
}

// 2, 3 or 4.
int ph_level(void) {
    static atomic_int known;
    int level = atomic_load_explicit(&known, memory_order_relaxed);
    if (level == 0) {
        level = find_level();
        atomic_store_explicit(&known, level, memory_order_relaxed);
    }
    return level;
}

#define DECLARE(result, name, parameters) \
    result ph_v2_##name parameters;       \
    result ph_v3_##name parameters;       \
    result ph_v4_##name parameters;

#define CHOOSE(name) (ph_level() == 4 ? ph_v4_##name : ph_level() == 3 ? ph_v3_##name : ph_v2_##name)

#define FUNCTION(result, name, parameters, arguments) \
    DECLARE(result, name, parameters)                 \
    result name parameters { return CHOOSE(name) arguments; }

#define PROCEDURE(name, parameters, arguments) \
    DECLARE(void, name, parameters)            \
    void name parameters { CHOOSE(name) arguments; }

FUNCTION(ggml_backend_reg_t, ggml_backend_cpu_reg, (void), ())
FUNCTION(struct ggml_threadpool *, ggml_threadpool_new, (struct ggml_threadpool_params * params), (params))
FUNCTION(struct ggml_cplan, ggml_graph_plan,
         (const struct ggml_cgraph * cgraph, int n_threads, struct ggml_threadpool * threadpool),
         (cgraph, n_threads, threadpool))
FUNCTION(enum ggml_status, ggml_graph_compute, (struct ggml_cgraph * cgraph, struct ggml_cplan * cplan), (cgraph, cplan))
PROCEDURE(ggml_threadpool_free, (struct ggml_threadpool * threadpool), (threadpool))
PROCEDURE(ggml_backend_cpu_set_n_threads, (ggml_backend_t backend, int n_threads), (backend, n_threads))
PROCEDURE(ggml_backend_cpu_set_threadpool, (ggml_backend_t backend, ggml_threadpool_t threadpool), (backend, threadpool))
PROCEDURE(ggml_backend_cpu_set_abort_callback, (ggml_backend_t backend, ggml_abort_callback callback, void * data),
          (backend, callback, data))
PROCEDURE(ph_barrier, (struct ggml_threadpool * pool), (pool))
