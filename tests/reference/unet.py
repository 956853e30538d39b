"""Records what diffusers' UNet2DConditionModel computes in one forward, for small models of each kind.

    python unet.py            writes unet_sd1, unet_sd2, unet_sdxl, unet_tiny and unet_ssd
    python unet.py --check    compares with the committed files instead of writing them
    python unet.py --health   says how far the output moves where something of the model or of its input moves

Weights and inputs follow from the formula of synth.py, so that the outputs alone are stored.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import UNet2DConditionModel

import goldenfile
import models
import recipes
import synth
from cases import Component

UNET = [
    (r"norm\w*\.weight$", recipes.NORM),
    (r"time_emb_proj\.weight$", recipes.Gain(0.8)),
    (r"embedding\.linear_1\.weight$", recipes.Gain(1.4)),
    (r"embedding\.linear_2\.weight$", recipes.AFTER_ACTIVATION),
    (r"\.bias$", recipes.Around(0.25)),
    (r"to_[qk]\.weight$", recipes.Gain(1.2)),
    (r"to_out\.0\.weight$", recipes.Gain(2.0)),  # attention averages, so its output is small
    (r"net\.2\.weight$", recipes.Gain(1.8)),  # behind a product of a number and a gate
    (r"\.conv[12]\.weight$", recipes.AFTER_ACTIVATION),
    (r"^conv_out\.weight$", recipes.AFTER_ACTIVATION),
    (r"\.weight$", recipes.Gain(1.0)),
]


@dataclass(frozen=True)
class Case:
    """A UNet and the extents of what it is given. Every item of the batch has its own time, prompt and sizes."""

    config: dict
    width: int
    height: int
    text_tokens: int
    timesteps: tuple[float, ...]
    # Of XL: the six sizes of each item.
    sizes: tuple[tuple[int, ...], ...] = ()


DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
CASES = {
    # 13 x 10 pixels become 7 x 5 and 4 x 3, and back: one column and one row too many each way.
    "unet_sd1": Case(
        config={
            "block_out_channels": [40, 80, 80],
            "down_block_types": [DOWN, DOWN, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", UP, UP],
            "layers_per_block": 1,
            "attention_head_dim": 5,
            "cross_attention_dim": 48,
            "norm_num_groups": 10,
        },
        width=13,
        height=10,
        text_tokens=29,
        timesteps=(981.0, 41.5),
    ),
    # Projections as matrices, heads by level, nine channels; even columns, odd rows.
    "unet_sd2": Case(
        config={
            "in_channels": 9,
            "block_out_channels": [32, 64],
            "down_block_types": [DOWN, DOWN],
            "up_block_types": [UP, UP],
            "layers_per_block": 2,
            "attention_head_dim": [2, 4],
            "cross_attention_dim": 40,
            "norm_num_groups": 8,
            "use_linear_projection": True,
        },
        width=12,
        height=9,
        text_tokens=77,
        timesteps=(500.0, 999.0),
    ),
    # No attention at the first level, several blocks at the others; pooled prompt and sizes.
    "unet_sdxl": Case(
        config={
            "block_out_channels": [24, 48, 96],
            "down_block_types": ["DownBlock2D", DOWN, DOWN],
            "up_block_types": [UP, UP, "UpBlock2D"],
            "layers_per_block": 1,
            "transformer_layers_per_block": [1, 2, 3],
            "attention_head_dim": [1, 3, 6],
            "cross_attention_dim": 56,
            "norm_num_groups": 8,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": 20 + 6 * 16,
        },
        width=11,
        height=14,
        text_tokens=31,
        timesteps=(1.0, 732.0),
        sizes=((1024, 768, 0, 0, 1024, 1024), (512, 512, 64, 128, 896, 1152)),
    ),
    # As BK-SDM's and SDXS': nothing in the middle, another number of residual blocks at each level.
    "unet_tiny": Case(
        config={
            "block_out_channels": [40, 80, 80],
            "down_block_types": [DOWN, DOWN, DOWN],
            "up_block_types": [UP, UP, UP],
            "layers_per_block": [1, 2, 1],
            "mid_block_type": None,
            "attention_head_dim": 5,
            "cross_attention_dim": 48,
            "norm_num_groups": 10,
        },
        width=9,
        height=10,
        text_tokens=21,
        timesteps=(981.0, 41.5),
    ),
    # As SSD-1B's: one residual block in the middle, and transformers of a level that differ.
    "unet_ssd": Case(
        config={
            "block_out_channels": [24, 48, 96],
            "down_block_types": ["DownBlock2D", DOWN, DOWN],
            "up_block_types": [UP, UP, "UpBlock2D"],
            "layers_per_block": 2,
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [2, 1], [1, 3]],
            "reverse_transformer_layers_per_block": [[1, 2, 3], [2, 1, 1], 1],
            "attention_head_dim": [1, 3, 6],
            "cross_attention_dim": 56,
            "norm_num_groups": 8,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": 20 + 6 * 16,
        },
        width=10,
        height=7,
        text_tokens=18,
        timesteps=(12.0, 801.0),
        sizes=((1024, 768, 0, 0, 1024, 1024), (512, 512, 64, 128, 896, 1152)),
    ),
}


def given(name: str, case: Case) -> dict[str, torch.Tensor]:
    """What the model is given, by its argument's name."""
    batch, config = len(case.timesteps), case.config

    def values(key: str, shape: list[int], scale: float) -> torch.Tensor:
        return torch.from_numpy(synth.values(name, key, shape, scale, 0.0))

    arguments = {
        "sample": values("latents", [batch, config.get("in_channels", 4), case.height, case.width], 1.7),
        "timestep": torch.tensor(case.timesteps),
        "encoder_hidden_states": values("context", [batch, case.text_tokens, config["cross_attention_dim"]], 1.7),
    }
    if case.sizes:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        arguments["added_cond_kwargs"] = {
            "text_embeds": values("pooled", [batch, pooled], 1.7),
            "time_ids": torch.tensor(case.sizes, dtype=torch.float32),
        }
    return arguments


