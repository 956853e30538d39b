"""Records what diffusers' FLUX pipelines draw with step caches, and which evaluations are computed.

    python caches.py            writes flux_cache and flux_cache_fill
    python caches.py --check    compares with the committed files instead of writing them
    python caches.py --show     says, too, what each evaluation is decided by

First-block cache, MagCache and TaylorSeer are diffusers' own hooks. TeaCache is not among them: it is here as its authors define it for
FLUX.1. The models are those of beside.py.
"""

import argparse
import math
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

import beside
import generate
import given
import goldenfile
import models

# From the relative change of the first block's modulated input to that of the output, as published for FLUX.1.
COEFFICIENTS = [4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01]


@dataclass(frozen=True)
class Case:
    """A request. What is None, diffusers is not told."""

    cache: str
    # For TaylorSeer the interval; None is the default of diffusers.
    threshold: float | None = None
    class_name: str = "FluxPipeline"
    width: int = 80
    height: int = 48
    steps: int = 8
    seed: int = 11
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    guidance_scale: float = 3.5
    strength: float | None = None
    max_sequence_length: int = 24
    masked: bool = False
    image: bool = False
    reference: tuple[int, int] | None = None
    batch: int = 1


CFG = {"cfg_scale": 2.5, "negative_prompt": "a black cross"}
KONTEXT = {"class_name": "FluxKontextPipeline", "reference": (96, 64), "guidance_scale": 2.5}
FILL = {"class_name": "FluxFillPipeline", "image": True, "masked": True, "strength": 1.0, "guidance_scale": 30.0}
START = {"class_name": "FluxImg2ImgPipeline", "image": True, "strength": 0.7}
GOLDENS = {
    "flux_cache": {
        "teacache": Case("teacache", 0.6),
        "teacache_loosely": Case("teacache", 1.2),
        "teacache_cfg": Case("teacache", 0.95, **CFG),
        "teacache_batch": Case("teacache", 0.6, batch=2, width=48, height=64, seed=2**64 - 1),
        "teacache_start": Case("teacache", 0.65, steps=10, **START),
        "first_block": Case("first-block", 0.6),
        "first_block_loosely": Case("first-block", 0.72),
        "first_block_cfg": Case("first-block", 0.715, **CFG),
        "first_block_batch": Case("first-block", 0.65, batch=2, width=48, height=64, seed=2**64 - 1),
        "first_block_reference": Case("first-block", 0.7, **KONTEXT),
        "magcache": Case("magcache", None, steps=12),
        "magcache_loosely": Case("magcache", 0.2, steps=12),
        "magcache_cfg": Case("magcache", 0.2, **CFG),
        "magcache_start": Case("magcache", 0.2, steps=10, **START),
        "taylorseer": Case("taylorseer", None, steps=12),
        "taylorseer_often": Case("taylorseer", 2),
        "taylorseer_cfg": Case("taylorseer", 3, steps=9, **CFG),
    },
    "flux_cache_fill": {
        "fill_teacache": Case("teacache", 0.6, **FILL),
        "fill_first_block": Case("first-block", 0.7, **FILL),
    },
}
MODELS = {"flux_cache": lambda: beside.flux("FluxPipeline", 64), "flux_cache_fill": lambda: beside.flux("FluxFillPipeline", 64 + 64 + 256)}


class TeaCache:
    """TeaCache for a FLUX transformer: the change of the first block's modulated input adds up, and as long as the sum is below the
    threshold, all blocks are replaced by what they added last. The first and the last evaluation are always computed."""

    def __init__(self, transformer, threshold: float, evaluations: int, show: bool):
        self.blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.threshold, self.evaluations, self.show = threshold, evaluations, show
        self.states, self.state = {}, None
        for at, block in enumerate(self.blocks):
            block.forward = self.replaced(at, block.forward)

    def remove(self) -> None:
        for block in self.blocks:
            del block.forward

    def begin(self, name: str) -> None:
        self.state = self.states.setdefault(name, {"count": 0, "sum": 0.0, "input": None, "residual": None})

    def decide(self, modulated: torch.Tensor) -> bool:
        state = self.state
        if state["count"] in (0, self.evaluations - 1):
            computes = True
        else:
            last = state["input"]
            change = ((modulated - last).abs().mean() / last.abs().mean()).item()
            state["sum"] += float(np.poly1d(COEFFICIENTS)(change))
            computes = not state["sum"] < self.threshold
            if self.show:
                print(f"    change {change:.4f}, sum {state['sum']:.4f}")
        if computes:
            state["sum"] = 0.0
        state["input"], state["count"] = modulated, state["count"] + 1
        return computes

    def replaced(self, at: int, forward):
        def run(hidden_states, encoder_hidden_states, temb, **others):
            state = self.state
            if at == 0:
                state["computes"] = self.decide(self.blocks[0].norm1(hidden_states, emb=temb)[0])
                state["before"] = hidden_states
                if not state["computes"]:
                    return encoder_hidden_states, hidden_states + state["residual"]
            if not state["computes"]:
                return encoder_hidden_states, hidden_states
            text, image = forward(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb, **others)
            if at + 1 == len(self.blocks):
                state["residual"] = image - state["before"]
            return text, image

        return run


def evaluations_of(case: Case) -> int:
    """How often the transformer is asked in each pass: the pictures that a request begins with leave out the first steps."""
    if case.strength is None:
        return case.steps
    return case.steps - int(max(case.steps - min(case.steps * case.strength, case.steps), 0))


