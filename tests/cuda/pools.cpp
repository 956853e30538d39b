// The pools of ggml's CUDA backend, as they stand in its source (pools.inc: see .ci/cuda), over the account of what
// is allocated and a card of ours: every allocation refused once, and a card that is full. Each must be an error that is caught, which
// leaves nothing allocated. Ends with 0 where all of it holds.

#include "account.h"
#include "account_cuda.h"
#include "shim.h"

#include "ggml-impl.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

// --- The card: so many bytes, by the runtime's allocator and by the driver's ------------------------------------------------------

static size_t left = 0; // bytes that it has yet

#undef cudaMalloc
#undef cudaMallocManaged
#undef cudaFree
#undef cudaHostAlloc
#undef cudaFreeHost

// Before each block lies its size.
extern "C" cudaError_t CUDARTAPI cudaMalloc(void ** data, size_t size) {
    if (size > left) {
        return cudaErrorMemoryAllocation;
    }
    left -= size;
    size_t * block = static_cast<size_t *>(malloc(256));
    *block = size;
    *data  = block;
    return cudaSuccess;
}

extern "C" cudaError_t CUDARTAPI cudaFree(void * data) {
    if (data) {
        left += *static_cast<size_t *>(data);
        free(data);
    }
    return cudaSuccess;
}

extern "C" cudaError_t CUDARTAPI cudaMallocManaged(void **, size_t, unsigned) { return cudaErrorNotSupported; }
extern "C" cudaError_t CUDARTAPI cudaHostAlloc(void **, size_t, unsigned) { return cudaErrorNotSupported; }
extern "C" cudaError_t CUDARTAPI cudaFreeHost(void *) { return cudaErrorNotSupported; }
extern "C" cudaError_t CUDARTAPI cudaGetLastError() { return cudaSuccess; }
extern "C" cudaError_t CUDARTAPI cudaDeviceSynchronize() { return cudaSuccess; }

// The rest of what account_cuda.cpp calls, which nothing here asks for.
extern "C" cudaError_t CUDARTAPI cudaDeviceGetAttribute(int *, cudaDeviceAttr, int) { return cudaErrorNotSupported; }
extern "C" cudaError_t CUDARTAPI cudaDeviceGetPCIBusId(char *, int, int) { return cudaErrorNotSupported; }
extern "C" cudaError_t CUDARTAPI cudaGetDevice(int *) { return cudaErrorNotSupported; }
extern "C" cudaError_t CUDARTAPI cudaSetDevice(int) { return cudaErrorNotSupported; }
extern "C" const char * CUDARTAPI cudaGetErrorString(cudaError_t) { return "an error of the runtime"; }

// What shim.cpp calls where ggml's threads wait for each other: there are none.
extern "C" void ph_barrier(ggml_threadpool *) {}

// The driver's, which account_cuda.cpp looks up by name in libcuda.so.1: the linker puts these in the place of dlopen and dlsym
// (--wrap).
static CUresult create(CUmemGenericAllocationHandle * handle, size_t size, const CUmemAllocationProp *, unsigned long long) {
    if (size > left) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    left -= size;
    *handle = 1;
    return CUDA_SUCCESS;
}

static CUresult reserve(CUdeviceptr * start, size_t, size_t, CUdeviceptr, unsigned long long) {
    *start = CUdeviceptr(1) << 40;
    return CUDA_SUCCESS;
}

static CUresult map(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long) { return CUDA_SUCCESS; }
static CUresult set_access(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t) { return CUDA_SUCCESS; }
static CUresult release(CUmemGenericAllocationHandle) { return CUDA_SUCCESS; }
static CUresult free_addresses(CUdeviceptr, size_t) { return CUDA_SUCCESS; }

static CUresult unmap(CUdeviceptr, size_t size) {
    left += size;
    return CUDA_SUCCESS;
}

extern "C" void * __wrap_dlopen(const char *, int) {
    return &left;
}

extern "C" void * __wrap_dlsym(void *, const char * name) {
    const std::map<std::string, void *> functions = {
        { "cuMemCreate", (void *) create },       { "cuMemRelease", (void *) release },
        { "cuMemAddressReserve", (void *) reserve }, { "cuMemAddressFree", (void *) free_addresses },
        { "cuMemMap", (void *) map },             { "cuMemUnmap", (void *) unmap },
        { "cuMemSetAccess", (void *) set_access },
    };
    const auto found = functions.find(name);
    return found == functions.end() ? nullptr : found->second;
}

// --- ggml's pools -----------------------------------------------------------------------------------------------------------------

