"""The operations of the decoder: unfused, one kernel each; and fused into five dispatches a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from llamagpu.gpu import Tensor
from llamagpu.kernels.attention_paged import attention_decode, attention_merge, attention_prefill, partial_shape
from llamagpu.kernels.begin_step import begin_step
from llamagpu.kernels.elementwise import activate, add, scale
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.gate import gate
from llamagpu.kernels.glu import activated, glu
from llamagpu.kernels.kv_write import Cache, kv_write
from llamagpu.kernels.matmul import matmul_nt
from llamagpu.kernels.matvec import matvec
from llamagpu.kernels.post_norm import post_norm
from llamagpu.kernels.prenorm import NextNorm, prenorm_columns
from llamagpu.kernels.product import MERGED_RUNS, Source, merged, normed, plain, product, store
from llamagpu.kernels.qk_norm import QkNorm, qk_norm
from llamagpu.kernels.qkv import qkv
from llamagpu.kernels.residual import add_norm, add_to
from llamagpu.kernels.rms_norm import rms_norm
from llamagpu.kernels.rope import rope
from llamagpu.kernels.scores import Scores
from llamagpu.model.architecture import LayerSpec
from llamagpu.model.config import Config
from llamagpu.model.lora_stack import LoraStack
from llamagpu.model.rope import Rope
from llamagpu.model.weights import Layer


def activation_columns(config: Config, fused: bool) -> dict[str, int]:
    """Float columns of each activation buffer, by name."""
    c = config
    columns = {"x": c.hidden_size, "normed": c.hidden_size, "attended": c.q_size, "gated": c.intermediate_size}
    if not fused or any(spec.apart for spec in c.layers):
        columns |= {"qkv": c.q_size + 2 * c.kv_size, "q": c.q_size}
    if not fused or c.outer.embed_norm or any(spec.post_norms for spec in c.layers):
        columns |= {"projected": c.hidden_size}
    if fused:
        return columns | {"prenorm": prenorm_columns(c.hidden_size), "q": c.q_size}
    width = 2 if all(spec.gated for spec in c.layers) else 1
    return columns | {"y": c.hidden_size, "gate_up": width * c.intermediate_size}


@dataclass(frozen=True)
class Workspace:
    """The buffers that operations work on.

    Attributes:
        rotations: f32 [positions, head_dim] by rotary embedding, see ``rope_table``.
        pages: u32 [slots, pages of a sequence], the page table.
        step_rows: u32 [rows, 4], the step's state.
        activations: f32 [rows, …] by name, see ``activation_columns``.
        partials: the results of decode attention's runs.
        loras: the adapters that rows may use; None leaves their kernels out.
    """

    config: Config
    rotations: Mapping[Rope | None, Tensor]
    pages: Tensor
    step_rows: Tensor
    activations: dict[str, Tensor]
    partials: Tensor
    loras: LoraStack | None = None


def scores_of(spec: LayerSpec) -> Scores:
    """How the attention of a layer makes its scores."""
    return Scores(spec.attention_scale, spec.score_cap, spec.window)


class _Operations:
    """The base of all forms. A prompt has ``rows`` consecutive positions of one sequence, and ``splits`` is None. A
    decode step has one position each of ``rows`` sequences, with up to ``splits`` attention runs."""

    def __init__(self, space: Workspace, rows: int, splits: int | None = None):
        self._space, self._config, self._rows, self._splits = space, space.config, rows, splits
        self._state = space.step_rows.head(rows)
        self._heads, self._eps = space.config.num_attention_heads, space.config.rms_norm_eps

    def _take(self, name: str) -> Tensor:
        return self._space.activations[name].head(self._rows)

    def _bias(self, source: Source, w: Tensor, bias: Tensor | None) -> Tensor | None:
        """The bias of a product with the adapters of the rows."""
        loras = self._space.loras
        return bias if loras is None else loras.bias(source, w, bias, self._state)

    def _partials(self, splits: int) -> Tensor:
        shape = partial_shape(self._rows, self._heads, self._config.head_dim, splits)
        return Tensor(self._space.partials.device, shape, "f32", (self._space.partials.part,))

    def _decode(self, q: Tensor, cache: Cache, splits: int, scores: Scores) -> Tensor:
        return attention_decode(q, self._state, cache, self._heads, splits, self._partials(splits), scores)

    def _merge(self, partials: Tensor, splits: int, scores: Scores) -> Tensor:
        d = self._config.head_dim
        return attention_merge(partials, self._state, self._heads, d, splits, self._take("attended"), scores)

    def _finish(self, projected: Tensor, layer: Layer, spec: LayerSpec, cache: Cache) -> Tensor:
        """q from q, k and v as projected; the pass of ``LayerSpec.apart``."""
        how = QkNorm(spec.qk_norm, self._eps, *(spec.query_scaling or ()))
        table = self._space.rotations[spec.rope]
        return qk_norm(projected, how, layer.qk_norm, self._state, table, cache, self._take("q"))

    def _prefill(self, q: Tensor, spec: LayerSpec, cache: Cache) -> Tensor:
        return attention_prefill(q, self._state, cache, self._heads, self._take("attended"), scores_of(spec))

    def _logits(self, value: Source, w: Tensor, out: Tensor) -> None:
        """Logits, scaled and capped as the model has them; by the same kernels for any number of rows."""
        outer = self._config.outer
        product(value, w, None, store(out, outer.logit_scale, outer.logit_cap))


class Unfused(_Operations):
    """One kernel for each operation of the formula: readable, and the oracle of the fused form."""

    def __init__(self, space: Workspace, rows: int, splits: int | None = None):
        super().__init__(space, rows, splits)
        # Never by the number of rows: a sequence has the same bits alone and in company.
        self._multiplied = matmul_nt if splits is None else matvec
        self._x, self._other = self._take("x"), self._take("y")

    def _multiply(self, value: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        return self._multiplied(value, w, self._bias(plain(value), w, bias), out)

    def embed(self, table: Tensor, norm: Tensor | None, next_norm: Tensor | None) -> None:
        embedding(table, self._state, self._x if norm is None else self._other, self._config.outer.embed_scale)
        if norm is not None:
            rms_norm(self._other, norm, self._eps, self._x)

    def norm(self, weight: Tensor | None) -> Tensor:
        return self._x if weight is None else rms_norm(self._x, weight, self._eps, self._take("normed"))

    def qkv(self, value: Tensor, layer: Layer, spec: LayerSpec, cache: Cache) -> Tensor:
        c, out = self._config, self._multiply(value, layer.qkv, layer.qkv_bias, self._take("qkv"))
        if spec.apart:
            return self._finish(out, layer, spec, cache)
        rope(out, self._state, self._space.rotations[spec.rope], self._heads + c.num_key_value_heads)
        kv_write(out, self._state, cache, first=c.q_size)
        return out

    def attention(self, q: Tensor, spec: LayerSpec, cache: Cache) -> Tensor:
        if self._splits is None:
            return self._prefill(q, spec, cache)
        scores = scores_of(spec)
        splits = scores.splits(self._splits)
        partials = self._decode(q, cache, splits, scores)
        return self._merge(partials, splits, scores) if splits > 1 else partials

    def mlp(self, value: Tensor, layer: Layer, spec: LayerSpec) -> Tensor:
        wide, gated = self._take("gate_up"), self._take("gated")
        if spec.gated:
            return gate(self._multiply(value, layer.gate_up, layer.gate_up_bias, wide), gated, spec.activation)
        return activate(self._multiply(value, layer.gate_up, layer.gate_up_bias, wide), spec.activation, gated)

    def add(
        self,
        value: Tensor,
        w: Tensor,
        bias: Tensor | None,
        spec: LayerSpec,
        out_norm: Tensor | None,
        next_norm: Tensor | None,
    ) -> None:
        made = self._multiply(value, w, bias, self._take("projected"))
        if out_norm is not None:
            made = rms_norm(made, out_norm, self._eps, self._take("normed"))
        if spec.residual_scale != 1:
            made = scale(made, spec.residual_scale, self._take("normed"))
        add(self._x, made, self._other)
        self._x, self._other = self._other, self._x

    def logits(self, value: Tensor, head: Tensor, out: Tensor) -> None:
        self._logits(plain(value), head, out)


class _Fused(_Operations):
    """Rotary embedding, cache writes, the gate and residual additions are epilogues of the products beside them."""

    _many = False  # whether products take the kernels for many vectors

    def _next(self, norm: Tensor | None) -> NextNorm | None:
        """The norm that reads x next, from its weight."""
        return None if norm is None else NextNorm(self._take("prenorm"), norm)

    def embed(self, table: Tensor, norm: Tensor | None, next_norm: Tensor | None) -> None:
        x, following = self._take("x"), self._next(next_norm)
        begin = partial(begin_step, table, self._state, self._space.pages, factor=self._config.outer.embed_scale)
        if norm is None:
            begin(x, following=following)
        else:
            begin(self._take("projected"))
            post_norm(self._take("projected"), norm, self._eps, x, add=False, following=following)

    def qkv(self, value: Source, layer: Layer, spec: LayerSpec, cache: Cache) -> Source:
        q, bias = self._take("q"), self._bias(value, layer.qkv, layer.qkv_bias)
        if spec.apart:
            product(value, layer.qkv, bias, store(self._take("qkv")), self._many)
            return plain(self._finish(self._take("qkv"), layer, spec, cache))
        epilogue = qkv(q, self._state, self._space.rotations[spec.rope], cache, self._heads)
        product(value, layer.qkv, bias, epilogue, self._many)
        return plain(q)

    def mlp(self, value: Source, layer: Layer, spec: LayerSpec) -> Source:
        gated = self._take("gated")
        epilogue = (glu if spec.gated else activated)(gated, spec.activation)
        product(value, layer.gate_up, self._bias(value, layer.gate_up, layer.gate_up_bias), epilogue, self._many)
        return plain(gated)

    def logits(self, value: Source, head: Tensor, out: Tensor) -> None:
        self._logits(value, head, out)


class FusedPrompt(_Fused):
    """The fused form for prompts. Norms keep their own dispatches, because they take only 2 % of a prompt's time. All
    lengths take the same kernels, so that a row's bits do not depend on the rows that share its pass."""

    _many = True

    def __init__(self, space: Workspace, rows: int):
        super().__init__(space, rows)

    def norm(self, weight: Tensor | None) -> Source:
        x = self._take("x")
        return plain(x if weight is None else rms_norm(x, weight, self._eps, self._take("normed")))

    def attention(self, q: Source, spec: LayerSpec, cache: Cache) -> Source:
        return plain(self._prefill(self._take("q"), spec, cache))

    def add(
        self,
        value: Source,
        w: Tensor,
        bias: Tensor | None,
        spec: LayerSpec,
        out_norm: Tensor | None,
        next_norm: Tensor | None,
    ) -> None:
        bias = self._bias(value, w, bias)
        if out_norm is None:
            product(value, w, bias, add_to(self._take("x"), spec.residual_scale), self._many)
        else:
            product(value, w, bias, store(self._take("projected")), self._many)
            post_norm(self._take("projected"), out_norm, self._eps, self._take("x"))


