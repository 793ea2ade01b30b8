"""What Prometheus reads. Names and meanings are those of vLLM where it has them (its ``v1/metrics/loggers.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from llamagpu.engine import LLM

if TYPE_CHECKING:
    from llamagpu.engine import Result
    from llamagpu.server.models import Models

_MODEL = ["model_name"]
_COUNTS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)


class _Gates:
    """Reads what runs and waits at the moment of a scrape."""

    def __init__(self, models: Models):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """The gauges."""
        running = GaugeMetricFamily("vllm:num_requests_running", "Sequences given to the engine.", labels=_MODEL)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Sequences that wait for a place.", labels=_MODEL)
        for served in self._models.bases:
            running.add_metric([served.name], served.gate.running)
            waiting.add_metric([served.name], served.gate.waiting)
        yield running
        yield waiting


class _Engines:
    """Reads the counters of models that generate text."""

    def __init__(self, models: Models):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """The counters, and how full each cache is."""
        preempted = _family("vllm:num_preemptions", "Times that a sequence gave up its part of the cache.")
        drafted = _family("vllm:spec_decode_num_draft_tokens", "Tokens that were guessed.")
        accepted = _family("vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right.")
        usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Used part of the cache: 1 is all of it.", labels=_MODEL)
        for served in self._models.bases:
            if isinstance(served.model, LLM):
                found = served.model.counters
                preempted.add_metric([served.name], found.preemptions)
                drafted.add_metric([served.name], found.drafted)
                accepted.add_metric([served.name], found.accepted)
                usage.add_metric([served.name], found.cache_usage)
        yield from (preempted, drafted, accepted, usage)


def _family(name: str, text: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=_MODEL)


class Metrics:
    """The metrics of one server."""

    def __init__(self, models: Models):
        self._registry = CollectorRegistry()
        self._registry.register(_Gates(models))
        self._registry.register(_Engines(models))
        self._prompt = self._counter("vllm:prompt_tokens", "Tokens of prompts and of embedded texts.")
        self._made = self._counter("vllm:generation_tokens", "New tokens.")
        self._success = self._counter("vllm:request_success", "Finished sequences.", "finished_reason")
        self._first = self._histogram(
            "vllm:time_to_first_token_seconds", "From the request to its first token.", _FIRST
        )
        self._between = self._histogram("vllm:inter_token_latency_seconds", "Between tokens, averaged.", _BETWEEN)
        self._whole = self._histogram("vllm:e2e_request_latency_seconds", "From the request to its end.", _WHOLE)
        self._queued = self._histogram("vllm:request_queue_time_seconds", "In the server's queue.", _WHOLE)
        self._prompts = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a sequence.", _COUNTS)
        self._texts = self._histogram("vllm:request_generation_tokens", "New tokens of a sequence.", _COUNTS)
        self._n = self._histogram("vllm:request_params_n", "The parameter n.", (1, 2, 5, 10, 20))
        self._responses = Counter("llamagpu:responses", "HTTP responses.", ["route", "status"], registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, [*_MODEL, *labels], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _MODEL, registry=self._registry, buckets=buckets)

    def text(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        return generate_latest(self._registry)

    def requested(self, model: str, n: int) -> None:
        """A generation was asked for."""
        self._n.labels(model).observe(n)

    def started(self, model: str, prompt: int, queued: float) -> None:
        """A sequence got its place after ``queued`` seconds."""
        self._queued.labels(model).observe(queued)
        self._prompt.labels(model).inc(prompt)
        self._prompts.labels(model).observe(prompt)

    def embedded(self, model: str, tokens: int) -> None:
        """Texts of this many tokens were embedded."""
        self._prompt.labels(model).inc(tokens)

    def first(self, model: str, seconds: float) -> None:
        """The first token of a sequence came."""
        self._first.labels(model).observe(seconds)

    def tokens(self, model: str, count: int) -> None:
        """New tokens came."""
        self._made.labels(model).inc(count)

    def finished(self, model: str, result: Result, seconds: float) -> None:
        """A sequence ended ``seconds`` after its request."""
        self._success.labels(model, result.finish_reason).inc()
        self._whole.labels(model).observe(seconds)
        self._texts.labels(model).observe(result.completion_tokens)
        if result.completion_tokens > 1:
            self._between.labels(model).observe(result.timings.decode_s / (result.completion_tokens - 1))

    def responded(self, route: str, status: int) -> None:
        """A response began."""
        self._responses.labels(route, str(status)).inc()
