/* pinhole.h - diffusion models through a 4 GB pinhole, for any program that can call C.
 *
 * Overview
 * ========
 *
 * A MODEL is weights on disk or in memory; nothing is read before it is needed. A SESSION is a device with a budget of
 * memory. It runs requests for pictures of that model, one at a time. A REQUEST is a struct of options. It gives a RESULT,
 * which holds IMAGES. A complete program:
 *
 *     #include <pinhole.h>
 *     #include <stdio.h>
 *
 *     int main(void) {
 *         pinhole_model *model = NULL;
 *         pinhole_session *session = NULL;
 *         pinhole_result *result = NULL;
 *         pinhole_error *error = NULL;
 *         pinhole_request request;
 *         int32_t status;
 *
 *         pinhole_request_init(&request, sizeof request);
 *         request.prompt = "a small yellow star on a blue background";
 *         status = pinhole_model_open_builtin(&model, &error);
 *         if (!status) status = pinhole_session_new(model, NULL, &session, &error);
 *         if (!status) status = pinhole_generate(session, &request, &result, &error);
 *         if (!status) status = pinhole_image_write_png(pinhole_result_image(result, 0), "star.png", &error);
 *         if (status) fprintf(stderr, "%s\nhint: %s\n", pinhole_error_message(error), pinhole_error_hint(error));
 *         pinhole_error_free(error);
 *         pinhole_result_free(result);
 *         pinhole_session_free(session);
 *         pinhole_model_free(model);
 *         return status != PINHOLE_OK;
 *     }
 *
 * This is examples/c/minimal.c. Build it with
 *
 *     cc minimal.c $(pkg-config --cflags --libs pinhole) -o minimal
 *
 * This page begins with what every program needs: conventions, versions, errors, options, devices, model, session, plan,
 * image. Few programs need the advanced part at the end: embeddings, previews, convert, log.
 *
 * Conventions
 * ===========
 *
 * Status. Functions that can fail return an int32_t: PINHOLE_OK, which is 0, or one of the codes below. Through
 * their last argument they return an error object; pass NULL if the code is enough.
 *
 * Handles. Types without a body here are opaque, made by the library, and freed by the function of their name that ends in
 * _free. Freeing NULL does nothing. Using a handle after it was freed is undefined, as with free(). Functions set their
 * output to NULL before anything else, so that after a failure it is NULL.
 *
 * Ownership. The caller frees what a function returns through an output argument (`type **out`). A pointer to const that a
 * function returns directly belongs to the handle that the function was given, and lives as long as the handle. If a function
 * needs a text, struct or array beyond the call, it makes a copy, unless it says otherwise. A session keeps what it needs
 * of its model, and a result depends on nothing, so handles can be freed in any order.
 *
 * Threads. Each type says what it allows:
 *     const    its functions may be called from any number of threads at once;
 *     single   its functions may be called from one thread at a time; it need not always be the same thread.
 * Free a handle only after every other use of it has ended. A thread that calls a function needs 256 KiB of stack for it. If the
 * system starts no threads for a session or a conversion, that is PINHOLE_E_OUT_OF_MEMORY, and none is left behind.
 *
 * Text is UTF-8 and ends in a NUL. Text that is not valid UTF-8 is refused, paths included. Sizes are in bytes.
 *
 * Callbacks belong to one request. The library calls them on the thread of the request, during the request. A callback
 * must return: no longjmp, no C++ exception out of it. A callback may use everything except the session that calls it.
 *
 * What a library must not do to its host. No function ends the process, prints anything, installs signal handlers,
 * changes the locale, the working directory, or the floating-point mode of a thread of yours. A panic inside comes back as
 * PINHOLE_E_PANIC. What can still end the process: a model file that is truncated while it is mapped (SIGBUS, unless it
 * is noticed before its weights are used; replacing it by a rename is safe), a system that overcommits memory and kills, and a failed assertion of ggml's on one of its
 * worker threads during a computation. To prevent such assertions, shapes and formats are checked beforehand. After fork(),
 * a child must not use handles that it inherited.
 */
#ifndef PINHOLE_H
#define PINHOLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* PINHOLE_API marks what the library exports. Define PINHOLE_STATIC when linking the static library on Windows. */
#if defined(_WIN32) && !defined(PINHOLE_STATIC)
#define PINHOLE_API __declspec(dllimport)
#else
#define PINHOLE_API
#endif

/* Versions
 * ========
 *
 * What this header promises is never taken back. Functions, codes and struct members are added, but never removed, changed or
 * given a new meaning. Until version 1.0, a change that breaks this gives the library another soname. A program compiled
 * with an older header works with a newer library. A program compiled with a newer header works with an older library if it
 * uses nothing that the older library lacks: see "Options".
 */

#define PINHOLE_VERSION_MAJOR 0
#define PINHOLE_VERSION_MINOR 1
#define PINHOLE_VERSION_PATCH 0

/* A version as one number, to compare. */
#define PINHOLE_MAKE_VERSION(major, minor, patch) \
    (((uint32_t)(major) << 22) | ((uint32_t)(minor) << 12) | (uint32_t)(patch))

/* The version of the library that runs, as PINHOLE_MAKE_VERSION makes it. */
PINHOLE_API uint32_t pinhole_version(void);

/* The same as text, "0.1.0". Lives for ever. */
PINHOLE_API const char *pinhole_version_text(void);

/* Whether this library was built with `feature`: "cpu", "cuda", "metal", "vulkan", "builtin-model", "convert",
 * "embeddings", "preview". Returns 1 or 0; 0 for an unknown name and for NULL. */
PINHOLE_API int32_t pinhole_has_feature(const char *feature);

/* Errors
 * ====== */

enum {
    PINHOLE_OK = 0,
    /* A wrong call: a NULL that is not allowed, an impossible struct_size, text that is not UTF-8. */
    PINHOLE_E_ARGUMENT = 1,
    /* An option has a value that cannot work; the message says which values would. */
    PINHOLE_E_OPTION = 2,
    /* The operating system refused something. */
    PINHOLE_E_IO = 3,
    /* A file breaks the rules of its own format. */
    PINHOLE_E_MALFORMED = 4,
    /* A path or buffer holds nothing that pinhole can load. */
    PINHOLE_E_NOT_A_MODEL = 5,
    /* A well-formed file holds weights or settings that do not fit the model. */
    PINHOLE_E_MISMATCH = 6,
    /* A weight or an intermediate result is not a finite number. */
    PINHOLE_E_NOT_FINITE = 7,
    /* An output exists, and the caller did not ask to replace it. */
    PINHOLE_E_EXISTS = 8,
    /* A disk has no room for an output. */
    PINHOLE_E_NO_SPACE = 9,
    /* A device is unknown, or failed. */
    PINHOLE_E_DEVICE = 10,
    /* An allocation failed. */
    PINHOLE_E_OUT_OF_MEMORY = 11,
    /* The request takes more than the session's budget; the message says how much it needs. */
    PINHOLE_E_OVER_BUDGET = 12,
    /* ggml or pinhole failed in a way that a check should have caught earlier: worth a report. */
    PINHOLE_E_INTERNAL = 13,
    /* A callback or pinhole_cancel_raise asked for a stop. */
    PINHOLE_E_CANCELLED = 14,
    /* A panic, which is a bug in pinhole: worth a report. The session in which it happened returns this code from every later
     * call: free it. Other sessions and the model are not affected. */
    PINHOLE_E_PANIC = 15,
    /* The session is in use by another thread, or by the callback's own caller. */
    PINHOLE_E_BUSY = 16
};

