"""Writes files with torch.save, as people's are and as no one's should be, and what the good ones hold.

    python pickles.py            writes tests/goldens/pickles
    python pickles.py --check    compares what the committed files hold with what would be written
"""

import argparse
import os
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

DIRECTORY = Path(__file__).resolve().parents[1] / "goldens" / "pickles"

FORMATS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


class Runs:
    """What is called if a file with it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def numbers(*extents: int, first: int = 0) -> torch.Tensor:
    return (torch.arange(torch.Size(extents).numel(), dtype=torch.float32) + first).reshape(extents) / 8


def good() -> dict[str, tuple[object, dict, dict]]:
    """By file name: what is saved, how, and its tensors by the names that they should have."""
    files = {}
    projector = {"latents": numbers(1, 2, 3), "layers.0.1.3.weight": numbers(4, 2, first=5)}
    adapter = {"1.to_k_ip.weight": numbers(2, 2, first=9).half()}
    flat = {f"image_proj.{name}": tensor for name, tensor in projector.items()} | {f"ip_adapter.{name}": tensor for name, tensor in adapter.items()}
    files["nested.bin"] = ({"image_proj": projector, "ip_adapter": adapter}, {}, flat)

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    state = module.state_dict()
    optimizer = {"state": {0: {"exp_avg": numbers(2, 3), "step": 7}}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}
    files["checkpoint.ckpt"] = ({"epoch": 3, "global_step": 2**40, "loss": 0.25, "state_dict": state, "optimizer_states": [optimizer]}, {}, dict(state))
    files["module.pt"] = (state, {}, dict(state))
    files["parameters.pth"] = (OrderedDict(module.named_parameters()), {}, {name: value.detach() for name, value in module.named_parameters()})

    formats = {str(dtype).removeprefix("torch."): numbers(3, 5).to(dtype) for dtype in FORMATS}
    formats |= {"bool": torch.tensor([True, False, True]), "scalar": torch.tensor(4.0)}
    files["formats.pt"] = (formats | {"empty": torch.zeros(0, 4), "complex": torch.zeros(2, dtype=torch.complex64)}, {}, formats)

    whole = numbers(4, 6)
    kernel = numbers(2, 3, 2, 2).to(memory_format=torch.channels_last)
    views = {"whole": whole, "transposed": whole.T, "rows": whole[1:3], "columns": whole[:, 2:5], "twice": whole, "kernel": kernel, "one": whole[:1].T}
    files["views.pt"] = (views, {}, {name: value.contiguous().clone() for name, value in views.items()})

    older = {"_use_new_zipfile_serialization": False}
    files["older.pt"] = (views, older, files["views.pt"][2])
    files["older_nested.bin"] = ({"image_proj": projector, "ip_adapter": adapter}, older, flat)
    files["protocol_4.pt"] = (state, {"pickle_protocol": 4}, dict(state))
    files["protocol_5.pt"] = (optimizer, {"pickle_protocol": 5}, {"state.0.exp_avg": numbers(2, 3)})
    files["list.pt"] = ([numbers(2), (numbers(3), {"a": numbers(1)})], {}, {"0": numbers(2), "1.0": numbers(3), "1.1.a": numbers(1)})
    files["alone.pt"] = (numbers(2, 2), {}, {"tensor": numbers(2, 2)})
    return files


def bad() -> dict[str, tuple[object, dict]]:
    """By file name: what would run, or cannot be read."""
    tensor = {"weight": numbers(2)}
    return {
        "system.bin": (tensor | {"x": Runs(os.system, "touch pinhole-was-run")}, {}),
        "eval.pt": (tensor | {"x": Runs(eval, "1 + 1")}, {"pickle_protocol": 4}),
        "older_system.pt": (tensor | {"x": Runs(os.system, "touch pinhole-was-run")}, {"_use_new_zipfile_serialization": False}),
        "load.pt": (tensor | {"x": Runs(torch.storage._load_from_bytes, b"x")}, {}),
        "numpy.pt": (tensor | {"x": np.zeros(2)}, {}),
        "whole_module.pt": (torch.nn.Linear(2, 2), {}),
        "expanded.pt": ({"weight": numbers(1, 2).expand(50, 2)}, {}),
        "nothing.pt": ({"epoch": 3}, {}),
    }


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, (value, how, tensors) in good().items():
        torch.save(value, directory / name, **how)
        expected |= {f"{name}/{tensor}": values.contiguous().clone() for tensor, values in tensors.items()}
    for name, (value, how) in bad().items():
        torch.save(value, directory / name, **how)
    torch.jit.script(torch.nn.Linear(2, 2)).save(directory / "program.pt")
    save_file(expected, directory / "expected.safetensors")


def check(directory: Path) -> list[str]:
    problems = []
    kept = load_file(directory / "expected.safetensors")
    wanted = {f"{name}/{tensor}": values for name, (_, _, tensors) in good().items() for tensor, values in tensors.items()}
    for name in sorted(kept.keys() ^ wanted.keys()):
        problems.append(f"{name}: in one of the two only")
    for name in sorted(kept.keys() & wanted.keys()):
        # Bytes are compared: 8-bit floats know no equality.
        bytes_of = lambda tensor: tensor.contiguous().flatten().view(torch.uint8)
        if kept[name].dtype != wanted[name].dtype or not torch.equal(bytes_of(kept[name]), bytes_of(wanted[name])):
            problems.append(f"{name}: other numbers")
    problems += [f"{name}: missing" for name in [*good(), *bad(), "program.pt"] if not (directory / name).exists()]
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    if not parser.parse_args().check:
        return write(DIRECTORY)
    problems = check(DIRECTORY)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
