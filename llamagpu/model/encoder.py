"""The forward pass of encoders over packed sequences: recorded once for a number of rows, and replayed.

Sequences lie one after another in the rows of a pack, without padding between them. Their keys and values begin at
multiples of ``BLOCK`` positions of the cache, and every product is the one for many vectors, so a sequence has the same
bits alone and in any pack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Device, Plan, Readback, Tensor, Tuning, device_capacity
from llamagpu.kernels.attention_paged import attention_prefill
from llamagpu.kernels.attention_spans import packed_positions
from llamagpu.kernels.elementwise import add
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.glu import activated
from llamagpu.kernels.kv_write import Cache, cache_columns
from llamagpu.kernels.layer_norm import layer_norm
from llamagpu.kernels.product import Epilogue, plain, product
from llamagpu.kernels.qkv import qkv
from llamagpu.kernels.residual import add_to
from llamagpu.kernels.scores import BLOCK
from llamagpu.kernels.step import step_rows
from llamagpu.kernels.step_ids import step_ids, void_rows
from llamagpu.model.encoder_config import EncoderConfig
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.encoder_sizes import WORD_COLUMNS, EncoderSizes, float_columns, pack_bucket, plan_encoder
from llamagpu.model.packs import Encoded, Floats, Pooling
from llamagpu.model.rope_table import rope_table
from llamagpu.model.tensor_layout import Key
from llamagpu.model.weights import Progress, load_tensors

DUMP = 1  # the slot of padding rows


@dataclass(frozen=True)
class BoundIds:
    """Where the ids of bound tensors enter: u32 [1, rows], and the position of the first bad one (``step_ids``)."""

    ids: Tensor
    broken: Tensor


class Encoder:
    """An encoder's weights, buffers and plans on a device; see ``PackModel``.

    Args:
        sizes: those of an earlier load or of ``plan_encoder``; None plans for the model's longest text.

    Raises:
        OutOfMemoryError: it does not fit, see ``plan_encoder``.
    """

    def __init__(
        self,
        device: Device,
        config: EncoderConfig,
        layout: EncoderLayout,
        tuning: Tuning,
        progress: Progress | None = None,
        sizes: EncoderSizes | None = None,
    ):
        c = self.config = config
        self.sizes = sizes = sizes or plan_encoder(layout, device_capacity(device))
        self.device, self._tuning = device, tuning
        self._weights = load_tensors(layout, device, tuning.order == "woven", progress)
        self._table = device.tensor(layout.positions(), "f32", purpose="weights")
        bias = layout.relative()
        self._relative = None if bias is None else device.tensor(bias, "f32", purpose="weights")
        self.rows, self.hidden_size = sizes.rows, c.hidden_size
        h, columns = c.hidden_size, cache_columns(c.num_attention_heads, c.head_dim)
        self._buffers = {n: device.empty((self.rows, k), purpose="activations") for n, k in float_columns(c).items()}
        for name, count in WORD_COLUMNS.items():
            self._buffers[name] = device.empty((self.rows, count), "u32", purpose="activations")
        pages = np.arange(sizes.pages, dtype=np.uint32)[None]
        self._rotation = device.tensor(rope_table(None, c.head_dim, sizes.positions), "f32", purpose="activations")
        data = device.empty((pages.size, columns), purpose="kv")
        table = device.tensor(pages, "u32", purpose="kv")
        self._cache = Cache(data, table, c.num_attention_heads, c.head_dim)
        self.pooling = Pooling(device, self.rows, h)
        self._plans: dict[tuple[int, tuple[str, ...], bool], Plan] = {}
        self._bound: BoundIds | None = None

    def most(self, lengths: Iterable[int]) -> int:
        """See ``PackModel.most``."""
        count = rows = positions = 0
        for length in lengths:
            rows, positions = rows + length, positions - -length // BLOCK * BLOCK
            if rows > self.rows or positions > self.sizes.room:
                break
            count += 1
        return count

    def launch(self, pack: Sequence[Encoded], modes: Sequence[str]) -> list[Readback]:
        """See ``PackModel.launch``."""
        self._run(pack, tuple(modes))
        return self.pooling.read(len(pack), modes)

    def bound_ids(self) -> BoundIds:
        """Where the ids of all bound sessions enter; made at the first call."""
        if self._bound is None:
            ids = self.device.empty((1, self.rows), "u32", purpose="activations")
            self._bound = BoundIds(ids, self.device.empty((1, 4), "u32", purpose="activations"))
        return self._bound

    def hidden(self, pack: Sequence[Encoded]) -> Floats:
        """The last layer's vectors of all tokens, one text after another, float32 [tokens, hidden]."""
        self._run(pack, ())
        return self._buffers["x"].head(sum(len(e.ids) for e in pack)).numpy().astype(np.float32, copy=False)

    def clean(self) -> None:
        """See ``PackModel.clean``. A weight of 0 times NaN is NaN."""
        self._cache.data.write(np.zeros(self._cache.data.shape, np.float32))

    def free(self) -> None:
        """Free the plans, and the buffers that were made later."""
        for plan in self._plans.values():
            plan.free()
        self._plans.clear()
        self.pooling.free()
        if self._bound is not None:
            self._bound.ids.free()
            self._bound.broken.free()

    def words(self, pack: Sequence[Encoded]) -> dict[str, npt.NDArray[np.uint32]]:
        """What the plan of a pack reads, by the names of ``buffer``. Padding rows have the slot ``DUMP``."""
        lengths = [len(e.ids) for e in pack]
        count, rows = sum(lengths), pack_bucket(sum(lengths))
        positions, spans = packed_positions(lengths)
        dump = -(-(int(positions[-1]) + 1) // BLOCK) * BLOCK  # of the padding rows
        place = np.concatenate([positions, np.full(rows - count, dump)])
        state = step_rows([0] * rows, place)
        state[:, 3] = place
        within = np.concatenate(
            [np.arange(n) + self.config.positions * np.asarray(e.types) for n, e in zip(lengths, pack, strict=True)]
        )
        padding = [0] * (rows - count)
        return {
            "words": step_rows([i for e in pack for i in e.ids] + padding, 0, [0] * count + [DUMP] * (rows - count)),
            "places": step_rows([*within.tolist(), *padding], 0),
            "state": state,
            "spans": np.concatenate([spans, np.full((rows - count, 2), dump, np.uint32)]),
            "sequences": self.pooling.words(np.cumsum([0, *lengths])[:-1], lengths, rows),
        }

    def buffer(self, name: str) -> Tensor:
        """The buffer of some words, or of the last layer's vectors (``x``)."""
        return self._buffers[name] if name != "sequences" else self.pooling.sequences

    def plan(self, rows: int, modes: tuple[str, ...], bound: BoundIds | None = None) -> Plan:
        """The pass over ``rows`` rows and its pooling. With ``bound``, the ids come from there, and everything is NaN
        if one is not in the vocabulary."""
        key = (rows, modes, bound is not None)
        if key not in self._plans:
            self._plans[key] = self.device.record(lambda: self._forward(rows, modes, bound), self._tuning)
        return self._plans[key]

    def _run(self, pack: Sequence[Encoded], modes: tuple[str, ...]) -> None:
        words = self.words(pack)
        for name, values in words.items():
            self.buffer(name).head(len(values)).write(values)
        self.plan(len(words["words"]), modes).run()

    def _forward(self, rows: int, modes: tuple[str, ...], bound: BoundIds | None) -> None:
        take = {name: t.head(rows) for name, t in self._buffers.items()}
        eps, heads = self.config.layer_norm_eps, self.config.num_attention_heads
        x, y, z = take["x"], take["y"], take["z"]
        if bound is not None:
            step_ids(bound.ids, take["words"], bound.broken, self.config.vocab_size, DUMP)
        embedding(self._weights[Key("words")], take["words"], x)
        embedding(self._table, take["places"], y)
        add(x, y, z)
        self._layer_norm("embed_norm", None, z, x, eps)
        for i in range(self.config.num_hidden_layers):
            epilogue = qkv(take["q"], take["state"], self._rotation, self._cache, heads)
            self._product(x, "qkv", i, epilogue)
            spans, out = take["spans"], take["attended"]
            attention_prefill(take["q"], take["state"], self._cache, heads, out, spans=spans, relative=self._relative)
            self._product(take["attended"], "o", i, add_to(x))
            self._layer_norm("attn_norm", i, x, y, eps)
            self._product(y, "up", i, activated(take["inner"], self.config.activation))
            self._product(take["inner"], "down", i, add_to(y))
            self._layer_norm("mlp_norm", i, y, x, eps)
        if bound is not None:
            void_rows(x, take["words"], bound.broken)
        self.pooling.pool(x, rows, modes)

    def _product(self, x: Tensor, role: str, i: int, epilogue: Epilogue) -> None:
        w, bias = self._weights[Key(role, i)], self._weights[Key(f"{role}_bias", i)]
        product(plain(x), w, bias, epilogue, many=True)

    def _layer_norm(self, role: str, i: int | None, x: Tensor, out: Tensor, eps: float) -> None:
        layer_norm(x, self._weights[Key(role, i)], self._weights[Key(f"{role}_bias", i)], eps, out)
