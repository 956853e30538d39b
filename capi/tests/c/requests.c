/* What works: every way to open a model, and everything that comes of a request. Arguments: a bundle, and a folder to write
 * to. */
#define _POSIX_C_SOURCE 200112L
#include "check.h"

#include <fenv.h>
#include <locale.h>
#include <signal.h>

static void draw(const pinhole_model *model, const pinhole_request *request, pinhole_result **result) {
    pinhole_session_options options = one_thread();
    pinhole_session *session = NULL;
    OK(pinhole_session_new(model, &options, &session, &error));
    OK(pinhole_generate(session, request, result, &error));
    pinhole_session_free(session);
}

static void check_same(const pinhole_result *a, size_t i, const pinhole_result *b, size_t j) {
    const pinhole_image *one = pinhole_result_image(a, i), *two = pinhole_result_image(b, j);
    CHECK(one && two && pinhole_image_width(one) == pinhole_image_width(two));
    CHECK(!memcmp(pinhole_image_pixels(one), pinhole_image_pixels(two),
                  (size_t)pinhole_image_width(one) * (size_t)pinhole_image_height(one) * 3));
}

/* However a model is opened, it draws the same; and it lasts as long as it is needed. */
static void ways_to_open(const char *bundle) {
    pinhole_request request = small_request();
    pinhole_result *first = NULL, *other = NULL;
    pinhole_model *model = NULL;
    pinhole_model_info info;
    pinhole_session *session = NULL;
    pinhole_files files;
    size_t size;
    char *bytes = read_file(bundle, &size), *room, *aligned;

    OK(pinhole_model_open_builtin(&model, &error));
    draw(model, &request, &first);
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    OK(pinhole_model_get_info(model, &info, &error));
    CHECK(!strcmp(info.architecture, "flux") && info.width == 128 && info.latent_channels == 16);
    CHECK(info.file_size == size && info.parameters > 10000000);
    pinhole_model_free(model);

    OK(pinhole_model_open(bundle, &model, &error));
    draw(model, &request, &other);
    check_same(first, 0, other, 0);
    pinhole_result_free(other);
    pinhole_model_free(model);

    pinhole_files_init(&files, sizeof files);
    files.base = bundle;
    files.vae = bundle;
    OK(pinhole_model_open_files(&files, &model, &error));
    draw(model, &request, &other);
    check_same(first, 0, other, 0);
    pinhole_result_free(other);
    pinhole_model_free(model);

    /* The copy outlives the bytes, and the session the model. */
    room = malloc(size + 64);
    CHECK(room);
    memcpy(room + 1, bytes, size);
    OK(pinhole_model_open_memory(room + 1, size, PINHOLE_MEMORY_COPY, &model, &error));
    free(room);
    OK(pinhole_session_new(model, NULL, &session, &error));
    pinhole_model_free(model);
    OK(pinhole_generate(session, &request, &other, &error));
    pinhole_session_free(session);
    check_same(first, 0, other, 0);
    pinhole_result_free(other);

    /* Bytes that stay where they are, aligned and not. */
    room = malloc(size + 64);
    CHECK(room);
    aligned = room + (64 - (uintptr_t)room % 64) % 64;
    memcpy(aligned, bytes, size);
    OK(pinhole_model_open_memory(aligned, size, PINHOLE_MEMORY_BORROW, &model, &error));
    draw(model, &request, &other);
    check_same(first, 0, other, 0);
    pinhole_result_free(other);
    pinhole_model_free(model);
    free(room);
    pinhole_result_free(first);
    free(bytes);
}

/* Whether no pixel differs by more than a shade. */
static int near(const pinhole_result *a, const pinhole_result *b) {
    const uint8_t *one = pinhole_image_pixels(pinhole_result_image(a, 0));
    const uint8_t *two = pinhole_image_pixels(pinhole_result_image(b, 0));
    size_t i;
    for (i = 0; i < 32 * 32 * 3; i++) {
        if (abs(one[i] - two[i]) > 1) return 0;
    }
    return 1;
}

static int32_t hear(const char *message, void *user_data) {
    *(int *)user_data += strstr(message, "nothing_like_this") != NULL;
    return 0;
}

