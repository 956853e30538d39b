"""Records what diffusers' modular blocks of FLUX.3 draw with small synthetic models, distilled and base, and the hidden states that their
language model gives.

    python flux3.py            writes flux3
    python flux3.py --check    compares with the committed files instead of writing them

The tokenizer is that of z_image.py, whose template makes the same of a user's turn. Prompts are not rewritten first.
"""

import argparse
import logging
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
from diffusers.modular_pipelines.flux3 import Flux3AutoBlocks, Flux3DistilledAutoBlocks
from diffusers.modular_pipelines.flux3.before_denoise import Flux3TextRoPEInputsStep, _prepare_image_ids
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextModel

import cases
import generate
import given
import goldenfile
import health
import models
import z_image
from cases import Component
from flux2 import AUTOENCODER, STATISTICS
from goldenfile import nmse
from recipes import AFTER_ACTIVATION, VAE, Around, Gain

TRANSFORMER = [
    (r"\.norm_[qk]\.weight$", Around(0.3, 1.2)),
    # Without biases and behind SiLU.
    (r"_modulations\.\w+\.linear\.weight$", Gain(0.7)),
    (r"norm_out\.linear\.weight$", Gain(0.7)),
    (r"_embedder\.linear_1\.weight$", Gain(1.4)),
    (r"_embedder\.linear_2\.weight$", AFTER_ACTIVATION),
    # The hidden states of some layers are large, and would hide what blocks add.
    (r"^context_embedder\.weight$", Gain(0.1)),
    (r"ff\.linear_out\.weight$", AFTER_ACTIVATION),
    (r"txt_mode_blocks\.\d\.attn\.to_out\.0\.weight$", Gain(4.0)),
    (r"to_out\.0\.weight$", Gain(2.0)),
    (r"\.weight$", Gain(1.0)),
]
SIZES = {
    "in_channels": 128,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 512,
    "axes_dims_rope": [16, 16, 16, 16],
    "mlp_ratio": 2.5,
}
# What shapes do not tell, and another depth.
OTHERWISE = {"num_single_layers": 1, "axes_dims_rope": [8, 24, 16, 16], "rope_theta": 500}
COMPONENTS = {
    "text_encoder": Component(
        "transformers",
        "Qwen3VLTextModel",
        {
            "vocab_size": 440,
            "hidden_size": 64,
            "intermediate_size": 96,
            # One more than are read: of the last, transformers gives what the final norm leaves.
            "num_hidden_layers": 33,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
            "use_cache": False,
            "attn_implementation": "eager",
        },
        z_image.LANGUAGE_MODEL,
        prefix="model.language_model.",
    ),
    "transformer": Component("diffusers", "Flux3Transformer2DModel", SIZES | {"flow_map": True}, TRANSFORMER),
    "transformer_base": Component("diffusers", "Flux3Transformer2DModel", SIZES | OTHERWISE, TRANSFORMER),
    "vae": Component("diffusers", "AutoencoderKLFlux2", AUTOENCODER, STATISTICS + VAE),
}
# As in the pipeline's own settings.
SHIFT = 6.93


@dataclass(frozen=True)
class Case:
    """A request. `references` are sizes of pictures."""

    width: int | None = 112
    height: int | None = 80
    steps: int = 4
    seed: int = 11
    prompt: str = "a large purple ring above a black cross, two tiny moons on the left, the quick brown fox behind"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    max_sequence_length: int = 8192
    references: tuple = ()
    batch: int = 1
    base: bool = False
    decoded: bool = False