/* The name of a code, "PINHOLE_E_OPTION"; "unknown" for others. Lives for ever. */
PINHOLE_API const char *pinhole_status_name(int32_t status);

/* What went wrong. const. */
typedef struct pinhole_error pinhole_error;

/* The code that the function returned. PINHOLE_OK for NULL. */
PINHOLE_API int32_t pinhole_error_code(const pinhole_error *error);

/* What happened: file, tensor or option, what was expected, what was found. "" for NULL. */
PINHOLE_API const char *pinhole_error_message(const pinhole_error *error);

/* What to do about the error; "" if there is no hint, and for NULL. Hints name options as on the command line: --vram is
 * `vram` here, --cfg-scale is `cfg_scale`, --image is an input for PINHOLE_INPUT_IMAGE. */
PINHOLE_API const char *pinhole_error_hint(const pinhole_error *error);

PINHOLE_API void pinhole_error_free(pinhole_error *error);

/* Options
 * =======
 *
 * Structs of options begin with their size, as the caller's compiler sees it. Fill them with the init function, which
 * takes that size, and then change members:
 *
 *     pinhole_request request;
 *     pinhole_request_init(&request, sizeof request);
 *
 * Members are only ever added at the end. A struct that is smaller than the library's is an older one: the members that it lacks
 * have their defaults. A larger struct is newer. It is accepted if all bytes beyond the members that the library knows are zero.
 * Otherwise it asks for something that the library cannot do, and is refused with PINHOLE_E_ARGUMENT. A size of zero, or a size
 * smaller than that of the struct's first version, is refused too.
 *
 * Structs that the library fills in (pinhole_device_info, ...) follow the same rule: set struct_size first. Members that do
 * not fit into a smaller struct are left out, and members that the library does not know are set to zero. In structs that callbacks
 * receive, struct_size is the library's.
 *
 * If 0 or NULL makes no sense as a value of an option, it stands for the default.
 */

/* Devices
 * ======= */

enum {
    PINHOLE_DEVICE_OTHER = 0,
    /* Computes in host memory: weights are used from the memory map. */
    PINHOLE_DEVICE_CPU = 1,
    /* Has memory of its own. */
    PINHOLE_DEVICE_DISCRETE = 2,
    /* Shares the host's memory. */
    PINHOLE_DEVICE_INTEGRATED = 3
};

typedef struct pinhole_device_info {
    size_t struct_size;
    /* The name that sessions take: "cpu", "cpu:discrete", "cuda0", "vulkan0", "metal". */
    char name[64];
    /* The hardware's own name. */
    char description[192];
    /* PINHOLE_DEVICE_... */
    int32_t kind;
    /* 1 for the one that "auto" means. */
    int32_t is_default;
    /* As the driver reports it now. */
    uint64_t memory_free;
    uint64_t memory_total;
} pinhole_device_info;

/* How many devices there are. The list does not change while the process lives. */
PINHOLE_API int32_t pinhole_device_count(size_t *count, pinhole_error **error);

/* The device at `index`. PINHOLE_E_ARGUMENT past the end. */
PINHOLE_API int32_t pinhole_device_get(size_t index, pinhole_device_info *info, pinhole_error **error);

/* Model
 * ===== */

/* Weights, tokenizers, a schedule, defaults. Never changes. const: any number of sessions may use one at the same time. */
typedef struct pinhole_model pinhole_model;

/* Opens a pinhole bundle (.gguf), a diffusers directory (or the folder that Hugging Face's tools keep it in), a file of another
 * tool, or a folder with such files. */
PINHOLE_API int32_t pinhole_model_open(const char *path, pinhole_model **out, pinhole_error **error);

/* Opens the model inside the library: a trained miniature that draws coloured shapes, for examples and tests. */
PINHOLE_API int32_t pinhole_model_open_builtin(pinhole_model **out, pinhole_error **error);

/* Which file holds which part of a model, if several files do. */
typedef struct pinhole_files {
    size_t struct_size;
    /* A model as pinhole_model_open takes it. Its parts are used unless another is given below. May be NULL. */
    const char *base;
    /* GGUF or safetensors, with original or diffusers names; a folder with it, or a model to take it from. "FILE:PREFIX" is the one
     * of several in FILE whose tensors' names begin so. All this holds for the parts below, too. */
    const char *transformer;
    /* CLIP. */
    const char *text_encoder;
    /* T5. */
    const char *text_encoder_2;
    /* The autoencoder. */
    const char *vae;
    /* CLIP's: a tokenizer.json, or a folder with one or with vocab.json and merges.txt. NULL: the model's, or OpenAI's. */
    const char *tokenizer;
    /* T5's: a tokenizer.json, a spiece.model, a folder with one, or a GGUF of T5. NULL: the model's, or the text encoder's. */
    const char *tokenizer_2;
    /* The denoiser of models that have a UNet and no transformer. */
    const char *unet;
    /* LoRAs, the strength of each, and how many there are. Their changes add up. NULL strengths: 1 for each. If tensors of a
     * LoRA fit nothing in the model, each request warns of it. */
    const char *const *loras;
    const float *lora_strengths;
    size_t lora_count;
    /* FLUX.1 Redux, for pictures for PINHOLE_INPUT_STYLE: a file, a diffusers directory, or a folder of files. May be NULL. */
    const char *redux;
    /* An IP-Adapter of FLUX.1, for pictures for PINHOLE_INPUT_IP. May be NULL. */
    const char *ip_adapter;
    /* Vision towers that see those pictures, and how many there are: SigLIP's for Redux, unless that brings its own, and for InstantX'
     * adapter, CLIP's for XLabs'. NULL: none. */
    const char *const *image_encoders;
    size_t image_encoder_count;
    /* ControlNets, each a file or a folder of diffusers, and how many there are. Each request gives a picture for each of them to
     * follow: see pinhole_control. */
    const char *const *controls;
    size_t control_count;
    /* InfiniteYou's projector, which makes tokens of the id_embedding of requests. The first ControlNet reads them. */
    const char *id_projector;
    /* 1 without a projector if requests have tokens of a face as their id_embedding, or, beside Stable Diffusion, embeddings of faces
     * that the ip_adapter reads. */
    int32_t takes_id;
    /* Always 0 in this version. */
    int32_t reserved;
    /* A tiny autoencoder (TAESD, TAESDXL, TAEF1). It makes the previews, and the pictures in the autoencoder's stead, which is then not
     * needed: see tiny_vae_for of requests. If its encoder is in the same file, or in a file beside it (taesd_encoder.safetensors for
     * taesd_decoder.safetensors), it encodes pictures, too. */
    const char *tiny_vae;
    /* Words that the text encoders of Stable Diffusion were taught (textual inversion): files of diffusers or of the web UI, the word of
     * each, and how many there are. NULL words, or a NULL among them: the file's own. A prompt brings one in by its word. */
    const char *const *embeddings;
    const char *const *embedding_words;
    size_t embedding_count;
    /* A folder with such files, each for the word that is its name. May be NULL. */
    const char *embeddings_folder;
    /* What judges the pictures that are drawn: Stable Diffusion's safety checker. See safety of requests. */
    const char *safety_checker;
    /* A network that makes the pictures larger in the end, as pinhole_upscale does. */
    const char *upscaler;
    /* The refiner of Stable Diffusion XL, which makes the last steps: a model as pinhole_model_open takes it. May be NULL. */
    const char *refiner;
    /* A scheduler_config.json, whose settings are used in the place of the model's own. May be NULL. */
    const char *scheduler_config;
    /* Whether an edit of Qwen-Image modulates the pictures that it changes as at time 0, as the edit of November 2025 (2511) does: 1 that it
     * does, -1 that it does not, 0 as its files say. Most GGUFs do not say. */
    int32_t zero_cond_t;
    /* Always 0 in this version. */
    int32_t reserved_2;
    /* The second transformer of models of two experts, the one for low noise; `transformer` is the one for high noise. May be NULL. */
    const char *transformer_2;
    /* For models of two experts, for whom each of `loras` is: 0 both, 1 the first, 2 the second. NULL: all are for both. */
    const int32_t *lora_experts;
} pinhole_files;

