"""Records what diffusers' FluxImg2ImgPipeline and FluxInpaintPipeline draw from a picture, with the models of cases.py.

    python pictures_in.py            writes pictures_in
    python pictures_in.py --check    compares with the committed files instead of writing them
    python pictures_in.py --health   says how far the latents move when something of the request or of the model does

Pictures and masks follow from the formula of given.py, weights from that of synth.py, so that the last latents alone are stored.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline

import cases
import generate
import given
import goldenfile
import models


@dataclass(frozen=True)
class Case:
    """A request that begins with a picture."""

    model: str
    width: int
    height: int
    steps: int
    strength: float
    seed: int
    # What the picture and the mask measure before they are resized.
    picture: tuple[int, int]
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = None
    true_cfg_scale: float = 1.0
    guidance_scale: float = 3.5
    max_sequence_length: int = 24
    masked: bool = False
    batch: int = 1
    # Whether the picture that comes out is stored, too.
    decoded: bool = False


DEV = Case(model="dev", width=112, height=80, steps=5, strength=0.6, seed=11, picture=(112, 80))
SCHNELL = Case(
    model="schnell",
    width=80,
    height=144,
    steps=4,
    strength=1.0,
    seed=2**32 + 5,
    picture=(80, 144),
    guidance_scale=0.0,
    max_sequence_length=16,
    masked=True,
)
CASES = {
    "img2img": replace(DEV, decoded=True),
    # 4 steps of 0.7 are 2.8 evaluations: three, after rounding up.
    "img2img_cfg": replace(
        DEV, width=80, height=112, picture=(80, 112), steps=4, strength=0.7, true_cfg_scale=2.5, negative_prompt="a black cross"
    ),
    "img2img_batch": replace(DEV, strength=0.4, batch=2, seed=2**64 - 1),
    "img2img_resized": replace(DEV, picture=(150, 61)),
    "inpaint": SCHNELL,
    "inpaint_half": replace(SCHNELL, strength=0.5),
    "inpaint_batch": replace(SCHNELL, width=112, height=48, picture=(112, 48), strength=0.75, batch=2),
    "inpaint_resized": replace(SCHNELL, strength=0.8, picture=(57, 171)),
    "inpaint_dev": replace(DEV, masked=True, strength=0.8, true_cfg_scale=1.7, negative_prompt="a moon"),
}


def pipelines(name: str) -> dict:
    """Both pipelines over the networks of a model, by whether they take a mask."""
    case = cases.CASES[name]
    networks, _ = models.synthesise(case)
    pipe = models.pipeline(networks, models.scheduler(case.scheduler)[0], goldenfile.DIRECTORY / "tokenizers")
    made = {False: FluxImg2ImgPipeline(**pipe.components), True: FluxInpaintPipeline(**pipe.components)}
    for each in made.values():
        each.set_progress_bar_config(disable=True)
    return made


def draw(pipes: dict, case: Case, picture=None, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    pipe, found, pictures = pipes[case.masked], [], []
    arguments = {"mask_image": mask or given.mask(*case.picture)} if case.masked else {}
    for i in range(case.batch):
        last = []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        made = pipe(
            prompt=case.prompt,
            negative_prompt=case.negative_prompt,
            true_cfg_scale=case.true_cfg_scale,
            image=picture or given.picture(*case.picture),
            width=case.width,
            height=case.height,
            strength=case.strength,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance_scale,
            generator=generate.generator((case.seed + i) % 2**64),
            max_sequence_length=case.max_sequence_length,
            callback_on_step_end=keep,
            **arguments,
        )
        found.append(pipe._unpack_latents(last[0], case.height, case.width, pipe.vae_scale_factor)[0].numpy())
        pictures.append(np.asarray(made.images[0]))
    return np.stack(found), pictures[0]


def health(name: str, pipes: dict, case: Case) -> None:
    """Prints how far the latents move (NMSE) when one thing of the request does, and when every weight moves by 1e-6."""
    latents, _ = draw(pipes, case)
    moved = {
        "picture": draw(pipes, case, picture=given.picture(*case.picture).transpose(0)),
        "picture by 1 of 255": draw(pipes, case, picture=given.picture(*case.picture).point(lambda x: x ^ 1)),
        "strength": draw(pipes, replace(case, strength=case.strength / 2)),
        "seed": draw(pipes, replace(case, seed=(case.seed + 1) % 2**64)),
    }
    if case.masked:
        moved["mask"] = draw(pipes, case, mask=given.mask(*case.picture).transpose(0))
        moved["without a mask"] = draw(pipes, replace(case, masked=False))
    weights = [weight for network in pipes[False].components.values() if hasattr(network, "parameters") for weight in network.parameters()]
    kept, g = [weight.clone() for weight in weights], generate.generator(3)
    for weight in weights:
        weight.mul_(1 + 1e-6 * (torch.rand(weight.shape, generator=g) - 0.5).sign())
    moved["weights by 1e-6"] = draw(pipes, case)
    for weight, before in zip(weights, kept, strict=True):
        weight.copy_(before)
    figures = ", ".join(f"{what} {goldenfile.nmse(changed, latents):.1e}" for what, (changed, _) in moved.items())
    print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}; moved by {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say how far the latents move")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tensors, described = {}, {}
    with torch.no_grad():
        made = {name: pipelines(name) for name in ("dev", "schnell")}
        for name, case in CASES.items():
            if options.health:
                health(name, made[case.model], case)
                continue
            latents, picture = draw(made[case.model], case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.picture"] = picture
    if options.health:
        return
    body = {"made_by": "tests/reference/pictures_in.py", "cases": described}
    problems = goldenfile.compare("pictures_in", body, tensors) if options.check else goldenfile.write("pictures_in", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
