// Memory that is not to be had: allocations fail, one after the other, each once. Every failure is an error with a code, the next
// request succeeds, and draws what was drawn before.
//
// This program brings its own malloc and operator new, which the library under test uses, since they come first. What fails:
// - blocks aligned to 64, of SMALL bytes and more: memory on the CPU's devices, cpu:discrete among them, and ggml's contexts.
//   Below it is one that can end the process: ggml_graph_compute makes a context of 16 bytes before it starts, and asserts that it
//   got it, where no guard may unwind; and while a session is made ggml_threadpool_new does not look at what it got, so that blocks
//   are not failed then (see CONTRIBUTING.md, "What can still end the process");
// - operator new, of any size: ggml's C++;
// - malloc, calloc and realloc of LARGE bytes and more: the host's side.
// Arguments: how many points to leave out between two that are tried; LARGE; sides of the picture; "host" to fail only the last
// kind. LARGE stands for the megabyte of real pictures: what grows with a picture is as large as that in a small one.
#include <pinhole.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" {
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
}

namespace {

const size_t SMALL = 64;
size_t large = 1 << 20;
int32_t side = 64;
bool host_only = false;
bool making_session = false;
std::atomic<bool> armed{false};
std::atomic<long> seen{0};
std::atomic<long> fail_at{-1};
const char *kind = "";

// Whether the allocation that asks is the one to fail.
bool fails(const char *what, bool host) {
    if (!armed.load(std::memory_order_relaxed) || (host_only && !host)) return false;
    if (seen.fetch_add(1) != fail_at.load(std::memory_order_relaxed)) return false;
    kind = what;
    return true;
}

} // namespace

extern "C" void *malloc(size_t size) {
    return size >= large && fails("malloc", true) ? nullptr : __libc_malloc(size);
}

extern "C" void *calloc(size_t count, size_t size) {
    return (size == 0 || count >= large / size) && fails("calloc", true) ? nullptr : __libc_calloc(count, size);
}

extern "C" void *realloc(void *block, size_t size) {
    return size >= large && fails("realloc", true) ? nullptr : __libc_realloc(block, size);
}

extern "C" int posix_memalign(void **block, size_t alignment, size_t size) {
    if (((alignment == 64 && size >= SMALL && !making_session) || size >= large) && fails("posix_memalign", false)) return ENOMEM;
    *block = __libc_memalign(alignment, size);
    return *block ? 0 : ENOMEM;
}

void *operator new(size_t size) {
    if (fails("operator new", false)) throw std::bad_alloc();
    void *block = __libc_malloc(size ? size : 1);
    if (!block) throw std::bad_alloc();
    return block;
}
void operator delete(void *block) noexcept { free(block); }
void operator delete(void *block, size_t) noexcept { free(block); }

namespace {

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            armed = false;                                                                                             \
            printf("line %d, point %ld (%s) of %s: %s does not hold\n", __LINE__, fail_at.load(), kind, doing, #what); \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

const char *doing = "";

struct Case {
    const char *name;
    const char *device;
    int32_t offload;
    bool preview;
};

int32_t on_preview(const pinhole_image *, int32_t, int32_t, int32_t, void *) { return 0; }

// A session, a request, a PNG: everything that allocates much.
int32_t draw(const pinhole_model *model, const Case &what, pinhole_session **session, uint8_t *pixels, size_t size,
             pinhole_error **error) {
    pinhole_request request;
    pinhole_request_init(&request, sizeof request);
    request.prompt = "a red heart";
    request.negative_prompt = "blue";
    request.cfg_scale = 2;
    request.width = request.height = side;
    request.steps = 1;
    request.max_sequence_length = 64;
    request.preview = what.preview ? on_preview : nullptr;
    pinhole_result *result = nullptr;
    int32_t status = PINHOLE_OK;
    if (!*session) {
        pinhole_session_options options;
        pinhole_session_options_init(&options, sizeof options);
        options.threads = 1;
        options.device = what.device;
        options.offload = what.offload;
        making_session = true;
        status = pinhole_session_new(model, &options, session, error);
        making_session = false;
    }
    if (!status) status = pinhole_generate(*session, &request, &result, error);
    if (!status) status = pinhole_image_copy(pinhole_result_image(result, 0), PINHOLE_RGB8, pixels, size, 0, error);
    pinhole_result_free(result);
    return status;
}

void try_all(const pinhole_model *model, const Case &what, long stride) {
    static uint8_t first[256 * 256 * 3], again[sizeof first];
    doing = what.name;
    pinhole_session *session = nullptr;
    pinhole_error *error = nullptr;
    seen = 0;
    fail_at = -1;
    armed = true;
    CHECK(draw(model, what, &session, first, sizeof first, &error) == PINHOLE_OK);
    armed = false;
    pinhole_session_free(session);
    long all = seen, failed = 0;
    CHECK(all > 5);
    for (long i = 0; i < all; i += stride) {
        session = nullptr;
        seen = 0;
        fail_at = i;
        armed = true;
        int32_t status = draw(model, what, &session, again, sizeof again, &error);
        armed = false;
        if (status) {
            CHECK(pinhole_error_code(error) == status && pinhole_error_message(error)[0]);
            CHECK(status == PINHOLE_E_OUT_OF_MEMORY || status == PINHOLE_E_INTERNAL || status == PINHOLE_E_DEVICE ||
                  status == PINHOLE_E_IO);
            failed++;
        }
        pinhole_error_free(error);
        error = nullptr;
        // The next one, in the same session where there is one.
        CHECK(draw(model, what, &session, again, sizeof again, &error) == PINHOLE_OK);
        CHECK(!memcmp(first, again, sizeof first));
        pinhole_session_free(session);
    }
    printf("%s: %ld points, tried every %ld, %ld failed cleanly\n", what.name, all, stride, failed);
    CHECK(failed > 0);
}

} // namespace

int main(int argc, char **argv) {
    static const Case cases[] = {
        {"cpu", "cpu", PINHOLE_OFFLOAD_AUTO, true},
        {"cpu:discrete, all resident", "cpu:discrete", PINHOLE_OFFLOAD_NONE, false},
        {"cpu:discrete, sequential", "cpu:discrete", PINHOLE_OFFLOAD_SEQUENTIAL, true},
    };
    long stride = argc > 1 ? atol(argv[1]) : 1;
    if (argc > 2) large = (size_t)atol(argv[2]);
    if (argc > 3) side = atoi(argv[3]);
    host_only = argc > 4;
    pinhole_model *model = nullptr;
    pinhole_error *error = nullptr;
    CHECK(pinhole_model_open_builtin(&model, &error) == PINHOLE_OK);
    for (const Case &what : cases) try_all(model, what, stride);
    pinhole_model_free(model);
    return 0;
}
