"""Records what diffusers' pipelines draw with a small synthetic model in the layout of Stable Diffusion 2.

    python stable_diffusion_2.py            writes sd2
    python stable_diffusion_2.py --check    compares with the committed files instead of writing them

As stable_diffusion.py, whose requests and schedulers these are. The text encoder is OpenCLIP's kind, padded with another token; the
UNet has heads of 64 at every level, linear projections, and predicts velocities.
"""

import argparse
import sys
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from transformers import CLIPTextModel

import cases
import goldenfile
import stable_diffusion as sd
from cases import Component
from unet import DOWN, UNET, UP

COMPONENTS = {
    # One layer less than its maker's file has.
    "text_encoder": cases.clip(
        prefix="text_model.",
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=3,
        hidden_act="gelu",
        projection_dim=512,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    ),
    "unet": Component(
        "diffusers",
        "UNet2DConditionModel",
        {
            "sample_size": 96,
            "block_out_channels": [64, 128, 192],
            "down_block_types": [DOWN, DOWN, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", UP, UP],
            "layers_per_block": 2,
            "attention_head_dim": [1, 2, 3],
            "cross_attention_dim": 192,
            "norm_num_groups": 32,
            "use_linear_projection": True,
        },
        UNET,
    ),
    "vae": sd.COMPONENTS["vae"],
}
# As published beside version 2.1.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "skip_prk_steps": True,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
# The token that the tokenizer pads with.
PAD = "!"


@dataclass(frozen=True)
class Case(sd.Case):
    """A request."""

    sampler: str = "ddim"


CASES = {
    "text": Case(decoded=True),
    "euler": Case(sampler="euler", width=72, height=88),
    "dpm": Case(sampler="dpm++_2m_karras", width=56, height=40, steps=4),
    "empty_negative": Case(sampler="pndm", width=40, height=56, negative_prompt=None, steps=4),
    "marks": Case(prompt="wow! a ring, !! a cross!", width=40, height=40, steps=3),
    "without_cfg": Case(width=40, height=56, cfg_scale=1.0, negative_prompt=None, steps=4),
    "clip_skip": Case(clip_skip=1, width=56, height=40, steps=4),
    "img2img": Case(strength=0.75, width=88, height=56),
    "inpaint": Case(strength=0.8, masked=True, sampler="euler", width=72, height=56),
    "batch": Case(batch=2, sampler="euler_a", width=56, height=40, steps=4, seed=2**64 - 1),
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
        pipes, components = sd.pipelines(COMPONENTS, SCHEDULER, pad_token=PAD)
        for name, case in CASES.items():
            latents, picture = sd.draw(pipes, case, schedule=schedule)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            described[name]["scheduler"] = None
            if case.decoded:
                tensors[f"{name}.picture"] = picture
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/stable_diffusion_2.py", "components": components, "scheduler": SCHEDULER, "pad": PAD, "cases": described}
    problems = goldenfile.compare("sd2", body, tensors) if options.check else goldenfile.write("sd2", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
