"""Turns a FLUX bundle into a directory in the diffusers layout, with all weights in float32.

    python unbundle.py MODEL.gguf DIR

The file is read by the `gguf` package and its names are translated by the tables below: nothing here is pinhole's, so
that a picture drawn from DIR shows what others make of a bundle.
"""

import argparse
import json
import re
from importlib import metadata
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

# The layout of bundles that this reads: `pinhole.version`.
VERSION = 1

# Component: what stands before its tensors' names, and where diffusers looks for its weights.
COMPONENTS = {
    "transformer": ("dit.", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("te.", "model.safetensors"),
    "text_encoder_2": ("te2.", "model.safetensors"),
    "vae": ("vae.", "diffusion_pytorch_model.safetensors"),
}

TRANSFORMER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}

# Layers of a block. Where there are several names, the rows of the original layer are theirs, in this order.
DOUBLE_BLOCK = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.norm.query_norm": ["attn.norm_q"],
    "img_attn.norm.key_norm": ["attn.norm_k"],
    "txt_attn.norm.query_norm": ["attn.norm_added_q"],
    "txt_attn.norm.key_norm": ["attn.norm_added_k"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
SINGLE_BLOCK = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "norm.query_norm": ["attn.norm_q"],
    "norm.key_norm": ["attn.norm_k"],
}

T5 = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
T5_BLOCK = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}

VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def transformer(name: str, value: np.ndarray, config: dict) -> dict[str, np.ndarray]:
    """Original (BFL) names to diffusers'."""
    path, kind = name.rsplit(".", 1)
    kind = "weight" if kind == "scale" else kind
    if path == "final_layer.adaLN_modulation.1":
        # Shift before scale in the original, scale before shift in diffusers.
        value = np.concatenate(np.split(value, 2)[::-1])
    if found := re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", path):
        layers, blocks = {
            "double": (DOUBLE_BLOCK, "transformer_blocks"),
            "single": (SINGLE_BLOCK, "single_transformer_blocks"),
        }[found[1]]
        names = [f"{blocks}.{found[2]}.{layer}" for layer in layers[found[3]]]
    else:
        names = [TRANSFORMER[path]]
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    parts = np.split(value, [hidden * i for i in range(1, len(names))])
    return {f"{name}.{kind}": part for name, part in zip(names, parts, strict=True)}


def text_encoder(name: str, value: np.ndarray, _config: dict) -> dict[str, np.ndarray]:
    """The names of transformers before version 5, which later ones read as well."""
    return {name: value}


def text_encoder_2(name: str, value: np.ndarray, _config: dict) -> dict[str, np.ndarray]:
    """llama.cpp's names to transformers'."""
    path = name.removesuffix(".weight")
    if found := re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)", path):
        return {f"encoder.block.{found[1]}.{T5_BLOCK[found[2]]}.weight": value}
    return {f"{T5[path]}.weight": value}


def vae(name: str, value: np.ndarray, config: dict) -> dict[str, np.ndarray]:
    """LDM's names to diffusers'. Attention is made of 1x1 convolutions there, of matrices here."""
    last = len(config["block_out_channels"]) - 1
    name = name.replace(".norm_out.", ".conv_norm_out.").replace(".nin_shortcut.", ".conv_shortcut.")
    # Levels count from the picture; diffusers counts the decoder's in the order in which they run.
    name = re.sub(r"\.up\.(\d+)\.", lambda found: f".up_blocks.{last - int(found[1])}.", name)
    name = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", name)
    name = re.sub(r"\.block\.(\d+)\.", r".resnets.\1.", name)
    name = re.sub(r"\.(up|down)sample\.", r".\1samplers.0.", name)
    name = re.sub(r"\.mid\.block_(\d+)\.", lambda found: f".mid_block.resnets.{int(found[1]) - 1}.", name)
    if found := re.fullmatch(r"(\w+)\.mid\.attn_1\.(\w+)\.(\w+)", name):
        name = f"{found[1]}.mid_block.attentions.0.{VAE_ATTENTION[found[2]]}.{found[3]}"
        value = value.reshape(value.shape[:2])
    return {name: value}


TRANSLATE = {"transformer": transformer, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "vae": vae}


class Bundle:
    """An open bundle: metadata, and tensors in float32 with PyTorch's order of extents."""

    def __init__(self, path: Path):
        reader = GGUFReader(path)
        self.metadata = {key: field.contents() for key, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        kind = self.metadata.get("general.architecture"), self.metadata.get("pinhole.version")
        if kind != ("flux", VERSION):
            raise SystemExit(f"{path}: a FLUX bundle of version {VERSION} is wanted, this is {kind}")

    def config(self, key: str) -> dict:
        """The configuration of a component or of the scheduler."""
        return json.loads(self.metadata[f"pinhole.{key}.config"])

    def value(self, name: str) -> np.ndarray:
        """A tensor's numbers."""
        tensor = self.tensors[name]
        return dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])


def component(bundle: Bundle, key: str) -> dict[str, np.ndarray]:
    """The weights of one component under diffusers' names."""
    prefix, _ = COMPONENTS[key]
    config, made = bundle.config(key), {}
    for name in bundle.tensors:
        if name.startswith(prefix):
            try:
                made |= TRANSLATE[key](name.removeprefix(prefix), bundle.value(name), config)
            except KeyError as error:
                raise SystemExit(f"tensor {name}: {error} has no name in diffusers") from error
    return made


def model_index(bundle: Bundle) -> dict:
    """model_index.json, which bundles do not carry: it follows from the configurations."""
    index = {
        "_class_name": "FluxPipeline",
        "_diffusers_version": metadata.version("diffusers"),
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        # Whatever its class was: this one takes tokenizer.json as it is.
        "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
    }
    for key in (*COMPONENTS, "scheduler"):
        config = bundle.config(key)
        if "_class_name" in config:
            index[key] = ["diffusers", config["_class_name"]]
        else:
            index[key] = ["transformers", config["architectures"][0]]
    return index


def texts(bundle: Bundle) -> dict[str, str]:
    """The directory's JSON files: path to text."""
    kept = bundle.metadata
    files = {f"{key}/config.json": kept[f"pinhole.{key}.config"] for key in COMPONENTS}
    files["scheduler/scheduler_config.json"] = kept["pinhole.scheduler.config"]
    for key in ("tokenizer", "tokenizer_2"):
        files[f"{key}/tokenizer.json"] = kept[f"pinhole.tokenizer.{key}"]
        files[f"{key}/tokenizer_config.json"] = kept[f"pinhole.tokenizer.{key}.config"]
    if "pinhole.defaults" in kept:
        files["generation_config.json"] = kept["pinhole.defaults"]
    return files | {"model_index.json": json.dumps(model_index(bundle), indent=2)}


def unbundle(bundle: Bundle, directory: Path) -> None:
    """Writes the directory."""
    prefixes = tuple(prefix for prefix, _ in COMPONENTS.values())
    if strangers := [name for name in bundle.tensors if not name.startswith(prefixes)]:
        raise SystemExit(f"tensors of no component: {strangers}")
    for path, text in texts(bundle).items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for key, (_, file) in COMPONENTS.items():
        weights = {name: np.ascontiguousarray(value) for name, value in component(bundle, key).items()}
        save_file(weights, directory / key / file, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="MODEL.gguf")
    parser.add_argument("directory", type=Path, metavar="DIR", help="is made; files in it are replaced")
    options = parser.parse_args()
    unbundle(Bundle(options.bundle), options.directory)


if __name__ == "__main__":
    main()