def synthesise(case: Case) -> tuple[UNet2DConditionModel, dict]:
    """The model, and what the header says of it."""
    component = Component("diffusers", "UNet2DConditionModel", case.config, UNET)
    unet = UNet2DConditionModel(**case.config).float().eval()
    with torch.no_grad():
        tensors = models.fill("unet", component, unet)
    checksum = sum(int(tensor["checksum"], 16) for tensor in tensors) % 2**64
    short = [[tensor[key] for key in ("name", "shape", "scale", "offset")] for tensor in tensors]
    return unet, {"config": models.config_json(component, unet), "tensors": short, "checksum": f"{checksum:016x}"}


def record(name: str, case: Case) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and tensors of a golden."""
    unet, component = synthesise(case)
    with torch.no_grad():
        output = unet(**given(name, case)).sample
    request = {key: getattr(case, key) for key in ("width", "height", "text_tokens", "timesteps", "sizes")}
    body = {"made_by": "tests/reference/unet.py", "unet": component, "request": request}
    return body, {"output": output.numpy()}


def health(name: str, case: Case) -> None:
    """Prints the size of the output, and how far it moves (NMSE) when one thing at a time does."""
    unet, _ = synthesise(case)
    arguments = given(name, case)
    with torch.no_grad():
        output = unet(**arguments).sample.numpy()
        print(f"{name}: standard deviation {output.std():.2f}, {sum(p.numel() for p in unet.parameters())} parameters")
        doubled = UNet2DConditionModel(**case.config).double().eval()
        doubled.load_state_dict(unet.state_dict())
        exact = {k: v.double() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        if case.sizes:
            exact["added_cond_kwargs"] = {k: v.double() for k, v in arguments["added_cond_kwargs"].items()}
        print(f"  float32 against float64: {goldenfile.nmse(output, doubled(**exact).sample.numpy()):.1e}")
        moved = [("times", arguments | {"timestep": arguments["timestep"] * 0.98})]
        moved.append(("prompt", arguments | {"encoder_hidden_states": arguments["encoder_hidden_states"] * 0.99}))
        if case.sizes:
            added = arguments["added_cond_kwargs"]
            moved.append(("pooled", arguments | {"added_cond_kwargs": added | {"text_embeds": added["text_embeds"] * 0.99}}))
            moved.append(("sizes", arguments | {"added_cond_kwargs": added | {"time_ids": added["time_ids"] + 1}}))
        for what, changed in moved:
            print(f"  {what}: {goldenfile.nmse(unet(**changed).sample.numpy(), output):.1e}")
        for weight in unet.parameters():
            weight.mul_(1 + 1e-6 * torch.sign(torch.rand_like(weight) - 0.5))
        print(f"  all weights by 1e-6: {goldenfile.nmse(unet(**arguments).sample.numpy(), output):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say how far the output moves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    problems = []
    for name, case in CASES.items():
        if options.health:
            health(name, case)
            continue
        body, tensors = record(name, case)
        if options.check:
            problems += goldenfile.compare(name, body, tensors)
        else:
            goldenfile.write(name, body, tensors)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
