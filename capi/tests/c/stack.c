/* As much stack as the header says is enough for everything, and threads that the system does not start are an error that leaves none
 * behind. Arguments: a bundle, and a folder to write to. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <sys/resource.h>

/* What the header says. */
#define STACK (256 << 10)

struct paths {
    const char *bundle, *folder;
};

static void *work(void *argument) {
    const struct paths *paths = argument;
    pinhole_request request = small_request();
    pinhole_session_options options = one_thread();
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_plan *plan = NULL;
    pinhole_result *result = NULL;
    pinhole_convert_options convert;
    pinhole_files files;
    char path[4096];

    OK(pinhole_model_open(paths->bundle, &model, &error));
    OK(pinhole_session_new(model, &options, &session, &error));
    OK(pinhole_plan_new(session, &request, &plan, &error));
    OK(pinhole_generate(session, &request, &result, &error));
    join(path, sizeof path, paths->folder, "stack.png");
    OK(pinhole_image_write_png(pinhole_result_image(result, 0), path, &error));
    pinhole_files_init(&files, sizeof files);
    files.base = paths->bundle;
    pinhole_convert_options_init(&convert, sizeof convert);
    join(path, sizeof path, paths->folder, "stack.gguf");
    convert.source = &files;
    convert.output = path;
    convert.type = "q8_0";
    convert.threads = 1;
    OK(pinhole_convert(&convert, &error));
    FAILS(pinhole_model_open("/nowhere", &model, &error), PINHOLE_E_IO, "nowhere", 0);
    pinhole_result_free(result);
    pinhole_plan_free(plan);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return NULL;
}

static int threads(void) {
    DIR *folder = opendir("/proc/self/task");
    int count = 0;
    if (!folder) return 1; /* a system that does not say */
    while (readdir(folder)) count++;
    closedir(folder);
    return count;
}

/* Many threads have stacks that a limit of address space has no room for. */
static void no_threads(const char *bundle) {
    pinhole_session_options options = one_thread();
    pinhole_session *session = NULL;
    pinhole_model *model = NULL;
    struct rlimit limit, before;
    int count;

    OK(pinhole_model_open(bundle, &model, &error));
    count = threads();
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    limit = before;
    limit.rlim_cur = (rlim_t)1 << 30;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    options.threads = 400;
    FAILS(pinhole_session_new(model, &options, &session, &error), PINHOLE_E_OUT_OF_MEMORY, "a thread", 1);
    CHECK(!session && threads() == count);
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    options.threads = 2;
    OK(pinhole_session_new(model, &options, &session, &error));
    pinhole_session_free(session);
    pinhole_model_free(model);
}

int main(int argc, char **argv) {
    struct paths paths;
    pthread_attr_t attributes;
    pthread_t thread;

    CHECK(argc == 3);
    paths.bundle = argv[1];
    paths.folder = argv[2];
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, STACK) == 0);
    CHECK(pthread_create(&thread, &attributes, work, &paths) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    no_threads(argv[1]);
    return 0;
}
