/* A program with a ggml of its own beside the one in libpinhole.a. */
#include "check.h"

/* From the other ggml: what it is called there. */
const char *ggml_type_name(int type);
size_t ggml_type_size(int type);

int main(void) {
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_session_options options = one_thread();
    pinhole_request request = small_request();
    pinhole_result *result = NULL;

    CHECK(!strcmp(ggml_type_name(8), "q8_0") && ggml_type_size(8) == 34);
    OK(pinhole_model_open_builtin(&model, &error));
    OK(pinhole_session_new(model, &options, &session, &error));
    OK(pinhole_generate(session, &request, &result, &error));
    CHECK(pinhole_result_image_count(result) == 1);
    pinhole_result_free(result);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return 0;
}
