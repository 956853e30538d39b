"""Records tests/goldens/lora: LoRAs for the synthetic model `dev`, and what diffusers draws with each of them.

    python tests/reference/lora.py            writes the golden
    python tests/reference/lora.py --check    compares with the committed one

A set is what some weights become; its files are spellings of that. Latents come from merged weights, since diffusers does not
read all of the spellings. Those that it does read are loaded too, and must give the same. No numbers of LoRAs are recorded:
they follow from the formula (synth.py, the component `lora`), rows of one array for each tensor.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import cases
import generate
import goldenfile
import layouts
import models
import synth

REQUEST = cases.Request("a red ring", width=64, height=48, steps=2, seed=5, max_sequence_length=16)
RANK, ALPHA = 4, 3.0
HIDDEN = 256
# Layers in original names with outputs and inputs: of every kind, and of fused ones.
DOUBLE = {"img_attn.qkv": (768, 256), "img_attn.proj": (256, 256), "img_mlp.0": (1024, 256), "img_mlp.2": (256, 1024),
          "img_mod.lin": (1536, 256), "txt_attn.qkv": (768, 256), "txt_attn.proj": (256, 256), "txt_mlp.2": (256, 1024)}
SINGLE = {"linear1": (1792, 256), "linear2": (256, 1280), "modulation.lin": (768, 256)}
TOP = {"img_in": (256, 64), "txt_in": (256, 256), "time_in.in_layer": (256, 256), "vector_in.out_layer": (256, 256),
       "guidance_in.in_layer": (256, 256), "final_layer.linear": (64, 256), "final_layer.adaLN_modulation.1": (512, 256)}
LAYERS = {f"double_blocks.0.{k}": v for k, v in DOUBLE.items()} | {f"single_blocks.1.{k}": v for k, v in SINGLE.items()} | TOP


def tensor(name: str, of: str, shape: list[int], scale: float, offset: float = 0.0, rows: tuple | None = None) -> dict:
    """A tensor of a file: the array `of`, or some of its rows."""
    rows = rows or (0, shape[0] if shape else 1)
    return {"name": name, "of": of, "shape": shape, "rows": list(rows), "scale": scale, "offset": offset}


def values(described: dict) -> torch.Tensor:
    """The numbers of a tensor."""
    shape, (first, last) = described["shape"], described["rows"]
    array = synth.values("lora", described["of"], shape or [1], described["scale"], described["offset"])
    return torch.from_numpy(array[first:last].reshape([last - first, *shape[1:]] if shape else []).copy())


def low_rank(module: str, outputs: int, inputs: int, rank: int = RANK) -> tuple[dict, dict]:
    """Up and down of a layer."""
    up = tensor("", f"{module}.up", [outputs, rank], round(0.3 * math.sqrt(3 / rank), 6))
    return up, tensor("", f"{module}.down", [rank, inputs], round(math.sqrt(3 / inputs), 6))


def alpha(name: str) -> dict:
    return tensor(name, "alpha", [], 0.0, ALPHA)


def change(module: str) -> torch.Tensor:
    """The plain change of a layer."""
    up, down = low_rank(module, *LAYERS[module])
    return values(up) @ values(down) * (ALPHA / RANK)


def parts_of(module: str, recipes: dict) -> list[tuple[str, tuple | None]]:
    """diffusers' layers of an original one with the rows of it that they are. None of the final layer's halves, which are swapped."""
    parts, outputs = recipes[f"{module}.weight"], LAYERS[module][0]
    names = [name.removesuffix(".weight") for name, _ in parts]
    if module.startswith("final_layer.adaLN"):
        return [(names[0], None)]
    sizes = [HIDDEN] * (len(names) - 1)
    ends = np.cumsum([0, *sizes, outputs - sum(sizes)])
    return [(name, (int(a), int(b))) for name, a, b in zip(names, ends, ends[1:])]


def plain_original(prefix: str, ends: tuple[str, str], flat: bool = False, alphas: bool = True) -> list[dict]:
    """The plain changes under original names."""
    tensors = []
    for module, (outputs, inputs) in LAYERS.items():
        name = prefix + (module.replace(".", "_") if flat else module)
        up, down = low_rank(module, outputs, inputs)
        tensors += [down | {"name": name + ends[0]}, up | {"name": name + ends[1]}]
        tensors += [alpha(f"{name}.alpha")] if alphas else []
    return tensors


def plain_diffusers(prefix: str, ends: tuple[str, str], recipes: dict, flat: bool = False, alphas: bool = True) -> list[dict]:
    """The plain changes under diffusers' names: a fused layer's down with each of its parts."""
    tensors = []
    for module, (outputs, inputs) in LAYERS.items():
        up, down = low_rank(module, outputs, inputs)
        for layer, rows in parts_of(module, recipes):
            name = prefix + (layer.replace(".", "_") if flat else layer)
            tensors.append(down | {"name": name + ends[0]})
            # Scale before shift, where the original has them the other way round.
            halves = [up | {"rows": [outputs // 2, outputs]}, up | {"rows": [0, outputs // 2]}]
            whole = {"name": name + ends[1], "joined": halves} if rows is None else up | {"name": name + ends[1], "rows": list(rows)}
            tensors += [whole] + ([alpha(f"{name}.alpha")] if alphas else [])
    return tensors


def peft(recipes: dict, **settings) -> dict:
    """PEFT's settings as diffusers saves them."""
    settings["target_modules"] = [layer for module in LAYERS for layer, _ in parts_of(module, recipes)]
    return {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})}


KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")


def plain(recipes: dict) -> dict:
    """The same changes in many spellings."""
    files = {
        "kohya": {"tensors": plain_original("lora_unet_", KOHYA, flat=True)},
        "comfyui": {"tensors": plain_original("diffusion_model.", PEFT)},
        "bare": {"tensors": plain_original("base_model.model.", (".lora_A.default.weight", ".lora_B.default.weight"), alphas=False),
                 "metadata": {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": ALPHA})}},
        "diffusers": {"tensors": plain_diffusers("transformer.", PEFT, recipes, alphas=False),
                      "metadata": peft(recipes, r=RANK, lora_alpha=ALPHA)},
        "rslora": {"tensors": plain_diffusers("transformer.", PEFT, recipes, alphas=False),
                   "metadata": peft(recipes, r=RANK, lora_alpha=ALPHA / 2, use_rslora=True)},
        "onetrainer": {"tensors": plain_diffusers("lora_transformer_", KOHYA, recipes, flat=True)},
    }
    return {"files": files, "changes": {module: lambda w, m=module: w + change(m) for module in LAYERS}}


def xlabs() -> dict:
    """Attention processors: both streams of a double block, and the first rows of a single block's linear1."""
    names = {"double_blocks.0.img_attn.qkv": "double_blocks.0.processor.qkv_lora1",
             "double_blocks.0.txt_attn.proj": "double_blocks.0.processor.proj_lora2",
             "single_blocks.1.linear1": "single_blocks.1.processor.qkv_lora"}
    tensors, changes = [], {}
    for module, name in names.items():
        up, down = low_rank(module, *LAYERS[module])
        rows = 3 * HIDDEN if module.endswith("linear1") else LAYERS[module][0]
        tensors += [down | {"name": f"{name}.down.weight"}, up | {"name": f"{name}.up.weight", "rows": [0, rows]}]

        def changed(w, up=up, down=down, rows=rows):
            w = w.clone()
            w[:rows] += values(up)[:rows] @ values(down)
            return w
        changes[module] = changed
    return {"files": {"xlabs": {"tensors": tensors}}, "changes": changes}


def dora() -> dict:
    """Rows of given norms; one layer with columns of given norms."""
    changes, kohya, own = {}, [], []
    for module in ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "single_blocks.1.linear2", "img_in",
                   "final_layer.adaLN_modulation.1"):
        outputs, inputs = LAYERS[module]
        columns = module == "single_blocks.1.linear2"
        up, down = low_rank(module, outputs, inputs)
        norm = 0.5 if columns else 1.0
        norms = tensor("", f"{module}.norms", [1, inputs] if columns else [outputs, 1], 0.3 * norm, norm)
        for tensors, prefix, ends, flat, end in (
            (kohya, "lora_unet_", KOHYA, True, ".dora_scale"), (own, "", PEFT, False, ".lora_magnitude_vector")):
            name = prefix + (module.replace(".", "_") if flat else module)
            tensors += [down | {"name": name + ends[0]}, up | {"name": name + ends[1]}, alpha(f"{name}.alpha"),
                        norms | {"name": name + end}]

        def changed(w, module=module, norms=norms, columns=columns):
            moved = w + change(module)
            return values(norms) * moved / moved.norm(dim=0 if columns else 1, keepdim=True)
        changes[module] = changed
    return {"files": {"dora-kohya": {"tensors": kohya}, "dora-peft": {"tensors": own}}, "changes": changes}


def loha() -> dict:
    """Products number by number: of a small rank, and of one above the matrix's own."""
    tensors, changes = [], {}
    for module, rank in {"double_blocks.0.img_attn.qkv": 3, "img_in": 12, "final_layer.adaLN_modulation.1": 2}.items():
        outputs, inputs = LAYERS[module]
        name = "lora_unet_" + module.replace(".", "_")
        factors = {f"w{i}": [tensor(f"{name}.hada_w{i}_{k}", f"{module}.hada{i}{k}{rank}", shape, 0.4)
                             for k, shape in (("a", [outputs, rank]), ("b", [rank, inputs]))] for i in (1, 2)}
        tensors += [*factors["w1"], *factors["w2"], alpha(f"{name}.alpha")]

        def changed(w, f=factors, rank=rank):
            one, other = (values(f[k][0]) @ values(f[k][1]) for k in ("w1", "w2"))
            return w + one * other * (ALPHA / rank)
        changes[module] = changed
    return {"files": {"loha": {"tensors": tensors}}, "changes": changes}


def lokr() -> dict:
    """Kronecker products with whole factors and with factors of a rank."""
    tensors, changes, rank = [], {}, 2
    for module, (o1, i1), whole in (("double_blocks.0.img_attn.qkv", (8, 4), (True, True)), ("img_in", (16, 8), (True, False)),
                                    ("single_blocks.1.linear2", (4, 5), (False, False)),
                                    ("final_layer.adaLN_modulation.1", (8, 16), (True, False))):
        outputs, inputs = LAYERS[module]
        name, sides = "lora_unet_" + module.replace(".", "_"), []
        for i, (o, n), is_whole in ((1, (o1, i1), whole[0]), (2, (outputs // o1, inputs // i1), whole[1])):
            shapes = {"": [o, n]} if is_whole else {"_a": [o, rank], "_b": [rank, n]}
            side = [tensor(f"{name}.lokr_w{i}{k}", f"{module}.lokr{i}{k}", shape, 0.25) for k, shape in shapes.items()]
            sides.append(side)
            tensors += side
        tensors.append(alpha(f"{name}.alpha"))

        def changed(w, sides=sides, scale=1.0 if all(whole) else ALPHA / rank):
            one, other = (values(s[0]) if len(s) == 1 else values(s[0]) @ values(s[1]) for s in sides)
            return w + torch.kron(one, other) * scale
        changes[module] = changed
    return {"files": {"lokr": {"tensors": tensors}}, "changes": changes}


def diffs() -> dict:
    """Differences of a matrix, of biases (one of them fused) and of scales."""
    specs = {"diffusion_model.img_in.diff": ("img_in.weight", [256, 64], 0.1),
             "diffusion_model.single_blocks.1.linear1.diff_b": ("single_blocks.1.linear1.bias", [1792], 0.3),
             "diffusion_model.final_layer.adaLN_modulation.1.diff_b": ("final_layer.adaLN_modulation.1.bias", [512], 0.3),
             "diffusion_model.double_blocks.0.img_attn.norm.key_norm.diff": ("double_blocks.0.img_attn.norm.key_norm.scale", [128], 0.3),
             "lora_unet_single_blocks_1_norm_query_norm.w_norm": ("single_blocks.1.norm.query_norm.scale", [128], 0.3)}
    tensors = [tensor(name, f"{weight}.diff", shape, scale) for name, (weight, shape, scale) in specs.items()]
    changes = {weight: lambda w, t=t: w + values(t) for t, (weight, _, _) in zip(tensors, specs.values())}
    return {"files": {"diffs": {"tensors": tensors}}, "changes": changes}


CLIP_LAYER, T5_LAYER = "encoder.layers.1.self_attn.v_proj", "encoder.block.1.layer.1.DenseReluDense.wo"


def text() -> dict:
    """Both text encoders, as kohya's scripts and as PEFT name them."""
    layers = {CLIP_LAYER: ("lora_te1_text_model_", "text_encoder.text_model.", 256, 256), T5_LAYER: ("lora_te3_", "text_encoder_2.", 256, 512)}
    kohya, dotted, changes = [], [], {}
    for layer, (flat, prefix, outputs, inputs) in layers.items():
        up, down = low_rank(layer, outputs, inputs)
        kohya += [down | {"name": flat + layer.replace(".", "_") + KOHYA[0]}, up | {"name": flat + layer.replace(".", "_") + KOHYA[1]}]
        dotted += [down | {"name": prefix + layer + PEFT[0]}, up | {"name": prefix + layer + PEFT[1]}]
        key = "text_encoder" if layer == CLIP_LAYER else "text_encoder_2"
        changes[(key, f"{layer}.weight")] = lambda w, up=up, down=down: w + values(up) @ values(down)
    return {"files": {"text-kohya": {"tensors": kohya}, "text-peft": {"tensors": dotted}}, "changes": changes}


def apply(networks: dict, recipes: dict, changes: dict, strength: float) -> None:
    """Changes weights: `strength` times as much as `changes` say."""
    for weight, changed in changes.items():
        if isinstance(weight, tuple):
            state = networks[weight[0]].state_dict()
            state[weight[1]] += strength * (changed(state[weight[1]]) - state[weight[1]])
            continue
        state = networks["transformer"].state_dict()
        parts = recipes[weight if weight in recipes else f"{weight}.weight"]
        views = []
        for name, rows in parts:
            half = len(state[name]) // 2
            views.append({layouts.ALL: state[name], layouts.FIRST: state[name][:half], layouts.SECOND: state[name][half:]}[rows])
        was = torch.cat(views)
        new = was + strength * (changed(was) - was)
        for view, rows in zip(views, new.split([len(view) for view in views])):
            view.copy_(rows)


def draw(case: cases.Case, recipes: dict, sets: list[tuple[dict, float]]) -> torch.Tensor:
    """Latents with merged weights."""
    networks, _ = models.synthesise(case)
    for found, strength in sets:
        apply(networks, recipes, found["changes"], strength)
    pipe = models.pipeline(networks, models.scheduler(case.scheduler)[0], goldenfile.DIRECTORY / "tokenizers")
    return generate.run(pipe, REQUEST)[1][f"latents.{REQUEST.steps - 1}"]


def prove(case: cases.Case, file: dict, expected: torch.Tensor, directory: Path) -> None:
    """Stops where diffusers itself, given the file, draws something else."""
    networks, _ = models.synthesise(case)
    pipe = models.pipeline(networks, models.scheduler(case.scheduler)[0], goldenfile.DIRECTORY / "tokenizers")
    tensors = {}
    for t in file["tensors"]:
        tensors[t["name"]] = torch.cat([values(part) for part in t["joined"]]) if "joined" in t else values(t)
    path = directory / "lora.safetensors"
    save_file(tensors, path, metadata={"format": "pt"} | file.get("metadata", {}))
    pipe.load_lora_weights(str(path))
    generate.agree("a LoRA in diffusers", generate.run(pipe, REQUEST)[1][f"latents.{REQUEST.steps - 1}"], expected)


def record() -> tuple[dict, dict]:
    """Header and tensors of the golden."""
    case = cases.CASES["dev"]
    networks, _ = models.synthesise(case)
    recipes = layouts.flux(networks["transformer"].config)
    sets = {"plain": plain(recipes), "xlabs": xlabs(), "dora": dora(), "loha": loha(), "lokr": lokr(), "diffs": diffs(), "text": text()}
    described, tensors = {}, {"base": draw(case, recipes, [])}
    for name, found in sets.items():
        described[name] = found["files"]
        tensors[name] = draw(case, recipes, [(found, 1.0)])
    tensors["two"] = draw(case, recipes, [(sets["plain"], 0.6), (sets["lokr"], -0.8)])
    tensors["dora.half"] = draw(case, recipes, [(sets["dora"], 0.5)])
    with tempfile.TemporaryDirectory() as directory:
        for name in ("diffusers", "rslora"):
            prove(case, sets["plain"]["files"][name], tensors["plain"], Path(directory))
    distances = {k: goldenfile.nmse(v.numpy(), tensors["base"].numpy()) for k, v in tensors.items() if k != "base"}
    print(distances, file=sys.stderr)
    body = {"made_by": "tests/reference/lora.py", "generate": vars(REQUEST), "sets": described}
    return body, {name: value.numpy() for name, value in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed golden")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    with torch.no_grad():
        body, tensors = record()
    problems = goldenfile.compare("lora", body, tensors) if options.check else goldenfile.write("lora", body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
