/* How long a stop takes: a flag is raised from another thread at points spread over a request, and the time until the call returns
 * is held against the longest stage of that request. Prints both, in milliseconds. Arguments: how many stops; sides of the picture. */
#define _POSIX_C_SOURCE 199309L
#include "check.h"

#include <pthread.h>
#include <time.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

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

int main(int argc, char **argv) {
    static double latencies[1000];
    struct stages stages = {0, 0};
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_result *result = NULL;
    pinhole_request request = small_request();
    double begun, all;
    int stops, i, count = 0;

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
    request.progress = NULL;
    for (i = 0; i < stops; i++) {
        struct raise raise = {NULL, 0, 0};
        pthread_t thread;
        int32_t status;
        raise.after = all * (i + 0.5) / stops;
        OK(pinhole_cancel_new(&raise.cancel, &error));
        request.cancel = raise.cancel;
        CHECK(!pthread_create(&thread, NULL, raise_later, &raise));
        status = pinhole_generate(session, &request, &result, NULL);
        begun = now();
        CHECK(!pthread_join(thread, NULL));
        /* One that was through before is none. */
        CHECK(status == PINHOLE_E_CANCELLED || status == PINHOLE_OK);
        if (status == PINHOLE_E_CANCELLED) latencies[count++] = begun - raise.at;
        pinhole_result_free(result);
        pinhole_cancel_free(raise.cancel);
    }
    CHECK(count > stops / 3);
    qsort(latencies, (size_t)count, sizeof *latencies, smaller);
    printf("%d stops of a request of %.0f ms, whose longest stage took %.1f ms: median %.1f ms, longest %.1f ms\n", count,
           all * 1e3, stages.longest * 1e3, latencies[count / 2] * 1e3, latencies[count - 1] * 1e3);
    CHECK(latencies[count - 1] <= stages.longest + 0.05);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return 0;
}
