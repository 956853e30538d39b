/* How long a stop takes: a flag is raised from another thread at points spread over a request, and the time until the call returns
 * is held against the longest stage of all these requests. Prints both, in milliseconds. Arguments: how many stops; sides of the
 * picture. */
#define _POSIX_C_SOURCE 199309L
#include "check.h"

#include <pthread.h>
#include <time.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Of the requests so far: when the last stage ended, and how long the longest took. */
struct stages {
    double last;
    double longest;
};

static int32_t on_stage(const pinhole_progress *progress, void *user_data) {
    struct stages *stages = user_data;
    double time = now();
    /* Setting up a phase counts as part of its first stage. */
    if (progress->stage > 0 && time - stages->last > stages->longest) stages->longest = time - stages->last;
    stages->last = time;
    return 0;
}

struct raise {
    pinhole_cancel *cancel;
    double after;
    double at;
};

static void *raise_later(void *argument) {
    struct raise *raise = argument;
    struct timespec wait;
    wait.tv_sec = (time_t)raise->after;
    wait.tv_nsec = (long)((raise->after - (double)wait.tv_sec) * 1e9);
    nanosleep(&wait, NULL);
    raise->at = now();
    pinhole_cancel_raise(raise->cancel);
    return NULL;
}

static int smaller(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

/* A prompt that the session has not met: it goes through the text encoders. */
static const char *another_prompt(void) {
    static char prompt[64];
    static int number = 0;
    snprintf(prompt, sizeof prompt, "%d red hearts on a blue background", ++number);
    return prompt;
}

/* Stops a request after so many seconds. What the stop took, in seconds; or -1 where the request was through before, and then
 * `*all` is what that took. */
static double stop_after(pinhole_session *session, pinhole_request request, double after, double *all) {
    struct raise raise = {NULL, 0, 0};
    pinhole_result *result = NULL;
    struct stages *stages = request.user_data;
    double begun, ended;
    pthread_t thread;
    int32_t status;

    raise.after = after;
    OK(pinhole_cancel_new(&raise.cancel, &error));
    request.cancel = raise.cancel;
    request.prompt = another_prompt();
    CHECK(!pthread_create(&thread, NULL, raise_later, &raise));
    begun = stages->last = now();
    status = pinhole_generate(session, &request, &result, NULL);
    ended = now();
    CHECK(!pthread_join(thread, NULL));
    CHECK(status == PINHOLE_E_CANCELLED || status == PINHOLE_OK);
    pinhole_result_free(result);
    pinhole_cancel_free(raise.cancel);
    if (status == PINHOLE_E_CANCELLED) return ended - raise.at;
    *all = ended - begun;
    return -1;
}

int main(int argc, char **argv) {
    static double latencies[1000];
    struct stages stages = {0, 0};
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_result *result = NULL;
    pinhole_request request = small_request();
    double begun, all;
    int stops, i, misses = 0;

    CHECK(argc == 3);
    stops = atoi(argv[1]);
    CHECK(stops > 0 && stops <= 1000);
    request.width = request.height = atoi(argv[2]);
    request.steps = 4;
    request.max_sequence_length = 0;
    request.progress = on_stage;
    request.user_data = &stages;
    OK(pinhole_model_open_builtin(&model, &error));
    OK(pinhole_session_new(model, NULL, &session, &error));
    begun = stages.last = now();
    OK(pinhole_generate(session, &request, &result, &error));
    all = now() - begun;
    pinhole_result_free(result);
    for (i = 0; i < stops; i++) {
        /* A machine that other work leaves alone is faster than it was: the request is through, and its stop is tried anew. */
        while ((latencies[i] = stop_after(session, request, all * (i + 0.5) / stops, &all)) < 0) CHECK(++misses < stops);
    }
    qsort(latencies, (size_t)stops, sizeof *latencies, smaller);
    printf("%d stops of a request of %.0f ms, with no stage longer than %.1f ms: median %.1f ms, longest %.1f ms\n", stops,
           all * 1e3, stages.longest * 1e3, latencies[stops / 2] * 1e3, latencies[stops - 1] * 1e3);
    CHECK(latencies[stops - 1] <= stages.longest + 0.05);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return 0;
}