BASE = Case(base=True, cfg_scale=4.0, steps=3, width=64, height=128, prompt="a red star", negative_prompt="blurry")
# Each digit is a token: filled up, this has 160, and all others have 80.
LONG = Case().prompt + ", and " + " ".join(["1234567890"] * 8) + " stars"
GOLDEN = {
    # 7 x 5 tokens of the picture.
    "distilled": Case(decoded=True),
    "one_step": Case(steps=1, width=80, height=144, seed=2**64 - 1, prompt="a red star"),
    "many_steps": Case(steps=16, width=48, height=32, prompt=LONG),
    "batch": Case(batch=2, steps=2, width=48, height=80, seed=2**32 + 5),
    "cut": Case(max_sequence_length=29, steps=2, width=64, height=48),
    # Both prompts have the same length.
    "base": replace(BASE, decoded=True),
    # The window of the prompt is longer than that of what not to draw.
    "base_longer": replace(BASE, prompt=LONG, negative_prompt="", steps=2, width=80, height=48),
    "base_batch": replace(BASE, negative_prompt=LONG, batch=2, steps=2, width=48, height=80),
    "base_unguided": replace(BASE, cfg_scale=1.0, negative_prompt=None, steps=2),
    # One picture is kept whole: what is missing to whole tokens is reflected, and the picture that is drawn has the size of all.
    "reference": Case(width=None, height=None, references=((151, 84),), steps=2, decoded=True),
    "reference_small": Case(references=((13, 30),), steps=1, width=48, height=64),
    # Several pictures lose what is more than whole tokens, on both sides.
    "references": Case(references=((64, 200), (97, 65)), steps=2),
    "references_base": replace(BASE, references=((70, 90), (64, 64), (80, 64)), prompt=LONG, batch=2, steps=2, width=48, height=64),
}
TEXTS = ["", "a red star", LONG]


class Reader:
    """What the pipeline takes for the processor of Qwen3-VL: a tokenizer, and its template."""

    def __init__(self):
        self.tokenizer = Qwen2Tokenizer.from_pretrained(z_image.TOKENIZER)
        self.apply_chat_template = self.tokenizer.apply_chat_template


def whole(text_model: Qwen3VLTextModel) -> Qwen3VLForConditionalGeneration:
    """Qwen3-VL with `text_model` as its language model, and an eye that sees nothing."""
    eye = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": 64, "deepstack_visual_indexes": []}
    made = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text_model.config.to_dict(), vision_config=eye)).float().eval()
    made.model.language_model = text_model
    return made


def pipeline(networks: dict, base: bool):
    """The modular pipeline without what rewrites prompts."""
    blocks = Flux3AutoBlocks() if base else Flux3DistilledAutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipe = blocks.init_pipeline()
    transformer = networks["transformer_base" if base else "transformer"]
    pipe.update_components(text_encoder=networks["whole"], tokenizer=Reader(), vae=networks["vae"], transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    found, pictures = [], []
    for i in range(case.batch):
        pipe = pipeline(networks, case.base)
        arguments = {"max_sequence_length": case.max_sequence_length, "num_inference_steps": case.steps}
        if case.base:
            pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=case.cfg_scale))
            arguments |= {"negative_prompt": case.negative_prompt}
        if case.references:
            arguments |= {"image": [given.picture(*size) for size in case.references]}
        if case.width:
            arguments |= {"width": case.width, "height": case.height}
        made = pipe(prompt=case.prompt, generator=generate.generator((case.seed + i) % 2**64), **arguments)
        assert pipe.scheduler.config.shift == SHIFT
        found.append(made.get("latents")[0].numpy())
        pictures.append(np.asarray(made.get("images")[0]))
    return np.stack(found), pictures[0]


def hidden_states(networks: dict, text: str) -> torch.Tensor:
    """What the pipeline makes of a prompt."""
    return Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(networks["whole"], Reader(), text)[0]


