"""Records what diffusers' Flux2KleinPipeline, Flux2KleinInpaintPipeline and Flux2Pipeline draw with small synthetic models, and the hidden
states that their language models give.

    python flux2.py            writes flux2_klein and flux2_dev, and the tokenizer of the latter's language model
    python flux2.py --check    compares with the committed files instead of writing them

klein's tokenizer is that of z_image.py. dev's is made here: byte-level BPE with tekken's rules, over the words of the prompts.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace

import diffusers
import numpy as np
import torch
import tokenizers
from PIL import Image
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import decoders, models as token_models, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast, Qwen2Tokenizer, Qwen3Config, Qwen3Model

import cases
import generate
import given
import goldenfile
import health
import models
import z_image
from cases import Component
from goldenfile import nmse
from recipes import AFTER_ACTIVATION, VAE, Around, Gain

TRANSFORMER = [
    (r"\.norm_(added_)?[qk]\.weight$", Around(0.3, 1.2)),
    # Without biases and behind SiLU.
    (r"_modulation\w*\.linear\.weight$", Gain(0.7)),
    (r"norm_out\.linear\.weight$", Gain(0.7)),
    (r"_embedder\.linear_1\.weight$", Gain(1.4)),
    (r"_embedder\.linear_2\.weight$", AFTER_ACTIVATION),
    (r"(ff|ff_context)\.linear_out\.weight$", AFTER_ACTIVATION),
    (r"to_out\.0\.weight$|to_add_out\.weight$", Gain(2.0)),
    (r"single_transformer_blocks\.\d+\.attn\.to_out\.weight$", Gain(2.0)),
    (r"\.weight$", Gain(1.0)),
]
STATISTICS = [(r"^bn\.running_mean$", Around(0.5)), (r"^bn\.running_var$", Around(0.5, 1.0))]
AUTOENCODER = {
    "block_out_channels": [32, 64, 64, 64],
    "layers_per_block": 1,
    "latent_channels": 32,
    "norm_num_groups": 32,
}
COMPONENTS = {
    "text_encoder": Component(
        "transformers",
        "Qwen3Model",
        {
            "vocab_size": 440,
            "hidden_size": 128,
            "intermediate_size": 192,
            # One more than are read.
            "num_hidden_layers": 28,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "use_cache": False,
            "attn_implementation": "eager",
        },
        z_image.LANGUAGE_MODEL,
        prefix="model.",
    ),
    "transformer": Component(
        "diffusers",
        "Flux2Transformer2DModel",
        {
            "in_channels": 128,
            "num_layers": 2,
            "num_single_layers": 3,
            "attention_head_dim": 64,
            "num_attention_heads": 4,
            "joint_attention_dim": 384,
            "axes_dims_rope": [16, 16, 16, 16],
            "guidance_embeds": False,
        },
        TRANSFORMER,
    ),
    "vae": Component("diffusers", "AutoencoderKLFlux2", AUTOENCODER, STATISTICS + VAE),
    "vae_small": Component(
        "diffusers",
        "AutoencoderKLFlux2",
        AUTOENCODER | {"decoder_block_out_channels": [32, 32, 64, 32], "use_quant_conv": False, "batch_norm_eps": 1e-2},
        STATISTICS + VAE,
    ),
}
DEV = {
    "text_encoder": Component(
        "transformers",
        "MistralModel",
        {
            "vocab_size": 460,
            "hidden_size": 128,
            "intermediate_size": 192,
            # One more than are read: of the last, transformers gives what the final norm leaves.
            "num_hidden_layers": 31,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
            "use_cache": False,
            # What fills up a text on the left sees nothing, and attention leaves nothing of it.
            "attn_implementation": "sdpa",
        },
        # No norms of heads make its queries and keys large.
        [(r"\.[qk]_proj\.weight$", Gain(1.8))] + z_image.LANGUAGE_MODEL,
        prefix="model.",
    ),
    "transformer": Component(
        "diffusers",
        "Flux2Transformer2DModel",
        {
            "in_channels": 128,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 3,
            "joint_attention_dim": 384,
            "timestep_guidance_channels": 64,
            "mlp_ratio": 2.3,
            "axes_dims_rope": [4, 8, 12, 8],
            "rope_theta": 500,
            "guidance_embeds": True,
        },
        TRANSFORMER,
    ),
    "vae": COMPONENTS["vae"],
}
# As published beside klein; the shift comes from the pipeline.
SCHEDULER = cases.DEV_SCHEDULER | {"time_shift_type": "exponential"}


@dataclass(frozen=True)
class Case:
    """A request. `references` are sizes of pictures; an `image` is one of them, too, the first."""

    width: int | None = 112
    height: int | None = 80
    steps: int = 4
    seed: int = 11
    prompt: str = "a large purple ring above a black cross, two tiny moons on the left, the quick brown fox behind"
    cfg_scale: float = 1.0
    strength: float | None = None
    max_sequence_length: int = 77
    image: bool = False
    masked: bool = False
    references: tuple = ()
    batch: int = 1
    distilled: bool = False
    decoded: bool = False


BASE = Case(cfg_scale=4.0, steps=3, width=64, height=128)
GOLDEN = {
    # 7 x 5 tokens of the picture. What is not set is not used.
    "distilled": Case(distilled=True, max_sequence_length=512, decoded=True),
    "one_step": Case(steps=1, width=80, height=144, seed=2**64 - 1),
    # Above ten steps the shift is another.
    "many_steps": Case(steps=12, width=48, height=32, max_sequence_length=40),
    "base": BASE,
    "base_batch": replace(BASE, batch=2, width=48, height=80, seed=2**32 + 5, max_sequence_length=64),
    "cut": Case(max_sequence_length=29, steps=2, width=64, height=48),
    # Sides that are no multiples of 16 lose what is more, on both sides.
    "reference": Case(references=((151, 84),), decoded=True),
    "references_cfg": replace(BASE, references=((64, 200), (97, 65), (80, 64)), steps=2),
    "references_batch": Case(references=((70, 90), (64, 64)), batch=2, steps=2, width=48, height=64),
    # The picture has the size of the first; the second is made smaller.
    "sizes": Case(width=None, height=None, references=((100, 68), (1200, 903)), steps=1),
    "img2img": Case(image=True, strength=0.6, steps=4),
    "inpaint": Case(image=True, masked=True, strength=1.0, steps=3, width=80, height=96),
    "inpaint_cfg": replace(BASE, image=True, masked=True, strength=0.6, steps=4, width=80, height=64, references=((66, 90),), batch=2),
}
GOLDEN_DEV = {
    "dev": Case(cfg_scale=4.0, max_sequence_length=120, decoded=True),
    "dev_one_step": Case(cfg_scale=1.5, steps=1, width=80, height=144, max_sequence_length=512),
    "dev_references": Case(cfg_scale=2.5, steps=2, references=((90, 70), (64, 100)), batch=2, width=48, height=64, max_sequence_length=99),
    # Of the prompt nothing is left.
    "dev_cut": Case(steps=2, width=64, height=48, max_sequence_length=40),
}
TEXTS = ["", "a red star"]
TEKKEN = goldenfile.DIRECTORY / "tokenizers" / "tekken"
MARKS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"]
WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What Mistral Small's template makes of a system's turn and a user's.
TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{%- set text = message.content | map(attribute='text') | join('') %}"
    "{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{{- '[INST]' + text + '[/INST]' }}{%- endif %}{%- endfor %}"
)


def make_tekken() -> str:
    """The text of a tokenizer.json."""
    made = tokenizers.Tokenizer(token_models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    corpus = [case.prompt for case in GOLDEN.values()] + [SYSTEM_MESSAGE] * 3
    special = [tokenizers.AddedToken(token, special=True, normalized=False) for token in MARKS]
    trainer = trainers.BpeTrainer(vocab_size=440, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    made.train_from_iterator(corpus, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return made.to_str(pretty=False)


def write_tekken() -> None:
    """The tokenizer's folder, as diffusers has it."""
    TEKKEN.mkdir(parents=True, exist_ok=True)
    (TEKKEN / "tokenizer.json").write_text(make_tekken() + "\n", encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"pad_token": "<pad>", "padding_side": "left", "model_max_length": 1024, "chat_template": TEMPLATE}
    (TEKKEN / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def pipeline(class_name: str, networks: dict, distilled: bool):
    parts = {name: network for name, network in networks.items() if name != "vae_small"}
    if class_name == "Flux2Pipeline":
        parts |= {"tokenizer": PreTrainedTokenizerFast.from_pretrained(TEKKEN)}
    else:
        parts |= {"tokenizer": Qwen2Tokenizer.from_pretrained(z_image.TOKENIZER), "is_distilled": distilled}
    made = getattr(diffusers, class_name)(scheduler=models.scheduler(SCHEDULER)[0], **parts)
    made.set_progress_bar_config(disable=True)
    return made


def inputs(case: Case) -> dict:
    """The pictures of a request."""
    references = [given.picture(*size) for size in case.references]
    if not case.image:
        return {"image": references} if references else {}
    size = (case.width, case.height)
    arguments = {"image": given.picture(*size), "strength": case.strength}
    arguments["mask_image"] = given.mask(*size) if case.masked else Image.new("L", size, 255)
    return arguments | ({"image_reference": references[0]} if references else {})


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    is_dev = networks["transformer"].config.guidance_embeds
    class_name = "Flux2Pipeline" if is_dev else "Flux2KleinInpaintPipeline" if case.image else "Flux2KleinPipeline"
    found, pictures = [], []
    for i in range(case.batch):
        pipe, last = pipeline(class_name, networks, case.distilled), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        made = pipe(
            prompt=case.prompt,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.cfg_scale,
            max_sequence_length=case.max_sequence_length,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
            **inputs(case),
        )
        picture = np.asarray(made.images[0])
        rows, columns = picture.shape[0] // 16, picture.shape[1] // 16
        found.append(last[0][0].numpy().T.reshape(-1, rows, columns))
        pictures.append(picture)
    return np.stack(found), pictures[0]


def hidden_states(pipe, text: str, tokens: int) -> torch.Tensor:
    """What the pipeline makes of a prompt."""
    return pipe.encode_prompt(prompt=text, max_sequence_length=tokens)[0][0]


def check_inputs(pipe) -> list[str]:
    """Every input of the transformer, and every weight, has an effect on its output."""
    transformer = pipe.transformer
    latents = torch.randn(1, 35, 128, generator=generate.generator(1))
    text = hidden_states(pipe, GOLDEN["base"].prompt, 40)[None]
    ids = pipe._prepare_latent_ids(torch.zeros(1, 128, 5, 7))

    def run(x=latents, t=0.3, text=text, ids=ids, text_ids=pipe._prepare_text_ids(text), guidance=4.0) -> torch.Tensor:
        guidance = torch.tensor([guidance]) if transformer.config.guidance_embeds else None
        return transformer(x, text, torch.tensor([t]), ids, text_ids, guidance, return_dict=False)[0]

    reference = run()
    changes = {"latents": run(x=latents.roll(1, -1)), "time": run(t=0.4), "text": run(text=text.flip(1))}
    for axis, what in enumerate(["time id", "rows", "columns"]):
        changes[what] = run(ids=ids + torch.eye(4, dtype=ids.dtype)[axis] * (10 if axis == 0 else ids[..., axis : axis + 1]))
    changes["text positions"] = run(text_ids=pipe._prepare_text_ids(text) * 0)
    if transformer.config.guidance_embeds:
        changes["guidance"] = run(guidance=3.0)
    effects = {what: nmse(changed.numpy(), reference.numpy()) for what, changed in changes.items()}
    print("transformer: effect of inputs: " + ", ".join(f"{what} {effect:.1e}" for what, effect in effects.items()))
    problems = [f"{what} has an effect of {effect:.1e} only" for what, effect in effects.items() if not effect > 1e-4]
    problems += health.check_weights("transformer", transformer, run)
    return problems + health.check_rounding("transformer", transformer, run)


def check_language_model(pipe) -> list[str]:
    """Every weight before the last layer that is tapped has an effect on the hidden states, and so has what fills up a prompt."""
    encoder, text = pipe.text_encoder, GOLDEN["base"].prompt
    tokens = 77 if encoder.config.model_type == "qwen3" else 120
    unread = ("norm.", f"layers.{encoder.config.num_hidden_layers - 1}.")
    reference, g, effects = hidden_states(pipe, text, tokens), generate.generator(0), {}
    for name, weight in encoder.named_parameters():
        if name.startswith(unread):
            continue
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=g))
        effects[name] = nmse(hidden_states(pipe, text, tokens).numpy(), reference.numpy())
        weight.copy_(kept)
    least = min(effects, key=effects.get)
    print(f"text_encoder: effect of 10% of a weight: least {effects[least]:.1e} ({least}), rms {health.rms(reference):.2f}")
    return [f"text_encoder.{name} has an effect of {effect:.1e} only" for name, effect in effects.items() if not effect > health.LEAST_EFFECT]


