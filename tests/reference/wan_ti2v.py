"""Records what diffusers' WanPipeline and WanImageToVideoPipeline draw with a small synthetic model of the kind of TI2V 5B, through to
frames: latents of 48 channels, the autoencoder of Wan 2.2, and a first frame whose tokens are at a time of their own.

    python wan_ti2v.py            writes wan_ti2v
    python wan_ti2v.py --check    compares with the committed file instead of writing it
"""

import argparse
import sys
from dataclasses import asdict

import diffusers
import numpy as np
import torch
from transformers import UMT5Config, UMT5EncoderModel

import cases
import goldenfile
import health
import models
import wan
import wan_vae
from cases import Component

CHANNELS = 48
AUTOENCODER = wan_vae.component("wan_2_2")
MEANS = [round(0.3 * ((7 * i) % 5 - 2), 2) for i in range(CHANNELS)]
DEVIATIONS = [round(0.6 + 0.35 * ((3 * i) % 4), 2) for i in range(CHANNELS)]
COMPONENTS = {
    "text_encoder": wan.COMPONENTS["text_encoder"],
    "transformer": wan.transformer(in_channels=CHANNELS, out_channels=CHANNELS),
    "vae": Component(
        "diffusers",
        "AutoencoderKLWan",
        AUTOENCODER.config | {"z_dim": CHANNELS, "latents_mean": MEANS, "latents_std": DEVIATIONS},
        wan_vae.RULES,
    ),
}
UNIPC = wan.UNIPC | {"flow_shift": 5.0}
SHARED = {"model": "ti2v", "shift": 5.0, "decoded": True}
GOLDEN = {
    # 3 x 2 tokens in each of two frames.
    "text": wan.Case(**SHARED, width=96, height=64, frames=5, **wan.GUIDED),
    "picture": wan.Case(**SHARED, width=96, height=64, frames=5, image=True, **wan.GUIDED),
    "long": wan.Case(**SHARED | {"decoded": False}, width=64, height=96, frames=9, image=True, steps=3, sampler="euler"),
    "lcm": wan.Case(**SHARED | {"decoded": False}, width=64, height=64, frames=5, sampler="lcm"),
}


def check(networks: dict, drawn: dict[str, np.ndarray]) -> list[str]:
    """What is wrong with a model: weights that do not count, or films that are black or white."""
    text, latents = torch.randn(1, 512, 96, generator=wan.generate.generator(3)), torch.randn(1, CHANNELS, 2, 4, 6, generator=wan.generate.generator(1))
    run = lambda: wan.forward(networks["transformer"], latents, torch.tensor([300]), text)
    problems = health.check_weights("transformer", networks["transformer"], run)
    for name, frames in drawn.items():
        outside = np.isin(frames, (0, 255)).mean()
        print(f"{name}: {outside:.2f} of the samples are black or white, std {frames.std():.0f}")
        if outside > 0.2 or frames.std() < 12:
            problems.append(f"{name}: nothing to be seen")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["UMT5EncoderModel"] = (UMT5EncoderModel, UMT5Config)
    models.DIFFUSERS["WanTransformer3DModel"] = diffusers.WanTransformer3DModel
    models.DIFFUSERS["AutoencoderKLWan"] = diffusers.AutoencoderKLWan
    tensors, described, drawn = {}, {}, {}
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    with torch.no_grad():
        for name, case in GOLDEN.items():
            latents, frames = wan.draw(networks, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.frames"] = drawn[name] = frames
            print(f"{name}: {latents.shape}, rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
        problems = check(networks, drawn)
    body = {"made_by": "tests/reference/wan_ti2v.py", "components": components}
    body |= {"models": {"ti2v": {"transformers": ["transformer"], "expand_timesteps": True}}}
    body |= {"scheduler": {"_class_name": "UniPCMultistepScheduler", **UNIPC}, "cases": described}
    problems += (goldenfile.compare if options.check else goldenfile.write)("wan_ti2v", body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