/* A LoRA without strength changes nothing. One at full strength changes the picture, and twice at half of it does the same. */
static void loras(const char *bundle, const char *directory) {
    static const float strengths[3] = {0, 0.5f, 0.5f};
    char path[4096];
    const char *paths[3];
    pinhole_request request = small_request();
    pinhole_result *plain = NULL, *result = NULL;
    pinhole_model *model = NULL;
    pinhole_files files;
    int warned = 0, i;

    for (i = 0; i < 3; i++) paths[i] = join(path, sizeof path, directory, "lora.safetensors");
    write_lora(path);
    pinhole_files_init(&files, sizeof files);
    files.base = bundle;
    OK(pinhole_model_open_files(&files, &model, &error));
    draw(model, &request, &plain);
    pinhole_model_free(model);
    files.loras = paths;
    for (i = 0; i < 2; i++) {
        /* Without strengths it is 1. */
        files.lora_strengths = i == 0 ? strengths : NULL;
        files.lora_count = 1;
        OK(pinhole_model_open_files(&files, &model, &error));
        request.warning = hear;
        request.user_data = &warned;
        draw(model, &request, &result);
        CHECK(warned == i + 1);
        CHECK((memcmp(pinhole_image_pixels(pinhole_result_image(plain, 0)),
                      pinhole_image_pixels(pinhole_result_image(result, 0)), 32 * 32 * 3) == 0) == (i == 0));
        pinhole_model_free(model);
        if (i == 0) pinhole_result_free(result);
    }
    pinhole_result_free(plain);
    /* All three are used: 0 and 0.5 and 0.5. */
    files.lora_strengths = strengths;
    files.lora_count = 3;
    OK(pinhole_model_open_files(&files, &model, &error));
    draw(model, &request, &plain);
    CHECK(near(plain, result));
    pinhole_model_free(model);
    pinhole_result_free(plain);
    pinhole_result_free(result);
}

/* A cache skips evaluations, here in two passes each, and without one none is. */
static void step_caches(pinhole_session *session) {
    pinhole_request request = small_request();
    pinhole_result *whole = NULL, *some = NULL;

    request.steps = 6;
    OK(pinhole_generate(session, &request, &whole, &error));
    CHECK(pinhole_result_skipped(whole) == 0 && pinhole_result_skipped(NULL) == 0);
    request.cache = PINHOLE_CACHE_TAYLORSEER;
    request.cache_threshold = 3;
    OK(pinhole_generate(session, &request, &some, &error));
    CHECK(pinhole_result_skipped(some) == 2 * 2);
    CHECK(memcmp(pinhole_result_latents(whole, NULL), pinhole_result_latents(some, NULL), 16 * 4 * 4 * sizeof(float)));
    pinhole_result_free(some);
    request.cache = PINHOLE_CACHE_FIRST_BLOCK;
    request.cache_threshold = 1e9f;
    OK(pinhole_generate(session, &request, &some, &error));
    CHECK(pinhole_result_skipped(some) == 2 * 5);
    pinhole_result_free(some);
    /* As it was published. */
    request.cache = PINHOLE_CACHE_TEACACHE;
    request.cache_threshold = 0;
    OK(pinhole_generate(session, &request, &some, &error));
    CHECK(pinhole_result_skipped(some) <= 2 * 4);
    pinhole_result_free(some);
    pinhole_result_free(whole);
}

static void batches_seeds_and_noise(pinhole_session *session) {
    pinhole_request request = small_request();
    pinhole_result *both = NULL, *second = NULL, *again = NULL;
    pinhole_result_info info;
    size_t extents[4];
    float *noise;
    size_t count = 16 * 4 * 4, i;

    request.seed = 41;
    request.batch = 2;
    OK(pinhole_generate(session, &request, &both, &error));
    CHECK(pinhole_result_image_count(both) == 2 && !pinhole_result_image(both, 2));
    CHECK(pinhole_result_latents(both, extents) && extents[0] == 2 && extents[1] == 16 && extents[2] == 4);
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    OK(pinhole_result_get_info(both, &info, &error));
    CHECK(info.seed == 41 && info.batch == 2 && info.width == 32 && info.steps == 1);
    CHECK(info.peak_bytes > 0 && info.seconds_denoise > 0);
    /* Pictures are no films. */
    CHECK(info.frames == 1 && info.fps == 0);
    FAILS(pinhole_result_write_film(both, 0, NULL, &error), PINHOLE_E_ARGUMENT, "path", 0);
    FAILS(pinhole_result_write_film(both, 0, "film.mp4", &error), PINHOLE_E_ARGUMENT, "expected films", 1);
    request.seed = 42;
    request.batch = 0;
    OK(pinhole_generate(session, &request, &second, &error));
    check_same(both, 1, second, 0);

    noise = malloc(count * sizeof *noise);
    CHECK(noise);
    for (i = 0; i < count; i++) noise[i] = (float)(i % 7) / 3.0f - 1.0f;
    request.noise = noise;
    request.noise_count = count;
    OK(pinhole_generate(session, &request, &again, &error));
    CHECK(memcmp(pinhole_image_pixels(pinhole_result_image(again, 0)),
                 pinhole_image_pixels(pinhole_result_image(second, 0)), 32 * 32 * 3));
    free(noise);
    pinhole_result_free(both);
    pinhole_result_free(second);
    pinhole_result_free(again);
}