def draw_all(networks: dict, wanted: dict[str, Case]) -> tuple[dict, dict]:
    """The tensors of all cases, and their descriptions."""
    tensors, described = {}, {}
    for name, case in wanted.items():
        latents, picture = draw(networks, case)
        tensors[f"{name}.latents"], described[name] = latents, asdict(case)
        if case.decoded:
            tensors[f"{name}.picture"] = picture
        print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}", flush=True)
    return tensors, described


def finish(check: bool, name: str, body: dict, tensors: dict) -> list[str]:
    """Writes a golden or compares it with the committed one."""
    body = {"made_by": "tests/reference/flux2.py", "scheduler": models.scheduler(SCHEDULER)[1]} | body
    return (goldenfile.compare(name, body, tensors) if check else goldenfile.write(name, body, tensors)) or []


@torch.no_grad()
def record_klein(check: bool) -> list[str]:
    """What is wrong with klein's golden."""
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    pipe = pipeline("Flux2KleinPipeline", networks, False)
    problems = check_inputs(pipe) + check_language_model(pipe)
    tensors, described = draw_all(networks, GOLDEN)
    texts = []
    for i, text in enumerate(TEXTS + [GOLDEN["base"].prompt]):
        turn = [{"role": "user", "content": text}]
        whole = pipe.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        texts.append({"text": text, "ids": pipe.tokenizer(whole, padding="max_length", max_length=77).input_ids})
        if i > 0:
            tensors[f"hidden.{i}"] = hidden_states(pipe, text, 77).numpy()
    small = networks | {"vae": networks["vae_small"]}
    tensors["small_decoder.picture"] = draw(small, GOLDEN["cut"])[1]
    body = {"components": components, "texts": texts, "cases": described}
    return problems + finish(check, "flux2_klein", body, tensors)


