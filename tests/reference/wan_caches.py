"""Records what diffusers' Wan pipelines draw with step caches, and which evaluations are computed, with the small synthetic models of
wan.py.

    python wan_caches.py            writes wan_caches
    python wan_caches.py --check    compares with the committed file instead of writing it
    python wan_caches.py --show     says, too, what each evaluation is decided by

First-block cache, MagCache and TaylorSeer are diffusers' own hooks. TeaCache is not among them: it is here as its authors define it for Wan 2.1,
without `--use_ret_steps`.
"""

import argparse
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

import cases
import goldenfile
import models
import wan

# From the relative change of what becomes of the time to that of the output, as published for Wan 2.1.
COEFFICIENTS = {
    "t2v-1.3b": [2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01],
    "i2v-480p": [-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01],
    "i2v-720p": [-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683],
}


# Of the pass with the prompt, as MagCache's authors measured them for T2V 1.3B and TI2V 5B.
MAGNITUDES = {
    "t2v": [
        1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535, 0.99552, 0.99541, 0.9954,
        0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388, 0.99349, 0.99309, 0.9927, 0.99228, 0.99171, 0.99137,
        0.99068, 0.99005, 0.98944, 0.98849, 0.98758, 0.98644, 0.98504, 0.9836, 0.98202, 0.97977, 0.97717, 0.9741, 0.97003, 0.96538,
        0.9593, 0.95086, 0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
    ],
    "ti2v": [
        1.0, 0.99505, 0.99441, 0.99558, 0.99499, 0.99534, 0.99468, 0.99463, 0.9946, 0.99408, 0.9945, 0.99409, 0.99403, 0.99382, 0.99349,
        0.99377, 0.9933, 0.99303, 0.99217, 0.992, 0.99201, 0.99133, 0.99112, 0.99155, 0.98958, 0.98959, 0.98838, 0.98826, 0.9883,
        0.98711, 0.98562, 0.98511, 0.98414, 0.98284, 0.98104, 0.97981, 0.97849, 0.97557, 0.97398, 0.97171, 0.96917, 0.96511, 0.96263,
        0.95839, 0.95483, 0.94942, 0.9468, 0.94583, 0.94843, 0.96949,
    ],
}

# What becomes of a time in a network of random weights has nothing in common with what becomes of the next: there the last layer's weights
# are multiplied by the first number, and the second is added to its biases.
SMOOTHED = [0.125, 0.5]


@dataclass(frozen=True)
class Case(wan.Case):
    """A request with a cache. What is None, diffusers is not told."""

    cache: str = "teacache"
    # For TaylorSeer the interval.
    threshold: float | None = None
    coefficients: str = "t2v-1.3b"


SMALL = {"width": 48, "height": 32, "frames": 5, "steps": 10}
CFG = SMALL | wan.GUIDED
GOLDEN = {
    "teacache": Case(**SMALL, threshold=0.08),
    "teacache_cfg": Case(**CFG, threshold=0.2),
    "teacache_batch": Case(**SMALL, threshold=0.14, batch=2),
    "teacache_480p": Case(**SMALL, threshold=0.26, model="i2v", image=True, coefficients="i2v-480p"),
    "teacache_720p": Case(**SMALL, threshold=0.7, model="i2v", image=True, coefficients="i2v-720p"),
    "first_block": Case(**SMALL, cache="first-block", threshold=0.3),
    "first_block_cfg": Case(**CFG, cache="first-block", threshold=0.3),
    "first_block_pair": Case(**CFG | {"steps": 12}, cache="first-block", threshold=0.3, model="t2v_pair", cfg_scale_2=2.5),
    "first_block_picture": Case(**SMALL, cache="first-block", threshold=0.3, model="ti2v", image=True),
    "magcache": Case(**SMALL | {"steps": 15}, cache="magcache"),
    "magcache_cfg": Case(**CFG, cache="magcache", threshold=0.2),
    "magcache_picture": Case(**SMALL, cache="magcache", threshold=0.1, model="ti2v", image=True),
    "taylorseer": Case(**SMALL, cache="taylorseer"),
    "taylorseer_cfg": Case(**CFG, cache="taylorseer", threshold=3),
}


class TeaCache:
    """TeaCache for a Wan transformer: the change of what becomes of the time adds up, and as long as the sum is below the threshold, all
    blocks are replaced by what they added last. The first and the last evaluation are always computed."""

    def __init__(self, transformer, case: Case, passes: int, show: bool):
        self.transformer, self.case, self.passes, self.show = transformer, case, passes, show
        self.states = [{"count": 0, "sum": 0.0, "time": None, "residual": None} for _ in range(passes)]
        self.calls = 0
        self.hook = transformer.condition_embedder.register_forward_hook(lambda _module, _given, made: self.decide(made[0]))
        for at, block in enumerate(transformer.blocks):
            block.forward = self.replaced(at, block.forward)

    def remove(self) -> None:
        self.hook.remove()
        for block in self.transformer.blocks:
            del block.forward

    def decide(self, time: torch.Tensor) -> None:
        self.state = state = self.states[self.calls % self.passes]
        self.calls += 1
        if state["count"] in (0, self.case.steps - 1):
            computes = True
        else:
            change = ((time - state["time"]).abs().mean() / state["time"].abs().mean()).item()
            state["sum"] += float(np.poly1d(COEFFICIENTS[self.case.coefficients])(change))
            computes = not state["sum"] < self.case.threshold
            if self.show:
                print(f"    change {change:.4f}, sum {state['sum']:.4f}")
        if computes:
            state["sum"] = 0.0
        state["computes"], state["time"], state["count"] = computes, time, state["count"] + 1

    def replaced(self, at: int, forward):
        def run(hidden_states, *others):
            state = self.state
            if at == 0:
                state["before"] = hidden_states
                if not state["computes"]:
                    return hidden_states + state["residual"]
            if not state["computes"]:
                return hidden_states
            made = forward(hidden_states, *others)
            if at + 1 == len(self.transformer.blocks):
                state["residual"] = made - state["before"]
            return made

        return run


