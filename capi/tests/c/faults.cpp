// Memory that is not to be had: allocations fail, one after the other, each once. Every failure is an error with a code, nothing of
// what was allocated meanwhile stays behind, the next request succeeds, and draws what was drawn before.
//
// This program brings its own malloc and operator new, which the library under test uses, since they come first. What fails:
// - blocks aligned to 64, of SMALL bytes and more: memory on the CPU's devices, cpu:discrete among them, and ggml's contexts.
//   Below it is one that can end the process: ggml_graph_compute makes a context of 16 bytes before it starts, and asserts that it
//   got it, where no guard may unwind; and while a session is made ggml_threadpool_new does not look at what it got, so that blocks
//   are not failed then (see CONTRIBUTING.md, "What can still end the process");
// - operator new, of any size: ggml's C++;
// - malloc, calloc, realloc and anonymous maps of a case's `large` bytes and more: the host's side. It stands for the megabyte of
//   real pictures: what is a megabyte at 1024x1024 is 16 KiB at 128x128. The zlib in the png crate is left alone: it takes some
//   300 KiB for every picture, whatever its size, and does not look at whether it was given them.
// What may stay behind is BOOKKEEPING of ggml's graph allocator, where malloc, calloc or operator new failed inside it and it
// was unwound (see "What is left behind" in vendor/ggml-sys/src/lib.rs); no weights, no results. The program says how often.
// Arguments: a bundle; a folder to write to; of how many processes that share the work this is which (0 of 2: 0 2); how many points
// to leave out between two that are tried.
#include <pinhole.h>

#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

extern "C" {
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *block);
}

namespace {

const size_t SMALL = 64;
const long BOOKKEEPING = 64 << 10;
size_t large = 0;
bool host_only = false;
bool making_session = false;
bool waits_for_plan = false;
bool fired = false;
std::atomic<bool> armed{false};
std::atomic<long> seen{0};
std::atomic<long> fail_at{-1};
std::atomic<long> live{0};
const char *kind = "";
size_t fired_size = 0;

// Whether the allocation that asks is the one to fail.
bool fails(const char *what, size_t size, bool host) {
    if (!armed.load(std::memory_order_relaxed) || (host_only && !host)) return false;
    if (seen.fetch_add(1) != fail_at.load(std::memory_order_relaxed)) return false;
    kind = what;
    fired_size = size;
    fired = true;
    return true;
}

// A block on its way out: it counts as alive.
void *given(void *block) {
    if (block) live += (long)malloc_usable_size(block);
    return block;
}

} // namespace

extern "C" void *malloc(size_t size) {
    return size >= large && fails("malloc", size, true) ? nullptr : given(__libc_malloc(size));
}

extern "C" void *calloc(size_t count, size_t size) {
    bool is_large = size && count >= large / size;
    return is_large && fails("calloc", count * size, true) ? nullptr : given(__libc_calloc(count, size));
}

extern "C" void *realloc(void *block, size_t size) {
    if (size >= large && fails("realloc", size, true)) return nullptr;
    long before = block ? (long)malloc_usable_size(block) : 0;
    void *moved = __libc_realloc(block, size);
    if (moved || !size) live -= before;
    return given(moved);
}

extern "C" int posix_memalign(void **block, size_t alignment, size_t size) {
    bool small = alignment == 64 && size >= SMALL && !making_session;
    if (small && fails("posix_memalign", size, false)) return ENOMEM;
    if (!small && size >= large && fails("posix_memalign", size, true)) return ENOMEM;
    *block = given(__libc_memalign(alignment, size));
    return *block ? 0 : ENOMEM;
}

extern "C" void *memalign(size_t alignment, size_t size) { return given(__libc_memalign(alignment, size)); }
extern "C" void *aligned_alloc(size_t alignment, size_t size) { return given(__libc_memalign(alignment, size)); }

// The C library's own malloc does not come this way.
extern "C" void *mmap64(void *address, size_t size, int protection, int flags, int file, off64_t offset) {
    if ((flags & MAP_ANONYMOUS) && size >= large && fails("mmap", size, true)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, size, protection, flags, file, offset);
}

extern "C" void free(void *block) {
    if (block) live -= (long)malloc_usable_size(block);
    __libc_free(block);
}

void *operator new(size_t size) {
    if (fails("operator new", size, false)) throw std::bad_alloc();
    void *block = given(__libc_malloc(size ? size : 1));
    if (!block) throw std::bad_alloc();
    return block;
}
void operator delete(void *block) noexcept { free(block); }
void operator delete(void *block, size_t) noexcept { free(block); }

