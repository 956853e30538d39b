// The few C functions that stand between Rust and ggml. See src/guard.rs for how they are used and why that is sound.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// What ph_guard caught.
enum ph_caught {
    PH_NOTHING   = 0,
    PH_ASSERTION = 1, // ggml_abort: a failed GGML_ASSERT, or an allocation inside ggml that failed
    PH_BAD_ALLOC = 2,
    PH_EXCEPTION = 3, // a std::exception
    PH_UNKNOWN   = 4, // a C++ exception of another type
};

// Runs call(data) and says how it ended. On anything but PH_NOTHING, message holds text of at most size - 1 bytes and a
// NUL. With assertions == 0 only C++ exceptions are caught, and a failed assertion ends the process: that is for calls
// that compute, where other threads wait for this one to go on.
int ph_guard(void (*call)(void *), void * data, int assertions, char * message, size_t size);

// How many C++ exceptions are on their way to a handler on this thread.
int ph_exceptions_in_flight(void);

// Where ggml's threads wait for each other, in the place of its own ggml_barrier: see cpu.c.
struct ggml_threadpool;
void ph_barrier(struct ggml_threadpool * pool);

// For tests of the guard. Kinds: 0 std::runtime_error, 1 std::bad_alloc, 2 int.
void ph_test_throw(int kind);
void ph_test_assert(void);

// Sizes and offsets as the compiler of ggml sees them, in the order that tests/layout.rs lists. Returns how many there
// are, and writes at most count of them.
size_t ph_layout(size_t * values, size_t count);

#ifdef __cplusplus
}
#endif
