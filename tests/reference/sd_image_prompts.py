"""Records what diffusers draws with IP-Adapters of Stable Diffusion 1 and XL: pictures that the UNet looks at beside the prompt.

    python sd_image_prompts.py            writes sd1_ip, sd1_ip_plus, sdxl_ip, sd1_face and sdxl_face
    python sd_image_prompts.py --check    compares with the committed files instead of writing them

The models are those of stable_diffusion.py and stable_diffusion_xl.py; the vision tower is that of image_prompts.py. The adapters are
loaded from files, by the names and numbers that people have them with. Those for faces (FaceID) read the embeddings of a program that
recognises faces, here numbers by formula, and have low-rank changes of the UNet's attentions: diffusers gives these to PEFT, here they are
merged.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import ImageOps
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import cases
import generate
import given
import goldenfile
import models
import recipes
import stable_diffusion as sd
import stable_diffusion_xl as xl
import synth
from image_prompts import CLIP, CLIP_SIDE, LEAST_EFFECT

RULES = [
    (r"latents$", recipes.Around(1.0)),
    (r"norm(_out|1|2)?\.weight$|\.1\.0\.weight$", recipes.NORM),
    (r"\.bias$", recipes.Around(0.2)),
    (r"to_(kv|q)\.weight$|to_k_ip\.weight$", recipes.Gain(1.3)),
    (r"\.1\.3\.weight$|proj\.2\.weight$", recipes.AFTER_ACTIVATION),
    (r"_lora\.up\.weight$", recipes.Gain(0.5)),
    (r"\.weight$", recipes.Gain(1.0)),
]
# What a resampler has: hidden width, heads of 64, learnt tokens, layers.
HIDDEN, HEADS, QUERIES, DEPTH = 128, 2, 5, 4
# Numbers of a face, the width behind them, tokens of a face, and the rank of the changes.
FACE, FACE_HIDDEN, FACE_TOKENS, RANK = 48, 96, 4, 3


@dataclass(frozen=True)
class Case:
    """A request. Pictures by their sizes; of faces, how many."""

    faces: int = 0
    pictures: tuple[tuple[int, int], ...] = ((CLIP_SIDE, CLIP_SIDE),)
    ip_scale: float = 0.7
    width: int = 56
    height: int = 40
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = "a black cross"
    cfg_scale: float = 5.0
    batch: int = 1


ALONE = {"cfg_scale": 1.0, "negative_prompt": None}
SEVERAL = ((CLIP_SIDE, CLIP_SIDE), (40, 90), (129, 128))
GOLDENS = {
    "sd1_ip": {
        "ip": Case(width=104, height=72),
        "resized": Case(pictures=((150, 61),), ip_scale=1.3, **ALONE),
        "several": Case(pictures=SEVERAL, batch=2, seed=2**64 - 1),
    },
    "sd1_ip_plus": {
        "ip": Case(width=40, height=56),
        "without_cfg": Case(**ALONE),
        "several": Case(pictures=SEVERAL[:2], ip_scale=1.3, batch=2),
    },
    "sdxl_ip": {
        "ip": Case(),
        "without_negative": Case(pictures=SEVERAL[:2], negative_prompt=None, width=72, height=88),
    },
    "sd1_face": {
        "face": Case(faces=1, pictures=(), width=104, height=72),
        "without_cfg": Case(faces=1, pictures=(), ip_scale=1.3, **ALONE),
        "several": Case(faces=2, pictures=(), batch=2, seed=2**64 - 1),
    },
    "sdxl_face": {
        "face": Case(faces=1, pictures=(), negative_prompt=None, width=72, height=88),
    },
}


def adapter(unet, form: str) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights of an adapter, and how the header describes them."""
    tower, width = CLIP["image_encoder"].config, unet.config.cross_attention_dim
    if form == "plus":
        seen, inner = tower["hidden_size"], 64 * HEADS
        shapes = {"latents": [1, QUERIES, HIDDEN], "proj_in.weight": [HIDDEN, seen], "proj_in.bias": [HIDDEN]}
        shapes |= {"proj_out.weight": [width, HIDDEN], "proj_out.bias": [width], "norm_out.weight": [width], "norm_out.bias": [width]}
        for i in range(DEPTH):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                shapes |= {f"layers.{i}.{norm}.{leaf}": [HIDDEN] for leaf in ("weight", "bias")}
            shapes |= {f"layers.{i}.0.to_q.weight": [inner, HIDDEN], f"layers.{i}.0.to_kv.weight": [2 * inner, HIDDEN]}
            shapes |= {f"layers.{i}.0.to_out.weight": [HIDDEN, inner]}
            shapes |= {f"layers.{i}.1.1.weight": [4 * HIDDEN, HIDDEN], f"layers.{i}.1.3.weight": [HIDDEN, 4 * HIDDEN]}
    elif form == "face":
        shapes = {"proj.0.weight": [FACE_HIDDEN, FACE], "proj.0.bias": [FACE_HIDDEN]}
        shapes |= {"proj.2.weight": [FACE_TOKENS * width, FACE_HIDDEN], "proj.2.bias": [FACE_TOKENS * width]}
        shapes |= {"norm.weight": [width], "norm.bias": [width]}
    else:
        shapes = {"proj.weight": [4 * width, tower["projection_dim"]], "proj.bias": [4 * width]}
        shapes |= {"norm.weight": [width], "norm.bias": [width]}
    shapes = {f"image_proj.{name}": shape for name, shape in shapes.items()}
    # Numbers go by the order in which diffusers has the attentions: every second one looks at the prompt.
    for i, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            shapes |= {f"ip_adapter.{i}.to_{of}_ip.weight": [hidden, width] for of in ("k", "v")}
        if form == "face":
            for of, rows, columns in changed(unet, name):
                shapes |= {f"ip_adapter.{i}.to_{of}_lora.down.weight": [RANK, columns], f"ip_adapter.{i}.to_{of}_lora.up.weight": [rows, RANK]}
    described, tensors = [], {}
    for name in sorted(shapes):
        scale, offset = recipes.scale_offset(RULES, name, shapes[name])
        tensors[name] = torch.from_numpy(synth.values("ip_adapter", name, shapes[name], scale, offset))
        described.append([name, shapes[name], scale, offset])
    return tensors, {"library": "none", "class": "IP-Adapter", "file": "ip_adapter.safetensors", "config": {}, "tensors": described}


