"""Records what diffusers' FluxControlPipeline draws with a control LoRA as Black Forest Labs publishes them, merged into the synthetic
model `dev`: its first layer grows to twice the columns, layers have biases of their own, norms other scales.

    python control_lora.py             writes control_lora
    python control_lora.py --check     compares with the committed files instead of writing them
    python control_lora.py --health    says how far the latents move when a part of the LoRA is left out

The LoRA follows from the formula, as those of lora.py. Weights are merged here: diffusers' own converter swaps the halves of the last
layer's `lora_A` as well as those of its `lora_B`.
"""

import argparse
import sys
from dataclasses import asdict

import diffusers
import torch

import beside
import cases
import goldenfile
import layouts
import lora
import models

CHANNELS = 128
LAYERS = lora.LAYERS | {"img_in": (256, CHANNELS)}
NORMS = [f"double_blocks.0.{stream}_attn.norm.{of}_norm.scale" for stream in ("img", "txt") for of in ("query", "key")]
NORMS += [f"single_blocks.1.norm.{of}_norm.scale" for of in ("query", "key")]
CASE = beside.Case(width=64, height=48, steps=3, seed=5, guidance_scale=30.0, max_sequence_length=16, image=False, control_image=True, decoded=True)
STRENGTHS = {"whole": 1.0, "most": 0.85}


def tensors() -> list[dict]:
    """The file."""
    found = []
    for module, (outputs, inputs) in LAYERS.items():
        up, down = lora.low_rank(module, outputs, inputs)
        bias = lora.tensor(f"{module}.lora_B.bias", f"{module}.bias", [outputs], 0.2)
        found += [down | {"name": f"{module}.lora_A.weight"}, up | {"name": f"{module}.lora_B.weight"}, bias]
    return found + [lora.tensor(name, name, [128], 0.4, 1.0) for name in NORMS]


def changes(left_out: str = "") -> tuple[dict, dict]:
    """What becomes of weights and biases, and of scales."""
    weights = {}
    for module, (outputs, inputs) in LAYERS.items():
        up, down = lora.low_rank(module, outputs, inputs)
        if left_out == "picture" and module == "img_in":
            down = down | {"scale": 0.0}
        weights[f"{module}.weight"] = lambda w, up=up, down=down: w + lora.values(up) @ lora.values(down)
        if left_out != "biases":
            bias = lora.tensor("", f"{module}.bias", [outputs], 0.2)
            weights[f"{module}.bias"] = lambda b, bias=bias: b + lora.values(bias)
    scales = {name: lambda s, name=name: lora.values(lora.tensor("", name, [128], 0.4, 1.0)) for name in NORMS}
    return weights, {} if left_out == "scales" else scales


def pipeline(strength: float, left_out: str = ""):
    case = cases.CASES["dev"]
    networks, _ = models.synthesise(case)
    plain = networks["transformer"]
    wide = diffusers.FluxTransformer2DModel(**(dict(plain.config) | {"in_channels": CHANNELS, "out_channels": 64})).eval()
    state = dict(plain.state_dict())
    first = state["x_embedder.weight"]
    state["x_embedder.weight"] = torch.cat([first, torch.zeros(len(first), CHANNELS - first.shape[1])], dim=1)
    wide.load_state_dict(state)
    networks["transformer"] = wide
    recipes = layouts.flux(wide.config)
    weights, scales = changes(left_out)
    lora.apply(networks, recipes, weights, strength)
    lora.apply(networks, recipes, scales, 1.0)
    made = models.pipeline(networks | {"transformer": wide}, models.scheduler(case.scheduler)[0], goldenfile.DIRECTORY / "tokenizers").components
    taken = {name: part for name, part in made.items() if name not in ("image_encoder", "feature_extractor")}
    pipe = diffusers.FluxControlPipeline(**taken)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say what the latents depend on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    found = {}
    with torch.no_grad():
        for name, strength in STRENGTHS.items():
            latents, picture = beside.draw(pipeline(strength), CASE, True)
            found |= {f"{name}.latents": latents} | ({f"{name}.picture": picture} if name == "whole" else {})
        if options.health:
            for part in ("picture", "biases", "scales"):
                moved = goldenfile.nmse(beside.draw(pipeline(1.0, part), CASE, True)[0], found["whole.latents"])
                print(f"without {part}: {moved:.1e}")
            return
    body = {"made_by": "tests/reference/control_lora.py", "class": "FluxControlPipeline"}
    body |= {"generate": asdict(CASE), "strengths": STRENGTHS, "sets": {"control": {"bfl": {"tensors": tensors()}}}}
    problems = goldenfile.compare("control_lora", body, found) if options.check else goldenfile.write("control_lora", body, found)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
