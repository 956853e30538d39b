"""Records what Stable Diffusion draws in two passes: with a refiner, and what is made larger and drawn again.

    python two_passes.py            writes sdxl_refiner, and sd1_upscale, sdxl_upscale and flux_upscale
    python two_passes.py --check    compares with the committed files instead of writing them
    python two_passes.py --health   says how far the latents move when something of the request does

The models are those of stable_diffusion.py and stable_diffusion_xl.py, and a refiner as small: its UNet has attention at one level, reads the
second text encoder alone, and is told five sizes. Between two passes, `torch.nn.functional.interpolate` stretches latents, and Pillow
pictures; every pass begins with a generator of the seed.
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import cases
import generate
import given
import goldenfile
import models
import recipes
import stable_diffusion as sd
import stable_diffusion_xl as xl
from cases import Component
from unet import DOWN, UNET, UP

REFINER = {
    "text_encoder_2": Component("transformers", "CLIPTextModelWithProjection", xl.CLIP_2, recipes.CLIP),
    "unet": Component(
        "diffusers",
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "block_out_channels": [64, 128, 192],
            "down_block_types": ["DownBlock2D", DOWN, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", UP, "UpBlock2D"],
            "layers_per_block": 2,
            "transformer_layers_per_block": [1, 2, 1],
            "attention_head_dim": [1, 2, 3],
            "cross_attention_dim": 192,
            "norm_num_groups": 32,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 160 + 5 * 256,
        },
        UNET,
    ),
    "vae": xl.COMPONENTS["vae"],
}


@dataclass(frozen=True)
class Case:
    """A request."""

    sampler: str = "euler"
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = "a black cross, the quick brown fox"
    width: int = 56
    height: int = 40
    steps: int = 6
    seed: int = 5
    cfg_scale: float = 5.0
    batch: int = 1
    # Of a refiner: where it begins, unless it is alone with a picture.
    refiner_start: float | None = None
    strength: float | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    # Of a second pass: what is stretched, how much, and what comes of it.
    upscale: float | None = None
    upscale_space: str | None = None
    upscale_strength: float | None = None
    upscale_steps: int | None = None
    # Of FLUX.1.
    max_sequence_length: int | None = None
    larger: tuple[int, int] | None = None


REFINED = {
    "refined": Case(refiner_start=0.6, width=104, height=72, steps=7),
    "scores": Case(refiner_start=0.8, steps=9, negative_prompt=None, original_size=(1024, 640), crop=(32, 7), aesthetic_score=7.5, negative_aesthetic_score=1.0),
    "heun": Case(refiner_start=0.5, sampler="heun", steps=5),
    "dpm": Case(refiner_start=0.7, sampler="dpm++_2m_karras", steps=8),
    "batch": Case(refiner_start=0.5, sampler="euler_a", steps=4, batch=2, cfg_scale=1.0, negative_prompt=None),
    "begun": Case(refiner_start=0.75, strength=0.8, steps=8),
    "alone": Case(strength=0.5, aesthetic_score=5.0, steps=6, width=40, height=56),
}
UPSCALED = {
    "latent": Case(upscale=2.0, upscale_space="latent", upscale_strength=0.5, larger=(112, 80)),
    "nearest": Case(upscale=1.5, upscale_space="latent-nearest", upscale_strength=0.6, upscale_steps=5, larger=(88, 64), sampler="ddim", width=56, height=40),
    "pixel": Case(upscale=1.4, upscale_space="pixel", upscale_strength=0.75, larger=(80, 56), batch=2, sampler="euler_a", steps=4),
    "redrawn": Case(upscale=1.3, upscale_space="latent", upscale_strength=1.0, strength=0.7, larger=(72, 56), steps=5),
}


FLUX = Case(width=112, height=80, steps=4, cfg_scale=1.0, negative_prompt=None, max_sequence_length=24, seed=11)
FLUX_UPSCALED = {
    "latent": dataclasses.replace(FLUX, upscale=1.4, upscale_space="latent", upscale_strength=0.6, larger=(160, 112)),
    "pixel": dataclasses.replace(FLUX, upscale=1.2, upscale_space="pixel", upscale_strength=0.5, upscale_steps=5, larger=(128, 96), batch=2),
}


def refiner() -> tuple:
    """The pipeline of the refiner, and the `components` entry of the header."""
    networks, components = models.synthesise(cases.Case(components=REFINER))
    for component in components.values():
        component["checksum"] = f"{sum(int(tensor['checksum'], 16) for tensor in component['tensors']) % 2**64:016x}"
        component["tensors"] = [[tensor[key] for key in ("name", "shape", "scale", "offset")] for tensor in component["tensors"]]
    read = CLIPTokenizer.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "clip", pad_token=xl.PAD_2)
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        **networks,
        text_encoder=None,
        tokenizer=None,
        tokenizer_2=read,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(xl.SCHEDULER),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, components


def schedule(case: Case, config: dict):
    name, told = sd.SAMPLERS[case.sampler]
    return getattr(diffusers, name).from_config(config, **told)


def called(pipe, case: Case, config: dict, i: int, **arguments):
    """The last latents of picture `i`, and the pictures if they are asked for."""
    pipe.scheduler, last = schedule(case, config), []

    def keep(_pipe, _step, _timestep, tensors):
        last[:] = [tensors["latents"].clone()]
        return {}

    made = pipe(
        prompt=case.prompt,
        negative_prompt=case.negative_prompt,
        guidance_scale=case.cfg_scale,
        generator=generate.generator((case.seed + i) % 2**64),
        callback_on_step_end=keep,
        **({"num_inference_steps": case.steps} | arguments),
    )
    return last[0], made.images


def sizes(case: Case) -> dict:
    """diffusers says down before across."""
    told = {"original_size": case.original_size and case.original_size[::-1], "crops_coords_top_left": case.crop and case.crop[::-1]}
    return {key: value for key, value in told.items() if value}


def scores(case: Case) -> dict:
    told = {"aesthetic_score": case.aesthetic_score, "negative_aesthetic_score": case.negative_aesthetic_score}
    return {key: value for key, value in told.items() if value is not None}


def begun(pipes: dict, case: Case, config: dict, i: int, **arguments):
    """The first pass, from noise or from a picture."""
    size = (case.width, case.height)
    if case.strength is None:
        return called(pipes["text"], case, config, i, width=size[0], height=size[1], **arguments)
    return called(pipes["picture"], case, config, i, image=given.picture(*size), strength=case.strength, **arguments)


def refined(pipes: dict, refiner, case: Case) -> np.ndarray:
    found = []
    for i in range(case.batch):
        if case.refiner_start is None:
            picture = given.picture(case.width, case.height)
            latents, _ = called(refiner, case, xl.SCHEDULER, i, image=picture, strength=case.strength, **scores(case))
        else:
            _, latents = begun(pipes, case, xl.SCHEDULER, i, denoising_end=case.refiner_start, output_type="latent", **sizes(case))
            latents, _ = called(refiner, case, xl.SCHEDULER, i, image=latents, denoising_start=case.refiner_start, **sizes(case), **scores(case))
        found.append(latents[0].numpy())
    return np.stack(found)


def upscaled(pipes: dict, case: Case, config: dict) -> np.ndarray:
    found = []
    for i in range(case.batch):
        latents, images = begun(pipes, case, config, i)
        width, height = case.larger
        if case.upscale_space == "pixel":
            image = images[0].resize((width, height), Image.Resampling.LANCZOS)
        else:
            mode = "nearest-exact" if case.upscale_space == "latent-nearest" else "bilinear"
            image = torch.nn.functional.interpolate(latents, (height // 8, width // 8), mode=mode)
        steps = case.upscale_steps or case.steps
        latents, _ = called(pipes["picture"], case, config, i, image=image, strength=case.upscale_strength, num_inference_steps=steps)
        found.append(latents[0].numpy())
    return np.stack(found)


def flux() -> dict:
    """FLUX.1's two pipelines, over the model of the case `dev`."""
    case = cases.CASES["dev"]
    networks, _ = models.synthesise(case)
    pipe = models.pipeline(networks, models.scheduler(case.scheduler)[0], goldenfile.DIRECTORY / "tokenizers")
    made = {"text": pipe, "picture": diffusers.FluxImg2ImgPipeline(**pipe.components)}
    for each in made.values():
        each.set_progress_bar_config(disable=True)
    return made


