/* Films. Arguments: a model that makes films of texts, and a folder, in which films of many types are then. */
#include "check.h"

enum { WIDTH = 48, HEIGHT = 32, FRAMES = 5, BYTES = WIDTH * HEIGHT * 3 };

/* The frames that a request called with, and when it is to be stopped. */
struct seen {
    uint8_t pixels[2 * FRAMES * BYTES];
    int frames;
    int stop_at;
    int decode_steps;
    int stop_in_decode;
};

static int32_t on_frame(const pinhole_image *image, int32_t index, int32_t frame, int32_t frames, void *user_data) {
    struct seen *seen = user_data;
    CHECK(pinhole_image_width(image) == WIDTH && pinhole_image_height(image) == HEIGHT && frames == FRAMES);
    CHECK(index * FRAMES + frame == seen->frames);
    memcpy(seen->pixels + seen->frames * BYTES, pinhole_image_pixels(image), BYTES);
    seen->frames += 1;
    return seen->frames == seen->stop_at;
}

static int32_t on_progress(const pinhole_progress *now, void *user_data) {
    struct seen *seen = user_data;
    if (now->phase == PINHOLE_PHASE_DECODE) {
        seen->decode_steps += 1;
        return seen->decode_steps == seen->stop_in_decode;
    }
    return 0;
}

static pinhole_request film_request(struct seen *seen) {
    pinhole_request request;
    CHECK(pinhole_request_init(&request, sizeof request) == PINHOLE_OK);
    CHECK(request.frames == 0 && request.fps == 0 && !request.frame && !request.video);
    memset(seen, 0, sizeof *seen);
    request.prompt = "a red star";
    request.width = WIDTH;
    request.height = HEIGHT;
    request.steps = 2;
    request.cfg_scale = 1;
    request.seed = 3;
    request.frames = FRAMES;
    request.fps = 8;
    request.frame = on_frame;
    request.progress = on_progress;
    request.user_data = seen;
    return request;
}

/* Frames come one by one, and are what the result has; films are written of it. */
static void drawn(pinhole_session *session, const char *folder) {
    static const char *const NAMES[] = {"c.mp4", "c.webp", "c.gif", "c.apng", "c.y4m", "c/"};
    static struct seen seen;
    pinhole_request request = film_request(&seen);
    pinhole_result *result = NULL;
    pinhole_result_info info;
    char path[4096];
    size_t i, extents[4];

    OK(pinhole_generate(session, &request, &result, &error));
    info.struct_size = sizeof info;
    OK(pinhole_result_get_info(result, &info, &error));
    CHECK(info.frames == FRAMES && info.fps == 8 && info.batch == 1 && info.width == WIDTH);
    CHECK(info.peak_bytes == info.planned_peak_bytes);
    CHECK(pinhole_result_image_count(result) == FRAMES && seen.frames == FRAMES && seen.decode_steps > 1);
    for (i = 0; i < FRAMES; i++) {
        CHECK(memcmp(pinhole_image_pixels(pinhole_result_image(result, i)), seen.pixels + i * BYTES, BYTES) == 0);
    }
    CHECK(memcmp(seen.pixels, seen.pixels + BYTES, BYTES) != 0);
    CHECK(pinhole_result_latents(result, extents) && extents[0] == 1 && extents[1] == 16 * 2);
    for (i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        OK(pinhole_result_write_film(result, 0, join(path, sizeof path, folder, NAMES[i]), &error));
    }
    FAILS(pinhole_result_write_film(result, 1, path, &error), PINHOLE_E_ARGUMENT, "index: expected less than 1", 0);
    FAILS(pinhole_result_write_film(result, 0, join(path, sizeof path, folder, "c.xyz"), &error), PINHOLE_E_OPTION,
          "c.xyz", 0);
    FAILS(pinhole_result_write_film(result, 0, join(path, sizeof path, folder, "none/c.mp4"), &error), PINHOLE_E_IO,
          "none", 0);
    pinhole_result_free(result);
}

/* Two films: all frames of the first come before those of the second, which has the next seed. */
static void several(pinhole_session *session, const char *folder) {
    static struct seen first, both;
    pinhole_request request = film_request(&first);
    pinhole_result *result = NULL;
    char path[4096];

    request.seed = 4;
    OK(pinhole_generate(session, &request, &result, &error));
    pinhole_result_free(result);
    request = film_request(&both);
    request.batch = 2;
    OK(pinhole_generate(session, &request, &result, &error));
    CHECK(pinhole_result_image_count(result) == 2 * FRAMES && both.frames == 2 * FRAMES);
    CHECK(memcmp(both.pixels + FRAMES * BYTES, first.pixels, FRAMES * BYTES) == 0);
    OK(pinhole_result_write_film(result, 1, join(path, sizeof path, folder, "second.webp"), &error));
    pinhole_result_free(result);
}

