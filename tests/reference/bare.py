"""What the file of a FLUX transformer by itself has to look like, for tests/flux/bare.rs.

    bare.py --mini DIR --pinhole PROGRAM [--check]

From the rules of ComfyUI-GGUF's converter, not from pinhole: original names (proved by diffusers' own converter), shapes,
formats and metadata, for FLUX.1-dev and for the miniature, at q8_0 and q4_k_s from bf16. Then PROGRAM converts the
miniature, the package `gguf` reads the files, and the SHA-256 of every tensor's numbers is recorded, all in
`tests/goldens/bare.json`.
"""

import argparse
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

import gguf
import layouts
import numpy as np
import torch
from diffusers import FluxTransformer2DModel

GOLDEN = Path(__file__).resolve().parent.parent / "goldens" / "bare.json"
FORMAT = 1
# Type, the format of its matrices, its number as `general.file_type`.
TYPES = {"q8_0": ("Q8_0", 7), "q4_k_s": ("Q4_K", 14)}
# Layers of FLUX that stay unquantized.
KEPT = ("txt_in.", "img_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")


def rule(name: str, shape: list[int], quantized: str) -> str:
    """The format of a tensor that is bf16 in the source; `shape` is PyTorch's."""
    if len(shape) == 1 or np.prod(shape) <= 1024:
        return "F32"
    if name.startswith(KEPT) or len(shape) != 2:
        return "BF16"
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[quantized]]
    return quantized if shape[-1] % block == 0 else "F16"


def original(model: FluxTransformer2DModel) -> dict[str, list[int]]:
    """Names and shapes in the layout of Black Forest Labs."""
    recipes = layouts.flux(model.config)
    tensors = layouts.apply("transformer", recipes, model.state_dict())
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def expected(model: FluxTransformer2DModel) -> dict:
    shapes = original(model)
    rows = [
        [name, shape[::-1], *(rule(name, shape, quantized).lower() for quantized, _ in TYPES.values())]
        for name, shape in sorted(shapes.items())
    ]
    return {"parameters": sum(int(np.prod(shape)) for shape in shapes.values()), "tensors": rows}


def prove(model: FluxTransformer2DModel) -> None:
    """diffusers' converter of original files leads from these names and shapes back to the model's own."""
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    tensors = layouts.apply("transformer", layouts.flux(model.config), state)
    found = layouts.flux_to_diffusers(dict(tensors), model.config)
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in state.items()}


def metadata(number: int) -> dict:
    return {"general.architecture": "flux", "general.quantization_version": 2, "general.file_type": number}


def decoded(program: str, mini: str, name: str) -> dict:
    """Digests of the numbers that the package reads from pinhole's file of the miniature."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "part.gguf"
        arguments = ["convert", mini, "--component", "transformer", "--type", name, "-o", str(path), "-q"]
        subprocess.run([program, *arguments], check=True, stdout=subprocess.DEVNULL)
        reader = gguf.GGUFReader(path)
        numbers = {t.name: gguf.dequantize(t.data, t.tensor_type).astype("<f4") for t in reader.tensors}
    return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in sorted(numbers.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mini", required=True, help="the miniature's diffusers directory")
    parser.add_argument("--pinhole", required=True, help="the program")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    with torch.device("meta"):
        dev = FluxTransformer2DModel(guidance_embeds=True)
        mini = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(arguments.mini, subfolder="transformer"))
    models = {"dev": dev, "mini": mini}
    for model in models.values():
        prove(model)
    golden = {"format": FORMAT, "made_by": "tests/reference/bare.py", "types": list(TYPES)}
    golden["metadata"] = {name: metadata(number) for name, (_, number) in TYPES.items()}
    golden["models"] = {name: expected(model) for name, model in models.items()}
    golden["decoded"] = {name: decoded(arguments.pinhole, arguments.mini, name) for name in TYPES}
    if arguments.check:
        assert json.loads(GOLDEN.read_text()) == golden, "something else than was recorded"
        print("equal")
        return
    text = json.dumps(golden)
    # A line for each tensor.
    GOLDEN.write_text(text.replace("], [", "],\n[") + "\n")


if __name__ == "__main__":
    main()
