"""Records what diffusers draws with ControlNets of FLUX.1 beside a model.

    python controls.py            writes flux_controls
    python controls.py --check    compares with the committed files instead of writing them
    python controls.py --health   says how far the latents move when one thing of a request does

The model is `dev` of cases.py with three blocks of each kind, so that two residuals are not spread evenly. The ControlNet that paints
within a picture is alimama's, which diffusers does not have: its own pipeline gives the ControlNet the latents of a picture that is black
under the mask, and behind them, packed alike, what the mask leaves.

Beside a step cache, what ControlNets add is a part of the blocks here, so that it is skipped with them. diffusers adds it outside of what
its hooks skip: in an evaluation that is skipped, it would be there twice, in what was kept and once more.
"""

import argparse
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from diffusers import FluxControlNetImg2ImgPipeline, FluxControlNetInpaintPipeline, FluxControlNetModel, FluxControlNetPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.controlnets.controlnet_flux import FluxMultiControlNetModel

import caches
import cases
import generate
import given
import goldenfile
import models
import recipes
from beside import with_channels

NAME = "flux_controls"
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
    """A request. What is None, diffusers is not told."""

    controls: tuple[Control, ...]
    width: int = 112
    height: int = 80
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    guidance_scale: float = 3.5
    max_sequence_length: int = 24
    # A picture to begin with, and whether a part of it stays.
    strength: float | None = None
    masked: bool = False
    batch: int = 1
    # As in caches.py.
    cache: str | None = None
    threshold: float | None = None


SHORT = {"steps": 8, "width": 80, "height": 48}
PLAIN, UNION = Control("plain"), Control("union", mode=2)
CASES = {
    "plain": Case((replace(PLAIN, scale=0.7),)),
    "plain_cfg": Case((PLAIN,), cfg_scale=2.0, negative_prompt="a black cross", width=48, height=64, batch=2, seed=2**64 - 1),
    "plain_part": Case((replace(PLAIN, start=0.2, end=0.6),), steps=5, width=80, height=144),
    "plain_picture": Case((PLAIN,), strength=0.6, steps=5, width=80, height=64),
    "plain_mask": Case((PLAIN,), strength=0.6, masked=True, steps=5, width=80, height=64),
    "union": Case((replace(UNION, scale=0.9),), batch=2, width=48, height=64),
    "union_number": Case((replace(UNION, mode=8),), width=80, height=48, steps=2),
    "single": Case((Control("single"),), width=64, height=48, steps=2),
    "inpaint": Case((Control("inpaint", scale=0.9),), masked=True),
    "pixels": Case((Control("pixels", scale=0.8),), width=80, height=144),
    "pixels_batch": Case((Control("pixels"),), cfg_scale=1.5, negative_prompt="a black cross", width=48, height=64, batch=2),
    "two": Case((replace(PLAIN, scale=0.6), replace(UNION, scale=0.8, start=0.5, turned=True)), steps=4, width=64, height=80),
    "first_block": Case((UNION,), cache="first-block", threshold=0.6, **SHORT),
    "first_block_loosely": Case((UNION,), cache="first-block", threshold=0.8, **SHORT),
    "first_block_cfg": Case((PLAIN,), cache="first-block", threshold=0.7, cfg_scale=2.0, negative_prompt="a black cross", **SHORT),
    "magcache": Case((PLAIN,), cache="magcache", threshold=0.2, **SHORT),
    "magcache_pixels": Case((Control("pixels"),), cache="magcache", threshold=0.1, **SHORT),
    "teacache": Case((UNION,), cache="teacache", threshold=0.6, **SHORT),
}


def controlnet(**config) -> cases.Component:
    """A ControlNet of the width of `dev`'s transformer."""
    same = ("num_attention_heads", "attention_head_dim", "axes_dims_rope", "joint_attention_dim", "pooled_projection_dim", "in_channels")
    own = cases.CASES["dev"].components["transformer"].config
    config = {key: own[key] for key in same} | {"guidance_embeds": True} | config
    modes = [(r"controlnet_mode_embedder\.weight$", recipes.Around(1.2))]
    hint = [(r"input_hint_block\..*\.weight$", recipes.AFTER_ACTIVATION)]
    return cases.Component("diffusers", "FluxControlNetModel", config, modes + hint + recipes.TRANSFORMER)


NETS = {
    "plain": controlnet(num_layers=2, num_single_layers=2),
    "union": controlnet(num_layers=2, num_single_layers=2, num_mode=10),
    "single": controlnet(num_layers=0, num_single_layers=1, guidance_embeds=False),
    "inpaint": controlnet(num_layers=2, num_single_layers=0),
    "pixels": controlnet(num_layers=2, num_single_layers=0, conditioning_embedding_channels=16, patch_size=2),
}


