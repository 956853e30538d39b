/* What the C tests share: each is a program that ends with 0, or says what did not hold. */
#ifndef CHECK_H
#define CHECK_H

#include <pinhole.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #what);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* The call succeeds. */
#define OK(call)                                                                                                       \
    do {                                                                                                               \
        pinhole_error *error = NULL;                                                                                   \
        int32_t status = (call);                                                                                       \
        if (status != PINHOLE_OK || error) {                                                                           \
            printf("%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #call, pinhole_status_name(status),                      \
                   pinhole_error_message(error));                                                                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* The call, which uses `&error`, fails with `code`, a message with `part` in it, and a hint if `hint` is 1. */
#define FAILS(call, code, part, hint)                                                                                  \
    do {                                                                                                               \
        pinhole_error *error = (pinhole_error *)&error; /* overwritten, whatever was there */                          \
        int32_t status = (call);                                                                                       \
        check_failure(__FILE__, __LINE__, status, code, error, part, hint);                                            \
    } while (0)

static inline void check_failure(const char *file, int line, int32_t status, int32_t code, pinhole_error *error,
                                 const char *part, int hint) {
    const char *message = pinhole_error_message(error);
    int has_hint = pinhole_error_hint(error)[0] != 0;
    if (status != code || pinhole_error_code(error) != code || !strstr(message, part) || (hint && !has_hint)) {
        printf("%s:%d: expected %s with \"%s\"%s, found %s: \"%s\" (hint: \"%s\")\n", file, line,
               pinhole_status_name(code), part, hint ? " and a hint" : "", pinhole_status_name(status), message,
               pinhole_error_hint(error));
        exit(1);
    }
    pinhole_error_free(error);
}

/* A request that takes next to no time. */
static inline pinhole_request small_request(void) {
    pinhole_request request;
    CHECK(pinhole_request_init(&request, sizeof request) == PINHOLE_OK);
    request.prompt = "a red heart";
    request.width = request.height = 32;
    request.steps = 1;
    request.max_sequence_length = 8;
    return request;
}

/* An input at its defaults, for `use`. */
static inline pinhole_input input_for(int32_t use) {
    pinhole_input input;
    CHECK(pinhole_input_init(&input, sizeof input) == PINHOLE_OK);
    input.use = use;
    return input;
}

static inline pinhole_session_options one_thread(void) {
    pinhole_session_options options;
    CHECK(pinhole_session_options_init(&options, sizeof options) == PINHOLE_OK);
    options.threads = 1;
    return options;
}

/* The bytes of a file, to be freed, and how many they are. */
static inline void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    void *bytes;
    CHECK(file);
    CHECK(fseek(file, 0, SEEK_END) == 0);
    *size = (size_t)ftell(file);
    rewind(file);
    bytes = malloc(*size);
    CHECK(bytes && fread(bytes, 1, *size, file) == *size);
    fclose(file);
    return bytes;
}

static inline void write_file(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

/* Writes a LoRA of the miniature's first layer, with a tensor that fits nothing. */
static inline void write_lora(const char *path) {
    static const char header[] =
        "{\"diffusion_model.img_in.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[1,64],\"data_offsets\":[0,256]},"
        "\"diffusion_model.img_in.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[256,1],\"data_offsets\":[256,1280]},"
        "\"nothing_like_this\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1280,1284]}}";
    unsigned char bytes[8 + sizeof header - 1 + 1284] = {0};
    float numbers[321];
    size_t i;
    for (i = 0; i < 321; i++) numbers[i] = (float)(i % 5) / 8.0f - 0.25f;
    for (i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)(sizeof header - 1) >> (8 * i));
    memcpy(bytes + 8, header, sizeof header - 1);
    memcpy(bytes + 8 + sizeof header - 1, numbers, sizeof numbers);
    write_file(path, bytes, sizeof bytes);
}

static inline const char *join(char *into, size_t size, const char *directory, const char *name) {
    int length = snprintf(into, size, "%s/%s", directory, name);
    CHECK(length > 0 && (size_t)length < size);
    return into;
}

#endif
