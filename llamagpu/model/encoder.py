"""The forward pass of encoders over packed sequences: recorded once for a number of rows, and replayed.

Sequences lie one after another in the rows of a pack, without padding between them. Their keys and values begin at
multiples of ``BLOCK`` positions of the cache, and every product is the one for many vectors, so a sequence has the same
bits alone and in any pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Device, Plan, Tensor, Tuning
from llamagpu.kernels.attention_paged import attention_prefill
from llamagpu.kernels.attention_spans import packed_positions
from llamagpu.kernels.elementwise import add
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.glu import activated
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.kernels.layer_norm import layer_norm
from llamagpu.kernels.pool import pool
from llamagpu.kernels.product import Epilogue, plain, product
from llamagpu.kernels.qkv import qkv
from llamagpu.kernels.residual import add_to
from llamagpu.kernels.scores import BLOCK
from llamagpu.kernels.step import step_rows
from llamagpu.model.encoder_config import EncoderConfig
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.rope_table import rope_table
from llamagpu.model.tensor_layout import Key
from llamagpu.model.weights import Progress, load_tensors

_SMALLEST = 16  # rows of the smallest plan
_SPREAD = 4  # positions of the cache for every row: short sequences leave gaps
_BUDGETS = {"software": 512, "integrated": 2048, "discrete": 8192, "other": 2048}  # tokens of a pack


@dataclass(frozen=True)
class Encoded:
    """A tokenized text: ids, and the token type of each; and how many tokens were cut off its end."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    cut: int = 0

    @property
    def positions(self) -> int:
        """Positions of the cache that the text takes in a pack."""
        return -(-len(self.ids) // BLOCK) * BLOCK


class Encoder:
    """An encoder's weights, buffers and plans on a device. Calls are on the device thread, but for ``fits``.

    Attributes:
        rows: tokens of the largest pack.
        dtype: that of the weights as it was asked for: ``auto``, ``float16``, …
    """

    def __init__(
        self,
        device: Device,
        config: EncoderConfig,
        layout: EncoderLayout,
        tuning: Tuning,
        progress: Progress | None = None,
    ):
        c = self.config = config
        self.device, self._tuning, self.dtype = device, tuning, layout.dtype
        self._weights = load_tensors(layout, device, tuning.order == "woven", progress)
        self._table = device.tensor(layout.positions, "f32", purpose="weights")
        self.rows = _bucket(max(_BUDGETS[device.adapter.kind], c.positions))
        self._positions = _SPREAD * self.rows + BLOCK
        h, columns = c.hidden_size, cache_columns(c.num_attention_heads, c.head_dim)
        floats = {"x": h, "y": h, "z": h, "q": h, "attended": h, "inner": c.intermediate_size, "pooled": h}
        self._buffers = {name: device.empty((self.rows, n), purpose="activations") for name, n in floats.items()}
        words = {"words": 4, "places": 4, "state": 4, "spans": 2, "sequences": 2}
        self._words = {name: device.empty((self.rows, n), "u32", purpose="activations") for name, n in words.items()}
        pages = np.arange(-(-self._positions // PAGE), dtype=np.uint32)[None]
        self._rotation = device.tensor(rope_table(None, c.head_dim, self._positions), "f32", purpose="activations")
        data = device.empty((pages.size, columns), purpose="kv")
        table = device.tensor(pages, "u32", purpose="kv")
        self._cache = Cache(data, table, c.num_attention_heads, c.head_dim)
        self._plans: dict[tuple[int, str | None], Plan] = {}

    def fits(self, rows: int, positions: int) -> bool:
        """Whether a pack may have this many tokens, and positions of the cache."""
        return rows <= self.rows and positions <= _SPREAD * self.rows

    def pooled(self, pack: Sequence[Encoded], mode: str) -> npt.NDArray[np.float32]:
        """One vector for each text of a pack, float32 [texts, hidden]."""
        self._run(pack, mode)
        return self._buffers["pooled"].head(len(pack)).numpy().astype(np.float32, copy=False)

    def hidden(self, pack: Sequence[Encoded]) -> npt.NDArray[np.float32]:
        """The last layer's vectors of all tokens, one text after another, float32 [tokens, hidden]."""
        self._run(pack, None)
        return self._buffers["x"].head(sum(len(e.ids) for e in pack)).numpy().astype(np.float32, copy=False)

    def free(self) -> None:
        """Free the plans."""
        for plan in self._plans.values():
            plan.free()
        self._plans.clear()

    def _run(self, pack: Sequence[Encoded], mode: str | None) -> None:
        lengths = [len(e.ids) for e in pack]
        count, rows = sum(lengths), _bucket(sum(lengths))
        positions, spans = packed_positions(lengths)
        dump = -(-(int(positions[-1]) + 1) // BLOCK) * BLOCK  # of the padding rows
        place = np.concatenate([positions, np.full(rows - count, dump)])
        state = step_rows([0] * rows, place)
        state[:, 3] = place
        within = np.concatenate(
            [np.arange(n) + self.config.positions * np.asarray(e.types) for n, e in zip(lengths, pack, strict=True)]
        )
        padding = [0] * (rows - count)
        begins = np.cumsum([0, *lengths])[:-1]
        sequences = np.zeros((rows, 2), np.uint32)
        sequences[: len(pack)] = np.stack([begins, lengths], axis=1)
        for name, values in (
            ("words", step_rows([i for e in pack for i in e.ids] + padding, 0)),
            ("places", step_rows([*within.tolist(), *padding], 0)),
            ("state", state),
            ("spans", np.concatenate([spans, np.full((rows - count, 2), dump, np.uint32)])),
            ("sequences", sequences),
        ):
            self._words[name].head(rows).write(values)
        if (rows, mode) not in self._plans:
            self._plans[rows, mode] = self.device.record(lambda: self._forward(rows, mode), self._tuning)
        self._plans[rows, mode].run()

    def _forward(self, rows: int, mode: str | None) -> None:
        take = {name: t.head(rows) for name, t in (self._buffers | self._words).items()}
        eps, heads = self.config.layer_norm_eps, self.config.num_attention_heads
        x, y, z = take["x"], take["y"], take["z"]
        embedding(self._weights[Key("words")], take["words"], x)
        embedding(self._table, take["places"], y)
        add(x, y, z)
        self._layer_norm("embed_norm", None, z, x, eps)
        for i in range(self.config.num_hidden_layers):
            epilogue = qkv(take["q"], take["state"], self._rotation, self._cache, heads)
            self._product(x, "qkv", i, epilogue)
            spans = take["spans"]
            attention_prefill(take["q"], take["state"], self._cache, heads, take["attended"], spans=spans)
            self._product(take["attended"], "o", i, add_to(x))
            self._layer_norm("attn_norm", i, x, y, eps)
            self._product(y, "up", i, activated(take["inner"], self.config.activation))
            self._product(take["inner"], "down", i, add_to(y))
            self._layer_norm("mlp_norm", i, y, x, eps)
        if mode is not None:
            pool(x, take["sequences"], mode, take["pooled"])

    def _product(self, x: Tensor, role: str, i: int, epilogue: Epilogue) -> None:
        w, bias = self._weights[Key(role, i)], self._weights[Key(f"{role}_bias", i)]
        product(plain(x), w, bias, epilogue, many=True)

    def _layer_norm(self, role: str, i: int | None, x: Tensor, out: Tensor, eps: float) -> None:
        layer_norm(x, self._weights[Key(role, i)], self._weights[Key(f"{role}_bias", i)], eps, out)


def _bucket(rows: int) -> int:
    """Rows of the smallest plan for ``rows`` rows: powers of two, and those halfway between."""
    size = _SMALLEST
    while size < rows:
        size = size * 3 // 2 if size & (size - 1) == 0 and size * 3 // 2 >= rows else _next(size)
    return size


def _next(size: int) -> int:
    return 1 << size.bit_length()
