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
import resource
import statistics
import subprocess
import sys
import time

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
    """One JSON object on stdout: seconds and processor seconds of `runs` attentions."""
    import torch

    torch.set_num_threads(threads)
    width, queries, keys, heads = map(int, shape.split("x"))
    q, k, v = [torch.randn(1, heads, tokens, width) for tokens in (queries, keys, keys)]
    with torch.inference_mode():
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(runs):
            torch.nn.functional.scaled_dot_product_attention(q, k, v)
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))


def by_torch(shape, options):
    command = [sys.executable, os.path.abspath(__file__), "--as-torch", "--shapes", shape]
    command += ["--threads", str(options.threads), "--runs", str(options.runs)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def processor_seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(output)


def by_pinhole(shape, way, options):
    """Processor time is the difference of two processes, whose operands and checks are the same."""
    command = [options.pinhole, "bench", "attention", *way, "--shapes", shape, "--quiet", "--json"]
    command += ["--threads", str(options.threads)]
    few, _ = processor_seconds([*command, "--rounds", "1"])
    more, report = processor_seconds([*command, "--rounds", str(1 + options.runs)])
    [attention] = report["attentions"]
    return {"wall": operations(shape) / 1e9 / attention["by"]["median"] * options.runs, "cpu": more - few}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pinhole", default="target/release/pinhole", help="the program")
    parser.add_argument("--shapes", default="128x4608x4608x4,64x4096x4096x10,40x4096x4096x8")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=2, help="attentions of a round")
    parser.add_argument("--cpu", action="store_true", help="processor time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--as-torch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = options.shapes.split(",")
    if options.as_torch:
        return with_torch(shapes[0], options.threads, options.runs)

    times = {shape: {way: [] for way in WAYS} for shape in shapes}
    ways = list(WAYS)
    for i in range(options.rounds):
        # Another begins each time.
        for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
            for shape in shapes:
                run = by_torch(shape, options) if way == "torch" else by_pinhole(shape, WAYS[way], options)
                times[shape][way].append(run)
    if options.json:
        print(json.dumps({"threads": options.threads, "runs": options.runs, "times": times}))
        return
    key = "cpu" if options.cpu else "wall"
    print(f"{options.threads} threads, {options.rounds} rounds, GFLOP/s of {'processor' if options.cpu else 'wall'} time")
    print("| shape | | GFLOP/s | / torch |\n|---|---|---|---|")
    for shape in shapes:
        work = operations(shape) / 1e9 * options.runs
        for way in WAYS:
            seconds = [run[key] for run in times[shape][way]]
            marks = [run[key] for run in times[shape]["torch"]]
            ratio = statistics.median(mark / own for own, mark in zip(seconds, marks))
            speeds = sorted(work / each for each in seconds)
            spread = f"{statistics.median(speeds):.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})"
            print(f"| {shape} | {way} | {spread} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
