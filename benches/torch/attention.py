"""Attention on the CPU: pinhole beside torch's scaled_dot_product_attention and ggml's, in turn, in processes of their own.

    cargo build --release
    python -m venv .venv && .venv/bin/pip install -r tests/reference/requirements.txt
    .venv/bin/python benches/torch/attention.py

Queries, keys and values are random, in float32. Each round computes each shape once in each way, one after the other, after one that
is not counted. Prints GFLOP/s, medians over rounds with the least and the greatest, and ratios to torch, round by round: of the time
on the clock, or with --cpu of processor time, which says more where other programs share the cores.
"""

import argparse
import json
import os
import subprocess
import sys

import turns

WAYS = {
    "torch": None,
    "pinhole, exact": ["--by", "pinhole", "--precision", "exact"],
    "pinhole, codes": ["--by", "pinhole", "--precision", "codes"],
    "ggml": ["--by", "ggml"],
}


def operations(shape):
    width, queries, keys, heads = map(int, shape.split("x"))
    return 4 * width * queries * keys * heads


def with_torch(shape, threads, runs):
    import torch

    torch.set_num_threads(threads)
    width, queries, keys, heads = map(int, shape.split("x"))
    q, k, v = [torch.randn(1, heads, tokens, width) for tokens in (queries, keys, keys)]
    with torch.inference_mode():
        turns.timed(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), runs)


def by_torch(shape, options):
    command = [sys.executable, os.path.abspath(__file__), "--as-torch", "--shapes", shape]
    command += ["--threads", str(options.threads), "--runs", str(options.runs)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def by_pinhole(shape, way, options):
    seconds, report = turns.of_pinhole(["attention", *way, "--shapes", shape], options)
    [attention] = report["attentions"]
    return {"wall": operations(shape) / 1e9 / attention["by"]["median"] * options.runs, "cpu": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="128x4608x4608x4,64x4096x4096x10,40x4096x4096x8")
    parser.add_argument("--as-torch", action="store_true", help=argparse.SUPPRESS)
    turns.add_options(parser, "attentions of a round")
    options = parser.parse_args()
    shapes = options.shapes.split(",")
    if options.as_torch:
        return with_torch(shapes[0], options.threads, options.runs)

    def run(way, shape):
        return by_torch(shape, options) if way == "torch" else by_pinhole(shape, WAYS[way], options)

    turns.report(turns.in_turn(list(WAYS), shapes, options, run), operations, "shape", options)


if __name__ == "__main__":
    main()
