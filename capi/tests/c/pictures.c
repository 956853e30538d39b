/* Pictures as inputs: from a file, from its bytes and from pixels the same is drawn. Arguments: a picture and a mask of 128x128
 * pixels, the mask white in its left half and black in its right; a file to write; an animation; a network that makes pictures
 * three times as large. */
#include "check.h"

enum { SIDE = 128 };

struct heard {
    int warnings;
    int conditions;
    char last[256];
};

static int32_t on_warning(const char *message, void *user_data) {
    struct heard *heard = user_data;
    heard->warnings += 1;
    snprintf(heard->last, sizeof heard->last, "%s", message);
    return 0;
}

static int32_t stop_at_warning(const char *message, void *user_data) {
    (void)message;
    (void)user_data;
    return 1;
}

static int32_t on_progress(const pinhole_progress *now, void *user_data) {
    struct heard *heard = user_data;
    heard->conditions += now->phase == PINHOLE_PHASE_CONDITION;
    return 0;
}

static pinhole_request request_with(const pinhole_input *const *inputs, size_t count) {
    pinhole_request request;
    CHECK(pinhole_request_init(&request, sizeof request) == PINHOLE_OK);
    CHECK(request.strength < 0 && request.posterior == PINHOLE_POSTERIOR_SAMPLE && !request.inputs);
    request.prompt = "a red heart";
    request.seed = 5;
    request.strength = 0.5f;
    request.inputs = inputs;
    request.input_count = count;
    return request;
}

static void check_same(const pinhole_result *a, const pinhole_result *b, int same) {
    const uint8_t *one = pinhole_image_pixels(pinhole_result_image(a, 0));
    const uint8_t *two = pinhole_image_pixels(pinhole_result_image(b, 0));
    CHECK(one && two && (memcmp(one, two, SIDE * SIDE * 3) == 0) == same);
}

/* Files, then bytes, then pixels, given in either order. */
static void from_everywhere(pinhole_session *session, char **files) {
    pinhole_input image = input_for(PINHOLE_INPUT_IMAGE), mask = input_for(PINHOLE_INPUT_MASK);
    const pinhole_input *inputs[2], *reversed[2];
    pinhole_request request = request_with(inputs, 2);
    pinhole_result *drawn = NULL, *first = NULL, *again = NULL;
    struct heard heard = {0, 0, ""};
    void *image_bytes, *mask_bytes;
    uint8_t *half;
    int x, y, i;

    inputs[0] = reversed[1] = &image;
    inputs[1] = reversed[0] = &mask;
    image.path = files[0];
    mask.path = files[1];
    request.progress = on_progress;
    request.warning = on_warning;
    request.user_data = &heard;
    OK(pinhole_generate(session, &request, &first, &error));
    CHECK(heard.conditions > 1 && heard.warnings == 0);
    OK(pinhole_image_write_png(pinhole_result_image(first, 0), files[2], &error));

    image.path = mask.path = NULL;
    image.data = image_bytes = read_file(files[0], &image.size);
    mask.data = mask_bytes = read_file(files[1], &mask.size);
    request.inputs = reversed;
    OK(pinhole_generate(session, &request, &again, &error));
    check_same(first, again, 1);
    pinhole_result_free(again);
    free(image_bytes);
    free(mask_bytes);

    /* The file is what the command line drew for this prompt and seed, and so can be drawn here. */
    request = request_with(NULL, 0);
    request.strength = -1;
    request.prompt = "a small yellow star on a blue background";
    request.seed = 0;
    OK(pinhole_generate(session, &request, &drawn, &error));
    half = malloc(SIDE * SIDE * 3);
    CHECK(half);
    for (y = 0; y < SIDE; y++) {
        for (x = 0; x < SIDE; x++) memset(half + (y * SIDE + x) * 3, x < SIDE / 2 ? 255 : 0, 3);
    }
    image = input_for(PINHOLE_INPUT_IMAGE);
    mask = input_for(PINHOLE_INPUT_MASK);
    image.pixels = pinhole_image_pixels(pinhole_result_image(drawn, 0));
    mask.pixels = half;
    image.width = image.height = mask.width = mask.height = SIDE;
    request = request_with(inputs, 2);
    OK(pinhole_generate(session, &request, &again, &error));
    check_same(first, again, 1);
    pinhole_result_free(again);

    /* Every option counts. */
    for (i = 0; i < 3; i++) {
        request = request_with(inputs, 2);
        if (i == 0) request.posterior = PINHOLE_POSTERIOR_MEAN;
        if (i == 1) request.strength = 0.9f;
        if (i == 2) request.input_count = 1;
        OK(pinhole_generate(session, &request, &again, &error));
        check_same(first, again, 0);
        pinhole_result_free(again);
    }
    free(half);
    pinhole_result_free(drawn);
    pinhole_result_free(first);
}

/* Euler's method by its name is the default of FLUX. */
static void samplers(pinhole_session *session) {
    pinhole_request request = small_request();
    pinhole_result *first = NULL, *second = NULL;
    CHECK(PINHOLE_SAMPLER_EULER == PINHOLE_SAMPLER_DEFAULT && request.sampler == PINHOLE_SAMPLER_DEFAULT);
    OK(pinhole_generate(session, &request, &first, &error));
    request.sampler = PINHOLE_SAMPLER_EULER_DISCRETE;
    OK(pinhole_generate(session, &request, &second, &error));
    CHECK(!memcmp(pinhole_image_pixels(pinhole_result_image(first, 0)),
                  pinhole_image_pixels(pinhole_result_image(second, 0)), 32 * 32 * 3));
    pinhole_result_free(first);
    pinhole_result_free(second);
}

