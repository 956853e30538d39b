"""Records what diffusers draws with ControlNets beside Stable Diffusion 1 and XL.

    python sd_controls.py            writes sd1_controls and sdxl_controls
    python sd_controls.py --check    compares with the committed files instead of writing them
    python sd_controls.py --health   says how far the latents move when one thing of a request does

The models are those of stable_diffusion.py and stable_diffusion_xl.py. The ControlNets differ in what their files cannot be expected to
have in common: the widths of what becomes of the picture's pixels, the order of its colours, residuals that are averaged, levels without
attention.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, MultiControlNetModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import cases
import generate
import given
import goldenfile
import models
import recipes
import stable_diffusion as sd
import stable_diffusion_xl as xl
from unet import UNET


@dataclass(frozen=True)
class Control:
    """A ControlNet in a request. The picture is turned for some, so that two of a request differ."""

    net: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    turned: bool = False
    # Whether what the request's mask covers is -1 in the picture.
    inpaint: bool = False


@dataclass(frozen=True)
class Case:
    """A request."""

    controls: tuple[Control, ...]
    width: int = 104
    height: int = 72
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = "a black cross"
    cfg_scale: float = 5.0
    guess: bool = False
    # A picture to begin with, and whether a part of it stays.
    strength: float | None = None
    masked: bool = False
    batch: int = 1


PLAIN, OTHER = Control("plain"), Control("other", scale=0.8, turned=True)
SMALL = {"width": 56, "height": 40}
ALONE = {"cfg_scale": 1.0, "negative_prompt": None}
CASES = {
    "sd1_controls": {
        "plain": Case((replace(PLAIN, scale=0.7),)),
        "without_cfg": Case((PLAIN,), width=40, height=56, **ALONE),
        "batch": Case((PLAIN,), batch=2, seed=2**64 - 1, **SMALL),
        "part": Case((replace(PLAIN, start=0.2, end=0.6),), steps=6, width=72, height=88),
        "guess": Case((PLAIN,), guess=True, batch=2, **SMALL),
        "guess_without_cfg": Case((replace(PLAIN, scale=1.5),), guess=True, width=40, height=56, **ALONE),
        "two": Case((replace(PLAIN, scale=0.6, end=0.7), replace(OTHER, start=0.5)), steps=5, **SMALL),
        "two_guess": Case((replace(PLAIN, scale=0.6), OTHER), guess=True, **SMALL),
        "pooled": Case((Control("pooled", scale=0.9),), **SMALL),
        "picture": Case((PLAIN,), strength=0.6, steps=5, width=88, height=56),
        "mask": Case((replace(PLAIN, inpaint=True),), strength=0.8, masked=True, steps=5, width=72, height=88),
        "mask_alone": Case((replace(PLAIN, inpaint=True),), masked=True, **SMALL),
    },
    "sdxl_controls": {
        "plain": Case((replace(PLAIN, scale=0.7),)),
        "guess": Case((PLAIN,), guess=True, batch=2, **SMALL),
        "without_negative": Case((PLAIN,), negative_prompt=None, **SMALL),
        "two": Case((replace(PLAIN, end=0.5), Control("small", turned=True)), steps=4, width=40, height=56),
        "picture": Case((PLAIN,), strength=0.6, steps=5, width=72, height=88),
    },
}
RULES = [
    (r"^controlnet_cond_embedding\.(blocks\..*|conv_out)\.weight$", recipes.AFTER_ACTIVATION),
    (r"^controlnet_cond_embedding\..*\.bias$", recipes.Around(0.2)),
    (r"^controlnet_(down|mid)_block.*\.weight$", recipes.Gain(0.6)),
] + UNET


def controlnet(model: dict, **config) -> cases.Component:
    """A ControlNet of the widths of the UNet of `model`."""
    names = ("block_out_channels", "down_block_types", "layers_per_block", "attention_head_dim", "cross_attention_dim", "norm_num_groups")
    names += ("transformer_layers_per_block", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    own = model["unet"].config
    config = {name: own[name] for name in names if name in own} | {"conditioning_embedding_out_channels": [8, 12, 16, 24]} | config
    return cases.Component("diffusers", "ControlNetModel", config, RULES)


NETS = {
    "sd1_controls": {
        "plain": controlnet(sd.COMPONENTS),
        "other": controlnet(sd.COMPONENTS, conditioning_embedding_out_channels=[4, 20, 12, 28], controlnet_conditioning_channel_order="bgr"),
        "pooled": controlnet(sd.COMPONENTS, global_pool_conditions=True),
    },
    "sdxl_controls": {
        "plain": controlnet(xl.COMPONENTS),
        "small": controlnet(xl.COMPONENTS, down_block_types=["DownBlock2D"] * 3, transformer_layers_per_block=[1, 1, 1], mid_block_type="UNetMidBlock2D"),
    },
}
BASES = {"sd1_controls": ("sd1", sd), "sdxl_controls": ("sdxl", xl)}


def synthesise(nets: dict) -> tuple[dict, dict]:
    """The ControlNets, and what the header says of them."""
    networks, described = {}, {}
    for key, component in nets.items():
        networks[key] = models.build(component)
        tensors = models.fill(key, component, networks[key])
        described[key] = {
            "library": component.library,
            "class": component.class_name,
            "file": models.WEIGHTS_FILE[component.library],
            "config": models.config_json(component, networks[key]),
            "tensors": [[tensor[part] for part in ("name", "shape", "scale", "offset")] for tensor in tensors],
        }
    return networks, described


def pipeline(case: Case, base: dict, networks: dict, is_xl: bool):
    """diffusers' pipeline for a case."""
    nets = [networks[control.net] for control in case.controls]
    net = nets[0] if len(nets) == 1 else MultiControlNetModel(nets)
    kind = "" if case.strength is None else "Inpaint" if case.masked else "Img2Img"
    made = getattr(diffusers, f"StableDiffusion{'XL' if is_xl else ''}ControlNet{kind}Pipeline")(**base, controlnet=net)
    made.set_progress_bar_config(disable=True)
    return made


