/* What cannot work: each a status, a message and usually a hint. Arguments: a bundle, and a folder to write to. */
#include "check.h"

#include <limits.h>
#include <math.h>
#include <stddef.h>

static void null_where_it_is_not_allowed(const pinhole_model *model, pinhole_session *session) {
    pinhole_model *no_model = NULL;
    pinhole_session *no_session = NULL;
    pinhole_result *no_result = NULL;
    pinhole_plan *no_plan = NULL;
    pinhole_embeddings *no_embeddings = NULL;
    pinhole_buffer *no_buffer = NULL;
    pinhole_request request = small_request();
    pinhole_model_info model_info;
    size_t count;

    FAILS(pinhole_device_count(NULL, &error), PINHOLE_E_ARGUMENT, "count", 0);
    FAILS(pinhole_device_get(0, NULL, &error), PINHOLE_E_ARGUMENT, "pinhole_device_info", 0);
    FAILS(pinhole_model_open(NULL, &no_model, &error), PINHOLE_E_ARGUMENT, "path", 0);
    FAILS(pinhole_model_open("x", NULL, &error), PINHOLE_E_ARGUMENT, "out", 0);
    FAILS(pinhole_model_open_builtin(NULL, &error), PINHOLE_E_ARGUMENT, "out", 0);
    FAILS(pinhole_model_open_files(NULL, &no_model, &error), PINHOLE_E_ARGUMENT, "pinhole_files", 0);
    FAILS(pinhole_model_open_memory(NULL, 5, PINHOLE_MEMORY_COPY, &no_model, &error), PINHOLE_E_ARGUMENT, "data", 0);
    model_info.struct_size = sizeof model_info;
    FAILS(pinhole_model_get_info(NULL, &model_info, &error), PINHOLE_E_ARGUMENT, "model", 0);
    FAILS(pinhole_model_get_info(model, NULL, &error), PINHOLE_E_ARGUMENT, "pinhole_model_info", 0);
    FAILS(pinhole_inspect(NULL, &no_buffer, &error), PINHOLE_E_ARGUMENT, "path", 0);
    FAILS(pinhole_inspect("x", NULL, &error), PINHOLE_E_ARGUMENT, "json", 0);
    FAILS(pinhole_session_new(NULL, NULL, &no_session, &error), PINHOLE_E_ARGUMENT, "model", 0);
    FAILS(pinhole_session_new(model, NULL, NULL, &error), PINHOLE_E_ARGUMENT, "out", 0);
    FAILS(pinhole_cancel_new(NULL, &error), PINHOLE_E_ARGUMENT, "out", 0);
    FAILS(pinhole_generate(NULL, &request, &no_result, &error), PINHOLE_E_ARGUMENT, "session", 0);
    FAILS(pinhole_generate(session, NULL, &no_result, &error), PINHOLE_E_ARGUMENT, "pinhole_request", 0);
    FAILS(pinhole_generate(session, &request, NULL, &error), PINHOLE_E_ARGUMENT, "out", 0);
    FAILS(pinhole_plan_new(session, NULL, &no_plan, &error), PINHOLE_E_ARGUMENT, "pinhole_request", 0);
    FAILS(pinhole_plan_get_info(NULL, NULL, &error), PINHOLE_E_ARGUMENT, "plan", 0);
    FAILS(pinhole_plan_get_component(NULL, 0, NULL, &error), PINHOLE_E_ARGUMENT, "plan", 0);
    FAILS(pinhole_result_get_info(NULL, NULL, &error), PINHOLE_E_ARGUMENT, "result", 0);
    FAILS(pinhole_result_get_device(NULL, 0, NULL, &error), PINHOLE_E_ARGUMENT, "result", 0);
    FAILS(pinhole_result_write_film(NULL, 0, "x.mp4", &error), PINHOLE_E_ARGUMENT, "result", 0);
    FAILS(pinhole_image_copy(NULL, PINHOLE_RGB8, &count, sizeof count, 0, &error), PINHOLE_E_ARGUMENT, "image", 0);
    FAILS(pinhole_image_encode_png(NULL, &no_buffer, &error), PINHOLE_E_ARGUMENT, "image", 0);
    FAILS(pinhole_image_write_png(NULL, "x.png", &error), PINHOLE_E_ARGUMENT, "image", 0);
    FAILS(pinhole_embeddings_new(session, NULL, &no_embeddings, &error), PINHOLE_E_ARGUMENT, "pinhole_request", 0);
    FAILS(pinhole_convert(NULL, &error), PINHOLE_E_ARGUMENT, "pinhole_convert_options", 0);
    request.prompt = NULL;
    FAILS(pinhole_generate(session, &request, &no_result, &error), PINHOLE_E_ARGUMENT, "prompt", 0);
    CHECK(!no_result);
    request = small_request();
    request.noise_count = 7;
    FAILS(pinhole_generate(session, &request, &no_result, &error), PINHOLE_E_ARGUMENT, "noise", 0);

    /* The code alone will do. */
    CHECK(pinhole_device_count(NULL, NULL) == PINHOLE_E_ARGUMENT);
    CHECK(pinhole_generate(session, NULL, &no_result, NULL) == PINHOLE_E_ARGUMENT);
    CHECK(pinhole_request_init(NULL, sizeof request) == PINHOLE_E_ARGUMENT);

    /* What is nothing is freed by doing nothing, and asked for what it has none of. */
    pinhole_error_free(NULL);
    pinhole_model_free(NULL);
    pinhole_session_free(NULL);
    pinhole_cancel_free(NULL);
    pinhole_cancel_raise(NULL);
    pinhole_result_free(NULL);
    pinhole_plan_free(NULL);
    pinhole_embeddings_free(NULL);
    pinhole_buffer_free(NULL);
    CHECK(pinhole_error_code(NULL) == PINHOLE_OK);
    CHECK(!strcmp(pinhole_error_message(NULL), "") && !strcmp(pinhole_error_hint(NULL), ""));
    CHECK(pinhole_result_image_count(NULL) == 0 && !pinhole_result_image(NULL, 0) && !pinhole_result_latents(NULL, NULL));
    CHECK(pinhole_image_width(NULL) == 0 && pinhole_image_height(NULL) == 0 && !pinhole_image_pixels(NULL));
    CHECK(!pinhole_buffer_data(NULL) && pinhole_buffer_size(NULL) == 0);
    CHECK(!pinhole_has_feature(NULL) && !pinhole_has_feature("teleport") && pinhole_has_feature("cpu"));
    CHECK(!strcmp(pinhole_status_name(12345), "unknown"));
}