class FusedStep(_Fused):
    """The fused form for decode steps. The operation that writes x also writes the prenorm buffer of the next norm; the
    product that reads it scales its results."""

    def __init__(self, space: Workspace, rows: int, splits: int):
        super().__init__(space, rows, splits)
        self._runs = splits

    def norm(self, weight: Tensor | None) -> Source:
        if weight is None:
            return plain(self._take("x"))
        return normed(self._take("prenorm"), self._config.hidden_size, self._eps)

    def attention(self, q: Source, spec: LayerSpec, cache: Cache) -> Source:
        scores = scores_of(spec)
        splits = scores.splits(self._runs)
        partials = self._decode(self._take("q"), cache, splits, scores)
        if splits == 1:
            return plain(partials)
        most = min(MERGED_RUNS, partials.device.tuning.merged_runs)
        alone = self._rows == 1 and self._space.loras is None  # several readers would each merge many times
        if splits <= most and alone:
            return merged(partials, self._state, self._heads, self._config.head_dim, splits, scores)
        return plain(self._merge(partials, splits, scores))

    def add(
        self,
        value: Source,
        w: Tensor,
        bias: Tensor | None,
        spec: LayerSpec,
        out_norm: Tensor | None,
        next_norm: Tensor | None,
    ) -> None:
        x, bias = self._take("x"), self._bias(value, w, bias)
        if out_norm is not None:
            product(value, w, bias, store(self._take("projected")))
            post_norm(self._take("projected"), out_norm, self._eps, x, following=self._next(next_norm))
        elif next_norm is None:
            product(value, w, bias, add_to(x, spec.residual_scale))
        else:
            product(value, w, bias, add_norm(x, self._take("prenorm"), next_norm, spec.residual_scale))
