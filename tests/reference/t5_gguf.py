"""Writes tests/goldens/t5_gguf.gguf and .json: a T5 tokenizer in the metadata of a GGUF file, and transformers' ids for it.
Writes SentencePiece's own file of it, too: tests/goldens/tokenizers/spiece/spiece.model.

    python tests/reference/t5_gguf.py [--out FILE]

SentencePiece trains a small vocabulary on the prompts of tokens.py, with T5's marks and normaliser (nmt_nfkc, whole). The
`gguf` package writes it, without tensors, as llama.cpp's converter does for T5EncoderModel. transformers' T5Tokenizer reads
SentencePiece's own file.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer, T5Tokenizer

from tokens import FORMAT, GOLDENS, PROMPTS, encode, shorten

PIECES = 360
# Rows of the embedding: T5's have 28 more than the pieces and the hundred <extra_id_N>.
ROWS = PIECES + 128
LENGTH = 512
LENGTHS = [7, LENGTH]
UNUSED = 5


def train() -> bytes:
    """A spiece.model with T5's marks."""
    lines = [text.replace("\n", " ") for text, _ in PROMPTS if text.strip() and "\0" not in text]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        character_coverage=0.98,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def write_gguf(spiece: bytes, path: Path) -> None:
    """The entries that llama.cpp's converter writes (T5EncoderModel.set_vocab)."""
    model = sentencepiece_model_pb2.ModelProto.FromString(spiece)
    fill = range(len(model.pieces), ROWS)
    writer = gguf.GGUFWriter(path, "t5encoder")
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([p.piece.encode() for p in model.pieces] + [f"[PAD{i}]".encode() for i in fill])
    writer.add_token_scores([p.score for p in model.pieces] + [-10000.0 for _ in fill])
    writer.add_token_types([int(p.type) for p in model.pieces] + [UNUSED for _ in fill])
    writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(model.normalizer_spec.remove_extra_whitespaces)
    writer.add_precompiled_charsmap(model.normalizer_spec.precompiled_charsmap)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_spiece(spiece: bytes) -> T5Tokenizer:
    """transformers' tokenizer for a folder with nothing but SentencePiece's file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spiece.model").write_bytes(spiece)
        config = {"tokenizer_class": "T5Tokenizer", "model_max_length": LENGTH}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, T5Tokenizer) and len(tokenizer) == PIECES + 100
    return tokenizer


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=GOLDENS / "t5_gguf.json")
    options = options.parse_args()
    spiece = train()
    (options.out.parent / "tokenizers" / "spiece").mkdir(parents=True, exist_ok=True)
    (options.out.parent / "tokenizers" / "spiece" / "spiece.model").write_bytes(spiece)
    write_gguf(spiece, options.out.with_suffix(".gguf"))
    t5 = read_spiece(spiece)
    cases = []
    for text, repeat in PROMPTS:
        ids = [{"length": n, **shorten(encode(t5, text * repeat, n))} for n in LENGTHS]
        cases.append({"text": text, "repeat": repeat, "t5": ids})
    head = {
        "format": FORMAT,
        "made_by": "tests/reference/t5_gguf.py",
        "versions": {m.__name__: m.__version__ for m in (transformers, tokenizers, sentencepiece)},
        "t5": {"length": LENGTH, "pad": t5.pad_token_id, "tokens": len(t5)},
    }
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=True) for case in cases)
    options.out.write_text(json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
