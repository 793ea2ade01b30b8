"""Encoders and embeddings: random models against transformers, packs, overlapping calls, and what users get wrong."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_encoders
from safetensors.numpy import load_file, save_file

from llamagpu import LLM, CrossEncoder, Embedder, gpu
from llamagpu.errors import DeviceLostError, UnsupportedModelError, UsageError
from llamagpu.model.encoder import Encoder
from llamagpu.model.encoder_config import parse_encoder
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.packs import Encoded
from llamagpu.model.sources import open_directory

GOLDENS = load_file(Path(__file__).parent / "goldens_encoders.safetensors")
BAR = 5e-5  # of the largest element


def write(folder: Path, name: str, **changes: Any) -> Path:
    raw = random_encoders.CONFIGS[name]
    seed = list(random_encoders.CONFIGS).index(name) + 1
    return random_encoders.write_model(folder, raw | changes, random_encoders.tensors(raw, seed))


def opened(folder: Path, device: gpu.Device, dtype: str = "auto") -> Encoder:
    source = open_directory(folder)
    config = parse_encoder(source.config())
    return device.call(lambda: Encoder(device, config, EncoderLayout(config, source, dtype), device.tuning))


def error(folder: Path, name: str, device: gpu.Device, dtype: str = "auto") -> float:
    """The largest error of a pack's texts, of the largest element."""
    seed = list(random_encoders.CONFIGS).index(name) + 1
    texts = random_encoders.texts(random_encoders.CONFIGS[name], seed)
    encoder = opened(folder, device, dtype)
    hidden = device.call(lambda: encoder.hidden([Encoded(tuple(ids), tuple(types)) for ids, types in texts]))
    worst, at = 0.0, 0
    for ids, _ in texts:
        part, golden = hidden[at : at + len(ids)], GOLDENS[f"{name}.{len(ids)}"]
        at += len(ids)
        got = np.stack([part[0], part[-1], part.mean(axis=0)])
        worst = max(worst, float(np.abs(got - golden).max() / np.abs(golden).max()))
    return worst


@pytest.mark.parametrize("name", random_encoders.CONFIGS)
def test_hidden_states_match_transformers(name: str, device: gpu.Device, tmp_path: Path) -> None:
    assert error(write(tmp_path, name), name, device) <= BAR


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"layer_norm_eps": 1e-3}),
        ("bert", {"num_attention_heads": 12}),
        ("roberta", {"pad_token_id": 2}),
        ("distilbert", {"activation": "gelu_new"}),
        ("data2vec-text", {"pad_token_id": 2}),
    ],
)
def test_the_tolerance_detects_every_field(
    name: str, changes: dict[str, Any], device: gpu.Device, tmp_path: Path
) -> None:
    assert error(write(tmp_path, name, **changes), name, device) > 2 * BAR


def pooled(encoder: Encoder, pack: list[Encoded]) -> np.ndarray:
    return encoder.device.call(lambda: encoder.launch(pack, ("mean",))[0]).result()


