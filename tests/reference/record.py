"""Records what diffusers computes, for pinhole's tests to compare with.

    python record.py                            the synthetic cases, noise and sigmas
    python record.py dev noise                  some of them
    python record.py --model DIR --out NAME     a model in the diffusers layout, with its generation_config.json
    python record.py --check ...                compares with the committed files instead of writing them
    python record.py --health                   checks that the synthetic models are fit to be goldens

README.md beside this file says what is in the files.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

import autoencoder
import cases
import generate
import goldenfile
import health
import models

# What a model from a directory draws: with its own defaults, and once without true CFG.
MODEL_PROMPTS = [
    ("a small yellow star on a blue background", 1, {}),
    ("a large green circle on a black background", 2, {"true_cfg_scale": 1.0}),
]


def as_arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Torch to numpy."""
    return {name: value.detach().numpy() for name, value in tensors.items()}


def record_case(case: cases.Case, tokenizers: Path) -> tuple[dict, dict]:
    """Header and tensors of a synthetic case."""
    networks, components = models.synthesise(case)
    body, tensors = {"components": components}, {}
    if case.request:
        flow, config = models.scheduler(case.scheduler)
        body["scheduler"] = config
        pipe = models.pipeline(networks, flow, tokenizers)
        body["generate"], tensors, text = generate.run(pipe, case.request)
        start = tensors["latents.0"]
        tensors |= generate.forward(pipe, start, case.forward_sigma, case.request.guidance_scale, text)
    else:
        factor = 2 ** (len(networks["vae"].config.block_out_channels) - 1)
        shape = [1, networks["vae"].config.latent_channels, *(n // factor for n in reversed(case.encoder_size))]
        tensors |= autoencoder.decoder(networks["vae"], torch.randn(shape, generator=generate.generator(0)) * 4)
    tensors |= autoencoder.encoder(networks["vae"], *case.encoder_size)
    return body, as_arrays(tensors)


def record_model(directory: Path) -> tuple[dict, dict]:
    """Header and tensors of a model in the diffusers layout, in float32 whatever its files hold."""
    pipe = FluxPipeline.from_pretrained(directory, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    defaults = json.loads((directory / "generation_config.json").read_text())
    defaults["steps"] = defaults.pop("num_inference_steps")
    pictures, tensors = [], {}
    for i, (prompt, seed, options) in enumerate(MODEL_PROMPTS):
        request = cases.Request(prompt=prompt, seed=seed, **({"guidance_scale": 0.0} | defaults | options))
        described, found, _ = generate.run(pipe, request)
        pictures.append(described)
        tensors |= {f"{i}.latents": found[f"latents.{request.steps - 1}"], f"{i}.picture": found["picture"]}
    return {"generate": pictures}, as_arrays(tensors)


def record_noise() -> tuple[dict, dict]:
    """torch.randn for every seed: short ones whole; of a long one the ends, a sample, its sum and sum of sizes."""
    tensors = {}
    for seed in cases.NOISE_SEEDS:
        for count in cases.NOISE_COUNTS:
            tensors[f"{seed}.{count}"] = torch.randn(count, generator=generate.generator(seed))
        large = torch.randn(cases.NOISE_LARGE, generator=generate.generator(seed))
        key = f"{seed}.{cases.NOISE_LARGE}"
        tensors[f"{key}.first"], tensors[f"{key}.last"] = large[:16].clone(), large[-16:].clone()
        tensors[f"{key}.sample"] = large[:: cases.NOISE_STRIDE].clone()
        tensors[f"{key}.sums"] = torch.stack([large.double().sum(), large.double().abs().sum()])
    body = {"seeds": cases.NOISE_SEEDS, "counts": cases.NOISE_COUNTS, "large": cases.NOISE_LARGE, "stride": cases.NOISE_STRIDE}
    return body, as_arrays(tensors)


def record_sigmas() -> tuple[dict, dict]:
    """Sigma schedules as FluxPipeline asks the scheduler for them. All in the header."""
    schedules = []
    for name, config, pairs in cases.SCHEDULES:
        flow, scheduler_config = models.scheduler(config)
        runs = []
        for steps, tokens in pairs:
            ranges = [config[k] for k in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")]
            flow.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens, *ranges))
            runs.append({"steps": steps, "tokens": tokens, "sigmas": models.describe_float(flow.sigmas)})
        schedules.append({"name": name, "scheduler": scheduler_config, "runs": runs})
    return {"schedules": schedules}, {}


def recordings(options) -> dict:
    """What the options ask for: name to a function that records it."""
    if options.model:
        return {options.out: lambda: record_model(options.model)}
    known = {name: lambda case=case: record_case(case, options.tokenizers) for name, case in cases.CASES.items()}
    known |= {"noise": record_noise, "sigmas": record_sigmas}
    if unknown := set(options.names) - known.keys():
        raise SystemExit(f"no case {sorted(unknown)}: there are {sorted(known)}")
    return {name: known[name] for name in options.names or known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", help="what to record; everything synthetic by default")
    parser.add_argument("--model", type=Path, help="a model in the diffusers layout")
    parser.add_argument("--out", help="the golden's name, with --model")
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="check the synthetic models themselves")
    parser.add_argument("--tokenizers", type=Path, default=goldenfile.DIRECTORY / "tokenizers", help="folder with clip and t5")
    options = parser.parse_args()
    if bool(options.model) != bool(options.out):
        parser.error("--model and --out belong together")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    problems = []
    with torch.no_grad():
        if options.health:
            problems = [line for name in options.names or cases.CASES for line in health.check(name, options.tokenizers)]
        else:
            for name, record in recordings(options).items():
                body, tensors = record()
                if options.check:
                    problems += goldenfile.compare(name, body, tensors)
                else:
                    goldenfile.write(name, body, tensors)
                print(f"{name}: {'compared' if options.check else 'written'}", file=sys.stderr)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
