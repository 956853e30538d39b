"""Records what transformers' CLIPTextModelWithProjection gives of each kind that pinhole can be asked for.

    python clip.py            writes clip
    python clip.py --check    compares with the committed files instead of writing them

Weights follow from the formula of synth.py, so that the outputs alone are stored. The model is OpenCLIP's kind: GELU by the error
function, and a projection of the pooled vector.
"""

import argparse
import sys

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import goldenfile
import models
import recipes
from cases import Component

CONFIG = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "max_position_embeddings": 21,
    "hidden_act": "gelu",
    "projection_dim": 40,
    "bos_token_id": 97,
    "eos_token_id": 98,
    "pad_token_id": 0,
}
# Padded with zeros, as OpenCLIP does: what is behind the end is not looked at from there.
IDS = [97, 5, 17, 42, 3, 64, 98] + [0] * 14


def record() -> tuple[dict, dict]:
    """Header and tensors of the golden."""
    component = Component("transformers", "CLIPTextModelWithProjection", CONFIG, recipes.CLIP)
    model = CLIPTextModelWithProjection(CLIPTextConfig(**CONFIG)).float().eval()
    with torch.no_grad():
        tensors = models.fill("clip", component, model)
        output = model(torch.tensor([IDS]), output_hidden_states=True)
        norm = next(module for name, module in model.named_modules() if name.endswith("final_layer_norm"))
        # What the layers are given, from the first on; whether what follows the last is normalised depends on the version.
        *_, third_last, second_last, _ = output.hidden_states
        assert len(output.hidden_states) == CONFIG["num_hidden_layers"] + 1
        found = {"last": output.last_hidden_state, "second_last": second_last, "skipped": norm(third_last)}
        found["pooled"] = output.text_embeds
    checksum = sum(int(tensor["checksum"], 16) for tensor in tensors) % 2**64
    short = [[tensor[key] for key in ("name", "shape", "scale", "offset")] for tensor in tensors]
    described = {"config": models.config_json(component, model), "tensors": short, "checksum": f"{checksum:016x}"}
    body = {"made_by": "tests/reference/clip.py", "clip": described, "ids": IDS}
    return body, {name: value[0].numpy() for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    body, tensors = record()
    problems = goldenfile.compare("clip", body, tensors) if options.check else []
    if not options.check:
        goldenfile.write("clip", body, tensors)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
