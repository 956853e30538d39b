"""Records what diffusers' WanVACEPipeline draws with small synthetic models, of one network and of two experts: of a film and its masks, of a
first and a last frame, and with pictures to refer to.

    python wan_vace.py            writes wan_vace
    python wan_vace.py --check    compares with the committed file instead of writing it

The text encoder and the autoencoder are those of wan.py.
"""

import argparse
import sys
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

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

LAYERS = {"num_layers": 4, "vace_layers": [0, 2], "vace_in_channels": 96, "in_channels": 16, "out_channels": 16}
TRANSFORMER = Component("diffusers", "WanVACETransformer3DModel", wan.SIZES | LAYERS, wan.TRANSFORMER)
COMPONENTS = {
    "text_encoder": wan.COMPONENTS["text_encoder"],
    "transformer": TRANSFORMER,
    "transformer_2": TRANSFORMER,
    "vae": wan.COMPONENTS["vae"],
}
# For each kind of model, its transformers, and the settings of its pipeline.
MODELS = {
    "vace": (["transformer"], {}),
    "vace_pair": (["transformer", "transformer_2"], {"boundary_ratio": 0.875}),
}
GREY = (128, 128, 128)


@dataclass(frozen=True)
class Case:
    """A request. Without a negative prompt there is no guidance."""

    model: str = "vace"
    width: int = 80
    height: int = 48
    frames: int = 9
    steps: int = 4
    seed: int = 17
    prompt: str = "a large purple ring above a black cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    cfg_scale_2: float | None = None
    shift: float = 3.0
    # A film, and masks that move over it.
    film: bool = False
    masks: bool = False
    # Given frames: the others are grey, and made anew.
    image: bool = False
    last_image: bool = False
    # The sizes of the pictures to refer to.
    references: tuple[tuple[int, int], ...] = ()
    scale: float = 1.0
    decoded: bool = False


GOLDEN = {
    "film": Case(film=True, masks=True, **wan.GUIDED),
    "whole_film": Case(film=True, width=48, height=32, frames=5, scale=0.7),
    "frames": Case(image=True, last_image=True, width=48, height=80),
    "references": Case(references=((48, 80), (64, 32)), frames=5, decoded=True, **wan.GUIDED),
    "all": Case(film=True, masks=True, references=((33, 51),), width=48, height=32, frames=5),
    "text": Case(width=48, height=32, frames=5, steps=2),
    "pair": Case(model="vace_pair", film=True, masks=True, references=((48, 80),), width=48, height=32, frames=5, steps=5, cfg_scale_2=2.5, **wan.GUIDED),
}


def masks(case: Case) -> list[Image.Image]:
    """A white bar that moves to the right, seven pixels in each frame."""
    found = []
    for i in range(case.frames):
        bar = np.zeros((case.height, case.width, 3), np.uint8)
        bar[5:-3, 7 * i % case.width : (7 * i % case.width) + 19] = 255
        found.append(Image.fromarray(bar))
    return found


def arguments(case: Case) -> dict:
    """What the pipeline is given to draw by."""
    told = {}
    if case.film:
        told["video"] = wan_film.film(case.width, case.height, case.frames)
    if case.masks:
        told["mask"] = masks(case)
    if case.image:
        size = (case.width, case.height)
        ends = [given.picture(*size), wan.last_picture(*size)]
        grey, white, black = (Image.new("RGB", size, colour) for colour in (GREY, (255,) * 3, (0,) * 3))
        told["video"] = [ends[0], *[grey] * (case.frames - 2), ends[1]]
        told["mask"] = [black, *[white] * (case.frames - 2), black]
    if case.references:
        # The one to be seen first stands next to the film.
        told["reference_images"] = [given.picture(*size) for size in case.references]
    return told


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [C, F, h, w], with those of the references before them, and the frames."""
    names, settings = MODELS[case.model]
    pipe = diffusers.WanVACEPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "t5"),
        text_encoder=networks["text_encoder"],
        vae=networks["vae"],
        scheduler=wan.SCHEDULERS["unipc"](case.shift),
        **{slot: networks[name] for slot, name in zip(("transformer", "transformer_2"), names)},
        **settings,
    )
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        prompt=case.prompt,
        negative_prompt=case.negative_prompt,
        guidance_scale=case.cfg_scale,
        guidance_scale_2=case.cfg_scale_2,
        conditioning_scale=case.scale,
        width=case.width,
        height=case.height,
        num_frames=case.frames,
        num_inference_steps=case.steps,
        generator=generate.generator(case.seed),
        output_type="latent",
        **arguments(case),
    ).frames
    frames = np.zeros(0)
    if case.decoded:
        config, shape = pipe.vae.config, (1, -1, 1, 1, 1)
        mean, std = (torch.tensor(numbers).view(shape) for numbers in (config.latents_mean, config.latents_std))
        video = pipe.vae.decode(latents[:, :, len(case.references) :] / (1.0 / std) + mean, return_dict=False)[0]
        frames = (pipe.video_processor.postprocess_video(video, output_type="np")[0] * 255).round().astype(np.uint8)
    return latents[0].numpy(), frames


def check(network) -> list[str]:
    """Every input of the transformer, and every weight, has an effect."""
    g = generate.generator
    text = torch.randn(1, 512, 96, generator=g(3)) * (torch.arange(512) < 40)[None, :, None]
    latents, control = torch.randn(1, 16, 2, 4, 6, generator=g(1)), torch.randn(1, 96, 2, 4, 6, generator=g(2))

    def run(control=control):
        return network(hidden_states=latents, timestep=torch.tensor([300]), encoder_hidden_states=text, control_hidden_states=control, return_dict=False)[0]

    problems = health.check_ranges("transformer", network, run) + health.check_weights("transformer", network, run)
    effect = nmse(run(control.roll(1, -1)).numpy(), run().numpy())
    print(f"transformer: effect of the film beside the latents {effect:.1e}")
    return problems + ([] if effect > 1e-4 else ["what stands beside the latents has no effect"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # Its own needs ftfy.
    diffusers.pipelines.wan.pipeline_wan_vace.prompt_clean = diffusers.pipelines.wan.pipeline_wan.prompt_clean
    models.CONFIGS["UMT5EncoderModel"] = (UMT5EncoderModel, UMT5Config)
    models.DIFFUSERS["WanVACETransformer3DModel"] = diffusers.WanVACETransformer3DModel
    models.DIFFUSERS["AutoencoderKLWan"] = diffusers.AutoencoderKLWan
    tensors, described = {}, {}
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    with torch.no_grad():
        problems = check(networks["transformer"])
        for name, case in GOLDEN.items():
            latents, frames = draw(networks, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.frames"] = frames
            print(f"{name}: {latents.shape}, rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
    body = {"made_by": "tests/reference/wan_vace.py", "components": components}
    body |= {"models": {name: {"transformers": names, **settings} for name, (names, settings) in MODELS.items()}}
    body |= {"scheduler": {"_class_name": "UniPCMultistepScheduler", **wan.UNIPC}, "cases": described}
    problems += (goldenfile.compare if options.check else goldenfile.write)("wan_vace", body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
