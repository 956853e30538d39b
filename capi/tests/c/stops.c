/* Requests that are stopped: by a callback at every point, by a flag that was raised before, and from another thread. After
 * each the session draws what it drew before. Arguments: how many points to leave out between two that are tried; a folder. */
#define _POSIX_C_SOURCE 199309L
#include "check.h"

#include <pthread.h>
#include <time.h>

struct points {
    int seen;
    int stop_at;
    pinhole_session *session;
};

static int32_t on_point(struct points *points) {
    points->seen += 1;
    return points->seen == points->stop_at ? 7 : 0;
}

static int32_t on_progress(const pinhole_progress *now, void *user_data) {
    CHECK(now->struct_size == sizeof *now && now->stage <= now->stages && now->step <= now->steps);
    CHECK(now->seconds >= 0 && (now->seconds_left >= 0 || now->stage == 0));
    return on_point(user_data);
}

static int32_t on_warning(const char *message, void *user_data) {
    CHECK(message[0]);
    return on_point(user_data);
}

static int32_t on_preview(const pinhole_image *image, int32_t index, int32_t step, int32_t steps, void *user_data) {
    CHECK(pinhole_image_width(image) == 4 && pinhole_image_height(image) == 4);
    CHECK(index == 0 && step >= 1 && step <= steps);
    return on_point(user_data);
}

/* A session cannot be used by its own callbacks, and everything else can. */
static int32_t on_reentry(const pinhole_progress *now, void *user_data) {
    struct points *points = user_data;
    pinhole_request request = small_request();
    pinhole_result *result = NULL;
    pinhole_plan *plan = NULL;
    size_t count;
    (void)now;
    FAILS(pinhole_generate(points->session, &request, &result, &error), PINHOLE_E_BUSY, "in use", 1);
    FAILS(pinhole_plan_new(points->session, &request, &plan, &error), PINHOLE_E_BUSY, "in use", 1);
    OK(pinhole_device_count(&count, &error));
    return 0;
}

static void *raise_soon(void *cancel) {
    const struct timespec wait = {0, 30 * 1000 * 1000};
    nanosleep(&wait, NULL);
    pinhole_cancel_raise(cancel);
    return NULL;
}

static pinhole_request watched(struct points *points) {
    pinhole_request request = small_request();
    /* So long that T5 does not see the end of it: a warning. */
    request.prompt = "a red heart and a blue star and a green circle and a yellow square and what not";
    request.progress = on_progress;
    request.warning = on_warning;
    request.preview = on_preview;
    request.user_data = points;
    return request;
}

static void check_same(const pinhole_result *a, const pinhole_result *b) {
    const pinhole_image *one = pinhole_result_image(a, 0), *two = pinhole_result_image(b, 0);
    CHECK(one && two);
    CHECK(!memcmp(pinhole_image_pixels(one), pinhole_image_pixels(two), 32 * 32 * 3));
}

/* A prompt that the session has not met: it goes through the text encoders. */
static void another_prompt(char *prompt, size_t size) {
    static int number = 0;
    snprintf(prompt, size, "%d red hearts and a blue star and a green circle and a yellow square and what not", ++number);
}

static void at_every_point(pinhole_session *session, int stride, int with_previews) {
    struct points points = {0, 0, NULL};
    pinhole_request request = watched(&points);
    char first_prompt[128], prompt[128];
    pinhole_result *first = NULL, *result = NULL;
    int all, i;

    if (!with_previews) request.preview = NULL;
    another_prompt(first_prompt, sizeof first_prompt);
    request.prompt = first_prompt;
    OK(pinhole_generate(session, &request, &first, &error));
    all = points.seen;
    CHECK(all > 20);
    for (i = 1; i <= all; i += stride) {
        points.seen = 0;
        points.stop_at = i;
        another_prompt(prompt, sizeof prompt);
        request.prompt = prompt;
        FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_CANCELLED, "cancelled", 0);
        CHECK(points.seen == i && !result);
    }
    points.seen = points.stop_at = 0;
    /* The session remembers this one. */
    request.prompt = first_prompt;
    OK(pinhole_generate(session, &request, &result, &error));
    CHECK(points.seen > 0 && points.seen < all);
    check_same(first, result);
    pinhole_result_free(first);
    pinhole_result_free(result);
}

