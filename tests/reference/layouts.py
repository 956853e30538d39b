"""What the files of other tools call the weights of a diffusers model, and that this is right.

For each component: foreign names, and the tensors of diffusers' that make up each, one below the other. The tables are
written down here; whether they hold is for others to say. diffusers' own converters of single files, and the `gguf`
package's table of llama.cpp's names, must lead from the foreign tensors back to those of diffusers, every bit of them.
"""

import tempfile
import types

import gguf
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from transformers import CLIPTextModel, T5EncoderModel

ALL, FIRST, SECOND = "all", "first", "second"

# Foreign name, and its parts: diffusers' names, each with the rows that are meant.
Recipes = dict[str, list[tuple[str, str]]]

EMBEDDERS = {
    "time_in": "time_text_embed.timestep_embedder",
    "vector_in": "time_text_embed.text_embedder",
    "guidance_in": "time_text_embed.guidance_embedder",
}
DOUBLE_BLOCK = {
    "img_mod.lin": ["norm1.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn.proj": ["attn.to_out.0"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mod.lin": ["norm1_context.linear"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn.proj": ["attn.to_add_out"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
DOUBLE_BLOCK_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
SINGLE_BLOCK = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}
SINGLE_BLOCK_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}


def flux(config) -> Recipes:
    """The transformer in the names of Black Forest Labs."""
    layers = {"img_in": ["x_embedder"], "txt_in": ["context_embedder"], "final_layer.linear": ["proj_out"]}
    for ours, theirs in EMBEDDERS.items():
        if ours != "guidance_in" or config.guidance_embeds:
            layers |= {f"{ours}.in_layer": [f"{theirs}.linear_1"], f"{ours}.out_layer": [f"{theirs}.linear_2"]}
    norms = {}
    for count, ours, theirs, block, block_norms in (
        (config.num_layers, "double_blocks", "transformer_blocks", DOUBLE_BLOCK, DOUBLE_BLOCK_NORMS),
        (config.num_single_layers, "single_blocks", "single_transformer_blocks", SINGLE_BLOCK, SINGLE_BLOCK_NORMS),
    ):
        for i in range(count):
            layers |= {f"{ours}.{i}.{k}": [f"{theirs}.{i}.{part}" for part in parts] for k, parts in block.items()}
            norms |= {f"{ours}.{i}.{k}": f"{theirs}.{i}.{part}" for k, part in block_norms.items()}
    kinds = ("weight", "bias")
    recipes = {f"{k}.{kind}": [(f"{part}.{kind}", ALL) for part in v] for k, v in layers.items() for kind in kinds}
    recipes |= {f"{name}.scale": [(f"{part}.weight", ALL)] for name, part in norms.items()}
    # Shift before scale there, scale before shift in diffusers.
    for kind in kinds:
        halves = [(f"norm_out.linear.{kind}", SECOND), (f"norm_out.linear.{kind}", FIRST)]
        recipes[f"final_layer.adaLN_modulation.1.{kind}"] = halves
    return recipes


VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vae_side(side: str, way: str, resnets: int, levels: int) -> dict[str, str]:
    """Layers of the encoder or decoder: foreign name to diffusers'. More than there are: not all resnets have a shortcut."""
    layers = {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
    layers[f"{side}.norm_out"] = f"{side}.conv_norm_out"
    blocks = {f"mid.block_{i + 1}": f"mid_block.resnets.{i}" for i in range(2)}
    for level in range(levels):
        # Both count from the picture in the encoder; in the decoder diffusers counts in the order in which they run.
        theirs = f"{way}_blocks.{level if way == 'down' else levels - 1 - level}"
        blocks |= {f"{way}.{level}.block.{i}": f"{theirs}.resnets.{i}" for i in range(resnets)}
        layers[f"{side}.{way}.{level}.{way}sample.conv"] = f"{side}.{theirs}.{way}samplers.0.conv"
    layers |= {f"{side}.{a}.{k}": f"{side}.{b}.{v}" for a, b in blocks.items() for k, v in VAE_RESNET.items()}
    attention = f"{side}.mid_block.attentions.0"
    return layers | {f"{side}.mid.attn_1.{k}": f"{attention}.{v}" for k, v in VAE_ATTENTION.items()}


def vae(config, state: dict) -> Recipes:
    """The autoencoder in the names of latent diffusion."""
    levels, resnets = len(config.block_out_channels), config.layers_per_block
    layers = vae_side("encoder", "down", resnets, levels) | vae_side("decoder", "up", resnets + 1, levels)
    layers |= {name: name for name in ("quant_conv", "post_quant_conv")}
    named = {f"{k}.{kind}": f"{v}.{kind}" for k, v in layers.items() for kind in ("weight", "bias")}
    return {ours: [(theirs, ALL)] for ours, theirs in named.items() if theirs in state}


def clip(state: dict) -> Recipes:
    """CLIP in the names of transformers 4, as `clip_l.safetensors` has them."""
    return {name if name.startswith("text_model.") else f"text_model.{name}": [(name, ALL)] for name in state}


def t5_llama(config, state: dict) -> Recipes:
    """T5's encoder in llama.cpp's names, as the `gguf` package gives them."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, config.num_layers)
    return {names.get_name(name, try_suffixes=(".weight",)): [(name, ALL)] for name in state}


def foreign_shape(component: str, name: str, shape: list[int]) -> list[int]:
    """The attention of latent diffusion's autoencoder is made of 1 x 1 convolutions, that of diffusers of matrices."""
    convolution = component == "vae" and ".attn_1." in name and len(shape) == 2
    return [*shape, 1, 1] if convolution else shape


def half(value: torch.Tensor, rows: str) -> torch.Tensor:
    """The rows of `value` that are meant."""
    return value if rows == ALL else value.chunk(2)[0 if rows == FIRST else 1]


def apply(component: str, recipes: Recipes, state: dict) -> dict[str, torch.Tensor]:
    """The foreign tensors."""
    made = {}
    for name, parts in recipes.items():
        value = torch.cat([half(state[part], rows) for part, rows in parts])
        made[name] = value.reshape(foreign_shape(component, name, list(value.shape))).contiguous()
    return made


def flux_to_diffusers(tensors: dict, config) -> dict:
    """diffusers' converter. Of it one number is changed: the width, which it takes to be that of the published models."""
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    published, code = 3072, convert.__code__
    assert code.co_consts.count(published) == 1
    hidden = config.num_attention_heads * config.attention_head_dim
    constants = tuple(hidden if constant == published else constant for constant in code.co_consts)
    narrow = types.FunctionType(code.replace(co_consts=constants), convert.__globals__, closure=convert.__closure__)
    return narrow(dict(tensors))


def vae_to_diffusers(tensors: dict, config) -> dict:
    """diffusers' converter."""
    return single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), config)


def t5_to_transformers(tensors: dict, config) -> dict:
    """The `gguf` package's table the other way round."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, config.num_layers)
    suffix = ".weight"
    back = {}
    for theirs, (_, ours) in names.mapping.items():
        back.setdefault(ours, []).append(theirs)
    known = transformers_t5_names(config)
    made = {}
    for name, value in tensors.items():
        (theirs,) = (found for found in back[name.removesuffix(suffix)] if found + suffix in known)
        made[theirs + suffix] = value
    return made


def transformers_t5_names(config) -> set[str]:
    """The names of the weights of a network that transformers builds."""
    with torch.device("meta"):
        return set(T5EncoderModel(config).state_dict()) - {"encoder.embed_tokens.weight"}


def clip_to_transformers(tensors: dict, config, prefix: str) -> dict:
    """What transformers reads from such a file. Inside, its version 5 leaves out the first part of the names."""
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        save_file(tensors, f"{directory}/model.safetensors", metadata={"format": "pt"})
        state = CLIPTextModel.from_pretrained(directory, dtype=torch.float32).state_dict()
    return {prefix + name: value for name, value in state.items() if not name.endswith("position_ids")}


def to_diffusers(component: str, tensors: dict, config, prefix: str) -> dict:
    """The foreign tensors as diffusers and transformers name and shape them, with `prefix` before CLIP's names."""
    match component:
        case "transformer":
            return flux_to_diffusers(tensors, config)
        case "vae":
            return vae_to_diffusers(tensors, config)
        case "text_encoder":
            return clip_to_transformers(tensors, config, prefix)
        case "text_encoder_2":
            return t5_to_transformers(tensors, config)
    raise KeyError(component)


def prove(component: str, tensors: dict, config, prefix: str, state: dict) -> None:
    """The way back is the identity."""
    back = to_diffusers(component, tensors, config, prefix)
    assert back.keys() == state.keys(), f"{component}: {sorted(back.keys() ^ state.keys())[:6]}"
    for name, value in state.items():
        assert back[name].shape == value.shape and torch.equal(back[name], value), f"{component}: {name} differs"
    assert sum(value.numel() for value in tensors.values()) == sum(value.numel() for value in state.values())
