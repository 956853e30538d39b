"""Records what diffusers' QwenImage21Pipeline draws with a small synthetic model, the hidden states that its language model gives, and
what its autoencoder makes of a picture.

    python qwen_image_21.py            writes qwen_image_21
    python qwen_image_21.py --check    compares with the committed file instead of writing it

The tokenizer is that of z_image.py, with the marks of pictures, which no prompt has.
"""

import argparse
import sys
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

import cases
import generate
import goldenfile
import health
import models
import qwen_image_edit
from cases import Component
from goldenfile import nmse
from qwen_image import AFTER_ACTIVATION, SCHEDULER
from recipes import NORM, Around, Gain

LANGUAGE_MODEL = [
    (r"embed_tokens\.weight$|pos_embed\.weight$", Around(1.7)),
    (r"\.[qk]_norm\.weight$", Around(0.3, 1.2)),
    (r"\.bias$", Around(0.2)),
    (r"norm\d?\.weight$", NORM),
    (r"o_proj\.weight$", Gain(2.0)),
    (r"down_proj\.weight$", AFTER_ACTIVATION),
    (r"\.weight$", Gain(1.0)),
]
TRANSFORMER = [
    (r"\.norm_[qk]\.weight$", Around(0.3, 1.2)),
    (r"text_norm\.weight$", Around(0.2)),
    (r"^(modulation\.1|norm_out\.linear)\.weight$", Gain(0.7)),
    (r"_embedder\.linear_1\.weight$", Gain(1.4)),
    (r"_embedder\.linear_2\.weight$", AFTER_ACTIVATION),
    (r"out_layer\.weight$|img_mlp\.out\.weight$", AFTER_ACTIVATION),
    (r"to_out\.0\.weight$", Gain(2.0)),
    (r"\.weight$", Gain(1.0)),
]
VAE = [
    (r"gamma$", NORM),
    (r"to_qkv\.bias$", Around(0.6)),
    (r"\.bias$", Around(0.25)),
    (r"to_qkv\.weight$", Gain(1.2)),
    (r"proj\.weight$", Gain(2.0)),
    (r"\.conv[12]\.weight$", AFTER_ACTIVATION),
    (r"^decoder\.conv_in\.weight$", Gain(0.4)),
    (r"^decoder\.conv_out\.weight$", Gain(0.7)),
    (r"^encoder\.conv_out\.weight$", AFTER_ACTIVATION),
    (r"\.weight$", Gain(1.0)),
]
COMPONENTS = {
    "text_encoder": Component(
        "transformers",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": 440,
                "hidden_size": 256,
                "intermediate_size": 512,
                "num_hidden_layers": 3,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10], "mrope_interleaved": True},
                "use_cache": False,
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "num_position_embeddings": 16,
                "out_hidden_size": 256,
                "deepstack_visual_indexes": [0],
            },
            "tie_word_embeddings": False,
            "attn_implementation": "eager",
        },
        LANGUAGE_MODEL,
    ),
    "transformer": Component(
        "diffusers",
        "QwenImage21Transformer2DModel",
        {"num_layers": 3, "attention_head_dim": 64, "num_attention_heads": 4, "context_in_dim": 256, "axes_dims_rope": [8, 28, 28]},
        TRANSFORMER,
    ),
    "vae": Component("diffusers", "AutoencoderKLQwenImage21", {"base_dim": 8, "decoder_base_dim": 12, "num_res_blocks": 1}, VAE),
}
# The schedule of Turbo, which brings its own levels of noise, with fewer of them.
TURBO = {"num_train_timesteps": 1000, "shift": 1.0}
SAMPLE_SIGMAS = [1.0, 0.95418, 0.845148, 0.414568]


@dataclass(frozen=True)
class Case:
    """A request. Without a negative prompt there is no guidance."""

    width: int = 96
    height: int = 160
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a black cross, two tiny moons on the left, the quick brown fox behind"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    batch: int = 1
    turbo: bool = False
    decoded: bool = False


GOLDEN = {
    "plain": Case(decoded=True),
    "cfg": Case(width=128, height=64, cfg_scale=4.0, negative_prompt=" ", decoded=True),
    "cfg_longer": Case(steps=2, prompt="a red star", cfg_scale=2.5, negative_prompt="two tiny moons, blurry", seed=2**64 - 1),
    "cfg_batch": Case(cfg_scale=3.0, batch=2, width=64, height=96, seed=2**32 + 5, negative_prompt="a black cross"),
    "empty": Case(prompt="", steps=2, width=64, height=96),
    "turbo": Case(turbo=True, steps=len(SAMPLE_SIGMAS), width=160, height=64),
}
TEXTS = ["", "a red star", "Don't\n\n  stop, 1234 times!"]


class Processor:
    """What the pipeline uses of Qwen3VLProcessor without pictures. Its part for films wants torchvision."""

    def __init__(self):
        self.tokenizer = qwen_image_edit.tokenizer()

    def __call__(self, text, **others):
        return self.tokenizer(text, **others)

    def apply_chat_template(self, messages, tokenize, return_dict):
        """Each turn as the template of Qwen3-VL has it."""
        turns = (f"<|im_start|>{turn['role']}\n{turn['content'][0]['text']}<|im_end|>\n" for turn in messages)
        return [self.tokenizer("".join(turns)).input_ids]