static void by_a_flag(pinhole_session *session) {
    pinhole_request request = small_request(), plain = small_request();
    pinhole_result *before = NULL, *after = NULL;
    pinhole_embeddings *embeddings = NULL;
    pinhole_cancel *cancel = NULL;
    pthread_t thread;
    struct timespec start, end;
    double seconds;

    OK(pinhole_generate(session, &plain, &before, &error));
    OK(pinhole_cancel_new(&cancel, &error));
    pinhole_cancel_raise(cancel);
    request.cancel = cancel;
    FAILS(pinhole_generate(session, &request, &after, &error), PINHOLE_E_CANCELLED, "cancelled", 0);
    FAILS(pinhole_embeddings_new(session, &request, &embeddings, &error), PINHOLE_E_CANCELLED, "cancelled", 0);
    pinhole_cancel_free(cancel);

    /* A request that would take minutes. */
    OK(pinhole_cancel_new(&cancel, &error));
    request.cancel = cancel;
    request.width = request.height = 512;
    request.steps = 500;
    CHECK(!pthread_create(&thread, NULL, raise_soon, cancel));
    clock_gettime(CLOCK_MONOTONIC, &start);
    FAILS(pinhole_generate(session, &request, &after, &error), PINHOLE_E_CANCELLED, "cancelled", 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
    CHECK(seconds < 60);
    CHECK(!pthread_join(thread, NULL));
    pinhole_cancel_free(cancel);

    OK(pinhole_generate(session, &plain, &after, &error));
    check_same(before, after);
    pinhole_result_free(before);
    pinhole_result_free(after);
}

static int32_t stop_soon(const pinhole_progress *now, void *user_data) {
    (void)user_data;
    return now->phase == PINHOLE_PHASE_CONVERT && now->bytes_moved > 0;
}

static void in_a_conversion(const char *bundle, const char *directory) {
    char path[4096];
    pinhole_files source;
    pinhole_convert_options options;
    FILE *file;

    pinhole_files_init(&source, sizeof source);
    pinhole_convert_options_init(&options, sizeof options);
    source.base = bundle;
    options.source = &source;
    options.output = join(path, sizeof path, directory, "stopped.gguf");
    options.type = "q8_0";
    options.threads = 1;
    options.progress = stop_soon;
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_CANCELLED, "cancelled", 0);
    file = fopen(path, "rb");
    CHECK(!file);
}

int main(int argc, char **argv) {
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_session_options options = one_thread();
    pinhole_result *result = NULL;
    pinhole_request request = small_request();
    struct points points = {0, 0, NULL};

    CHECK(argc == 4);
    OK(pinhole_model_open_builtin(&model, &error));
    OK(pinhole_session_new(model, &options, &session, &error));
    at_every_point(session, atoi(argv[1]), 1);
    by_a_flag(session);
    points.session = session;
    request.progress = on_reentry;
    request.user_data = &points;
    OK(pinhole_generate(session, &request, &result, &error));
    pinhole_result_free(result);
    pinhole_session_free(session);

    /* The same where weights stream through slots from a thread of their own. Where most points are left out anyway, under
     * Valgrind, a second fit of previews would take longer than everything else. */
    options.device = "cpu:discrete";
    options.offload = PINHOLE_OFFLOAD_SEQUENTIAL;
    OK(pinhole_session_new(model, &options, &session, &error));
    at_every_point(session, 4 * atoi(argv[1]), atoi(argv[1]) < 10);
    pinhole_session_free(session);
    pinhole_model_free(model);
    in_a_conversion(argv[2], argv[3]);
    return 0;
}
