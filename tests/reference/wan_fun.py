"""Records what small synthetic models of Wan Fun Control draw, of one network and of two experts, with the transformer of DiffSynth-Studio:
diffusers has none. Films, given frames and pictures to refer to are prepared as by the publisher's pipelines (VideoX-Fun).

    python wan_fun.py            writes wan_fun
    python wan_fun.py --check    compares with the committed file instead of writing it

The text encoder and the autoencoder are those of wan.py.
"""

import argparse
import importlib.util
import json
import sys
import types
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import cases
import generate
import given
import goldenfile
import health
import models
import wan
import wan_film
from cases import Component
from goldenfile import nmse
from image_prompts import VISION
from recipes import NORM, Around, Gain


def module_of_diffsynth():
    """Its module of Wan's transformer. Its packages import all that it has as soon as one module is wanted: they are left empty here."""
    root = Path(importlib.util.find_spec("diffsynth").submodule_search_locations[0])
    for name in ("diffsynth", "diffsynth.models", "diffsynth.core"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    return importlib.import_module("diffsynth.models.wan_video_dit")


DIFFSYNTH = module_of_diffsynth()


class WanModel(DIFFSYNTH.WanModel):
    """The transformer with settings as diffusers calls them, and with pictures that are seen as wide as these say."""

    def __init__(self, **config):
        sizes = {"dim": config["num_attention_heads"] * config["attention_head_dim"], "num_heads": config["num_attention_heads"]}
        sizes |= {key: config[key] for key in ("ffn_dim", "num_layers", "text_dim", "freq_dim")}
        sizes |= {"in_dim": config["in_channels"], "out_dim": config["out_channels"]}
        looks = "image_dim" in config
        super().__init__(**sizes, eps=1e-6, patch_size=(1, 2, 2), has_image_input=looks, has_ref_conv=config["add_ref_conv"])
        if looks:
            self.img_emb = DIFFSYNTH.MLP(config["image_dim"], sizes["dim"])
        self.settings = config

    def to_json_string(self) -> str:
        return json.dumps({"_class_name": "WanModel"} | self.settings)

    def forward(self, latents, time, text, beside, reference, seen=None):
        """The velocity: what DiffSynth-Studio's `model_fn_wan_video` makes of these."""
        t = self.time_embedding(DIFFSYNTH.sinusoidal_embedding_1d(self.freq_dim, time))
        modulation = self.time_projection(t).unflatten(1, (6, self.dim))
        context = self.text_embedding(text)
        if seen is not None:
            context = torch.cat([self.img_emb(seen), context], dim=1)
        x = self.patchify(torch.cat([latents, beside], dim=1))
        frames, rows, columns = x.shape[2:]
        before = self.ref_conv(reference).flatten(2).transpose(1, 2)
        x = torch.cat([before, x.flatten(2).transpose(1, 2)], dim=1)
        grid = (frames + 1, rows, columns)
        angles = []
        for axis, (table, count) in enumerate(zip(self.freqs, grid)):
            shape = [1, 1, 1, -1]
            shape[axis] = count
            angles.append(table[:count].view(shape).expand(*grid, -1))
        angles = torch.cat(angles, dim=-1).reshape(len(x[0]), 1, -1)
        for block in self.blocks:
            x = block(x, context, modulation, angles)
        x = self.head(x, t)[:, before.shape[1] :]
        return self.unpatchify(x, (frames, rows, columns))


TRANSFORMER = [
    (r"cross_attn\.norm_[qk](_img)?\.weight$", Around(0.3, 1.6)),
    (r"norm_[qk]\.weight$", Around(0.3, 1.2)),
    (r"(norm3|img_emb\.proj\.[04])\.weight$", NORM),
    (r"modulation$", Around(0.4)),
    (r"time_projection\.1\.bias$", Around(0.3)),
    (r"time_projection\.1\.weight$", Gain(0.35)),
    (r"\.[qk](_img)?\.bias$", Around(0.8)),
    (r"\.bias$", Around(0.2)),
    (r"time_embedding\.0\.weight$", Gain(1.4)),
    (r"(time_embedding\.2|text_embedding\.2|ffn\.2|img_emb\.proj\.3)\.weight$", wan.AFTER_ACTIVATION),
    (r"\.o\.weight$", Gain(2.0)),
    (r"\.weight$", Gain(1.0)),
]
# DiffSynth-Studio's transformer looks at 257 tokens of a picture: 16 x 16 patches, and CLIP's own.
SEEN = 257


def transformer(**config) -> Component:
    sizes = wan.SIZES | {"out_channels": 16, "add_ref_conv": True}
    return Component("diffusers", "WanModel", sizes | config, TRANSFORMER)


COMPONENTS = {
    "text_encoder": wan.COMPONENTS["text_encoder"],
    "fun": transformer(in_channels=48, image_dim=64, added_kv_proj_dim=256),
    "fun_high": transformer(in_channels=52),
    "fun_low": transformer(in_channels=52),
    "image_encoder": Component(
        "transformers",
        "CLIPVisionModel",
        wan.COMPONENTS["image_encoder"].config | {"image_size": 64, "patch_size": 4},
        VISION,
        prefix="vision_model.",
    ),
    "vae": wan.COMPONENTS["vae"],
}
# For each kind of model, its transformers, and the settings of its pipeline.
MODELS = {"fun": (["fun"], {}), "fun_pair": (["fun_high", "fun_low"], {"boundary_ratio": 0.9})}


@dataclass(frozen=True)
class Case:
    """A request. Without a negative prompt there is no guidance."""

    model: str = "fun"
    width: int = 48
    height: int = 32
    frames: int = 5
    steps: int = 4
    seed: int = 23
    prompt: str = "a large purple ring above a black cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    cfg_scale_2: float | None = None
    shift: float = 3.0
    image: bool = False
    last_image: bool = False
    reference: bool = False
    decoded: bool = False


GUIDED = {"cfg_scale": 4.0, "negative_prompt": "two tiny moons, &amp;lt;blurry&gt;"}
GOLDEN = {
    "film": Case(frames=9, width=80, height=48, **GUIDED),
    "first": Case(image=True),
    "reference": Case(reference=True, decoded=True, **GUIDED),
    "all": Case(image=True, reference=True, height=80, frames=9),
    "pair": Case(model="fun_pair", steps=5, image=True, last_image=True, reference=True, cfg_scale_2=2.5, shift=5.0, **GUIDED),
    "pair_first": Case(model="fun_pair", image=True, frames=9),
    "pair_film": Case(model="fun_pair", steps=3, shift=5.0),
}


class Pipeline:
    """What is around a transformer."""

    def __init__(self, networks: dict, case: Case):
        self.networks, self.case = networks, case
        self.pipe = diffusers.WanPipeline(
            tokenizer=PreTrainedTokenizerFast.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "t5"),
            text_encoder=networks["text_encoder"],
            vae=networks["vae"],
            transformer=None,
            scheduler=wan.SCHEDULERS["unipc"](case.shift),
        )
        config, shape = networks["vae"].config, (1, -1, 1, 1, 1)
        self.mean, self.std = (torch.tensor(numbers).view(shape) for numbers in (config.latents_mean, config.latents_std))

    def encoded(self, video: torch.Tensor) -> torch.Tensor:
        """The latents [1, C, F, h, w] of a video [1, 3, frames, H, W]."""
        return (self.networks["vae"].encode(video).latent_dist.mode() - self.mean) * (1.0 / self.std)

    def picture(self, picture) -> torch.Tensor:
        """A picture as a video of one frame."""
        return self.pipe.video_processor.preprocess(picture, height=self.case.height, width=self.case.width).unsqueeze(2)

    def pictures(self) -> tuple:
        """The first frame, the last one, and the picture that is referred to."""
        case = self.case
        first = given.picture(case.width + 16, case.height) if case.image else None
        last = wan.last_picture(case.width, case.height + 8) if case.last_image else None
        return first, last, given.picture(case.width, case.height + 32).transpose(0) if case.reference else None

    def given_frames(self, first, last, latents: torch.Tensor, is_told: bool) -> torch.Tensor:
        """The latents of given frames, and before them, if the transformer is told, which frames are given."""
        case = self.case
        if not is_told:
            found = torch.zeros_like(latents)
            if first is not None:
                found[:, :, :1] = self.encoded(self.picture(first))
            return found
        mask = torch.zeros(1, 1, case.frames, *latents.shape[3:])
        if first is None:
            return torch.cat([mask.new_zeros(1, 4, *latents.shape[2:]), torch.zeros_like(latents)], dim=1)
        video = torch.zeros(1, 3, case.frames, case.height, case.width)
        video[:, :, :1], mask[:, :, 0] = self.picture(first), 1
        if last is not None:
            video[:, :, -1:], mask[:, :, -1] = self.picture(last), 1
        mask = torch.cat([mask[:, :, :1].repeat_interleave(4, dim=2), mask[:, :, 1:]], dim=2)
        mask = mask.view(1, -1, 4, *latents.shape[3:]).transpose(1, 2)
        return torch.cat([mask, self.encoded(video)], dim=1)

    def seen(self, picture) -> torch.Tensor:
        """What the vision tower sees."""
        if picture is None:
            return torch.zeros(1, SEEN, 64)
        pixels = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)(images=picture, return_tensors="pt").pixel_values
        return self.networks["image_encoder"](pixels, output_hidden_states=True).hidden_states[-2]

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """The last latents [C, F, h, w], and the frames."""
        case, (names, settings) = self.case, MODELS[self.case.model]
        texts = self.pipe.encode_prompt(case.prompt, case.negative_prompt, case.negative_prompt is not None, max_sequence_length=512)
        shape = (1, 16, (case.frames - 1) // 4 + 1, case.height // 8, case.width // 8)
        latents = torch.randn(shape, generator=generate.generator(case.seed))
        film = self.pipe.video_processor.preprocess_video(wan_film.film(case.width, case.height, case.frames), height=case.height, width=case.width)
        first, last, refers = self.pictures()
        beside = torch.cat([self.encoded(film), self.given_frames(first, last, latents, case.model == "fun_pair")], dim=1)
        reference = torch.zeros_like(latents[:, :, 0]) if refers is None else self.encoded(self.picture(refers))[:, :, 0]
        seen = self.seen(refers or first) if case.model == "fun" else None
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(case.steps)
        for t in scheduler.timesteps:
            is_first = t >= settings.get("boundary_ratio", 0) * 1000
            network, scale = self.networks[names[0 if is_first else 1]], case.cfg_scale if is_first else case.cfg_scale_2 or case.cfg_scale
            velocities = [network(latents, t[None].float(), text, beside, reference, seen) for text in texts if text is not None]
            velocity = velocities[0]
            if len(velocities) > 1:
                velocity = velocities[1] + scale * (velocities[0] - velocities[1])
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        if not case.decoded:
            return latents[0].numpy(), np.zeros(0)
        video = self.networks["vae"].decode(latents / (1.0 / self.std) + self.mean, return_dict=False)[0]
        frames = self.pipe.video_processor.postprocess_video(video, output_type="np")[0]
        return latents[0].numpy(), (frames * 255).round().astype(np.uint8)


def check(networks: dict) -> list[str]:
    """Every input of the transformers, and every weight, has an effect."""
    problems, g = [], generate.generator
    text = torch.randn(1, 512, 96, generator=g(3)) * (torch.arange(512) < 40)[None, :, None]
    for name in ("fun", "fun_high"):
        network = networks[name]
        latents, reference = torch.randn(1, 16, 2, 4, 6, generator=g(1)), torch.randn(1, 16, 4, 6, generator=g(2))
        beside = torch.randn(1, network.settings["in_channels"] - 16, 2, 4, 6, generator=g(4))
        seen = torch.randn(1, SEEN, 64, generator=g(5)) if name == "fun" else None
        run = lambda b=beside, r=reference, s=seen: network(latents, torch.tensor([300.0]), text, b, r, s)
        expected, film = run(), beside.clone()
        film[:, :16] = film[:, :16].roll(1, -1)
        changes = {"film": run(b=film), "given frames": run(b=torch.cat([beside[:, :16], beside[:, 16:].roll(1, -1)], dim=1))}
        changes |= {"reference": run(r=reference.roll(1, -1)), "no reference": run(r=torch.zeros_like(reference))}
        if seen is not None:
            changes["seen"] = run(s=seen.flip(2))
        effects = {what: nmse(changed.numpy(), expected.numpy()) for what, changed in changes.items()}
        print(f"{name}: effect of inputs: " + ", ".join(f"{what} {effect:.1e}" for what, effect in effects.items()))
        problems += [f"{name}: {what} has an effect of {effect:.1e} only" for what, effect in effects.items() if not effect > 1e-4]
        problems += health.check_ranges(name, network, run) + health.check_weights(name, network, run)
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["UMT5EncoderModel"] = (UMT5EncoderModel, UMT5Config)
    models.CONFIGS["CLIPVisionModel"] = (CLIPVisionModel, CLIPVisionConfig)
    models.DIFFUSERS["WanModel"] = WanModel
    models.DIFFUSERS["AutoencoderKLWan"] = diffusers.AutoencoderKLWan
    tensors, described = {}, {}
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    with torch.no_grad():
        problems = check(networks)
        for name, case in GOLDEN.items():
            latents, frames = Pipeline(networks, case).draw()
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.frames"] = frames
            print(f"{name}: {latents.shape}, rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
    body = {"made_by": "tests/reference/wan_fun.py", "components": components}
    body |= {"models": {name: {"transformers": names, **settings} for name, (names, settings) in MODELS.items()}}
    body |= {"scheduler": {"_class_name": "UniPCMultistepScheduler", **wan.UNIPC}, "cases": described}
    problems += (goldenfile.compare if options.check else goldenfile.write)("wan_fun", body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
