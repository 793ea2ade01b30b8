"""Jobs on Ray: the actor class as Ray calls it, and a cluster of two workers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_encoders

import llamagpu.ray
from llamagpu import LLM, CrossEncoder, Embedder
from llamagpu.errors import UsageError
from llamagpu.jobs.generation import row_seed

pyarrow = pytest.importorskip("pyarrow")
PROMPTS = ["Once upon a time", "The sun", "Tom and his dog", "One day a cat"]


@pytest.fixture(scope="module")
def generator() -> Iterator[llamagpu.ray.Generator]:
    made = llamagpu.ray.Generator(context=64, max_tokens=6, errors="skip")
    yield made
    made._model.close()


def test_a_batch_keeps_its_columns_and_gets_the_results(generator: llamagpu.ray.Generator, story: LLM) -> None:
    batch = {"id": np.arange(4), "prompt": np.array(PROMPTS, dtype=object)}
    rows = generator(batch).to_pylist()
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert [row["generated_text"] for row in rows] == [story.generate(p, max_tokens=6).text for p in PROMPTS]
    assert {row["error"] for row in rows} == {None}
    assert generator(pyarrow.table({"id": range(4), "prompt": PROMPTS})).to_pylist() == rows


def test_settings_of_rows(generator: llamagpu.ray.Generator, story: LLM) -> None:
    """Whole numbers may be floats with NaN, as pandas writes them; the order and company of rows change nothing."""
    batch = {
        "prompt": np.array(PROMPTS[:3], dtype=object),
        "max_tokens": np.array([3.0, np.nan, 4.0]),
        "temperature": np.array([0.0, 0.8, 0.9]),
        "seed": np.array([np.nan, np.nan, 7.0]),
    }
    rows = generator(batch).to_pylist()
    assert [row["completion_tokens"] for row in rows] == [3, 6, 4]
    assert rows[1]["seed"] == row_seed(0, json.dumps({"prompt": "The sun", "temperature": 0.8}))
    assert rows[2]["generated_text"] == story.generate(PROMPTS[2], max_tokens=4, temperature=0.9, seed=7).text
    turned = generator({name: values[::-1] for name, values in batch.items()}).to_pylist()
    assert turned == rows[::-1]


def test_bad_rows_and_batches(generator: llamagpu.ray.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"prompt": np.array(["The sun", "", None], dtype=object)}
    texts, errors = zip(*((r["generated_text"], r["error"]) for r in generator(batch).to_pylist()), strict=True)
    assert [bool(t) for t in texts] == [True, False, False]
    assert "empty" in errors[1]
    assert "null" in errors[2]
    monkeypatch.setattr(generator, "_errors", "stop")
    with pytest.raises(UsageError, match="Row 2 of a batch: The prompt is empty"):
        generator(batch)
    with pytest.raises(UsageError, match="A batch is a list"):
        generator(["The sun"])
    with pytest.raises(UsageError, match="errors is 'ignore'"):
        llamagpu.ray.Generator(errors="ignore")


def test_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match="need Ray"):
        llamagpu.ray.generate(tmp_path / "in.jsonl", tmp_path / "out")


# --- a cluster ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def rows_of(count: int) -> list[dict[str, Any]]:
    prompts = (f"{PROMPTS[i % 4]} {i}" for i in range(count))
    return [{"id": i, "prompt": prompt, "temperature": 0.8 * (i % 2)} for i, prompt in enumerate(prompts)]


def write_rows(path: Path, count: int) -> list[dict[str, Any]]:
    rows = rows_of(count)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def by_id(rows: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return sorted((row["id"], row["generated_text"]) for row in rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_killed_worker_loses_and_repeats_nothing(
    cluster: Any, generator: llamagpu.ray.Generator, tmp_path: Path
) -> None:
    class Watched(llamagpu.ray.Generator):
        """Notes its process and every batch."""

        def __call__(self, batch: Any) -> Any:
            with (tmp_path / f"{os.getpid()}.batches").open("a") as file:
                file.write("x")
            return super().__call__(batch)

    def kill_one() -> None:
        while True:
            seen = {int(p.stem): p.stat().st_size for p in tmp_path.glob("*.batches")}
            if len(seen) == 2 and min(seen.values()) >= 2:
                killed.append(min(seen))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    killed: list[int] = []
    rows = rows_of(240)
    dataset = cluster.data.from_items(rows, override_num_blocks=24).map_batches(
        Watched,
        fn_constructor_kwargs={"context": 64, "max_tokens": 6},
        compute=cluster.data.ActorPoolStrategy(size=2),
        batch_size=5,
        batch_format="pyarrow",
    )
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    dataset.write_parquet(str(tmp_path / "out"))
    killer.join(1)
    assert killed
    pids = {int(p.stem) for p in tmp_path.glob("*.batches")}
    assert len(pids) >= 3  # two workers, and one in place of the killed one
    got = [row for part in (tmp_path / "out").glob("*.parquet") for row in pyarrow.parquet.read_table(part).to_pylist()]
    alone = generator(pyarrow.Table.from_pylist(rows)).to_pylist()
    assert by_id(got) == by_id(alone)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_files_in_and_out(cluster: Any, generator: llamagpu.ray.Generator, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 20)
    options: dict[str, Any] = {"concurrency": 1, "batch_size": 8, "context": 64, "max_tokens": 6}
    llamagpu.ray.generate(tmp_path / "in.jsonl", tmp_path / "out", **options)
    got = [json.loads(line) for p in (tmp_path / "out").glob("*.json") for line in p.read_text().splitlines()]
    assert by_id(got) == by_id(generator(pyarrow.Table.from_pylist(rows)).to_pylist())
    with pytest.raises(UsageError, match="exists already"):
        llamagpu.ray.generate(tmp_path / "in.jsonl", tmp_path / "out", **options)
    with pytest.raises(UsageError, match="format"):
        llamagpu.ray.generate(tmp_path / "in.csv", tmp_path / "new")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_embedding_and_ranking(cluster: Any, tmp_path: Path) -> None:
    raw = random_encoders.CONFIGS["bert"]
    model = random_encoders.write_model(tmp_path / "model", raw, random_encoders.classifier(raw, 1, 1), special=True)
    rows = [{"id": i, "text": f"a{i + 3} a7", "document": f"a{i + 3}"} for i in range(40)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    options: dict[str, Any] = {"model": model, "concurrency": 1, "batch_size": 10}

    def results(name: str) -> list[dict[str, Any]]:
        got = [row for p in (tmp_path / name).glob("*.parquet") for row in pyarrow.parquet.read_table(p).to_pylist()]
        assert {row["error"] for row in got} == {None}
        return sorted(got, key=lambda row: row["id"])

    encoder = random_encoders.write_model(tmp_path / "encoder", raw, random_encoders.tensors(raw, 1), special=True)
    llamagpu.ray.embed(tmp_path / "in.parquet", tmp_path / "vectors", **options | {"model": encoder}, normalize=True)
    with Embedder(encoder) as embedder:
        expected = embedder.encode([row["text"] for row in rows], normalize_embeddings=True)
    assert (np.float32([row["embedding"] for row in results("vectors")]) == expected).all()
    llamagpu.ray.rank(tmp_path / "in.parquet", tmp_path / "scores", **options, query="a9")
    with CrossEncoder(model) as ranker:
        scores = ranker.predict([("a9", row["document"]) for row in rows])
    assert (np.float32([row["score"] for row in results("scores")]) == scores).all()