@contextmanager
def cached(transformer, case: Case, show: bool):
    """`transformer` with the cache of `case`; gives the list that is told, for each pass, which evaluations are computed."""
    evaluations, passes = evaluations_of(case), ["cond", "uncond"] if case.cfg_scale > 1 else ["cond"]
    told = {} if case.threshold is None else {"threshold": case.threshold}
    tea = None
    if case.cache == "teacache":
        tea = TeaCache(transformer, case.threshold, evaluations, show)
    elif case.cache == "first-block":
        transformer.enable_cache(FirstBlockCacheConfig(**told))
    elif case.cache == "magcache":
        transformer.enable_cache(MagCacheConfig(num_inference_steps=evaluations, mag_ratios=FLUX_MAG_RATIOS, **told))
    else:
        told = {} if case.threshold is None else {"cache_interval": case.threshold}
        # In single precision: the factors of bfloat16 that diffusers keeps by default are rounded to three digits.
        transformer.enable_cache(TaylorSeerCacheConfig(use_lite_mode=True, taylor_factors_dtype=torch.float32, **told))
    found, ran, forward, calls = [[] for _ in passes], [], transformer.forward, 0
    inner = transformer.single_transformer_blocks[-1].proj_mlp.register_forward_hook(lambda *_: ran.append(True))

    def run(*given_, **named):
        nonlocal calls
        at, calls = calls % len(passes), calls + 1
        ran.clear()
        if tea:
            tea.begin(passes[at])
            made = forward(*given_, **named)
        else:
            # Of the pipelines for FLUX.1 only the first tells the hooks which pass it is in.
            with transformer.cache_context(passes[at]):
                made = forward(*given_, **named)
        found[at].append(bool(ran))
        return made

    transformer.forward = run
    try:
        yield found
    finally:
        inner.remove()
        transformer.forward = forward
        tea.remove() if tea else transformer.disable_cache()


def draw(pipe, case: Case, show: bool = False, without: bool = False) -> tuple[np.ndarray, list[list[bool]]]:
    """The last latents [batch, C, h, w], and which evaluations were computed, for each pass."""
    arguments = {"image": given.picture(case.width, case.height)} if case.image else {}
    arguments |= {"mask_image": given.mask(case.width, case.height)} if case.masked else {}
    arguments |= {"strength": case.strength} if case.strength is not None else {}
    if case.reference:
        arguments |= {"image": given.picture(*case.reference), "max_area": case.width * case.height, "_auto_resize": False}
    if case.cfg_scale > 1:
        arguments |= {"true_cfg_scale": case.cfg_scale, "negative_prompt": case.negative_prompt}
    last = []

    def keep(_pipe, _step, _timestep, tensors):
        last[:] = [tensors["latents"].clone()]
        return {}

    def ask():
        pipe(
            prompt=case.prompt,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance_scale,
            max_sequence_length=case.max_sequence_length,
            num_images_per_prompt=case.batch,
            generator=[generate.generator((case.seed + i) % 2**64) for i in range(case.batch)],
            callback_on_step_end=keep,
            output_type="latent",
            **arguments,
        )

    computed = []
    if without:
        ask()
    else:
        with cached(pipe.transformer, case, show) as computed:
            ask()
    return pipe._unpack_latents(last[0], case.height, case.width, pipe.vae_scale_factor).numpy(), computed


def of_class(pipe, class_name: str):
    """The same parts in another pipeline."""
    if type(pipe).__name__ == class_name:
        return pipe
    taken = {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")}
    made = getattr(diffusers, class_name)(**taken)
    made.set_progress_bar_config(disable=True)
    return made


def check(name: str, case: Case, computed: list[list[bool]], latents: np.ndarray, without: np.ndarray) -> list[str]:
    """What makes a case unfit to tell a right cache from a wrong one."""
    problems = []
    if all(all(passed) for passed in computed) or any(not passed[0] for passed in computed):
        problems.append(f"{name}: nothing is skipped, or the first evaluation is")
    if any(len(passed) != evaluations_of(case) for passed in computed):
        problems.append(f"{name}: {[len(passed) for passed in computed]} evaluations")
    if not goldenfile.nmse(latents, without) > 1e-4:
        problems.append(f"{name}: the cache changes nothing")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--show", action="store_true", help="say what each evaluation is decided by")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    problems = []
    for golden, wanted in GOLDENS.items():
        tensors, described = {}, {}
        with torch.no_grad():
            base, changed = MODELS[golden]()
            base.set_progress_bar_config(disable=True)
            for name, case in wanted.items():
                pipe = of_class(base, case.class_name)
                latents, computed = draw(pipe, case, options.show)
                without, _ = draw(pipe, case, without=True)
                tensors[f"{name}.latents"], described[name] = latents, asdict(case) | {"computed": computed}
                problems += check(name, case, computed, latents, without)
                marks = " ".join("".join("x" if one else "." for one in passed) for passed in computed)
                print(f"{golden} {name}: {marks}, nmse {goldenfile.nmse(latents, without):.1e} from the whole", flush=True)
        body = {"made_by": "tests/reference/caches.py", "class": type(base).__name__, "based_on": "dev", "changed": changed, "cases": described}
        problems += (goldenfile.compare(golden, body, tensors) if options.check else goldenfile.write(golden, body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
