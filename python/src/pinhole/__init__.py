"""Diffusion models through a 4 GB pinhole.

    import pinhole

    model = pinhole.Model.mini()  # or pinhole.Model.open("flux1-dev-q4_k_s.gguf")
    session = model.session(vram="4G")
    result = session.generate("a red heart", seed=1)
    result.save("heart.png")
    pixels = result.images[0]  # numpy, uint8, [height, width, 3]

Names and defaults are those of the command line, whose documents say more.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._library import Cancelled, Error, Kept, call, ffi, filled, lib, made, options, text

__all__ = [
    "Cancelled",
    "Device",
    "Error",
    "Held",
    "Info",
    "Model",
    "Plan",
    "Progress",
    "Result",
    "Session",
    "devices",
    "version",
]

Pixels: TypeAlias = NDArray[np.uint8]
"""A picture: uint8, [height, width, 3], red, green, blue."""

Picture: TypeAlias = Pixels | bytes | str | os.PathLike[str]
"""A picture that is given: pixels, or a PNG, JPEG or WebP file or its bytes."""

Offload: TypeAlias = Literal["auto", "none", "model", "sequential"]

version: str = text(lib.pinhole_version_text())
"""The library's version."""

_PHASES = {
    value: name.removeprefix("PINHOLE_PHASE_").lower()
    for name, value in ((name, getattr(lib, name)) for name in dir(lib))
    if name.startswith("PINHOLE_PHASE_")
}


@dataclass(frozen=True)
class Device:
    """Something to compute on."""

    name: str
    description: str
    is_default: bool
    memory_free: int
    memory_total: int


def devices() -> list[Device]:
    """What there is to compute on."""
    count = ffi.new("size_t *")
    call(lib.pinhole_device_count, count)
    found = []
    for index in range(count[0]):
        info = filled("pinhole_device_info", lambda *arguments, index=index: lib.pinhole_device_get(index, *arguments))
        found.append(
            Device(text(info.name), text(info.description), bool(info.is_default), info.memory_free, info.memory_total)
        )
    return found


@dataclass(frozen=True)
class Info:
    """What a model is, and the defaults of its requests."""

    architecture: str
    width: int
    height: int
    steps: int
    guidance: float
    cfg_scale: float
    file_size: int
    parameters: int


@dataclass(frozen=True)
class Progress:
    """How far a request is."""

    phase: str
    """"encode", "denoise", "decode", ..."""
    step: int
    steps: int
    stage: int
    stages: int
    bytes_moved: int
    seconds: float
    seconds_left: float | None
    """Until the phase ends; `None` if that is not known yet."""


@dataclass(frozen=True)
class Plan:
    """What a request takes on the device."""

    peak_bytes: int
    limit_bytes: int | None
    all_resident: bool


@dataclass(frozen=True)
class Held:
    """What one of a session's devices held in a request."""

    device: str
    limit_bytes: int | None
    planned_peak_bytes: int
    peak_bytes: int


def _bytes(size: int | str | None) -> int:
    """`4G`, `3500M`, `1.5G` or bytes; 0, which is the default, for `None`."""
    if size is None or isinstance(size, int):
        return size or 0
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGTP]?)(?:i?B)?\s*", size, flags=re.IGNORECASE)
    if found is None:
        raise ValueError(f"expected a size as 4G, 3500M or a number of bytes, found {size!r}")
    number, unit = found.groups()
    return int(float(number) * 1024 ** " KMGTP".index(unit.upper() or " "))