PINHOLE_API int32_t pinhole_files_init(pinhole_files *files, size_t struct_size);

/* Opens a model from loose files. */
PINHOLE_API int32_t pinhole_model_open_files(const pinhole_files *files, pinhole_model **out, pinhole_error **error);

enum {
    /* The bytes are copied, once. */
    PINHOLE_MEMORY_COPY = 0,
    /* The bytes are used in place if they are aligned to 64. They must stay there unchanged until the model and all its sessions
     * are freed. */
    PINHOLE_MEMORY_BORROW = 1
};

/* Opens a bundle, or another file that holds a whole model, in memory. `mode` is PINHOLE_MEMORY_... */
PINHOLE_API int32_t pinhole_model_open_memory(const void *data, size_t size, int32_t mode, pinhole_model **out,
                                              pinhole_error **error);

typedef struct pinhole_model_info {
    size_t struct_size;
    /* As in GGUF's general.architecture: "flux", "sd1". */
    char architecture[32];
    /* The defaults of requests. */
    int32_t width;
    int32_t height;
    int32_t steps;
    int32_t max_sequence_length;
    float guidance;
    float cfg_scale;
    /* Whether `guidance` in a request has an effect. */
    int32_t takes_guidance;
    int32_t latent_channels;
    /* Bytes of all files except LoRAs, and the number of weights, those of LoRAs included. */
    uint64_t file_size;
    uint64_t parameters;
} pinhole_model_info;

PINHOLE_API int32_t pinhole_model_get_info(const pinhole_model *model, pinhole_model_info *info, pinhole_error **error);

PINHOLE_API void pinhole_model_free(pinhole_model *model);

/* Bytes that the library allocated: text or a file. const. */
typedef struct pinhole_buffer pinhole_buffer;

/* The bytes. A NUL follows the last one, so that text is a C string. NULL for NULL. */
PINHOLE_API const void *pinhole_buffer_data(const pinhole_buffer *buffer);

/* How many they are, without that NUL. 0 for NULL. */
PINHOLE_API size_t pinhole_buffer_size(const pinhole_buffer *buffer);

PINHOLE_API void pinhole_buffer_free(pinhole_buffer *buffer);

/* Says what lies at `path`, or what is missing or wrong there, as the JSON object that `pinhole inspect --json` prints: any
 * GGUF or safetensors file, bundle or diffusers directory, including those that this version cannot run. Reads no weights. */
PINHOLE_API int32_t pinhole_inspect(const char *path, pinhole_buffer **json, pinhole_error **error);

/* Session
 * ======= */

enum {
    /* The fastest that fits the budget. */
    PINHOLE_OFFLOAD_AUTO = 0,
    /* All of the model stays on the device. */
    PINHOLE_OFFLOAD_NONE = 1,
    /* One component at a time on the device. */
    PINHOLE_OFFLOAD_MODEL = 2,
    /* Streamed layer by layer, except small layers of every step, which stay: the smallest footprint. */
    PINHOLE_OFFLOAD_SEQUENTIAL = 3
};

typedef struct pinhole_session_options {
    size_t struct_size;
    /* A name from pinhole_device_info. NULL: "auto", the best there is. */
    const char *device;
    /* The most bytes to take on the device: a ceiling that is never exceeded. 0: what is free, less a margin; what `host_memory`
     * allows if the device computes in host memory. */
    uint64_t vram;
    /* PINHOLE_OFFLOAD_... */
    int32_t offload;
    /* Threads of the CPU backend, 1 to 512. 0: one for each core that this process may use. */
    int32_t threads;
    /* The most bytes to take on the host, including resident pages of the model's files. Weights that do not fit are read from the
     * disk in every step; a request that does not fit is refused. 0: what is free, within the limits of the process and of its
     * control groups, which no number here lifts. */
    uint64_t host_memory;
    /* Folder for cached prompt encodings, shared between processes of this user; created if missing; holds at most 1 GiB. A
     * cached prompt needs no text encoder. A folder of another user, or one that others may write to, is refused. NULL: the session caches its last prompts in memory only. */
    const char *prompt_cache;
    /* Several devices that compute together, instead of `device`: `device_count` names, each different. The first denoises. Guidance
     * passes are computed side by side on those of its kind; all other parts are where they fit. NULL: `device` alone. */
    const char *const *devices;
    size_t device_count;
    /* The most bytes on each of them, as many numbers; 0 in it means what it does in `vram`. NULL: `vram` holds for each. */
    const uint64_t *device_vram;
    /* What they have among them of what denoises: "passes" (of guidance, one on each), "tokens" (of a pass), "stages", several of these with
     * commas between them, or "none". NULL: "auto", what is forecast to be quickest. */
    const char *devices_by;
} pinhole_session_options;

PINHOLE_API int32_t pinhole_session_options_init(pinhole_session_options *options, size_t struct_size);

/* A model on a device. single: a call during another returns PINHOLE_E_BUSY. Weights that the plan lets stay on the
 * device stay there between requests. */
typedef struct pinhole_session pinhole_session;

/* `options` may be NULL for the defaults. The model may be freed afterwards. */
PINHOLE_API int32_t pinhole_session_new(const pinhole_model *model, const pinhole_session_options *options,
                                        pinhole_session **out, pinhole_error **error);

PINHOLE_API void pinhole_session_free(pinhole_session *session);

/* Stops a request from outside. const: raise it from any thread, or from a signal handler. Once raised, it stays raised: a
 * request with a raised one ends at once. Make one for each request, and free it after the request. */
typedef struct pinhole_cancel pinhole_cancel;

PINHOLE_API int32_t pinhole_cancel_new(pinhole_cancel **out, pinhole_error **error);

/* The request ends with PINHOLE_E_CANCELLED at the next operation of its computation. NULL does nothing. */
PINHOLE_API void pinhole_cancel_raise(pinhole_cancel *cancel);

