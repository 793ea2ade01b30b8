"""Files and templates that nobody should trust: mutants of good ones, and what each may do to the process.

``tests/test_hostile.py`` runs some of them, ``scripts/fuzz_files.py`` many.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gguf_files
import numpy as np
import random_encoders
import random_models
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llamagpu.engine.params import sampling_params
from llamagpu.errors import LlamaGPUError

MOST_SECONDS = 1.0
MOST_BYTES = 64_000_000
MOST_FILE = 2_000_000  # bytes of a mutant
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if loop.first and m['role'] == 'system' %}{{ m.content | trim }}"
    "{% endif %}<|im_start|>{{ m.role + '\\n' + m['content'] }}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% if add_generation_prompt %}<|im_start|>a{% endif %}"
)
MESSAGES = [{"role": "user", "content": "a1 <s> a2"}, {"role": "assistant", "content": "a3"}]
# JSON values of every kind, and those that code stumbles over. They replace any value.
ODD = (
    *("null", "true", "false", "[]", "{}", '""', '"x"', "0", "1", "-1", "0.5", "-0.0", "2147483648", "4294967295"),
    *("9223372036854775807", "18446744073709551616", "1" + "0" * 30, "1" + "0" * 400, "9" * 5000, "-" + "9" * 5000),
    *("1e400", "-1e400", "1e-400", "1e308", "NaN", "Infinity", "-Infinity", "[null]", '{"a": null}', "[[[]]]"),
    *('"\\ud800"', '"\\udc00x"', '"\\u0000"', '"\\u001b[2J"', '"../../x"', '"/dev/zero"', '"."', '{"content": []}'),
    *('"' + "x" * 100_000 + '"', "[" * 100_000 + "]" * 100_000, '{"a":' * 90 + "1" + "}" * 90, "[" * 40 + "]" * 40),
    *("[" + ",".join(["9" * 4300] * 1000) + "]", "[" + ",".join(["0"] * 10_000) + "]", '{"' + "k" * 100_000 + '": 1}'),
    *('{"a": 1, "a": [2]}', '{"\\ud800": 1}', '[{"name": "default"}, 3, null]', '[{"name": [], "template": {}}]'),
)
KEYS = ("", "x", "\x00", "\x1b[2J", "k" * 100_000, "9" * 5000, "../x", "model_type", "content", "type", "__class__")


# --- mutants -------------------------------------------------------------------------------


def mutants(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Mutants of a file: two of three of JSON are structural, the others are of its bytes."""
    rng = np.random.default_rng(seed)
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    for _ in range(count):
        structural = value is not None and rng.integers(3)
        yield structural_mutant(value, rng) if structural else byte_mutant(data, rng)


def structural_mutant(value: Any, rng: np.random.Generator) -> bytes:
    """JSON with one to three values replaced by odd ones, moved, doubled or left out, or with odd keys."""
    marks: list[str] = []
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(value))
        if not places:
            break
        owner, key = places[rng.integers(len(places))]
        kind = rng.integers(10)
        if kind < 6:
            marks.append(ODD[rng.integers(len(ODD))])
            owner[key] = f"@mark{len(marks) - 1}@"
        elif kind == 6:
            del owner[key]
        elif kind == 7:
            other, at = places[rng.integers(len(places))]
            owner[key] = json.loads(json.dumps(other[at]))
        elif kind == 8:
            owner[key] = [owner[key]] * int(rng.integers(1, 1000 if len(str(value)) < 100_000 else 2))
        elif isinstance(owner, dict):
            owner[KEYS[rng.integers(len(KEYS))]] = owner.pop(key)
    text = json.dumps(value)
    text = re.sub(r'"@mark(\d+)@"', lambda found: marks[int(found[1])], text, count=30)
    if rng.integers(20) == 0:  # a key twice
        text = re.sub(r'\{("\w+"):', r"{\1: [], \1:", text, count=int(rng.integers(1, 3)))
    return text.encode()[:MOST_FILE]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    left = [value]
    while left:
        item = left.pop()
        if not isinstance(item, (dict, list)):
            continue
        for key in item if isinstance(item, dict) else range(len(item)):
            yield item, key
            left.append(item[key])


