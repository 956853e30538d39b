/* A request with a progress line, warnings, previews, and a stop from another thread after a number of seconds.
 *
 *     cc progress.c $(pkg-config --cflags --libs pinhole) -pthread -o progress
 *     ./progress "a red heart" heart.png        # to the end
 *     ./progress "a red heart" heart.png 0.1    # cancelled, exit code 2
 */
#define _POSIX_C_SOURCE 199309L
#include <pinhole.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static const char *const phases[] = {"prepare", "encode", "denoise", "decode", "convert", "condition"};

/* Answering anything but 0 would cancel as well. */
static int32_t on_progress(const pinhole_progress *now, void *user_data) {
    (void)user_data;
    fprintf(stderr, "\r%-8s layer %d/%d, step %d/%d, %llu bytes moved, %.1f s left   ", phases[now->phase], now->stage,
            now->stages, now->step, now->steps, (unsigned long long)now->bytes_moved,
            now->seconds_left < 0 ? 0 : now->seconds_left);
    return 0;
}

static int32_t on_warning(const char *message, void *user_data) {
    (void)user_data;
    fprintf(stderr, "\nwarning: %s\n", message);
    return 0;
}

static int32_t on_preview(const pinhole_image *image, int32_t index, int32_t step, int32_t steps, void *user_data) {
    int *previews = user_data;
    *previews += 1;
    fprintf(stderr, "\npreview of picture %d after step %d/%d: %dx%d pixels\n", index, step, steps,
            pinhole_image_width(image), pinhole_image_height(image));
    return 0;
}

struct timer {
    pinhole_cancel *cancel;
    double seconds;
};

static void *raise_later(void *argument) {
    const struct timer *timer = argument;
    struct timespec wait;
    wait.tv_sec = (time_t)timer->seconds;
    wait.tv_nsec = (long)((timer->seconds - (double)wait.tv_sec) * 1e9);
    nanosleep(&wait, NULL);
    pinhole_cancel_raise(timer->cancel);
    return NULL;
}

int main(int argc, char **argv) {
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_result *result = NULL;
    pinhole_error *error = NULL;
    pinhole_request request;
    struct timer timer = {NULL, 0};
    pthread_t thread;
    int previews = 0, timed = argc > 3;
    int32_t status;

    if (argc < 3) {
        fprintf(stderr, "usage: %s PROMPT OUT.png [SECONDS]\n", argv[0]);
        return 64;
    }
    pinhole_request_init(&request, sizeof request);
    request.prompt = argv[1];
    request.progress = on_progress;
    request.warning = on_warning;
    request.preview = on_preview;
    request.user_data = &previews;
    status = pinhole_model_open_builtin(&model, &error);
    if (!status) status = pinhole_session_new(model, NULL, &session, &error);
    if (!status) status = pinhole_cancel_new(&timer.cancel, &error);
    if (!status) {
        request.cancel = timer.cancel;
        timer.seconds = timed ? atof(argv[3]) : 0;
        timed = timed && pthread_create(&thread, NULL, raise_later, &timer) == 0;
        status = pinhole_generate(session, &request, &result, &error);
        if (timed) pthread_join(thread, NULL);
    }
    if (!status) status = pinhole_image_write_png(pinhole_result_image(result, 0), argv[2], &error);
    fprintf(stderr, "\n%s after %d previews\n", status ? pinhole_error_message(error) : "done", previews);
    pinhole_error_free(error);
    pinhole_result_free(result);
    pinhole_cancel_free(timer.cancel);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return status == PINHOLE_OK ? 0 : status == PINHOLE_E_CANCELLED ? 2 : 1;
}
