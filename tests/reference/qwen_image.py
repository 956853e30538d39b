"""Records what diffusers' QwenImagePipeline draws with a small synthetic model, the hidden states that its language model gives, and
what its autoencoder makes of a picture.

    python qwen_image.py            writes qwen_image
    python qwen_image.py --check    compares with the committed file instead of writing it

The tokenizer is that of z_image.py.
"""

import argparse
import sys
from dataclasses import asdict, dataclass

import diffusers
import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

import autoencoder
import cases
import generate
import given
import goldenfile
import health
import models
from cases import Component
from goldenfile import nmse
from recipes import NORM, Around, Gain
from z_image import TOKENIZER

# Of a causal kernel over three frames, a single frame sees one plane.
ONE_OF_THREE = 3**0.5
AFTER_ACTIVATION = Gain(1.6)

LANGUAGE_MODEL = [
    (r"embed_tokens\.weight$", Around(1.7)),
    (r"[qkv]_proj\.bias$", Around(0.6)),
    (r"\.bias$", Around(0.2)),
    (r"(norm\d?|layernorm|ln_q)\.weight$", NORM),
    (r"o_proj\.weight$", Gain(2.0)),
    (r"down_proj\.weight$", AFTER_ACTIVATION),
    (r"\.weight$", Gain(1.0)),
]
TRANSFORMER = [
    (r"\.norm_(added_)?[qk]\.weight$", Around(0.3, 1.2)),
    (r"^txt_norm\.weight$", NORM),
    (r"(mod\.1|norm_out\.linear)\.bias$", Around(0.3)),
    (r"(mod\.1|norm_out\.linear)\.weight$", Gain(0.35)),
    (r"attn\.(to|add)_[qk](_proj)?\.bias$", Around(0.8)),
    (r"\.bias$", Around(0.2)),
    (r"_embedder\.linear_1\.weight$", Gain(1.4)),
    (r"_embedder\.linear_2\.weight$", AFTER_ACTIVATION),
    (r"mlp\.net\.2\.weight$", AFTER_ACTIVATION),
    (r"to_out\.0\.weight$|to_add_out\.weight$", Gain(2.0)),
    (r"\.weight$", Gain(1.0)),
]
VAE = [
    (r"gamma$", NORM),
    (r"to_qkv\.bias$", Around(0.6)),
    (r"\.bias$", Around(0.25)),
    (r"to_qkv\.weight$", Gain(1.2)),
    (r"proj\.weight$", Gain(2.0)),
    (r"\.conv[12]\.weight$", Gain(1.6 * ONE_OF_THREE)),
    (r"^decoder\.conv_in\.weight$", Gain(0.4 * ONE_OF_THREE)),
    (r"^decoder\.conv_out\.weight$", Gain(0.7 * ONE_OF_THREE)),
    (r"^encoder\.conv_out\.weight$", Gain(1.6 * ONE_OF_THREE)),
    (r"conv_in\.weight$", Gain(ONE_OF_THREE)),
    (r"\.weight$", Gain(1.0)),
]
COMPONENTS = {
    "text_encoder": Component(
        "transformers",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": 440,
                "hidden_size": 256,
                "intermediate_size": 512,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
                "use_cache": False,
                "tie_word_embeddings": False,
            },
            "vision_config": {
                "depth": 4,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_heads": 4,
                "patch_size": 14,
                "window_size": 112,
                "fullatt_block_indexes": [1, 3],
                "out_hidden_size": 256,
            },
            "attn_implementation": "eager",
        },
        LANGUAGE_MODEL,
    ),
    "transformer": Component(
        "diffusers",
        "QwenImageTransformer2DModel",
        {
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 3,
            "attention_head_dim": 64,
            "num_attention_heads": 4,
            "joint_attention_dim": 256,
            "axes_dims_rope": [8, 28, 28],
        },
        TRANSFORMER,
    ),
    "vae": Component(
        "diffusers",
        "AutoencoderKLQwenImage",
        {"base_dim": 16, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "temperal_downsample": [False, True, True]},
        VAE,
    ),
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}


