"""Records what diffusers draws with FLUX.1 Redux and with IP-Adapters in XLabs' and InstantX' forms: pictures that take part in a prompt.

    python image_prompts.py            writes redux, ip_adapter and ip_adapter_instantx
    python image_prompts.py --check    compares with the committed files instead of writing them

The model is that of the case "dev" in cases.py. Beside it there are a vision tower, and what makes tokens of what it sees. diffusers does
not load InstantX' form: it is computed here beside diffusers' attention, as the publisher describes it.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline, FluxPriorReduxPipeline
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image, ImageOps
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

import cases
import generate
import given
import goldenfile
import models
import recipes
import synth

# A picture that is another one has to change the latents by this much of their mean square.
LEAST_EFFECT = 1e-4

VISION = [
    (r"(class|position)_embedding(\.weight)?$|probe$", recipes.Around(0.5)),
    (r"norm\d?\.weight$", recipes.NORM),
    (r"[qk]_proj\.bias$", recipes.Around(0.6)),
    (r"bias$", recipes.Around(0.2)),
    (r"[qk]_proj\.weight$", recipes.Gain(1.2)),
    (r"fc2\.weight$", recipes.AFTER_ACTIVATION),
    (r"weight$", recipes.Gain(1.0)),
]
EMBEDDER = [(r"redux_down\.weight$", recipes.AFTER_ACTIVATION), (r"\.bias$", recipes.Around(0.2)), (r"\.weight$", recipes.Gain(1.0))]
ADAPTER = [
    (r"norm\.weight$", recipes.NORM),
    (r"bias$", recipes.Around(0.2)),
    (r"k_proj\.weight$", recipes.Gain(1.3)),
    (r"weight$", recipes.Gain(1.0)),
]

# Heads of 72, as SigLIP so400m has them; pixels that make no whole patch.
SIGLIP_SIDE, CLIP_SIDE = 58, 58
COMPONENTS = {
    "image_encoder": cases.Component(
        "transformers",
        "SiglipVisionModel",
        {"hidden_size": 288, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": SIGLIP_SIDE, "patch_size": 14},
        VISION,
        prefix="vision_model.",
    ),
    "image_embedder": cases.Component("diffusers", "ReduxImageEncoder", {"redux_dim": 288, "txt_in_features": 256}, EMBEDDER),
}
# Heads of 80, as OpenCLIP's ViT-H has them.
CLIP = {
    "image_encoder": cases.Component(
        "transformers",
        "CLIPVisionModelWithProjection",
        {"hidden_size": 320, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": CLIP_SIDE, "patch_size": 14, "projection_dim": 96},
        VISION,
    ),
}


@dataclass(frozen=True)
class Case:
    """A request. Pictures by their sizes."""

    pictures: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] = (1.0,)
    # None is as diffusers without text encoders: zeros.
    prompt: str | None = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    guidance_scale: float = 3.5
    ip_scale: float = 1.0
    width: int = 112
    height: int = 80
    steps: int = 4
    seed: int = 11
    max_sequence_length: int = 24
    batch: int = 1
    decoded: bool = False


EXACT = (SIGLIP_SIDE, SIGLIP_SIDE)
REDUX = Case(pictures=(EXACT,))
IP = Case(pictures=(EXACT,), ip_scale=0.7)
GOLDENS = {
    "redux": {
        "redux": replace(REDUX, decoded=True),
        "without_prompt": replace(REDUX, prompt=None, width=80, height=144),
        "without_prompt_cfg": replace(REDUX, prompt=None, cfg_scale=2.0, negative_prompt="a black cross", width=48, height=64),
        "resized": replace(REDUX, pictures=((150, 61),), weights=(0.85,)),
        "several": replace(REDUX, pictures=(EXACT, (40, 90), (129, 128)), weights=(0.7, -0.25, 0.5), batch=2, width=48, height=64, seed=2**64 - 1),
        "cfg": replace(REDUX, cfg_scale=2.0, negative_prompt="a black cross", batch=2, width=48, height=64),
        "long": replace(REDUX, max_sequence_length=512, width=48, height=64, steps=2),
    },
    "ip_adapter": {
        "ip": replace(IP, decoded=True),
        "resized": replace(IP, pictures=((150, 61),), ip_scale=1.3, width=80, height=144),
        "several": replace(IP, pictures=(EXACT, (40, 90), (129, 128)), batch=2, width=48, height=64, seed=2**64 - 1),
        "cfg": replace(IP, pictures=(EXACT, (40, 90)), cfg_scale=2.0, negative_prompt="a black cross", batch=2, width=48, height=64),
    },
    "ip_adapter_instantx": {
        "ip": replace(IP, decoded=True),
        "several": replace(IP, pictures=(EXACT, (40, 90)), ip_scale=1.3, batch=2, width=48, height=64, seed=2**64 - 1),
        "cfg": replace(IP, cfg_scale=2.0, negative_prompt="a black cross", batch=2, width=48, height=64),
    },
}


def base() -> FluxPipeline:
    """diffusers' pipeline over the model of the case "dev"."""
    case = cases.CASES["dev"]
    networks, _ = models.synthesise(case)
    made, _ = models.scheduler(case.scheduler)
    return models.pipeline(networks, made, goldenfile.DIRECTORY / "tokenizers")


