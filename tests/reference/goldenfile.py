"""Golden files: `NAME.json`, a header to read, beside `NAME.safetensors`, the numbers."""

import json
import platform
from pathlib import Path

import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file

# Raised when the meaning of a key or tensor changes; tests/support/golden.rs refuses other numbers.
FORMAT = 1
DIRECTORY = Path(__file__).resolve().parent.parent / "goldens"
# A picture's numbers may round the other way on another processor; latents gather each step's rounding.
NMSE_LIMIT = 1e-9


def header(name: str, body: dict) -> dict:
    """A complete header: what made the file, then `body`."""
    versions = {m.__name__: m.__version__.split("+")[0] for m in (torch, diffusers, transformers, tokenizers, np)}
    versions["python"] = platform.python_version()
    made = {"format": FORMAT, "name": name, "made_by": "tests/reference/record.py", "versions": versions}
    return json.loads(json.dumps(made | body))


def dump(value, depth: int = 0) -> str:
    """JSON with one line for each member, and one for whole objects and lists of plain values."""
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    flat = not any(isinstance(v, dict) for v in nested) and not (isinstance(value, dict) and depth < 3 and "name" not in value)
    if not nested or flat:
        return json.dumps(value, ensure_ascii=False)
    pad, end = "\n" + "  " * (depth + 1), "\n" + "  " * depth
    if isinstance(value, dict):
        return "{" + ",".join(f"{pad}{json.dumps(k)}: {dump(v, depth + 1)}" for k, v in value.items()) + end + "}"
    return "[" + ",".join(pad + dump(v, depth + 1) for v in value) + end + "]"


def write(name: str, body: dict, tensors: dict[str, np.ndarray]) -> None:
    """Writes both files of a golden."""
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / f"{name}.json").write_text(dump(header(name, body)) + "\n", encoding="utf-8")
    if tensors:
        file = DIRECTORY / f"{name}.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, file)
        file.chmod(0o644)


def nmse(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean square of the difference over the mean square of `wanted`."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    return float(np.square(found - wanted).mean() / np.square(wanted).mean())


def tensor_difference(found: np.ndarray, wanted: np.ndarray) -> str | None:
    """What is wrong with a tensor, or None."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"is {found.dtype}{list(found.shape)}, committed {wanted.dtype}{list(wanted.shape)}"
    if wanted.dtype == np.uint8:
        worst = int(np.abs(found.astype(int) - wanted.astype(int)).max())
        return f"differs by up to {worst} of 255" if worst > 1 else None
    if wanted.dtype.kind == "i":
        return None if np.array_equal(found, wanted) else "differs"
    error = nmse(found, wanted)
    return f"nmse {error:.1e}" if not error <= NMSE_LIMIT else None


def compare(name: str, body: dict, tensors: dict[str, np.ndarray]) -> list[str]:
    """How a golden made now differs from the committed one: one line each, none where they agree."""
    committed = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    made = header(name, body)
    found = [f"{name}: made with {v} {made['versions'][v]}, committed with {committed['versions'][v]}"
             for v in committed["versions"] if v != "python" and committed["versions"][v] != made["versions"][v]]
    found += [f"{name}.json: {key} differs" for key in sorted(committed.keys() | made.keys())
              if key != "versions" and committed.get(key) != made.get(key)]
    wanted = load_file(DIRECTORY / f"{name}.safetensors") if tensors else {}
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in wanted or key not in tensors:
            found.append(f"{name}: {key} is missing {'here' if key in wanted else 'in the committed file'}")
        elif difference := tensor_difference(tensors[key], wanted[key]):
            found.append(f"{name}: {key} {difference}")
    return found
