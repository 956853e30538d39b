"""The wheel holds a compiled library and no module of Python's: one wheel for every Python on a platform.

`scripts/wheel` puts the library and its header in place, and says which platform it is for.
"""

import os
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.dist import Distribution

HERE = Path(__file__).parent


def version() -> str:
    """The library's, as its header has it."""
    header = (HERE / "src/pinhole/pinhole.h").read_text(encoding="utf-8")
    parts = (re.search(rf"#define PINHOLE_VERSION_{part} (\d+)", header) for part in ("MAJOR", "MINOR", "PATCH"))
    return ".".join(part.group(1) for part in parts if part)


class Wheel(bdist_wheel):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", os.environ["PINHOLE_WHEEL_PLATFORM"]


class Binary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(version=version(), cmdclass={"bdist_wheel": Wheel}, distclass=Binary)