PINHOLE_API void pinhole_cancel_free(pinhole_cancel *cancel);

enum {
    /* Weights or buffers are put in place before the work begins. */
    PINHOLE_PHASE_PREPARE = 0,
    /* The prompt goes through the text encoders. */
    PINHOLE_PHASE_ENCODE = 1,
    /* The denoiser runs, step by step. */
    PINHOLE_PHASE_DENOISE = 2,
    /* The autoencoder turns latents into pictures. */
    PINHOLE_PHASE_DECODE = 3,
    /* A conversion writes its file. */
    PINHOLE_PHASE_CONVERT = 4,
    /* The autoencoder turns the picture of a request into latents. Comes after ENCODE and before DENOISE. */
    PINHOLE_PHASE_CONDITION = 5,
    /* The safety checker judges the pictures. */
    PINHOLE_PHASE_SAFETY = 6,
    /* A picture becomes larger. */
    PINHOLE_PHASE_UPSCALE = 7
};

/* How far a request is. */
typedef struct pinhole_progress {
    size_t struct_size;
    /* PINHOLE_PHASE_... */
    int32_t phase;
    /* Steps that are done, and how many there are; 0 in phases without steps. */
    int32_t step;
    int32_t steps;
    /* Stages (layers) of this phase that are done, and how many there are. */
    int32_t stage;
    int32_t stages;
    /* Always 0 in this version. */
    int32_t reserved;
    /* Bytes of weights brought to the device in this phase; when converting, bytes done. */
    uint64_t bytes_moved;
    /* When converting, all of them; 0 otherwise. */
    uint64_t bytes_total;
    /* Since the call began, and until this phase ends; negative if that is not known yet. */
    double seconds;
    double seconds_left;
} pinhole_progress;

/* Called when a phase begins, and after each stage and step. Return 0 to go on, anything else to cancel. */
typedef int32_t (*pinhole_progress_fn)(const pinhole_progress *progress, void *user_data);

/* Called with a warning: a prompt is cut, an option has no effect, or an animation gives its first frame only. The request
 * goes on. The text lives until the callback returns. Return 0 to go on, anything else to cancel. */
typedef int32_t (*pinhole_warning_fn)(const char *message, void *user_data);

/* A picture; see "Image". */
typedef struct pinhole_image pinhole_image;

/* Called with a preview of picture `index` after `step` of `steps` steps: see "Previews". The picture lives until
 * the callback returns. Return 0 to go on, anything else to cancel. */
typedef int32_t (*pinhole_preview_fn)(const pinhole_image *image, int32_t index, int32_t step, int32_t steps,
                                      void *user_data);

/* Called with frame number `frame` of `frames`, counted from 0, of film `index`, as soon as it is decoded. The picture lives until the
 * callback returns. Return 0 to go on, anything else to cancel. */
typedef int32_t (*pinhole_frame_fn)(const pinhole_image *image, int32_t index, int32_t frame, int32_t frames,
                                    void *user_data);

/* Prompts that went through the text encoders; see "Embeddings". */
typedef struct pinhole_embeddings pinhole_embeddings;

enum {
    /* As the model was published: Euler's method for FLUX. */
    PINHOLE_SAMPLER_DEFAULT = 0,
    /* The older name of PINHOLE_SAMPLER_DEFAULT: both are 0. Euler's method for any model is PINHOLE_SAMPLER_EULER_DISCRETE. */
    PINHOLE_SAMPLER_EULER = 0,
    /* Euler's method, with fresh noise after each step. */
    PINHOLE_SAMPLER_EULER_A = 1,
    PINHOLE_SAMPLER_DDIM = 2,
    PINHOLE_SAMPLER_PNDM = 3,
    /* DPM-Solver++ of second order, multistep. */
    PINHOLE_SAMPLER_DPMPP_2M = 4,
    /* The same over the sigmas of Karras et al. */
    PINHOLE_SAMPLER_DPMPP_2M_KARRAS = 5,
    /* Euler's method. */
    PINHOLE_SAMPLER_EULER_DISCRETE = 6,
    /* PINHOLE_SAMPLER_DPMPP_2M along the stochastic equation, with fresh noise in each step. */
    PINHOLE_SAMPLER_DPMPP_2M_SDE = 7,
    /* DPM-Solver++ of second order, singlestep. */
    PINHOLE_SAMPLER_DPMPP_2S = 8,
    /* DPM-Solver++ along the stochastic equation, with the noise of a Brownian tree. */
    PINHOLE_SAMPLER_DPMPP_SDE = 9,
    PINHOLE_SAMPLER_DDPM = 10,
    PINHOLE_SAMPLER_LMS = 11,
    PINHOLE_SAMPLER_HEUN = 12,
    /* DPM2 of k-diffusion, and with fresh noise after each step. */
    PINHOLE_SAMPLER_KDPM2 = 13,
    PINHOLE_SAMPLER_KDPM2_A = 14,
    PINHOLE_SAMPLER_DEIS = 15,
    PINHOLE_SAMPLER_UNIPC = 16,
    /* For models that were distilled for it. */
    PINHOLE_SAMPLER_LCM = 17,
    PINHOLE_SAMPLER_TCD = 18,
    /* For models that were trained with the preconditioning of Karras et al. */
    PINHOLE_SAMPLER_EDM_EULER = 19
};

/* Which levels of noise are visited. docs/samplers.md says which sampler can follow which. */
enum {
    /* As the model was published. */
    PINHOLE_SCHEDULE_DEFAULT = 0,
    PINHOLE_SCHEDULE_NORMAL = 1,
    PINHOLE_SCHEDULE_KARRAS = 2,
    PINHOLE_SCHEDULE_EXPONENTIAL = 3,
    PINHOLE_SCHEDULE_BETA = 4,
    PINHOLE_SCHEDULE_SGM_UNIFORM = 5,
    /* Align Your Steps. */
    PINHOLE_SCHEDULE_AYS = 6,
    PINHOLE_SCHEDULE_LU = 7
};

enum {
    /* A picture to begin with, or to be changed by a model that was trained for that; resized to the size that is drawn. */
    PINHOLE_INPUT_IMAGE = 0,
    /* Which part of that picture is painted anew: white. What is black stays as it is. A mask has as many pixels as its
     * picture. */
    PINHOLE_INPUT_MASK = 1,
    /* A picture to be followed, for models that take one beside the latents and for ControlNets: edges, a map of depth. With
     * several ControlNets there is one for each, in their order. */
    PINHOLE_INPUT_CONTROL = 2,
    /* A picture that the model looks at beside the prompt, as FLUX.1 Kontext does at the one that it changes. There may be more than
     * one, in order, for models that take several. */
    PINHOLE_INPUT_REFERENCE = 3,
    /* A picture that takes part in the prompt, for a model that was opened with Redux. There may be more than one: what becomes of them is
     * added up, each times its weight. The prompt may be NULL then: zeros stand for it. */
    PINHOLE_INPUT_STYLE = 4,
    /* A picture that the model looks at in its blocks, if it was opened with an IP-Adapter. There may be more than one. */
    PINHOLE_INPUT_IP = 5,
    /* The last frame of a film, for models that are given one; the first is PINHOLE_INPUT_IMAGE. */
    PINHOLE_INPUT_LAST_IMAGE = 6
};

