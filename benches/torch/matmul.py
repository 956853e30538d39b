"""Products of matrices in floating point on the CPU: pinhole beside torch and ggml, in turn, in processes of their own.

    cargo build --release
    python -m venv .venv && .venv/bin/pip install -r tests/reference/requirements.txt
    .venv/bin/python benches/torch/matmul.py

Weights are random. Activations are float32 for pinhole and ggml, which make float32 of it; torch has both, and the result, in the type of
the weights. Prints what attention.py prints, with the same options.
"""

import argparse
import json
import os
import subprocess
import sys

import turns

TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
WAYS = ["torch", "pinhole", "ggml"]


def with_torch(type_name, options):
    import torch

    torch.set_num_threads(options.threads)
    inputs, outputs = map(int, options.size.split("x"))
    dtype = getattr(torch, TYPES[type_name])
    weights, activations = torch.randn(outputs, inputs).to(dtype), torch.randn(options.tokens, inputs).to(dtype)
    with torch.inference_mode():
        turns.timed(lambda: torch.nn.functional.linear(activations, weights), options.runs)


def by_torch(type_name, options):
    command = [sys.executable, os.path.abspath(__file__), "--as-torch", "--types", type_name, "--size", options.size]
    command += [f"--{name}={getattr(options, name)}" for name in ("tokens", "threads", "runs")]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def operations(options):
    inputs, outputs = map(int, options.size.split("x"))
    return 2 * inputs * outputs * options.tokens


def by_program(type_name, who, options):
    command = ["matmul", "--by", who, "--types", type_name, "--size", options.size, "--tokens", str(options.tokens)]
    seconds, report = turns.of_pinhole(command, options)
    [product] = report["products"]
    return {"wall": operations(options) / 1e9 / product["by"]["median"] * options.runs, "cpu": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(TYPES), help="of the weights")
    parser.add_argument("--size", default="3072x12288", help="inputs and outputs of the weights")
    parser.add_argument("--tokens", type=int, default=768)
    parser.add_argument("--as-torch", action="store_true", help=argparse.SUPPRESS)
    turns.add_options(parser, "products of a round")
    options = parser.parse_args()
    types = options.types.split(",")
    if options.as_torch:
        return with_torch(types[0], options)

    def run(way, type_name):
        return by_torch(type_name, options) if way == "torch" else by_program(type_name, way, options)

    turns.report(turns.in_turn(WAYS, types, options, run), lambda _: operations(options), "weights", options)


if __name__ == "__main__":
    main()
