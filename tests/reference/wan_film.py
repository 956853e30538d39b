"""Records what diffusers' WanVideoToVideoPipeline draws of a film with the small synthetic models of wan.py.

    python wan_film.py            writes wan_film
    python wan_film.py --check    compares with the committed file instead of writing it
"""

import argparse
import sys
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import cases
import generate
import given
import goldenfile
import models
import wan

# Its own needs ftfy.
diffusers.pipelines.wan.pipeline_wan_video2video.prompt_clean = diffusers.pipelines.wan.pipeline_wan.prompt_clean


@dataclass(frozen=True)
class Case:
    """A request. Without a negative prompt there is no guidance."""

    width: int = 80
    height: int = 48
    frames: int = 9
    steps: int = 5
    strength: float = 0.6
    seed: int = 13
    prompt: str = "a large purple ring above a black cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    sampler: str = "unipc"
    shift: float = 3.0
    max_sequence_length: int = 512


GOLDEN = {
    "plain": Case(),
    "whole": Case(width=48, height=80, frames=5, strength=1.0),
    "cfg": Case(width=48, height=32, frames=5, cfg_scale=4.0, negative_prompt="two tiny moons", strength=0.8),
    "euler": Case(width=48, height=32, frames=5, sampler="euler", shift=5.0, strength=0.3),
}


def film(width: int, height: int, frames: int) -> list[Image.Image]:
    """A picture that moves to the left, five pixels in each frame."""
    picture = np.asarray(given.picture(width, height))
    return [Image.fromarray(np.roll(picture, -5 * i, axis=1)) for i in range(frames)]


def draw(networks: dict, case: Case) -> np.ndarray:
    """The last latents [C, F, h, w]."""
    pipe = diffusers.WanVideoToVideoPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "t5"),
        text_encoder=networks["text_encoder"],
        transformer=networks["transformer"],
        vae=networks["vae"],
        scheduler=wan.SCHEDULERS[case.sampler](case.shift),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        video=film(case.width + 16, case.height, case.frames),
        prompt=case.prompt,
        negative_prompt=case.negative_prompt,
        guidance_scale=case.cfg_scale,
        width=case.width,
        height=case.height,
        num_inference_steps=case.steps,
        strength=case.strength,
        max_sequence_length=case.max_sequence_length,
        generator=generate.generator(case.seed),
        output_type="latent",
    ).frames[0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["UMT5EncoderModel"] = (UMT5EncoderModel, UMT5Config)
    models.CONFIGS["CLIPVisionModel"] = (CLIPVisionModel, CLIPVisionConfig)
    models.DIFFUSERS["WanTransformer3DModel"] = diffusers.WanTransformer3DModel
    models.DIFFUSERS["AutoencoderKLWan"] = diffusers.AutoencoderKLWan
    tensors, described = {}, {}
    networks, _ = models.synthesise(cases.Case(components=wan.COMPONENTS))
    with torch.no_grad():
        for name, case in GOLDEN.items():
            tensors[f"{name}.latents"], described[name] = draw(networks, case), asdict(case)
            print(f"{name}: {tensors[f'{name}.latents'].shape}", flush=True)
    body = {"made_by": "tests/reference/wan_film.py", "cases": described}
    problems = (goldenfile.compare if options.check else goldenfile.write)("wan_film", body, tensors) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
