"""The kernels' cases that a model's forward pass stands for: its formats, shapes, masks and epilogues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llamagpu.gpu import TunedLanes, Tuning
from llamagpu.kernels.entry import Dims
from llamagpu.kernels.product import MAX_VECTORS
from llamagpu.kernels.product_cases import product_case
from llamagpu.kernels.scores import RUN
from llamagpu.model.architecture import LayerSpec
from llamagpu.model.layout import Key, Layout, Matrix

_FEW = (1, 2, 4, MAX_VECTORS)  # vectors of decode steps and short prompts that link programs of their own
_MANY = 33  # rows of a longer prompt
_ELEMENTS = 2_000_000  # of a matrix in a case; taller ones lose rows
_POSITIONS = 3 * RUN  # positions of decode attention: several runs


@dataclass(frozen=True)
class ModelCase:
    """A case of a kernel, its tuning, and a text for the variant that it checks."""

    kernel: str
    variant: str
    dims: Dims
    tuning: Tuning


def model_cases(layout: Layout, kv_dtype: str, tuning: Tuning) -> list[ModelCase]:
    """The cases of a model that is loaded with a layout, a cache of ``f32`` or ``f16`` and a tuning.

    Together they link every program of its fused forward pass that depends on the model. Matrices have as many columns
    as in the model, because the order of additions depends on them; tall ones lose rows.
    """
    found = _Cases(layout, kv_dtype, tuning)
    return list({(c.kernel, repr(c.dims), c.tuning): c for c in found.all()}.values())


class _Cases:
    """Makes the cases of a model."""

    def __init__(self, layout: Layout, kv_dtype: str, tuning: Tuning):
        self._layout, self._config, self._kv, self._tuning = layout, layout.config, kv_dtype, tuning

    def all(self) -> Iterator[ModelCase]:
        """The cases in the order of a forward pass; layers that are alike repeat them."""
        layers = range(self._config.num_hidden_layers)
        yield from self._embedding()
        for i in layers:
            spec = self._config.layers[i]
            yield from self._qkv(i, spec)
            yield from self._attention(spec)
            yield from self._add("o", i, spec)
            yield from self._mlp(i, spec)
            yield from self._add("down", i, spec)
        yield from self._norms()
        yield from self._head()

    def _embedding(self) -> Iterator[ModelCase]:
        c, embed = self._config, self._layout.matrices[Key("embed")]
        pre = any(spec.pre_norms for spec in c.layers[:1]) and not c.outer.embed_norm
        sizes = {"vocab": 300, "columns": c.hidden_size, "rows": 5, "format": str(embed.format)}
        for norm in {False, pre}:
            dims = sizes | {"norm": norm, "factor": c.outer.embed_scale}
            yield ModelCase("begin_step", f"{embed.format}{', next norm' if norm else ''}", dims, self._tuning)

    def _norms(self) -> Iterator[ModelCase]:
        c, size = self._config, {"rows": 5, "columns": self._config.hidden_size}
        if c.outer.embed_norm or any(spec.post_norms for spec in c.layers):
            for add in (True, False):
                for norm in (True, False):
                    yield ModelCase("post_norm", "", size | {"norm": norm, "add": add}, self._tuning)
        yield ModelCase("rms_norm", "", size | {"eps": c.rms_norm_eps}, self._tuning)

    def _qkv(self, i: int, spec: LayerSpec) -> Iterator[ModelCase]:
        c = self._config
        heads: dict[str, Any] = {"heads": c.num_attention_heads, "kv_heads": c.num_key_value_heads, "head": c.head_dim}
        if not spec.apart:
            yield from self._products("qkv", "qkv", i, spec.pre_norms, 0, **heads, cache=self._kv)
            return
        yield from self._products("store", "qkv", i, spec.pre_norms, 1, factor=1.0, cap=None)
        beta, original = spec.query_scaling or (0.0, 1)
        how = {"norm": spec.qk_norm, "beta": beta, "original": original, "rows": 5, "cache": self._kv}
        yield ModelCase("qk_norm", f"{spec.qk_norm}, cache {self._kv}", heads | how, self._tuning)

    def _attention(self, spec: LayerSpec) -> Iterator[ModelCase]:
        c, window = self._config, spec.window
        length = _POSITIONS if window is None else min(window, 8 * RUN) + _POSITIONS
        form: dict[str, Any] = {"heads": c.num_attention_heads, "kv_heads": c.num_key_value_heads, "head": c.head_dim}
        form |= {"format": self._kv, "scale": spec.attention_scale, "cap": spec.score_cap, "window": window}
        marks = [f"head {c.head_dim}", f"cache {self._kv}"]
        marks += [f"window {window}"] if window else []
        marks += ["soft cap"] if spec.score_cap else []
        variant = ", ".join(marks)
        yield ModelCase(
            "attention_prefill", variant, form | {"rows": 33, "length": length, "prefill": True}, self._tuning
        )
        for positions in (5, length):
            dims = form | {"rows": 2, "length": positions, "prefill": False}
            yield ModelCase("attention_decode", variant, dims, self._tuning)

    def _mlp(self, i: int, spec: LayerSpec) -> Iterator[ModelCase]:
        more: dict[str, Any] = {"activation": spec.activation, "gated": spec.gated}
        yield from self._products("glu", "gate_up", i, spec.pre_norms, 2, **more)

    def _add(self, role: str, i: int, spec: LayerSpec) -> Iterator[ModelCase]:
        """The projections that are added to the residual; that of attention may merge runs of a lone sequence."""
        merges = role == "o" and self._tuning.merged_runs > 1
        if spec.post_norms:
            more: dict[str, Any] = {"factor": 1.0, "cap": None, "window": spec.window}
            yield from self._products("store", role, i, False, 1, merges=merges, **more)
            return
        for norm in (True, False):  # a step prepares the next norm, a prompt does not
            more = {"norm": norm, "factor": spec.residual_scale, "window": spec.window}
            yield from self._products("residual", role, i, False, 1, merges=merges, **more)

    def _head(self) -> Iterator[ModelCase]:
        outer = self._config.outer
        more = {"factor": outer.logit_scale, "cap": outer.logit_cap}
        yield from self._matrix("store", "head", self._layout.head, None, True, 1, **more)

    def _products(
        self, kernel: str, role: str, i: int, normed: bool, unit: int, merges: bool = False, **more: Any
    ) -> Iterator[ModelCase]:
        matrix, bias = self._layout.matrices[Key(role, i)], Key(f"{role}_bias", i) in self._layout.vectors
        if merges:
            yield from self._case(kernel, role, matrix, 1, "merge", bias, unit, head=self._config.head_dim, **more)
        yield from self._matrix(kernel, role, matrix, bias, normed, unit, **more)

    def _matrix(
        self, kernel: str, role: str, matrix: Matrix, bias: bool | None, normed: bool, unit: int, **more: Any
    ) -> Iterator[ModelCase]:
        for m in _FEW:
            for source in ("plain", "normed") if normed else ("plain",):
                yield from self._case(kernel, role, matrix, m, source, bool(bias), unit, **more)
        yield from self._case(kernel, role, matrix, _MANY, "plain", bool(bias), unit, many=True, **more)

    def _case(
        self, kernel: str, role: str, matrix: Matrix, m: int, source: str, bias: bool, unit: int, **more: Any
    ) -> Iterator[ModelCase]:
        """A case with the rows of the matrix, or fewer (a multiple of ``unit``; 0 keeps all)."""
        most = max(unit, _ELEMENTS // matrix.columns // 64 * 64)
        rows = matrix.rows if unit == 0 else min(matrix.rows, most)
        format = str(matrix.format)
        dims = product_case(m, rows, matrix.columns, source, format, bias, **more)
        activation = f", {more['activation']}" if "activation" in more else ""
        variant = f"{role} {format}{activation}, {matrix.columns} columns"
        yield ModelCase(kernel, variant, dims, self._as_tall(matrix, rows))

    def _as_tall(self, matrix: Matrix, rows: int) -> Tuning:
        """The tuning in which a matrix with fewer rows takes the division of the whole one."""
        if rows == matrix.rows:
            return self._tuning
        cut = self._tuning.lanes_for(matrix.format_name, matrix.columns, matrix.rows)
        others = tuple(t for t in self._tuning.lanes if (t.format, t.columns) != (matrix.format_name, matrix.columns))
        return replace(self._tuning, lanes=(*others, TunedLanes(matrix.format_name, matrix.columns, rows, cut)))
