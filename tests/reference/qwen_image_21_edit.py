"""Records what diffusers' QwenImage21Pipeline draws of pictures that it looks at, with the model of qwen_image_21.py and a larger vision
tower, and what this tower and the language model make of pictures.

    python qwen_image_21_edit.py            writes qwen_image_21_edit
    python qwen_image_21_edit.py --check    compares with the committed file instead of writing it

Pictures keep their size, which has whole tokens: the reference takes an area of a million pixels.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from transformers import BatchFeature, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import cases
import generate
import given
import goldenfile
import health
import models
import qwen_image_21
import qwen_image_edit
from goldenfile import nmse
from recipes import Around

MEAN, STD = [0.5] * 3, [0.5] * 3
# As deep as the published one of 4B, so that files without settings show what is taken behind which block. The language model has a layer
# more than it is told something behind, or the last of that would show nowhere.
VISION = {
    "depth": 24,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 16,
    "num_position_embeddings": 25,
    "out_hidden_size": 256,
    "deepstack_visual_indexes": [5, 11, 17],
}
READER = qwen_image_21.COMPONENTS["text_encoder"]
COMPONENTS = qwen_image_21.COMPONENTS | {
    "text_encoder": replace(
        READER,
        config=READER.config | {"vision_config": VISION, "text_config": READER.config["text_config"] | {"num_hidden_layers": 4}},
        rules=[(r"visual\.pos_embed\.weight$", Around(0.8))] + READER.rules,
    )
}


@dataclass(frozen=True)
class Case:
    """A request. `references` are the sizes of the pictures that are looked at."""

    references: tuple[tuple[int, int], ...] = ((96, 64),)
    width: int = 96
    height: int = 64
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a black cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    batch: int = 1
    decoded: bool = False


GOLDEN = {
    "one": Case(decoded=True),
    "two": Case(references=((96, 64), (32, 160)), width=64, height=96, decoded=True),
    "cfg": Case(references=((64, 96),), width=64, height=64, cfg_scale=3.0, negative_prompt=" ", batch=2),
    "two_cfg": Case(references=((64, 32), (96, 96)), width=160, height=32, cfg_scale=2.0, negative_prompt="two tiny moons, blurry, green"),
}


class Processor(qwen_image_21.Processor):
    """What the pipeline uses of Qwen3VLProcessor, whose part for films wants torchvision."""

    def __init__(self):
        super().__init__()
        size = {"shortest_edge": 32 * 32, "longest_edge": 4096 * 4096}
        self.pictures = Qwen2VLImageProcessorPil(size=size, patch_size=16, image_mean=MEAN, image_std=STD)
        self.pad = self.tokenizer.convert_tokens_to_ids(qwen_image_edit.PAD)

    def __call__(self, text, images=None, **others):
        if images is None:
            return super().__call__(text, **others)
        seen = self.pictures(images=images, return_tensors="pt")
        tokens = iter((seen["image_grid_thw"].prod(-1) // 4).tolist())
        texts = []
        for one in text:
            first, *parts = one.split(qwen_image_edit.PAD)
            texts.append(first + "".join(qwen_image_edit.PAD * next(tokens) + part for part in parts))
        encoded = self.tokenizer(texts, **others)
        return BatchFeature({**encoded, **seen, "mm_token_type_ids": (encoded["input_ids"] == self.pad).int()})


def pipeline(networks: dict, references):
    """diffusers' own pipeline, in which pictures keep their size."""
    made = diffusers.QwenImage21Pipeline(
        scheduler=models.scheduler(qwen_image_21.SCHEDULER)[0], processor=Processor(), sample_sigmas=None, **networks
    )
    made.set_progress_bar_config(disable=True)
    sizes = {round(w / h, 6): (w, h, None) for w, h in references}
    diffusers.pipelines.qwenimage21.pipeline_qwenimage21.calculate_dimensions = lambda area, ratio: sizes[round(ratio, 6)]
    for config in (made.text_encoder.config, made.text_encoder.model.config):
        config.image_token_id = made.processor.pad
    return made


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first, over white. Every picture of a batch is a run with its own seed."""
    found, pictures = [], []
    for i in range(case.batch):
        pipe, last = pipeline(networks, case.references), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        made = pipe(
            prompt=case.prompt,
            image=[given.picture(*size) for size in case.references],
            negative_prompt=case.negative_prompt,
            true_cfg_scale=case.cfg_scale,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
            output_type="np",
        )
        found.append(pipe._unpack_latents(last[0], case.height, case.width, 16)[0, :, 0].numpy())
        colours, opacity = made.images[0][..., :3], made.images[0][..., 3:]
        pictures.append((255 * (colours * opacity + 1 - opacity)).round().astype(np.uint8))
    return np.stack(found), pictures[0]


def read(pipe, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states of the text of a prompt with its pictures, and which of all tokens are those of pictures."""
    hidden, _, pad = pipe.encode_prompt(case.prompt, image=[given.picture(*size) for size in case.references])
    return hidden, pad


