"""Decoding with FLUX's autoencoder on the CPU: pinhole beside torch, in turn, in processes of their own.

    cargo build --release
    python -m venv .venv && .venv/bin/pip install -r tests/reference/requirements.txt
    .venv/bin/python benches/torch/decode.py

torch convolves with oneDNN, and once more without it, by way of a matrix of patches (im2col). All have random weights of
the real sizes: torch in float32, pinhole as bundles have them, in half precision. Times are those of one decode after another that
is not counted. Memory is weights, feature maps and work space at most: for torch what the process grows by (VmHWM over VmRSS) once
torch and diffusers are loaded, for pinhole the peak of its account and the weights that are read where they lie in the file. Prints
medians over rounds, least and greatest, and ratios to torch with oneDNN, round by round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20


def status(name):
    """A field of this process's status, in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def decode_with_torch(width, height, threads, onednn):
    """One JSON object on stdout: seconds, and bytes over what was there before."""
    import torch
    from diffusers.models.autoencoders.vae import Decoder

    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn
    latents = torch.randn(1, 16, height // 8, width // 8)
    with torch.inference_mode():
        # oneDNN is loaded here, and threads are made.
        torch.nn.functional.conv2d(torch.randn(1, 8, 8, 8), torch.randn(8, 8, 3, 3))
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")  # Forgets the peak so far.
        before = status("VmRSS")
        decoder = Decoder(
            in_channels=16,
            out_channels=3,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
        ).eval()
        decoder(latents)
        start = time.perf_counter()
        decoder(latents)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "bytes": status("VmHWM") - before, "version": torch.__version__}))


def by_torch(options, onednn):
    command = [sys.executable, os.path.abspath(__file__), "--as-torch", "onednn" if onednn else "im2col"]
    command += [f"--width={options.width}", f"--height={options.height}", f"--threads={options.threads}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def by_pinhole(options, cache):
    command = [options.pinhole, "bench", "decode", "--arch", "flux-dev", "--cache", cache, "--runs", "1", "--quiet", "--json"]
    command += ["--width", str(options.width), "--height", str(options.height), "--threads", str(options.threads)]
    report = json.loads(subprocess.run([*command, "--vram", "64G"], check=True, stdout=subprocess.PIPE).stdout)
    [way] = report["ways"]
    return {"seconds": way["seconds"], "bytes": way["peak_bytes"] + way["mapped_bytes"]}


def spread(values, unit):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle / unit:.2f} ({low / unit:.2f} to {high / unit:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pinhole", default="target/release/pinhole", help="the program")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--as-torch", choices=["onednn", "im2col"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_torch:
        return decode_with_torch(options.width, options.height, options.threads, options.as_torch == "onednn")

    ways = ["pinhole", "torch, oneDNN", "torch, im2col"]
    rounds = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as cache:
        by_pinhole(options, cache)  # Makes the weights.
        for i in range(options.rounds):
            # Another begins each time.
            for way in ways[i % 3 :] + ways[: i % 3]:
                run = by_pinhole(options, cache) if way == "pinhole" else by_torch(options, way.endswith("oneDNN"))
                rounds[way].append(run)
    if options.json:
        print(json.dumps({"width": options.width, "height": options.height, "threads": options.threads, "rounds": rounds}))
        return
    print(f"{options.width} x {options.height}, {options.threads} threads, {options.rounds} rounds")
    print("| | seconds | ratio | MiB | ratio |\n|---|---|---|---|---|")
    for way in ways:
        column = {key: [run[key] for run in rounds[way]] for key in ("seconds", "bytes")}
        ratio = {
            key: statistics.median(run[key] / mark[key] for run, mark in zip(rounds[way], rounds["torch, oneDNN"]))
            for key in column
        }
        seconds, memory = spread(column["seconds"], 1), spread(column["bytes"], MIB)
        print(f"| {way} | {seconds} | {ratio['seconds']:.2f} | {memory} | {ratio['bytes']:.2f} |")


if __name__ == "__main__":
    main()
