"""pinhole from Python, through ctypes and nothing else: python pinhole.py PROMPT OUT.png [SEED [STRENGTH IMAGE [MASK]]]

The library is found by its soname; PINHOLE_LIBRARY names another file.
"""

import ctypes as c
import os
import sys

lib = c.CDLL(os.environ.get("PINHOLE_LIBRARY", "libpinhole.so.0"))


class Request(c.Structure):
    """pinhole_request, member by member as in pinhole.h."""

    _fields_ = [
        ("struct_size", c.c_size_t), ("prompt", c.c_char_p), ("negative_prompt", c.c_char_p),
        ("width", c.c_int32), ("height", c.c_int32), ("steps", c.c_int32), ("batch", c.c_int32),
        ("seed", c.c_uint64), ("guidance", c.c_float), ("cfg_scale", c.c_float), ("sampler", c.c_int32),
        ("max_sequence_length", c.c_int32), ("noise", c.c_void_p), ("noise_count", c.c_size_t),
        ("embeddings", c.c_void_p), ("cancel", c.c_void_p), ("progress", c.c_void_p), ("warning", c.c_void_p),
        ("preview", c.c_void_p), ("user_data", c.c_void_p), ("preview_interval", c.c_int32), ("reserved", c.c_int32),
        ("inputs", c.c_void_p), ("input_count", c.c_size_t), ("strength", c.c_float), ("posterior", c.c_int32),
        ("original_width", c.c_int32), ("original_height", c.c_int32), ("crop_left", c.c_int32), ("crop_top", c.c_int32),
        ("image_cfg_scale", c.c_float), ("reference_resize", c.c_int32), ("schedule", c.c_int32), ("eta", c.c_float),
        ("sigmas", c.c_void_p), ("sigma_count", c.c_size_t), ("rescale_cfg", c.c_float), ("reserved_2", c.c_int32),
        ("ip_scale", c.c_float), ("reserved_3", c.c_int32), ("controls", c.c_void_p), ("control_count", c.c_size_t),
    ]  # fmt: skip


class Input(c.Structure):
    """pinhole_input; `use` is a number of USES."""

    _fields_ = [
        ("struct_size", c.c_size_t), ("use", c.c_int32), ("reserved", c.c_int32), ("path", c.c_char_p),
        ("data", c.c_void_p), ("size", c.c_size_t), ("pixels", c.c_void_p), ("width", c.c_int32), ("height", c.c_int32),
        ("weight", c.c_float), ("reserved_2", c.c_int32),
    ]  # fmt: skip


USES = {"image": 0, "mask": 1}


for name in ("pinhole_error_message", "pinhole_error_hint", "pinhole_status_name"):
    getattr(lib, name).restype = c.c_char_p
lib.pinhole_result_image.restype = c.c_void_p
lib.pinhole_image_pixels.restype = c.c_void_p


class PinholeError(Exception):
    """What the library says, with its hint."""


class Handle:
    """A pointer that is freed by the function of its type."""

    def __init__(self, kind, make, *arguments):
        self.pointer, self.kind = c.c_void_p(), kind
        check(make, *arguments, c.byref(self.pointer))

    @property
    def _as_parameter_(self):
        return self.pointer

    def __del__(self):
        getattr(lib, f"pinhole_{self.kind}_free")(self.pointer)


def check(function, *arguments):
    """Calls `function`, whose last argument is an error; raises what it says."""
    error = c.c_void_p()
    status = function(*arguments, c.byref(error))
    if status:
        message, hint = (f(error).decode() for f in (lib.pinhole_error_message, lib.pinhole_error_hint))
        name = lib.pinhole_status_name(status).decode()
        lib.pinhole_error_free(error)
        raise PinholeError(f"{name}: {message}" + (f"\nhint: {hint}" if hint else ""))


def read_input(use, path):
    """An input for `use`, a key of USES: the file at `path`."""
    picture = Input()
    lib.pinhole_input_init(c.byref(picture), c.c_size_t(c.sizeof(picture)))
    picture.use, picture.path = USES[use], path.encode()
    return picture


def generate(session, prompt, path, pictures={}, **options):
    """Draws `prompt` into the PNG file `path`; returns (width, height, bytes of RGB).

    `pictures` has the files to draw from: {"image": "photo.jpg", "mask": "part.png"}.
    """
    request = Request()
    lib.pinhole_request_init(c.byref(request), c.c_size_t(c.sizeof(request)))
    request.prompt = prompt.encode()
    inputs = [read_input(use, file) for use, file in pictures.items()]
    pointers = (c.c_void_p * len(inputs))(*map(c.addressof, inputs))
    request.inputs, request.input_count = c.addressof(pointers), len(inputs)
    for name, value in options.items():
        setattr(request, name, value)
    result = Handle("result", lib.pinhole_generate, session, c.byref(request))
    image = c.c_void_p(lib.pinhole_result_image(result, c.c_size_t(0)))
    check(lib.pinhole_image_write_png, image, path.encode())
    width, height = lib.pinhole_image_width(image), lib.pinhole_image_height(image)
    return width, height, c.string_at(lib.pinhole_image_pixels(image), width * height * 3)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        model = Handle("model", lib.pinhole_model_open_builtin)
        session = Handle("session", lib.pinhole_session_new, model, None)
        options = {"seed": int(sys.argv[3]) if len(sys.argv) > 3 else 0}
        if len(sys.argv) > 5:
            options["strength"] = float(sys.argv[4])
            options["pictures"] = dict(zip(USES, sys.argv[5:]))
        width, height, pixels = generate(session, sys.argv[1], sys.argv[2], **options)
    except PinholeError as error:
        sys.exit(str(error))
    print(f"{sys.argv[2]}: {width}x{height}, {len(set(zip(*[iter(pixels)] * 3)))} colours")