namespace {

struct Case {
    const char *name;
    int32_t (*act)(const Case &, pinhole_error **);
    bool host_only;
    size_t large;
    int32_t side;
    int32_t tokens;
    const char *device;
    int32_t offload;
    uint64_t vram;
    bool preview;
    // Only what comes after the plan is failed: planning allocates the same in every case.
    bool planned;
};

const char *bundle, *folder, *doing = "";
long process = 0;
pinhole_model *model = nullptr;
pinhole_session *session = nullptr;
uint8_t first[256 * 256 * 3], pixels[sizeof first];

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            armed = false;                                                                                             \
            printf("line %d, point %ld (%s of %zu bytes) of %s: %s does not hold\n", __LINE__, fail_at.load(), kind,   \
                   fired_size, doing, #what);                                                                          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

int32_t on_preview(const pinhole_image *, int32_t, int32_t, int32_t, void *) { return 0; }

// The first call comes with the plan.
int32_t on_progress(const pinhole_progress *, void *) {
    if (waits_for_plan) armed = true;
    waits_for_plan = false;
    return 0;
}

// A session where there is none, a request: everything that allocates much.
int32_t draw(const Case &what, pinhole_error **error) {
    pinhole_request request;
    pinhole_request_init(&request, sizeof request);
    request.prompt = "a red heart";
    request.negative_prompt = "blue";
    request.cfg_scale = 2;
    request.width = request.height = what.side;
    request.steps = 1;
    request.max_sequence_length = what.tokens;
    request.progress = on_progress;
    request.preview = what.preview ? on_preview : nullptr;
    int32_t status = PINHOLE_OK;
    if (!session) {
        pinhole_session_options options;
        pinhole_session_options_init(&options, sizeof options);
        options.threads = 1;
        options.device = what.device;
        options.offload = what.offload;
        options.vram = what.vram;
        making_session = true;
        status = pinhole_session_new(model, &options, &session, error);
        making_session = false;
    }
    pinhole_result *result = nullptr;
    if (!status) status = pinhole_generate(session, &request, &result, error);
    const pinhole_image *image = pinhole_result_image(result, 0);
    if (!status) status = pinhole_image_copy(image, PINHOLE_RGB8, pixels, sizeof pixels, 0, error);
    pinhole_result_free(result);
    return status;
}

// A bundle in memory, which is copied.
int32_t open_memory(const Case &, pinhole_error **error) {
    static std::string bytes;
    if (bytes.empty()) {
        FILE *file = fopen(bundle, "rb");
        CHECK(file && !fseek(file, 0, SEEK_END));
        bytes.resize((size_t)ftell(file));
        rewind(file);
        CHECK(fread(&bytes[0], 1, bytes.size(), file) == bytes.size());
        fclose(file);
    }
    pinhole_model *opened = nullptr;
    int32_t status = pinhole_model_open_memory(bytes.data(), bytes.size(), PINHOLE_MEMORY_COPY, &opened, error);
    CHECK(!status == !!opened);
    pinhole_model_free(opened);
    return status;
}

int32_t convert(const Case &, pinhole_error **error) {
    static const std::string output = std::string(folder) + "/faults" + std::to_string(process) + ".gguf";
    pinhole_files source;
    pinhole_convert_options options;
    pinhole_files_init(&source, sizeof source);
    pinhole_convert_options_init(&options, sizeof options);
    source.base = bundle;
    options.source = &source;
    options.output = output.c_str();
    options.type = "q8_0";
    options.component = "transformer";
    options.overwrite = 1;
    options.threads = 1;
    return pinhole_convert(&options, error);
}

// `act` with the allocation at `point` failing, and then the same once more. Says how many bytes stayed.
long fail(const Case &what, long point) {
    long before = live;
    pinhole_error *error = nullptr;
    seen = 0;
    fail_at = point;
    fired = false;
    waits_for_plan = what.planned;
    armed = !what.planned;
    int32_t status = what.act(what, &error);
    armed = waits_for_plan = false;
    if (fired) {
        CHECK(status && pinhole_error_code(error) == status && pinhole_error_message(error)[0]);
        CHECK(status == PINHOLE_E_OUT_OF_MEMORY || status == PINHOLE_E_INTERNAL || status == PINHOLE_E_DEVICE ||
              status == PINHOLE_E_IO);
    } else {
        CHECK(status == PINHOLE_OK && !error);
    }
    pinhole_error_free(error);
    if (fired) {
        // The next one, in the same session where there is one.
        memset(pixels, 0, sizeof pixels);
        CHECK(what.act(what, nullptr) == PINHOLE_OK);
        CHECK(!memcmp(first, pixels, sizeof first));
    }
    pinhole_session_free(session);
    session = nullptr;
    // A conversion's threads end a little later than the conversion.
    const struct timespec moment = {0, 1000 * 1000};
    for (int i = 0; live > before && i < 100; i++) nanosleep(&moment, nullptr);
    return live - before;
}

// How much may stay where an allocation of this kind failed.
long allowed() {
    return !strcmp(kind, "malloc") || !strcmp(kind, "calloc") || !strcmp(kind, "operator new") ? BOOKKEEPING : 0;
}

void try_all(const Case &what, long processes, long stride) {
    doing = what.name;
    host_only = what.host_only;
    large = what.large;
    // Twice: the first makes what lasts as long as the process.
    for (int i = 0; i < 2; i++) {
        memset(pixels, 0, sizeof pixels);
        CHECK(what.act(what, nullptr) == PINHOLE_OK);
        pinhole_session_free(session);
        session = nullptr;
    }
    memcpy(first, pixels, sizeof first);
    long tried = 0, leaks = 0, kept = 0, most = 0;
    for (long point = process * stride;; point += processes * stride) {
        // What is made once and kept is made once; a leak is there every time.
        long stayed = fail(what, point);
        for (int again = 0; stayed > allowed() && again < 2; again++) stayed = fail(what, point);
        if (stayed > 0) {
            kept++;
            most = stayed > most ? stayed : most;
        }
        if (stayed > allowed()) {
            leaks++;
            printf("%s: point %ld (%s of %zu bytes): %ld bytes stay\n", doing, point, kind, fired_size, stayed);
        }
        if (!fired) break;
        tried++;
    }
    printf("%s: %ld of %ld points failed cleanly, %ld of them left up to %ld bytes behind\n", doing, tried, seen.load(), kept,
           most);
    fflush(stdout);
    CHECK(seen > 0 && tried >= seen / (processes * stride));
    CHECK(leaks == 0);
}

} // namespace

int main(int argc, char **argv) {
    // A budget of 24 MiB has room for strips of the decoder's maps only.
    static const uint64_t tight = 24 << 20;
    static const Case cases[] = {
        {"cpu", draw, false, 16000, 16, 8, "cpu", PINHOLE_OFFLOAD_AUTO, 0, false, false},
        {"all resident", draw, false, 16000, 16, 8, "cpu:discrete", PINHOLE_OFFLOAD_NONE, 0, false, true},
        {"by component", draw, false, 16000, 16, 8, "cpu:discrete", PINHOLE_OFFLOAD_MODEL, 0, false, true},
        {"by layer", draw, false, 16000, 16, 8, "cpu:discrete", PINHOLE_OFFLOAD_SEQUENTIAL, 0, false, true},
        {"large, cpu", draw, true, 16000, 128, 64, "cpu", PINHOLE_OFFLOAD_AUTO, 0, false, true},
        {"large, by layer", draw, true, 16000, 128, 64, "cpu:discrete", PINHOLE_OFFLOAD_SEQUENTIAL, 0, false, true},
        {"large, in strips", draw, true, 16000, 128, 8, "cpu:discrete", PINHOLE_OFFLOAD_AUTO, tight, false, true},
        {"previews", draw, false, 16000, 64, 8, "cpu", PINHOLE_OFFLOAD_AUTO, 0, true, true},
        {"a bundle in memory", open_memory, true, 1 << 20, 0, 0, nullptr, 0, 0, false, false},
        {"a conversion", convert, true, 1 << 16, 0, 0, nullptr, 0, 0, false, false},
    };
    CHECK(argc > 5);
    bundle = argv[1];
    folder = argv[2];
    process = atol(argv[3]);
    const char *only = argc > 6 ? argv[6] : nullptr;
    CHECK(pinhole_model_open_builtin(&model, nullptr) == PINHOLE_OK);
    for (const Case &what : cases) {
        if (!only || !strcmp(only, what.name)) try_all(what, atol(argv[4]), atol(argv[5]));
    }
    pinhole_model_free(model);
    return 0;
}