def test_a_pack_changes_no_bit(device: gpu.Device, tmp_path: Path) -> None:
    """Every text has the same vector alone and in packs of others, in any order."""
    encoder = opened(write(tmp_path, "bert"), device)
    rng = np.random.default_rng(0)
    texts = [Encoded(tuple(int(i) for i in rng.integers(1, 200, n)), (0,) * n) for n in (5, 1, 90, 33, 7, 64, 31)]
    alone = np.concatenate([pooled(encoder, [text]) for text in texts])
    together, backwards = pooled(encoder, texts), pooled(encoder, texts[::-1])
    assert (alone == together).all()
    assert (alone == backwards[::-1]).all()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sentence-transformers directory: mean pooling, a dense layer, normalization, a prompt, at most 20 tokens."""
    directory = write(tmp_path / "model", "bert")
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "2_Dense"):
        (directory / name).mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    dense = {
        "in_features": 48,
        "out_features": 16,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (directory / "2_Dense" / "config.json").write_text(json.dumps(dense))
    rng = np.random.default_rng(3)
    weights = {"linear.weight": rng.standard_normal((16, 48)) / 7, "linear.bias": rng.standard_normal(16)}
    save_file({k: v.astype(np.float32) for k, v in weights.items()}, directory / "2_Dense" / "model.safetensors")
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    (directory / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "a7 a8 "}}))
    return directory


def words(seed: int, count: int) -> str:
    return " ".join(f"a{i}" for i in np.random.default_rng(seed).integers(0, 200, count))


def test_encode(model: Path, device: gpu.Device, caplog: pytest.LogCaptureFixture) -> None:
    texts = [words(i, 1 + 5 * i % 17) for i in range(40)]
    with Embedder(model, device=device) as embedder:
        all_of_them = embedder.encode(texts)
        assert all_of_them.shape == (40, 16)
        assert np.allclose(np.linalg.norm(all_of_them, axis=1), 1, atol=1e-6)
        assert (embedder.encode(texts[3]) == all_of_them[3]).all()
        lazy = embedder.encode((t for t in texts), batch_size=7)
        assert iter(lazy) is lazy
        assert (np.stack(list(lazy)) == all_of_them).all()
        assert embedder.encode([]).shape[0] == 0
        prompted = embedder.encode(texts[3], prompt_name="query")
        assert (prompted == embedder.encode(f"a7 a8 {texts[3]}")).all()
        assert (embedder.encode(texts[3].upper()) == all_of_them[3]).all()
        assert embedder.encode(texts[:2], truncate_dim=4).shape == (2, 4)
        assert embedder.encode(texts[:2], precision="binary").shape == (2, 2)
        assert embedder.encode(texts[:2], precision="int8").dtype == np.int8
        assert np.allclose(np.diag(embedder.similarity(all_of_them, all_of_them)), 1, atol=1e-5)
        assert not caplog.records
        assert (embedder.encode([words(9, 50)]) == embedder.encode([words(9, 50)[: len(words(9, 20))]])).all()
        assert "1 of 1 texts were cut to 20 tokens" in caplog.text
        with pytest.raises(UsageError, match="more than 20 tokens"):
            embedder.encode([words(9, 50)], too_long="error")


def test_calls_overlap(model: Path, tmp_path: Path, device: gpu.Device) -> None:
    """100 calls from threads on two models have the results of lone ones, bit for bit, while a third model comes and
    goes."""
    texts = [words(i, 1 + i % 20) for i in range(100)]
    with Embedder(model, device=device) as one, Embedder(write(tmp_path / "b", "roberta"), device=device) as two:
        expected = [(one if i % 2 else two).encode(t) for i, t in enumerate(texts)]
        got: dict[int, np.ndarray] = {}

        def call(i: int) -> None:
            got[i] = (one if i % 2 else two).encode([texts[i]])[0]

        threads = [threading.Thread(target=call, args=(i,)) for i in range(100)]
        for thread in threads:
            thread.start()
        Embedder(write(tmp_path / "c", "distilbert"), device=device).close()
        for thread in threads:
            thread.join()
        assert all((got[i] == expected[i]).all() for i in range(100))
    with pytest.raises(DeviceLostError):
        one.encode("a1")


def test_wrong_items(model: Path, device: gpu.Device, caplog: pytest.LogCaptureFixture) -> None:
    with Embedder(model, device=device) as embedder:
        with pytest.raises(UsageError, match="Item 1 is None, not text"):
            embedder.encode(["a1", None, "a2"])
        found = embedder.encode(["a1", None, "a2"], errors="skip")
        assert np.isnan(found[1]).all()
        assert (found[[0, 2]] == embedder.encode(["a1", "a2"])).all()
        assert "1 of 3 items are not text" in caplog.text
        for bad in ({"precision": "uint3"}, {"batch_size": 0}, {"truncate_dim": 0}, {"prompt_name": "none"}):
            with pytest.raises(UsageError):
                embedder.encode("a1", **bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"num_attention_heads": 16}, "heads have 3 elements"),
        ({"num_hidden_layers": 4}, "has no tensor encoder.layer.3"),
        ({"num_hidden_layers": 2}, "does not account for"),
        ({"max_position_embeddings": 141}, "has the shape"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"type_vocab_size": -1}, "type_vocab_size is -1"),
        ({"model_type": "electra", "embedding_size": 24}, "embedding_size to 24"),
        ({"model_type": "electra"}, "embedding_size to 128"),
        ({"model_type": "mpnet", "relative_attention_num_buckets": 16}, "relative_attention_num_buckets to 16"),
        ({"model_type": "modernbert"}, "has local attention, rotary embeddings"),
        ({"model_type": "nomic_bert"}, "has rotary embeddings and gated MLPs"),
        ({"model_type": "new"}, "has rotary embeddings and gated MLPs"),
    ],
)
def test_refused(changes: dict[str, Any], message: str, tmp_path: Path, device: gpu.Device) -> None:
    write(tmp_path, "bert", **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        Embedder(tmp_path, device=device)


@pytest.mark.parametrize(("name", "labels"), random_encoders.CLASSIFIERS.items())
def test_cross_encoders(name: str, labels: int, device: gpu.Device, tmp_path: Path) -> None:
    """Scores of transformers; documents in their order."""
    seed = list(random_encoders.CLASSIFIERS).index(name) + 1
    raw = random_encoders.CONFIGS[name]
    random_encoders.write_model(tmp_path, raw, random_encoders.classifier(raw, labels, seed))
    with CrossEncoder(tmp_path, device=device) as encoder:
        assert encoder.num_labels == labels
        texts = [" ".join(f"a{i}" for i in ids) for ids, _ in random_encoders.texts(raw, seed)]
        pairs = [(text.rpartition(" ")[0], text.rpartition(" ")[2]) for text in texts]
        scores = encoder.predict(pairs, activation="identity")
        expected = GOLDENS[f"{name}.scores"]
        assert np.abs(scores.reshape(expected.shape) - expected).max() <= BAR * max(1, np.abs(expected).max())
        assert (encoder.predict(pairs[2], activation="identity") == scores[2]).all()
        if labels > 1:
            assert np.allclose(encoder.predict(pairs, activation="softmax").sum(axis=1), 1)
            with pytest.raises(UsageError, match="labels"):
                encoder.rank("a1", ["a2"])
        else:
            ranked = encoder.rank("a1 a2", texts, top_k=3, return_documents=True)
            assert [r["score"] for r in ranked] == sorted((r["score"] for r in ranked), reverse=True)
            assert ranked[0]["text"] == texts[ranked[0]["corpus_id"]]
            assert 0 < ranked[-1]["score"] < 1
        for bad in (["a"], [("a", None)], ["a1 a2", "b", "c"], "text"):
            with pytest.raises(UsageError):
                encoder.predict(bad)


def test_an_encoder_without_a_classifier_does_not_rank(device: gpu.Device, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="classifier"):
        CrossEncoder(write(tmp_path, "roberta"), device=device)


def test_an_encoder_does_not_generate(device: gpu.Device, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'bert' is not supported") as found:
        LLM(write(tmp_path, "bert"), device=device)
    assert "Embedder" in str(found.value.why)


def test_pipelines_refused(model: Path, device: gpu.Device) -> None:
    (model / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "median"}))
    with pytest.raises(UnsupportedModelError, match="pooling"):
        Embedder(model, device=device)
    (model / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.LSTM", "path": ""}]))
    with pytest.raises(UnsupportedModelError, match="LSTM"):
        Embedder(model, device=device)
