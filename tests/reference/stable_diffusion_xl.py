"""Records what diffusers' pipelines of Stable Diffusion XL draw with a small synthetic model.

    python stable_diffusion_xl.py            writes sdxl
    python stable_diffusion_xl.py --check    compares with the committed files instead of writing them

As stable_diffusion.py, whose requests and schedulers these are. The second text encoder is OpenCLIP's kind: another width, another
activation, padded with another token, and with a projection that is neither as wide as its hidden states nor square.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

import cases
import given
import goldenfile
import models
import recipes
import stable_diffusion as sd
from cases import Component
from unet import DOWN, UNET, UP

CLIP_2 = {
    "vocab_size": 698,
    "max_position_embeddings": 77,
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "hidden_act": "gelu",
    "projection_dim": 160,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
COMPONENTS = {
    "text_encoder": sd.COMPONENTS["text_encoder"],
    "text_encoder_2": Component("transformers", "CLIPTextModelWithProjection", CLIP_2, recipes.CLIP),
    # Heads of 64 at every level; transformers of one, two and three blocks.
    "unet": Component(
        "diffusers",
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "block_out_channels": [64, 128, 192],
            "down_block_types": ["DownBlock2D", DOWN, DOWN],
            "up_block_types": [UP, UP, "UpBlock2D"],
            "layers_per_block": 2,
            "transformer_layers_per_block": [1, 2, 3],
            "attention_head_dim": [1, 2, 3],
            "cross_attention_dim": 128 + 192,
            "norm_num_groups": 32,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 160 + 6 * 256,
        },
        UNET,
    ),
    "vae": cases.autoencoder(
        block_out_channels=[32, 64, 64, 96],
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        scaling_factor=0.13025,
        use_quant_conv=True,
        use_post_quant_conv=True,
    ),
}
# As published beside the base model.
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}
# The token that the second tokenizer pads with.
PAD_2 = "!"


@dataclass(frozen=True)
class Case(sd.Case):
    """A request."""

    sampler: str = "euler"
    cfg_scale: float = 5.0
    # Across and down; left and top.
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None


FEW = {"cfg_scale": 0.0, "negative_prompt": None, "width": 56, "height": 40}
CASES = {
    "text": Case(decoded=True),
    # Zeros stand for a negative prompt that is not given.
    "without_negative": Case(negative_prompt=None, width=56, height=40, steps=4),
    "empty_negative": Case(negative_prompt="", width=56, height=40, steps=4),
    "without_cfg": Case(width=40, height=56, cfg_scale=1.0, negative_prompt=None, steps=4),
    "sizes": Case(original_size=(1024, 640), crop=(32, 7), width=56, height=72, steps=4),
    "clip_skip": Case(clip_skip=1, width=56, height=40, steps=4),
    "dpm": Case(sampler="dpm++_2m_karras", width=72, height=88),
    "img2img": Case(strength=0.75, width=88, height=56),
    "inpaint": Case(strength=0.8, masked=True, width=72, height=88),
    # As models that draw in few steps are run: Turbo, Lightning, and LCM's by a LoRA.
    "turbo": Case(sampler="euler_a", scheduler={"timestep_spacing": "trailing"}, steps=1, **FEW),
    "turbo_4": Case(sampler="euler_a", scheduler={"timestep_spacing": "trailing"}, steps=4, **FEW),
    "turbo_picture": Case(sampler="euler_a", scheduler={"timestep_spacing": "trailing"}, steps=2, strength=0.5, **FEW),
    "lightning": Case(sampler="euler_sgm_uniform", steps=4, **FEW),
    "lightning_2": Case(sampler="euler_sgm_uniform", steps=2, **FEW),
    "lcm": Case(sampler="lcm", steps=4, **FEW | {"cfg_scale": 1.0}),
    "batch": Case(batch=2, sampler="euler_a", width=56, height=40, steps=4, seed=2**64 - 1),
}


def pipelines() -> tuple[dict, dict]:
    """The three pipelines over the model, and the `components` entry of the header."""
    models.DIFFUSERS["UNet2DConditionModel"] = diffusers.UNet2DConditionModel
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    for component in components.values():
        component["checksum"] = f"{sum(int(tensor['checksum'], 16) for tensor in component['tensors']) % 2**64:016x}"
        component["tensors"] = [[tensor[key] for key in ("name", "shape", "scale", "offset")] for tensor in component["tensors"]]
    read = lambda **told: CLIPTokenizer.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "clip", **told)
    parts = networks | {"tokenizer": read(), "tokenizer_2": read(pad_token=PAD_2)}
    parts |= {"scheduler": diffusers.EulerDiscreteScheduler.from_config(SCHEDULER), "force_zeros_for_empty_prompt": True, "add_watermarker": False}
    classes = {"text": "StableDiffusionXLPipeline", "picture": "StableDiffusionXLImg2ImgPipeline", "mask": "StableDiffusionXLInpaintPipeline"}
    made = {kind: getattr(diffusers, name)(**parts) for kind, name in classes.items()}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made, components


def schedule(case: Case):
    """The scheduler of a case: the model's configuration, read by the class of the sampler."""
    name, told = sd.SAMPLERS[case.sampler]
    return getattr(diffusers, name).from_config(SCHEDULER, **told, **case.scheduler)


def draw(pipes: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    pipe = pipes["text" if case.strength is None else "mask" if case.masked else "picture"]
    size = (case.width, case.height)
    arguments = {} if case.strength is None else {"image": given.picture(*size), "strength": case.strength}
    if case.masked:
        arguments["mask_image"] = given.mask(*size)
    if case.strength is None or case.masked:
        arguments |= {"width": case.width, "height": case.height}
    # diffusers says down before across.
    if case.original_size:
        arguments["original_size"] = case.original_size[::-1]
    if case.crop:
        arguments["crops_coords_top_left"] = case.crop[::-1]
    if case.clip_skip and case.cfg_scale > 1:
        # By itself, diffusers sends the negative prompt through all layers but one.
        negative = pipe.encode_prompt(case.negative_prompt, device="cpu", do_classifier_free_guidance=False, clip_skip=case.clip_skip)
        arguments |= {"negative_prompt_embeds": negative[0], "negative_pooled_prompt_embeds": negative[2]}
    return sd.drawn(pipe, case, schedule, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    tensors, described = {}, {}
    with torch.no_grad():
        pipes, components = pipelines()
        for name, case in CASES.items():
            latents, picture = draw(pipes, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            described[name]["scheduler"] = json.loads(schedule(case).to_json_string()) if case.scheduler else None
            if case.decoded:
                tensors[f"{name}.picture"] = picture
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/stable_diffusion_xl.py", "components": components, "scheduler": SCHEDULER, "pad_2": PAD_2, "cases": described}
    problems = goldenfile.compare("sdxl", body, tensors) if options.check else goldenfile.write("sdxl", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