class Model:
    """Weights, tokenizers, defaults. Nothing is read before it is needed."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @staticmethod
    def open(path: str | os.PathLike[str], *, loras: Sequence[tuple[str | os.PathLike[str], float]] = ()) -> "Model":
        """Opens a bundle, a diffusers directory, a file of another tool, or a folder with such files; `loras` are files with the
        strength of each."""
        kept, files = Kept(), options("pinhole_files")
        files.base = kept.text(path)
        files.loras = kept.array("const char *", [kept.text(lora) for lora, _ in loras])
        files.lora_strengths = kept.array("float", [strength for _, strength in loras])
        files.lora_count = len(loras)
        return Model(made("pinhole_model", lib.pinhole_model_open_files, files))

    @staticmethod
    def mini() -> "Model":
        """The model inside the library, which draws coloured shapes."""
        return Model(made("pinhole_model", lib.pinhole_model_open_builtin))

    @property
    def info(self) -> Info:
        """What it is."""
        info = filled("pinhole_model_info", lambda *arguments: lib.pinhole_model_get_info(self._handle, *arguments))
        return Info(
            text(info.architecture),
            info.width,
            info.height,
            info.steps,
            info.guidance,
            info.cfg_scale,
            info.file_size,
            info.parameters,
        )

    def session(
        self,
        *,
        device: str | Sequence[str] | None = None,
        vram: int | str | Sequence[int | str | None] | None = None,
        devices_by: str | None = None,
        offload: Offload = "auto",
        threads: int = 0,
        host_memory: int | str | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
    ) -> "Session":
        """A device with this model, under a ceiling of memory that is never exceeded.

        Several devices compute together: `device` is a list of names then, and `vram` one size for each of them or a list of as many.
        `devices_by` says what they may have among them: `"passes"`, `"tokens"`, `"stages"`, several of these with commas, or `"none"`.
        """
        kept, wanted = Kept(), options("pinhole_session_options")
        if device is None or isinstance(device, str):
            wanted.device, count = kept.text(device), 1
        elif not device:
            raise ValueError("expected the name of a device, or several, found none")
        else:
            wanted.devices, count = kept.array("const char *", [kept.text(name) for name in device]), len(device)
            wanted.device_count = count
        if vram is None or isinstance(vram, (int, str)):
            wanted.vram = _bytes(vram)
        elif len(vram) != count:
            raise ValueError(f"expected one size, or one for each of {count} devices, found {len(vram)} sizes")
        elif isinstance(device, str) or device is None:
            wanted.vram = _bytes(vram[0])
        else:
            wanted.device_vram = kept.array("uint64_t", [_bytes(size) for size in vram])
        wanted.devices_by = kept.text(devices_by)
        wanted.host_memory = _bytes(host_memory)
        wanted.offload = getattr(lib, f"PINHOLE_OFFLOAD_{offload.upper()}")
        wanted.threads = threads
        wanted.prompt_cache = kept.text(prompt_cache)
        return Session(made("pinhole_session", lib.pinhole_session_new, self._handle, wanted), count)


class _Callbacks:
    """The callbacks of one request. What they raise ends the request, and is raised again when it has ended."""

    def __init__(self, request: Any, on_progress: Any, on_warning: Any, on_preview: Any) -> None:
        self.raised: BaseException | None = None
        self._alive: list[Any] = []
        if on_progress:
            request.progress = self._new("pinhole_progress_fn", lambda progress, _: on_progress(_progress(progress)))
        if on_warning:
            request.warning = self._new("pinhole_warning_fn", lambda message, _: on_warning(text(message)))
        if on_preview:
            request.preview = self._new(
                "pinhole_preview_fn", lambda image, index, step, steps, _: on_preview(_pixels(image), index, step, steps)
            )

    def _new(self, kind: str, function: Callable[..., Any]) -> Any:
        def guarded(*arguments: Any) -> int:
            try:
                # False, and nothing else, asks for a stop: a callback that returns nothing goes on.
                return int(function(*arguments) is False)
            except BaseException as error:  # noqa: BLE001 - raised again by `generate`
                self.raised = error
                return 1

        self._alive.append(ffi.callback(kind, guarded))
        return self._alive[-1]


def _progress(progress: Any) -> Progress:
    left = progress.seconds_left
    return Progress(
        _PHASES.get(progress.phase, "other"),
        progress.step,
        progress.steps,
        progress.stage,
        progress.stages,
        progress.bytes_moved,
        progress.seconds,
        left if left >= 0 else None,
    )


def _pixels(image: Any) -> Pixels:
    """A copy of a picture."""
    height, width = lib.pinhole_image_height(image), lib.pinhole_image_width(image)
    raw = ffi.buffer(lib.pinhole_image_pixels(image), height * width * 3)
    return np.frombuffer(raw, dtype=np.uint8).reshape(height, width, 3).copy()


class Session:
    """A model on a device. One request at a time."""

    def __init__(self, handle: Any, device_count: int) -> None:
        self._handle = handle
        self._device_count = device_count

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        width: int = 0,
        height: int = 0,
        steps: int = 0,
        batch: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        cfg_scale: float | None = None,
        image: Picture | None = None,
        mask: Picture | None = None,
        strength: float | None = None,
        control_images: Sequence[Picture] = (),
        references: Sequence[Picture] = (),
        on_progress: Callable[[Progress], object] | None = None,
        on_warning: Callable[[str], object] | None = None,
        on_preview: Callable[[Pixels, int, int, int], object] | None = None,
    ) -> "Result":
        """Draws. What is 0 or `None` is the model's default.

        Callbacks are called on this thread; one that returns `False` stops the request, which raises `Cancelled`. `on_preview` is given
        a picture so far, which picture of the batch it is, and after how many of how many steps.
        """
        kept = Kept()
        inputs = [(image, "IMAGE"), (mask, "MASK")]
        inputs += [(picture, "CONTROL") for picture in control_images]
        inputs += [(picture, "REFERENCE") for picture in references]
        request = _request(kept, prompt, negative_prompt, inputs)
        request.width, request.height, request.steps, request.batch = width, height, steps, batch
        request.seed = seed
        for name, value in (("guidance", guidance), ("cfg_scale", cfg_scale), ("strength", strength)):
            if value is not None:
                setattr(request, name, value)
        callbacks = _Callbacks(request, on_progress, on_warning, on_preview)
        try:
            return Result(made("pinhole_result", lib.pinhole_generate, self._handle, request), self._device_count)
        except Cancelled:
            if callbacks.raised is not None:
                raise callbacks.raised from None
            raise

    def plan(self, *, width: int = 0, height: int = 0, steps: int = 0, batch: int = 1) -> Plan:
        """What a request of this size takes on the device. Computes nothing."""
        request = _request(Kept(), "", None, [])
        request.width, request.height, request.steps, request.batch = width, height, steps, batch
        plan = made("pinhole_plan", lib.pinhole_plan_new, self._handle, request)
        info = filled("pinhole_plan_info", lambda *arguments: lib.pinhole_plan_get_info(plan, *arguments))
        return Plan(info.peak_bytes, info.limit_bytes or None, bool(info.all_resident))


def _request(kept: Kept, prompt: str, negative: str | None, pictures: list[tuple[Picture | None, str]]) -> Any:
    request = options("pinhole_request")
    request.prompt, request.negative_prompt = kept.text(prompt), kept.text(negative)
    inputs = [_input(kept, picture, use) for picture, use in pictures if picture is not None]
    request.inputs = kept.array("const pinhole_input *", inputs)
    request.input_count = len(inputs)
    kept.parts.append(request)
    return request


def _input(kept: Kept, picture: Picture, use: str) -> Any:
    given = options("pinhole_input")
    given.use = getattr(lib, f"PINHOLE_INPUT_{use}")
    if isinstance(picture, bytes):
        given.data, given.size = kept.buffer("uint8_t", picture), len(picture)
    elif isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"expected uint8 pixels [height, width, 3], found {picture.dtype} {list(picture.shape)}")
        pixels = np.ascontiguousarray(picture)
        given.pixels = kept.buffer("uint8_t", pixels)
        given.height, given.width = pixels.shape[:2]
    else:
        given.path = kept.text(picture)
    kept.parts.append(given)
    return given


class Result:
    """What was drawn."""

    def __init__(self, handle: Any, device_count: int) -> None:
        self._handle, self._device_count = handle, device_count
        count = lib.pinhole_result_image_count(handle)
        self.images: list[Pixels] = [_pixels(lib.pinhole_result_image(handle, index)) for index in range(count)]
        """The pictures; of films, all frames of the first, then those of the second."""
        info = filled("pinhole_result_info", lambda *arguments: lib.pinhole_result_get_info(handle, *arguments))
        self.seed: int = info.seed
        self.peak_bytes: int = info.peak_bytes
        """The most that was held on the device at once; of several, on the first."""
        self.seconds: dict[str, float] = {
            "encode": info.seconds_encode,
            "denoise": info.seconds_denoise,
            "decode": info.seconds_decode,
        }

    @property
    def devices(self) -> list[Held]:
        """What each of the session's devices was planned to hold, and held."""
        found = []
        for index in range(self._device_count):
            held = filled(
                "pinhole_result_device",
                lambda *arguments, index=index: lib.pinhole_result_get_device(self._handle, index, *arguments),
            )
            found.append(Held(text(held.name), held.limit_bytes or None, held.planned_peak_bytes, held.peak_bytes))
        return found

    @property
    def latents(self) -> NDArray[np.float32]:
        """After the last step: [batch, channels, height / 8, width / 8]."""
        extents = ffi.new("size_t[4]")
        numbers = lib.pinhole_result_latents(self._handle, extents)
        shape = tuple(extents)
        raw = ffi.buffer(numbers, 4 * int(np.prod(shape)))
        return np.frombuffer(raw, dtype=np.float32).reshape(shape).copy()

    def save(self, path: str | os.PathLike[str], index: int = 0) -> Path:
        """Writes picture `index` as PNG, with the parameters that made it."""
        if not 0 <= index < len(self.images):
            raise IndexError(f"picture {index} of {len(self.images)}")
        kept = Kept()
        call(lib.pinhole_image_write_png, lib.pinhole_result_image(self._handle, index), kept.text(path))
        return Path(path)