/* Two devices draw what one draws, each with a pass of guidance, and each holds what was planned for it. */
static void several_devices(const pinhole_model *model) {
    static const char *const names[] = { "cpu:discrete", "cpu:discrete1" };
    static const uint64_t budgets[] = { (uint64_t)1 << 30, (uint64_t)2 << 30 };
    pinhole_request request = small_request();
    pinhole_session_options options = one_thread();
    pinhole_session *session = NULL;
    pinhole_result *one = NULL, *two = NULL;
    pinhole_result_device held;
    pinhole_plan *plan = NULL;
    pinhole_plan_info info;
    pinhole_plan_component component;
    size_t i, denoise[2] = { 0, 0 };

    request.negative_prompt = "blue";
    request.cfg_scale = 2;
    options.device = names[0];
    OK(pinhole_session_new(model, &options, &session, &error));
    OK(pinhole_generate(session, &request, &one, &error));
    pinhole_session_free(session);
    options.devices = names;
    options.device_count = 2;
    options.device_vram = budgets;
    options.threads = 2;
    OK(pinhole_session_new(model, &options, &session, &error));
    OK(pinhole_generate(session, &request, &two, &error));
    check_same(one, 0, two, 0);
    memset(&held, 0, sizeof held);
    held.struct_size = sizeof held;
    for (i = 0; i < 2; i++) {
        OK(pinhole_result_get_device(two, i, &held, &error));
        CHECK(!strcmp(held.name, names[i]) && held.limit_bytes == budgets[i]);
        CHECK(held.peak_bytes > 0 && held.peak_bytes == held.planned_peak_bytes);
    }
    FAILS(pinhole_result_get_device(two, 2, &held, &error), PINHOLE_E_ARGUMENT, "index", 0);
    OK(pinhole_plan_new(session, &request, &plan, &error));
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    OK(pinhole_plan_get_info(plan, &info, &error));
    memset(&component, 0, sizeof component);
    component.struct_size = sizeof component;
    for (i = 0; i < info.components; i++) {
        OK(pinhole_plan_get_component(plan, i, &component, &error));
        CHECK(component.device == 0 || component.device == 1);
        denoise[component.device] += component.phase == PINHOLE_PHASE_DENOISE;
    }
    CHECK(denoise[0] == 1 && denoise[1] == 1);
    pinhole_plan_free(plan);
    pinhole_session_free(session);
    pinhole_result_free(two);
    options.devices_by = "tokens";
    OK(pinhole_session_new(model, &options, &session, &error));
    OK(pinhole_generate(session, &request, &two, &error));
    check_same(one, 0, two, 0);
    pinhole_session_free(session);
    session = NULL;
    options.devices_by = "heads";
    FAILS(pinhole_session_new(model, &options, &session, &error), PINHOLE_E_OPTION, "--devices-by", 0);
    options.devices_by = NULL;
    pinhole_result_free(one);
    pinhole_result_free(two);
    session = NULL;
    options.devices = NULL;
    FAILS(pinhole_session_new(model, &options, &session, &error), PINHOLE_E_ARGUMENT, "devices", 0);
}

/* A copy to the last byte and not further: a sanitizer sees the end of this block. */
static void *exactly(const void *bytes, size_t size) {
    void *copy = malloc(size);
    CHECK(copy);
    memcpy(copy, bytes, size);
    return copy;
}