def check_inputs(networks: dict, key: str) -> list[str]:
    """Every input of a transformer, and every weight, has an effect on its output."""
    transformer, is_distilled = networks[key], networks[key].config.flow_map
    latents = torch.randn(1, 35, 128, generator=generate.generator(1))
    reference = torch.randn(1, 12, 128, generator=generate.generator(2))
    text = hidden_states(networks, "a red star")[None]
    ids, text_ids = _prepare_image_ids(5, 7, 0.5), Flux3TextRoPEInputsStep._prepare_text_ids(text)

    def run(x=latents, t=0.3, to=0.2, text=text, ids=ids, text_ids=text_ids, seen=reference, at=_prepare_image_ids(3, 4, 0.5, -1)):
        target = torch.tensor([to]) if is_distilled else None
        return transformer(x, text, torch.tensor([t]), ids, text_ids, seen, at, target, return_dict=False)[0]

    usual = run()
    changes = {"latents": run(x=latents.roll(1, -1)), "time": run(t=0.4), "text": run(text=text.flip(1))}
    for axis, what in [(1, "rows"), (2, "columns"), (3, "depth")]:
        changes[what] = run(ids=ids + torch.eye(4)[axis] * (10 if axis == 3 else ids[..., axis : axis + 1]))
    changes |= {"text positions": run(text_ids=text_ids * 0), "references": run(seen=reference.roll(1, -1))}
    changes |= {"reference positions": run(at=_prepare_image_ids(3, 4, 0.5, -9))}
    if is_distilled:
        changes |= {"target": run(to=0.0)}
    effects = {what: nmse(changed.numpy(), usual.numpy()) for what, changed in changes.items()}
    print(f"{key}: effect of inputs: " + ", ".join(f"{what} {effect:.1e}" for what, effect in effects.items()))
    problems = [f"{key}: {what} has an effect of {effect:.1e} only" for what, effect in effects.items() if not effect > 1e-4]
    problems += health.check_weights(key, transformer, run)
    return problems + health.check_rounding(key, transformer, run)


def check_language_model(networks: dict) -> list[str]:
    """Every weight before the last layer that is tapped has an effect on the hidden states."""
    encoder = networks["text_encoder"]
    unread = ("norm.", f"layers.{encoder.config.num_hidden_layers - 1}.")
    reference, g, effects = hidden_states(networks, TEXTS[1]), generate.generator(0), {}
    for name, weight in encoder.named_parameters():
        if name.startswith(unread):
            continue
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=g))
        effects[name] = nmse(hidden_states(networks, TEXTS[1]).numpy(), reference.numpy())
        weight.copy_(kept)
    least = min(effects, key=effects.get)
    print(f"text_encoder: effect of 10% of a weight: least {effects[least]:.1e} ({least}), rms {health.rms(reference):.2f}")
    return [f"text_encoder.{name} has an effect of {effect:.1e} only" for name, effect in effects.items() if not effect > health.LEAST_EFFECT]


@torch.no_grad()
def record(check: bool) -> list[str]:
    """What is wrong with the golden."""
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    networks["whole"] = whole(networks["text_encoder"])
    problems = check_inputs(networks, "transformer") + check_inputs(networks, "transformer_base") + check_language_model(networks)
    tensors, described = {}, {}
    for name, case in GOLDEN.items():
        latents, picture = draw(networks, case)
        tensors[f"{name}.latents"], described[name] = latents, asdict(case)
        if case.decoded:
            tensors[f"{name}.picture"] = picture
        print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture {picture.shape}, std {picture.std():.0f}", flush=True)
    texts, reader = [], Reader()
    for i, text in enumerate(TEXTS):
        turn = reader.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        texts.append({"text": text, "ids": reader.tokenizer(turn).input_ids})
        tensors[f"hidden.{i}"] = hidden_states(networks, text).numpy()
    if [len(tensors[f"hidden.{i}"]) for i in range(len(TEXTS))] != [80, 80, 160]:
        problems.append("all prompts are filled up to the same length")
    body = {"made_by": "tests/reference/flux3.py", "components": components, "texts": texts, "cases": described}
    compare = goldenfile.compare if check else goldenfile.write
    return problems + (compare("flux3", body, tensors) or [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable(logging.WARNING)
    models.CONFIGS["Qwen3VLTextModel"] = (Qwen3VLTextModel, Qwen3VLTextConfig)
    models.DIFFUSERS |= {name: getattr(diffusers, name) for name in ("Flux3Transformer2DModel", "AutoencoderKLFlux2")}
    # How many batches there were in training: a whole number that nothing reads.
    models.NOT_STORED.add("bn.num_batches_tracked")
    problems = record(options.check)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
