"""Builds the networks of a case and fills them from the formula."""

import json

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

import recipes
import synth
from cases import Case, Component

CONFIGS = {"CLIPTextModel": (CLIPTextModel, CLIPTextConfig), "T5EncoderModel": (T5EncoderModel, T5Config)}
DIFFUSERS = {"FluxTransformer2DModel": FluxTransformer2DModel, "AutoencoderKL": AutoencoderKL}
# Where save_pretrained puts the weights of a component.
WEIGHTS_FILE = {"transformers": "model.safetensors", "diffusers": "diffusion_pytorch_model.safetensors"}
# The same table by another name, or made anew at load: not in files.
NOT_STORED = {"encoder.embed_tokens.weight", "embeddings.position_ids"}


def build(component: Component) -> torch.nn.Module:
    """The network of a component in float32, with its own initial weights."""
    if component.library == "transformers":
        model_class, config_class = CONFIGS[component.class_name]
        return model_class(config_class(**component.config)).float().eval()
    return DIFFUSERS[component.class_name](**component.config).float().eval()


def fill(key: str, component: Component, model: torch.nn.Module) -> list[dict]:
    """Gives every weight of `model` its value; returns the descriptions that the golden's header stores."""
    described = []
    state = model.state_dict()
    for name in sorted(state.keys() - NOT_STORED):
        stored, shape = component.prefix + name, list(state[name].shape)
        scale, offset = recipes.scale_offset(component.rules, name, shape)
        value = synth.values(key, stored, shape, scale, offset)
        state[name].copy_(torch.from_numpy(value))
        described.append({
            "name": stored,
            "shape": shape,
            "scale": scale,
            "offset": offset,
            "first": [float(v) for v in value.reshape(-1)[:3]],
            "checksum": f"{synth.checksum(value):016x}",
        })
    return described


def config_json(component: Component, model: torch.nn.Module) -> dict:
    """The component's config.json as save_pretrained would write it."""
    if component.library == "transformers":
        model.config.architectures = [component.class_name]
        config = json.loads(model.config.to_json_string())
    else:
        config = json.loads(model.to_json_string())
    config.pop("_name_or_path", None)
    return config


def synthesise(case: Case) -> tuple[dict[str, torch.nn.Module], dict]:
    """All networks of a case, and the `components` entry of its header."""
    networks, header = {}, {}
    for key, component in case.components.items():
        networks[key] = build(component)
        with torch.no_grad():
            tensors = fill(key, component, networks[key])
        header[key] = {
            "library": component.library,
            "class": component.class_name,
            "file": WEIGHTS_FILE[component.library],
            "config": config_json(component, networks[key]),
            "tensors": tensors,
        }
    return networks, header


def scheduler(config: dict) -> tuple[FlowMatchEulerDiscreteScheduler, dict]:
    """A scheduler, and its scheduler_config.json."""
    made = FlowMatchEulerDiscreteScheduler(**config)
    return made, json.loads(made.to_json_string())


def pipeline(networks: dict, flow: FlowMatchEulerDiscreteScheduler, tokenizers) -> FluxPipeline:
    """diffusers' own pipeline over the networks of a case. `tokenizers` holds the folders `clip` and `t5`."""
    pipe = FluxPipeline(
        scheduler=flow,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizers / "clip"),
        tokenizer_2=PreTrainedTokenizerFast.from_pretrained(tokenizers / "t5"),
        **networks,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def describe_float(value: torch.Tensor) -> list[float]:
    """A float32 tensor as numbers that JSON carries without loss."""
    return [float(v) for v in np.asarray(value, dtype=np.float32).reshape(-1)]
