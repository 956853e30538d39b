"""Records what Stable Diffusion 1 and XL draw of prompts with taught words, and of prompts with weights.

    python prompts.py            writes sd1_prompts, sdxl_prompts and the files of taught words in tests/goldens/embeddings
    python prompts.py --check    compares with the committed files instead of writing them
    python prompts.py --health   says how far the latents move when something of the request does

Taught words go through diffusers' own loader. Prompts with weights are encoded here, by the rules of AUTOMATIC1111's web UI with the text
encoders of transformers: which words count how much is written down beside each prompt, so that nothing is read of its brackets.
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import asdict, dataclass

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import generate
import goldenfile
import models
import stable_diffusion as sd
import stable_diffusion_xl as xl
import synth

DIRECTORY = goldenfile.DIRECTORY / "embeddings"
# Tokens of a chunk without its marks; how far behind the last comma a chunk may end.
ROOM, LAST_TOKENS = 75, 20
BREAK = "BREAK"


def vectors(name: str, *extents: int) -> torch.Tensor:
    return torch.from_numpy(synth.values("embedding", name, list(extents), 0.6, 0.05))


def files() -> dict[str, dict]:
    """By file name: what it holds."""
    return {
        "toy.bin": {"<cat-toy>": vectors("toy", 128)},
        "bad-hands.pt": {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": vectors("hands", 3, 128).requires_grad_()},
            "name": "bad-hands",
            "step": 500,
            "sd_checkpoint": "c0ffee",
            "sd_checkpoint_name": "synthetic",
        },
        "easy.safetensors": {"emb_params": vectors("easy", 2, 128)},
        "style.safetensors": {"clip_l": vectors("style_l", 2, 128), "clip_g": vectors("style_g", 2, 192)},
    }


# For diffusers: the word of each file, which its loader is given.
WORDS = {"toy.bin": "<cat-toy>", "bad-hands.pt": "bad-hands", "easy.safetensors": "easy", "style.safetensors": "style"}


def write_files() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, held in files().items():
        path = DIRECTORY / name
        save_file(held, path) if name.endswith(".safetensors") else torch.save(held, path)
        path.chmod(0o644)


@dataclass(frozen=True)
class Case:
    """A request. With `pieces`, the prompt and the negative one are in the web UI's syntax, and these are what they say."""

    prompt: str
    negative_prompt: str | None = "a black cross, the quick brown fox"
    width: int = 56
    height: int = 40
    steps: int = 4
    seed: int = 5
    cfg_scale: float = 6.0
    batch: int = 1
    clip_skip: int | None = None
    pieces: list | None = None
    negative_pieces: list | None = None


LONG = "a large purple ring above a small yellow star, " * 5
CASES = {
    "word": Case("a <cat-toy> above a ##2 cross"),
    "vectors": Case("a ring, easy, a star", negative_prompt="bad-hands and easy", clip_skip=1),
    "beside": Case("x<cat-toy>y <cat-toy> bad-hands_2", negative_prompt=None, batch=2, cfg_scale=1.0),
    "weights": Case(
        "a (large:1.4) purple [ring] above (a ((star)):0.8)",
        negative_prompt="(a black cross), the fox",
        pieces=[["a ", 1.0], ["large", 1.4], [" purple ", 1.0], ["ring", 1 / 1.1], [" above ", 1.0], ["a ", 0.8], ["star", 0.8 * 1.21]],
        negative_pieces=[["a black cross", 1.1], [", the fox", 1.0]],
    ),
    "long": Case(
        LONG + "(" + LONG + ":0.7)",
        negative_prompt="a fox BREAK (a moon:1.6)",
        width=40,
        height=56,
        batch=2,
        pieces=[[LONG, 1.0], [LONG, 0.7]],
        negative_pieces=[["a fox", 1.0], BREAK, ["a moon", 1.6]],
    ),
    "taught": Case(
        "(easy:1.3), a star " * 12,
        negative_prompt=None,
        pieces=[["easy", 1.3], [", a star ", 1.0]] * 12,
        negative_pieces=[],
    ),
}
XL_CASES = {
    "word": Case("a STYLE ring above a ##2 cross".replace("STYLE", "style"), negative_prompt="style_1, the fox"),
    "weights": CASES["weights"],
    "long": dataclasses.replace(CASES["long"], clip_skip=1),
    # Zeros stand for the negative prompt, as many as the prompt has tokens.
    "taught": Case("(style:1.3), a star " * 12, negative_prompt=None, pieces=[["style", 1.3], [", a star ", 1.0]] * 12),
}


