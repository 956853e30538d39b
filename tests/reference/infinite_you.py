"""Records what a model of FLUX.1 draws with InfiniteYou beside it: a resampler that makes tokens of a face, and a ControlNet that reads
them in the prompt's place.

    python infinite_you.py             writes infinite_you
    python infinite_you.py --check     compares with the committed files instead of writing them
    python infinite_you.py --health    says how far the latents move when something of the request does

The model is `dev` of cases.py; weights follow from the formula. diffusers has FluxControlNetPipeline, whose ControlNet is given other
text here; the resampler is written below, after the paper and the shapes in InfiniteYou's file.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch

import cases
import generate
import given
import goldenfile
import models
import recipes
import synth

HEAD = 64
# Widths of the embedding, of the learnt tokens, of all heads, within feed-forward layers, and of what comes out; layers and tokens.
SIZES = {"embedding": 48, "dim": 96, "inner": 2 * HEAD, "feed_forward": 200, "output": 256, "depth": 2, "queries": 5}
RULES = [
    (r"latents$", recipes.Around(1.0)),
    (r"norm.*\.weight$|\.1\.0\.weight$", recipes.NORM),
    (r"\.bias$", recipes.Around(0.2)),
    (r"\.1\.3\.weight$", recipes.AFTER_ACTIVATION),
    (r"to_kv\.weight$|to_q\.weight$", recipes.Gain(1.3)),
    (r"\.weight$", recipes.Gain(1.0)),
]


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        dim, inner = SIZES["dim"], SIZES["inner"]
        self.norm1, self.norm2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        self.to_q = torch.nn.Linear(dim, inner, bias=False)
        self.to_kv = torch.nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = torch.nn.Linear(inner, dim, bias=False)

    def forward(self, seen, latents):
        seen, latents = self.norm1(seen), self.norm2(latents)
        heads = lambda x: x.unflatten(-1, (-1, HEAD)).transpose(-2, -3)
        q = heads(self.to_q(latents)) * HEAD**-0.25
        k, v = self.to_kv(torch.cat([seen, latents], dim=-2)).chunk(2, dim=-1)
        weights = (q @ (heads(k) * HEAD**-0.25).transpose(-1, -2)).softmax(-1)
        return self.to_out((weights @ heads(v)).transpose(-2, -3).flatten(-2))


class Resampler(torch.nn.Module):
    def __init__(self):
        super().__init__()
        dim, inner = SIZES["dim"], SIZES["feed_forward"]
        self.latents = torch.nn.Parameter(torch.zeros(1, SIZES["queries"], dim))
        self.proj_in = torch.nn.Linear(SIZES["embedding"], dim)
        layer = lambda: torch.nn.ModuleList(
            [
                Attention(),
                torch.nn.Sequential(
                    torch.nn.LayerNorm(dim),
                    torch.nn.Linear(dim, inner, bias=False),
                    torch.nn.GELU(),
                    torch.nn.Linear(inner, dim, bias=False),
                ),
            ]
        )
        self.layers = torch.nn.ModuleList(layer() for _ in range(SIZES["depth"]))
        self.proj_out = torch.nn.Linear(dim, SIZES["output"])
        self.norm_out = torch.nn.LayerNorm(SIZES["output"])

    def forward(self, seen):
        seen, latents = self.proj_in(seen), self.latents.expand(len(seen), -1, -1)
        for attention, feed_forward in self.layers:
            latents = latents + attention(seen, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


CONTROL = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "axes_dims_rope": [16, 56, 56],
    "in_channels": 64,
    "joint_attention_dim": 256,
    "pooled_projection_dim": 256,
    "guidance_embeds": True,
}


@dataclass(frozen=True)
class Case:
    """A request. The control picture is that of given.py, or black."""

    width: int = 112
    height: int = 80
    steps: int = 4
    seed: int = 11
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    guidance_scale: float = 3.5
    max_sequence_length: int = 24
    control_scale: float = 1.0
    control_start: float = 0.0
    control_end: float = 1.0
    black: bool = False
    batch: int = 1
    decoded: bool = False
    # How the numbers of the face differ: another seed of the formula.
    face: str = "face"


WANTED = {
    "face": Case(decoded=True),
    "face_cfg": Case(cfg_scale=2.0, negative_prompt="a black cross", width=80, height=144, control_scale=0.7),
    "face_batch": Case(batch=2, width=48, height=64, seed=2**64 - 1, black=True),
    "face_part": Case(control_start=0.25, control_end=0.75, width=48, height=64),
}


def face(name: str) -> torch.Tensor:
    return torch.from_numpy(synth.values("id", name, [1, SIZES["embedding"]], 1.5, 0.0))


def synthesise():
    """The pipeline, the resampler, and what the header says of both and of the ControlNet."""
    case = cases.CASES["dev"]
    models.DIFFUSERS["FluxControlNetModel"] = diffusers.FluxControlNetModel
    component = cases.Component("diffusers", "FluxControlNetModel", CONTROL, recipes.TRANSFORMER)
    networks, _ = models.synthesise(case)
    made, described = models.synthesise(cases.Case(components={"controlnet": component}))
    resampler = Resampler().float().eval()
    projector = cases.Component("torch", "Resampler", {}, RULES)
    with torch.no_grad():
        described["projector"] = {"tensors": models.fill("projector", projector, resampler)}
    parts = models.pipeline(networks, models.scheduler(case.scheduler)[0], goldenfile.DIRECTORY / "tokenizers").components
    taken = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    pipe = diffusers.FluxControlNetPipeline(controlnet=made["controlnet"], **taken)
    pipe.set_progress_bar_config(disable=True)
    return pipe, resampler, described


def read_face(control, tokens: torch.Tensor) -> None:
    """Has the ControlNet read `tokens` in the prompt's place."""
    plain = type(control).forward

    def forward(*, encoder_hidden_states, txt_ids, **rest):
        text = tokens.expand(len(encoder_hidden_states), -1, -1)
        return plain(control, encoder_hidden_states=text, txt_ids=torch.zeros(tokens.shape[-2], 3), **rest)

    control.forward = forward


