"""Compares the last latents of two builds of pinhole, byte by byte, for every golden case and the built-in model.

    python tests/reference/same_latents.py OLD_PINHOLE NEW_PINHOLE

For changes of structure that must leave every bit as it is. Prints a table with the digest of each file of latents, and exits
with 1 if two differ.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cases
import models

HERE = Path(__file__).resolve().parent
TOKENIZERS = HERE.parent / "goldens" / "tokenizers"
# Computed whole, in parts and streamed, alone and with guidance.
WAYS = {
    "plain": [],
    "guided": ["--cfg-scale", "2.5", "--negative-prompt", "blurry"],
    "streamed": ["--device", "cpu:discrete", "--offload", "sequential"],
    "batch": ["--batch", "2"],
}


def write(case: cases.Case, folder: Path) -> None:
    """Writes the model of `case` in the diffusers layout."""
    networks, header = models.synthesise(case)
    index = {"_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    for key, network in networks.items():
        network.save_pretrained(folder / key)
        (folder / key / "config.json").write_text(json.dumps(header[key]["config"]))
        index[key] = [header[key]["library"], header[key]["class"]]
    for kind, name in (("clip", "tokenizer"), ("t5", "tokenizer_2")):
        shutil.copytree(TOKENIZERS / kind, folder / name)
    _, scheduler = models.scheduler(case.scheduler)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))


def digest(pinhole: str, model: str, options: list[str], folder: Path) -> str:
    latents = folder / "latents.safetensors"
    command = [pinhole, "generate", "-m", model, "-p", "a small yellow star", "--seed", "5", "--quiet"]
    command += ["-o", str(folder / "picture.png"), "--save-latents", str(latents), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    # The header holds the seed and may grow: numbers alone count.
    content = latents.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little"):]).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    options = parser.parse_args()
    differ = False
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        subjects = {"mini": ("mini", [])}
        for name, case in cases.CASES.items():
            if case.request is not None:
                write(case, folder / name)
                size = ["--width", str(case.request.width), "--height", str(case.request.height)]
                subjects[name] = (str(folder / name), [*size, "--steps", str(case.request.steps)])
        for name, (model, request) in subjects.items():
            for way, more in WAYS.items():
                old, new = (digest(binary, model, request + more, folder) for binary in (options.old, options.new))
                print(f"| {name} | {way} | {old} | {'same' if old == new else new} |", flush=True)
                differ |= old != new
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
