"""Records what diffusers draws with ControlNets beside a small synthetic Qwen-Image: QwenImageControlNetPipeline and, for the one that paints
within a picture, QwenImageControlNetInpaintPipeline.

    python qwen_image_controls.py            writes qwen_image_controls
    python qwen_image_controls.py --check    compares with the committed file instead of writing it
    python qwen_image_controls.py --health   says how far the latents move when one thing of a request does

The model is that of qwen_image.py with another layer, so that residuals are not spread evenly, and its tokenizer. One mend: the inpainting
pipeline draws the latents of its picture from the request's generator, like all others.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.controlnets.controlnet_qwenimage import QwenImageMultiControlNetModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import cases
import generate
import given
import goldenfile
import models
import qwen_image
from beside import with_channels
from cases import Component

NAME = "qwen_image_controls"
LAYERS = 4
# Channels of a mask in a token: two by two latents.
MASK_CHANNELS = 4


@dataclass(frozen=True)
class Control:
    """A ControlNet in a request. The picture is turned for some, so that two of a request differ."""

    net: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None
    turned: bool = False


@dataclass(frozen=True)
class Case:
    """A request. Without a negative prompt there is no guidance."""

    controls: tuple[Control, ...]
    width: int = 112
    height: int = 80
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a black cross, two tiny moons on the left, the quick brown fox behind"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    masked: bool = False
    batch: int = 1


UNION, INPAINT = Control("union", scale=0.8), Control("inpaint")
GUIDED = {"cfg_scale": 3.0, "width": 48, "height": 80, "steps": 2}
CASES = {
    # 7 x 5 tokens: both sides are odd, so that no position is in the middle.
    "union": Case((UNION,), seed=2**64 - 1),
    # The prompt is longer than the negative one, and shorter.
    "union_cfg": Case((UNION,), batch=2, negative_prompt="a black cross", **GUIDED),
    "union_shorter": Case((UNION,), prompt="a red star", negative_prompt="two tiny moons, blurry", **GUIDED),
    "union_part": Case((replace(UNION, start=0.2, end=0.6),), steps=5, width=80, height=48),
    "two": Case((UNION, replace(UNION, scale=0.6, turned=True)), steps=2, width=64, height=80),
    "inpaint": Case((INPAINT,), masked=True),
    "inpaint_cfg": Case((replace(INPAINT, scale=0.7),), masked=True, batch=2, negative_prompt="blurry", **GUIDED),
}


def controlnet(**config) -> Component:
    """A ControlNet of the width of the model."""
    same = ("in_channels", "out_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "axes_dims_rope")
    own = qwen_image.COMPONENTS["transformer"].config
    config = {key: own[key] for key in same} | config
    return Component("diffusers", "QwenImageControlNetModel", config, qwen_image.TRANSFORMER)


NETS = {"union": controlnet(num_layers=3), "inpaint": controlnet(num_layers=1, extra_condition_channels=MASK_CHANNELS)}


def pipeline(case: Case, networks: dict):
    """diffusers' pipeline for a case."""
    net = networks[case.controls[0].net]
    net = net if len(case.controls) == 1 else QwenImageMultiControlNetModel([net])
    class_name = "QwenImageControlNetInpaintPipeline" if case.masked else "QwenImageControlNetPipeline"
    parts = {name: networks[name] for name in qwen_image.COMPONENTS}
    return qwen_image.pipeline(class_name, parts | {"controlnet": net})


