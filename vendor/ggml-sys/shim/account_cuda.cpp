// The account of what ggml's CUDA backend allocates: see account_cuda.h.

#define PH_ACCOUNT_CUDA
#include "account_cuda.h"

#include "account.h"

#include <cublas_v2.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <unordered_map>

namespace {

std::mutex mutex;

// Sizes by address. Never destroyed: memory is freed while the process ends.
std::unordered_map<void *, size_t> & sizes() {
    static auto * const it = new std::unordered_map<void *, size_t>;
    return *it;
}

template <typename Allocate> cudaError_t enter(int memory, void ** data, size_t size, Allocate allocate) {
    if (ph_account_refuses(memory, size)) {
        return cudaErrorMemoryAllocation;
    }
    const cudaError_t result = allocate();
    if (result != cudaSuccess) {
        ph_account_failed(memory, size);
        return result;
    }
    ph_account_enter(memory, size);
    std::lock_guard<std::mutex> lock(mutex);
    sizes()[*data] = size;
    return result;
}

void leave(int memory, void * data) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = sizes().find(data);
    if (found != sizes().end()) {
        ph_account_leave(memory, found->second);
        sizes().erase(found);
    }
}

} // namespace

extern "C" cudaError_t ph_cuda_malloc(void ** data, size_t size) {
    return enter(PH_MEMORY_DEVICE, data, size, [&] { return cudaMalloc(data, size); });
}

extern "C" cudaError_t ph_cuda_malloc_managed(void ** data, size_t size, unsigned int flags) {
    return enter(PH_MEMORY_DEVICE, data, size, [&] { return cudaMallocManaged(data, size, flags); });
}

// Out of the account first: the address may be given out anew as soon as it is free.
extern "C" cudaError_t ph_cuda_free(void * data) {
    leave(PH_MEMORY_DEVICE, data);
    return cudaFree(data);
}

extern "C" cudaError_t ph_cuda_host_alloc(void ** data, size_t size, unsigned int flags) {
    return enter(PH_MEMORY_PINNED, data, size, [&] { return cudaHostAlloc(data, size, flags); });
}

extern "C" cudaError_t ph_cuda_free_host(void * data) {
    leave(PH_MEMORY_PINNED, data);
    return cudaFreeHost(data);
}

// The driver's functions by name. The pool of virtual memory is made and freed through these, so that it is in the account.

namespace {

template <typename F> F driver(const char * name) {
    static void * const library = dlopen("libcuda.so.1", RTLD_NOW);
    return library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
}

template <typename... P, typename... A> CUresult call(const char * name, CUresult (*)(P...), A... arguments) {
    const auto function = driver<CUresult (*)(P...)>(name);
    return function ? function(arguments...) : CUDA_ERROR_NOT_SUPPORTED;
}

} // namespace

#define CALL(name, ...) call(#name, &ph_##name, __VA_ARGS__)

extern "C" CUresult ph_cuGetErrorString(CUresult error, const char ** text) {
    *text = "CUDA's driver";
    return CALL(cuGetErrorString, error, text);
}

extern "C" CUresult ph_cuDeviceGet(CUdevice * device, int ordinal) {
    return CALL(cuDeviceGet, device, ordinal);
}

extern "C" CUresult ph_cuDeviceGetAttribute(int * value, CUdevice_attribute attribute, CUdevice device) {
    return CALL(cuDeviceGetAttribute, value, attribute, device);
}

extern "C" CUresult ph_cuMemGetAllocationGranularity(size_t * bytes, const CUmemAllocationProp * prop,
                                                     CUmemAllocationGranularity_flags flags) {
    return CALL(cuMemGetAllocationGranularity, bytes, prop, flags);
}

