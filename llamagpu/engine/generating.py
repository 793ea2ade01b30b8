"""What starts generations: prompts and settings become requests, and requests become streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from llamagpu.engine.adapters import AdaptableModel
from llamagpu.engine.arguments import out_of_range
from llamagpu.engine.batch import Batch, Call
from llamagpu.engine.params import SamplingParams, choice_settings, sampling_params
from llamagpu.engine.prompts import Prompt
from llamagpu.engine.request import Request, Reuse
from llamagpu.engine.stream import Stream
from llamagpu.errors import UsageError
from llamagpu.text.stream import begins_text
from llamagpu.text.tools import ToolUse, tool_use


class Generating(AdaptableModel):
    """A decoder that starts generations; the base of ``LLM``."""

    @property
    def most_requests(self) -> int | None:
        """The most requests that run and wait together; None is any number."""
        return self._places.most

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt as ``generate`` takes it: of a text, with BOS as the tokenizer says, or given ones.

        Raises:
            UsageError: the prompt is empty, or has ids that the model lacks.
            ContextFullError: it is longer than the context.
        """
        self._check_open()
        return self._prompts.ids(prompt)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text in progress, which may be a part of a character."""
        return self._tokenizer.token_bytes(self._prompts.checked([token_id])[0])

    def tool_use(self, tools: Any = None, tool_choice: Any = "auto", parallel_tool_calls: Any = True) -> ToolUse | None:
        """How the answers of a conversation use tools, for ``start``; None if they use none. A grammar that they need
        is compiled.

        Raises:
            UsageError: see ``llamagpu.text.tools.tool_use``; or the model's vocabulary cannot spell a forced call.
        """
        template = self._prompts.template(tools) if tools else None
        use = tool_use(template, self._tokenizer, tools, tool_choice, parallel_tool_calls)
        if use is not None and use.shape is not None:
            self._guides.guide(use.shape)
        return use

    def start(
        self, ids: Sequence[int], settings: Mapping[str, Any], *, reuse: Reuse, tools: ToolUse | None = None
    ) -> Stream:
        """Start a generation with checked ids and the settings of ``generate``; closing the stream cancels it."""
        return self._begun(Call.single(ids, settings), reuse, tools).streams[0]

    def _begun(self, call: Call, reuse: Reuse, tools: ToolUse | None = None) -> Batch:
        wanted: list[tuple[Request, tuple[str, ...]]] = []
        for i, (prompt, settings) in enumerate(call.prompts):
            with call.about(i):
                ids = self.prompt_ids(prompt)
                for j in range(call.n or 1):
                    params = sampling_params(self.config.vocab_size, **choice_settings(settings, j))
                    wanted.append((self._request(ids, reuse, params, tools), params.stop))
        with self._places.room_for(len(wanted)):
            streams = [Stream(self._places, one, self._tokenizer, self.context, stop, tools) for one, stop in wanted]
        return Batch(call, streams)

    def _request(self, ids: list[int], reuse: Reuse, params: SamplingParams, tools: ToolUse | None) -> Request:
        stops = params.stop_token_ids | (frozenset() if params.ignore_eos else frozenset(self.config.eos_token_id))
        limit = min(params.max_tokens, self.context - len(ids) + 1)
        shape, guide = params.shape, None
        if tools is not None:
            if shape is not None:
                why = "A text of that shape has no calls."
                raise UsageError(f"{shape.name} and tools exclude one another.", why, 'Or use tool_choice="none".')
            shape = tools.shape
        if shape is not None:
            guide = self._guides.guide(shape, stops, begins=begins_text(self._tokenizer, ids))
        self._check_adapter(params.adapter)
        request = Request(
            tuple(ids), limit, params.settings, stops, params.bias, reuse=checked_reuse(reuse), guide=guide
        )
        return replace(request, adapter=params.adapter, adapter_scale=params.adapter_scale)


def checked_reuse(reuse: Any) -> Reuse:
    """A value of ``reuse``.

    Raises:
        UsageError: it is another one.
    """
    if reuse not in get_args(Reuse):
        raise out_of_range("reuse", reuse, "exact, any or none")
    checked: Reuse = reuse
    return checked