/* A plan has the encoder and warns of nothing; text encoders look at no picture. */
static void plans_and_prompts(pinhole_session *session, const char *animation) {
    pinhole_input image = input_for(PINHOLE_INPUT_IMAGE);
    const pinhole_input *inputs[1];
    pinhole_request request = request_with(inputs, 1);
    pinhole_result *result = NULL;
    pinhole_embeddings *embeddings = NULL;
    pinhole_plan *plan = NULL;
    pinhole_plan_component component;
    struct heard heard = {0, 0, ""};

    inputs[0] = &image;
    image.path = animation;
    request.width = request.height = 32;
    request.warning = on_warning;
    request.user_data = &heard;
    OK(pinhole_plan_new(session, &request, &plan, &error));
    CHECK(heard.warnings == 0);
    memset(&component, 0, sizeof component);
    component.struct_size = sizeof component;
    OK(pinhole_plan_get_component(plan, 2, &component, &error));
    CHECK(!strcmp(component.name, "encoder") && component.phase == PINHOLE_PHASE_CONDITION);
    pinhole_plan_free(plan);

    OK(pinhole_generate(session, &request, &result, &error));
    CHECK(heard.warnings == 1 && strstr(heard.last, animation) && strstr(heard.last, "animated"));
    pinhole_result_free(result);
    request.warning = stop_at_warning;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_CANCELLED, "cancelled", 0);
    CHECK(!result);

    image.path = "/nowhere/at/all.png";
    OK(pinhole_embeddings_new(session, &request, &embeddings, &error));
    image.path = animation;
    request.embeddings = embeddings;
    request.prompt = NULL;
    request.warning = NULL;
    OK(pinhole_generate(session, &request, &result, &error));
    pinhole_result_free(result);
    pinhole_embeddings_free(embeddings);
}

static int32_t on_upscale(const pinhole_progress *now, void *user_data) {
    *(int *)user_data += now->phase == PINHOLE_PHASE_UPSCALE;
    return 0;
}

static int32_t stop_at_once(const pinhole_progress *now, void *user_data) {
    (void)now;
    (void)user_data;
    return 1;
}

/* A picture becomes larger; what cannot be is answered. Nothing flags a picture of a model without a safety checker. */
static void larger(pinhole_session *session, const char *picture, const char *network) {
    pinhole_upscale_options options;
    pinhole_input input = input_for(PINHOLE_INPUT_IMAGE);
    pinhole_request request = request_with(NULL, 0);
    pinhole_result *result = NULL;
    pinhole_image *image = NULL, *again = NULL;
    uint8_t pixels[2 * 3 * 3] = {0};
    int heard = 0;

    CHECK(pinhole_upscale_options_init(&options, sizeof options) == PINHOLE_OK);
    CHECK(options.outscale == 0 && !options.model && !options.input);
    FAILS(pinhole_upscale(&options, &image, &error), PINHOLE_E_ARGUMENT, "model", 0);
    options.model = network;
    FAILS(pinhole_upscale(&options, &image, &error), PINHOLE_E_ARGUMENT, "", 0);
    options.input = &input;
    input.path = picture;
    options.threads = 1;
    options.progress = on_upscale;
    options.user_data = &heard;
    OK(pinhole_upscale(&options, &image, &error));
    CHECK(heard > 2 && pinhole_image_width(image) == 3 * SIDE && pinhole_image_height(image) == 3 * SIDE);
    options.device = "cpu:discrete";
    options.offload = PINHOLE_OFFLOAD_SEQUENTIAL;
    OK(pinhole_upscale(&options, &again, &error));
    CHECK(!memcmp(pinhole_image_pixels(image), pinhole_image_pixels(again), (size_t)9 * SIDE * SIDE * 3));
    pinhole_image_free(again);
    pinhole_image_free(image);
    pinhole_image_free(NULL);

    input.path = NULL;
    input.pixels = pixels;
    input.width = 2;
    input.height = 3;
    options.outscale = 5;
    OK(pinhole_upscale(&options, &image, &error));
    CHECK(pinhole_image_width(image) == 10 && pinhole_image_height(image) == 15);
    pinhole_image_free(image);
    options.outscale = -1;
    FAILS(pinhole_upscale(&options, &image, &error), PINHOLE_E_OPTION, "--outscale", 0);
    CHECK(!image);
    options.outscale = 0;
    options.vram = 1;
    FAILS(pinhole_upscale(&options, &image, &error), PINHOLE_E_OVER_BUDGET, "", 1);
    options.vram = 0;
    options.progress = stop_at_once;
    FAILS(pinhole_upscale(&options, &image, &error), PINHOLE_E_CANCELLED, "cancelled", 0);
    options.progress = NULL;
    options.model = picture;
    FAILS(pinhole_upscale(&options, &image, &error), PINHOLE_E_NOT_A_MODEL, "", 1);

    request.strength = -1;
    request.width = request.height = 32;
    request.steps = 1;
    OK(pinhole_generate(session, &request, &result, &error));
    CHECK(pinhole_result_flagged(result, 0) == -1 && pinhole_result_flagged(NULL, 0) == -1);
    pinhole_result_free(result);
    request.safety = PINHOLE_SAFETY_ON;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "--safety", 1);
    request.safety = 4;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_OPTION, "--safety", 0);
}

int main(int argc, char **argv) {
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;

    CHECK(argc == 6);
    OK(pinhole_model_open_builtin(&model, &error));
    OK(pinhole_session_new(model, NULL, &session, &error));
    from_everywhere(session, argv + 1);
    samplers(session);
    plans_and_prompts(session, argv[4]);
    larger(session, argv[1], argv[5]);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return 0;
}