def draw(pipe, resampler, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    read_face(pipe.controlnet, resampler(face(case.face)[None]))
    picture = given.picture(case.width, case.height)
    if case.black:
        picture = picture.point(lambda _: 0)
    found, pictures, kept = [], [], pipe.scheduler
    for i in range(case.batch):
        pipe.scheduler, last = type(kept).from_config(kept.config), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        made = pipe(
            prompt=case.prompt,
            negative_prompt=case.negative_prompt,
            true_cfg_scale=case.cfg_scale,
            control_image=picture,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance_scale,
            max_sequence_length=case.max_sequence_length,
            controlnet_conditioning_scale=case.control_scale,
            control_guidance_start=case.control_start,
            control_guidance_end=case.control_end,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
        )
        found.append(pipe._unpack_latents(last[0], case.height, case.width, pipe.vae_scale_factor)[0].numpy())
        pictures.append(np.asarray(made.images[0]))
    return np.stack(found), pictures[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say what the latents depend on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with torch.no_grad():
        pipe, resampler, described = synthesise()
        if options.health:
            plain = draw(pipe, resampler, WANTED["face"])[0]
            for change in ({"face": "other"}, {"black": True}, {"control_scale": 0.0}, {"control_scale": 0.9}):
                moved = goldenfile.nmse(draw(pipe, resampler, replace(WANTED["face"], **change))[0], plain)
                print(f"{change}: {moved:.1e}")
            return
        tensors = {"tokens": resampler(face("face")[None])[0].numpy()}
        for name, case in WANTED.items():
            latents, picture = draw(pipe, resampler, case)
            tensors |= {f"{name}.latents": latents} | ({f"{name}.picture": picture} if case.decoded else {})
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/infinite_you.py", "class": "FluxControlNetPipeline", "sizes": SIZES}
    body |= {"components": described, "cases": {name: asdict(case) for name, case in WANTED.items()}}
    problems = goldenfile.compare("infinite_you", body, tensors) if options.check else goldenfile.write("infinite_you", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