static void struct_sizes(pinhole_session *session) {
    struct {
        pinhole_request request;
        char tail[64];
    } newer;
    const size_t first = offsetof(pinhole_request, inputs);
    pinhole_result *result = NULL;
    pinhole_plan *plan = NULL;
    struct {
        pinhole_plan_info info;
        char tail[16];
    } filled;
    int i;

    memset(&newer, 0, sizeof newer);
    CHECK(pinhole_request_init(&newer.request, 0) == PINHOLE_E_ARGUMENT);
    CHECK(pinhole_request_init(&newer.request, first - 8) == PINHOLE_E_ARGUMENT);
    memset(&newer, 0xAA, sizeof newer);
    CHECK(pinhole_request_init(&newer.request, sizeof newer) == PINHOLE_OK);
    CHECK(newer.request.struct_size == sizeof newer && newer.tail[0] == 0 && newer.tail[63] == 0);

    newer.request = small_request();
    newer.request.struct_size = 0;
    FAILS(pinhole_plan_new(session, &newer.request, &plan, &error), PINHOLE_E_ARGUMENT, "found 0", 1);
    newer.request.struct_size = first - 8;
    FAILS(pinhole_plan_new(session, &newer.request, &plan, &error), PINHOLE_E_ARGUMENT, "struct_size", 1);
    newer.request.struct_size = (size_t)-1;
    FAILS(pinhole_plan_new(session, &newer.request, &plan, &error), PINHOLE_E_ARGUMENT, "struct_size", 1);
    newer.request.struct_size = sizeof newer;
    OK(pinhole_generate(session, &newer.request, &result, &error));
    pinhole_result_free(result);
    for (i = 0; i < 64; i += 21) {
        newer.tail[i] = 1;
        FAILS(pinhole_generate(session, &newer.request, &result, &error), PINHOLE_E_ARGUMENT, "beyond", 1);
        CHECK(!result);
        newer.tail[i] = 0;
    }

    /* A program from before there were pictures: what lies behind its struct is not read. */
    memset(&newer, 0xAA, sizeof newer);
    CHECK(pinhole_request_init(&newer.request, first) == PINHOLE_OK);
    CHECK(newer.request.posterior == (int32_t)0xAAAAAAAA);
    newer.request.prompt = "a red heart";
    newer.request.width = newer.request.height = 32;
    newer.request.steps = 1;
    newer.request.max_sequence_length = 8;
    OK(pinhole_generate(session, &newer.request, &result, &error));
    pinhole_result_free(result);
    /* And one that fills its struct with zeros. */
    memset(&newer, 0, sizeof newer);
    newer.request.struct_size = sizeof newer;
    newer.request.prompt = "a red heart";
    OK(pinhole_plan_new(session, &newer.request, &plan, &error));
    pinhole_plan_free(plan);
    newer.request = small_request();
    newer.request.struct_size = sizeof newer;

    /* Structs that the library fills in. */
    OK(pinhole_plan_new(session, &newer.request, &plan, &error));
    memset(&filled, 0xAA, sizeof filled);
    filled.info.struct_size = sizeof filled;
    OK(pinhole_plan_get_info(plan, &filled.info, &error));
    CHECK(filled.info.struct_size == sizeof filled && filled.info.components == 4 && filled.tail[15] == 0);
    memset(&filled, 0xAA, sizeof filled);
    filled.info.struct_size = sizeof filled.info;
    OK(pinhole_plan_get_info(plan, &filled.info, &error));
    CHECK((unsigned char)filled.tail[0] == 0xAA);
    filled.info.struct_size = 0;
    FAILS(pinhole_plan_get_info(plan, &filled.info, &error), PINHOLE_E_ARGUMENT, "struct_size", 1);
    pinhole_plan_free(plan);
}

