#include "shim.h"

#include "ggml.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace {

// What an assertion becomes. Not a std::exception: none of ggml's own handlers may take it for one of theirs.
struct failed_assertion {
    char message[2048]; // as long as ggml_abort's own
};

void copy(char * to, size_t size, const char * from) {
    if (size > 0) {
        snprintf(to, size, "%s", from);
    }
}

// Guards on this thread that let assertions throw. ggml's worker threads have none, ever.
thread_local int catching_assertions = 0;

// Sets the count for a scope, and puts it back however the scope is left.
class assertion_scope {
    const int before = catching_assertions;

public:
    explicit assertion_scope(bool catching) { catching_assertions = catching ? before + 1 : 0; }
    ~assertion_scope() { catching_assertions = before; }
    assertion_scope(const assertion_scope &)             = delete;
    assertion_scope & operator=(const assertion_scope &) = delete;
};

// ggml_abort calls this before it aborts. With a callback set ggml prints nothing itself and starts no debugger.
void on_abort(const char * message) {
    if (catching_assertions > 0) {
        failed_assertion failure;
        copy(failure.message, sizeof(failure.message), message);
        throw failure;
    }
    fprintf(stderr, "%s\n", message);
}

void install_abort_callback() {
    static std::once_flag once;
    std::call_once(once, [] { ggml_set_abort_callback(on_abort); });
}

} // namespace

// The definition that holds: ggml's own is weak (see cpu.c). It is in this file because every program has this file.
extern "C" void ggml_barrier(ggml_threadpool * pool) {
    ph_barrier(pool);
}

extern "C" int ph_guard(void (*call)(void *), void * data, int assertions, char * message, size_t size) {
    install_abort_callback();
    try {
        const assertion_scope scope(assertions != 0);
        call(data);
        return PH_NOTHING;
    } catch (const failed_assertion & failure) {
        copy(message, size, failure.message);
        return PH_ASSERTION;
    } catch (const std::bad_alloc & error) {
        copy(message, size, error.what());
        return PH_BAD_ALLOC;
    } catch (const std::exception & error) {
        copy(message, size, error.what());
        return PH_EXCEPTION;
#ifdef __GLIBCXX__
    } catch (const abi::__forced_unwind &) {
        throw; // the thread is being cancelled, which no handler may stop
#endif
    } catch (...) {
        copy(message, size, "an exception that is no std::exception");
        return PH_UNKNOWN;
    }
}

extern "C" int ph_exceptions_in_flight(void) {
    return std::uncaught_exceptions();
}

extern "C" void ph_test_throw(int kind) {
    switch (kind) {
        case 0:  throw std::runtime_error("thrown by a test");
        case 1:  throw std::bad_alloc();
        default: throw kind;
    }
}

extern "C" void ph_test_assert(void) {
    GGML_ASSERT(1 + 1 == 3);
}
