// The account of what ggml's CUDA backend allocates: see account_cuda.h.

#define PH_ACCOUNT_CUDA
#include "account_cuda.h"

#include "account.h"

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
