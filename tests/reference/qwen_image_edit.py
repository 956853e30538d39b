"""Records what diffusers' QwenImageEditPipeline and QwenImageEditPlusPipeline draw with the model of qwen_image.py, and what its vision
tower makes of a picture.

    python qwen_image_edit.py            writes qwen_image_edit
    python qwen_image_edit.py --check    compares with the committed file instead of writing it

Pictures that are looked at keep their size for the autoencoder, and have their usual one for the vision tower. The reference is mended:
without the kinds of tokens, transformers 5 gives those of pictures no place in rows and columns.
"""

import argparse
import importlib
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import cases
import generate
import given
import goldenfile
import models
import qwen_image
from goldenfile import nmse
from z_image import TOKENIZER

VISION = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
PAD = VISION[1]


@dataclass(frozen=True)
class Case:
    """A request. `references` are the sizes of the pictures that are looked at."""

    references: tuple[tuple[int, int], ...] = ((96, 64),)
    plus: bool = True
    zero_cond_t: bool = False
    width: int = 112
    height: int = 80
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a black cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    batch: int = 1
    decoded: bool = False


GOLDEN = {
    "edit": Case(plus=False, decoded=True),
    "edit_cfg": Case(plus=False, references=((64, 96),), width=48, height=64, cfg_scale=3.0, negative_prompt=" ", batch=2),
    "plus": Case(cfg_scale=4.0, negative_prompt="two tiny moons", width=80, height=48),
    "plus_two": Case(references=((96, 64), (64, 160)), width=64, height=48),
    "plus_zero": Case(references=((96, 64), (64, 160)), zero_cond_t=True, width=64, height=48, cfg_scale=2.0, negative_prompt=" "),
}


class Processor:
    """What the pipelines use of Qwen2_5_VLProcessor, whose part for films wants torchvision."""

    def __init__(self, tokenizer):
        self.tokenizer, self.pictures = tokenizer, Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)

    def __call__(self, text, images, padding, return_tensors):
        seen = self.pictures(images=images, return_tensors="pt")
        tokens = iter((seen["image_grid_thw"].prod(-1) // 4).tolist())
        texts = []
        for one in text:
            parts = one.split(PAD)
            whole = parts[0]
            for part in parts[1:]:
                whole += PAD * next(tokens) + part
            texts.append(whole)
        encoded = self.tokenizer(texts, padding=padding, return_tensors=return_tensors)
        return BatchFeature({**encoded, **seen})


def tokenizer() -> Qwen2Tokenizer:
    """That of z_image.py with the marks of pictures."""
    with tempfile.TemporaryDirectory() as folder:
        described = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
        first = 1 + max(token["id"] for token in described["added_tokens"])
        for i, token in enumerate(VISION):
            described["added_tokens"].append(described["added_tokens"][0] | {"id": first + i, "content": token, "special": True})
        (Path(folder) / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_bytes((TOKENIZER / "tokenizer_config.json").read_bytes())
        return Qwen2Tokenizer.from_pretrained(folder)


def mend(text_encoder, pad: int) -> None:
    """Tells the model which tokens are those of pictures."""
    forward = type(text_encoder).forward
    text_encoder.config.image_token_id = text_encoder.model.config.image_token_id = pad
    text_encoder.forward = lambda input_ids, **others: forward(
        text_encoder, input_ids=input_ids, mm_token_type_ids=(input_ids == pad).int(), **others
    )


def picture(size: tuple[int, int]) -> Image.Image:
    return given.picture(*size)


def pipeline(networks: dict, case: Case):
    """diffusers' own pipeline, in which pictures keep their size for the autoencoder."""
    name = "edit_plus" if case.plus else "edit"
    module = importlib.import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}")
    usual = getattr(module, "usual_dimensions", module.calculate_dimensions)
    module.usual_dimensions = usual
    if case.plus:
        sizes = {round(w / h, 6): (w, h) for w, h in case.references}
        module.calculate_dimensions = lambda area, ratio: usual(area, ratio) if area == 384 * 384 else sizes[round(ratio, 6)]
    else:
        module.calculate_dimensions = lambda area, ratio: (*case.references[0], None)
    words = tokenizer()
    networks["transformer"].zero_cond_t = case.zero_cond_t
    for block in networks["transformer"].transformer_blocks:
        block.zero_cond_t = case.zero_cond_t
    made = getattr(diffusers, "QwenImageEditPlusPipeline" if case.plus else "QwenImageEditPipeline")(
        scheduler=models.scheduler(qwen_image.SCHEDULER)[0], tokenizer=words, processor=None, **networks
    )
    made.processor = Processor(words)
    made.set_progress_bar_config(disable=True)
    return made


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first."""
    found, pictures = [], []
    for i in range(case.batch):
        pipe, last = pipeline(networks, case), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        images = [picture(size) for size in case.references]
        made = pipe(
            image=images if case.plus else images[0],
            prompt=case.prompt,
            negative_prompt=case.negative_prompt,
            true_cfg_scale=case.cfg_scale,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
        )
        found.append(pipe._unpack_latents(last[0], case.height, case.width, 8)[0, :, 0].numpy())
        pictures.append(np.asarray(made.images[0]))
    return np.stack(found), pictures[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen2_5_VLForConditionalGeneration"] = (qwen_image.Qwen2_5_VLForConditionalGeneration, qwen_image.Qwen2_5_VLConfig)
    models.DIFFUSERS["QwenImageTransformer2DModel"] = diffusers.QwenImageTransformer2DModel
    models.DIFFUSERS["AutoencoderKLQwenImage"] = diffusers.AutoencoderKLQwenImage
    tensors, described, problems = {}, {}, []
    networks, _ = models.synthesise(cases.Case(components=qwen_image.COMPONENTS))
    with torch.no_grad():
        words = tokenizer()
        mend(networks["text_encoder"], words.convert_tokens_to_ids(PAD))
        # 13 x 9 tokens: windows are cut off at both edges.
        image = picture((9 * 28, 13 * 28))
        seen = Processor(words).pictures(images=[image], return_tensors="pt")
        assert seen["image_grid_thw"].tolist() == [[1, 26, 18]], seen["image_grid_thw"]
        tower = networks["text_encoder"].model.visual
        run = lambda pixels: tower(pixels, grid_thw=seen["image_grid_thw"]).pooler_output
        tensors["vision"] = run(seen["pixel_values"]).numpy()
        whole = [block for block in tower.fullatt_block_indexes]
        tower.fullatt_block_indexes = [0, 1, 2, 3]
        effect = nmse(run(seen["pixel_values"]).numpy(), tensors["vision"])
        tower.fullatt_block_indexes = whole
        print(f"vision: effect of windows {effect:.1e}")
        problems += [] if effect > 1e-4 else [f"windows have an effect of {effect:.1e} only"]
        for name, case in GOLDEN.items():
            latents, drawn = draw(networks, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.picture"] = drawn
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {drawn.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/qwen_image_edit.py", "model": "qwen_image", "vision_tokens": VISION, "cases": described}
    problems += (goldenfile.compare("qwen_image_edit", body, tensors) if options.check else goldenfile.write("qwen_image_edit", body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
