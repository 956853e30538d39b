/* Two sessions in two threads over one model: the weights are mapped once.
 *
 *     cc threads.c $(pkg-config --cflags --libs pinhole) -pthread -o threads && ./threads star.png heart.png
 */
#include <pinhole.h>
#include <pthread.h>
#include <stdio.h>

struct work {
    const pinhole_model *model;
    const char *prompt;
    const char *path;
    int32_t status;
};

static void *draw(void *argument) {
    struct work *work = argument;
    pinhole_session_options options;
    pinhole_session *session = NULL;
    pinhole_result *result = NULL;
    pinhole_error *error = NULL;
    pinhole_request request;

    pinhole_session_options_init(&options, sizeof options);
    options.threads = 1; /* each */
    pinhole_request_init(&request, sizeof request);
    request.prompt = work->prompt;
    work->status = pinhole_session_new(work->model, &options, &session, &error);
    if (!work->status) work->status = pinhole_generate(session, &request, &result, &error);
    if (!work->status) work->status = pinhole_image_write_png(pinhole_result_image(result, 0), work->path, &error);
    if (work->status) fprintf(stderr, "%s: %s\n", work->path, pinhole_error_message(error));
    pinhole_error_free(error);
    pinhole_result_free(result);
    pinhole_session_free(session);
    return NULL;
}

int main(int argc, char **argv) {
    struct work work[2] = {{NULL, "a small yellow star on a blue background", "star.png", -1},
                           {NULL, "a red heart", "heart.png", -1}};
    pthread_t threads[2];
    pinhole_model *model = NULL;
    pinhole_error *error = NULL;
    int i, started = 0;

    if (pinhole_model_open_builtin(&model, &error)) {
        fprintf(stderr, "%s\n", pinhole_error_message(error));
        pinhole_error_free(error);
        return 1;
    }
    for (i = 0; i < 2; i++) {
        work[i].model = model;
        if (argc > 1 + i) work[i].path = argv[1 + i];
        if (pthread_create(&threads[i], NULL, draw, &work[i])) break;
        started++;
    }
    for (i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pinhole_model_free(model);
    return work[0].status != PINHOLE_OK || work[1].status != PINHOLE_OK;
}
