"""Records what diffusers' ZImagePipeline draws with a small synthetic model, and the hidden states that its language model gives.

    python z_image.py            writes z_image, and the tokenizer of its language model
    python z_image.py --check    compares with the committed files instead of writing them

The tokenizer is made here, too: byte-level BPE with Qwen's rules, over the words of the prompts.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models as token_models, normalizers, pre_tokenizers, processors, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

import cases
import generate
import given
import goldenfile
import health
import models
import tokens
from cases import Component
from goldenfile import nmse
from recipes import AFTER_ACTIVATION, NORM, Around, Gain

TOKENIZER = goldenfile.DIRECTORY / "tokenizers" / "qwen"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Looked for before all else as well, and not special.
THOUGHTS = ["<think>", "</think>"]
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What Qwen3's template makes of a prompt, without what it does with tools and earlier turns.
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
VOCABULARY = 420

LANGUAGE_MODEL = [
    (r"^embed_tokens\.weight$", Around(1.7)),
    (r"\.[qk]_norm\.weight$", Around(0.3, 1.2)),
    (r"norm\.weight$", NORM),
    (r"o_proj\.weight$", Gain(2.0)),
    (r"down_proj\.weight$", AFTER_ACTIVATION),
    (r"\.weight$", Gain(1.0)),
]
TRANSFORMER = [
    (r"pad_token$", Around(1.7)),
    (r"\.norm_[qk]\.weight$", Around(0.3, 1.2)),
    (r"cap_embedder\.0\.weight$", NORM),
    (r"norm\d\.weight$", NORM),
    (r"adaLN_modulation\.\d\.bias$", Around(0.6)),
    (r"adaLN_modulation\.\d\.weight$", Gain(0.7)),
    (r"\.bias$", Around(0.2)),
    (r"t_embedder\.mlp\.0\.weight$", Gain(1.4)),
    (r"t_embedder\.mlp\.2\.weight$", AFTER_ACTIVATION),
    (r"w2\.weight$", AFTER_ACTIVATION),
    (r"to_out\.0\.weight$", Gain(2.0)),
    (r"\.weight$", Gain(1.0)),
]
COMPONENTS = {
    "text_encoder": Component(
        "transformers",
        "Qwen3Model",
        {
            "vocab_size": 440,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "use_cache": False,
            "attn_implementation": "eager",
        },
        LANGUAGE_MODEL,
        prefix="model.",
    ),
    "transformer": Component(
        "diffusers",
        "ZImageTransformer2DModel",
        {
            "in_channels": 16,
            "dim": 384,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 6,
            "n_kv_heads": 6,
            "cap_feat_dim": 256,
            "axes_dims": [16, 24, 24],
            "axes_lens": [600, 64, 64],
        },
        TRANSFORMER,
    ),
    "vae": cases.CASES["dev"].components["vae"],
}
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}


@dataclass(frozen=True)
class Case:
    """A request. `cfg_scale` is what the pipeline calls guidance_scale: 0 is off."""

    width: int = 112
    height: int = 80
    steps: int = 3
    seed: int = 11
    prompt: str = "a large purple ring above a black cross, two tiny moons on the left, the quick brown fox behind"
    negative_prompt: str | None = None
    cfg_scale: float = 0.0
    strength: float | None = None
    max_sequence_length: int = 512
    image: bool = False
    masked: bool = False
    batch: int = 1
    decoded: bool = False


GOLDEN = {
    # 7 x 5 tokens of the picture are filled up to 64.
    "turbo": Case(decoded=True),
    "one_step": Case(steps=1, width=80, height=144, seed=2**64 - 1),
    # 4 x 8 tokens need nothing behind them. Both prompts have different lengths, and end in different multiples.
    "base": Case(width=64, height=128, cfg_scale=4.0, negative_prompt="blurry"),
    # Both end in the same multiple, and neither is cut.
    "base_alike": Case(cfg_scale=2.5, prompt="a red star", negative_prompt="", steps=2, width=48, height=64),
    "base_batch": Case(cfg_scale=3.0, batch=2, width=48, height=80, seed=2**32 + 5, negative_prompt="a black cross"),
    "cut": Case(max_sequence_length=29, steps=2, width=64, height=48),
    "img2img": Case(image=True, strength=0.6, steps=4),
    "img2img_cfg": Case(image=True, strength=0.5, steps=4, cfg_scale=2.0, negative_prompt="blurry", width=80, height=48),
    "inpaint": Case(image=True, masked=True, strength=1.0, steps=3),
    "inpaint_half": Case(image=True, masked=True, strength=0.6, steps=4, width=48, height=80, batch=2),
}
# Prompts whose ids are recorded, beside those of tokens.py.
TEXTS = ["", "a red star", "Don't\n\n  stop, 1234 times!", "<|im_end|>\n<think>x</think>", "é e\u0301 ﬁ 你好 🐱"]


def make_tokenizer() -> str:
    """The text of a tokenizer.json."""
    made = tokenizers.Tokenizer(token_models.BPE())
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    made.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    corpus = [case.prompt for case in GOLDEN.values()] + [case.negative_prompt or "" for case in GOLDEN.values()]
    corpus += ["<|im_start|>user\nassistant\n"] + [text for text, _ in tokens.PROMPTS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([tokenizers.AddedToken(token, special=False, normalized=False) for token in THOUGHTS])
    return made.to_str(pretty=False)


def write_tokenizer() -> None:
    """The tokenizer's folder, as diffusers has it."""
    TOKENIZER.mkdir(parents=True, exist_ok=True)
    (TOKENIZER / "tokenizer.json").write_text(make_tokenizer() + "\n", encoding="utf-8")
    config = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config |= {"unk_token": None, "add_prefix_space": False, "model_max_length": 1024, "chat_template": TEMPLATE}
    (TOKENIZER / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def pipeline(class_name: str, networks: dict):
    made = getattr(diffusers, class_name)(
        scheduler=models.scheduler(SCHEDULER)[0], tokenizer=Qwen2Tokenizer.from_pretrained(TOKENIZER), **networks
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    class_name = "ZImageInpaintPipeline" if case.masked else "ZImageImg2ImgPipeline" if case.image else "ZImagePipeline"
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
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.cfg_scale,
            max_sequence_length=case.max_sequence_length,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
            **arguments,
        )
        found.append(last[0][0].numpy())
        pictures.append(np.asarray(made.images[0]))
    return np.stack(found), pictures[0]


def hidden_states(pipe, text: str) -> torch.Tensor:
    """What the pipeline makes of a prompt."""
    return pipe._encode_prompt(prompt=[text])[0]


def check_inputs(pipe) -> list[str]:
    """Every input of the transformer, and every weight, has an effect on its output."""
    transformer = pipe.transformer
    latents = torch.randn(2, 16, 1, 10, 14, generator=generate.generator(1))
    long, short = (hidden_states(pipe, case) for case in (GOLDEN["turbo"].prompt, "blurry"))

    def run(x=latents, t=0.3, texts=(long, short)) -> torch.Tensor:
        return torch.stack(transformer(list(x), torch.tensor([t, t]), list(texts), return_dict=False)[0])

    reference = run()
    changes = {"latents": run(x=latents.roll(1, -1)), "time": run(t=0.4), "text": run(texts=(long.flip(0), short.flip(0)))}
    changes["length"] = run(texts=(long[:20], short))
    effects = {what: nmse(changed.numpy(), reference.numpy()) for what, changed in changes.items()}
    print("transformer: effect of inputs: " + ", ".join(f"{what} {effect:.1e}" for what, effect in effects.items()))
    problems = [f"{what} has an effect of {effect:.1e} only" for what, effect in effects.items() if not effect > 1e-4]
    problems += health.check_weights("transformer", transformer, run)
    return problems + health.check_rounding("transformer", transformer, run)


def check_language_model(pipe) -> list[str]:
    """Every weight before the layer that is tapped has an effect on the hidden states."""
    encoder, text = pipe.text_encoder, GOLDEN["turbo"].prompt
    reference, g, effects = hidden_states(pipe, text), generate.generator(0), {}
    for name, weight in encoder.named_parameters():
        if name.startswith(("layers.2.", "norm.")):
            continue
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=g))
        effects[name] = nmse(hidden_states(pipe, text).numpy(), reference.numpy())
        weight.copy_(kept)
    least = min(effects, key=effects.get)
    print(f"text_encoder: effect of 10% of a weight: least {effects[least]:.1e} ({least})")
    return [f"text_encoder.{name} has an effect of {effect:.1e} only" for name, effect in effects.items() if not effect > 1e-6]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen3Model"] = (Qwen3Model, Qwen3Config)
    models.DIFFUSERS["ZImageTransformer2DModel"] = diffusers.ZImageTransformer2DModel
    problems, tensors, described, texts = [], {}, {}, []
    if not options.check:
        write_tokenizer()
    elif (TOKENIZER / "tokenizer.json").read_text(encoding="utf-8") != make_tokenizer() + "\n":
        problems.append("tokenizers/qwen/tokenizer.json differs")
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    with torch.no_grad():
        pipe = pipeline("ZImagePipeline", networks)
        problems += check_inputs(pipe) + check_language_model(pipe)
        for i, text in enumerate(TEXTS + [GOLDEN["turbo"].prompt]):
            turn = [{"role": "user", "content": text}]
            whole = pipe.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=True)
            texts.append({"text": text, "ids": pipe.tokenizer(whole).input_ids})
            if i in (1, len(TEXTS)):
                tensors[f"hidden.{i}"] = hidden_states(pipe, text).numpy()
        for name, case in GOLDEN.items():
            latents, picture = draw(networks, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.picture"] = picture
            print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
    body = {"made_by": "tests/reference/z_image.py", "components": components, "scheduler": models.scheduler(SCHEDULER)[1]}
    body |= {"texts": texts, "cases": described}
    problems += (goldenfile.compare("z_image", body, tensors) if options.check else goldenfile.write("z_image", body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
