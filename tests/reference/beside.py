"""Records what diffusers' pipelines draw with denoisers that take pictures in channels of their own beside the latents, or as tokens
behind them.

    python beside.py            writes flux_fill, flux_control, flux_kontext, sd1_inpaint, sd1_edit and sdxl_inpaint
    python beside.py --check    compares with the committed files instead of writing them

The models are those of cases.py, stable_diffusion.py and stable_diffusion_xl.py, with other first layers.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTextConfig, CLIPTokenizer

import cases
import generate
import given
import goldenfile
import models
import stable_diffusion as sd
import stable_diffusion_xl as xl


@dataclass(frozen=True)
class Case:
    """A request. What is None, diffusers is not told."""

    width: int = 104
    height: int = 72
    steps: int = 4
    seed: int = 5
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = None
    # Classifier-free guidance; guidance as an input; guidance by the picture.
    cfg_scale: float = 1.0
    guidance_scale: float | None = None
    image_cfg_scale: float | None = None
    strength: float | None = None
    max_sequence_length: int | None = None
    masked: bool = False
    # Which picture is given: to begin with or to be changed, or to be followed.
    image: bool = True
    control_image: bool = False
    # What the picture measures that the model looks at, and whether it is resized to a size that the model was trained with.
    reference: tuple[int, int] | None = None
    resized: bool = False
    batch: int = 1
    decoded: bool = False


FLUX = Case(width=112, height=80, guidance_scale=30.0, max_sequence_length=24, seed=11)
FILL = replace(FLUX, masked=True, strength=1.0)
CONTROL = replace(FLUX, image=False, control_image=True)
KONTEXT = replace(FLUX, image=False, guidance_scale=2.5, reference=(96, 64))
INPAINT = Case(masked=True, strength=1.0, cfg_scale=7.5, negative_prompt="a black cross")
EDIT = Case(cfg_scale=7.5, image_cfg_scale=1.5, negative_prompt="a black cross")
GOLDENS = {
    "flux_fill": {
        "fill": replace(FILL, decoded=True),
        "fill_half": replace(FILL, strength=0.6, steps=5, width=80, height=144),
        "fill_batch": replace(FILL, batch=2, width=48, height=64, seed=2**64 - 1),
    },
    "flux_control": {
        "control": replace(CONTROL, decoded=True),
        "control_batch": replace(CONTROL, batch=2, width=48, height=64, seed=2**64 - 1),
    },
    "flux_kontext": {
        "kontext": replace(KONTEXT, decoded=True),
        # Sides that are no multiples of 16 lose what is more.
        "kontext_cfg": replace(KONTEXT, reference=(150, 61), cfg_scale=2.0, negative_prompt="a black cross", width=80, height=144),
        "kontext_batch": replace(KONTEXT, batch=2, width=48, height=64, seed=2**64 - 1),
        "kontext_resized": replace(KONTEXT, reference=(57, 171), resized=True, width=48, height=64, steps=1),
        "kontext_large": replace(KONTEXT, reference=(672, 1568), width=48, height=64, steps=1),
        "without_reference": replace(KONTEXT, reference=None, width=48, height=64),
    },
    "sd1_inpaint": {
        "inpaint": replace(INPAINT, decoded=True),
        "inpaint_half": replace(INPAINT, strength=0.6, steps=5, width=56, height=88),
        "inpaint_without_cfg": replace(INPAINT, cfg_scale=1.0, negative_prompt=None, width=40, height=56),
        "inpaint_batch": replace(INPAINT, batch=2, width=56, height=40, seed=2**64 - 1),
    },
    "sd1_edit": {
        "edit": replace(EDIT, decoded=True),
        "edit_closely": replace(EDIT, image_cfg_scale=2.25, negative_prompt=None, width=56, height=88),
        "edit_without_cfg": replace(EDIT, cfg_scale=1.0, width=40, height=56),
        "edit_batch": replace(EDIT, batch=2, width=56, height=40, seed=2**64 - 1),
    },
    "sdxl_inpaint": {
        "inpaint": replace(INPAINT, cfg_scale=5.0, width=72, height=88),
        "inpaint_half": replace(INPAINT, cfg_scale=5.0, strength=0.6, steps=5, negative_prompt=None),
    },
    "sdxl_edit": {
        "edit": replace(EDIT, cfg_scale=5.0, width=72, height=88),
        "edit_closely": replace(EDIT, cfg_scale=4.0, image_cfg_scale=2.25, negative_prompt=None, width=56, height=40),
        "edit_batch": replace(EDIT, cfg_scale=5.0, batch=2, width=40, height=56),
    },
}


def with_channels(components: dict, denoiser: str, **config) -> dict:
    """The same components with another first layer of the denoiser."""
    return components | {denoiser: replace(components[denoiser], config=components[denoiser].config | config)}


def synthesise(components: dict, denoiser: str) -> tuple[dict, dict]:
    """The networks, and what the header says of the denoiser: its configuration and its first layer's weight."""
    networks, described = models.synthesise(cases.Case(components=components))
    first = {"unet": "conv_in.weight", "transformer": "x_embedder.weight"}[denoiser]
    tensor = next(tensor for tensor in described[denoiser]["tensors"] if tensor["name"] == first)
    changed = {"component": denoiser, "config": described[denoiser]["config"], "tensor": tensor}
    return networks, changed