static void text_that_is_not_utf_8(pinhole_session *session, const pinhole_model *model) {
    static const char bad[] = "caf\xE9";
    pinhole_model *no_model = NULL;
    pinhole_session *no_session = NULL;
    pinhole_result *result = NULL;
    pinhole_buffer *json = NULL;
    pinhole_session_options options = one_thread();
    pinhole_request request = small_request();

    FAILS(pinhole_model_open(bad, &no_model, &error), PINHOLE_E_ARGUMENT, "UTF-8", 1);
    FAILS(pinhole_inspect(bad, &json, &error), PINHOLE_E_ARGUMENT, "UTF-8", 1);
    request.prompt = bad;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_ARGUMENT, "another byte at 3", 1);
    request = small_request();
    request.negative_prompt = bad;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_ARGUMENT, "negative_prompt", 1);
    options.device = bad;
    FAILS(pinhole_session_new(model, &options, &no_session, &error), PINHOLE_E_ARGUMENT, "device", 1);
}

static void files_that_are_no_models(const char *directory) {
    char path[4096];
    pinhole_model *model = NULL;
    pinhole_buffer *json = NULL;
    pinhole_files files;
    static const char text[] = "this is a letter and no model, however long one looks at it";

    FAILS(pinhole_model_open(join(path, sizeof path, directory, "missing.gguf"), &model, &error), PINHOLE_E_IO,
          "missing.gguf", 0);
    FAILS(pinhole_inspect(path, &json, &error), PINHOLE_E_IO, "missing.gguf", 0);
    join(path, sizeof path, directory, "letter.txt");
    write_file(path, text, sizeof text);
    FAILS(pinhole_model_open(path, &model, &error), PINHOLE_E_NOT_A_MODEL, "letter.txt", 0);
    FAILS(pinhole_model_open_memory(text, sizeof text, PINHOLE_MEMORY_COPY, &model, &error), PINHOLE_E_NOT_A_MODEL,
          "(memory)", 0);
    FAILS(pinhole_model_open_memory(text, sizeof text, 7, &model, &error), PINHOLE_E_OPTION, "mode", 0);
    FAILS(pinhole_model_open_memory(text, (size_t)-1, PINHOLE_MEMORY_COPY, &model, &error), PINHOLE_E_ARGUMENT, "size", 0);
    write_file(path, "GGUF\3\0\0\0", 8);
    FAILS(pinhole_model_open(path, &model, &error), PINHOLE_E_MALFORMED, "letter.txt", 0);
    FAILS(pinhole_model_open_memory("", 0, PINHOLE_MEMORY_COPY, &model, &error), PINHOLE_E_NOT_A_MODEL, "(memory)", 0);
    CHECK(pinhole_files_init(&files, sizeof files) == PINHOLE_OK);
    FAILS(pinhole_model_open_files(&files, &model, &error), PINHOLE_E_ARGUMENT, "neither", 1);
    files.vae = path;
    FAILS(pinhole_model_open_files(&files, &model, &error), PINHOLE_E_MALFORMED, "letter.txt", 0);
    CHECK(!model && !json);
}

