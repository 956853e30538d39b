"""Records what diffusers draws with ControlNets of Stable Diffusion XL that tell kinds of pictures apart, and with control LoRAs.

    python sd_union.py            writes sdxl_union and sdxl_control_lora
    python sd_union.py --check    compares with the committed files instead of writing them
    python sd_union.py --health   says how far the latents move when one thing of a request does

The model is that of stable_diffusion_xl.py. diffusers does not read control LoRAs: the reference is a ControlNet of the UNet's own weights
with each product of `up` and `down` added, as ComfyUI computes it.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, ControlNetUnionModel
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import generate
import given
import goldenfile
import models
import recipes
import sd_controls
import stable_diffusion_xl as xl
import synth
from sd_controls import ALONE, SMALL


@dataclass(frozen=True)
class Control(sd_controls.Control):
    """A ControlNet in a request, and the kind of its picture; or one picture more for the ControlNet before."""

    mode: int | None = None
    joins: bool = False


Case = sd_controls.Case
FIRST = Control("union", scale=0.7, mode=3)
CASES = {
    "sdxl_union": {
        "plain": Case((FIRST,)),
        "other_mode": Case((replace(FIRST, mode=0),), width=40, height=56, **ALONE),
        # diffusers cannot guess with guidance: it makes the kinds of pictures twice as often as it should.
        "guess": Case((FIRST,), guess=True, batch=2, width=40, height=56, **ALONE),
        "two": Case((replace(FIRST, end=0.5), Control("promax", mode=7, turned=True)), steps=4, width=40, height=56),
        "picture": Case((replace(FIRST, mode=5),), strength=0.6, steps=5, width=72, height=88),
        "joined": Case((FIRST, Control("union", scale=0.9, mode=1, turned=True, joins=True))),
        "joined_three": Case(
            (
                Control("promax", scale=1.2, mode=7),
                Control("promax", scale=0.6, mode=0, turned=True, joins=True),
                Control("promax", scale=0.5, mode=7, turned=True, joins=True),
            ),
            guess=True,
            batch=2,
            steps=4,
            width=40,
            height=56,
            **ALONE,
        ),
    },
    "sdxl_control_lora": {
        "plain": Case((Control("lora", scale=0.8),)),
        "guess": Case((Control("lora"),), guess=True, batch=2, **SMALL),
        "picture": Case((Control("lora", end=0.7),), strength=0.6, steps=5, width=72, height=88),
    },
}
RULES = [
    (r"^task_embedding$", recipes.Around(1.0)),
    (r"\.ln_[12]\.weight$", recipes.NORM),
    (r"in_proj_bias$", recipes.Around(0.3)),
    (r"in_proj_weight$", recipes.Gain(1.2)),
    (r"c_proj\.weight$", recipes.AFTER_ACTIVATION),
] + sd_controls.RULES


def union(kinds: int, layers: int, **config):
    """A ControlNet that tells `kinds` of pictures apart."""
    component = sd_controls.controlnet(xl.COMPONENTS, **config)
    width = component.config["block_out_channels"][0]
    own = {"num_control_type": kinds, "num_trans_layer": layers, "num_trans_channel": width, "num_proj_channel": width, "num_trans_head": 4}
    return replace(component, class_name="ControlNetUnionModel", config=component.config | own, rules=RULES)


NETS = {
    "sdxl_union": {"union": union(6, 1), "promax": union(8, 2, conditioning_embedding_out_channels=[4, 20, 12, 28])},
    "sdxl_control_lora": {},
}
# Of the low-rank changes.
RANK = 5


def control_lora(unet) -> tuple[ControlNetModel, dict]:
    """The ControlNet that a control LoRA of `unet` stands for, and how the header describes the file."""
    net = sd_controls.controlnet(xl.COMPONENTS).config
    net = ControlNetModel(**net).float().eval()
    own, state, described = unet.state_dict(), net.state_dict(), []

    def value(name: str, shape: list, scale: float, offset: float) -> torch.Tensor:
        described.append([name, shape, scale, offset])
        return torch.from_numpy(synth.values("lora", name, shape, scale, offset))

    for name in sorted(state):
        shape, stem = list(state[name].shape), name.rsplit(".", 1)[0]
        is_own = name.startswith("controlnet_")
        if is_own or len(shape) == 1:
            # Vectors and what the UNet does not have are there whole.
            state[name].copy_(value(name, shape, *recipes.scale_offset(sd_controls.RULES, name, shape)))
            continue
        up = value(f"{stem}.up", [shape[0], RANK, *[1] * (len(shape) - 2)], *recipes.Gain(0.5).scale_offset([shape[0], RANK]))
        down = value(f"{stem}.down", [RANK, *shape[1:]], *recipes.Gain(1.0).scale_offset(shape))
        state[name].copy_(own[name] + (up.flatten(1) @ down.flatten(1)).reshape(shape))
    return net, {"library": "none", "class": "control LoRA", "file": "lora.safetensors", "config": {}, "tensors": sorted(described)}


def pipeline(case: Case, base: dict, networks: dict, is_union: bool):
    """diffusers' pipeline for a case."""
    nets = [networks[control.net] for control in case.controls if not control.joins]
    net = nets[0] if len(nets) == 1 else MultiControlNetUnionModel(nets)
    kind = "" if case.strength is None else "Img2Img"
    made = getattr(diffusers, f"StableDiffusionXLControlNet{'Union' if is_union else ''}{kind}Pipeline")(**base, controlnet=net)
    made.set_progress_bar_config(disable=True)
    return made