@contextmanager
def cached(transformer, case: Case, found: list[list[bool]], show: bool):
    """`transformer` with the cache of `case`; `found` is told, for each pass, which evaluations are computed."""
    told = {} if case.threshold is None else {"threshold": case.threshold}
    tea = None
    if case.cache == "teacache":
        tea = TeaCache(transformer, case, len(found), show)
    elif case.cache == "first-block":
        transformer.enable_cache(FirstBlockCacheConfig(**told))
    elif case.cache == "magcache":
        ratios = MAGNITUDES["ti2v" if case.model == "ti2v" else "t2v"]
        transformer.enable_cache(MagCacheConfig(num_inference_steps=case.steps, mag_ratios=ratios, **told))
    else:
        told = {} if case.threshold is None else {"cache_interval": case.threshold}
        # In single precision: the factors of bfloat16 that diffusers keeps by default are rounded to three digits.
        transformer.enable_cache(TaylorSeerCacheConfig(use_lite_mode=True, taylor_factors_dtype=torch.float32, **told))
    ran, forward, calls = [], transformer.forward, 0
    inner = transformer.blocks[-1].ffn.register_forward_hook(lambda *_: ran.append(True))

    def run(*given, **named):
        nonlocal calls
        at, calls = calls % len(found), calls + 1
        ran.clear()
        made = forward(*given, **named)
        found[at].append(bool(ran))
        return made

    transformer.forward = run
    try:
        yield
    finally:
        inner.remove()
        transformer.forward = forward
        tea.remove() if tea else transformer.disable_cache()


def draw(networks: dict, case: Case, show: bool) -> tuple[np.ndarray, list[list[bool]], np.ndarray]:
    """The last latents, which evaluations were computed, for each pass, and the latents without a cache."""
    passes = 2 if case.cfg_scale > 1 else 1
    latents, computed = [], None
    for i in range(case.batch):
        one = type(case)(**asdict(case) | {"batch": 1, "seed": case.seed + i})
        found = [[] for _ in range(passes)]
        with ExitStack() as stack:
            for name in wan.MODELS[case.model][0]:
                stack.enter_context(cached(networks[name], one, found, show))
            latents.append(wan.draw(networks, one)[0])
        # What a batch is decided by is the same for all in it.
        computed = computed or found
        assert computed == found
    return np.concatenate(latents), computed, wan.draw(networks, case)[0]


def check(name: str, case: Case, computed: list[list[bool]], latents: np.ndarray, without: np.ndarray) -> list[str]:
    """What makes a case unfit to tell a right cache from a wrong one."""
    problems = []
    if all(all(passed) for passed in computed) or any(not passed[0] for passed in computed):
        problems.append(f"{name}: nothing is skipped, or the first evaluation is")
    if any(len(passed) != case.steps for passed in computed):
        problems.append(f"{name}: {[len(passed) for passed in computed]} evaluations")
    if not goldenfile.nmse(latents, without) > 1e-4:
        problems.append(f"{name}: the cache changes nothing")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    parser.add_argument("--show", action="store_true", help="say what each evaluation is decided by")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["UMT5EncoderModel"] = (UMT5EncoderModel, UMT5Config)
    models.CONFIGS["CLIPVisionModel"] = (CLIPVisionModel, CLIPVisionConfig)
    models.DIFFUSERS["WanTransformer3DModel"] = diffusers.WanTransformer3DModel
    models.DIFFUSERS["AutoencoderKLWan"] = diffusers.AutoencoderKLWan
    problems, tensors, described = [], {}, {}
    networks, _ = models.synthesise(cases.Case(components=wan.COMPONENTS))
    with torch.no_grad():
        for network in (network for network in networks.values() if isinstance(network, diffusers.WanTransformer3DModel)):
            last = network.condition_embedder.time_embedder.linear_2
            last.weight.mul_(SMOOTHED[0])
            last.bias.add_(SMOOTHED[1])
        for name, case in GOLDEN.items():
            latents, computed, without = draw(networks, case, options.show)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case) | {"computed": computed}
            problems += check(name, case, computed, latents, without)
            marks = " ".join("".join("x" if one else "." for one in passed) for passed in computed)
            print(f"{name}: {marks}, nmse {goldenfile.nmse(latents, without):.1e} from the whole", flush=True)
    body = {"made_by": "tests/reference/wan_caches.py", "smoothed": SMOOTHED, "cases": described}
    problems += (goldenfile.compare if options.check else goldenfile.write)("wan_caches", body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
