"""Records what diffusers' pipelines draw with a small UNet that is told how closely to follow the prompt: latent consistency models.

    python lcm.py            writes sd1_lcm
    python lcm.py --check    compares with the committed files instead of writing them

The other networks are those of stable_diffusion.py, whose requests these are.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from transformers import CLIPTextModel

import goldenfile
import stable_diffusion as sd

UNET = sd.COMPONENTS["unet"]
COMPONENTS = sd.COMPONENTS | {"unet": replace(UNET, config=UNET.config | {"time_cond_proj_dim": 256})}
# As published beside LCM_Dreamshaper_v7.
SCHEDULER = {name: value for name, value in sd.SCHEDULER.items() if name != "skip_prk_steps"} | {
    "_class_name": "LCMScheduler",
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "set_alpha_to_one": True,
}


@dataclass(frozen=True)
class Case(sd.Case):
    """A request."""

    sampler: str = "lcm"
    steps: int = 4
    width: int = 56
    height: int = 40
    negative_prompt: str | None = None
    # How closely the UNet follows the prompt. diffusers has one scale, and no second pass for such a UNet.
    guidance: float = 8.5
    cfg_scale: float | None = None


CASES = {
    "text": Case(width=104, height=72),
    "one": Case(steps=1),
    "weak": Case(guidance=1.5, steps=2),
    "picture": Case(strength=0.5, width=72, height=88),
    "euler": Case(sampler="euler", batch=2),
}


def schedule(case: Case):
    """The scheduler of a case: the model's configuration, read by the class of the sampler."""
    name, told = sd.SAMPLERS[case.sampler]
    return getattr(diffusers, name).from_config(SCHEDULER, **told, **case.scheduler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    tensors, described = {}, {}
    with torch.no_grad():
        pipes, components = sd.pipelines(COMPONENTS, SCHEDULER)
        for name, case in CASES.items():
            latents, picture = sd.draw(pipes, replace(case, cfg_scale=case.guidance), schedule=schedule)
            others = {"guidance": replace(case, guidance=4.0), "prompt": replace(case, prompt="a yellow star")}
            moved = {what: sd.draw(pipes, replace(other, cfg_scale=other.guidance), schedule=schedule)[0] for what, other in others.items()}
            print(", ".join(f"{what} {goldenfile.nmse(found, latents):.1e}" for what, found in moved.items()))
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            described[name]["scheduler"] = None
            if case.decoded:
                tensors[f"{name}.picture"] = picture
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/lcm.py", "components": components, "scheduler": SCHEDULER, "cases": described}
    problems = goldenfile.compare("sd1_lcm", body, tensors) if options.check else goldenfile.write("sd1_lcm", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