def pipeline(networks: dict, turbo: bool = False):
    """diffusers' own pipeline."""
    sigmas = SAMPLE_SIGMAS if turbo else None
    made = diffusers.QwenImage21Pipeline(
        scheduler=models.scheduler(TURBO if turbo else SCHEDULER)[0], processor=Processor(), sample_sigmas=sigmas, **networks
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first, over white. Every picture of a batch is a run with its own seed."""
    found, pictures = [], []
    for i in range(case.batch):
        pipe, last = pipeline(networks, case.turbo), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        made = pipe(
            prompt=case.prompt,
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


def hidden_states(pipe, text: str) -> torch.Tensor:
    """What the pipeline makes of a prompt."""
    return pipe.encode_prompt(text)[0][0]


def forward(pipe, latents, time, text, shape=(3, 8)) -> torch.Tensor:
    """The transformer's velocity. One side is odd, so that no position is in its middle."""
    slots = torch.cat([torch.zeros(1, text.shape[1], dtype=torch.bool), torch.ones(1, latents.shape[1] // 4, dtype=torch.bool)], dim=1)
    velocity = pipe.transformer(
        hidden_states=latents,
        timestep=torch.tensor([time]),
        encoder_hidden_states=text,
        img_shapes=[[(1, *shape)]],
        img_mask=slots,
        return_dict=False,
    )[0]
    return velocity[:, -latents.shape[1] :]


def check(pipe) -> list[str]:
    """Every input of the transformer, and every weight that a picture reaches, has an effect."""
    latents = torch.randn(1, 24, 64, generator=generate.generator(1))
    long, short = (hidden_states(pipe, text)[None] for text in (GOLDEN["plain"].prompt, "blurry"))
    run = lambda x=latents, t=0.3, text=long, shape=(3, 8): forward(pipe, x, t, text, shape)
    reference = run()
    changes = {"latents": run(x=latents.roll(1, -1)), "time": run(t=0.4), "text": run(text=long.flip(1)), "length": run(text=short)}
    changes["shape"] = run(shape=(8, 3))
    effects = {what: nmse(changed.numpy(), reference.numpy()) for what, changed in changes.items()}
    print("transformer: effect of inputs: " + ", ".join(f"{what} {effect:.1e}" for what, effect in effects.items()))
    problems = [f"{what} has an effect of {effect:.1e} only" for what, effect in effects.items() if not effect > 1e-4]
    problems += health.check_ranges("transformer", pipe.transformer, run)
    problems += health.check_weights("transformer", pipe.transformer, run) + health.check_rounding("transformer", pipe.transformer, run)
    vae, image = pipe.vae, picture()
    hidden = torch.randn(1, 64, 1, 2, 3, generator=generate.generator(1))
    both = lambda: torch.cat([vae.decode(hidden).sample.flatten(), vae.encode(image).latent_dist.parameters.flatten()])
    named = vae.named_parameters
    vae.named_parameters = lambda recurse=True: [(n, w) for n, w in named() if "time_conv" not in n]
    problems += health.check_weights("vae", vae, both) + health.check_rounding("vae", vae, both)
    vae.named_parameters = named
    return problems


def picture() -> torch.Tensor:
    """A picture of noise, in which the opacity differs as well."""
    return torch.randn(1, 4, 1, 32, 48, generator=generate.generator(1)).clamp(-1, 1)


def check_language_model(pipe) -> list[str]:
    """Every weight of the language model has an effect on the hidden states, except the norm behind the last layer."""
    encoder, text = pipe.text_encoder.model.language_model, GOLDEN["plain"].prompt
    reference, g, effects = hidden_states(pipe, text), generate.generator(0), {}
    for name, weight in encoder.named_parameters():
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=g))
        effects[name] = nmse(hidden_states(pipe, text).numpy(), reference.numpy())
        weight.copy_(kept)
    behind = effects.pop("norm.weight")
    least = min(effects, key=effects.get)
    print(f"text_encoder: effect of 10% of a weight: least {effects[least]:.1e} ({least})")
    problems = [f"text_encoder.{name} has an effect of {effect:.1e} only" for name, effect in effects.items() if not effect > 1e-8]
    return problems + ["the norm behind the last layer has an effect"] * (behind > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen3VLForConditionalGeneration"] = (Qwen3VLForConditionalGeneration, Qwen3VLConfig)
    models.DIFFUSERS["QwenImage21Transformer2DModel"] = diffusers.QwenImage21Transformer2DModel
    models.DIFFUSERS["AutoencoderKLQwenImage21"] = diffusers.AutoencoderKLQwenImage21
    tensors, described, texts = {}, {}, []
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    with torch.no_grad():
        pipe = pipeline(networks)
        problems = check(pipe) + check_language_model(pipe)
        for i, text in enumerate(TEXTS + [GOLDEN["plain"].prompt]):
            texts.append({"text": text, "ids": pipe.processor(pipe.prompt_template_t2i.format(text or " ")).input_ids})
            if i in (1, len(TEXTS)):
                tensors[f"hidden.{i}"] = hidden_states(pipe, text).numpy()
        latents = torch.randn(1, 24, 64, generator=generate.generator(1))
        tensors["forward"] = forward(pipe, latents, 0.3, hidden_states(pipe, "a red star")[None])[0].numpy()
        tensors["moments"] = pipe.vae.encode(picture()).latent_dist.parameters[0, :, 0].numpy()
        hidden = torch.randn(1, 64, 1, 3, 5, generator=generate.generator(1))
        tensors["decoded"] = pipe.vae._decode(hidden).sample[0, :, 0].numpy()
        for name, case in GOLDEN.items():
            latents, drawn = draw(networks, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.picture"] = drawn
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {drawn.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/qwen_image_21.py", "components": components, "scheduler": models.scheduler(SCHEDULER)[1]}
    body |= {"turbo_scheduler": models.scheduler(TURBO)[1], "sample_sigmas": SAMPLE_SIGMAS, "dropped": pipe._drop_idx}
    body |= {"texts": texts, "cases": described}
    problems += (goldenfile.compare("qwen_image_21", body, tensors) if options.check else goldenfile.write("qwen_image_21", body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
