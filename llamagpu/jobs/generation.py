"""The job that generates text: a prompt or a conversation in, new text out."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from typing import Any, Unpack, cast

from llamagpu.engine import LLM, Stream
from llamagpu.engine.arguments import plain
from llamagpu.engine.params import (
    CHAT_DEFAULTS,
    DEFAULTS,
    GenerateOptions,
    plain_settings,
    row_settings,
    sampling_params,
)
from llamagpu.errors import BusyError, DeviceLostError, LlamaGPUError, UsageError, shown
from llamagpu.jobs.rows import Outcome, Row, value_of

_AHEAD = 256  # rows in progress: a long one keeps the others of a batch of 32 waiting only after so many
_ROW_SETTINGS = tuple(name for name in DEFAULTS if name != "logprobs")
_CHAT_SETTINGS = tuple(CHAT_DEFAULTS)


class Generation:
    """Continues the prompt of every row, or answers its messages. Rows share the engine's batches, and each result is
    the same as alone.

    A row's settings replace the job's: columns with the names of ``GenerateOptions`` (not ``logprobs``), and with
    messages also those of ``ChatOptions``. A row without a seed gets its own from the job's and from the row's key.

    Args:
        llm: the model.
        column: holds the prompt (text, or token ids) or the messages; by default ``prompt``, or else ``messages``.
        settings: those of ``GenerateOptions``, but ``logprobs``; ``seed`` is 0 by default.

    Raises:
        UsageError: a setting is out of its range.
    """

    name = "generate"
    settings = (*_ROW_SETTINGS, *_CHAT_SETTINGS)
    columns: Mapping[str, str] = {
        "generated_text": "string",
        "finish_reason": "string",
        "prompt_tokens": "int64",
        "completion_tokens": "int64",
        "seed": "int64",
    }

    def __init__(self, llm: LLM, column: str | None = None, **settings: Unpack[GenerateOptions]):
        given: dict[str, Any] = {k: v for k, v in settings.items() if v is not None}
        if "logprobs" in given:
            raise UsageError("A job returns no logprobs.", "", "Leave them out.")
        given = plain_settings(given)
        self._seed = given.setdefault("seed", 0)
        sampling_params(llm.config.vocab_size, **given)
        self.inputs: tuple[str, ...] = ("prompt", "messages") if column is None else (column,)
        self._llm, self._given = llm, given

    def identity(self) -> dict[str, Any]:
        """See ``Job.identity``."""
        llm = self._llm
        facts = {"fingerprint": llm.fingerprint, "dtype": llm.dtype, "kv_dtype": llm.sizes.kv_dtype}
        settings = {k: v for k, v in {**DEFAULTS, **self._given}.items() if v is not None}
        return {"model": facts | {"context": llm.context}, "columns": list(self.inputs), "settings": settings}

    def run(self, rows: Iterable[Row]) -> Generator[Outcome]:
        """See ``Job.run``. It reads 256 rows ahead, or as many as the model's queue takes."""
        begun: deque[Stream | LlamaGPUError] = deque()
        most = self._llm.most_requests
        ahead = _AHEAD if most is None else min(_AHEAD, most)
        try:
            for row in rows:
                begun.append(self._begin(row))
                if len(begun) >= ahead:
                    yield _outcome(begun.popleft())
            while begun:
                yield _outcome(begun.popleft())
        finally:
            for stream in begun:
                if isinstance(stream, Stream):
                    stream.close()

    def _begin(self, row: Row) -> Stream | LlamaGPUError:
        """The running generation of a row, or why there is none."""
        if isinstance(row.values, LlamaGPUError):
            return row.values
        try:
            values = {k: plain(v) for k, v in row.values.items() if k in (*self.inputs, *self.settings)}
            present = {k: v for k, v in values.items() if v is not None}
            settings = self._given | row_settings(present, _ROW_SETTINGS)
            if "seed" not in present:
                settings["seed"] = row_seed(self._seed, row.key)
            return self._llm.stream(self._prompt(row.values | values, present), **cast(GenerateOptions, settings))
        except (BusyError, DeviceLostError):
            raise
        except LlamaGPUError as e:
            return e

    def _prompt(self, row: Mapping[str, Any], present: Mapping[str, Any]) -> str | list[int]:
        """The prompt of a row: text, or token ids."""
        if sum(name in present for name in self.inputs) > 1:
            raise UsageError("The row has a prompt and messages.", "Only one of them can be answered.")
        name, value = value_of(self.inputs, row)
        if isinstance(value, str) or (value and isinstance(value, list) and not isinstance(value[0], dict)):
            return cast("str | list[int]", value)
        if not isinstance(value, list) or not value:
            raise UsageError(
                f"The column {name} is {shown(value)}.", "It must be text, a list of token ids, or messages."
            )
        chat = {k: present[k] for k in _CHAT_SETTINGS if k in present}
        return self._llm.apply_chat_template([_without_nulls(m) for m in value], **chat)


def row_seed(seed: int, key: str) -> int:
    """The seed of a row that has none: the same for the same job's seed and key, on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:4], "little")


def _outcome(begun: Stream | LlamaGPUError) -> Outcome:
    """Wait for a row's end."""
    if isinstance(begun, LlamaGPUError):
        return begun
    try:
        result = begun.result
    except DeviceLostError:
        raise
    except LlamaGPUError as e:
        return e
    return {
        "generated_text": result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "seed": result.seed,
    }


def _without_nulls(message: Any) -> Any:
    """A message without the keys that Arrow adds to every row because another row has them."""
    return (
        {k: v for k, v in message.items() if v is not None or k == "content"} if isinstance(message, dict) else message
    )
