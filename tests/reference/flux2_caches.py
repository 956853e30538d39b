"""Records what diffusers' Flux2KleinPipeline draws with step caches, and which evaluations are computed.

    python flux2_caches.py            writes flux2_cache
    python flux2_caches.py --check    compares with the committed files instead of writing them

TaylorSeer is diffusers' own hook. That of its first-block cache fails at FLUX.2's last block, which gives text and image in one: the rule is
here as it is for FLUX.1, of the image alone. The model is that of flux2.py, as klein base.
"""

import argparse
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from diffusers.hooks import TaylorSeerCacheConfig
from transformers import Qwen3Config, Qwen3Model

import cases
import flux2
import generate
import given
import goldenfile
import models


@dataclass(frozen=True)
class Case:
    """A request."""

    cache: str
    # For TaylorSeer the interval.
    threshold: float
    width: int = 80
    height: int = 48
    steps: int = 8
    seed: int = 11
    prompt: str = "a large purple ring above a black cross"
    cfg_scale: float = 1.0
    max_sequence_length: int = 64
    references: tuple = ()
    batch: int = 1


GOLDEN = {
    "first_block": Case("first-block", 1.1),
    "first_block_loosely": Case("first-block", 1.3),
    "first_block_cfg": Case("first-block", 1.15, cfg_scale=2.5),
    "first_block_batch": Case("first-block", 1.1, batch=2, width=48, height=64, seed=2**64 - 1),
    "first_block_reference": Case("first-block", 1.1, references=((70, 90),)),
    "taylorseer": Case("taylorseer", 5, steps=12),
    "taylorseer_cfg": Case("taylorseer", 3, steps=9, cfg_scale=2.5),
}


class FirstBlock:
    """As long as what the first block adds to the image differs little from what it added when all blocks were computed last, the others
    are replaced by what they added then."""

    def __init__(self, transformer, threshold: float):
        self.blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.threshold, self.states, self.state, self.image = threshold, {}, None, None
        for at, block in enumerate(self.blocks):
            block.forward = self.replaced(at, block.forward)

    def remove(self) -> None:
        for block in self.blocks:
            del block.forward

    def begin(self, name: str) -> None:
        self.state = self.states.setdefault(name, {"change": None, "residual": None, "computes": True})

    def first(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """What follows the first block: its own output, or all that there is."""
        state, change = self.state, after - before
        last = state["change"]
        state["computes"] = last is None or ((change - last).abs().mean() / last.abs().mean()).item() > self.threshold
        if not state["computes"]:
            return after + state["residual"]
        state["change"], state["after"] = change, after
        return after

    def replaced(self, at: int, forward):
        def run(**given_):
            state = self.state
            if at > 0 and not state["computes"]:
                text, image = given_.get("encoder_hidden_states"), given_["hidden_states"]
                return image if text is None else (text, image)
            made = forward(**given_)
            if at == 0:
                return made[0], self.first(given_["hidden_states"], made[1])
            if at + 1 == len(self.blocks):
                tokens = state["after"].shape[1]
                state["residual"] = made[:, -tokens:] - state["after"]
            return made

        return run


@contextmanager
def cached(transformer, case: Case):
    """`transformer` with the cache of `case`; gives the list that is told, for each pass, which evaluations are computed."""
    passes = ["cond", "uncond"] if case.cfg_scale > 1 else ["cond"]
    found, ran, calls = [[] for _ in passes], [], 0
    own = FirstBlock(transformer, case.threshold) if case.cache == "first-block" else None
    if own is None:
        # In single precision: the factors of bfloat16 that diffusers keeps by default are rounded to three digits.
        config = TaylorSeerCacheConfig(use_lite_mode=True, taylor_factors_dtype=torch.float32, cache_interval=int(case.threshold))
        transformer.enable_cache(config)
    inner = transformer.single_transformer_blocks[-1].attn.register_forward_hook(lambda *_: ran.append(True))
    forward = transformer.forward

    def run(*given_, **named):
        nonlocal calls
        at, calls = calls % len(passes), calls + 1
        ran.clear()
        if own:
            own.begin(passes[at])
            made = forward(*given_, **named)
        else:
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
        own.remove() if own else transformer.disable_cache()


def draw(networks: dict, case: Case, without: bool = False) -> tuple[np.ndarray, list[list[bool]]]:
    """The last latents [batch, C, h, w], and which evaluations were computed, for each pass."""
    pipe, last = flux2.pipeline("Flux2KleinPipeline", networks, False), []

    def keep(_pipe, _step, _timestep, tensors):
        last[:] = [tensors["latents"].clone()]
        return {}

    def ask():
        pipe(
            prompt=case.prompt,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.cfg_scale,
            max_sequence_length=case.max_sequence_length,
            num_images_per_prompt=case.batch,
            generator=[generate.generator((case.seed + i) % 2**64) for i in range(case.batch)],
            callback_on_step_end=keep,
            output_type="latent",
            **({"image": [given.picture(*size) for size in case.references]} if case.references else {}),
        )

    computed = []
    if without:
        ask()
    else:
        with cached(pipe.transformer, case) as computed:
            ask()
    rows, columns = case.height // 16, case.width // 16
    return last[0].numpy().transpose(0, 2, 1).reshape(case.batch, -1, rows, columns), computed


def check(name: str, computed: list[list[bool]], latents: np.ndarray, without: np.ndarray) -> list[str]:
    """What makes a case unfit to tell a right cache from a wrong one."""
    problems = []
    if any(all(passed) for passed in computed) or any(not passed[0] for passed in computed) or not any(any(p[1:]) for p in computed):
        problems.append(f"{name}: nothing is skipped, or the first evaluation is, or all others are")
    if not goldenfile.nmse(latents, without) > 1e-4:
        problems.append(f"{name}: the cache changes nothing")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen3Model"] = (Qwen3Model, Qwen3Config)
    models.DIFFUSERS |= {name: getattr(diffusers, name) for name in ("Flux2Transformer2DModel", "AutoencoderKLFlux2")}
    models.NOT_STORED.add("bn.num_batches_tracked")
    problems, tensors, described = [], {}, {}
    with torch.no_grad():
        networks, _ = models.synthesise(cases.Case(components=flux2.COMPONENTS))
        for name, case in GOLDEN.items():
            latents, computed = draw(networks, case)
            without, _ = draw(networks, case, without=True)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case) | {"computed": computed}
            problems += check(name, computed, latents, without)
            marks = " ".join("".join("x" if one else "." for one in passed) for passed in computed)
            print(f"{name}: {marks}, nmse {goldenfile.nmse(latents, without):.1e} from the whole", flush=True)
    body = {"made_by": "tests/reference/flux2_caches.py", "based_on": "flux2_klein", "cases": described}
    problems += (goldenfile.compare if options.check else goldenfile.write)("flux2_cache", body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
