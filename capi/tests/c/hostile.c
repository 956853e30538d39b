/* Hostile files, through every function that takes one. Arguments: a list, and a folder to write to. A line of the list has a number,
 * what to inspect, a base, an option and what it gives (both may be empty), separated by tabs. For each step that was taken, prints
 * the number, the step, the code, the message and the hint, also separated by tabs. Whether they are right is for the caller. */
#include "check.h"

static FILE *answers;

static void said(const char *number, const char *step, int32_t code, pinhole_error *error, int has_output) {
    CHECK(code == pinhole_error_code(error) && (code == PINHOLE_OK) == (error == NULL));
    /* A call that fails gives nothing. */
    CHECK(has_output == (code == PINHOLE_OK));
    fprintf(answers, "%s\t%s\t%s\t%s\t%s\n", number, step, pinhole_status_name(code), pinhole_error_message(error),
            pinhole_error_hint(error));
    fflush(answers);
    pinhole_error_free(error);
}

static const char **part(pinhole_files *files, const char *option) {
    if (!strcmp(option, "--transformer")) return &files->transformer;
    if (!strcmp(option, "--text-encoder")) return &files->text_encoder;
    if (!strcmp(option, "--text-encoder-2")) return &files->text_encoder_2;
    if (!strcmp(option, "--vae")) return &files->vae;
    if (!strcmp(option, "--tokenizer")) return &files->tokenizer;
    CHECK(!strcmp(option, "--tokenizer-2"));
    return &files->tokenizer_2;
}

static int32_t heard(const char *message, void *number) {
    fprintf(answers, "%s\twarning\tPINHOLE_OK\t%s\t\n", (const char *)number, message);
    return 0;
}

static void run(char *number, const pinhole_model *model) {
    pinhole_session *session = NULL;
    pinhole_session_options options = one_thread();
    pinhole_request request = small_request();
    pinhole_plan *plan = NULL;
    pinhole_result *result = NULL;
    pinhole_error *error = NULL;
    int32_t code;

    OK(pinhole_session_new(model, &options, &session, &error));
    code = pinhole_plan_new(session, &request, &plan, &error);
    said(number, "plan", code, error, plan != NULL);
    error = NULL;
    request.warning = heard;
    request.user_data = number;
    code = pinhole_generate(session, &request, &result, &error);
    said(number, "generate", code, error, result != NULL);
    pinhole_result_free(result);
    pinhole_plan_free(plan);
    pinhole_session_free(session);
}

int main(int count, char **arguments) {
    char line[8192], path[4096];
    FILE *list;

    CHECK(count == 4 && (list = fopen(arguments[1], "r")) && (answers = fopen(arguments[3], "w")));
    while (fgets(line, sizeof line, list)) {
        char *fields[5], *next = line;
        int i;
        int32_t code;
        pinhole_buffer *json = NULL;
        pinhole_model *model = NULL;
        pinhole_error *error = NULL;
        pinhole_files files;
        pinhole_convert_options options;
        FILE *written;

        line[strcspn(line, "\n")] = 0;
        for (i = 0; i < 5; i++) {
            fields[i] = next;
            next += strcspn(next, "\t");
            if (i < 4) *next++ = 0;
        }
        code = pinhole_inspect(fields[1], &json, &error);
        said(fields[0], "inspect", code, error, json != NULL);
        if (json) fprintf(answers, "%s\tjson\tPINHOLE_OK\t%lu\t\n", fields[0], (unsigned long)pinhole_buffer_size(json));
        pinhole_buffer_free(json);

        CHECK(pinhole_files_init(&files, sizeof files) == PINHOLE_OK);
        files.base = fields[2];
        error = NULL;
        if (fields[3][0]) {
            *part(&files, fields[3]) = fields[4];
            code = pinhole_model_open_files(&files, &model, &error);
        } else {
            code = pinhole_model_open(fields[2], &model, &error);
        }
        said(fields[0], "open", code, error, model != NULL);
        if (model) run(fields[0], model);
        pinhole_model_free(model);

        CHECK(pinhole_convert_options_init(&options, sizeof options) == PINHOLE_OK);
        options.source = &files;
        options.output = join(path, sizeof path, arguments[2], "out.gguf");
        options.type = "q8_0";
        options.threads = 1;
        error = NULL;
        code = pinhole_convert(&options, &error);
        written = fopen(path, "rb");
        said(fields[0], "convert", code, error, written != NULL);
        if (written) fclose(written);
        remove(path);
    }
    fclose(list);
    fclose(answers);
    return 0;
}
