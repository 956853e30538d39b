"""The miniature's T5 tokenizer as a SentencePiece model, and as llama.cpp's converter puts such a model into a GGUF file."""

import functools
import io
import json
import tempfile
import unicodedata
from importlib import metadata
from pathlib import Path

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import PreTrainedTokenizerFast

# Characters that the map rewrites as NFKC does: ligatures, and the forms as wide as Chinese characters. All of Unicode takes
# a quarter of a megabyte.
MAPPED = [*range(0xFB00, 0xFB07), *range(0xFF01, 0xFF5F)]


def version(package: str) -> str:
    """The installed version of a package."""
    return metadata.version(package)


@functools.cache
def charsmap() -> bytes:
    """SentencePiece's compiled map of `MAPPED`."""
    with tempfile.TemporaryDirectory() as directory:
        rules = Path(directory) / "rules.tsv"
        codes = lambda text: " ".join(f"{ord(c):X}" for c in text)
        lines = [f"{codes(chr(c))}\t{codes(unicodedata.normalize('NFKC', chr(c)))}\n" for c in MAPPED]
        rules.write_text("".join(lines))
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some words to train on", "more of them"]),
            model_writer=model,
            vocab_size=20,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(rules),
            minloglevel=2,
        )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto.normalizer_spec.precompiled_charsmap


def model(directory: Path) -> sentencepiece_model_pb2.ModelProto:
    """The unigrams of a tokenizer.json as the file that SentencePiece would have written."""
    described = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    special = {"<pad>": kinds.CONTROL, "</s>": kinds.CONTROL, "<unk>": kinds.UNKNOWN}
    for piece, score in described["vocab"]:
        proto.pieces.add(piece=piece, score=score, type=special.get(piece, kinds.NORMAL))
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id, proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 0, 1, 2, -1
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.normalizer_spec.name = "nfkc"
    proto.normalizer_spec.precompiled_charsmap = charsmap()
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = True
    proto.normalizer_spec.escape_whitespaces = True
    return proto


def processor(directory: Path) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece, ready to run."""
    return sentencepiece.SentencePieceProcessor(model_proto=model(directory).SerializeToString())


def check(directory: Path, prompt: str) -> None:
    """SentencePiece and transformers give the same ids."""
    wanted = PreTrainedTokenizerFast.from_pretrained(directory)(prompt).input_ids
    assert [*processor(directory).encode(prompt), 1] == wanted, prompt


def t5_metadata(writer: gguf.GGUFWriter, config: dict, file_type: int, directory: Path) -> None:
    """What llama.cpp's convert_hf_to_gguf.py writes for a T5EncoderModel, call by call."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("T5 Encoder")
    writer.add_context_length(config.get("n_positions", 512))
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_block_count(config["num_layers"])
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_file_type(file_type)
    tokenizer_metadata(writer, config["vocab_size"], directory)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def tokenizer_metadata(writer: gguf.GGUFWriter, rows: int, directory: Path) -> None:
    """The tokenizer, padded to the rows of the embedding."""
    tokenizer, spec = processor(directory), model(directory).normalizer_spec
    tokens = [f"[PAD{i}]".encode() for i in range(rows)]
    scores, kinds = [-10000.0] * rows, [int(gguf.TokenType.UNUSED)] * rows
    for i in range(tokenizer.vocab_size()):
        tokens[i], scores[i] = tokenizer.id_to_piece(i).encode(), tokenizer.get_score(i)
        kind = gguf.TokenType.NORMAL
        if tokenizer.is_unknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif tokenizer.is_control(i):
            kind = gguf.TokenType.CONTROL
        kinds[i] = int(kind)
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(spec.remove_extra_whitespaces)
    writer.add_precompiled_charsmap(spec.precompiled_charsmap)
    gguf.SpecialVocab(directory, n_vocab=len(tokens)).add_to_gguf(writer, quiet=True)
