"""The forward pass as plans: recorded once for a shape, and replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from llamagpu.gpu import Call, Recorded, Recorder, Tensor, Tuning, tensor_bytes
from llamagpu.kernels.attention_paged import splits_for
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.sampling import choose
from llamagpu.kernels.step_ids import step_ids, void_rows
from llamagpu.model.cache import PagedCache
from llamagpu.model.config import Config
from llamagpu.model.decoder import Operations, decoder_head, decoder_layers
from llamagpu.model.lora_stack import LoraStack
from llamagpu.model.operations import FusedPrompt, FusedStep, Unfused, Workspace, activation_columns
from llamagpu.model.rope import Rope
from llamagpu.model.step import StepState, state_shapes
from llamagpu.model.weights import Weights

P = TypeVar("P", bound=Recorded)

# Rows of prefill plans; a chunk is padded up to the next one.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
BATCHES = (1, 2, 4, 8, 16, 32)  # rows of decode plans
HEAD_ROWS = BATCHES[-1]  # rows whose logits are computed at once
_SHORT = 8  # rows of a short prompt of five tokens or more; longer ones run the same programs
_PARTIAL_RUNS = 16  # attention runs per sequence of a full batch; longer sequences decode in smaller batches


def bucket(rows: int, sizes: tuple[int, ...] = ROW_BUCKETS) -> int:
    """Rows of the smallest plan that takes ``rows`` rows."""
    return next(b for b in sizes if b >= rows)


def split_bucket(positions: int) -> int:
    """Attention runs in the grid for ``positions`` positions: a power of two, so that few plans serve all lengths."""
    return 1 << (splits_for(positions) - 1).bit_length()


def partial_rows(context: int, batch: int = BATCHES[-1]) -> int:
    """Rows × runs of the buffer for partial results of decode attention, for up to ``batch`` sequences."""
    return max(split_bucket(context), batch * min(_PARTIAL_RUNS, split_bucket(context)))


def batch_limit(context: int, positions: int) -> int:
    """Most sequences of up to ``positions`` positions that decode together."""
    return min(BATCHES[-1], partial_rows(context) // split_bucket(positions))


@dataclass
class Arena:
    """The buffers that plans work on, for at most ``rows`` rows; every plan uses their first rows."""

    state: StepState
    activations: dict[str, Tensor]  # f32 [rows, …], see ``operations.activation_columns``
    partials: Tensor  # [partial_rows, heads · (head_dim + 4)] runs of decode attention
    picked: Tensor  # [batch, hidden] the rows of x that the head reads
    logits: Tensor  # [batch, vocab]


def arena_shapes(config: Config, rows: int, context: int, fused: bool, batch: int = HEAD_ROWS) -> list[tuple[int, int]]:
    """Rows and columns of everything that ``make_arena`` allocates; all items have 4 bytes."""
    c = config
    shapes = [(rows, n) for n in activation_columns(c, fused).values()]
    shapes += [(partial_rows(context, batch), c.num_attention_heads * (c.head_dim + 4))]
    shapes += [(batch, n) for n in (c.hidden_size, c.vocab_size)]
    return shapes + state_shapes(rows, batch, batch + 1, c.vocab_size)


def arena_bytes(config: Config, rows: int, context: int, fused: bool, batch: int = HEAD_ROWS) -> int:
    """Bytes that ``make_arena`` allocates."""
    return sum(tensor_bytes(*shape) for shape in arena_shapes(config, rows, context, fused, batch))


def make_arena(
    device: Recorder[Any], config: Config, rows: int, context: int, fused: bool, batch: int = HEAD_ROWS
) -> Arena:
    """Allocate the buffers, for up to ``batch`` sequences at once."""
    c = config

    def floats(n: int, columns: int) -> Tensor:
        return device.empty((n, columns), purpose="activations")

    return Arena(
        state=StepState(device, rows, batch, batch + 1, c.vocab_size, dump=batch),
        activations={name: floats(rows, n) for name, n in activation_columns(c, fused).items()},
        partials=floats(partial_rows(context, batch), c.num_attention_heads * (c.head_dim + 4)),
        picked=floats(batch, c.hidden_size),
        logits=floats(batch, c.vocab_size),
    )


class Forward(Generic[P]):
    """Plans over one model's weights, cache and activations, recorded with its tuning when they are first needed.

    Attributes:
        loras: the adapters of the model; None if it cannot have any. Plans with ``lora`` apply those of their rows.
    """

    loras: LoraStack | None = None

    def __init__(
        self,
        device: Recorder[P],
        config: Config,
        weights: Weights,
        cache: PagedCache,
        rotations: Mapping[Rope | None, Tensor],
        arena: Arena,
        tuning: Tuning,
        fused: bool = True,
    ):
        self.device, self.tuning, self.state, self.logits = device, tuning, arena.state, arena.logits
        self.weights, self.cache, self.rotations, self.arena = weights, cache, rotations, arena
        self.hidden_states = arena.activations["normed"]
        self._fused = fused
        self._space = Workspace(config, rotations, cache.table, arena.state.rows, arena.activations, arena.partials)
        self._plans: dict[tuple[object, ...], P] = {}
        self._lora_plans: dict[tuple[object, ...], P] = {}

    def with_tuning(self, tuning: Tuning) -> Forward[P]:
        """Plans over the same buffers with another tuning, which must have the same order of weight rows."""
        config = self._space.config
        return Forward(self.device, config, self.weights, self.cache, self.rotations, self.arena, tuning, self._fused)

    def prefill(self, rows: int, lora: bool = False) -> P:
        """All layers over ``rows`` (a bucket) consecutive positions of one sequence; x keeps the residual stream."""
        return self._plan(("prefill", rows), lambda: self._prompt(rows, lora), lora)

    def prefill_ids(self, rows: int) -> P:
        """As ``prefill``, with the tokens of ``state.ids``. From the first one on that is not in the vocabulary, x is
        NaN."""
        return self._plan(("prefill_ids", rows), lambda: self._prompt_of_ids(rows))

    def last_norm(self, rows: int) -> P:
        """The last hidden states, which the head reads: x after the final norm, in ``hidden_states``."""
        norm = self.weights.norm
        return self._plan(("last_norm", rows), lambda: FusedPrompt(self._space, rows).norm(norm))

    def head(self, rows: int) -> P:
        """Logits of the picked rows of x."""
        return self._plan(("head", rows), lambda: self._head(rows))

    def first(self, rows: int, plain: bool, masked: bool = False) -> P:
        """Logits of the picked rows, and the next token of each."""
        return self._plan(("first", rows, plain, masked), lambda: self._sample(self._head(rows), plain, masked))

    def decode(self, batch: int, positions: int, plain: bool, lora: bool = False) -> P:
        """One token for each of ``batch`` sequences of up to ``positions`` positions. It reads the step's state and
        writes that of the next step. ``plain`` omits the kernels of penalties and filters."""
        splits = split_bucket(positions)
        return self._plan(
            ("decode", batch, splits, plain), lambda: self._sample(self._layers(batch, splits, lora), plain), lora
        )

    def trunk(self, batch: int, positions: int, lora: bool = False) -> P:
        """``decode`` up to the logits. The host makes the masks of the tokens meanwhile, and ``masked`` continues."""
        splits = split_bucket(positions)
        return self._plan(("trunk", batch, splits), lambda: self._layers(batch, splits, lora), lora)

    def masked(self, batch: int, plain: bool) -> P:
        """The rest of ``decode``: a token that its mask allows for each of ``batch`` sequences."""
        return self._plan(("masked", batch, plain), lambda: self._sample(self.logits.head(batch), plain, True))

    def first_token(self) -> list[Call]:
        """The kernel calls for the first token of a prompt of five tokens or more, without penalties and filters."""

        def run() -> None:
            self._prompt(bucket(min(_SHORT, self.state.rows.rows)))
            self._sample(self._head(1), plain=True)

        return self.device.calls(run, self.tuning)

    def free(self) -> None:
        """Free the plans, and the adapters."""
        self.drop_lora_plans()
        for plan in self._plans.values():
            plan.free()
        self._plans.clear()
        if self.loras is not None:
            self.loras.free()

    def drop_lora_plans(self) -> None:
        """Free the plans that apply adapters: those of the model change."""
        for plan in self._lora_plans.values():
            plan.free()
        self._lora_plans.clear()

    def _plan(self, key: tuple[object, ...], forward: Callable[[], object], lora: bool = False) -> P:
        plans = self._lora_plans if lora else self._plans
        if key not in plans:
            plans[key] = self.device.record(forward, self.tuning)
        return plans[key]

    def _space_of(self, lora: bool) -> Workspace:
        return replace(self._space, loras=self.loras) if lora else self._space

    def _prompt(self, rows: int, lora: bool = False) -> None:
        ops: Operations[Any] = (FusedPrompt if self._fused else Unfused)(self._space_of(lora), rows)
        decoder_layers(ops, self.weights, self._space.config.layers, self.cache.layers)

    def _prompt_of_ids(self, rows: int) -> None:
        state = self.state
        step_ids(state.ids, state.rows.head(rows), state.broken, self._space.config.vocab_size, state.dump)
        self._prompt(rows)
        void_rows(self.arena.activations["x"].head(rows), state.rows.head(rows), state.broken)

    def _layers(self, batch: int, splits: int, lora: bool) -> Tensor:
        ops: Operations[Any] = (FusedStep if self._fused else Unfused)(self._space_of(lora), batch, splits)
        logits = self.logits.head(batch)
        decoder_layers(ops, self.weights, self._space.config.layers, self.cache.layers)
        decoder_head(ops, self.weights, logits)
        return logits

    def _head(self, rows: int) -> Tensor:
        picked, logits = self.arena.picked.head(rows), self.logits.head(rows)
        embedding(self.arena.activations["x"], self.state.picks.head(rows), picked)
        decoder_head(Unfused(self._picked_space(picked), rows), self.weights, logits)
        return logits

    def _picked_space(self, picked: Tensor) -> Workspace:
        """The workspace of the head after a prompt, whose x is the picked rows."""
        s = self._space
        activations = {"x": picked, "y": picked, "normed": s.activations["normed"]}
        return Workspace(s.config, s.rotations, s.pages, s.step_rows, activations, s.partials)

    def _sample(self, logits: Tensor, plain: bool, masked: bool = False) -> Tensor:
        rows = logits.rows
        return choose(logits, self.state.rows.head(rows), self.state.sampler.head(rows), plain, masked)