def byte_mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut, doubled, repeated, or replaced by text that is not UTF-8 or JSON."""
    out = bytearray(data)
    texts = (b"\xff\xfe", b"\xed\xa0\x80", b"[" * 100_000, b"9" * 5000, b"\0", b"{%", b"}}", b'"')
    for _ in range(int(rng.integers(1, 4))):
        at, kind, length = int(rng.integers(0, len(out) + 1)), rng.integers(6), int(rng.integers(1, 40))
        if kind == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length] * int(rng.integers(1, 300))
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            out[at:at] = texts[length % len(texts)]
        else:
            out[at : at + 1] = bytes([int(rng.integers(256))])
    return bytes(out[:MOST_FILE])


def header_mutants(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Mutants of a safetensors file: of its header, with the right or a wrong length before it."""
    rng = np.random.default_rng(seed)
    (length,) = struct.unpack("<Q", data[:8])
    header, tensors = data[8 : 8 + length], data[8 + length :]
    value = json.loads(header)
    for _ in range(count):
        made = structural_mutant(value, rng) if rng.integers(3) else byte_mutant(header, rng)
        stated = len(made) if rng.integers(10) else int(rng.choice([0, 1, 2**31, 2**63, length]))
        yield struct.pack("<Q", stated) + made + tensors


# --- models --------------------------------------------------------------------------------


def write_llama(folder: Path) -> Path:
    """A tiny Llama directory with every file that is read, and two shards."""
    raw = random_models.config(vocab_size=105, hidden_size=16, head_dim=4, intermediate_size=8, num_hidden_layers=1)
    raw |= {"num_attention_heads": 4, "rope_scaling": random_models.LLAMA3, "max_position_embeddings": 640}
    folder.mkdir(parents=True)
    files: dict[str, Any] = {
        "config.json": raw,
        "generation_config.json": GENERATION,
        "special_tokens_map.json": TOKENS,
    }
    files["tokenizer_config.json"] = TOKENS | {"chat_template": [{"name": "default", "template": TEMPLATE}]}
    weights = random_models.tensors(raw, 3)
    names = sorted(weights)
    index = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(index.values()):
        save_file({n: np.ascontiguousarray(weights[n], np.float32) for n in names if index[n] == shard}, folder / shard)
    files["model.safetensors.index.json"] = {"metadata": {"total_size": 1}, "weight_map": index}
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    write_tokenizer(folder)
    return folder


GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "eos_token_id": [2], "bos_token_id": 1}
TOKENS = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<|im_start|>"]}


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json with most kinds of parts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:90]
    vocab = {"<s>": 0, "</s>": 1, **{c: i + 2 for i, c in enumerate(letters)}}
    made = Tokenizer(models.BPE(vocab | {"ab": 92}, [("a", "b")] if "a" in vocab else [], unk_token="<s>"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("  ", " "), normalizers.Strip()])
    split = pre_tokenizers.Split("-", "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    made.add_special_tokens([AddedToken("<s>", special=True), "</s>", "<|im_start|>", "<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))


def write_encoder(folder: Path, labels: int = 0) -> Path:
    """A tiny BERT with a classifier for ``labels``, or none, and all files of sentence-transformers."""
    raw = random_encoders.config("bert", hidden_size=16, num_hidden_layers=1, intermediate_size=8, vocab_size=40)
    weights = random_encoders.classifier(raw, labels, 5) if labels else random_encoders.tensors(raw, 5)
    random_encoders.write_model(folder, raw, weights)
    parts = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(parts)
    ]
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "a1 "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
        "2_Dense/config.json": {"in_features": 16, "out_features": 8, "activation_function": "torch.nn.Identity"},
        "tokenizer_config.json": {"model_max_length": 10**30, "do_lower_case": True},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    dense = {"linear.weight": np.ones((8, 16), np.float32), "linear.bias": np.ones(8, np.float32)}
    save_file(dense, folder / "2_Dense" / "model.safetensors")
    return folder


def write_gguf(folder: Path, architecture: str = "llama") -> Path:
    """A whole tiny model in one GGUF file, of an architecture whose metadata has Llama's keys and some of its own."""
    raw = random_models.config(vocab_size=300, hidden_size=32, head_dim=8, intermediate_size=32, num_hidden_layers=1)
    shapes = gguf_files.llama_shapes(raw)
    metadata = {k.replace("llama.", f"{architecture}.", 1): v for k, v in gguf_files.llama_metadata(raw).items()}
    metadata |= {"general.architecture": ("STRING", architecture), "tokenizer.chat_template": ("STRING", TEMPLATE)}
    extra: dict[str, tuple[int, ...]] = {"rope_freqs.weight": (4,)}
    if architecture.startswith("gemma"):
        metadata[f"{architecture}.attention.sliding_window"] = ("UINT32", 8)
        extra |= {f"blk.0.{name}.weight": (32,) for name in ("post_attention_norm", "post_ffw_norm")}
    if architecture == "gemma3":
        extra |= {f"blk.0.{name}.weight": (8,) for name in ("attn_q_norm", "attn_k_norm")}
    tensors = {n: (np.ones(shape, np.float32), "F32") for n, shape in (shapes | extra).items()}
    folder.mkdir(parents=True, exist_ok=True)
    return gguf_files.write(folder / f"{architecture}.gguf", metadata, tensors)