/* How evaluations of the denoiser are skipped that would change little. */
enum {
    PINHOLE_CACHE_NONE = 0,
    /* By how much the change differs that the first block makes. */
    PINHOLE_CACHE_FIRST_BLOCK = 1,
    /* By how much the input of the first block differs, rescaled and added up. */
    PINHOLE_CACHE_TEACACHE = 2,
    /* By magnitudes that were measured once for the model. */
    PINHOLE_CACHE_MAGCACHE = 3,
    /* At fixed intervals; the prediction is extrapolated. */
    PINHOLE_CACHE_TAYLORSEER = 4
};

/* What size the pictures for PINHOLE_INPUT_REFERENCE have. */
enum {
    /* The one nearest in shape that the model was trained with. */
    PINHOLE_REFERENCE_RESIZE_AUTO = 0,
    /* Their own. */
    PINHOLE_REFERENCE_RESIZE_NONE = 1
};

/* What is made of the picture for PINHOLE_INPUT_CONTROL before it is followed. */
enum {
    /* Nothing: it shows what is to be followed. */
    PINHOLE_CONTROL_PREPROCESS_NONE = 0,
    /* Its edges, by Canny's method. */
    PINHOLE_CONTROL_PREPROCESS_CANNY = 1,
    /* What the request's mask leaves of it, for inpainting ControlNets of Stable Diffusion. */
    PINHOLE_CONTROL_PREPROCESS_INPAINT = 2
};

/* How exact attention is on the CPU. */
enum {
    /* Single precision, except in denoisers with quantized weights: whole numbers of 11 to 13 bits are faster there, and add less error
     * than those weights did. */
    PINHOLE_ATTENTION_AUTO = 0,
    /* Single precision. */
    PINHOLE_ATTENTION_EXACT = 1
};

/* What a tiny autoencoder is used for. */
enum {
    /* Previews and the pictures, and pictures that are given if it has an encoder: the other autoencoder decodes nothing. */
    PINHOLE_TINY_VAE_ALL = 0,
    /* Previews alone. */
    PINHOLE_TINY_VAE_PREVIEW = 1
};

/* What is made larger between two passes. */
enum {
    /* Latents, bilinearly. */
    PINHOLE_UPSCALE_LATENT = 0,
    /* Latents, each taken several times. */
    PINHOLE_UPSCALE_LATENT_NEAREST = 1,
    /* The picture, with Lanczos' filter. */
    PINHOLE_UPSCALE_PIXEL = 2
};

/* How the text of a prompt is read. */
enum {
    /* As it stands. */
    PINHOLE_PROMPT_PLAIN = 0,
    /* As AUTOMATIC1111's web UI reads it, for Stable Diffusion: "(word:1.2)", "(word)" and "[word]" count more or less, BREAK begins a
     * chunk, and long prompts become chunks of 75 tokens. */
    PINHOLE_PROMPT_A1111 = 1
};

/* What becomes of pictures that the model's safety checker flags. See pinhole_result_flagged. */
enum {
    /* They become black if the model has a safety checker; without one nothing is checked. */
    PINHOLE_SAFETY_MODEL = 0,
    /* Nothing is checked. */
    PINHOLE_SAFETY_OFF = 1,
    /* They become black. PINHOLE_E_OPTION without a safety checker. */
    PINHOLE_SAFETY_ON = 2,
    /* They stay as they are. PINHOLE_E_OPTION without a safety checker. */
    PINHOLE_SAFETY_REPORT = 3
};

/* A picture that a request is given. Set exactly one of `path`, `data` and `pixels`. To change a part of a photo:
 *
 *     pinhole_input photo, part;
 *     const pinhole_input *inputs[2];
 *     pinhole_input_init(&photo, sizeof photo);
 *     pinhole_input_init(&part, sizeof part);
 *     photo.path = "photo.jpg";
 *     part.use = PINHOLE_INPUT_MASK;
 *     part.path = "part.png";
 *     inputs[0] = &photo;
 *     inputs[1] = &part;
 *     request.inputs = inputs;
 *     request.input_count = 2;
 */
typedef struct pinhole_input {
    size_t struct_size;
    /* What the picture is for: PINHOLE_INPUT_... */
    int32_t use;
    /* Always 0 in this version. */
    int32_t reserved;
    /* A PNG, JPEG or WebP file. */
    const char *path;
    /* The bytes of such a file, and how many these are. */
    const void *data;
    size_t size;
    /* Pixels as PINHOLE_RGB8, row by row from the top without gaps; and how many there are across and down, 1 to 16384. */
    const uint8_t *pixels;
    int32_t width;
    int32_t height;
    /* How much a picture for PINHOLE_INPUT_STYLE counts. Init sets 1, and 0 is 1. */
    float weight;
    /* Always 0 in this version. */
    int32_t reserved_2;
} pinhole_input;

PINHOLE_API int32_t pinhole_input_init(pinhole_input *input, size_t struct_size);

/* How a ControlNet follows its picture. */
typedef struct pinhole_control {
    size_t struct_size;
    /* From which part of the steps on it works, and up to which, 0 to 1. By default 0 and 1. */
    double start;
    double end;
    /* What its share is multiplied with. By default 1. */
    float scale;
    /* What is made of the picture first: PINHOLE_CONTROL_PREPROCESS_... */
    int32_t preprocess;
    /* What kind of picture it follows, for a union ControlNet, or its number as text. Of FLUX.1: "canny", "tile", "depth", "blur",
     * "pose", "gray", "lq". Of Stable Diffusion XL: "openpose", "depth", "scribble", "canny", "normal", "segment", "tile", "repaint".
     * NULL for one that is not told. */
    const char *mode;
    /* For edges: one has a gradient above canny_high, and goes on as long as that is above canny_low. Both 0: 100 and 200. */
    float canny_low;
    float canny_high;
    /* 1 for a picture that the ControlNet of the picture before follows, too: union ControlNets of Stable Diffusion XL alone follow
     * several. It has a mode and a scale of its own; start and end are those of the first. */
    int32_t joins;
    /* Always 0 in this version. */
    int32_t reserved;
} pinhole_control;

/* Fills in the defaults. */
PINHOLE_API int32_t pinhole_control_init(pinhole_control *control, size_t struct_size);

enum {
    /* A draw from the seed's noise, as diffusers does it. */
    PINHOLE_POSTERIOR_SAMPLE = 0,
    /* The mean. */
    PINHOLE_POSTERIOR_MEAN = 1
};

