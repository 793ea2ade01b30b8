"""The memory that an encoder takes on an adapter: choosing the tokens of a pack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamagpu.gpu import Capacity, tensor_bytes
from llamagpu.kernels.kv_write import PAGE, cache_columns
from llamagpu.kernels.scores import BLOCK
from llamagpu.model.encoder_config import EncoderConfig
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.estimate import PARAMS, Estimate
from llamagpu.model.families import smaller_models

_SPREAD = 4  # positions of the cache for every row, if they fit: short sequences leave gaps
_SMALLEST = 16  # rows of the smallest plan
_BUDGETS = {"software": 512, "integrated": 2048, "discrete": 8192, "other": 2048}  # tokens of a pack
_SMALLER = ("float16", "int8", "int4")  # dtypes to propose, the most exact one first
_ON_THE_WAY = 64  # pooled vectors that are being read, of the packs in flight


def pack_bucket(rows: int) -> int:
    """Rows of the smallest plan for ``rows`` rows: multiples of 8, and above 128 of an eighth of a power of two."""
    step = max(8, 1 << max(0, rows.bit_length() - 4))
    return max(_SMALLEST, -(-rows // step) * step)


def float_columns(config: EncoderConfig) -> dict[str, int]:
    """Float columns of each activation buffer, by name."""
    h = config.hidden_size
    return {"x": h, "y": h, "z": h, "q": h, "attended": h, "inner": config.intermediate_size}


WORD_COLUMNS = {"words": 4, "places": 4, "state": 4, "spans": 2}  # u32 columns of each buffer of a pack's state


@dataclass(frozen=True)
class EncoderSizes(Estimate):
    """The memory that an encoder takes. ``rows`` is the number of tokens in the largest pack, ``longest`` of a text;
    the cache has ``spread`` positions for every row."""

    rows: int
    longest: int
    spread: int

    @property
    def room(self) -> int:
        """Positions for the texts of a pack, each of which begins at a multiple of ``BLOCK``."""
        return max(self.spread * self.rows, -(-self.longest // BLOCK) * BLOCK)

    @property
    def positions(self) -> int:
        """Positions of the cache: for the texts, and for padding rows."""
        return self.room + BLOCK

    @property
    def pages(self) -> int:
        """Pages of the cache."""
        return -(-self.positions // PAGE)


def _sized(layout: EncoderLayout, capacity: Capacity, rows: int, longest: int, spread: int) -> tuple[EncoderSizes, int]:
    """The sizes with packs of ``rows`` tokens, and the bytes of the largest tensor that needs one binding."""
    c, bare = layout.config, EncoderSizes(0, 0, 0, 0, 0, rows, longest, spread)
    columns = [*float_columns(c).values(), *WORD_COLUMNS.values(), c.hidden_size, 2]  # the last are of the pooling
    activations = [tensor_bytes(rows, n) for n in columns] + [tensor_bytes(bare.positions, c.head_dim)]
    cache = tensor_bytes(bare.pages, cache_columns(c.num_attention_heads, c.head_dim))
    tables = [tensor_bytes(*shape) for shape in layout.tables]
    sizes = EncoderSizes(
        weights=layout.held(capacity.woven) + sum(tables),
        kv=cache + tensor_bytes(1, bare.pages),
        activations=sum(activations),
        params=PARAMS,
        staging=_ON_THE_WAY * c.hidden_size * 4,
        rows=rows,
        longest=longest,
        spread=spread,
    )
    return sizes, max(cache, *activations, *tables)


def _choice(layout: EncoderLayout, capacity: Capacity, longest: int) -> EncoderSizes | None:
    """The sizes with the largest packs that fit; None if none do. A pack holds the longest text at least."""
    rows, least, spread = pack_bucket(max(_BUDGETS[capacity.kind], longest)), pack_bucket(longest), _SPREAD
    while True:
        sizes, largest = _sized(layout, capacity, rows, longest, spread)
        if largest <= capacity.binding and sizes.fits(capacity):
            return sizes
        if spread == 1:
            return None
        rows, spread = (max(least, pack_bucket(rows // 2)), spread) if rows > least else (rows, 1)


def plan_encoder(layout: EncoderLayout, capacity: Capacity, longest: int | None = None) -> EncoderSizes:
    """Choose the tokens of a pack, and add up the bytes. Results do not depend on the choice.

    Args:
        longest: the most tokens of a text; None is the model's.

    Raises:
        OutOfMemoryError: it does not fit; the message has the numbers, and choices that would fit.
    """
    longest = min(longest or layout.config.positions, layout.config.positions)
    sizes = _choice(layout, capacity, longest)
    if sizes is not None:
        return sizes
    need, largest = _sized(layout, capacity, pack_bucket(longest), longest, 1)
    changes = []
    shorter = next((n for n in _lengths(longest) if _choice(layout, capacity, n)), 0)
    if shorter:
        changes.append(f"texts of up to {shorter} tokens (max_seq_length, max_length)")
    for dtype in _SMALLER:
        other = layout.with_dtype(dtype)
        if other.nbytes < layout.nbytes and _choice(other, capacity, longest):
            changes.append(f"--dtype {dtype} (weights {other.held(capacity.woven) / 1e6:,.1f} MB)")
            break
    if not need.fits(capacity):
        room = (capacity.free or 0) - (need.total - need.weights)
        name, kind = layout.source.name, layout.config.model_type
        changes += smaller_models(name, kind, layout.parameters, room)
    raise need.refusal(capacity, f"{need.positions} positions", largest, changes)


def _lengths(longest: int) -> Iterator[int]:
    """Halves of the longest text."""
    while longest > _SMALLEST:
        longest //= 2
        yield longest