static void loras_that_cannot_work(const char *bundle, const char *directory) {
    char path[4096];
    pinhole_model *model = NULL;
    pinhole_files files;
    pinhole_convert_options options;
    const char *loras[1] = {NULL};
    float strength = 1;

    pinhole_files_init(&files, sizeof files);
    files.base = bundle;
    files.lora_count = 1;
    FAILS(pinhole_model_open_files(&files, &model, &error), PINHOLE_E_ARGUMENT, "loras", 0);
    files.loras = loras;
    FAILS(pinhole_model_open_files(&files, &model, &error), PINHOLE_E_ARGUMENT, "loras", 0);
    loras[0] = join(path, sizeof path, directory, "missing.safetensors");
    FAILS(pinhole_model_open_files(&files, &model, &error), PINHOLE_E_IO, "missing.safetensors", 0);
    join(path, sizeof path, directory, "lora.safetensors");
    write_lora(path);
    files.lora_strengths = &strength;
    strength = (float)NAN;
    FAILS(pinhole_model_open_files(&files, &model, &error), PINHOLE_E_OPTION, "--lora", 0);
    strength = 1;
    OK(pinhole_model_open_files(&files, &model, &error));
    pinhole_model_free(model);

    pinhole_convert_options_init(&options, sizeof options);
    options.source = &files;
    options.output = "/nowhere/at/all.gguf";
    options.type = "q8_0";
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_OPTION, "loras", 0);
}