/* Pixels and bytes of a file as inputs. Nothing of them is needed after the call. */
static void pictures_in_memory(pinhole_session *session) {
    pinhole_input image, mask;
    const pinhole_input *inputs[2];
    pinhole_request request = small_request(), plain = small_request();
    pinhole_result *drawn = NULL, *of_pixels = NULL, *of_bytes = NULL;
    pinhole_buffer *png = NULL;
    void *pixels, *bytes, *white = malloc(32 * 32 * 3);

    image = input_for(PINHOLE_INPUT_IMAGE);
    mask = input_for(PINHOLE_INPUT_MASK);
    inputs[0] = &image;
    inputs[1] = &mask;
    OK(pinhole_generate(session, &plain, &drawn, &error));
    pixels = exactly(pinhole_image_pixels(pinhole_result_image(drawn, 0)), 32 * 32 * 3);
    OK(pinhole_image_encode_png(pinhole_result_image(drawn, 0), &png, &error));
    bytes = exactly(pinhole_buffer_data(png), pinhole_buffer_size(png));
    CHECK(white);
    memset(white, 255, 32 * 32 * 3);
    image.pixels = pixels;
    mask.pixels = white;
    image.width = image.height = mask.width = mask.height = 32;
    request.inputs = inputs;
    request.input_count = 2;
    request.steps = 2;
    request.seed = 7;
    request.strength = 0.5f;
    OK(pinhole_generate(session, &request, &of_pixels, &error));
    image = input_for(PINHOLE_INPUT_IMAGE);
    image.data = bytes;
    image.size = pinhole_buffer_size(png);
    OK(pinhole_generate(session, &request, &of_bytes, &error));
    free(pixels);
    free(bytes);
    free(white);
    pinhole_buffer_free(png);
    check_same(of_pixels, 0, of_bytes, 0);
    pinhole_result_free(drawn);
    pinhole_result_free(of_pixels);
    pinhole_result_free(of_bytes);
}

static void embeddings_draw_the_same(pinhole_session *session) {
    pinhole_request request = small_request(), with = small_request();
    pinhole_result *plain = NULL, *result = NULL;
    pinhole_embeddings *embeddings = NULL;
    pinhole_plan *plan = NULL;
    pinhole_plan_info info;
    pinhole_plan_component component;
    int i;

    request.negative_prompt = "blue";
    request.cfg_scale = 2;
    OK(pinhole_embeddings_new(session, &request, &embeddings, &error));
    with.prompt = NULL;
    with.cfg_scale = 2;
    with.max_sequence_length = 0;
    with.embeddings = embeddings;
    OK(pinhole_generate(session, &request, &plain, &error));
    for (i = 0; i < 2; i++) {
        OK(pinhole_generate(session, &with, &result, &error));
        check_same(plain, 0, result, 0);
        pinhole_result_free(result);
    }
    pinhole_result_free(plain);
    /* Without guidance the negative prompt does not count. */
    with.cfg_scale = request.cfg_scale = 1;
    OK(pinhole_generate(session, &with, &result, &error));
    OK(pinhole_generate(session, &request, &plain, &error));
    check_same(plain, 0, result, 0);
    pinhole_result_free(plain);
    pinhole_result_free(result);

    /* The encoders are not in the plan. */
    OK(pinhole_plan_new(session, &with, &plan, &error));
    memset(&info, 0, sizeof info);
    memset(&component, 0, sizeof component);
    info.struct_size = sizeof info;
    component.struct_size = sizeof component;
    OK(pinhole_plan_get_info(plan, &info, &error));
    CHECK(info.components == 2);
    OK(pinhole_plan_get_component(plan, 0, &component, &error));
    CHECK(!strcmp(component.name, "transformer") && component.phase == PINHOLE_PHASE_DENOISE && component.stages > 4);
    CHECK(component.peak_bytes <= info.peak_bytes);
    FAILS(pinhole_plan_get_component(plan, 2, &component, &error), PINHOLE_E_ARGUMENT, "found 2", 0);
    pinhole_plan_free(plan);

    with.max_sequence_length = 16;
    FAILS(pinhole_generate(session, &with, &result, &error), PINHOLE_E_OPTION, "--max-sequence-length", 0);
    pinhole_embeddings_free(embeddings);
    request = small_request();
    request.cfg_scale = 1;
    OK(pinhole_embeddings_new(session, &request, &embeddings, &error));
    with = small_request();
    with.embeddings = embeddings;
    with.cfg_scale = 3;
    FAILS(pinhole_generate(session, &with, &result, &error), PINHOLE_E_OPTION, "--cfg-scale", 1);
    pinhole_embeddings_free(embeddings);
}