def drawn(pipe: FluxPipeline, case: Case, **arguments) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    found, pictures, kept = [], [], pipe.scheduler
    for i in range(case.batch):
        pipe.scheduler, last = type(kept).from_config(kept.config), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        made = pipe(
            negative_prompt=case.negative_prompt,
            true_cfg_scale=case.cfg_scale,
            guidance_scale=case.guidance_scale,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            max_sequence_length=case.max_sequence_length,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
            **arguments,
        )
        found.append(pipe._unpack_latents(last[0], case.height, case.width, pipe.vae_scale_factor)[0].numpy())
        pictures.append(np.asarray(made.images[0]))
    return np.stack(found), pictures[0]


class Redux:
    """FluxPriorReduxPipeline, and behind it FluxPipeline."""

    def __init__(self):
        networks, self.components = models.synthesise(cases.Case(components=COMPONENTS))
        self.pipe = base()
        parts = {name: getattr(self.pipe, name) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")}
        side = {"height": SIGLIP_SIDE, "width": SIGLIP_SIDE}
        self.prior = FluxPriorReduxPipeline(feature_extractor=SiglipImageProcessor(size=side), **networks, **parts)

    def draw(self, case: Case, pictures: list) -> tuple[np.ndarray, np.ndarray]:
        length, encode = case.max_sequence_length, FluxPriorReduxPipeline.encode_prompt
        # The pipeline asks for 512 tokens always.
        self.prior.encode_prompt = lambda **told: encode(self.prior, **(told | {"max_sequence_length": length}))
        told = {"prompt": case.prompt}
        if case.prompt is None:
            # What the pipeline takes without text encoders, at the widths of this model.
            width, pooled = self.pipe.transformer.config.joint_attention_dim, self.pipe.transformer.config.pooled_projection_dim
            told = {"prompt_embeds": torch.zeros(len(pictures), length, width), "pooled_prompt_embeds": torch.zeros(len(pictures), pooled)}
        weights = list(case.weights)
        made = self.prior(pictures, prompt_embeds_scale=weights, pooled_prompt_embeds_scale=weights, **told)
        return drawn(self.pipe, case, prompt_embeds=made.prompt_embeds, pooled_prompt_embeds=made.pooled_prompt_embeds)


def adapter_tensors(shapes: dict[str, list[int]]) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights of an adapter, and how the header describes them."""
    described, tensors = [], {}
    for name in sorted(shapes):
        scale, offset = recipes.scale_offset(ADAPTER, name, shapes[name])
        value = synth.values("ip_adapter", name, shapes[name], scale, offset)
        tensors[name] = torch.from_numpy(value)
        first, checksum = [float(v) for v in value.reshape(-1)[:3]], f"{synth.checksum(value):016x}"
        described.append({"name": name, "shape": shapes[name], "scale": scale, "offset": offset, "first": first, "checksum": checksum})
    return tensors, {"library": "none", "class": "IP-Adapter", "file": "ip_adapter.safetensors", "config": {}, "tensors": described}


class IpAdapter:
    """FluxPipeline with an adapter in XLabs' form, which is loaded from a file as people have it."""

    def __init__(self):
        networks, self.components = models.synthesise(cases.Case(components=CLIP))
        parts = {name: part for name, part in base().components.items() if name not in ("image_encoder", "feature_extractor")}
        self.pipe = FluxPipeline(feature_extractor=CLIPImageProcessor(size=CLIP_SIDE, crop_size=CLIP_SIDE), **networks, **parts)
        self.pipe.set_progress_bar_config(disable=True)
        config = self.pipe.transformer.config
        hidden, width = config.num_attention_heads * config.attention_head_dim, config.joint_attention_dim
        shapes = {"ip_adapter_proj_model.proj.weight": [4 * width, 96], "ip_adapter_proj_model.proj.bias": [4 * width]}
        shapes |= {"ip_adapter_proj_model.norm.weight": [width], "ip_adapter_proj_model.norm.bias": [width]}
        for i in range(config.num_layers):
            for name in ("k", "v"):
                stem = f"double_blocks.{i}.processor.ip_adapter_double_stream_{name}_proj"
                shapes |= {f"{stem}.weight": [hidden, width], f"{stem}.bias": [hidden]}
        tensors, self.components["ip_adapter"] = adapter_tensors(shapes)
        with tempfile.TemporaryDirectory() as folder:
            save_file(tensors, Path(folder) / "ip_adapter.safetensors")
            self.pipe.load_ip_adapter(folder, weight_name="ip_adapter.safetensors")

    def draw(self, case: Case, pictures: list) -> tuple[np.ndarray, np.ndarray]:
        self.pipe.set_ip_adapter_scale(case.ip_scale)
        return drawn(self.pipe, case, prompt=case.prompt, ip_adapter_image=[pictures])


class Beside(FluxAttnProcessor):
    """diffusers' attention, with that to the tokens of pictures added to what it gives, before a double block's last layer."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.weights, self.tokens, self.scale = (keys, values), None, 1.0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        given = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))).transpose(1, 2)
        key, value = (heads(torch.nn.functional.linear(self.tokens, weight)) for weight in self.weights)
        key = key * torch.rsqrt(key.pow(2).mean(-1, keepdim=True) + 1e-5)
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2) * self.scale
        if encoder_hidden_states is None:
            return given + seen
        image, text = given
        return image + torch.nn.functional.linear(seen, attn.to_out[0].weight), text


class InstantX:
    """FluxPipeline with an adapter in InstantX' form."""

    TOKENS = 5

    def __init__(self):
        networks, self.components = models.synthesise(cases.Case(components={"image_encoder": COMPONENTS["image_encoder"]}))
        self.pipe, self.tower = base(), networks["image_encoder"]
        side = {"height": SIGLIP_SIDE, "width": SIGLIP_SIDE}
        self.processor = SiglipImageProcessor(size=side)
        config, seen = self.pipe.transformer.config, 288
        hidden, width = config.num_attention_heads * config.attention_head_dim, config.joint_attention_dim
        shapes = {"image_proj.proj.0.weight": [2 * seen, seen], "image_proj.proj.0.bias": [2 * seen]}
        shapes |= {"image_proj.proj.2.weight": [self.TOKENS * width, 2 * seen], "image_proj.proj.2.bias": [self.TOKENS * width]}
        shapes |= {"image_proj.norm.weight": [width], "image_proj.norm.bias": [width]}
        for i in range(config.num_layers + config.num_single_layers):
            shapes |= {f"ip_adapter.{i}.to_{name}_ip.weight": [hidden, width] for name in ("k", "v")}
        self.tensors, self.components["ip_adapter"] = adapter_tensors(shapes)
        made = [Beside(self.tensors[f"ip_adapter.{i}.to_k_ip.weight"], self.tensors[f"ip_adapter.{i}.to_v_ip.weight"]) for i in range(len(self.pipe.transformer.attn_processors))]
        self.pipe.transformer.set_attn_processor(dict(zip(self.pipe.transformer.attn_processors, made)))
        self.beside, forward = made, self.pipe.transformer.forward
        self.passes, self.calls = [], 0

        def counted(*given, **told):
            for processor in self.beside:
                processor.tokens = self.passes[self.calls % len(self.passes)]
            self.calls += 1
            return forward(*given, **told)

        self.pipe.transformer.forward = counted

    def tokens(self, pictures: list) -> torch.Tensor:
        """[1, tokens of all pictures, width]"""
        pixels = self.processor(images=pictures, return_tensors="pt").pixel_values
        layer = lambda x, name: torch.nn.functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])
        x = layer(self.tower(pixel_values=pixels).pooler_output, "image_proj.proj.0")
        x = layer(torch.nn.functional.gelu(x), "image_proj.proj.2")
        norm = [self.tensors[f"image_proj.norm.{name}"] for name in ("weight", "bias")]
        x = x.reshape(len(pictures), self.TOKENS, -1)
        return torch.nn.functional.layer_norm(x, x.shape[-1:], *norm).reshape(1, len(pictures) * self.TOKENS, -1)

    def draw(self, case: Case, pictures: list) -> tuple[np.ndarray, np.ndarray]:
        black = Image.new("RGB", (case.width, case.height))
        self.passes = [self.tokens(pictures)] + ([self.tokens([black])] if case.cfg_scale > 1 else [])
        for processor in self.beside:
            processor.scale = case.ip_scale
        return drawn(self.pipe, case, prompt=case.prompt)