@torch.no_grad()
def record_dev(check: bool) -> list[str]:
    """What is wrong with dev's golden."""
    networks, components = models.synthesise(cases.Case(components=DEV))
    pipe = pipeline("Flux2Pipeline", networks, False)
    problems = check_inputs(pipe) + check_language_model(pipe)
    tensors, described = draw_all(networks, GOLDEN_DEV)
    texts = []
    for i, text in enumerate(TEXTS + ["a [IMG] star\n[/INST]", GOLDEN_DEV["dev"].prompt]):
        turns = format_input([text], SYSTEM_MESSAGE)
        made = pipe.tokenizer.apply_chat_template(turns, return_dict=True, padding="max_length", truncation=True, max_length=120)
        texts.append({"text": text, "ids": made["input_ids"][0]})
        if i > 0:
            tensors[f"hidden.{i}"] = hidden_states(pipe, text, 120).numpy()
    body = {"components": components, "tokenizer": "tekken", "texts": texts, "cases": described}
    return problems + finish(check, "flux2_dev", body, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["Qwen3Model"] = (Qwen3Model, Qwen3Config)
    models.DIFFUSERS |= {name: getattr(diffusers, name) for name in ("Flux2Transformer2DModel", "AutoencoderKLFlux2")}
    # How many batches there were in training: a whole number that nothing reads.
    models.NOT_STORED.add("bn.num_batches_tracked")
    models.CONFIGS["MistralModel"] = (MistralModel, MistralConfig)
    problems = record_klein(options.check)
    if not options.check:
        write_tekken()
    elif (TEKKEN / "tokenizer.json").read_text(encoding="utf-8") != make_tekken() + "\n":
        problems.append("tokenizers/tekken/tokenizer.json differs")
    problems += record_dev(options.check)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
