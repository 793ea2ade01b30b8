"""The operations of the decoder: unfused, one kernel each; and fused into five dispatches a layer."""

from __future__ import annotations

from dataclasses import dataclass

from llamagpu.gpu import Tensor
from llamagpu.kernels.attention_paged import attention_decode, attention_merge, attention_prefill, partial_shape
from llamagpu.kernels.begin_step import begin_step
from llamagpu.kernels.elementwise import add
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.kv_write import Cache, kv_write
from llamagpu.kernels.matmul import linear
from llamagpu.kernels.matvec import matvec
from llamagpu.kernels.prenorm import prenorm_columns
from llamagpu.kernels.product import MAX_VECTORS, MERGED_RUNS, Source, merged, normed, plain, product, store
from llamagpu.kernels.qkv import qkv
from llamagpu.kernels.residual import add_norm, add_to
from llamagpu.kernels.rms_norm import rms_norm
from llamagpu.kernels.rope import rope
from llamagpu.kernels.silu_mul import silu_mul
from llamagpu.kernels.swiglu import swiglu
from llamagpu.model.config import Config


def activation_columns(config: Config, fused: bool) -> dict[str, int]:
    """Float columns of each activation buffer, by name."""
    c = config
    common = {"x": c.hidden_size, "normed": c.hidden_size, "attended": c.q_size, "gated": c.intermediate_size}
    if fused:
        return common | {"prenorm": prenorm_columns(c.hidden_size), "q": c.q_size}
    hidden = {"y": c.hidden_size, "projected": c.hidden_size}
    return common | hidden | {"qkv": c.q_size + 2 * c.kv_size, "gate_up": 2 * c.intermediate_size}


@dataclass(frozen=True)
class Workspace:
    """The buffers that operations work on.

    Attributes:
        cos_sin: f32 [positions, head_dim], the rotary table.
        pages: u32 [slots, pages of a sequence], the page table.
        step_rows: u32 [rows, 4], the step's state.
        activations: f32 [rows, …] by name, see ``activation_columns``.
        partials: the results of decode attention's runs.
    """

    config: Config
    cos_sin: Tensor
    pages: Tensor
    step_rows: Tensor
    activations: dict[str, Tensor]
    partials: Tensor


class _Operations:
    """The base of all forms. A prompt has ``rows`` consecutive positions of one sequence, and ``splits`` is None. A
    decode step has one position each of ``rows`` sequences, with up to ``splits`` attention runs."""

    def __init__(self, space: Workspace, rows: int, splits: int | None = None):
        self._space, self._config, self._rows, self._splits = space, space.config, rows, splits
        self._state = space.step_rows.head(rows)
        self._heads = space.config.num_attention_heads

    def _take(self, name: str) -> Tensor:
        return self._space.activations[name].head(self._rows)

    def _partials(self, splits: int) -> Tensor:
        shape = partial_shape(self._rows, self._heads, self._config.head_dim, splits)
        return Tensor(self._space.partials.device, shape, "f32", (self._space.partials.part,))

    def _decode(self, q: Tensor, cache: Cache, splits: int) -> Tensor:
        return attention_decode(q, self._state, cache, self._heads, splits, self._partials(splits))

    def _merge(self, partials: Tensor, splits: int) -> Tensor:
        d = self._config.head_dim
        return attention_merge(partials, self._state, self._heads, d, splits, self._take("attended"))


