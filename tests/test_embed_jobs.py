"""Embedding and ranking over data sets: outputs, resuming, bad rows, the commands, and workers."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_encoders

import llamagpu.ray
from llamagpu import CrossEncoder, Embedder, gpu, jobs
from llamagpu.cli.main import run as run_here
from llamagpu.errors import DeviceLostError, UsageError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ROOT = Path(__file__).resolve().parent.parent
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
RAW = random_encoders.config("bert", **SIZES)
TEXTS = [" ".join(f"a{3 + (7 * i + 13 * k) % 200}" for k in range(i % 6)) for i in range(11)]  # some are empty


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "bert"
    made = random_encoders.write_model(directory, RAW, random_encoders.tensors(RAW, 1), special=True)
    prompts = {"prompts": {"query": "a7 a8 "}}
    (made / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return made


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "cross"
    return random_encoders.write_model(directory, RAW, random_encoders.classifier(RAW, 1, 1), special=True)


@pytest.fixture(scope="module")
def embedder(model: Path, device: gpu.Device) -> Iterator[Embedder]:
    with Embedder(model, device=device) as made:
        yield made


@pytest.fixture(scope="module")
def encoder(ranker: Path, device: gpu.Device) -> Iterator[CrossEncoder]:
    with CrossEncoder(ranker, device=device) as made:
        yield made


def write(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def vectors(path: Path) -> np.ndarray:
    """The vectors of an output of any format, NaN for rows without one."""
    if path.suffix == ".npy":
        return np.load(path)
    rows = [row.get("embedding") for row in read(path)]
    length = next(len(row) for row in rows if row)
    return np.array([row or [np.nan] * length for row in rows], np.float32)


# --- the jobs -------------------------------------------------------------------------------


def test_formats_hold_the_same_vectors(embedder: Embedder, tmp_path: Path) -> None:
    expected = embedder.encode(TEXTS, normalize_embeddings=True)
    source = write(tmp_path / "in.jsonl", [{"text": t, "id": i} for i, t in enumerate(TEXTS)])
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "in.parquet")
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    for name, given in (("a.npy", source), ("b.jsonl", tmp_path / "in.parquet"), ("c.parquet", tmp_path / "in.txt")):
        job = jobs.Embedding(embedder, batch_size=4, normalize=True)
        assert jobs.run(job, given, tmp_path / name) == jobs.Summary(len(TEXTS), 0, 0)
        assert (vectors(tmp_path / name) == expected).all()
    assert [row["row"] for row in read(tmp_path / "c.parquet")] == list(range(1, len(TEXTS) + 1))
    schema = parquet.read_schema(tmp_path / "c.parquet")
    assert schema.field("embedding").type.value_type == pyarrow.float32()
    assert not list(tmp_path.glob("*.partial"))


def test_settings_reach_the_encoder(embedder: Embedder, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"body": t} for t in TEXTS[1:5]])
    for settings, same in (
        ({"truncate_dim": 4}, {"truncate_dim": 4}),
        ({"prompt_name": "query", "precision": "int8"}, {"prompt_name": "query", "precision": "int8"}),
        ({"prompt": "a9 ", "precision": "binary"}, {"prompt": "a9 ", "precision": "binary"}),
    ):
        job = jobs.Embedding(embedder, "body", **settings)
        jobs.run(job, tmp_path / "in.jsonl", tmp_path / "out.npy", overwrite=True)
        expected = embedder.encode(TEXTS[1:5], **same)
        got = np.load(tmp_path / "out.npy")
        assert got.dtype == expected.dtype
        assert (got == expected).all()
    for bad in ({"precision": "int3"}, {"prompt_name": "no"}, {"too_long": "keep"}, {"batch_size": 0}):
        with pytest.raises(UsageError):
            jobs.Embedding(embedder, **bad)


BAD: list[tuple[Any, str]] = [
    ({"text": None}, "The column text is null"),
    ({"text": 5}, "The column text is 5"),
    ({"text": ["a3"]}, "must be text"),
    ({"txt": "a3"}, "no column text. The columns are: txt"),
    ({"text": "\ud800"}, "half of a Unicode character"),
    ({"text": "a3 " * 200}, "more than 140 tokens"),
    ([1], "not a JSON object"),
]


def test_bad_rows(embedder: Embedder, tmp_path: Path) -> None:
    """Texts between them keep their vectors, in every format."""
    rows = [part for i, (row, _) in enumerate(BAD) for part in ({"text": TEXTS[i]}, row)]
    source = write(tmp_path / "in.jsonl", rows)
    expected = embedder.encode(TEXTS[: len(BAD)])
    for name in ("out.npy", "out.jsonl", "out.parquet"):
        job = jobs.Embedding(embedder, batch_size=5, too_long="error")
        with pytest.raises(UsageError, match=r"(?s)Row 2 of in.jsonl: The column text is null.*--errors skip"):
            jobs.run(job, source, tmp_path / name)
        done = jobs.run(job, source, tmp_path / name, errors="skip")
        assert done == jobs.Summary(len(rows), len(BAD), 1)
        got = vectors(tmp_path / name)
        assert (got[::2] == expected).all()
        assert np.isnan(got[1::2]).all()
    errors = read(tmp_path / "out.npy.errors.jsonl")
    assert [row["row"] for row in errors] == list(range(2, len(rows) + 1, 2))
    for row, (_, message) in zip(errors, BAD, strict=True):
        assert message in row["error"]
    jobs.run(jobs.Embedding(embedder), write(source, [{"text": "a3"}]), tmp_path / "out.npy", overwrite=True)
    assert not (tmp_path / "out.npy.errors.jsonl").exists()


def test_cut_texts_give_one_warning(embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "in.jsonl", [{"text": "x" * 2**20}, *[{"text": "a3 " * 200}] * 5])
    jobs.run(jobs.Embedding(embedder, batch_size=2), tmp_path / "in.jsonl", tmp_path / "out.npy")
    assert sum("were cut" in record.message for record in caplog.records) == 1
    assert (np.load(tmp_path / "out.npy") == embedder.encode(["x" * 2**20, *["a3 " * 200] * 5])).all()
    assert not logging.getLogger("llamagpu").filters


def test_other_settings_and_models_are_refused(
    embedder: Embedder, model: Path, tmp_path: Path, device: gpu.Device
) -> None:
    source, output = write(tmp_path / "in.jsonl", [{"text": t} for t in TEXTS]), tmp_path / "out.npy"
    jobs.run(jobs.Embedding(embedder), source, output)
    assert jobs.run(jobs.Embedding(embedder, batch_size=3), source, output).resumed == len(TEXTS)
    with pytest.raises(UsageError, match="settings normalize_embeddings was False, is True"):
        jobs.run(jobs.Embedding(embedder, normalize=True), source, output)
    with (
        Embedder(model, device=device, dtype="float16") as other,
        pytest.raises(UsageError, match="model dtype was 'auto', is 'float16'"),
    ):
        jobs.run(jobs.Embedding(other), source, output)
    weights = random_encoders.tensors(RAW, 2)
    random_encoders.write_model(tmp_path / "other", RAW, weights, special=True)
    with Embedder(tmp_path / "other", device=device) as other:
        job = jobs.Embedding(other)
        with pytest.raises(UsageError, match="the content of the model"):
            jobs.run(job, source, output)
    with pytest.raises(DeviceLostError):
        jobs.run(job, source, output, errors="skip", overwrite=True)
    count = jobs.Batches(lambda rows: [{}] * len(rows), name="n", inputs=("text",), columns={"length": "int64"})
    with pytest.raises(UsageError, match=r"format of out.npy is not known(?s:.*).jsonl or .parquet"):
        jobs.run(count, source, output)


@pytest.mark.parametrize("name", ["out.npy", pytest.param("out.parquet", marks=pytest.mark.slow)])
def test_a_journal_of_vectors_cut_at_every_byte(name: str, tmp_path: Path) -> None:
    """As a kill tears it; rows with and without an error."""

    def values(rows: list[dict[str, Any]]) -> list[jobs.Outcome]:
        return [
            UsageError("bad") if row["text"] == "a" else {"v": np.array([len(row["text"])], np.float32)} for row in rows
        ]

    job = jobs.Batches(values, name="v", inputs=("text",), columns={"v": "float32[1]"})
    (tmp_path / "in.txt").write_text("abcdefghij\na\n\nabcd\n")
    output, journal, state = tmp_path / name, tmp_path / f"{name}.partial", tmp_path / f"{name}.job"
    jobs.run(job, tmp_path / "in.txt", output, errors="skip")
    whole, identity = output.read_bytes(), json.loads(state.read_text())["identity"]
    lines = [b'{"row": 1}\n', b'{"row": 2, "error": "bad"}\n', b'{"row": 3}\n', b'{"row": 4}\n']
    tails = [np.array([n], np.float32).tobytes() if n is not None else b"" for n in (10, None, 0, 4)]
    parts = [line + tail for line, tail in zip(lines, tails, strict=True)]
    ends = np.cumsum([len(part) for part in parts])
    for end in range(ends[-1] + 1):
        output.unlink()
        journal.write_bytes(b"".join(parts)[:end])
        state.write_text(json.dumps({"identity": identity}))
        done = jobs.run(job, tmp_path / "in.txt", output, errors="skip")
        assert done == jobs.Summary(4, 1, int((ends <= end).sum()))
        assert output.read_bytes() == whole
    journal.write_bytes(parts[0] + b"x" + b"".join(parts[1:]))
    state.write_text(json.dumps({"identity": identity}))
    with pytest.raises(UsageError, match="Something else has changed"):
        jobs.run(job, tmp_path / "in.txt", output, errors="skip")


def test_batches_in_threads_keep_the_order() -> None:
    """Later batches end earlier; a bad row is tried alone; closing does not wait for batches that have not begun."""

    def slow(rows: list[dict[str, Any]]) -> list[jobs.Outcome]:
        time.sleep(0.02 * (3 - rows[0]["i"] % 4))
        if len(rows) > 1 and any(row["i"] == 5 for row in rows):
            raise UsageError("bad")
        return [{"i": row["i"]} for row in rows]

    job = jobs.Batches(slow, name="slow", inputs=("i",), columns={"i": "int64"}, size=2, ahead=4)
    rows = [jobs.Row(i + 1, {"i": i}, str(i)) for i in range(20)]
    assert [o["i"] for o in job.run(rows) if isinstance(o, dict)] == list(range(20))
    begun = job.run(iter(rows))
    assert next(begun) == {"i": 0}
    begun.close()


def test_ranking(encoder: CrossEncoder, tmp_path: Path, ranker: Path, device: gpu.Device) -> None:
    query, documents = "a7 a9", TEXTS[1:9]
    expected = encoder.predict([(query, d) for d in documents])
    source = write(tmp_path / "in.jsonl", [{"document": d, "query": "a3"} for d in documents])
    jobs.run(jobs.Ranking(encoder, query, batch_size=3), source, tmp_path / "out.parquet")
    assert (np.float32([row["score"] for row in read(tmp_path / "out.parquet")]) == expected).all()
    rows = [{"document": d, "query": query} for d in documents] + [{"document": "a3"}, {"document": None, "query": "a"}]
    write(source, rows)
    assert jobs.run(jobs.Ranking(encoder), source, tmp_path / "own.jsonl", errors="skip").errors == 2
    own = read(tmp_path / "own.jsonl")
    assert (np.float32([row["score"] for row in own[:-2]]) == expected).all()
    assert ["no column query" in own[-2]["error"], "document is null" in own[-1]["error"]] == [True, True]
    with pytest.raises(UsageError, match="query was None, is 'a7 a9'"):
        jobs.run(jobs.Ranking(encoder, query), source, tmp_path / "own.jsonl")
    with pytest.raises(UsageError, match="must be text"):
        jobs.Ranking(encoder, 5)  # type: ignore[arg-type]
    raw = RAW | {"model_type": "distilbert", "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}
    raw |= {"activation": "gelu"}
    weights = random_encoders.classifier(raw, 2, 1)
    random_encoders.write_model(tmp_path / "labels", raw, weights, special=True)
    with CrossEncoder(tmp_path / "labels", device=device) as several, pytest.raises(UsageError, match="2 labels"):
        jobs.Ranking(several)


# --- workers --------------------------------------------------------------------------------


def test_workers_of_a_cluster(model: Path, ranker: Path, embedder: Embedder, encoder: CrossEncoder) -> None:
    batch = {"id": np.arange(4), "text": np.array([*TEXTS[1:4], None], dtype=object)}
    worker = llamagpu.ray.Embedder(model, errors="skip", truncate_dim=4)
    rows = worker(batch).to_pylist()
    worker._model.close()
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert (np.float32([row["embedding"] for row in rows[:3]]) == embedder.encode(TEXTS[1:4], truncate_dim=4)).all()
    assert (rows[3]["embedding"], rows[3]["error"]) == (None, "The column text is null. It needs a value.")
    ranks = llamagpu.ray.Ranker(ranker, query="a7")
    scores = ranks(pyarrow.table({"document": TEXTS[1:4]})).to_pylist()
    assert (np.float32([row["score"] for row in scores]) == encoder.predict([("a7", t) for t in TEXTS[1:4]])).all()
    with pytest.raises(UsageError, match="Row 2 of a batch: The column document is null"):
        ranks({"document": np.array(["a3", None], dtype=object)})
    ranks._model.close()


# --- the commands ---------------------------------------------------------------------------


def test_embed_prints_lines(
    model: Path, embedder: Embedder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_here(["embed", "-m", str(model), "--normalize", *TEXTS[1:3]]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = embedder.encode(TEXTS[1:3], normalize_embeddings=True)
    assert (np.float32([row["embedding"] for row in rows]) == expected).all()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS[1:3]).encode())))
    assert run_here(["embed", "-m", str(model), "--normalize", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["columns"] == {"embedding": "float32[16]", "cut_tokens": "int64"}
    assert [row["text"] for row in found["results"]] == TEXTS[1:3]
    assert (np.float32([row["embedding"] for row in found["results"]]) == expected).all()


@pytest.mark.slow
def test_rank_prints_the_best_first(
    ranker: Path, encoder: CrossEncoder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    documents = TEXTS[1:6]
    best = encoder.rank("a7 a9", documents, top_k=3)
    assert run_here(["rank", "-m", str(ranker), "-k", "3", "a7 a9", *documents]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [[str(i), f"{b['score']:.6f}", documents[b["corpus_id"]]] for i, b in enumerate(best, start=1)]
    source = write(tmp_path / "in.jsonl", [*({"document": d} for d in documents), {"document": 1}])
    assert run_here(["rank", "-m", str(ranker), "a7 a9", "--input", str(source), "--json", "--errors", "skip"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["documents"]
    assert [d["row"] - 1 for d in found] == [b["corpus_id"] for b in encoder.rank("a7 a9", documents)]
    assert "1 rows have no score" in err
    output = ["--input", str(source), "--output", str(tmp_path / "out.jsonl"), "--errors", "skip"]
    assert run_here(["rank", "-m", str(ranker), "a7 a9", *output]) == 0
    assert (
        np.float32([r["score"] for r in read(tmp_path / "out.jsonl")[:-1]])
        == encoder.predict([("a7 a9", d) for d in documents])
    ).all()


@pytest.mark.slow
def test_usage_and_exit_codes(
    model: Path, ranker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    source = str(write(tmp_path / "in.jsonl", [{"text": "a3", "document": 7}]))
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "in.parquet")
    for code, message, wrong in (
        (2, "Missing option '-m'", ["embed", "a3"]),
        (2, "No text", ["embed", "-m", str(model)]),
        (2, "No query", ["rank", "-m", str(ranker)]),
        (2, "No document", ["rank", "-m", str(ranker), "a3"]),
        (2, "exclude", ["embed", "-m", str(model), "a3", "--input", source]),
        (2, "exclude", ["rank", "-m", str(ranker), "a3", "a4", "--input", source]),
        (2, "--json", ["embed", "-m", str(model), "--json", "--input", source]),
        (2, "--top-k", ["rank", "-m", str(ranker), "-k", "2", "--input", source]),
        (2, "format of out.npy", ["rank", "-m", str(ranker), "a", "--input", source, "--output", "out.npy"]),
        (2, "format of out.npy", ["generate", "--input", source, "--output", "out.npy"]),
        (2, "no column text", ["embed", "-m", str(model), "--input", str(tmp_path / "in.parquet")]),
        (2, "column document is 7", ["rank", "-m", str(ranker), "a", "--input", source]),
        (1, "", ["rank", "-m", str(ranker), "a", "--input", source, "--errors", "skip", "--output", "-"]),
        (2, "no prompt 'x'", ["embed", "-m", str(model), "--prompt-name", "x", "a3"]),
        (3, "", ["embed", "-m", str(tmp_path / "nowhere"), "a3"]),
        (2, "does not say how it embeds", ["embed", "-m", str(ROOT / "weights" / "stories"), "a3"]),
        (4, "classifier", ["rank", "-m", str(model), "a3", "a4"]),
        (4, "Embedder", ["generate", "-m", str(model), "a3"]),
    ):
        assert run_here(wrong) == code, wrong
        err = capsys.readouterr().err
        assert message in err
        assert code == 1 or "error: " in err


@pytest.mark.slow
def test_control_c_says_how_to_continue(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"text": TEXTS[i % 11]} for i in range(100_000)])
    output = tmp_path / "out.npy"
    command = [sys.executable, "-m", "llamagpu", "embed", "-m", str(model), "--input", str(source)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.PIPE, env=environment)
    journal = tmp_path / "out.npy.partial"
    while not journal.exists() or not journal.stat().st_size:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Run the same command again to continue.\ninterrupted" in err


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    """The short form of scripts/soak_embeddings.py; the memory is measured only there, over more rows."""
    spec = importlib.util.spec_from_file_location("soak_embeddings", ROOT / "scripts" / "soak_embeddings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, same = module.soak(tmp_path, 10_000)
    assert same