def flux(class_name: str, in_channels: int):
    case = cases.CASES["dev"]
    networks, described = synthesise(with_channels(case.components, "transformer", in_channels=in_channels, out_channels=64), "transformer")
    made, _ = models.scheduler(case.scheduler)
    parts = models.pipeline(networks, made, goldenfile.DIRECTORY / "tokenizers").components
    taken = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    return getattr(diffusers, class_name)(**taken), described


def sd1(class_name: str, in_channels: int):
    networks, described = synthesise(with_channels(sd.COMPONENTS, "unet", in_channels=in_channels), "unet")
    tokenizer = CLIPTokenizer.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "clip")
    parts = networks | {"tokenizer": tokenizer, "scheduler": diffusers.PNDMScheduler.from_config(sd.SCHEDULER)}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, class_name)(**parts), described


def sdxl(class_name: str, in_channels: int):
    networks, described = synthesise(with_channels(xl.COMPONENTS, "unet", in_channels=in_channels), "unet")
    read = lambda **told: CLIPTokenizer.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "clip", **told)
    parts = networks | {"tokenizer": read(), "tokenizer_2": read(pad_token=xl.PAD_2)}
    parts |= {"scheduler": diffusers.EulerDiscreteScheduler.from_config(xl.SCHEDULER), "force_zeros_for_empty_prompt": True, "add_watermarker": False}
    return getattr(diffusers, class_name)(**parts), described


# The golden that describes the rest of each model, and what makes it.
MODELS = {
    "flux_fill": ("dev", lambda: flux("FluxFillPipeline", 64 + 64 + 256)),
    "flux_kontext": ("dev", lambda: flux("FluxKontextPipeline", 64)),
    "flux_control": ("dev", lambda: flux("FluxControlPipeline", 64 + 64)),
    "sd1_inpaint": ("sd1", lambda: sd1("StableDiffusionInpaintPipeline", 9)),
    "sd1_edit": ("sd1", lambda: sd1("StableDiffusionInstructPix2PixPipeline", 8)),
    "sdxl_inpaint": ("sdxl", lambda: sdxl("StableDiffusionXLInpaintPipeline", 9)),
    "sdxl_edit": ("sdxl", lambda: sdxl("StableDiffusionXLInstructPix2PixPipeline", 8)),
}


def draw(pipe, case: Case, is_flux: bool) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    size = (case.width, case.height)
    arguments = {"image": given.picture(*size)} if case.image else {}
    arguments |= {"mask_image": given.mask(*size)} if case.masked else {}
    arguments |= {"control_image": given.picture(*size)} if case.control_image else {}
    if is_flux and "Kontext" in type(pipe).__name__:
        arguments |= {"image": given.picture(*case.reference)} if case.reference else {}
        arguments |= {"max_area": case.width * case.height, "_auto_resize": case.resized}
        arguments |= {"true_cfg_scale": case.cfg_scale, "negative_prompt": case.negative_prompt}
    # This one still has the callback of before.
    is_old = type(pipe).__name__ == "StableDiffusionXLInstructPix2PixPipeline"
    if not case.image_cfg_scale or is_old:
        arguments |= {"width": case.width, "height": case.height}
    told = {"strength": case.strength, "max_sequence_length": case.max_sequence_length, "image_guidance_scale": case.image_cfg_scale}
    arguments |= {name: value for name, value in told.items() if value is not None}
    if not is_flux:
        arguments |= {"negative_prompt": case.negative_prompt}
    found, pictures, kept = [], [], pipe.scheduler
    for i in range(case.batch):
        pipe.scheduler, last = type(kept).from_config(kept.config), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        def keep_old(_step, _timestep, latents):
            last[:] = [latents.clone()]

        made = pipe(
            prompt=case.prompt,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance_scale if is_flux else case.cfg_scale,
            generator=generate.generator((case.seed + i) % 2**64),
            **({"callback": keep_old, "callback_steps": 1} if is_old else {"callback_on_step_end": keep}),
            **arguments,
        )
        latents = pipe._unpack_latents(last[0], case.height, case.width, pipe.vae_scale_factor) if is_flux else last[0]
        found.append(latents[0].numpy())
        pictures.append(np.asarray(made.images[0]))
    return np.stack(found), pictures[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.DIFFUSERS["UNet2DConditionModel"] = diffusers.UNet2DConditionModel
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    problems = []
    for golden, wanted in GOLDENS.items():
        tensors, described = {}, {}
        with torch.no_grad():
            base, make = MODELS[golden]
            pipe, changed = make()
            pipe.set_progress_bar_config(disable=True)
            for name, case in wanted.items():
                latents, picture = draw(pipe, case, golden.startswith("flux"))
                tensors[f"{name}.latents"], described[name] = latents, asdict(case)
                if case.decoded:
                    tensors[f"{name}.picture"] = picture
                print(f"{golden} {name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
        body = {"made_by": "tests/reference/beside.py", "class": type(pipe).__name__, "based_on": base, "changed": changed, "cases": described}
        problems += (goldenfile.compare(golden, body, tensors) if options.check else goldenfile.write(golden, body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