/* Whether `text` is among the bytes of a file. */
static int has_text(const void *file, size_t size, const char *text) {
    const char *bytes = file;
    size_t i, length = strlen(text);
    for (i = 0; i + length <= size; i++) {
        if (!memcmp(bytes + i, text, length)) return 1;
    }
    return 0;
}

static void pixels_and_files(pinhole_session *session, const char *directory) {
    char path[4096];
    pinhole_request request = small_request();
    pinhole_result *result = NULL;
    const pinhole_image *image;
    const uint8_t *rgb;
    uint8_t pixels[200 * 32], *exact;
    pinhole_buffer *png = NULL;
    void *file;
    size_t size;
    int x, y;

    request.width = 48;
    OK(pinhole_generate(session, &request, &result, &error));
    image = pinhole_result_image(result, 0);
    rgb = pinhole_image_pixels(image);
    CHECK(pinhole_image_width(image) == 48 && pinhole_image_height(image) == 32);

    memset(pixels, 0x55, sizeof pixels);
    OK(pinhole_image_copy(image, PINHOLE_RGBA8, pixels, sizeof pixels, 200, &error));
    for (y = 0; y < 32; y++) {
        for (x = 0; x < 48; x++) {
            CHECK(!memcmp(pixels + y * 200 + x * 4, rgb + (y * 48 + x) * 3, 3) && pixels[y * 200 + x * 4 + 3] == 255);
        }
        for (x = 48 * 4; x < 200; x++) CHECK(pixels[y * 200 + x] == 0x55);
    }
    /* To the last byte and not further: a sanitizer sees the end of this block. */
    exact = malloc(48 * 32 * 3);
    CHECK(exact);
    OK(pinhole_image_copy(image, PINHOLE_RGB8, exact, 48 * 32 * 3, 0, &error));
    CHECK(!memcmp(exact, rgb, 48 * 32 * 3));
    FAILS(pinhole_image_copy(image, PINHOLE_RGB8, exact, 48 * 32 * 3 - 1, 0, &error), PINHOLE_E_ARGUMENT, "size", 1);
    FAILS(pinhole_image_copy(image, PINHOLE_RGB8, exact, 48 * 32 * 3, 48 * 3 - 1, &error), PINHOLE_E_ARGUMENT, "stride", 1);
    FAILS(pinhole_image_copy(image, PINHOLE_RGB8, exact, 48 * 32 * 3, (size_t)-1, &error), PINHOLE_E_ARGUMENT, "size", 1);
    FAILS(pinhole_image_copy(image, 5, exact, 48 * 32 * 3, 0, &error), PINHOLE_E_OPTION, "format", 0);
    FAILS(pinhole_image_copy(image, PINHOLE_RGB8, NULL, 48 * 32 * 3, 0, &error), PINHOLE_E_ARGUMENT, "pixels", 0);
    free(exact);

    OK(pinhole_image_encode_png(image, &png, &error));
    OK(pinhole_image_write_png(image, join(path, sizeof path, directory, "heart.png"), &error));
    file = read_file(path, &size);
    CHECK(size == pinhole_buffer_size(png) && !memcmp(file, pinhole_buffer_data(png), size));
    CHECK(!memcmp(file, "\x89PNG", 4));
    CHECK(has_text(file, size, "Model: "));
    CHECK(has_text(file, size, "\"width\":48,\"height\":32"));
    free(file);
    pinhole_buffer_free(png);
    /* A picture replaces a picture, and nothing else. */
    OK(pinhole_image_write_png(image, path, &error));
    write_file(path, "GGUF and so on", 14);
    FAILS(pinhole_image_write_png(image, path, &error), PINHOLE_E_EXISTS, "heart.png", 1);
    file = read_file(path, &size);
    CHECK(size == 14 && !memcmp(file, "GGUF and so on", size));
    free(file);
    FAILS(pinhole_image_write_png(image, "/nowhere/at/all.png", &error), PINHOLE_E_IO, "/nowhere", 0);
    FAILS(pinhole_image_write_png(image, NULL, &error), PINHOLE_E_ARGUMENT, "path", 0);
    pinhole_result_free(result);
}

