"""Records tests/goldens/foreign: the synthetic models as files of other tools, and what diffusers draws from those.

    python tests/reference/foreign.py            writes the golden
    python tests/reference/foreign.py --check    compares with the committed one

The files themselves are not recorded but their digests: the tests write the same files, byte for byte. Here they are
written by the packages `safetensors` and `gguf`, with torch's and gguf's number formats. README.md says what is in the
golden, layouts.py where the names come from.
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

import cases
import generate
import goldenfile
import layouts
import models
import spiece

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TORCH |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
TOKENIZERS = goldenfile.DIRECTORY / "tokenizers"
# In llama.cpp's numbers (`llama_ftype`): what most of a file is.
FILE_TYPES = {"F32": gguf.LlamaFileType.ALL_F32, "BF16": gguf.LlamaFileType.MOSTLY_BF16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
# What ComfyUI-GGUF leaves in the format of the source.
KEPT = ("txt_in.", "img_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")
# Tensors of so many numbers, or fewer, ComfyUI-GGUF leaves in float32.
SMALL = 1024


def part(component: str, format: str, prefix: str = "", names: str = "") -> dict:
    """A component in a file: how its numbers are stored, and what stands before its names. `names` are diffusers' where
    it says so."""
    return {"component": component, "format": format, "prefix": prefix} | ({"names": names} if names else {})


def checkpoint(vae: str, transformer: str, clip: str, t5: str) -> list[dict]:
    """Everything in one file, as ComfyUI saves it."""
    return [
        part("transformer", transformer, "model.diffusion_model."),
        part("vae", "F32", vae),
        part("text_encoder", clip, "text_encoders.clip_l.transformer."),
        part("text_encoder_2", t5, "text_encoders.t5xxl.transformer.", "transformers"),
    ]


# What all-in-one checkpoints hold beside the components (Comfy-Org's flux1-dev-fp8.safetensors has these three).
EXTRA = [
    {"name": "text_encoders.clip_l.logit_scale", "dtype": "F32", "shape": []},
    {"name": "text_encoders.t5xxl.logit_scale", "dtype": "F32", "shape": []},
    {"name": "text_encoders.clip_l.transformer.text_projection.weight", "dtype": "F32", "shape": [256, 256]},
]
POSITIONS = {"name": "text_encoders.clip_l.transformer.text_model.embeddings.position_ids", "dtype": "I64", "shape": [1, 77]}
EMBEDDING = {"name": "encoder.embed_tokens.weight", "same_as": "shared.weight"}

# Safetensors: components and what else is in the file. `extra` tensors of a dtype count from 0, or hold ones where floating.
# GGUF: one component, and whose rules decide which tensor gets which type.
FILES = {
    "flux1.safetensors": {"parts": [part("transformer", "F32")]},
    "ae.safetensors": {"parts": [part("vae", "F32")]},
    "clip_l.safetensors": {"parts": [part("text_encoder", "F32")]},
    "t5xxl.safetensors": {"parts": [part("text_encoder_2", "F32", names="transformers")], "extra": [EMBEDDING]},
    "flux1-bf16.safetensors": {"parts": [part("transformer", "BF16")]},
    "flux1-e4m3.safetensors": {"parts": [part("transformer", "F8_E4M3")]},
    "flux1-e5m2.safetensors": {"parts": [part("transformer", "F8_E5M2")]},
    "checkpoint.safetensors": {"parts": checkpoint("vae.", "F32", "F32", "F32"), "extra": EXTRA},
    "checkpoint-ldm.safetensors": {"parts": checkpoint("first_stage_model.", "F32", "F32", "F32"), "extra": [*EXTRA, POSITIONS]},
    "checkpoint-fp8.safetensors": {"parts": checkpoint("vae.", "F8_E4M3", "F16", "F8_E4M3"), "extra": EXTRA},
    "flux1-F32.gguf": {"parts": [part("transformer", "F32")], "rules": "city96"},
    "flux1-BF16.gguf": {"parts": [part("transformer", "BF16")], "rules": "city96"},
    "flux1-Q8_0.gguf": {"parts": [part("transformer", "Q8_0")], "rules": "city96"},
    "t5-encoder-F32.gguf": {"parts": [part("text_encoder_2", "F32")], "rules": "llama.cpp"},
    "t5-encoder-BF16.gguf": {"parts": [part("text_encoder_2", "BF16")], "rules": "llama.cpp"},
    "t5-encoder-Q8_0.gguf": {"parts": [part("text_encoder_2", "Q8_0")], "rules": "llama.cpp"},
    "bare-BF16.gguf": {"parts": [part("transformer", "BF16")], "rules": "throughout"},
    "bare-Q8_0.gguf": {"parts": [part("transformer", "Q8_0")], "rules": "throughout"},
}

REST = ("clip_l.safetensors", "t5xxl.safetensors", "ae.safetensors")
# Files that make a model, by the name of what is special in them.
SETS = {
    "original": ("flux1.safetensors", *REST),
    "original-bf16": ("flux1-bf16.safetensors", *REST),
    "original-e4m3": ("flux1-e4m3.safetensors", *REST),
    "original-e5m2": ("flux1-e5m2.safetensors", *REST),
    "checkpoint": ("checkpoint.safetensors",),
    "checkpoint-ldm": ("checkpoint-ldm.safetensors",),
    "checkpoint-fp8": ("checkpoint-fp8.safetensors",),
    "city96-f32": ("flux1-F32.gguf", "clip_l.safetensors", "t5-encoder-F32.gguf", "ae.safetensors"),
    "city96-bf16": ("flux1-BF16.gguf", "clip_l.safetensors", "t5-encoder-BF16.gguf", "ae.safetensors"),
    "city96-q8_0": ("flux1-Q8_0.gguf", "clip_l.safetensors", "t5-encoder-Q8_0.gguf", "ae.safetensors"),
    "bare-bf16": ("bare-BF16.gguf", *REST),
    "bare-q8_0": ("bare-Q8_0.gguf", *REST),
}
# Which of them are made of a case. `dev`'s autoencoder has groups that its weights do not tell of, so that its latents
# count and its pictures do not.
CASES = {"loose": list(SETS), "dev": ["original", "checkpoint-fp8", "city96-q8_0"]}


class Model:
    """The networks of a case, and their weights under foreign names: float32."""

    def __init__(self, name: str):
        self.case = cases.CASES[name]
        self.networks, self.header = models.synthesise(self.case)
        self.states, self.recipes, self.tensors = {}, {}, {}
        for key, network in self.networks.items():
            prefix, stored = self.case.components[key].prefix, network.state_dict()
            state = {prefix + k: v.clone() for k, v in stored.items() if k not in models.NOT_STORED}
            recipes = {
                "transformer": lambda: layouts.flux(network.config),
                "vae": lambda: layouts.vae(network.config, state),
                "text_encoder": lambda: layouts.clip(state),
                "text_encoder_2": lambda: layouts.t5_llama(network.config, state),
            }[key]()
            self.states[key], self.recipes[key] = state, recipes
            self.tensors[key] = layouts.apply(key, recipes, state)
            layouts.prove(key, self.tensors[key], network.config, prefix, state)

    def named(self, described: dict) -> dict[str, torch.Tensor]:
        """The tensors of a part of a file."""
        component = described["component"]
        return self.states[component] if "names" in described else self.tensors[component]

    def load(self, key: str, tensors: dict, names: str) -> None:
        """Gives a network other weights."""
        prefix = self.case.components[key].prefix
        state = tensors if names else layouts.to_diffusers(key, tensors, self.networks[key].config, prefix)
        left = self.networks[key].load_state_dict({k.removeprefix(prefix): v for k, v in state.items()}, strict=False)
        assert set(left.missing_keys) <= models.NOT_STORED and not left.unexpected_keys, left


def stored(value: torch.Tensor, format: str) -> tuple[np.ndarray, torch.Tensor]:
    """A tensor in a format of GGUF: as bytes, and the float32 numbers that they stand for."""
    kind = gguf.GGMLQuantizationType[format]
    data = gguf.quants.quantize(value.numpy(), kind)
    return data, torch.from_numpy(gguf.quants.dequantize(data, kind).reshape(value.shape).copy())


def gguf_format(rules: str, format: str, name: str, shape: list[int]) -> str:
    """The type of a tensor in a file that is mostly `format`."""
    divisible = format != "Q8_0" or shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0] == 0
    if rules == "city96":
        if len(shape) == 1 or np.prod(shape) <= SMALL:
            return "F32"
        return "BF16" if format == "Q8_0" and name.startswith(KEPT) else format
    if rules == "llama.cpp":
        if len(shape) == 1:
            return "F32"
        return format if divisible else "F16"
    return format if divisible else "F32"


def write_safetensors(model: Model, file: dict, path: Path) -> dict[str, tuple[dict, str]]:
    """Returns the numbers of each component as they are in the file, with what kind of names they have."""
    tensors, numbers = {}, {}
    for described in file["parts"]:
        found = {k: v.to(TORCH[described["format"]]) for k, v in model.named(described).items()}
        tensors |= {described["prefix"] + k: v for k, v in found.items()}
        numbers[described["component"]] = {k: v.float() for k, v in found.items()}, described.get("names", "")
    for extra in file.get("extra", []):
        if "same_as" in extra:
            tensors[extra["name"]] = tensors[extra["same_as"]].clone()
        elif extra["dtype"] == "I64":
            tensors[extra["name"]] = torch.arange(int(np.prod(extra["shape"]))).reshape(extra["shape"])
        else:
            tensors[extra["name"]] = torch.ones(extra["shape"], dtype=TORCH[extra["dtype"]])
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    return numbers


def write_gguf(model: Model, file: dict, path: Path) -> dict[str, tuple[dict, str]]:
    """As `write_safetensors`."""
    (described,) = file["parts"]
    component, format, rules = described["component"], described["format"], file["rules"]
    writer = gguf.GGUFWriter(path, {"city96": "flux", "llama.cpp": "t5encoder", "throughout": "none"}[rules])
    if rules == "city96":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(FILE_TYPES[format])
    elif rules == "llama.cpp":
        spiece.t5_metadata(writer, model.header[component]["config"], FILE_TYPES[format], TOKENIZERS / "t5")
    else:
        writer.kv_data[0].clear()
    numbers = {}
    for name, value in model.tensors[component].items():
        kind = gguf_format(rules, format, name, list(value.shape))
        data, numbers[name] = stored(value, kind)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {component: (numbers, "")}


def draw(model: Model, pipe, numbers: dict) -> torch.Tensor:
    """What diffusers makes of a model with the numbers of its files: latents after the last step."""
    for component, (tensors, names) in numbers.items():
        model.load(component, tensors, names)
    _, found, _ = generate.run(pipe, model.case.request)
    return found[f"latents.{model.case.request.steps - 1}"]


def describe(model: Model) -> dict:
    """Foreign tensors: names, shapes, recipes, digests of their float32 numbers."""
    components = {}
    for key, recipes in model.recipes.items():
        components[key] = [
            {
                "name": name,
                "shape": list(model.tensors[key][name].shape),
                "recipe": [{"tensor": tensor, "rows": rows} for tensor, rows in parts],
                "sha256": hashlib.sha256(model.tensors[key][name].numpy().astype("<f4").tobytes()).hexdigest(),
            }
            for name, parts in recipes.items()
        ]
    return components


def record_case(name: str, directory: Path) -> tuple[dict, dict]:
    """A case's part of the header, and its tensors."""
    model, sets = Model(name), CASES[name]
    pipe = models.pipeline(model.networks, models.scheduler(model.case.scheduler)[0], TOKENIZERS)
    written, numbers = {}, {}
    for file in dict.fromkeys(file for found in sets for file in SETS[found]):
        path = directory / file
        write = write_gguf if "rules" in FILES[file] else write_safetensors
        numbers[file] = write(model, FILES[file], path)
        data = path.read_bytes()
        written[file] = FILES[file] | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    tensors = {}
    for found in sets:
        latents = draw(model, pipe, {k: v for file in SETS[found] for k, v in numbers[file].items()})
        tensors[f"{name}.{found}.latents"] = latents.numpy()
    body = {"components": describe(model), "files": written, "sets": {found: SETS[found] for found in sets}}
    return body, tensors


def record(directory: Path) -> tuple[dict, dict]:
    """Header and tensors of the golden."""
    found, tensors = {}, {}
    for name in CASES:
        (directory / name).mkdir()
        found[name], arrays = record_case(name, directory / name)
        tensors |= arrays
        spiece.check(TOKENIZERS / "t5", cases.CASES[name].request.prompt)
    versions = {m.__name__: m.__version__ for m in (sentencepiece,)} | {"gguf": spiece.version("gguf")}
    charsmap = spiece.charsmap().hex()
    body = {"made_by": "tests/reference/foreign.py", "also_made_with": versions, "charsmap": charsmap} | found
    return body, tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed golden")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    with torch.no_grad(), tempfile.TemporaryDirectory() as directory:
        body, tensors = record(Path(directory))
    problems = []
    if options.check:
        problems = goldenfile.compare("foreign", body, tensors)
    else:
        goldenfile.write("foreign", body, tensors)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
