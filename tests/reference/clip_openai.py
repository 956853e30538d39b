"""Writes tests/goldens/clip_openai.json: the ids that transformers' CLIPTokenizer gives with OpenAI's own vocabulary.

    python tests/reference/clip_openai.py VOCABULARY [--out FILE]

VOCABULARY is bpe_simple_vocab_16e6.txt, as in OpenAI's CLIP and in the package instant-clip-tokenizer (`cargo metadata` says
where that lies). The list of tokens is made as OpenAI's simple_tokenizer.py makes it, and the prompts are those of tokens.py.
"""

import argparse
import json
from pathlib import Path

import tokenizers
import transformers
from transformers import CLIPTokenizer

from tokens import FORMAT, GOLDENS, PROMPTS, encode, shorten

# More prompts: words of people, punctuation and names as they write them, and what the package's own tests hold.
MORE = [
    "Hi there",
    "a photo of a cat",
    "A person riding a motorcycle",
    "Hello Båstad",
    "donaudampfschifffahrtsgesellschaftskapitänsmütze",
    "masterpiece, best quality, 8k uhd, (highly detailed:1.2), trending on artstation, by greg rutkowski",
    "An astronaut riding a horse on Mars, f/2.8, 35mm, Kodak Portra 400 #photography @nasa",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
]
LENGTH = 77
MERGES = 49152 - 256 - 2


def alphabet() -> list[str]:
    """The characters that stand for bytes, in OpenAI's order (bytes_to_unicode)."""
    bytes_ = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in bytes_] + [chr(256 + n) for n in range(256 - len(bytes_))]


def vocabulary(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids and the merges."""
    lines = path.read_text(encoding="utf-8").split("\n")[1 : MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    tokens = alphabet() + [c + "</w>" for c in alphabet()] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == len(set(tokens)) == 49408
    return {token: i for i, token in enumerate(tokens)}, merges


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("vocabulary", type=Path)
    options.add_argument("--out", type=Path, default=GOLDENS / "clip_openai.json")
    options = options.parse_args()
    vocab, merges = vocabulary(options.vocabulary)
    clip = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    cases = []
    for text, repeat in PROMPTS + [(text, 1) for text in MORE]:
        cases.append({"text": text, "repeat": repeat, "clip": shorten(encode(clip, text * repeat, LENGTH))})
    head = {
        "format": FORMAT,
        "made_by": "tests/reference/clip_openai.py",
        "versions": {m.__name__: m.__version__ for m in (transformers, tokenizers)},
        "clip": {"length": LENGTH, "pad": clip.pad_token_id, "tokens": len(vocab)},
    }
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=True) for case in cases)
    options.out.write_text(json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