extern "C" CUresult ph_cuMemCreate(CUmemGenericAllocationHandle * handle, size_t size, const CUmemAllocationProp * prop,
                                   unsigned long long flags) {
    if (ph_account_refuses(PH_MEMORY_DEVICE, size)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const CUresult result = CALL(cuMemCreate, handle, size, prop, flags);
    if (result == CUDA_SUCCESS) {
        ph_account_enter(PH_MEMORY_DEVICE, size);
    } else {
        ph_account_failed(PH_MEMORY_DEVICE, size);
    }
    return result;
}

// The memory lives as long as it is mapped.
extern "C" CUresult ph_cuMemRelease(CUmemGenericAllocationHandle handle) {
    return CALL(cuMemRelease, handle);
}

extern "C" CUresult ph_cuMemAddressReserve(CUdeviceptr * start, size_t size, size_t alignment, CUdeviceptr wanted,
                                           unsigned long long flags) {
    return CALL(cuMemAddressReserve, start, size, alignment, wanted, flags);
}

extern "C" CUresult ph_cuMemAddressFree(CUdeviceptr start, size_t size) {
    return CALL(cuMemAddressFree, start, size);
}

extern "C" CUresult ph_cuMemMap(CUdeviceptr start, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                                unsigned long long flags) {
    return CALL(cuMemMap, start, size, offset, handle, flags);
}

extern "C" CUresult ph_cuMemUnmap(CUdeviceptr start, size_t size) {
    const CUresult result = CALL(cuMemUnmap, start, size);
    if (result == CUDA_SUCCESS) {
        ph_account_leave(PH_MEMORY_DEVICE, size);
    }
    return result;
}

extern "C" CUresult ph_cuMemSetAccess(CUdeviceptr start, size_t size, const CUmemAccessDesc * access, size_t count) {
    return CALL(cuMemSetAccess, start, size, access, count);
}

// What sort of card it is, and what its context and cuBLAS take.

namespace {

// ggml's account of a card in Rust: CudaCard.
struct ph_cuda_card_info {
    unsigned capability;
    unsigned multiprocessors;
    size_t   context_bytes;
};

// Bytes in use on a card by anybody, as the driver's management library has it, which needs no context for that.
bool used_bytes(const char * bus, unsigned long long & used) {
    struct memory {
        unsigned long long total, free, used;
    };
    static void * const library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!library) {
        return false;
    }
    const auto init   = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
    const auto find   = reinterpret_cast<int (*)(const char *, void **)>(dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
    const auto memory_of = reinterpret_cast<int (*)(void *, memory *)>(dlsym(library, "nvmlDeviceGetMemoryInfo"));
    void * card  = nullptr;
    memory found = {};
    if (!init || !find || !memory_of || init() != 0 || find(bus, &card) != 0 || memory_of(card, &found) != 0) {
        return false;
    }
    used = found.used;
    return true;
}

// Where the library cannot say, or the context was there already: more than consumer cards take.
constexpr size_t USUAL_CONTEXT = size_t(512) << 20;

bool describe(int device, ph_cuda_card_info & card) {
    int  major = 0, minor = 0, multiprocessors = 0;
    char bus[32] = {};
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        cudaDeviceGetPCIBusId(bus, sizeof(bus), device) != cudaSuccess) {
        return false;
    }
    unsigned long long before = 0, after = 0;
    const bool         known = used_bytes(bus, before);
    int                current = 0;
    if (cudaGetDevice(&current) != cudaSuccess || cudaSetDevice(device) != cudaSuccess || cudaFree(nullptr) != cudaSuccess) {
        return false;
    }
    // As ggml will make one. Where there is no cuBLAS, the card is refused elsewhere.
    cublasHandle_t handle     = nullptr;
    const bool     has_handle = cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS;
    const bool     measured   = known && used_bytes(bus, after) && after > before;
    if (has_handle) {
        cublasDestroy(handle);
    }
    cudaSetDevice(current);
    card = { unsigned(100 * major + 10 * minor), unsigned(multiprocessors), measured ? size_t(after - before) : USUAL_CONTEXT };
    return true;
}

} // namespace

extern "C" bool ph_cuda_card(int device, ph_cuda_card_info * card) {
    static auto * const known = new std::map<int, ph_cuda_card_info>;
    static std::mutex    cards;
    std::lock_guard<std::mutex> lock(cards);
    auto found = known->find(device);
    if (found == known->end()) {
        ph_cuda_card_info described = {};
        if (!describe(device, described)) {
            return false;
        }
        found = known->emplace(device, described).first;
    }
    *card = found->second;
    return true;
}