/* What to draw. */
typedef struct pinhole_request {
    size_t struct_size;
    /* May be empty. NULL only with `embeddings`. */
    const char *prompt;
    /* What not to draw; has an effect with a cfg_scale above 1. NULL: the model's default. */
    const char *negative_prompt;
    /* Pixels, multiples of 16 (8 for Stable Diffusion). 0: the model's default. */
    int32_t width;
    int32_t height;
    /* Denoising steps. 0: the model's default. */
    int32_t steps;
    /* How many pictures, 1 to 64. 0: one. */
    int32_t batch;
    /* The seed of the noise, which is that of PyTorch's CPU generator. Picture i of a batch uses seed + i. */
    uint64_t seed;
    /* Guidance as an input of the model, if the model takes it. Negative: the model's default, which init sets. */
    float guidance;
    /* Classifier-free guidance with the negative prompt. 1 turns it off; a larger value takes twice the time.
     * Negative: the model's default, which init sets. */
    float cfg_scale;
    /* PINHOLE_SAMPLER_... A sampler that the model's schedule does not have is refused. */
    int32_t sampler;
    /* Tokens that T5 reads. 0: the model's default. */
    int32_t max_sequence_length;
    /* Replaces the noise of the seed: batch x channels x height/8 x width/8 numbers, the last extent fastest, and how many
     * numbers these are. NULL: noise of the seed. */
    const float *noise;
    size_t noise_count;
    /* Replaces the prompts: `prompt` and `negative_prompt` are then only written into PNG files. May be NULL. */
    const pinhole_embeddings *embeddings;
    /* Stops the request. Must live until the call returns. May be NULL. */
    pinhole_cancel *cancel;
    /* Each may be NULL. */
    pinhole_progress_fn progress;
    pinhole_warning_fn warning;
    pinhole_preview_fn preview;
    /* What the callbacks are given. */
    void *user_data;
    /* A preview after every so many steps. 0: after each. */
    int32_t preview_interval;
    /* Always 0 in this version. */
    int32_t reserved;
    /* Pictures to draw from, and how many: at most one for each PINHOLE_INPUT_... except references and
     * those for Redux and IP-Adapters, in any order. A mask needs its picture.
     * Each is read in the call. NULL: none. */
    const pinhole_input *const *inputs;
    size_t input_count;
    /* How far from the picture the result may be: the share of the steps that are taken, above 0 and up to 1. It needs a
     * picture. Negative: the model's default, which init sets. */
    float strength;
    /* Which latents the picture has, of the distribution that the autoencoder gives for it: PINHOLE_POSTERIOR_... */
    int32_t posterior;
    /* For models that are told (Stable Diffusion XL): pixels of the picture that this one is like a resized copy of. 0: as many as are
     * drawn. */
    int32_t original_width;
    int32_t original_height;
    /* For models that are told: how many pixels that copy was cut off on the left and at the top. */
    int32_t crop_left;
    int32_t crop_top;
    /* For models that change a picture: how closely the result follows it; 1 is off. Negative: the model's default, which init
     * sets. */
    float image_cfg_scale;
    /* What size the pictures have that the model looks at: PINHOLE_REFERENCE_RESIZE_... */
    int32_t reference_resize;
    /* PINHOLE_SCHEDULE_... One that the sampler cannot follow is refused. */
    int32_t schedule;
    /* The share of fresh noise in each step, 0 to 1, for DDIM and TCD. Negative, which init sets: none. */
    float eta;
    /* The levels of noise themselves, one for each step, the largest first, and how many these are. NULL: those of the
     * schedule. */
    const float *sigmas;
    size_t sigma_count;
    /* How much of the spread that guidance adds to a prediction is taken back, 0 to 1, with a cfg_scale above 1. */
    float rescale_cfg;
    /* Always 0 in this version. */
    int32_t reserved_2;
    /* How much pictures for PINHOLE_INPUT_IP count. Negative, which init sets: 1. */
    float ip_scale;
    /* Always 0 in this version. */
    int32_t reserved_3;
    /* How each ControlNet of the model follows its picture, in their order, and how many there are: as many as inputs with
     * PINHOLE_INPUT_CONTROL. NULL: with the defaults. */
    const pinhole_control *const *controls;
    size_t control_count;
    /* PINHOLE_CACHE_... One that is not defined for the model is refused. */
    int32_t cache;
    /* The larger it is, the more evaluations are skipped; for PINHOLE_CACHE_TAYLORSEER every so many are computed. 0: the one that
     * was published for the cache and the model. */
    float cache_threshold;
    /* What is made of the picture that is followed: PINHOLE_CONTROL_PREPROCESS_... */
    int32_t control_preprocess;
    /* For edges: one has a gradient above canny_high, and goes on as long as that is above canny_low. Both 0: 100 and 200. */
    float canny_low;
    float canny_high;
    /* Always 0 in this version. */
    int32_t reserved_4;
    /* A face, for a model that was opened for one: the embedding that its projector takes, or tokens, one behind the other; and how
     * many numbers these are. */
    const float *id_embedding;
    size_t id_embedding_count;
    /* What the model's tiny autoencoder is used for, if it has one: PINHOLE_TINY_VAE_... */
    int32_t tiny_vae_for;
    /* How a flow is bent towards noise, whatever the size of the picture. 0: as the model has it. */
    float shift;
    /* How the texts of prompts are read: PINHOLE_PROMPT_... */
    int32_t prompt_syntax;
    /* What becomes of pictures that the model's safety checker flags: PINHOLE_SAFETY_... */
    int32_t safety;
    /* With a refiner: from which part of the steps on it goes on, between 0 and 1; 0: 0.8. */
    float refiner_start;
    /* For a refiner: how pleasing the picture is to be, and how pleasing it is not to be; 0 or less: 6 and 2.5. */
    float aesthetic_score;
    float negative_aesthetic_score;
    /* How much larger a second pass makes the picture, across and down, 1 to 8; 0: no second pass. */
    float upscale;
    /* How far the second pass may be from the first; 0: 0.4. */
    float upscale_strength;
    /* What is made larger: PINHOLE_UPSCALE_... */
    int32_t upscale_space;
    /* Denoising steps of the second pass; 0: as many as the first. */
    int32_t upscale_steps;
    /* Not 0: ControlNets of Stable Diffusion guess: only the prompt's pass follows them, and the finest of what they say counts
     * least. */
    int32_t control_guess;
    /* For models of films: how many frames there are, one more than a multiple of 4. 0: the model's default. */
    int32_t frames;
    /* How many of them are shown in a second. 0: the model's default. */
    float fps;
    /* May be NULL. */
    pinhole_frame_fn frame;
    /* For models of two experts: classifier-free guidance of the second one, which makes the last steps. 0 or less: the model's default. */
    float cfg_scale_2;
    /* For models of two experts: below which share of all noise the second one takes over, between 0 and 1. 0: the model's default. */
    float boundary;
    /* A film to begin with, for models that are given one: a folder of pictures, a file in Y4M, or an animation in GIF, WebP or PNG. It is
     * read in the call. `strength` is how far from it the result may be. With `frames` 0 there are as many as it has. NULL: none. */
    const char *video;
    /* How exact attention is on the CPU: PINHOLE_ATTENTION_... */
    int32_t attention;
    /* How strongly `video` works in models that it says what to draw (VACE), and what is given beside it. 0: 1. */
    float guide_scale;
    /* A file for what happened when, on which thread, in Chrome's trace format. A trace that is there is replaced; of anything else,
     * PINHOLE_E_EXISTS says so. It appears whole, if the request succeeds. NULL: none. */
    const char *trace;
    /* For models that `video` says what to draw (VACE): where each of its frames is made anew, white, and where it is kept, black. A film as
     * `video`, of as many frames or of one, which is read in the call, too. NULL: everything is made anew. */
    const char *video_mask;
} pinhole_request;

