"""The model ``llamagpu`` of lm-evaluation-harness. Importing this module registers it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamagpu.engine import LLM, Stream
from llamagpu.engine.scoring import log_probabilities, logit_blocks
from llamagpu.errors import UsageError
from llamagpu.evaluation.rules import (
    MAX_TOKENS,
    Encoder,
    Generation,
    cut_at,
    generation,
    plan_passes,
    sum_scores,
)
from llamagpu.text import Conversation
from llamagpu.version import __version__

try:
    import lm_eval.models  # noqa: F401  (registers the harness's own models, which it does not do later)
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as e:
    raise UsageError(
        "Evaluation needs lm-evaluation-harness.", f"It cannot be imported: {e}.", 'pip install "llamagpu[eval]"'
    ) from None

log = logging.getLogger("llamagpu")
_NO_DEVICE = "cuda:0"  # what the harness passes without --device
_AT_ONCE = 128  # prompts given to the engine together; it makes its own batches
TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("llamagpu")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Scores and generates for the harness, with the tokenization of its model for transformers (``hf``).

    Args:
        pretrained: as ``LLM``'s model: a directory, a hub id or None; or an open ``LLM``, whose own options hold.
        dtype, kv_dtype, revision, tune: as in ``LLM``.
        device: as in ``LLM`` (the harness's ``--device``). Its default there, cuda:0, is ``auto`` here.
        max_length: tokens that the model sees at a time: ``LLM``'s context. (``hf`` takes the model's maximum, where
            ``LLM`` stops at 4096 by default.) Longer inputs lose their beginning, with a warning.
        add_bos_token: whether texts begin with BOS; None leaves that to the tokenizer.
        prefix_token_id: the token before everything, which empty contexts and rolling windows begin with. The default
            is BOS, or EOS for a tokenizer without BOS.
        max_gen_toks: the most new tokens, if a task does not say.
        seed: of drawn tokens; every request of a run adds its number.
        batch_size, max_batch_size: the harness passes them; they change nothing, because the engine makes its batches.

    Raises:
        UsageError: an argument is unknown or out of its range. Otherwise as ``LLM``.
    """

    def __init__(
        self,
        pretrained: str | Path | LLM | None = None,
        *,
        dtype: str = "auto",
        kv_dtype: str = "auto",
        revision: str | None = None,
        tune: bool = False,
        device: str | int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = MAX_TOKENS,
        seed: int = 1234,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UsageError(
                f"llamagpu has no model argument {min(unknown)!r}.", "", "See llamagpu.evaluation.harness."
            )
        if not isinstance(pretrained, LLM):
            where: dict[str, Any] = {"device": "auto" if device in (None, _NO_DEVICE) else device, "revision": revision}
            pretrained = LLM(pretrained, dtype=dtype, kv_dtype=kv_dtype, context=max_length, tune=tune, **where)
        self.llm, self.max_gen_toks, self._seed = pretrained, max_gen_toks, seed
        self.max_length = min(self.llm.context, max_length or self.llm.context)
        self._named = self.llm.special_tokens
        self._prefix = self._default_prefix() if prefix_token_id is None else prefix_token_id
        self._encoder = Encoder(
            lambda text, special: self.llm.tokenize(text, add_special_tokens=special),
            self._named.get("bos_token", self.llm.config.bos_token_id),
            self._text_of(self._prefix),
            add_bos_token,
        )
        self._drawn = 0  # requests that drew tokens

    # --- what the harness asks about the model ------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The id of the tokenizer's end token."""
        ids = self.llm.config.eos_token_id
        if "eos_token" not in self._named and not ids:
            raise UsageError(f"{self.llm.name} has no end token.", "Neither its config nor its tokenizer names one.")
        return self._named["eos_token"] if "eos_token" in self._named else ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before everything."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's caches of requests."""
        return self.llm.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Facts for the harness's result file."""
        sizes = self.llm.sizes
        facts = {"llamagpu_version": __version__, "adapter": str(self.llm.device.adapter)}
        return facts | {"weight_bytes": sizes.weights, "kv_dtype": sizes.kv_dtype, "max_length": self.max_length}

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text; None if none is wanted or the model has none."""
        if isinstance(chat_template, str):
            raise UsageError(f"There is no chat template {chat_template!r}.", "The harness takes the default one.")
        templates = self.llm.chat_templates
        return templates.of().source if chat_template and templates else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; without the generation prompt, to the end of the last message, which is continued.
        If the template refuses it, the system message is dropped, with a warning.

        Raises:
            UsageError: the model has no template, or refuses the rest too.
        """
        templates = self.llm.chat_templates
        if not templates:
            raise UsageError(f"The model {self.llm.name} has no chat template.", "", "Omit --apply_chat_template.")

        def text(messages: list[dict[str, str]]) -> str:
            given = Conversation(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return templates.of().render(given).text

        try:
            return text(chat_history)
        except UsageError as e:
            rest = [m for m in chat_history if m["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            log.warning("the chat template refused a conversation, so its system message is dropped: %s", e.why)
            return text(rest)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, see ``Encoder``."""
        return self._encoder.encode(string, add_special_tokens)

    def _default_prefix(self) -> int:
        bos = self._named.get("bos_token", self.llm.config.bos_token_id)
        return self.eot_token_id if bos is None else bos

    def _text_of(self, id: int) -> str:
        return self.llm.detokenize([id], skip_special_tokens=False)

    # --- log-likelihoods ----------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would give it.

        The head runs on the continuations' positions alone. Requests that share their input run once, and others take
        equal beginnings, such as few-shot examples or the question of several answers, from the cache.
        """
        passes, cut = plan_passes([(context, tokens) for _, context, tokens in requests], self.max_length)
        if cut:
            log.warning("%d of %d requests were cut from the left to %d tokens", cut, len(requests), self.max_length)
        out: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="llamagpu: log-likelihoods") as bar:
            for one in passes:
                ids = list(one.ids)
                blocks = logit_blocks(self.llm, ids, len(ids) - one.longest, reuse="exact")
                found = sum_scores((log_probabilities(b, len(ids)) for b in blocks), [t for _, t in one.continuations])
                for (number, _tokens), score in zip(one.continuations, found, strict=True):
                    out[number] = score
                    if (texts := requests[number][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, score)
                bar.update(len(found))
        return out

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows that overlap by one token; the prefix token comes first."""
        windows: list[TokenRequest] = []
        ends = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(None, *make_disjoint_window(pair)) for pair in rolling]
            ends.append(len(windows))
        scores = [score for score, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        out = [sum(scores[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]
        for request, score in zip(requests, out, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return out

    # --- generation ---------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """New text for each context, up to its first stop string. Contexts lose their beginning if they are longer than
        ``max_length`` less the new tokens, with a warning."""
        out: list[str] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="llamagpu: texts") as bar:
            for begin in range(0, len(requests), _AT_ONCE):
                part = [request.args for request in requests[begin : begin + _AT_ONCE]]
                plans = [generation(arguments, self.max_gen_toks) for _, arguments in part]
                prompts = self._prompts([context for context, _ in part], plans)
                streams = [self._start(ids, plan) for ids, plan in zip(prompts, plans, strict=True)]
                try:
                    for args, plan, stream in zip(part, plans, streams, strict=True):
                        out.append(self._finish(stream, plan))
                        self.cache_hook.add_partial("generate_until", args, out[-1])
                        bar.update()
                finally:
                    for stream in streams:
                        stream.close()
        return out

    def _prompts(self, contexts: Sequence[str], plans: Sequence[Generation]) -> list[list[int]]:
        """Ids of the contexts, cut to the room that the new tokens leave."""
        out, cut = [], 0
        for context, plan in zip(contexts, plans, strict=True):
            room = self.max_length - plan.max_tokens
            if room < 1:
                raise UsageError(
                    f"{plan.max_tokens} new tokens leave no room for a prompt.",
                    f"The context holds {self.max_length} tokens.",
                    "Lower max_gen_toks, or give a larger max_length.",
                )
            ids = self.tok_encode(context)
            cut += len(ids) > room
            out.append(ids[-room:])
        if cut:
            log.warning("%d of %d prompts were cut from the left, to leave room for new tokens", cut, len(contexts))
        return out

    def _start(self, ids: list[int], plan: Generation) -> Stream:
        """Begin a generation. Stop strings that are special tokens, which are no part of the text, stop by their id."""
        special = [self.llm.tokenize(text, add_special_tokens=False) for text in plan.until]
        stop_ids = [one[0] for one in special if len(one) == 1 and not self.llm.detokenize(one)]
        seed = None
        if plan.samples:
            seed = (self._seed + self._drawn) % 2**32
            self._drawn += 1
        return self.llm.stream(
            ids,
            max_tokens=plan.max_tokens,
            stop=list(plan.until) or None,
            stop_token_ids=[self.eot_token_id, *stop_ids],
            seed=seed,
            **plan.options,
        )

    def _finish(self, stream: Stream, plan: Generation) -> str:
        """The new tokens, decoded by themselves as transformers does, without what follows a stop string."""
        text = self.llm.detokenize(stream.result.token_ids)
        return cut_at(text, (*plan.until, self._text_of(self.eot_token_id)))


def run_command_line() -> None:
    """The harness's own command line, on ``sys.argv``."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
