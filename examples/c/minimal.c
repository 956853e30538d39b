/* The smallest program: one picture of the built-in model.
 *
 *     cc minimal.c $(pkg-config --cflags --libs pinhole) -o minimal && ./minimal star.png
 */
#include <pinhole.h>
#include <stdio.h>

int main(int argc, char **argv) {
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_result *result = NULL;
    pinhole_error *error = NULL;
    pinhole_request request;
    int32_t status;

    pinhole_request_init(&request, sizeof request);
    request.prompt = "a small yellow star on a blue background";
    status = pinhole_model_open_builtin(&model, &error);
    if (!status) status = pinhole_session_new(model, NULL, &session, &error);
    if (!status) status = pinhole_generate(session, &request, &result, &error);
    if (!status) status = pinhole_image_write_png(pinhole_result_image(result, 0), argc > 1 ? argv[1] : "star.png", &error);
    if (status) fprintf(stderr, "%s\nhint: %s\n", pinhole_error_message(error), pinhole_error_hint(error));
    pinhole_error_free(error);
    pinhole_result_free(result);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return status != PINHOLE_OK;
}