# --- entry points --------------------------------------------------------------------------


@contextmanager
def without_device() -> Iterator[None]:
    """Loading stops where the device begins: everything else of ``LLM``, ``Embedder`` and ``CrossEncoder`` runs."""
    from llamagpu.engine import session

    def load(self: Any, *given: Any) -> None:
        self._owns_device, self._buffers = False, []
        self.device = SimpleNamespace(call=lambda function: None, free=lambda buffer: None)
        self.model = SimpleNamespace(context=64)
        self.engine = self._engine = SimpleNamespace(close=lambda: None)

    with mock.patch.object(session.Loaded, "_load", load):
        yield


def open_llm(path: Path) -> None:
    """``LLM(path)``, a prompt, a conversation, the settings of ``chat``, the fingerprint, every tensor, ``inspect``."""
    from llamagpu.engine import llm as module
    from llamagpu.model.inspect import inspect_model

    llm = module.LLM(path)
    try:
        llm.detokenize(llm.tokenize("a1 <s> b-c é"))
        str((llm.fingerprint, llm.special_tokens))
        if llm.chat_templates:
            llm.apply_chat_template(MESSAGES)
            sampling_params(llm.config.vocab_size, **llm.chat_settings)
    finally:
        llm.close()
    inspect_model(str(path), None, None)
    read_tensors(llm._prepared.layout)


def read_tensors(layout: Any) -> None:
    """All rows of every tensor."""
    pieces = [p for t in (*layout.matrices.values(), *layout.vectors.values()) for p in t.pieces]
    for piece in pieces:
        layout.source.rows(piece.name, np.arange(len(piece.rows)))


def open_embedder(path: Path) -> None:
    """``Embedder(path)`` with its prompt, its tokenizer and its last layers."""
    from llamagpu.engine.embedder import Embedder

    embedder = Embedder(path)
    try:
        embedder._prepared("a1 a2")
        embedder.tokenize("a3 " * 200)
        hidden = embedder._model.config.hidden_size * len(embedder.pipeline.pooling)
        embedder.pipeline.finish(np.ones((2, hidden), np.float32))
    finally:
        embedder.close()


def open_classifier(path: Path) -> None:
    """``CrossEncoder(path)``."""
    from llamagpu.engine.cross_encoder import CrossEncoder

    cross = CrossEncoder(path)
    cross._own_activation()
    cross.close()


# --- outcomes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a case did: ``foreign`` names an exception that is not ours; seconds of the processor, which do not depend
    on what else runs; bytes of memory that it took, and the most that it may take."""

    foreign: str
    seconds: float
    grown: int
    most: int = MOST_BYTES

    @property
    def complaint(self) -> str:
        """What is wrong with it; empty if nothing is."""
        slow = f"{self.seconds:.1f} s" if self.seconds > MOST_SECONDS else ""
        large = f"{self.grown / 1e6:.0f} MB" if self.grown > self.most else ""
        return ", ".join(part for part in (self.foreign, slow, large) if part)


def outcome(case: Callable[[], None], most: int = MOST_BYTES) -> Outcome:
    """Run a case."""
    before = _reset_peak()
    begin, foreign = time.process_time(), ""
    try:
        case()
    except LlamaGPUError as e:
        if len(str(e)) > 13_000:
            foreign = f"a message of {len(str(e))} characters"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:
        trace = e.__traceback__
        while trace and trace.tb_next and "llamagpu" in trace.tb_next.tb_frame.f_code.co_filename:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        foreign = f"{type(e).__name__} at {where}: {e!s:.100}"
    return Outcome(foreign, time.process_time() - begin, _memory("VmHWM") - before, most)


def _reset_peak() -> int:
    """Forget the peak of this process's memory (Linux), and give its memory now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _memory("VmRSS")


def _memory(key: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


def replaced(folder: Path, name: str, copies: Iterator[bytes], open_it: Callable[[Path], None]) -> Iterator[Outcome]:
    """The outcome of opening a model for each content of one of its files. A folder's own copy is changed."""
    path = folder / name if folder.is_dir() else folder
    original = path.read_bytes() if path.exists() else None
    for data in copies:
        path.write_bytes(data)
        # The library of tokenizers takes some hundred bytes for each byte of an added token.
        yield outcome(lambda: open_it(folder), MOST_BYTES + (300 * len(data) if name == "tokenizer.json" else 0))
    if original is None:
        path.unlink()
    else:
        path.write_bytes(original)


def fresh(folder: Path) -> Path:
    """An empty place for a model."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
