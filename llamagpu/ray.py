"""Generation, embedding and ranking on a Ray cluster (extra ``ray``): actor classes for ``Dataset.map_batches``.

    dataset.map_batches(
        llamagpu.ray.Generator,
        fn_constructor_kwargs={"model": "owner/name", "max_tokens": 100},
        compute=ray.data.ActorPoolStrategy(size=4),
        batch_size=256,
        batch_format="pyarrow",
    )

Every worker loads the model once. Ray runs the blocks of a worker that died again on another one. Results depend on the
row, the settings and the model, so that such a block gives the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from llamagpu.errors import UsageError
from llamagpu.jobs import Embedding, Generation, Ranking
from llamagpu.jobs.parquet import import_pyarrow
from llamagpu.jobs.readers import JSON_LINES
from llamagpu.jobs.worker import Worker

if TYPE_CHECKING:
    from llamagpu.engine.params import GenerateOptions


class Generator(Worker):
    """Continues the prompts of batches of rows, or answers their messages; see ``Worker``.

    Its columns are ``generated_text``, ``finish_reason``, ``prompt_tokens``, ``completion_tokens`` and ``seed``.
    Columns named after settings are a row's own, as in ``llamagpu.jobs.Generation``. The seed of a row that has none
    follows from the job's seed and the row's content.

    Args:
        model, device, dtype, kv_dtype, context, revision, chat_template: those of ``LLM``.
        column: holds the prompt or the messages; by default ``prompt``, or else ``messages``.
        errors: see ``Worker``.
        settings: those of ``GenerateOptions``, but ``logprobs``; ``seed`` is 0 by default.

    Raises:
        UsageError: a setting is out of its range, or pyarrow is not installed.
        LlamaGPUError: the model cannot be loaded; see ``LLM``.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        column: str | None = None,
        errors: str = "stop",
        device: str | int = "auto",
        dtype: str = "auto",
        kv_dtype: str = "auto",
        context: int | None = None,
        revision: str | None = None,
        chat_template: str | None = None,
        **settings: Unpack[GenerateOptions],
    ):
        from llamagpu.engine import LLM

        load: dict[str, Any] = {"dtype": dtype, "kv_dtype": kv_dtype, "context": context, "revision": revision}
        super().__init__(
            errors,
            lambda: LLM(model, device=device, chat_template=chat_template, **load),
            lambda llm: Generation(llm, column, **settings),
        )


class Embedder(Worker):
    """Gives the texts of batches of rows their vectors, in the column ``embedding``; see ``Worker``.

    Args:
        model, device, dtype, revision, max_seq_length: those of ``llamagpu.Embedder``.
        column: holds the text.
        errors: see ``Worker``.
        settings: those of ``llamagpu.jobs.Embedding``.

    Raises:
        UsageError: a setting is out of its range, or pyarrow is not installed.
        LlamaGPUError: the model cannot be loaded; see ``llamagpu.Embedder``.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        column: str = "text",
        errors: str = "stop",
        device: str | int = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        max_seq_length: int | None = None,
        **settings: Any,
    ):
        from llamagpu.engine import Embedder

        load: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
        super().__init__(
            errors,
            lambda: Embedder(model, max_seq_length=max_seq_length, **load),
            lambda embedder: Embedding(embedder, column, **settings),
        )


class Ranker(Worker):
    """Scores the documents of batches of rows for a query, or for each row's own, in the column ``score``; see
    ``Worker``.

    Args:
        model, device, dtype, revision, max_length: those of ``llamagpu.CrossEncoder``.
        query: the query of all rows; without it each row has its own, in the column ``query``.
        column: holds the document.
        errors: see ``Worker``.
        settings: those of ``llamagpu.jobs.Ranking``.

    Raises:
        UsageError: a setting is out of its range, or pyarrow is not installed.
        LlamaGPUError: the model cannot be loaded; see ``llamagpu.CrossEncoder``.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        query: str | None = None,
        column: str = "document",
        errors: str = "stop",
        device: str | int = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        max_length: int | None = None,
        **settings: Any,
    ):
        from llamagpu.engine import CrossEncoder

        load: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
        super().__init__(
            errors,
            lambda: CrossEncoder(model, max_length=max_length, **load),
            lambda encoder: Ranking(encoder, query, column, **settings),
        )


def generate(input: str | Path, output: str | Path, *, model: str | Path | None = None, **options: Any) -> None:
    """Generate over JSON Lines or Parquet on a Ray cluster; see ``process`` and ``Generator`` for the options."""
    process(Generator, input, output, model=model, **options)


def embed(input: str | Path, output: str | Path, *, model: str | Path, **options: Any) -> None:
    """Embed the texts of JSON Lines or Parquet on a Ray cluster; see ``process`` and ``Embedder`` for the options."""
    process(Embedder, input, output, model=model, **{"batch_size": 1024} | options)


def rank(input: str | Path, output: str | Path, *, model: str | Path, **options: Any) -> None:
    """Score the documents of JSON Lines or Parquet on a Ray cluster; see ``process`` and ``Ranker`` for the options."""
    process(Ranker, input, output, model=model, **{"batch_size": 1024} | options)


def process(
    worker: type[Worker],
    input: str | Path,
    output: str | Path,
    *,
    concurrency: int = 2,
    batch_size: int = 256,
    resources: Mapping[str, float] | None = None,
    **options: Any,
) -> None:
    """Run workers over JSON Lines or Parquet on a Ray cluster, into a new directory of files of the same format.

    The files hold the input's columns and the results. Their order is not that of the input.

    Args:
        input, output: paths or URIs; the input ends with ``.jsonl`` or ``.parquet``, the output is a directory.
        concurrency: workers, each with a model of its own. The cluster needs another CPU to read and write files.
        batch_size: rows that a worker gets at once.
        resources: of a worker, as ``map_batches`` takes them, such as ``{"num_gpus": 1}``.
        options: the arguments of the worker.

    Raises:
        UsageError: Ray is not installed, the format is not known, or the output exists.
    """
    ray = _import_ray()
    source, target = str(input), str(output)
    suffix = Path(source).suffix.lower()
    if suffix not in (*JSON_LINES, ".parquet"):
        raise UsageError(f"The format of {source} is not known.", "Its name must end with .jsonl or .parquet.")
    _require_new(target)
    parquet = suffix == ".parquet"
    results = (ray.data.read_parquet(source) if parquet else ray.data.read_json(source, lines=True)).map_batches(
        worker,
        fn_constructor_kwargs=options,
        compute=ray.data.ActorPoolStrategy(size=concurrency),
        batch_size=batch_size,
        batch_format="pyarrow",
        **(resources or {}),
    )
    (results.write_parquet if parquet else results.write_json)(target)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError(
            "Jobs on a cluster need Ray.", "It is not installed.", 'Install it: pip install "llamagpu[ray]"'
        ) from None
    return ray


def _require_new(output: str) -> None:
    """Refuse an output that exists: Ray would add files to it, and rows would occur twice."""
    import_pyarrow()
    from pyarrow import fs

    uri = output if "://" in output else Path(output).absolute().as_uri()
    filesystem, path = fs.FileSystem.from_uri(uri)
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        raise UsageError(
            f"The output {output} exists already.", "Its rows would occur twice.", "Remove it, or give another one."
        )