PINHOLE_API int32_t pinhole_request_init(pinhole_request *request, size_t struct_size);

/* The result of a request. const. */
typedef struct pinhole_result pinhole_result;

/* Draws pictures. After any failure except PINHOLE_E_PANIC, the session is ready for the next request. */
PINHOLE_API int32_t pinhole_generate(pinhole_session *session, const pinhole_request *request, pinhole_result **out,
                                     pinhole_error **error);

typedef struct pinhole_result_info {
    size_t struct_size;
    /* The settings, with every default filled in. */
    uint64_t seed;
    int32_t width;
    int32_t height;
    int32_t steps;
    int32_t batch;
    float guidance;
    float cfg_scale;
    int32_t max_sequence_length;
    /* Always 0 in this version. */
    int32_t reserved;
    /* The most that was held on the device at once, and what was planned. */
    uint64_t peak_bytes;
    uint64_t planned_peak_bytes;
    /* Weights that were copied to the device, and weights that were used in place in the mapped file. */
    uint64_t bytes_moved;
    uint64_t bytes_mapped;
    /* Where the time went. */
    double seconds_encode;
    double seconds_denoise;
    double seconds_decode;
    /* How many images make up a film, and how many of them are shown in a second; 1 and 0 for pictures. */
    int32_t frames;
    float fps;
} pinhole_result_info;

PINHOLE_API int32_t pinhole_result_get_info(const pinhole_result *result, pinhole_result_info *info,
                                            pinhole_error **error);

/* What one of the session's devices held. */
typedef struct pinhole_result_device {
    size_t struct_size;
    /* As in pinhole_device_info. */
    char name[32];
    /* The most bytes that were allowed; 0 without a limit. */
    uint64_t limit_bytes;
    /* The most bytes that the request was planned to take, and took. */
    uint64_t planned_peak_bytes;
    uint64_t peak_bytes;
} pinhole_result_device;

/* The device at `index` among those of the session. PINHOLE_E_ARGUMENT past the end. */
PINHOLE_API int32_t pinhole_result_get_device(const pinhole_result *result, size_t index, pinhole_result_device *device,
                                              pinhole_error **error);

/* How many images there are. Of films, these are all frames of the first, then those of the second, and so on. 0 for NULL. */
PINHOLE_API size_t pinhole_result_image_count(const pinhole_result *result);

/* The image at `index`. NULL past the end and for NULL. */
PINHOLE_API const pinhole_image *pinhole_result_image(const pinhole_result *result, size_t index);

/* The latents after the last step, before the autoencoder's scale and shift are undone. `extents`, which may be NULL, becomes
 * batch, channels, height/8, width/8; the last is fastest. Of a film, each channel has all its frames, one behind the other, and they
 * count as channels. NULL for NULL. */
PINHOLE_API const float *pinhole_result_latents(const pinhole_result *result, size_t extents[4]);

/* Writes film `index` of the batch to a file, whose name's end chooses the type: .mp4 (H.264), .webp, .gif, .apng or .png, .y4m; or to a
 * folder (a name that ends in /, or a picture's name with %04d in it) as a picture for each frame. It carries the parameters that made it,
 * as an image's PNG does, except in .y4m. A film or a picture that is there is replaced; of anything else, PINHOLE_E_EXISTS says so. A
 * file appears whole or not at all; if the disk fills, it ends after the last frame that there was room for, where its type allows that,
 * and the error says so. PINHOLE_E_ARGUMENT if the images are pictures. */
PINHOLE_API int32_t pinhole_result_write_film(const pinhole_result *result, size_t index, const char *path,
                                              pinhole_error **error);

/* How many evaluations of the denoiser a step cache skipped, those of all passes together. 0 for NULL. */
PINHOLE_API size_t pinhole_result_skipped(const pinhole_result *result);

/* What the safety checker says of the image at `index`: 1 if it is flagged, 0 if not. -1 if it was not checked, past the end, and for
 * NULL. */
PINHOLE_API int32_t pinhole_result_flagged(const pinhole_result *result, size_t index);

PINHOLE_API void pinhole_result_free(pinhole_result *result);

/* Plan
 * ====
 *
 * A plan says, before anything is computed or read, what a request will have on the device and when. pinhole_generate follows
 * the same plan for the same request.
 */

/* What a request will take. const. */
typedef struct pinhole_plan pinhole_plan;

/* Plans `request` under the session's budget. If nothing fits, returns PINHOLE_E_OVER_BUDGET with the least budget that
 * works. Calls none of the callbacks. */
PINHOLE_API int32_t pinhole_plan_new(pinhole_session *session, const pinhole_request *request, pinhole_plan **out,
                                     pinhole_error **error);

typedef struct pinhole_plan_info {
    size_t struct_size;
    /* The most bytes on the device at once. */
    uint64_t peak_bytes;
    /* The most that were allowed; 0 if there is no limit. */
    uint64_t limit_bytes;
    /* Whether the weights of all components stay on the device. */
    int32_t all_resident;
    /* Always 0 in this version. */
    int32_t reserved;
    /* How many components there are. */
    size_t components;
} pinhole_plan_info;

PINHOLE_API int32_t pinhole_plan_get_info(const pinhole_plan *plan, pinhole_plan_info *info, pinhole_error **error);

/* A component of the model. Components are in the order in which they run. */
typedef struct pinhole_plan_component {
    size_t struct_size;
    /* "clip", "t5", "transformer" or "unet", "decoder"; "encoder" if the request has a picture. "tiny_decoder" and
     * "tiny_encoder" in their stead, and "preview", if the model has a tiny autoencoder. */
    char name[32];
    /* PINHOLE_PHASE_... */
    int32_t phase;
    /* How many stages it has, how many of them stream, and through how many slots. */
    int32_t stages;
    int32_t streamed_stages;
    int32_t slots;
    /* The most bytes on the device while it runs, and what they are. */
    uint64_t peak_bytes;
    uint64_t weight_bytes;
    uint64_t slot_bytes;
    uint64_t other_weight_bytes;
    uint64_t port_bytes;
    uint64_t activation_bytes;
    uint64_t scratch_bytes;
    uint64_t overhead_bytes;
    /* Weights that are used in place in the mapped file. */
    uint64_t mapped_bytes;
    /* Weights that move to the device once in a request, and in every step. */
    uint64_t moved_once_bytes;
    uint64_t moved_each_step_bytes;
    /* How often its stages run in one step, and for how many pictures of a guidance pass at once: 1, and all of them, if memory has room
     * for the whole batch. */
    int32_t parts_each_step;
    int32_t pictures_at_once;
    /* Which of the session's devices has it, from 0. What several compute together is there once for each. */
    int32_t device;
    int32_t reserved;
} pinhole_plan_component;

/* The component at `index`: all of the first device, then all of the second, and so on. PINHOLE_E_ARGUMENT past the end. */
PINHOLE_API int32_t pinhole_plan_get_component(const pinhole_plan *plan, size_t index,
                                               pinhole_plan_component *component, pinhole_error **error);

PINHOLE_API void pinhole_plan_free(pinhole_plan *plan);

/* Image
 * =====
 *
 * Images are 8-bit pictures, row by row from the top. const. An image belongs to a result, or lives until the callback that
 * received it returns.
 */