def flux_upscaled(pipes: dict, case: Case) -> np.ndarray:
    found = []
    for i in range(case.batch):
        last = []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        def pass_of(pipe, size, steps, **arguments):
            made = pipe(
                prompt=case.prompt,
                guidance_scale=3.5,
                width=size[0],
                height=size[1],
                num_inference_steps=steps,
                generator=generate.generator((case.seed + i) % 2**64),
                max_sequence_length=case.max_sequence_length,
                callback_on_step_end=keep,
                **arguments,
            )
            return pipe._unpack_latents(last[0], size[1], size[0], pipe.vae_scale_factor), made.images[0]

        latents, image = pass_of(pipes["text"], (case.width, case.height), case.steps)
        width, height = case.larger
        if case.upscale_space == "pixel":
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        else:
            image = torch.nn.functional.interpolate(latents, (height // 8, width // 8), mode="bilinear")
        steps = case.upscale_steps or case.steps
        found.append(pass_of(pipes["picture"], case.larger, steps, image=image, strength=case.upscale_strength)[0][0].numpy())
    return np.stack(found)


def record(name: str, draw, all_cases: dict, body: dict, options) -> list[str]:
    tensors, described = {}, {}
    for case_name, case in all_cases.items():
        latents = tensors[f"{case_name}.latents"] = draw(case)
        described[case_name] = asdict(case)
        if options.health:
            others = {"seed": dataclasses.replace(case, seed=6), "prompt": dataclasses.replace(case, prompt="a yellow star")}
            if case.refiner_start:
                others["start"] = dataclasses.replace(case, refiner_start=0.9)
                others["scores"] = dataclasses.replace(case, aesthetic_score=2.0, negative_aesthetic_score=9.0)
            if case.upscale:
                others["strength"] = dataclasses.replace(case, upscale_strength=0.3)
            moved = {what: goldenfile.nmse(draw(other), latents) for what, other in others.items()}
            print(f"{name} {case_name}: rms {np.sqrt(np.square(latents).mean()):.2f}; moved by", ", ".join(f"{k} {v:.1e}" for k, v in moved.items()))
    if options.health:
        return []
    body = json.loads(json.dumps({"made_by": "tests/reference/two_passes.py"} | body | {"cases": described}))
    return goldenfile.compare(name, body, tensors) if options.check else goldenfile.write(name, body, tensors) or []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say how far the latents move")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    with torch.no_grad():
        pipes, _ = xl.pipelines()
        pipe, components = refiner()
        body = {"class": "StableDiffusionXLImg2ImgPipeline", "components": components, "scheduler": xl.SCHEDULER, "pad_2": xl.PAD_2}
        problems = record("sdxl_refiner", lambda case: refined(pipes, pipe, case), REFINED, body, options)
        some = {name: UPSCALED[name] for name in ("latent", "pixel")}
        problems += record("sdxl_upscale", lambda case: upscaled(pipes, case, xl.SCHEDULER), some, {"based_on": "sdxl"}, options)
        pipes, _ = sd.pipelines()
        flux_pipes = flux()
        problems += record("flux_upscale", lambda case: flux_upscaled(flux_pipes, case), FLUX_UPSCALED, {"based_on": "dev"}, options)
        problems += record("sd1_upscale", lambda case: upscaled(pipes, case, sd.SCHEDULER), UPSCALED, {"based_on": "sd1"}, options)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
