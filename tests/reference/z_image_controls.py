"""Records what diffusers draws with ControlNets beside a small synthetic Z-Image: ZImageControlNetPipeline and, with a mask,
ZImageControlNetInpaintPipeline.

    python z_image_controls.py            writes z_image_controls
    python z_image_controls.py --check    compares with the committed files instead of writing them
    python z_image_controls.py --health   says how far the latents move when one thing of a request does

The model is that of z_image.py with more layers, and its tokenizer, which has to be there. The ControlNets are of the three published
kinds: `first` sees the picture alone, `reused` (2.0) takes its layers as refiners as well, and `union` (2.1) has refiners of its own. `few`
is like the last, with one layer, as in the file that is called lite.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from transformers import Qwen3Config, Qwen3Model

import cases
import generate
import given
import goldenfile
import models
import z_image
from beside import with_channels
from cases import Component

NAME = "z_image_controls"
LAYERS, REFINERS = 4, 2


@dataclass(frozen=True)
class Control:
    """A ControlNet in a request. diffusers knows no part of the steps: outside of it, the ControlNet is not asked here."""

    net: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None
    turned: bool = False


@dataclass(frozen=True)
class Case:
    """A request. `cfg_scale` is what the pipeline calls guidance_scale: 0 is off."""

    controls: tuple[Control, ...]
    width: int = 112
    height: int = 80
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a black cross, two tiny moons on the left, the quick brown fox behind"
    negative_prompt: str | None = None
    cfg_scale: float = 0.0
    masked: bool = False
    batch: int = 1


FIRST, REUSED, UNION = Control("first"), Control("reused"), Control("union", scale=0.75)
GUIDED = {"cfg_scale": 3.0, "negative_prompt": "blurry", "batch": 2, "width": 48, "height": 80, "steps": 2}
CASES = {
    # 7 x 5 tokens of the picture are filled up to 64.
    "first": Case((replace(FIRST, scale=0.7),)),
    "first_cfg": Case((FIRST,), **GUIDED),
    "reused": Case((REUSED,), steps=2),
    "reused_cfg": Case((REUSED,), **GUIDED),
    "union": Case((UNION,), seed=2**64 - 1),
    "union_cfg": Case((UNION,), **GUIDED),
    "union_even": Case((UNION,), width=64, height=128, steps=2),
    "union_part": Case((replace(UNION, start=0.2, end=0.6),), steps=5, width=80, height=48),
    "union_mask": Case((UNION,), masked=True),
    "union_mask_cfg": Case((replace(UNION, scale=1.2),), masked=True, **GUIDED),
    "few": Case((Control("few"),), masked=True, width=80, height=48, steps=2),
}


def controlnet(places: list[int], **config) -> Component:
    """A ControlNet of the width of the model."""
    same = ("dim", "n_heads", "n_kv_heads")
    own = z_image.COMPONENTS["transformer"].config
    config = {key: own[key] for key in same} | {"control_layers_places": places, "n_refiner_layers": REFINERS} | config
    return Component("diffusers", "ZImageControlNetModel", config, z_image.TRANSFORMER)


OWN = {"control_in_dim": 33, "control_refiner_layers_places": list(range(REFINERS)), "add_control_noise_refiner": "control_noise_refiner"}
NETS = {
    "first": controlnet([0, 2], control_in_dim=16),
    "reused": controlnet([0, 1, 2, 3], **OWN | {"add_control_noise_refiner": "control_layers"}),
    "union": controlnet([0, 2], **OWN),
    "few": controlnet([0], **OWN),
}


def draw(case: Case, networks: dict, picture=None, mask=None) -> np.ndarray:
    """The last latents [batch, C, h, w]. Every picture of a batch is a run with its own seed."""
    size, control = (case.width, case.height), case.controls[0]
    picture, mask = picture or given.picture(*size), mask or given.mask(*size)
    # The picture that is painted in is another than the one that is followed.
    arguments = {"image": given.picture(*size).transpose(0), "mask_image": mask} if case.masked else {}
    class_name = "ZImageControlNetInpaintPipeline" if case.masked else "ZImageControlNetPipeline"
    parts = {name: networks[name] for name in z_image.COMPONENTS}
    found = []
    for i in range(case.batch):
        net, evaluations = networks[control.net], iter(range(case.steps))
        pipe, last = z_image.pipeline(class_name, parts | {"controlnet": net}), []
        forward = type(net).forward

        def asked(*told, forward=forward, net=net, evaluations=evaluations, **named):
            at = next(evaluations)
            if at / case.steps < control.start or (at + 1) / case.steps > control.end:
                return {}
            return forward(net, *told, **named)

        net.forward = asked

        def keep(_pipe, _step, _timestep, tensors, last=last):
            last[:] = [tensors["latents"].clone()]
            return {}

        pipe(
            prompt=case.prompt,
            negative_prompt=case.negative_prompt,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.cfg_scale,
            control_image=picture,
            controlnet_conditioning_scale=control.scale,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
            output_type="latent",
            **arguments,
        )
        net.__dict__.pop("forward")
        found.append(last[0][0].numpy())
    return np.stack(found)


def health(name: str, case: Case, networks: dict, latents: np.ndarray) -> None:
    """Prints how far the latents move (NMSE) when one thing of the request does, when a weight does, and when all move by 1e-6."""
    control = case.controls[0]
    changed = lambda **told: replace(case, controls=(replace(control, **told),))
    turned = given.picture(case.width, case.height).transpose(0)
    moved = {"picture": draw(case, networks, picture=turned), "scale": draw(changed(scale=control.scale * 1.1), networks)}
    moved["none"] = draw(changed(scale=0.0), networks)
    moved["prompt"] = draw(replace(case, prompt="a yellow star"), networks)
    if case.masked:
        moved["mask"] = draw(case, networks, mask=given.mask(case.width, case.height).transpose(0))
        moved["no mask"] = draw(replace(case, masked=False), networks)
    own = [(key, weight) for key, weight in networks[control.net].named_parameters() if key.startswith("control_")]
    effects = {}
    for key, weight in own:
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=generate.generator(3)))
        effects[key] = goldenfile.nmse(draw(case, networks), latents)
        weight.copy_(kept)
    least = min(effects, key=effects.get)
    g = generate.generator(3)
    kept = [weight.clone() for _, weight in own]
    for _, weight in own:
        weight.mul_(1 + 1e-6 * (torch.rand(weight.shape, generator=g) - 0.5).sign())
    moved["weights by 1e-6"] = draw(case, networks)
    for (_, weight), before in zip(own, kept, strict=True):
        weight.copy_(before)
    found = ", ".join(f"{what} {goldenfile.nmse(found, latents):.1e}" for what, found in moved.items())
    print(f"{name}: {found}; 10% of a weight: least {effects[least]:.1e} ({least})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say how far the latents move")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen3Model"] = (Qwen3Model, Qwen3Config)
    models.DIFFUSERS["ZImageTransformer2DModel"] = diffusers.ZImageTransformer2DModel
    models.DIFFUSERS["ZImageControlNetModel"] = diffusers.ZImageControlNetModel
    components = with_channels(z_image.COMPONENTS, "transformer", n_layers=LAYERS, n_refiner_layers=REFINERS) | NETS
    tensors, described = {}, {}
    with torch.no_grad():
        networks, components = models.synthesise(cases.Case(components=components))
        for name, case in CASES.items():
            latents = draw(case, networks)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
            if options.health:
                health(name, case, networks, latents)
    body = {"made_by": "tests/reference/z_image_controls.py", "components": components}
    body |= {"scheduler": models.scheduler(z_image.SCHEDULER)[1], "cases": described}
    problems = (goldenfile.compare if options.check else goldenfile.write)(NAME, body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
