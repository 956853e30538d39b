// ggml's CPU backend as it is, compiled with two of its pieces replaced from outside. Both keep ggml's threads from harming
// others:
//
// - ggml_barrier spins until the last thread is there. Where more threads want to run than there are processors, a thread
//   that waits so takes the time that the one it waits for needs, and every operation costs a time slice or more of the
//   scheduler's. ph_barrier sleeps after a short spin.
// - ggml_threadpool_new fails an assertion if a thread cannot be started, and leaves those before it behind. Here they have
//   ended by then.
// Weak, so that the definition in shim.cpp takes the place of the one below, for this file's own calls as well.
struct ggml_threadpool;
__attribute__((weak)) void ggml_barrier(struct ggml_threadpool * pool);

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#ifndef THREAD_POWER_THROTTLING_CURRENT_VERSION
// Headers of mingw-w64 before version 11 lack what ggml asks Windows for here.
#define THREAD_POWER_THROTTLING_CURRENT_VERSION 1
#define THREAD_POWER_THROTTLING_EXECUTION_SPEED 1
typedef struct {
    ULONG Version;
    ULONG ControlMask;
    ULONG StateMask;
} THREAD_POWER_THROTTLING_STATE;
#endif

static HANDLE ph_start_thread(SECURITY_ATTRIBUTES * attributes, SIZE_T stack, LPTHREAD_START_ROUTINE run, void * state,
                              DWORD flags, DWORD * id);
#define CreateThread ph_start_thread
#else
#include <pthread.h>

static int ph_start_thread(pthread_t * thread, const pthread_attr_t * attributes, void * (*run)(void *), void * state);
#define pthread_create ph_start_thread
#endif

#include "ggml-cpu/ggml-cpu.c"

#ifdef _WIN32
#undef CreateThread
#else
#undef pthread_create
#endif

#include "shim.h"

// Ends the workers that run already, all before `count`, and frees the pool, which its maker then forgets.
static void end_pool(struct ggml_threadpool * pool, int count) {
    const size_t workers_size = sizeof(struct ggml_compute_state) * pool->n_threads;
    ggml_mutex_lock(&pool->mutex);
    pool->stop  = true;
    pool->pause = false;
    ggml_cond_broadcast(&pool->cond);
    ggml_mutex_unlock(&pool->mutex);
    for (int i = 1; i < count; i++) {
        ggml_thread_join(pool->workers[i].thrd, NULL);
    }
    ggml_mutex_destroy(&pool->mutex);
    ggml_cond_destroy(&pool->cond);
    ggml_aligned_free(pool->workers, workers_size);
    ggml_aligned_free(pool, sizeof(struct ggml_threadpool));
}

static void end_pool_of(const struct ggml_compute_state * worker) {
    end_pool(worker->threadpool, worker->ith);
}

#ifdef _WIN32
static HANDLE ph_start_thread(SECURITY_ATTRIBUTES * attributes, SIZE_T stack, LPTHREAD_START_ROUTINE run, void * state,
                              DWORD flags, DWORD * id) {
    const HANDLE thread = CreateThread(attributes, stack, run, state, flags, id);
    if (thread == NULL) {
        end_pool_of(state);
    }
    return thread;
}

static int64_t nanoseconds(void) {
    LARGE_INTEGER now, per_second;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&per_second);
    return (int64_t) ((double) now.QuadPart * 1e9 / (double) per_second.QuadPart);
}
#else
static int ph_start_thread(pthread_t * thread, const pthread_attr_t * attributes, void * (*run)(void *), void * state) {
    const int result = pthread_create(thread, attributes, run, state);
    if (result != 0) {
        end_pool_of(state);
    }
    return result;
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}
#endif

// How long a thread spins before it sleeps: about as long as it takes to fall asleep and to be woken.
enum { SPIN_NANOSECONDS = 20000, SPINS_BETWEEN_LOOKS = 32 };

// Whether the barrier's round is over before the time to spin is.
static bool spin(struct ggml_threadpool * pool, int round) {
    const int64_t end = nanoseconds() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < SPINS_BETWEEN_LOOKS; i++) {
            if (atomic_load_explicit(&pool->n_barrier_passed, memory_order_relaxed) != round) {
                return true;
            }
            ggml_thread_cpu_relax();
        }
    } while (nanoseconds() < end);
    return false;
}

// Threads that sleep at barriers, of all pools: while there are none, no one needs to be woken.
static atomic_int asleep;

// Sleeps until the barrier's round is over. The pool's condition is free for that: while a graph is computed, no thread
// waits for another graph.
static void sleep_until_over(struct ggml_threadpool * pool, int round) {
    ggml_mutex_lock_shared(&pool->mutex);
    atomic_fetch_add(&asleep, 1);
    while (atomic_load(&pool->n_barrier_passed) == round) {
        ggml_cond_wait(&pool->cond, &pool->mutex);
    }
    atomic_fetch_sub(&asleep, 1);
    ggml_mutex_unlock_shared(&pool->mutex);
}

void ph_barrier(struct ggml_threadpool * pool) {
    const int threads = atomic_load_explicit(&pool->n_graph, memory_order_relaxed) & GGML_THREADPOOL_N_THREADS_MASK;
    if (threads == 1) {
        return;
    }
    const int round = atomic_load_explicit(&pool->n_barrier_passed, memory_order_relaxed);
    if (atomic_fetch_add(&pool->n_barrier, 1) == threads - 1) {
        atomic_store_explicit(&pool->n_barrier, 0, memory_order_relaxed);
        atomic_fetch_add(&pool->n_barrier_passed, 1);
        // Either this sees the sleeper, or the sleeper, which counts itself first, sees that the round is over.
        if (atomic_load(&asleep) > 0) {
            ggml_mutex_lock(&pool->mutex);
            ggml_cond_broadcast(&pool->cond);
            ggml_mutex_unlock(&pool->mutex);
        }
        return;
    }
    if (!spin(pool, round)) {
        sleep_until_over(pool, round);
    }
    // What the other threads wrote before they arrived is seen from here on.
    atomic_thread_fence(memory_order_seq_cst);
}