def changed(unet, processor: str) -> list[tuple[str, int, int]]:
    """The matrices of an attention that an adapter for faces changes, with their extents."""
    attention = unet.get_submodule(processor.removesuffix(".processor"))
    of = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "out": attention.to_out[0]}
    return [(name, *matrix.weight.shape) for name, matrix in of.items()]


def merge(unet, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adds the low-rank changes among `tensors` to the matrices of `unet`; returns the others."""
    for i, name in enumerate(unet.attn_processors):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for of, matrix in {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "out": attention.to_out[0]}.items():
            down, up = (tensors.get(f"ip_adapter.{i}.to_{of}_lora.{side}.weight") for side in ("down", "up"))
            if down is not None:
                matrix.weight.add_(up @ down)
    return {name: tensor for name, tensor in tensors.items() if "_lora." not in name}


def face(number: int) -> torch.Tensor:
    """What a program that recognises faces is meant to say of one."""
    return torch.from_numpy(synth.values("face", str(number), [FACE], 1.0, 0.0))


class IpAdapter:
    """diffusers' pipeline with an adapter, which is loaded from a file as people have it."""

    def __init__(self, base, form: str):
        networks, self.components = models.synthesise(cases.Case(components=CLIP))
        for component in self.components.values():
            component["tensors"] = [[tensor[key] for key in ("name", "shape", "scale", "offset")] for tensor in component["tensors"]]
        pipes, _ = base.pipelines()
        parts = {name: part for name, part in pipes["text"].components.items() if name not in ("image_encoder", "feature_extractor")}
        if base is sd:
            parts["requires_safety_checker"] = False
        processor = CLIPImageProcessor(size=CLIP_SIDE, crop_size=CLIP_SIDE)
        self.pipe = type(pipes["text"])(feature_extractor=processor, **networks, **parts)
        self.pipe.set_progress_bar_config(disable=True)
        tensors, self.components["ip_adapter"] = adapter(self.pipe.unet, form)
        tensors = merge(self.pipe.unet, tensors)
        with tempfile.TemporaryDirectory() as folder:
            save_file(tensors, Path(folder) / "ip_adapter.safetensors")
            self.pipe.load_ip_adapter(folder, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)

    def draw(self, case: Case, pictures: list) -> np.ndarray:
        """The last latents [batch, C, h, w]. Every picture of a batch is a run with its own seed."""
        self.pipe.set_ip_adapter_scale(case.ip_scale)
        pipe, found, kept = self.pipe, [], self.pipe.scheduler
        for i in range(case.batch):
            pipe.scheduler, last = type(kept).from_config(kept.config), []

            def keep(_pipe, _step, _timestep, tensors):
                last[:] = [tensors["latents"].clone()]
                return {}

            pipe(
                prompt=case.prompt,
                negative_prompt=case.negative_prompt,
                width=case.width,
                height=case.height,
                num_inference_steps=case.steps,
                guidance_scale=case.cfg_scale,
                generator=generate.generator((case.seed + i) % 2**64),
                callback_on_step_end=keep,
                output_type="latent",
                **(self.faces(case, pictures) if case.faces else {"ip_adapter_image": [pictures]}),
            )
            found.append(last[0][0].numpy())
        return np.stack(found)


    def faces(self, case: Case, faces: list) -> dict:
        """The argument with `faces`, and with zeros for the negative prompt before them."""
        embeds = torch.stack(faces)[None]
        return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(embeds), embeds]) if case.cfg_scale > 1 else embeds]}


