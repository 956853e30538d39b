// The account of what ggml's backends allocate: fed by the allocators themselves, so that pools and scratch buffers count
// like everything else. ggml's sources stay as they are; build.rs gives the allocators that they call other names.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Where memory is. Devices of one kind share an account.
enum ph_memory {
    PH_MEMORY_HOST   = 0, // buffers of the CPU backend
    PH_MEMORY_DEVICE = 1, // a GPU's own
    PH_MEMORY_PINNED = 2, // the host's, allocated by a GPU's driver for copies
    PH_MEMORY_KINDS  = 3,
};

struct ph_account {
    size_t now;           // bytes held
    size_t peak;          // the most since ph_account_reset_peak
    size_t refused;       // how many requests failed, ever
    size_t refused_bytes; // the size of the last one that did
};

void ph_account_read(int memory, struct ph_account * account);

// The peak becomes what is held now.
void ph_account_reset_peak(int memory);

// What the stand-ins for the allocators report. Before an allocation they ask whether it is to fail: for tests, see
// ph_refuse_allocations.
int  ph_account_refuses(int memory, size_t bytes);
void ph_account_enter(int memory, size_t bytes);
void ph_account_leave(int memory, size_t bytes);
void ph_account_failed(int memory, size_t bytes);

// For tests: after `after` more allocations, all fail, until ph_allow_allocations.
void ph_refuse_allocations(int memory, size_t after);
void ph_allow_allocations(int memory);

// Has all threads of the process share the first one's heap, where the C library would give each its own: of each it takes 64 MiB of
// address space. For a program, not for a library: it concerns everything in the process.
void ph_share_heap(void);

// The block of the CPU's allocator that this thread made last, since it was asked to forget: a call that was caught may have lost it.
void   ph_forget_block(void);
void * ph_last_block(size_t * size);
void   ph_aligned_free(void * data, size_t size);

#ifdef __cplusplus
}
#endif