class Unfused(_Operations):
    """One kernel for each operation of the formula: readable, and the oracle of the fused form."""

    def __init__(self, space: Workspace, rows: int, splits: int | None = None):
        super().__init__(space, rows, splits)
        # Decode uses matvec for every batch size, so that a sequence has the same bits alone and in a batch.
        self._multiply = linear if splits is None else matvec
        self._x, self._other = self._take("x"), self._take("y")

    def embed(self, table: Tensor, next_norm: Tensor) -> None:
        embedding(table, self._state, self._x)

    def norm(self, weight: Tensor) -> Tensor:
        return rms_norm(self._x, weight, self._config.rms_norm_eps, self._take("normed"))

    def qkv(self, normed: Tensor, w: Tensor, bias: Tensor | None, cache: Cache) -> Tensor:
        c, out = self._config, self._multiply(normed, w, bias, self._take("qkv"))
        rope(out, self._state, self._space.cos_sin, self._heads + c.num_key_value_heads)
        kv_write(out, self._state, cache, first=c.q_size)
        return out

    def attention(self, q: Tensor, cache: Cache) -> Tensor:
        if self._splits is None:
            return attention_prefill(q, self._state, cache, self._heads, self._take("attended"))
        partials = self._decode(q, cache, self._splits)
        return self._merge(partials, self._splits) if self._splits > 1 else partials

    def gated(self, normed: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return silu_mul(self._multiply(normed, w, bias, self._take("gate_up")), self._take("gated"))

    def add(self, value: Tensor, w: Tensor, bias: Tensor | None, next_norm: Tensor) -> None:
        add(self._x, self._multiply(value, w, bias, self._take("projected")), self._other)
        self._x, self._other = self._other, self._x

    def logits(self, normed: Tensor, head: Tensor, out: Tensor) -> None:
        self._multiply(normed, head, None, out)


class _Fused(_Operations):
    """Rotary embedding, cache writes, SwiGLU and residual additions are epilogues of the products beside them."""

    _many = False

    def embed(self, table: Tensor, next_norm: Tensor) -> None:
        x, prenorm = self._take("x"), self._take("prenorm")
        begin_step(table, self._state, self._space.pages, next_norm, x, prenorm)

    def qkv(self, normed: Source, w: Tensor, bias: Tensor | None, cache: Cache) -> Source:
        q = self._take("q")
        product(normed, w, bias, qkv(q, self._state, self._space.cos_sin, cache, self._heads), self._many)
        return plain(q)

    def gated(self, normed: Source, w: Tensor, bias: Tensor | None) -> Source:
        gated = self._take("gated")
        product(normed, w, bias, swiglu(gated), self._many)
        return plain(gated)


class FusedPrompt(_Fused):
    """The fused form for prompts. Norms keep their own dispatches, because they take only 2 % of a prompt's time."""

    def __init__(self, space: Workspace, rows: int):
        super().__init__(space, rows)
        self._many = rows > MAX_VECTORS

    def norm(self, weight: Tensor) -> Source:
        return plain(rms_norm(self._take("x"), weight, self._config.rms_norm_eps, self._take("normed")))

    def attention(self, q: Source, cache: Cache) -> Source:
        return plain(attention_prefill(self._take("q"), self._state, cache, self._heads, self._take("attended")))

    def add(self, value: Source, w: Tensor, bias: Tensor | None, next_norm: Tensor) -> None:
        product(value, w, bias, add_to(self._take("x")), self._many)

    def logits(self, normed: Source, head: Tensor, out: Tensor) -> None:
        product(normed, head, None, store(out), self._many)


class FusedStep(_Fused):
    """The fused form for decode steps. The operation that writes x also writes the prenorm buffer of the next norm; the
    product that reads it scales its results."""

    def __init__(self, space: Workspace, rows: int, splits: int):
        super().__init__(space, rows, splits)
        self._runs = splits

    def norm(self, weight: Tensor) -> Source:
        return normed(self._take("prenorm"), self._config.hidden_size, self._config.rms_norm_eps)

    def attention(self, q: Source, cache: Cache) -> Source:
        splits, partials = self._runs, self._decode(self._take("q"), cache, self._runs)
        if splits == 1:
            return plain(partials)
        most = min(MERGED_RUNS, partials.device.tuning.merged_runs)
        if splits <= most and self._rows == 1:  # several rows would each be merged many times
            return merged(partials, self._state, self._heads, self._config.head_dim, splits)
        return plain(self._merge(partials, splits))

    def add(self, value: Source, w: Tensor, bias: Tensor | None, next_norm: Tensor) -> None:
        product(value, w, bias, add_norm(self._take("x"), self._take("prenorm"), next_norm))

    def logits(self, normed: Source, head: Tensor, out: Tensor) -> None:
        product(normed, head, None, store(out))