enum {
    /* Three bytes a pixel: red, green, blue. */
    PINHOLE_RGB8 = 0,
    /* Four: the same, and 255. */
    PINHOLE_RGBA8 = 1
};

/* Pixels across and down. 0 for NULL. */
PINHOLE_API int32_t pinhole_image_width(const pinhole_image *image);
PINHOLE_API int32_t pinhole_image_height(const pinhole_image *image);

/* The pixels as PINHOLE_RGB8, rows without gaps. NULL for NULL. */
PINHOLE_API const uint8_t *pinhole_image_pixels(const pinhole_image *image);

/* Copies the pixels as `format` into `pixels`, which has `size` bytes. A row begins `stride` bytes after the one before; bytes
 * between rows are not touched. A `stride` of 0 leaves no gaps. If `size` is too small, returns PINHOLE_E_ARGUMENT and writes
 * nothing. */
PINHOLE_API int32_t pinhole_image_copy(const pinhole_image *image, int32_t format, void *pixels, size_t size,
                                       size_t stride, pinhole_error **error);

/* The image as a PNG file, which carries the parameters that made it: as text for other tools, and as JSON under the keyword "pinhole".
 * Previews carry none. */
PINHOLE_API int32_t pinhole_image_encode_png(const pinhole_image *image, pinhole_buffer **png, pinhole_error **error);

/* Writes the same to a file. A picture that is there is replaced; of anything else, PINHOLE_E_EXISTS says so. The file appears whole
 * or not at all. */
PINHOLE_API int32_t pinhole_image_write_png(const pinhole_image *image, const char *path, pinhole_error **error);

/* Advanced
 * ========
 *
 * Embeddings
 * ----------
 *
 * Embeddings are encoded prompts. Any number of requests, in any session of the same model, can use them. Such requests need
 * neither the time of the text encoders nor their memory, and draw the same pictures. const.
 *
 * Embeddings carry a digest of the text encoders and their LoRAs. A session with others refuses them with
 * PINHOLE_E_OPTION, even if their numbers would fit. To know, each process reads all weights of the text encoders
 * once; it remembers the digest while the files do not change.
 */

/* Sends the prompts of `request` through the text encoders. Reads these members: prompt, negative_prompt, cfg_scale
 * (the negative prompt is encoded if it is above 1), max_sequence_length, cancel, the callbacks and user_data. */
PINHOLE_API int32_t pinhole_embeddings_new(pinhole_session *session, const pinhole_request *request,
                                           pinhole_embeddings **out, pinhole_error **error);

PINHOLE_API void pinhole_embeddings_free(pinhole_embeddings *embeddings);

/* Previews
 * --------
 *
 * The callback `preview` of a request receives pictures of an eighth of the size in both directions: the latents so far, turned
 * into colours by a linear fit of the model's own autoencoder. A preview is good enough to judge a request by. It takes almost no
 * time, and no memory beyond the plan. The fit is made once for each session, in the first request
 * that asks for previews, by decoding a small picture.
 *
 * A model that was opened with a tiny autoencoder has previews of the picture's own size, made by that. They take the time and the
 * memory of its small network: the plan names it "preview", and the phase in which it runs has room for both.
 */

/* Convert
 * -------
 *
 * Conversion turns a model in any layout that pinhole reads into one GGUF file.
 */

typedef struct pinhole_convert_options {
    size_t struct_size;
    /* What to convert: `base`, loose files, or both; no LoRAs. Must not be NULL, and must live until the call returns. */
    const pinhole_files *source;
    /* The file to write; it appears whole or not at all. */
    const char *output;
    /* The type of most matrices: "q8_0", "q4_k_s", "q4_k_s,text_encoder_2=q8_0", as the command line takes it. */
    const char *type;
    /* Only this component, under the names that other tools read: "transformer" or "text_encoder_2". NULL: a bundle with
     * everything inside. */
    const char *component;
    /* Formats of single matrices, as in "single_blocks.*.linear1=q5_k", and how many; the last that matches decides. */
    const char *const *tensors;
    size_t tensor_count;
    /* 1: quantize again weights that the source has quantized to less than 8 bits. */
    int32_t allow_requantize;
    /* 1: accept weights that are NaN, infinite, or too large for the format. */
    int32_t allow_nonfinite;
    /* 1: replace `output` if it exists. */
    int32_t overwrite;
    /* Threads that convert, 1 to 512. 0: one for each core. */
    int32_t threads;
    /* As in a request. */
    pinhole_cancel *cancel;
    pinhole_progress_fn progress;
    pinhole_warning_fn warning;
    void *user_data;
} pinhole_convert_options;

PINHOLE_API int32_t pinhole_convert_options_init(pinhole_convert_options *options, size_t struct_size);

PINHOLE_API int32_t pinhole_convert(const pinhole_convert_options *options, pinhole_error **error);

/* Upscale
 * -------
 *
 * A network that was trained for that makes a picture larger. No model is needed.
 */

typedef struct pinhole_upscale_options {
    size_t struct_size;
    /* Real-ESRGAN's or ESRGAN's network: safetensors, PyTorch's own file, or GGUF. */
    const char *model;
    /* The picture; its `use` and `weight` do not count. Must not be NULL, and must live until the call returns. */
    const pinhole_input *input;
    /* The result is resized to so many times the picture's size. 0: what the network gives. */
    double outscale;
    /* As in pinhole_session_options, with the same defaults. */
    const char *device;
    uint64_t vram;
    uint64_t host_memory;
    int32_t offload;
    int32_t threads;
    /* As in a request. */
    pinhole_cancel *cancel;
    pinhole_progress_fn progress;
    pinhole_warning_fn warning;
    void *user_data;
} pinhole_upscale_options;

PINHOLE_API int32_t pinhole_upscale_options_init(pinhole_upscale_options *options, size_t struct_size);

/* Makes a picture larger. Free the image with pinhole_image_free. */
PINHOLE_API int32_t pinhole_upscale(const pinhole_upscale_options *options, pinhole_image **out, pinhole_error **error);

/* Frees an image of pinhole_upscale. Images of a result, and those that callbacks receive, are not the caller's to free. */
PINHOLE_API void pinhole_image_free(pinhole_image *image);

/* Log
 * ---
 *
 * The log has the messages of ggml, of drivers and of panics. No program needs it: failures are errors, and advice comes as
 * warnings of a request. The log callback is the only setting that holds for the whole process.
 */

enum {
    PINHOLE_LOG_DEBUG = 1,
    PINHOLE_LOG_INFO = 2,
    PINHOLE_LOG_WARNING = 3,
    PINHOLE_LOG_ERROR = 4
};

/* Called from any thread, possibly from several at once. The text has no line end and lives until the callback returns. The
 * callback must not call this library. */
typedef void (*pinhole_log_fn)(int32_t level, const char *message, void *user_data);

/* Sets the callback for messages of `level` and above. NULL, the initial value, turns the log off. When this returns, the
 * previous callback is not running on any thread, and will not be called again. */
PINHOLE_API void pinhole_set_log(int32_t level, pinhole_log_fn log, void *user_data);

#ifdef __cplusplus
}
#endif

#endif /* PINHOLE_H */