#define cudaMalloc(data, size) ph_cuda_malloc((void **) (data), size)
#define cudaFree(data)         ph_cuda_free(data)

#define GGML_CUDA_NAME "CUDA"
#define GGML_USE_VMM
#define CUDA_CHECK(call) do { if ((call) != cudaSuccess) GGML_ABORT("CUDA error: %s", #call); } while (0)
#define CU_CHECK(call)   do { if ((call) != CUDA_SUCCESS) GGML_ABORT("CUDA error: %s", #call); } while (0)

constexpr size_t GRANULARITY = size_t(2) << 20;

struct device_info { size_t vmm_granularity = GRANULARITY; };
struct devices_info { device_info devices[1]; int device_count = 1; };
static const devices_info & ggml_cuda_info() { static const devices_info info; return info; }
static int ggml_cuda_get_physical_device(int device) { return device; }
static void ggml_cuda_set_device(int) {}
static cudaError_t ggml_cuda_device_malloc(void ** data, size_t size, int) { return cudaMalloc(data, size); }
constexpr int GGML_CUDA_MAX_DEVICES = 1;
extern "C" cudaError_t CUDARTAPI cudaDeviceCanAccessPeer(int *, int, int) { return cudaErrorNotSupported; }

#include "pools.inc"

// --- The cases --------------------------------------------------------------------------------------------------------------------

#define REQUIRE(holds) do { if (!(holds)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #holds); exit(1); } } while (0)

static ph_account account() {
    ph_account read;
    ph_account_read(PH_MEMORY_DEVICE, &read);
    return read;
}

// What operations ask of a pool: some requests held together, the next ones larger, so that it grows again and again.
static void use(ggml_cuda_pool & pool) {
    for (size_t size = size_t(1) << 20; size <= size_t(32) << 20; size *= 2) {
        ggml_cuda_pool_alloc<char> weights(pool, size);
        ggml_cuda_pool_alloc<char> activations(pool, size / 2);
        ggml_cuda_pool_alloc<char> sums(pool, 100);
    }
}

template <typename Pool> static void run(void *) {
    Pool pool(0);
    use(pool);
}

struct outcome {
    int    caught;
    char   message[256];
    size_t peak;
};

// Runs a pool's whole life under the guard; nothing is left of it, however it ended.
template <typename Pool> static outcome live() {
    outcome result = {};
    const size_t before = account().now, had = left;
    ph_account_reset_peak(PH_MEMORY_DEVICE);
    result.caught = ph_guard(run<Pool>, nullptr, 1, result.message, sizeof(result.message));
    result.peak   = account().peak - before;
    REQUIRE(account().now == before && left == had);
    return result;
}

template <typename Pool> static void check(const char * name) {
    left = size_t(1) << 30;
    const outcome whole = live<Pool>();
    REQUIRE(whole.caught == PH_NOTHING && whole.peak >= size_t(48) << 20);

    // Each allocation in turn, and all that come after it.
    size_t refusals = 0;
    for (;; refusals++) {
        ph_refuse_allocations(PH_MEMORY_DEVICE, refusals);
        const size_t  before = account().refused;
        const outcome found  = live<Pool>();
        ph_allow_allocations(PH_MEMORY_DEVICE);
        if (found.caught == PH_NOTHING) {
            break;
        }
        REQUIRE(found.caught == PH_ASSERTION && account().refused > before);
    }
    REQUIRE(refusals >= 6);

    // Cards with less than the pool grew to: no more is taken than they have. One of blocks gives back what it keeps before it fails,
    // and so may do with less.
    size_t full = 0;
    for (size_t bytes = whole.peak - 1; bytes > GRANULARITY; bytes -= GRANULARITY) {
        left = bytes;
        const size_t  before = account().refused;
        const outcome found  = live<Pool>();
        REQUIRE(found.peak <= bytes && account().refused > before && account().refused_bytes > 0);
        REQUIRE(found.caught == PH_ASSERTION || found.caught == PH_NOTHING);
        full += found.caught == PH_ASSERTION;
    }
    REQUIRE(full > 0);
    printf("%s: %zu bytes at most; %zu allocations refused in turn, %zu cards too small: errors, and nothing left\n", name,
           whole.peak, refusals, full);
}

// ggml's log is of no use here.
static void no_log(ggml_log_level, const char *, void *) {}

int main() {
    ggml_log_set(no_log, nullptr);
    check<ggml_cuda_pool_leg>("blocks");
    check<ggml_cuda_pool_vmm>("virtual memory");
    return 0;
}