def draw(case: Case, base: dict, networks: dict, picture=None) -> np.ndarray:
    """The last latents [batch, C, h, w]. Every picture of a batch is a run with its own seed."""
    size, is_union = (case.width, case.height), case.controls[0].mode is not None
    picture = picture or given.picture(*size)
    several = len(case.controls) > 1
    listed = lambda values: list(values) if several else next(iter(values))
    pictures = listed(sd_controls.followed(case, control, picture, None) for control in case.controls)
    arguments = {}
    if is_union:
        arguments["control_mode"] = listed(control.mode for control in case.controls)
    name = "control_image" if is_union or case.strength is not None else "image"
    arguments |= {name: pictures}
    if case.strength is not None:
        arguments |= {"image": given.picture(*size), "strength": case.strength}
    arguments |= {
        "controlnet_conditioning_scale": listed(control.scale for control in case.controls),
        "control_guidance_start": listed(control.start for control in case.controls),
        "control_guidance_end": listed(control.end for control in case.controls),
        "guess_mode": case.guess,
    }
    pipe, found, kept = pipeline(case, base, networks, is_union), [], base["scheduler"]
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


def health(name: str, case: Case, base: dict, networks: dict, latents: np.ndarray) -> None:
    """Prints how far the latents move (NMSE) when one thing of the request does, and when a part of a ControlNet is not there."""
    first, rest = case.controls[0], case.controls[1:]
    changed = lambda **told: replace(case, controls=(replace(first, **told), *rest))
    turned = given.picture(case.width, case.height).transpose(0)
    moved = {"picture": draw(case, base, networks, picture=turned), "scale": draw(changed(scale=first.scale * 1.1), base, networks)}
    moved["none"] = draw(changed(scale=0.0), base, networks)
    if first.mode is not None:
        moved["mode"] = draw(changed(mode=1), base, networks)
        for part in ("spatial_ch_projs.weight", "task_embedding", "transformer_layes.0.mlp.c_proj.weight", "control_add_embedding.linear_2.weight"):
            weight = networks[first.net].get_parameter(part)
            kept = weight.clone()
            weight.zero_()
            moved[f"no {part}"] = draw(case, base, networks)
            weight.copy_(kept)
    print(f"{name}: " + ", ".join(f"{what} {goldenfile.nmse(found, latents):.1e}" for what, found in moved.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say how far the latents move")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.DIFFUSERS["ControlNetUnionModel"] = ControlNetUnionModel
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    problems = []
    for golden, wanted in CASES.items():
        tensors = {}
        with torch.no_grad():
            pipes, _ = xl.pipelines()
            parts = {name: part for name, part in pipes["text"].components.items() if name not in ("image_encoder", "feature_extractor")}
            networks, described = sd_controls.synthesise(NETS[golden])
            if golden == "sdxl_control_lora":
                networks["lora"], described["lora"] = control_lora(parts["unet"])
            for name, case in wanted.items():
                latents = draw(case, parts, networks)
                tensors[f"{name}.latents"] = latents
                print(f"{golden} {name}: rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
                if options.health:
                    health(f"{golden} {name}", case, parts, networks, latents)
        described_cases = {name: asdict(case) for name, case in wanted.items()}
        body = {"made_by": "tests/reference/sd_union.py", "model": "sdxl", "components": described, "cases": described_cases}
        problems += (goldenfile.compare(golden, body, tensors) if options.check else goldenfile.write(golden, body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