def without_effect(of, name: str, case: Case, latents: np.ndarray) -> list[str]:
    """What a case would not show: a picture that changes nothing."""
    found = []
    for i in range(len(case.pictures)):
        pictures = [given.picture(*size) for size in case.pictures]
        pictures[i] = ImageOps.invert(pictures[i])
        other, _ = of.draw(replace(case, batch=1), pictures)
        effect = goldenfile.nmse(other[0], latents[0])
        if effect < LEAST_EFFECT:
            found.append(f"{name}: picture {i} changes the latents by {effect:.1e}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["SiglipVisionModel"] = (SiglipVisionModel, SiglipVisionConfig)
    models.CONFIGS["CLIPVisionModelWithProjection"] = (CLIPVisionModelWithProjection, CLIPVisionConfig)
    models.DIFFUSERS["ReduxImageEncoder"] = ReduxImageEncoder
    problems = []
    for golden, make in (("redux", Redux), ("ip_adapter", IpAdapter), ("ip_adapter_instantx", InstantX)):
        tensors, described = {}, {}
        with torch.no_grad():
            of = make()
            for name, case in GOLDENS[golden].items():
                latents, picture = of.draw(case, [given.picture(*size) for size in case.pictures])
                tensors[f"{name}.latents"], described[name] = latents, asdict(case)
                if case.decoded:
                    tensors[f"{name}.picture"] = picture
                problems += without_effect(of, f"{golden} {name}", case, latents)
                print(f"{golden} {name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
        body = {"made_by": "tests/reference/image_prompts.py", "model": "dev", "components": of.components, "cases": described}
        problems += (goldenfile.compare(golden, body, tensors) if options.check else goldenfile.write(golden, body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