def synthesise() -> tuple[dict, dict]:
    """All networks, and what the header says of them."""
    components = with_channels(cases.CASES["dev"].components, "transformer", num_layers=3, num_single_layers=3) | NETS
    networks, described = {}, {}
    for key, component in components.items():
        networks[key] = models.build(component)
        if key == "inpaint":
            embedder = networks[key].controlnet_x_embedder
            networks[key].controlnet_x_embedder = torch.nn.Linear(embedder.in_features + MASK_CHANNELS, embedder.out_features)
        tensors = models.fill(key, component, networks[key])
        config = models.config_json(component, networks[key]) | ({"extra_condition_channels": MASK_CHANNELS} if key == "inpaint" else {})
        described[key] = {
            "library": component.library,
            "class": component.class_name,
            "file": models.WEIGHTS_FILE[component.library],
            "config": config,
            "tensors": [[tensor[part] for part in ("name", "shape", "scale", "offset")] for tensor in tensors],
        }
    return networks, described


def pipeline(case: Case, base: dict, networks: dict):
    """diffusers' pipeline for a case."""
    nets = [networks[control.net] for control in case.controls]
    net = nets[0] if len(nets) == 1 else FluxMultiControlNetModel(nets)
    begins = FluxControlNetInpaintPipeline if case.masked else FluxControlNetImg2ImgPipeline
    made = (FluxControlNetPipeline if case.strength is None else begins)(**base, controlnet=net)
    made.set_progress_bar_config(disable=True)
    return made