def forward(pipe, latents, time, text, pad, shapes) -> torch.Tensor:
    """The transformer's velocity of the picture that is drawn."""
    drawn = shapes[-1][0] * shapes[-1][1]
    slots = torch.cat([pad, torch.ones(1, drawn // 4, dtype=torch.bool)], dim=1)
    velocity = pipe.transformer(
        hidden_states=latents,
        timestep=torch.tensor([time]),
        encoder_hidden_states=text,
        img_shapes=[[(1, *shape) for shape in shapes]],
        img_mask=slots,
        return_dict=False,
    )[0]
    return velocity[:, -drawn:]


def check(pipe, case: Case) -> list[str]:
    """Every weight of the tower has an effect on what becomes of the text, and so has what is taken behind its blocks. Of blocks, some are tried."""
    tower, (reference, _), g, effects = pipe.text_encoder.model.visual, read(pipe, case), generate.generator(0), {}
    keep = ~read(pipe, case)[1][0]
    for name, weight in tower.named_parameters():
        if name.startswith("blocks.") and int(name.split(".")[1]) % 11:
            continue
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=g))
        effects[name] = nmse(read(pipe, case)[0][0, keep].numpy(), reference[0, keep].numpy())
        weight.copy_(kept)
    least = min(effects, key=effects.get)
    print(f"vision tower: effect of 10% of a weight: least {effects[least]:.1e} ({least})")
    problems = [f"visual.{name} has an effect of {effect:.1e} only" for name, effect in effects.items() if not effect > 1e-9]
    own, tower.deepstack_visual_indexes = tower.deepstack_visual_indexes, []
    effect = nmse(read(pipe, case)[0][0, keep].numpy(), reference[0, keep].numpy())
    tower.deepstack_visual_indexes = own
    print(f"vision tower: effect of what is taken behind blocks {effect:.1e}")
    problems += [] if effect > 1e-4 else [f"what is taken behind blocks has an effect of {effect:.1e} only"]
    return problems + health.check_rounding("visual", tower, lambda: read(pipe, case)[0][0, keep])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen3VLForConditionalGeneration"] = (Qwen3VLForConditionalGeneration, Qwen3VLConfig)
    models.DIFFUSERS["QwenImage21Transformer2DModel"] = diffusers.QwenImage21Transformer2DModel
    models.DIFFUSERS["AutoencoderKLQwenImage21"] = diffusers.AutoencoderKLQwenImage21
    tensors, described = {}, {}
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    with torch.no_grad():
        case = GOLDEN["two"]
        pipe = pipeline(networks, case.references)
        problems = check(pipe, case)
        # 7 x 5 tokens: no side is that of the square table, and their number is odd.
        seen = pipe.processor.pictures(images=[given.picture(5 * 32, 7 * 32)], return_tensors="pt")
        assert seen["image_grid_thw"].tolist() == [[1, 14, 10]], seen["image_grid_thw"]
        found = pipe.text_encoder.model.visual(seen["pixel_values"], grid_thw=seen["image_grid_thw"])
        tensors["vision"] = found.pooler_output.numpy()
        for i, features in enumerate(found.deepstack_features):
            tensors[f"deepstack.{i}"] = features.numpy()
        hidden, pad = read(pipe, case)
        tensors["hidden"] = hidden[0, ~pad[0]].numpy()
        shapes = [(h // 16, w // 16) for w, h in case.references] + [(2, 6)]
        latents = torch.randn(1, sum(h * w for h, w in shapes), 64, generator=generate.generator(1))
        tensors["forward"] = forward(pipe, latents, 0.3, hidden, pad, shapes)[0].numpy()
        prompt = [f"<image{i + 1}>{''.join(qwen_image_edit.VISION)}" for i in range(2)]
        text = pipe.prompt_template_t2i.format(" ".join(prompt) + case.prompt)
        ids = pipe.processor([text], images=[given.picture(*size) for size in case.references], return_tensors="pt")["input_ids"]
        for name, case in GOLDEN.items():
            latents, drawn = draw(networks, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.picture"] = drawn
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {drawn.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/qwen_image_21_edit.py", "model": "qwen_image_21"}
    body |= {"components": {"text_encoder": components["text_encoder"]}, "vision_tokens": qwen_image_edit.VISION}
    body |= {"ids": list(map(int, ids[0])), "cases": described}
    name = "qwen_image_21_edit"
    problems += (goldenfile.compare(name, body, tensors) if options.check else goldenfile.write(name, body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
