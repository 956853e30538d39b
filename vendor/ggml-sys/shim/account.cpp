#include "account.h"

#include "ggml.h"
#include "ggml-impl.h"

#include <atomic>
#include <cstdint>
#include <mutex>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

struct memory_account {
    std::mutex mutex;
    ph_account account = {};
    size_t     left    = SIZE_MAX; // allocations until they fail; SIZE_MAX: never
};

memory_account & of(int memory) {
    // Never destroyed: backends free memory while the process ends.
    static memory_account * const accounts = new memory_account[PH_MEMORY_KINDS];
    return accounts[memory];
}

} // namespace

extern "C" void ph_account_read(int memory, ph_account * account) {
    std::lock_guard<std::mutex> lock(of(memory).mutex);
    *account = of(memory).account;
}

extern "C" void ph_account_reset_peak(int memory) {
    std::lock_guard<std::mutex> lock(of(memory).mutex);
    of(memory).account.peak = of(memory).account.now;
}

extern "C" int ph_account_refuses(int memory, size_t bytes) {
    memory_account & entry = of(memory);
    std::lock_guard<std::mutex> lock(entry.mutex);
    if (entry.left == SIZE_MAX) {
        return 0;
    }
    if (entry.left > 0) {
        entry.left--;
        return 0;
    }
    entry.account.refused++;
    entry.account.refused_bytes = bytes;
    return 1;
}

extern "C" void ph_account_enter(int memory, size_t bytes) {
    ph_account & account = of(memory).account;
    std::lock_guard<std::mutex> lock(of(memory).mutex);
    account.now += bytes;
    if (account.now > account.peak) {
        account.peak = account.now;
    }
}

extern "C" void ph_account_leave(int memory, size_t bytes) {
    std::lock_guard<std::mutex> lock(of(memory).mutex);
    of(memory).account.now -= bytes;
}

extern "C" void ph_account_failed(int memory, size_t bytes) {
    std::lock_guard<std::mutex> lock(of(memory).mutex);
    of(memory).account.refused++;
    of(memory).account.refused_bytes = bytes;
}

extern "C" void ph_refuse_allocations(int memory, size_t after) {
    std::lock_guard<std::mutex> lock(of(memory).mutex);
    of(memory).left = after;
}

extern "C" void ph_allow_allocations(int memory) {
    ph_refuse_allocations(memory, SIZE_MAX);
}

extern "C" void ph_share_heap(void) {
#ifdef __GLIBC__
    mallopt(M_ARENA_MAX, 1);
    // glibc's own, but fixed: it would grow with what is freed, and activations would then leave holes in the heap between requests.
    mallopt(M_MMAP_THRESHOLD, 128 * 1024);
#endif
}

namespace {

thread_local void * last_block      = nullptr;
thread_local size_t last_block_size = 0;

} // namespace

extern "C" void ph_forget_block(void) {
    last_block = nullptr;
}

extern "C" void * ph_last_block(size_t * size) {
    *size = last_block_size;
    return last_block;
}

// What ggml-backend.cpp, where the CPU's buffers are made, calls for ggml_aligned_malloc and ggml_aligned_free.
extern "C" void * ph_aligned_malloc(size_t size) {
    if (ph_account_refuses(PH_MEMORY_HOST, size)) {
        return nullptr;
    }
    void * data = ggml_aligned_malloc(size);
    if (data) {
        ph_account_enter(PH_MEMORY_HOST, size);
        last_block      = data;
        last_block_size = size;
    } else {
        ph_account_failed(PH_MEMORY_HOST, size);
    }
    return data;
}

extern "C" void ph_aligned_free(void * data, size_t size) {
    ggml_aligned_free(data, size);
    if (data == last_block) {
        last_block = nullptr;
    }
    if (data) {
        ph_account_leave(PH_MEMORY_HOST, size);
    }
}
