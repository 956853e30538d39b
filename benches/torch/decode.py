"""Decoding with FLUX's autoencoder, or with Wan's, on the CPU: pinhole beside torch, in turn, in processes of their own.

    cargo build --release
    python -m venv .venv && .venv/bin/pip install -r tests/reference/requirements.txt
    .venv/bin/python benches/torch/decode.py
    .venv/bin/python benches/torch/decode.py --frames 17 --width 832 --height 480 --vram 512M --host-memory 2G --rounds 1

torch convolves with oneDNN, and once more without it, by way of a matrix of patches (im2col). All have random weights of
the real sizes: torch in float32, pinhole as bundles have them, in half precision. Times are those of one decode after another that
is not counted. Memory is weights, feature maps and work space at most: for torch what the process grows by (VmHWM over VmRSS) once
torch and diffusers are loaded, for pinhole the peak of its account and the weights that are read where they lie in the file. Prints
medians over rounds, least and greatest, and ratios to torch with oneDNN, round by round.

With --frames a film is decoded by the autoencoder of Wan 2.1, on both sides one latent frame after the other with what the convolutions
keep of those before. torch decodes one frame first, which is not counted.
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


def decode_film_with_torch(width, height, frames, threads):
    """One JSON object on stdout: seconds, and bytes over what was there before."""
    import torch
    from diffusers import AutoencoderKLWan

    torch.set_num_threads(threads)
    latents = torch.randn(1, 16, 1 + (frames - 1) // 4, height // 8, width // 8)
    with torch.inference_mode():
        torch.nn.functional.conv2d(torch.randn(1, 8, 8, 8), torch.randn(8, 8, 3, 3))
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")  # Forgets the peak so far.
        before = status("VmRSS")
        autoencoder = AutoencoderKLWan().eval()
        del autoencoder.encoder  # It has no part in this.
        autoencoder.decode(latents[:, :, :1, :16, :16])
        start = time.perf_counter()
        autoencoder.decode(latents)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "bytes": status("VmHWM") - before, "version": torch.__version__}))


def by_torch(options, onednn):
    command = [sys.executable, os.path.abspath(__file__), "--as-torch", "onednn" if onednn else "im2col"]
    command += [f"--width={options.width}", f"--height={options.height}", f"--threads={options.threads}"]
    command += [f"--frames={options.frames}"] if options.frames else []
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def by_pinhole(options, cache):
    arch = ["--arch", "wan-1.3b", "--frames", str(options.frames)] if options.frames else ["--arch", "flux-dev"]
    command = [options.pinhole, "bench", "decode", *arch, "--cache", cache, "--runs", "1", "--quiet", "--json"]
    command += ["--device", "cpu:discrete"] if options.frames else []
    command += ["--width", str(options.width), "--height", str(options.height), "--threads", str(options.threads)]
    command += ["--host-memory", options.host_memory] if options.host_memory else []
    report = json.loads(subprocess.run([*command, "--vram", options.vram], check=True, stdout=subprocess.PIPE).stdout)
    [way] = report["ways"]
    return {"seconds": way["seconds"], "bytes": way["peak_bytes"] + way["mapped_bytes"] + way["host_bytes"]}


def spread(values, unit):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle / unit:.2f} ({low / unit:.2f} to {high / unit:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pinhole", default="target/release/pinhole", help="the program")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--frames", type=int, help="of a film")
    parser.add_argument("--vram", default="64G", help="what pinhole may take")
    parser.add_argument("--host-memory", help="what pinhole may take of the host's beside")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--as-torch", choices=["onednn", "im2col"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_torch and options.frames:
        return decode_film_with_torch(options.width, options.height, options.frames, options.threads)
    if options.as_torch:
        return decode_with_torch(options.width, options.height, options.threads, options.as_torch == "onednn")

    ways = ["pinhole", "torch, oneDNN"] + ([] if options.frames else ["torch, im2col"])
    rounds = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as cache:
        by_pinhole(argparse.Namespace(**{**vars(options), "width": 64, "height": 64}), cache)  # Makes the weights.
        for i in range(options.rounds):
            # Another begins each time.
            for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
                run = by_pinhole(options, cache) if way == "pinhole" else by_torch(options, way.endswith("oneDNN"))
                rounds[way].append(run)
    if options.json:
        print(json.dumps({"width": options.width, "height": options.height, "threads": options.threads, "rounds": rounds}))
        return
    frames = f", {options.frames} frames" if options.frames else ""
    print(f"{options.width} x {options.height}{frames}, {options.threads} threads, {options.rounds} rounds")
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