class Within:
    """What ControlNets add, within the blocks of a transformer: behind a block as a part of it, except behind the first, which a cache may
    look at by itself: that is added before the second."""

    def __init__(self, transformer):
        self.transformer, self.added = transformer, {}
        self.kinds = {"controlnet_block_samples": transformer.transformer_blocks, "controlnet_single_block_samples": transformer.single_transformer_blocks}
        self.blocks, self.forward = [block for blocks in self.kinds.values() for block in blocks], transformer.forward
        for at, block in enumerate(self.blocks):
            block.forward = self.replaced(at, block.forward)
        transformer.forward = self.run

    def remove(self) -> None:
        self.transformer.forward = self.forward
        for block in self.blocks:
            block.__dict__.pop("forward", None)

    def run(self, *given_, **named):
        self.added, first, repeats = {}, 0, named.get("controlnet_blocks_repeat")
        for name, blocks in self.kinds.items():
            samples = named.pop(name, None) or []
            for at in range(len(blocks) if samples else 0):
                each = -(-len(blocks) // len(samples))
                which = at % len(samples) if repeats and blocks is self.transformer.transformer_blocks else at // each
                self.added[first + at] = samples[which]
            first += len(blocks)
        return self.forward(*given_, **named)

    def replaced(self, at: int, forward):
        def run(hidden_states, encoder_hidden_states, temb, **others):
            if at == 1 and 0 in self.added:
                hidden_states = hidden_states + self.added[0]
            text, image = forward(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb, **others)
            return text, image + self.added[at] if at > 0 and at in self.added else image

        return run


@contextmanager
def cached(transformer, case: Case):
    """`transformer` with the cache of `case`, if it has one; gives which evaluations were computed."""
    if case.cache is None:
        yield None
        return
    within = Within(transformer)
    told = caches.Case(case.cache, case.threshold, steps=case.steps, cfg_scale=case.cfg_scale)
    try:
        with caches.cached(transformer, told, False) as computed:
            yield computed
    finally:
        within.remove()


def under_mask(case: Case, picture, mask) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture's pixels, black under the mask, and what the mask leaves, as tokens."""
    size = {"width": case.width, "height": case.height}
    pixels = VaeImageProcessor(vae_scale_factor=16).preprocess(picture, **size)
    hidden = VaeImageProcessor(vae_scale_factor=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True).preprocess(mask, **size)
    pixels[(hidden > 0.5).repeat(1, 3, 1, 1)] = -1
    left = 1 - torch.nn.functional.interpolate(hidden, size=(case.height // 8, case.width // 8))
    return pixels, FluxControlNetPipeline._pack_latents(left, 1, 1, case.height // 8, case.width // 8)


def draw(case: Case, base: dict, networks: dict, picture=None, mask=None, computed: list | None = None) -> np.ndarray:
    """The last latents [batch, C, h, w]. Every picture of a batch is a run with its own seed. `computed` is told which evaluations a cache
    has computed."""
    size = (case.width, case.height)
    picture, mask = picture or given.picture(*size), mask or given.mask(*size)
    pictures = [picture.transpose(0) if control.turned else picture for control in case.controls]
    arguments = {}
    if case.strength is not None:
        # These pipelines know no true guidance.
        arguments |= {"image": given.picture(*size), "strength": case.strength} | ({"mask_image": mask} if case.masked else {})
    else:
        arguments |= {"true_cfg_scale": case.cfg_scale, "negative_prompt": case.negative_prompt}
    net = networks[case.controls[0].net]
    if case.masked and case.strength is None:
        pictures[0], left = under_mask(case, pictures[0], mask)
        forward = type(net).forward
        net.forward = lambda **told: forward(net, **told | {"controlnet_cond": torch.cat([told["controlnet_cond"], left], dim=-1)})
    several = len(case.controls) > 1
    listed = lambda values: list(values) if several else next(iter(values))
    arguments |= {
        "control_image": listed(pictures),
        "control_mode": listed(control.mode for control in case.controls),
        "controlnet_conditioning_scale": listed(control.scale for control in case.controls),
        "control_guidance_start": listed(control.start for control in case.controls),
        "control_guidance_end": listed(control.end for control in case.controls),
    }
    if several:
        # diffusers would look up row -1 of a table that a ControlNet without modes does not have: it passes it over.
        arguments["control_mode"] = [0 if mode is None else mode for mode in arguments["control_mode"]]
    pipe, found, kept = pipeline(case, base, networks), [], base["scheduler"]
    for i in range(case.batch):
        pipe.scheduler, last = type(kept).from_config(kept.config), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        with cached(pipe.transformer, case) as found_computed:
            pipe(
                prompt=case.prompt,
                width=case.width,
                height=case.height,
                num_inference_steps=case.steps,
                guidance_scale=case.guidance_scale,
                max_sequence_length=case.max_sequence_length,
                generator=generate.generator((case.seed + i) % 2**64),
                callback_on_step_end=keep,
                output_type="latent",
                **arguments,
            )
        if computed is not None and found_computed is not None:
            computed[:] = found_computed
        found.append(pipe._unpack_latents(last[0], case.height, case.width, pipe.vae_scale_factor)[0].numpy())
    net.__dict__.pop("forward", None)
    return np.stack(found)


def health(name: str, case: Case, base: dict, networks: dict, latents: np.ndarray) -> None:
    """Prints how far the latents move (NMSE) when one thing of the request does, and when every weight moves by 1e-6."""
    first, rest = case.controls[0], case.controls[1:]
    changed = lambda **told: replace(case, controls=(replace(first, **told), *rest))
    turned = given.picture(case.width, case.height).transpose(0)
    moved = {"picture": draw(case, base, networks, picture=turned), "scale": draw(changed(scale=first.scale * 1.1), base, networks)}
    moved["none"] = draw(changed(scale=0.0), base, networks)
    moved["prompt"] = draw(replace(case, prompt="a yellow star"), base, networks)
    if first.mode is not None:
        moved["mode"] = draw(changed(mode=first.mode - 1), base, networks)
    if case.masked:
        moved["mask"] = draw(case, base, networks, mask=given.mask(case.width, case.height).transpose(0))
    weights = [weight for control in case.controls for weight in networks[control.net].parameters()]
    kept, g = [weight.clone() for weight in weights], generate.generator(3)
    for weight in weights:
        weight.mul_(1 + 1e-6 * (torch.rand(weight.shape, generator=g) - 0.5).sign())
    moved["weights by 1e-6"] = draw(case, base, networks)
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
    models.DIFFUSERS["FluxControlNetModel"] = FluxControlNetModel
    with torch.no_grad():
        networks, described = synthesise()
        flow, scheduler = models.scheduler(cases.CASES["dev"].scheduler)
        parts = {name: networks[name] for name in ("transformer", "text_encoder", "text_encoder_2", "vae")}
        base = models.pipeline(parts, flow, goldenfile.DIRECTORY / "tokenizers").components
        base = {name: part for name, part in base.items() if name not in ("image_encoder", "feature_extractor")}
        tensors, described_cases, unfit = {}, {}, []
        for name, case in CASES.items():
            computed = []
            latents = draw(case, base, networks, computed=computed)
            tensors[f"{name}.latents"] = latents
            described_cases[name] = asdict(case) | {"computed": computed}
            if case.cache is not None:
                print(f"{name}: " + " ".join("".join("x" if one else "." for one in passed) for passed in computed))
                whole = draw(replace(case, cache=None), base, networks)
                told = caches.Case(case.cache, case.threshold, steps=case.steps, cfg_scale=case.cfg_scale)
                unfit += caches.check(name, told, computed, latents, whole)
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
            if options.health:
                health(name, case, base, networks, latents)
    body = {"made_by": "tests/reference/controls.py", "components": described, "scheduler": scheduler, "cases": described_cases}
    problems = unfit + ((goldenfile.compare if options.check else goldenfile.write)(NAME, body, tensors) or [])
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