def looked_at(case: Case) -> list:
    """What a case has to look at."""
    return [face(i) for i in range(case.faces)] or [given.picture(*size) for size in case.pictures]


def without_effect(of: IpAdapter, name: str, case: Case, latents: np.ndarray) -> list[str]:
    """What a case would not show: a picture that changes nothing."""
    found = []
    for i in range(len(looked_at(case))):
        pictures = looked_at(case)
        pictures[i] = -pictures[i] if case.faces else ImageOps.invert(pictures[i])
        effect = goldenfile.nmse(of.draw(replace(case, batch=1), pictures)[0], latents[0])
        if effect < LEAST_EFFECT:
            found.append(f"{name}: picture {i} changes the latents by {effect:.1e}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["CLIPVisionModelWithProjection"] = (CLIPVisionModelWithProjection, CLIPVisionConfig)
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    problems = []
    forms = {"sd1_ip": "plain", "sd1_ip_plus": "plus", "sdxl_ip": "plain", "sd1_face": "face", "sdxl_face": "face"}
    for golden, form in forms.items():
        model, base = ("sd1", sd) if golden.startswith("sd1") else ("sdxl", xl)
        tensors, described = {}, {}
        with torch.no_grad():
            of = IpAdapter(base, form)
            for name, case in GOLDENS[golden].items():
                latents = of.draw(case, looked_at(case))
                tensors[f"{name}.latents"], described[name] = latents, asdict(case)
                problems += without_effect(of, f"{golden} {name}", case, latents)
                print(f"{golden} {name}: rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
        body = {"made_by": "tests/reference/sd_image_prompts.py", "model": model, "components": of.components, "cases": described}
        problems += (goldenfile.compare(golden, body, tensors) if options.check else goldenfile.write(golden, body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