static void options_that_cannot_work(const pinhole_model *model, pinhole_session *session) {
    pinhole_session_options options = one_thread();
    pinhole_session *other = NULL;
    pinhole_result *result = NULL;
    pinhole_plan *plan = NULL;
    pinhole_request request;
    float noise[4] = {0, 0, 0, 0};
    const float rising[2] = {0.5f, 1};

    options.device = "abacus";
    FAILS(pinhole_session_new(model, &options, &other, &error), PINHOLE_E_DEVICE, "abacus", 1);
    options = one_thread();
    options.offload = 4;
    FAILS(pinhole_session_new(model, &options, &other, &error), PINHOLE_E_OPTION, "--offload", 0);
    options = one_thread();
    options.threads = -1;
    FAILS(pinhole_session_new(model, &options, &other, &error), PINHOLE_E_OPTION, "--threads", 0);
    options.threads = 513;
    FAILS(pinhole_session_new(model, &options, &other, &error), PINHOLE_E_OPTION, "--threads", 0);

#define REFUSED(member, value, part, hint)                                                                             \
    request = small_request();                                                                                         \
    request.member = value;                                                                                            \
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, part, hint)
    REFUSED(width, 33, "--width", 1);
    REFUSED(width, -16, "--width", 0);
    REFUSED(height, INT_MAX, "--height", 1);
    REFUSED(height, INT_MIN, "--height", 0);
    REFUSED(steps, -1, "--steps", 0);
    REFUSED(batch, 65, "--batch", 0);
    REFUSED(batch, -1, "--batch", 0);
    REFUSED(cfg_scale, (float)NAN, "--cfg-scale", 0);
    REFUSED(cfg_scale, 1e9f, "--cfg-scale", 0);
    REFUSED(guidance, INFINITY, "--guidance", 0);
    REFUSED(sampler, -1, "--sampler", 0);
    REFUSED(sampler, 99, "6 (euler)", 0);
    /* Known, and not for this model. */
    REFUSED(sampler, PINHOLE_SAMPLER_DPMPP_2M_KARRAS, "found `karras` for `dpm++_2m`", 0);
    REFUSED(sampler, PINHOLE_SAMPLER_DDIM, "found `ddim`", 0);
    REFUSED(schedule, 99, "6 (ays)", 0);
    REFUSED(schedule, -1, "--schedule", 0);
    REFUSED(schedule, PINHOLE_SCHEDULE_AYS, "found `ays` for `euler`", 0);
    REFUSED(eta, (float)NAN, "--eta", 0);
    REFUSED(eta, 1.5f, "--eta", 0);
    REFUSED(rescale_cfg, -0.5f, "--rescale-cfg", 0);
    /* The model makes pictures. */
    REFUSED(frames, 5, "--frames", 0);
    REFUSED(frames, -1, "--frames", 0);
    REFUSED(fps, 16, "--fps", 0);
    REFUSED(boundary, 0.5f, "--boundary", 0);
    request = small_request();
    request.video = "no/such/film";
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_IO, "no/such/film", 0);
    request = small_request();
    request.trace = "no/such/folder/trace.json";
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_IO, "no/such/folder", 0);
    REFUSED(cfg_scale_2, 3, "--cfg-scale-2", 0);
    REFUSED(cache, 5, "4 (taylorseer)", 0);
    REFUSED(cache, -1, "--cache", 0);
    request = small_request();
    request.cache = PINHOLE_CACHE_TEACACHE;
    request.cache_threshold = -0.5f;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "found -0.5", 0);
    request.cache_threshold = (float)NAN;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "found NaN", 0);
    request.cache = PINHOLE_CACHE_TAYLORSEER;
    request.cache_threshold = 2.5f;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "a whole number", 0);
    REFUSED(posterior, 2, "--posterior", 0);
    REFUSED(strength, 0.5f, "--strength", 1);
    REFUSED(max_sequence_length, -5, "--max-sequence-length", 0);
    REFUSED(max_sequence_length, 1 << 30, "--max-sequence-length", 0);
    REFUSED(preview_interval, -1, "preview_interval", 0);
    request = small_request();
    request.noise = noise;
    request.noise_count = 4;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "--noise", 0);
    request = small_request();
    request.sigma_count = 2;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_ARGUMENT, "sigmas", 0);
    request.sigmas = rising;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "--sigmas", 0);
    CHECK(!result);

    /* A budget that cannot work: on a device with memory of its own, and with nothing to share. */
    options = one_thread();
    options.device = "cpu:discrete";
    options.vram = 4096;
    OK(pinhole_session_new(model, &options, &other, &error));
    request = small_request();
    FAILS(pinhole_plan_new(other, &request, &plan, &error), PINHOLE_E_OVER_BUDGET, "4.00 KiB", 1);
    FAILS(pinhole_generate(other, &request, &result, &error), PINHOLE_E_OVER_BUDGET, "needs", 1);
    pinhole_session_free(other);
}

/* What `inputs` give is refused. */
static void refused(pinhole_session *session, const pinhole_input *const *inputs, size_t count, float strength,
                    int32_t code, const char *part, int hint) {
    pinhole_request request = small_request();
    pinhole_result *result = NULL;
    request.inputs = inputs;
    request.input_count = count;
    request.strength = strength;
    FAILS(pinhole_generate(session, &request, &result, &error), code, part, hint);
    CHECK(!result);
}

