"""Generation on a Ray cluster (extra ``ray``): an actor class for ``ray.data.Dataset.map_batches``.

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

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.jobs import Generation, Outcome, Row
from llamagpu.jobs.parquet import arrow_type, import_pyarrow
from llamagpu.jobs.readers import JSON_LINES
from llamagpu.jobs.rows import plain
from llamagpu.jobs.runner import check_errors, error_at, error_text

if TYPE_CHECKING:
    from llamagpu.engine.params import GenerateOptions


class Generator:
    """Continues the prompts of batches of rows, or answers their messages: a callable class for ``map_batches``.

    A call takes a batch, a dictionary of numpy arrays or a ``pyarrow.Table``, which keeps types better. It returns a
    Table with the batch's columns and ``generated_text``, ``finish_reason``, ``prompt_tokens``, ``completion_tokens``,
    ``seed`` and ``error``, which replace others of the same name. Columns with the names of settings are a row's own
    settings, as in ``llamagpu.jobs.Generation``. The seed of a row that has none follows from the job's seed and the
    row's content.

    Args:
        model, device, dtype, kv_dtype, context, revision, chat_template: those of ``LLM``.
        column: holds the prompt or the messages; by default ``prompt``, or else ``messages``.
        errors: ``stop`` raises an error at a bad row, which ends the job; ``skip`` writes the reason as the row's
            ``error``.
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

        import_pyarrow()
        check_errors(errors)
        self._errors = errors
        load: dict[str, Any] = {"dtype": dtype, "kv_dtype": kv_dtype, "context": context, "revision": revision}
        self._llm = LLM(model, device=device, chat_template=chat_template, **load)
        self._job = Generation(self._llm, column, **settings)

    def __call__(self, batch: Any) -> Any:
        """The batch with its results, as a ``pyarrow.Table``.

        Raises:
            UsageError: the batch is of another kind, or with ``errors="stop"`` a row is bad.
            DeviceLostError: the device was lost.
        """
        table = _table(batch)
        rows = [Row(number, values, _key(values)) for number, values in enumerate(table.to_pylist(), start=1)]
        outcomes = list(self._job.run(rows))
        if self._errors == "stop":
            for row, outcome in zip(rows, outcomes, strict=True):
                if isinstance(outcome, LlamaGPUError):
                    raise error_at(outcome, row.number, "a batch")
        return _with_results(table, outcomes, {**self._job.columns, "error": "string"})


def generate(
    input: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    concurrency: int = 2,
    batch_size: int = 256,
    resources: Mapping[str, float] | None = None,
    **options: Any,
) -> None:
    """Generate over JSON Lines or Parquet on a Ray cluster, into a new directory of files of the same format.

    The files hold the input's columns and the results. Their order is not that of the input.

    Args:
        input, output: paths or URIs; the input ends with ``.jsonl`` or ``.parquet``, the output is a directory.
        concurrency: workers, each with a model of its own.
        batch_size: rows that a worker gets at once; a batch of the GPU holds 32.
        resources: of a worker, as ``map_batches`` takes them, such as ``{"num_gpus": 1}``.
        options: the other arguments of ``Generator``.

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
        Generator,
        fn_constructor_kwargs={"model": model, **options},
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


def _key(values: Mapping[str, Any]) -> str:
    """A row's content. Null columns are left out: Arrow adds them to the rows of some blocks."""
    return json.dumps({k: v for k, v in values.items() if v is not None}, sort_keys=True, default=str)


def _table(batch: Any) -> Any:
    """A batch as a ``pyarrow.Table``."""
    pyarrow, _ = import_pyarrow()
    if isinstance(batch, pyarrow.Table):
        return batch
    if isinstance(batch, Mapping):
        return pyarrow.table({name: plain(values) for name, values in batch.items()})
    raise UsageError(
        f"A batch is a {type(batch).__name__}.",
        "It must be a dictionary of arrays or a pyarrow.Table.",
        'Give map_batches batch_format="pyarrow".',
    )


def _with_results(table: Any, outcomes: list[Outcome], columns: Mapping[str, str]) -> Any:
    """A table with the columns of the results; they replace columns of the same name."""
    pyarrow, _ = import_pyarrow()
    found = [{"error": error_text(o)} if isinstance(o, LlamaGPUError) else o for o in outcomes]
    for name, kind in columns.items():
        values = pyarrow.array([row.get(name) for row in found], arrow_type(kind))
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    return table
