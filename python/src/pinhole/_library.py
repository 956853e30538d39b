"""The C library, as its own header declares it."""

import os
import re
from pathlib import Path
from typing import Any

from cffi import FFI

HERE = Path(__file__).parent


def declarations(header: str) -> str:
    """What of the header is C and nothing for the preprocessor: cffi has none."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = re.sub(r"\\\n", " ", text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("PINHOLE_API ", "")
    # Between the braces of extern "C", which only C++ sees.
    return re.sub(r'extern "C" \{(.*)\}', r"\1", text, flags=re.DOTALL)


ffi: Any = FFI()
ffi.cdef(declarations((HERE / "pinhole.h").read_text(encoding="utf-8")))
# Another build of the library, for those who work on it.
lib: Any = ffi.dlopen(os.environ.get("PINHOLE_LIBRARY", str(HERE / "libpinhole.so")))


def text(pointer: Any) -> str:
    """A text of the library's; its own paths may hold what is no Unicode."""
    found: bytes = ffi.string(pointer)
    return found.decode("utf-8", "replace")


class Error(Exception):
    """What the library refused, or what failed.

    `code` is the number of a `PINHOLE_E_...` of pinhole.h, `name` that name, and `hint` says what to do, or is empty.
    """

    def __init__(self, code: int, message: str, hint: str) -> None:
        super().__init__(f"{message}\nhint: {hint}" if hint else message)
        self.code = code
        self.name = text(lib.pinhole_status_name(code))
        self.message = message
        self.hint = hint


class Cancelled(Error):
    """A callback asked for a stop."""


def call(function: Any, *arguments: Any) -> None:
    """Calls what returns a status, and raises what it says."""
    error = ffi.new("pinhole_error **")
    status = function(*arguments, error)
    if status == lib.PINHOLE_OK:
        return
    message, hint = (text(get(error[0])) for get in (lib.pinhole_error_message, lib.pinhole_error_hint))
    lib.pinhole_error_free(error[0])
    kind = Cancelled if status == lib.PINHOLE_E_CANCELLED else Error
    raise kind(status, message, hint)


def made(name: str, function: Any, *arguments: Any) -> Any:
    """A handle of type `name` that a function makes; it is freed with the last reference to it."""
    out = ffi.new(f"{name} **")
    call(function, *arguments, out)
    return ffi.gc(out[0], getattr(lib, f"{name}_free"))


def options(name: str) -> Any:
    """A struct of options with the defaults."""
    struct = ffi.new(f"{name} *")
    if getattr(lib, f"{name}_init")(struct, ffi.sizeof(name)) != lib.PINHOLE_OK:
        raise RuntimeError(f"{name}: the library is older than this package")
    return struct


def filled(name: str, function: Any, *arguments: Any) -> Any:
    """A struct that the library fills in."""
    struct = ffi.new(f"{name} *")
    struct.struct_size = ffi.sizeof(name)
    call(function, *arguments, struct)
    return struct


class Kept:
    """What a struct points to, kept until the call is over."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def text(self, value: str | os.PathLike[str] | None) -> Any:
        """A C string; `NULL` for `None`."""
        if value is None:
            return ffi.NULL
        self.parts.append(ffi.new("char[]", os.fspath(value).encode()))
        return self.parts[-1]

    def array(self, kind: str, values: list[Any]) -> Any:
        """An array of `kind`; `NULL` for none."""
        if not values:
            return ffi.NULL
        self.parts.append(ffi.new(f"{kind}[]", values))
        return self.parts[-1]

    def buffer(self, kind: str, array: Any) -> Any:
        """The memory of a numpy array, as it lies."""
        self.parts.append(array)
        return ffi.cast(f"const {kind} *", ffi.from_buffer(array))