@dataclass(frozen=True)
class Case:
    """A request. Without a negative prompt there is no guidance."""

    width: int = 112
    height: int = 80
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a black cross, two tiny moons on the left, the quick brown fox behind"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    strength: float | None = None
    max_sequence_length: int = 512
    image: bool = False
    masked: bool = False
    batch: int = 1
    decoded: bool = False


GOLDEN = {
    # 7 x 5 tokens: both sides are odd, so that no position is in the middle.
    "plain": Case(decoded=True),
    "cfg": Case(width=64, height=128, cfg_scale=4.0, negative_prompt=" ", decoded=True),
    "cfg_longer": Case(width=80, height=144, steps=2, prompt="a red star", cfg_scale=2.5, negative_prompt="two tiny moons, blurry", seed=2**64 - 1),
    "cfg_batch": Case(cfg_scale=3.0, batch=2, width=48, height=80, seed=2**32 + 5, negative_prompt="a black cross"),
    "cut": Case(max_sequence_length=29, steps=2, width=64, height=48),
    "img2img": Case(image=True, strength=0.6, steps=4),
    "img2img_cfg": Case(image=True, strength=0.5, steps=4, cfg_scale=2.0, negative_prompt="blurry", width=80, height=48),
    "inpaint": Case(image=True, masked=True, strength=1.0, steps=3),
    "inpaint_half": Case(image=True, masked=True, strength=0.6, steps=4, width=48, height=80, batch=2),
}
TEXTS = ["", "a red star", "Don't\n\n  stop, 1234 times!"]


def pipeline(class_name: str, networks: dict):
    """diffusers' own pipeline."""
    made = getattr(diffusers, class_name)(
        scheduler=models.scheduler(SCHEDULER)[0], tokenizer=Qwen2Tokenizer.from_pretrained(TOKENIZER), **networks
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    class_name = "QwenImageInpaintPipeline" if case.masked else "QwenImageImg2ImgPipeline" if case.image else "QwenImagePipeline"
    size = (case.width, case.height)
    arguments = {"image": given.picture(*size)} if case.image else {}
    arguments |= {"mask_image": given.mask(*size)} if case.masked else {}
    arguments |= {"strength": case.strength} if case.strength is not None else {}
    found, pictures = [], []
    for i in range(case.batch):
        pipe, last = pipeline(class_name, networks), []

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
            max_sequence_length=case.max_sequence_length,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
            **arguments,
        )
        found.append(pipe._unpack_latents(last[0], case.height, case.width, 8)[0, :, 0].numpy())
        pictures.append(np.asarray(made.images[0]))
    return np.stack(found), pictures[0]


def hidden_states(pipe, text: str) -> torch.Tensor:
    """What the pipeline makes of a prompt."""
    return pipe.encode_prompt(text)[0][0]


def forward(pipe, latents, time, text, shape=(5, 7)) -> torch.Tensor:
    """The transformer's velocity."""
    return pipe.transformer(
        hidden_states=latents,
        timestep=torch.tensor([time]),
        encoder_hidden_states=text,
        encoder_hidden_states_mask=None,
        img_shapes=[[(1, *shape)]],
        return_dict=False,
    )[0]