def draw(case: Case, networks: dict, picture=None, mask=None) -> np.ndarray:
    """The last latents [batch, C, h, w]. Every picture of a batch is a run with its own seed."""
    size = (case.width, case.height)
    picture, mask = picture or given.picture(*size), mask or given.mask(*size)
    pictures = [picture.transpose(0) if control.turned else picture for control in case.controls]
    listed = lambda values: list(values) if len(case.controls) > 1 else next(iter(values))
    arguments = {"control_mask": mask} if case.masked else {}
    guided = {"negative_prompt": case.negative_prompt, "true_cfg_scale": case.cfg_scale} if case.negative_prompt is not None else {}
    sample, found = DiagonalGaussianDistribution.sample, []
    for i in range(case.batch):
        pipe, last, generator = pipeline(case, networks), [], generate.generator((case.seed + i) % 2**64)
        DiagonalGaussianDistribution.sample = lambda self, given_=None, generator=generator: sample(self, generator)

        def keep(_pipe, _step, _timestep, tensors, last=last):
            last[:] = [tensors["latents"].clone()]
            return {}

        pipe(
            prompt=case.prompt,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            control_image=listed(pictures),
            controlnet_conditioning_scale=listed(control.scale for control in case.controls),
            control_guidance_start=listed(control.start for control in case.controls),
            control_guidance_end=listed(control.end for control in case.controls),
            generator=generator,
            callback_on_step_end=keep,
            output_type="latent",
            **arguments,
            **guided,
        )
        DiagonalGaussianDistribution.sample = sample
        found.append(pipe._unpack_latents(last[0], case.height, case.width, pipe.vae_scale_factor)[0, :, 0].numpy())
    return np.stack(found)


def health(name: str, case: Case, networks: dict, latents: np.ndarray) -> None:
    """Prints how far the latents move (NMSE) when one thing of the request does, when a weight does, and when all move by 1e-6."""
    first, rest = case.controls[0], case.controls[1:]
    changed = lambda **told: replace(case, controls=(replace(first, **told), *rest))
    turned = given.picture(case.width, case.height).transpose(0)
    moved = {"picture": draw(case, networks, picture=turned), "scale": draw(changed(scale=first.scale * 1.1), networks)}
    moved["none"] = draw(changed(scale=0.0), networks)
    moved["prompt"] = draw(replace(case, prompt="a yellow star"), networks)
    if case.masked:
        moved["mask"] = draw(case, networks, mask=given.mask(case.width, case.height).transpose(0))
    own, effects = list(networks[first.net].named_parameters()), {}
    for key, weight in own:
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=generate.generator(3)))
        effects[key] = goldenfile.nmse(draw(case, networks), latents)
        weight.copy_(kept)
    # The text that leaves the last block goes nowhere, and softmax ignores biases of keys.
    least = sorted(effects.items(), key=lambda effect: effect[1])[:16]
    kept, g = [weight.clone() for _, weight in own], generate.generator(3)
    for _, weight in own:
        weight.mul_(1 + 1e-6 * (torch.rand(weight.shape, generator=g) - 0.5).sign())
    moved["weights by 1e-6"] = draw(case, networks)
    for (_, weight), before in zip(own, kept, strict=True):
        weight.copy_(before)
    found = ", ".join(f"{what} {goldenfile.nmse(found, latents):.1e}" for what, found in moved.items())
    print(f"{name}: {found}; 10% of a weight: least " + ", ".join(f"{effect:.1e} ({key})" for key, effect in least), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    parser.add_argument("--health", action="store_true", help="say how far the latents move")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen2_5_VLForConditionalGeneration"] = (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig)
    for name in ("QwenImageTransformer2DModel", "AutoencoderKLQwenImage", "QwenImageControlNetModel"):
        models.DIFFUSERS[name] = getattr(diffusers, name)
    components = with_channels(qwen_image.COMPONENTS, "transformer", num_layers=LAYERS) | NETS
    tensors, described = {}, {}
    with torch.no_grad():
        networks, components = models.synthesise(cases.Case(components=components))
        for name, case in CASES.items():
            latents = draw(case, networks)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
            if options.health:
                health(name, case, networks, latents)
    body = {"made_by": "tests/reference/qwen_image_controls.py", "components": components}
    body |= {"scheduler": models.scheduler(qwen_image.SCHEDULER)[1], "cases": described}
    problems = (goldenfile.compare if options.check else goldenfile.write)(NAME, body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