/* What ControlNets are told, beside a model that was opened without one. */
static void controls_that_cannot_work(pinhole_session *session) {
    static const uint8_t pixels[32 * 32 * 3] = {0};
    pinhole_input image = input_for(PINHOLE_INPUT_CONTROL);
    const pinhole_input *inputs[2];
    pinhole_control control;
    const pinhole_control *controls[1];
    pinhole_request request = small_request();
    pinhole_result *result = NULL;

    CHECK(pinhole_control_init(NULL, sizeof control) == PINHOLE_E_ARGUMENT);
    CHECK(pinhole_control_init(&control, sizeof control) == PINHOLE_OK);
    CHECK(control.start == 0 && control.end == 1 && control.scale == 1 && !control.mode);
    image.pixels = pixels;
    image.width = image.height = 32;
    inputs[0] = inputs[1] = &image;
    controls[0] = &control;
    request.control_count = 1;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_ARGUMENT, "controls", 0);
    request.controls = controls;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_ARGUMENT, "one for each picture, 0, found 1", 1);
    request.inputs = inputs;
    request.input_count = 1;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "without a ControlNet, found 1", 0);
    control.mode = "caf\xE9";
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_ARGUMENT, "UTF-8", 1);
    request.control_count = 0;
    request.input_count = 2;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "without a ControlNet, found 2", 0);
    CHECK(!result);
}

static void inputs_that_cannot_work(pinhole_session *session, const char *directory) {
    static const uint8_t pixels[32 * 32 * 3] = {0};
    char path[4096];
    struct {
        pinhole_input input;
        char tail[8];
    } newer;
    pinhole_input image = input_for(PINHOLE_INPUT_IMAGE), mask = input_for(PINHOLE_INPUT_MASK);
    const pinhole_input *both[2], *alone[1], *none[1] = {NULL};
    pinhole_request request;
    pinhole_result *result = NULL;

    CHECK(pinhole_input_init(NULL, sizeof image) == PINHOLE_E_ARGUMENT);
    CHECK(pinhole_input_init(&image, offsetof(pinhole_input, weight) - 8) == PINHOLE_E_ARGUMENT);
    both[0] = &image;
    both[1] = &mask;
    alone[0] = &mask;
    refused(session, NULL, 1, -1, PINHOLE_E_ARGUMENT, "inputs", 0);
    refused(session, none, 1, -1, PINHOLE_E_ARGUMENT, "pinhole_input", 0);
    refused(session, both, 1, -1, PINHOLE_E_ARGUMENT, "inputs[0]: expected one of path, data and pixels, found none", 1);
    image.pixels = pixels;
    refused(session, both, 1, -1, PINHOLE_E_ARGUMENT, "found 0x0", 0);
    image.width = 32;
    image.height = 16385;
    refused(session, both, 1, -1, PINHOLE_E_ARGUMENT, "1 to 16384, found 32x16385", 0);
    image.height = -32;
    refused(session, both, 1, -1, PINHOLE_E_ARGUMENT, "found 32x-32", 0);
    image.height = 32;
    image.path = "photo.png";
    refused(session, both, 1, -1, PINHOLE_E_ARGUMENT, "found path and pixels", 1);
    image.pixels = NULL;
    image.path = "caf\xE9";
    refused(session, both, 1, -1, PINHOLE_E_ARGUMENT, "UTF-8", 1);
    image.path = join(path, sizeof path, directory, "missing.png");
    refused(session, both, 1, -1, PINHOLE_E_IO, "missing.png", 0);
    image.path = join(path, sizeof path, directory, "letter.png");
    write_file(path, "a letter", 8);
    refused(session, both, 1, -1, PINHOLE_E_MISMATCH, "letter.png", 0);
    image.path = NULL;
    image.data = pixels;
    refused(session, both, 1, -1, PINHOLE_E_MISMATCH, "inputs[0]", 0);
    image.size = (size_t)-1;
    refused(session, both, 1, -1, PINHOLE_E_ARGUMENT, "inputs[0].size", 0);
    image.data = NULL;
    image.pixels = pixels;
    image.use = 7;
    refused(session, both, 1, -1, PINHOLE_E_OPTION, "PINHOLE_INPUT_LAST_IMAGE (6), found 7", 0);
    image.use = PINHOLE_INPUT_IMAGE;

    refused(session, both, 1, (float)NAN, PINHOLE_E_OPTION, "--strength: expected 0 to 1", 0);
    refused(session, both, 1, 1.5f, PINHOLE_E_OPTION, "--strength: expected 0 to 1", 0);
    refused(session, both, 1, 0, PINHOLE_E_OPTION, "--strength", 0);
    mask.pixels = pixels;
    mask.width = mask.height = 16;
    refused(session, alone, 1, -1, PINHOLE_E_OPTION, "--mask", 1);
    refused(session, both, 2, 1, PINHOLE_E_MISMATCH, "expected 32x32 pixels, as picture has, found 16x16", 1);
    mask.use = PINHOLE_INPUT_IMAGE;
    refused(session, both, 2, 1, PINHOLE_E_ARGUMENT, "expected one PINHOLE_INPUT_IMAGE, found another at index 1", 0);

    /* Elements may be larger than this library's. */
    memset(&newer, 0, sizeof newer);
    newer.input = image;
    newer.input.struct_size = sizeof newer;
    newer.tail[7] = 1;
    both[0] = &newer.input;
    refused(session, both, 1, 1, PINHOLE_E_ARGUMENT, "pinhole_input: expected zeros beyond", 1);
    newer.input.struct_size = offsetof(pinhole_input, weight) - 8;
    refused(session, both, 1, 1, PINHOLE_E_ARGUMENT, "pinhole_input.struct_size", 1);

    /* After all that the session draws, with the larger struct, too. */
    newer.input.struct_size = sizeof newer;
    newer.tail[7] = 0;
    request = small_request();
    request.inputs = both;
    request.input_count = 1;
    request.strength = 1;
    OK(pinhole_generate(session, &request, &result, &error));
    pinhole_result_free(result);
}

