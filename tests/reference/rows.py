"""Decodes number formats with the package `gguf`, for tests/parts/rows.rs.

    rows.py [--check]

`tests/goldens/rows.gguf` is pinhole's: every format that it writes. This script writes `blocks.gguf` beside it, with random
blocks of every format that the package decodes, those included that need an importance matrix to be written, and records in
`rows.json`, for each tensor of both files, the SHA-256 of its decoded float32 numbers and the first of them.
"""

import argparse
import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import _type_traits

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
FORMAT = 1
# Blocks of each format in blocks.gguf.
BLOCKS = 12
SEED = 20261125


def decoded(tensor) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def entry(tensor) -> dict:
    """What is recorded of a tensor."""
    data = np.ascontiguousarray(decoded(tensor), dtype="<f4")
    return {"sha256": hashlib.sha256(data.tobytes()).hexdigest(), "first": [float(x) for x in data.reshape(-1)[:4]]}


def random_blocks(rng, kind) -> np.ndarray:
    """Blocks of random bytes whose numbers are all finite, one a row."""
    _, size = GGML_QUANT_SIZES[kind]
    with np.errstate(all="ignore"):
        blocks = rng.integers(0, 256, size=(64 * BLOCKS, size), dtype=np.uint8)
        finite = np.isfinite(gguf.dequantize(blocks, kind).astype(np.float32)).all(axis=-1)
    chosen = blocks[finite][:BLOCKS]
    assert len(chosen) == BLOCKS, kind
    return chosen


def write_blocks(path: Path) -> list[str]:
    rng = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(path, "blocks")
    known = sorted(_type_traits, key=int)
    for kind in known:
        writer.add_tensor(f"{kind.name.lower()}.blocks", random_blocks(rng, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [kind.name for kind in known]


def record(name: str) -> dict:
    return {tensor.name: entry(tensor) for tensor in gguf.GGUFReader(GOLDENS / f"{name}.gguf").tensors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    known = [kind.name for kind in sorted(_type_traits, key=int)] if check else write_blocks(GOLDENS / "blocks.gguf")
    golden = {"format": FORMAT, "made_by": "tests/reference/rows.py", "known": known}
    golden |= {name: record(name) for name in ("rows", "blocks")}
    path = GOLDENS / "rows.json"
    if check:
        assert json.loads(path.read_text()) == golden, "other numbers than were recorded"
        print("equal")
        return
    lines = [f'"{key}": {json.dumps(golden[key])}' for key in ("format", "made_by", "known")]
    for name in ("rows", "blocks"):
        tensors = [f"    {json.dumps(tensor)}: {json.dumps(found)}" for tensor, found in golden[name].items()]
        lines.append(f'"{name}": {{\n' + ",\n".join(tensors) + "\n  }")
    path.write_text("{\n  " + ",\n  ".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