/* A request ends at any frame, and while one is decoded; the next one draws as if nothing had been. */
static void stopped(pinhole_session *session) {
    static struct seen seen, again;
    pinhole_request request;
    pinhole_result *result = NULL;
    int at;

    for (at = 1; at <= FRAMES; at++) {
        request = film_request(&seen);
        seen.stop_at = at;
        FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_CANCELLED, "", 0);
        CHECK(!result && seen.frames == at);
    }
    request = film_request(&seen);
    seen.stop_in_decode = 2;
    FAILS(pinhole_generate(session, &request, &result, &error), PINHOLE_E_CANCELLED, "", 0);
    CHECK(!result && seen.frames < FRAMES);
    request = film_request(&seen);
    OK(pinhole_generate(session, &request, &result, &error));
    pinhole_result_free(result);
    result = NULL;
    request = film_request(&again);
    OK(pinhole_generate(session, &request, &result, &error));
    pinhole_result_free(result);
    CHECK(memcmp(seen.pixels, again.pixels, FRAMES * BYTES) == 0);
}

/* A film that was written is one to begin with, and not all of it is kept. */
static void begun_with(pinhole_session *session, const char *folder) {
    static struct seen seen, plain;
    pinhole_request request = film_request(&plain);
    pinhole_result *result = NULL;
    char path[4096];

    OK(pinhole_generate(session, &request, &result, &error));
    pinhole_result_free(result);
    request = film_request(&seen);
    request.frames = 0;
    request.strength = 0.5f;
    request.video = join(path, sizeof path, folder, "c.webp");
    OK(pinhole_generate(session, &request, &result, &error));
    CHECK(seen.frames == FRAMES && memcmp(seen.pixels, plain.pixels, FRAMES * BYTES) != 0);
    pinhole_result_free(result);
}

/* What cannot be is refused before anything is drawn. */
static void refused(pinhole_session *session, const char *folder) {
    static const uint8_t PIXELS[BYTES];
    static struct seen seen;
    pinhole_request request;
    pinhole_input image = input_for(PINHOLE_INPUT_IMAGE);
    const pinhole_input *inputs[1];
    pinhole_result *result = NULL;
    char path[4096];

#define REFUSED(change, code, part)                                                                                    \
    do {                                                                                                               \
        request = film_request(&seen);                                                                                 \
        change;                                                                                                        \
        FAILS(pinhole_generate(session, &request, &result, &error), code, part, 0);                                    \
        CHECK(!result && seen.frames == 0);                                                                            \
    } while (0)

    REFUSED(request.frames = 6, PINHOLE_E_OPTION, "--frames: expected 1 to 4093, one more than a multiple of 4");
    REFUSED(request.frames = -1, PINHOLE_E_OPTION, "--frames");
    REFUSED(request.fps = -2, PINHOLE_E_OPTION, "--fps");
    REFUSED(request.fps = 5000, PINHOLE_E_OPTION, "--fps");
    REFUSED(request.width = 50, PINHOLE_E_OPTION, "a multiple of 16");
    REFUSED(request.boundary = 0.5f, PINHOLE_E_OPTION, "--boundary: expected nothing");
    REFUSED(request.cfg_scale_2 = 2, PINHOLE_E_OPTION, "--cfg-scale-2");
    REFUSED(request.video = join(path, sizeof path, folder, "missing.y4m"), PINHOLE_E_IO, "missing.y4m");
    image.pixels = PIXELS;
    image.width = WIDTH;
    image.height = HEIGHT;
    inputs[0] = &image;
    REFUSED((request.inputs = inputs, request.input_count = 1), PINHOLE_E_OPTION, "--image: expected nothing");
    image.use = PINHOLE_INPUT_LAST_IMAGE;
    REFUSED((request.inputs = inputs, request.input_count = 1), PINHOLE_E_OPTION, "--last-image");
}

int main(int argc, char **argv) {
    pinhole_session_options options = one_thread();
    pinhole_model *model = NULL;
    pinhole_session *session = NULL;

    CHECK(argc == 3);
    OK(pinhole_model_open(argv[1], &model, &error));
    OK(pinhole_session_new(model, &options, &session, &error));
    drawn(session, argv[2]);
    several(session, argv[2]);
    stopped(session);
    begun_with(session, argv[2]);
    refused(session, argv[2]);
    pinhole_session_free(session);
    pinhole_model_free(model);
    return 0;
}
