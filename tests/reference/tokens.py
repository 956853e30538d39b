"""Writes tests/goldens/tokens.json: the ids that transformers gives for a list of prompts, called as FluxPipeline calls it.

    python tests/reference/tokens.py [--clip DIR] [--t5 DIR] [--out FILE]

The tokenizers are the miniature's, in tests/goldens/tokenizers. With other directories the same list checks a tokenizer of
full size. transformers rebuilds a CLIPTokenizer (and a T5Tokenizer) from the vocabulary in tokenizer.json, with the normaliser
and the word rule of its own class; a tokenizer of no such class, as the miniature's T5, is used as its file has it.
"""

import argparse
import json
from pathlib import Path

import tokenizers
import transformers
from transformers import AutoTokenizer

# Raised when the meaning of a key changes; the tests refuse other numbers.
FORMAT = 1
GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
# diffusers' FluxPipeline allows no longer T5 input.
T5_LIMIT = 512
# Lengths that the T5 cases are recorded at, beside the tokenizer's own.
T5_LENGTHS = [1, 2, 7, 512]

# (text, how many times it is repeated)
PROMPTS = [
    ("", 1),
    (" ", 1),
    ("\n\t \r\n", 1),
    ("a small yellow star on a blue background", 1),
    ("A Small YELLOW Star On A Blue Background", 1),
    ("  leading,  double and trailing  spaces  ", 1),
    ("tabs\tand\nnewlines\r\nand\u00a0no-break\u2003em\u3000ideographic spaces", 1),
    ("a\u200bzero\u200dwidth\ufeff and \u00adsoft\u2060 joiners", 1),
    ("controls \u0000\u0001\u001b[31m\u007f\u0085\u009f end", 1),
    ("don't can't we'll I'm they've he'd she's you're O'Brien's rock'n'roll 'twas", 1),
    ("DON'T CAN'T WE'LL I'M", 1),
    ("typographic ‘quotes’ “double” – en — em … ellipsis", 1),
    ("1234567890 3.14159 1,000,000 0x7f 50% $19.99 #1", 1),
    ("x² + y³ = ½ Ⅷ ① ٣ ३ 三", 1),
    ("snake_case kebab-case CamelCase path/to/file.png e-mail@example.com", 1),
    ("!!! ??? ... --- ((nested [brackets] {here})) <tag> & co. * ~ ^ | \\ ` \"", 1),
    ("(masterpiece:1.4), [bad|good], {a|b} <lora:name:0.8>", 1),
    ("café naïve Ångström Weiß ŒUVRE", 1),
    ("cafe\u0301 nai\u0308ve A\u030angstro\u0308m", 1),
    ("Z\u0351\u036b\u0343a\u030d\u0314l\u0342\u0315g\u033do\u0489 stacked marks", 1),
    ("İstanbul ISPARTA ıI ΑΣΣΟΣ ὈΔΥΣΣΕΎΣ ǅ ﬁne ﬀ ẞ", 1),
    ("ＦＵＬＬ ｗｉｄｔｈ ｶﾀｶﾅ ℌ𝔢𝔩𝔩𝔬 𝟘𝟙 ™ © ℃", 1),
    ("一只猫坐在红色的沙发上", 1),
    ("青い背景に小さな黄色い星、がぎぐげご か\u3099", 1),
    ("파란 배경 위의 작은 노란 별 \u1112\u1161\u11ab", 1),
    ("маленькая жёлтая звезда на синем фоне", 1),
    ("نجمة صفراء صغيرة عَلَى خلفية زرقاء", 1),
    ("כוכב צהוב קטן שָׁלוֹם", 1),
    ("नीली पृष्ठभूमि पर छोटा पीला तारा क्षि", 1),
    ("ดาวสีเหลืองเล็ก ๆ น้ำ", 1),
    ("🐱 a cat 🚀🌕, thumbs 👍🏽, family 👨‍👩‍👧‍👦, flag 🇯🇵, keycap 1️⃣, ❤️", 1),
    ("\U0001f9ff\U0001fae8\U0001fadf \U000e0067\U000e007f \U0010ffff \ue000", 1),
    ("<|startoftext|>a star<|endoftext|>", 1),
    ("a<|endoftext|>b <|endoftext|> c <|ENDOFTEXT|> <|StartOfText|>", 1),
    ("<pad> </s> a</s>star <unk> <extra_id_0>circle<extra_id_99> <s>", 1),
    ("▁metaspace ▁▁ twice and </w> mark", 1),
    ("a large red circle to the left of a small green square, on the right a ring", 1),
    ("a large red circle to the left of a small green square on a white background, ", 4),
    ("star ", 10000),
    ("antidisestablishmentarianism", 400),
    ("word, ", 37),
    ("star ", 75),
    ("star ", 76),
    ("!", 300),
    (" ", 5000),
    ("é日🐱", 60),
]


def encode(tokenizer, text: str, length: int) -> dict:
    """The ids before the padding, and the text that was removed, as the pipeline's warning has it."""
    call = {"truncation": True, "return_length": False, "return_overflowing_tokens": False}
    ids = tokenizer(text, padding="max_length", max_length=length, **call).input_ids
    whole = tokenizer(text, padding="longest").input_ids
    assert len(ids) == length
    used = min(len(whole), length)
    assert ids[used:] == [tokenizer.pad_token_id] * (length - used)
    removed = None
    if len(whole) > length:
        # The pipeline's warning for T5 cuts at CLIP's length by mistake; this is where the ids really end.
        removed = tokenizer.decode(whole[length - 1 : -1], clean_up_tokenization_spaces=False)
    return {"ids": ids[:used], "removed": removed}


def shorten(case: dict) -> dict:
    """A long removed text as its length and its beginning."""
    removed = case["removed"]
    if removed is not None and len(removed) > 200:
        case["removed"] = {"chars": len(removed), "starts": removed[:100]}
    return case


def record(clip, t5) -> dict:
    t5_length = min(t5.model_max_length, T5_LIMIT)
    cases = []
    for text, repeat in PROMPTS:
        case = {"text": text, "repeat": repeat, "clip": shorten(encode(clip, text * repeat, clip.model_max_length))}
        case["t5"] = [
            {"length": n, **shorten(encode(t5, text * repeat, n))} for n in sorted({t5_length, *T5_LENGTHS})
        ]
        cases.append(case)
    return {
        "clip": {"length": clip.model_max_length, "pad": clip.pad_token_id},
        "t5": {"length": t5_length, "pad": t5.pad_token_id},
        "cases": cases,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clip", type=Path, default=GOLDENS / "tokenizers" / "clip")
    options.add_argument("--t5", type=Path, default=GOLDENS / "tokenizers" / "t5")
    options.add_argument("--out", type=Path, default=GOLDENS / "tokens.json")
    options = options.parse_args()
    versions = {m.__name__: m.__version__ for m in (transformers, tokenizers)}
    body = record(AutoTokenizer.from_pretrained(options.clip), AutoTokenizer.from_pretrained(options.t5))
    cases = body.pop("cases")
    head = {"format": FORMAT, "made_by": "tests/reference/tokens.py", "versions": versions, **body}
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=True) for case in cases)
    text = json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n'
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