def teach(pipe, names: list[str]) -> None:
    """Loads the files `names` as diffusers does."""
    for name in names:
        held, word = files()[name], WORDS[name]
        if "clip_l" in held:
            pipe.load_textual_inversion({word: held["clip_l"]}, token=word, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
            pipe.load_textual_inversion({word: held["clip_g"]}, token=word, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)
        else:
            pipe.load_textual_inversion(str(DIRECTORY / name), token=word)


def pool_at_the_end(encoder, end: int) -> None:
    """transformers takes the token with the largest id for the end if a configuration says 2: then that is a taught word."""
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = end
    encoder.config.eos_token_id = end


def chunked(tokenizer, words: dict[str, list[str]], pieces: list) -> list[list[tuple[int, float]]]:
    """The tokens of `pieces` with their weights, in chunks. `words` are the tokens of taught words."""
    comma, chunks, chunk, last_comma = tokenizer.convert_tokens_to_ids(",</w>"), [], [], None
    for piece in pieces:
        if piece == BREAK:
            chunks.append(chunk)
            chunk, last_comma = [], None
            continue
        text, weight = piece
        if text in words:
            units = [tokenizer.convert_tokens_to_ids(words[text])]
        else:
            units = [[token] for token in tokenizer(text, add_special_tokens=False).input_ids]
        for unit in units:
            if unit == [comma]:
                last_comma = len(chunk)
            elif len(chunk) == ROOM and last_comma is not None and ROOM - last_comma <= LAST_TOKENS:
                chunks.append(chunk[: last_comma + 1])
                chunk, last_comma = chunk[last_comma + 1 :], None
            if len(chunk) + len(unit) > ROOM:
                chunks.append(chunk)
                chunk, last_comma = [], None
            chunk += [(token, weight) for token in unit]
    return chunks + [chunk] if chunk or not chunks else chunks


def encoded(pipe, tokenizer, encoder, chunks: list, hidden_of) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states of all chunks, weighted, each with the mean that it had; and the output of the first."""
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    states, first = [], None
    for chunk in chunks:
        ids = [start, *(token for token, _ in chunk), end]
        ids += [pad] * (ROOM + 2 - len(ids))
        weights = torch.tensor(([1.0] + [weight for _, weight in chunk] + [1.0] * (ROOM + 2))[: ROOM + 2])
        output = encoder(torch.tensor([ids]), output_hidden_states=True)
        hidden = hidden_of(output)
        first = output if first is None else first
        weighted = hidden * weights[None, :, None]
        # In double precision: a mean may be far smaller than the numbers.
        states.append(weighted * (hidden.double().mean() / weighted.double().mean()).float())
    return torch.cat(states, 1), first


def weighted(pipe, case: Case, words: dict) -> dict:
    """What a pipeline is given for a prompt with weights."""
    is_xl, given, all_chunks = hasattr(pipe, "tokenizer_2"), {}, {}
    skipped = case.clip_skip or 0
    readers = [(pipe.tokenizer, pipe.text_encoder)] + ([(pipe.tokenizer_2, pipe.text_encoder_2)] if is_xl else [])
    sides = {"": case.pieces} | ({} if is_xl and case.negative_prompt is None else {"negative_": case.negative_pieces})
    for side, pieces in sides.items():
        all_chunks[side] = [chunked(tokenizer, words, pieces) for tokenizer, _ in readers]
    most = max(len(chunks) for each in all_chunks.values() for chunks in each)
    for side, each in all_chunks.items():
        states = []
        for (tokenizer, encoder), chunks in zip(readers, each, strict=True):
            norm = encoder.text_model.final_layer_norm if hasattr(encoder, "text_model") else encoder.final_layer_norm
            last = lambda output: norm(output.hidden_states[-1 - skipped])
            earlier = lambda output: output.hidden_states[-2 - skipped]
            found, first = encoded(pipe, tokenizer, encoder, chunks + [[]] * (most - len(chunks)), earlier if is_xl else last)
            states.append(found)
        given[f"{side}prompt_embeds"] = torch.cat(states, -1)
        if is_xl:
            given[f"{side}pooled_prompt_embeds"] = first.text_embeds
    if is_xl and case.negative_prompt is None:
        given["negative_prompt_embeds"] = torch.zeros_like(given["prompt_embeds"])
        given["negative_pooled_prompt_embeds"] = torch.zeros_like(given["pooled_prompt_embeds"])
    return given


def draw(pipe, case: Case, words: dict, schedule) -> np.ndarray:
    """The last latents, [batch, C, h, w]."""
    found = []
    for i in range(case.batch):
        pipe.scheduler, last = schedule(), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        given = {"prompt": case.prompt, "negative_prompt": case.negative_prompt}
        if case.pieces is not None:
            given = weighted(pipe, case, words)
        elif case.clip_skip and case.cfg_scale > 1:
            negative = pipe.encode_prompt(case.negative_prompt, "cpu", 1, False, clip_skip=case.clip_skip)[0]
            given = {"prompt": case.prompt, "negative_prompt_embeds": negative}
        pipe(
            **given,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.cfg_scale,
            clip_skip=None if case.pieces is not None else case.clip_skip,
            generator=generate.generator((case.seed + i) % 2**64),
            callback_on_step_end=keep,
        )
        found.append(last[0][0].numpy())
    return np.stack(found)


def record(name: str, pipe, cases: dict[str, Case], taught: list[str], schedule, options) -> list[str]:
    end = pipe.tokenizer.eos_token_id
    pool_at_the_end(pipe.text_encoder, end)
    if hasattr(pipe, "text_encoder_2"):
        pool_at_the_end(pipe.text_encoder_2, end)
    teach(pipe, taught)
    words = {}
    for file in taught:
        held = next(iter(value for value in ({**files()[file], **files()[file].get("string_to_param", {})}).values() if isinstance(value, torch.Tensor)))
        count = held.shape[0] if held.dim() > 1 else 1
        words[WORDS[file]] = [WORDS[file]] + [f"{WORDS[file]}_{i}" for i in range(1, count)]
    tensors, described = {}, {}
    for case_name, case in cases.items():
        tensors[f"{case_name}.latents"], described[case_name] = draw(pipe, case, words, schedule), asdict(case)
        if options.health:
            latents = tensors[f"{case_name}.latents"]
            others = {"seed": dataclasses.replace(case, seed=6), "plain": dataclasses.replace(case, pieces=None, clip_skip=None)}
            if case.pieces:
                lighter = [piece if piece == BREAK else [piece[0], piece[1] if piece[1] == 1.0 else piece[1] + 0.1] for piece in case.pieces]
                others["weights by 0.1"] = dataclasses.replace(case, pieces=lighter)
            moved = {what: goldenfile.nmse(draw(pipe, other, words, schedule), latents) for what, other in others.items()}
            print(f"{name} {case_name}: rms {np.sqrt(np.square(latents).mean()):.2f}; moved by", ", ".join(f"{k} {v:.1e}" for k, v in moved.items()))
    if options.health:
        return []
    body = {"made_by": "tests/reference/prompts.py", "based_on": name.split("_")[0], "taught": taught, "cases": described}
    body = json.loads(json.dumps(body))
    if options.check:
        return goldenfile.compare(name, body, tensors)
    return goldenfile.write(name, body, tensors) or []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="say how far the latents move")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    if not options.check:
        write_files()
    with torch.no_grad():
        pipe, make = sd.pipelines()[0]["text"], lambda: sd.schedule(sd.Case(sampler="ddim"))
        problems = record("sd1_prompts", pipe, CASES, ["toy.bin", "bad-hands.pt", "easy.safetensors"], make, options)
        pipe, make = xl.pipelines()[0]["text"], lambda: xl.schedule(xl.Case())
        problems += record("sdxl_prompts", pipe, XL_CASES, ["style.safetensors"], make, options)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