static void outputs_that_cannot_be_written(const char *bundle, const char *directory) {
    char path[4096];
    pinhole_files source;
    pinhole_convert_options options;
    const char *patterns[2] = {"nothing.like.this=q8_0", "no pattern"};

    pinhole_files_init(&source, sizeof source);
    source.base = bundle;
    CHECK(pinhole_convert_options_init(&options, sizeof options) == PINHOLE_OK);
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_ARGUMENT, "output", 0);
    options.output = join(path, sizeof path, directory, "out.gguf");
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_ARGUMENT, "type", 0);
    options.type = "q8_0";
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_ARGUMENT, "pinhole_files", 0);
    options.source = &source;
    options.type = "q9_9";
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_OPTION, "q9_9", 0);
    options.type = "q8_0";
    options.component = "engine";
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_OPTION, "engine", 0);
    options.component = NULL;
    options.tensor_count = 1;
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_ARGUMENT, "tensors", 0);
    options.tensors = patterns;
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_OPTION, "nothing.like.this", 1);
    options.tensor_count = 2;
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_OPTION, "no pattern", 0);
    options.tensor_count = 0;
    options.threads = 1000;
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_OPTION, "--threads", 0);
    options.threads = 1;
    write_file(path, "taken", 5);
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_EXISTS, "out.gguf", 0);
    options.output = "/nowhere/at/all.gguf";
    FAILS(pinhole_convert(&options, &error), PINHOLE_E_IO, "/nowhere/at", 0);
}

int main(int argc, char **argv) {
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_session_options options = one_thread();

    CHECK(argc == 3);
    OK(pinhole_model_open_builtin(&model, &error));
    OK(pinhole_session_new(model, &options, &session, &error));
    null_where_it_is_not_allowed(model, session);
    struct_sizes(session);
    text_that_is_not_utf_8(session, model);
    files_that_are_no_models(argv[2]);
    loras_that_cannot_work(argv[1], argv[2]);
    options_that_cannot_work(model, session);
    inputs_that_cannot_work(session, argv[2]);
    controls_that_cannot_work(session);
    outputs_that_cannot_be_written(argv[1], argv[2]);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return 0;
}