def followed(case: Case, control: Control, picture, mask):
    """The picture of a ControlNet, as diffusers' pipelines take it."""
    picture = picture.transpose(0) if control.turned else picture
    if not control.inpaint:
        return picture
    # As the model cards of inpainting ControlNets make it.
    numbers = np.array(picture).astype(np.float32) / 255.0
    numbers[np.array(mask.convert("L")).astype(np.float32) / 255.0 > 0.5] = -1.0
    return torch.from_numpy(numbers[None].transpose(0, 3, 1, 2))


def draw(case: Case, base: dict, networks: dict, is_xl: bool, picture=None, mask=None) -> np.ndarray:
    """The last latents [batch, C, h, w]. Every picture of a batch is a run with its own seed."""
    size = (case.width, case.height)
    picture, mask = picture or given.picture(*size), mask or given.mask(*size)
    several = len(case.controls) > 1
    listed = lambda values: list(values) if several else next(iter(values))
    pictures = listed(followed(case, control, picture, mask) for control in case.controls)
    arguments = {"image": pictures}
    if case.strength is not None:
        arguments = {"image": given.picture(*size), "strength": case.strength, "control_image": pictures}
        arguments |= {"mask_image": mask} if case.masked else {}
    arguments |= {
        "controlnet_conditioning_scale": listed(control.scale for control in case.controls),
        "control_guidance_start": listed(control.start for control in case.controls),
        "control_guidance_end": listed(control.end for control in case.controls),
        "guess_mode": case.guess,
    }
    pipe, found, kept = pipeline(case, base, networks, is_xl), [], base["scheduler"]
    for i in range(case.batch):
        pipe.scheduler, last = type(kept).from_config(kept.config), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        pipe(
            prompt=case.prompt,
            negative_prompt=case.negative_prompt,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.cfg_scale,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
            output_type="latent",
            **arguments,
        )
        found.append(last[0][0].numpy())
    return np.stack(found)


def health(name: str, case: Case, base: dict, networks: dict, is_xl: bool, latents: np.ndarray) -> None:
    """Prints how far the latents move (NMSE) when one thing of the request does, and when every weight moves by 1e-6."""
    first, rest = case.controls[0], case.controls[1:]
    changed = lambda **told: replace(case, controls=(replace(first, **told), *rest))
    turned = given.picture(case.width, case.height).transpose(0)
    again = lambda case, **told: draw(case, base, networks, is_xl, **told)
    moved = {"picture": again(case, picture=turned), "scale": again(changed(scale=first.scale * 1.1)), "none": again(changed(scale=0.0))}
    moved |= {"prompt": again(replace(case, prompt="a yellow star")), "guess": again(replace(case, guess=not case.guess))}
    if first.end - first.start < 1:
        moved["all steps"] = again(changed(start=0.0, end=1.0))
    if rest:
        moved["alone"] = again(replace(case, controls=(first,)))
    if case.masked:
        moved["mask"] = again(case, mask=given.mask(case.width, case.height).transpose(0))
    weights = [weight for control in case.controls for weight in networks[control.net].parameters()]
    kept, g = [weight.clone() for weight in weights], generate.generator(3)
    for weight in weights:
        weight.mul_(1 + 1e-6 * (torch.rand(weight.shape, generator=g) - 0.5).sign())
    moved["weights by 1e-6"] = again(case)
    for weight, before in zip(weights, kept, strict=True):
        weight.copy_(before)
    print(f"{name}: " + ", ".join(f"{what} {goldenfile.nmse(found, latents):.1e}" for what, found in moved.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say how far the latents move")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.DIFFUSERS["ControlNetModel"] = ControlNetModel
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    problems = []
    for golden, wanted in CASES.items():
        tensors, (model, base) = {}, BASES[golden]
        with torch.no_grad():
            pipes, _ = base.pipelines()
            parts = {name: part for name, part in pipes["text"].components.items() if name not in ("image_encoder", "feature_extractor")}
            if base is sd:
                parts |= {"feature_extractor": None, "requires_safety_checker": False}
            networks, described = synthesise(NETS[golden])
            for name, case in wanted.items():
                latents = draw(case, parts, networks, base is xl)
                tensors[f"{name}.latents"] = latents
                print(f"{golden} {name}: rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
                if options.health:
                    health(name, case, parts, networks, base is xl, latents)
        described_cases = {name: asdict(case) for name, case in wanted.items()}
        body = {"made_by": "tests/reference/sd_controls.py", "model": model, "components": described, "cases": described_cases}
        problems += (goldenfile.compare(golden, body, tensors) if options.check else goldenfile.write(golden, body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