def check(pipe) -> list[str]:
    """Every input of the transformer, and every weight that a picture reaches, has an effect."""
    latents = torch.randn(1, 35, 64, generator=generate.generator(1))
    long, short = (hidden_states(pipe, text)[None] for text in (GOLDEN["plain"].prompt, "blurry"))
    run = lambda x=latents, t=0.3, text=long, shape=(5, 7): forward(pipe, x, t, text, shape)
    reference = run()
    changes = {"latents": run(x=latents.roll(1, -1)), "time": run(t=0.4), "text": run(text=long.flip(1)), "length": run(text=short)}
    changes["shape"] = run(shape=(7, 5))
    effects = {what: nmse(changed.numpy(), reference.numpy()) for what, changed in changes.items()}
    print("transformer: effect of inputs: " + ", ".join(f"{what} {effect:.1e}" for what, effect in effects.items()))
    problems = [f"{what} has an effect of {effect:.1e} only" for what, effect in effects.items() if not effect > 1e-4]
    problems += health.check_ranges("transformer", pipe.transformer, run)
    # The last block's text goes nowhere.
    last = f"transformer_blocks.{pipe.transformer.config.num_layers - 1}."
    gone = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")
    named = pipe.transformer.named_parameters
    pipe.transformer.named_parameters = lambda recurse=True: [(n, w) for n, w in named() if not n.startswith(tuple(last + part for part in gone))]
    problems += health.check_weights("transformer", pipe.transformer, run) + health.check_rounding("transformer", pipe.transformer, run)
    pipe.transformer.named_parameters = named
    vae, image = pipe.vae, autoencoder.test_picture(48, 32)[:, :, None]
    hidden = torch.randn(1, 16, 1, 6, 10, generator=generate.generator(1))
    both = lambda: torch.cat([vae.decode(hidden).sample.flatten(), vae.encode(image).latent_dist.parameters.flatten()])
    named_vae = vae.named_parameters
    vae.named_parameters = lambda recurse=True: [(n, w) for n, w in named_vae() if "time_conv" not in n]
    problems += health.check_weights("vae", vae, both) + health.check_rounding("vae", vae, both)
    vae.named_parameters = named_vae
    return problems


def check_language_model(pipe) -> list[str]:
    """Every weight of the language model has an effect on the hidden states, except biases of keys, which softmax ignores."""
    encoder, text = pipe.text_encoder.model.language_model, GOLDEN["plain"].prompt
    reference, g, effects = hidden_states(pipe, text), generate.generator(0), {}
    for name, weight in encoder.named_parameters():
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=g))
        effects[name] = nmse(hidden_states(pipe, text).numpy(), reference.numpy())
        weight.copy_(kept)
    least = min(effects, key=effects.get)
    print(f"text_encoder: effect of 10% of a weight: least {effects[least]:.1e} ({least})")
    return [f"text_encoder.{name} has an effect of {effect:.1e} only" for name, effect in effects.items() if not effect > 1e-8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen2_5_VLForConditionalGeneration"] = (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig)
    models.DIFFUSERS["QwenImageTransformer2DModel"] = diffusers.QwenImageTransformer2DModel
    models.DIFFUSERS["AutoencoderKLQwenImage"] = diffusers.AutoencoderKLQwenImage
    tensors, described, texts = {}, {}, []
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    with torch.no_grad():
        pipe = pipeline("QwenImagePipeline", networks)
        problems = check(pipe) + check_language_model(pipe)
        for i, text in enumerate(TEXTS + [GOLDEN["plain"].prompt]):
            texts.append({"text": text, "ids": pipe.tokenizer(pipe.prompt_template_encode.format(text)).input_ids})
            if i in (1, len(TEXTS)):
                tensors[f"hidden.{i}"] = hidden_states(pipe, text).numpy()
        latents = torch.randn(1, 35, 64, generator=generate.generator(1))
        tensors["forward"] = forward(pipe, latents, 0.3, hidden_states(pipe, "a red star")[None])[0].numpy()
        image = autoencoder.test_picture(48, 32)[:, :, None]
        tensors["moments"] = pipe.vae.encode(image).latent_dist.parameters[0, :, 0].numpy()
        hidden = torch.randn(1, 16, 1, 6, 10, generator=generate.generator(1))
        tensors["decoded"] = pipe.vae._decode(hidden).sample[0, :, 0].numpy()
        for name, case in GOLDEN.items():
            latents, picture = draw(networks, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.picture"] = picture
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/qwen_image.py", "components": components, "scheduler": models.scheduler(SCHEDULER)[1]}
    body |= {"texts": texts, "cases": described}
    problems += (goldenfile.compare("qwen_image", body, tensors) if options.check else goldenfile.write("qwen_image", body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