static void devices(void) {
    pinhole_device_info info;
    size_t count, i;
    int defaults = 0, cpus = 0;

    OK(pinhole_device_count(&count, &error));
    CHECK(count >= 2);
    memset(&info, 0, sizeof info);
    for (i = 0; i < count; i++) {
        info.struct_size = sizeof info;
        OK(pinhole_device_get(i, &info, &error));
        CHECK(info.name[0] && info.description[0] && info.memory_total > 0);
        defaults += info.is_default;
        cpus += info.kind == PINHOLE_DEVICE_CPU;
    }
    CHECK(defaults == 1 && cpus == 1);
    FAILS(pinhole_device_get(count, &info, &error), PINHOLE_E_ARGUMENT, "index", 0);
}

static int32_t count_bytes(const pinhole_progress *now, void *user_data) {
    uint64_t *most = user_data;
    CHECK(now->phase == PINHOLE_PHASE_CONVERT && now->bytes_moved <= now->bytes_total);
    if (now->bytes_moved > *most) *most = now->bytes_moved;
    return 0;
}

static void convert(const char *bundle, const char *directory) {
    char path[4096];
    pinhole_files source;
    pinhole_convert_options options;
    pinhole_buffer *json = NULL;
    uint64_t most = 0;
    const char *patterns[1] = {"*.img_attn.qkv.weight=q4_0"};

    pinhole_files_init(&source, sizeof source);
    pinhole_convert_options_init(&options, sizeof options);
    source.base = bundle;
    options.source = &source;
    options.output = join(path, sizeof path, directory, "lone.gguf");
    options.type = "q5_0";
    options.component = "transformer";
    options.tensors = patterns;
    options.tensor_count = 1;
    options.threads = 1;
    options.progress = count_bytes;
    options.user_data = &most;
    OK(pinhole_convert(&options, &error));
    CHECK(most > 1000000);
    OK(pinhole_inspect(path, &json, &error));
    CHECK(strlen(pinhole_buffer_data(json)) == pinhole_buffer_size(json));
    CHECK(strstr(pinhole_buffer_data(json), "\"q5_0\"") && strstr(pinhole_buffer_data(json), "\"q4_0\""));
    pinhole_buffer_free(json);
    options.overwrite = 1;
    options.component = "text_encoder_2";
    options.tensor_count = 0;
    OK(pinhole_convert(&options, &error));
}

static void count_log(int32_t level, const char *message, void *user_data) {
    CHECK(level >= PINHOLE_LOG_INFO && message);
    *(int *)user_data += 1;
}

/* The host's handlers of signals. */
struct handlers {
    void (*of[9])(int);
};

static struct handlers handlers_now(void) {
    struct handlers now = {{0}};
#ifndef _WIN32
    static const int signals[] = {SIGINT, SIGTERM, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGPIPE, SIGCHLD};
    struct sigaction action;
    int i;
    for (i = 0; i < 9; i++) {
        CHECK(!sigaction(signals[i], NULL, &action));
        now.of[i] = action.sa_handler;
    }
#endif
    return now;
}

int main(int argc, char **argv) {
    struct handlers before, after;
    int rounding = fegetround(), i, logged = 0;
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;
    pinhole_session_options options = one_thread();

    CHECK(argc == 3);
    CHECK(pinhole_version() == PINHOLE_MAKE_VERSION(PINHOLE_VERSION_MAJOR, PINHOLE_VERSION_MINOR, PINHOLE_VERSION_PATCH));
    CHECK(pinhole_version_text()[0] == '0' + PINHOLE_VERSION_MAJOR);
    before = handlers_now();
    pinhole_set_log(PINHOLE_LOG_INFO, count_log, &logged);
    devices();
    ways_to_open(argv[1]);
    loras(argv[1], argv[2]);
    pinhole_set_log(0, NULL, NULL);
    OK(pinhole_model_open_builtin(&model, &error));
    OK(pinhole_session_new(model, &options, &session, &error));
    batches_seeds_and_noise(session);
    step_caches(session);
    several_devices(model);
    pictures_in_memory(session);
    embeddings_draw_the_same(session);
    pixels_and_files(session, argv[2]);
    pinhole_session_free(session);
    pinhole_model_free(model);
    convert(argv[1], argv[2]);

    /* The host is as it was. */
    after = handlers_now();
    for (i = 0; i < 9; i++) CHECK(after.of[i] == before.of[i]);
    CHECK(fegetround() == rounding && !strcmp(setlocale(LC_ALL, NULL), "C"));
    return 0;
}
