"""Times of a decode step's attention and output projections under tunings, for the tuner."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from llamagpu.gpu import Device, Plan, Tensor, Tuning
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels.attention_paged import partial_shape
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.kernels.noise import noise
from llamagpu.kernels.product import plain
from llamagpu.kernels.step import step_rows
from llamagpu.model.architecture import LayerSpec
from llamagpu.model.forward import split_bucket
from llamagpu.model.layout import Key, Layout, Matrix
from llamagpu.model.operations import FusedStep, Workspace, activation_columns
from llamagpu.model.sizes import kv_format
from llamagpu.model.tuner_products import WARM_AGAIN, copies_of
from llamagpu.model.weights import empty_matrix

DEPTHS = (128, 2000)  # tokens before the steps that attention is chosen by: one run, and eight
MERGED_DEPTHS = (400, 900)  # that the merge is chosen by: two runs, and four, the most that a projection merges


class StepAttention:
    """Times the attention of a model's decode step for one sequence, with the output projections that follow it."""

    def __init__(self, device: Device, layout: Layout):
        self._device, self._config, self._dtype = device, layout.config, kv_format(layout, "auto")
        self._kinds: dict[tuple[object, ...], tuple[LayerSpec, Matrix]] = {}
        self._counts: Counter[tuple[object, ...]] = Counter()
        for i, spec in enumerate(layout.config.layers):
            matrix = layout.matrices[Key("o", i)]
            self._kinds[spec, matrix.format] = spec, matrix
            self._counts[spec, matrix.format] += 1

    def depths(self, wanted: Sequence[int], least: int = 1) -> list[int]:
        """Depths from ``least`` on, each once; one that the model's context does not allow becomes the longest."""
        longest = self._config.max_position_embeddings - 1
        return sorted({d for d in (min(d, longest) for d in wanted) if d >= least})

    def seconds(self, options: Sequence[Tuning], depths: Sequence[int]) -> dict[Tuning, float]:
        """Seconds in all layers together under each option, a sum over steps after ``depths`` tokens each. The options
        have one order of weight rows."""
        total: dict[Tuning, float] = defaultdict(float)
        for kind, (spec, matrix) in self._kinds.items():
            for depth in depths:
                for tuning, seconds in self._layer_seconds(options, spec, matrix, depth).items():
                    total[tuning] += seconds * self._counts[kind]
        return total

    def _layer_seconds(
        self, options: Sequence[Tuning], spec: LayerSpec, matrix: Matrix, depth: int
    ) -> dict[Tuning, float]:
        """Seconds in one layer, as a link of a chain. Every link has a cache and weights of its own, because in a step
        these do not come from the GPU's caches either."""
        device, c = self._device, self._config
        pages, columns = -(-(depth + 1) // PAGE), cache_columns(c.num_key_value_heads, c.head_dim)
        cache_bytes = pages * columns * (2 if self._dtype == "f16" else 4)
        copies = copies_of(device, matrix.nbytes + cache_bytes)
        with device.ledger.tracking() as made:
            table = device.tensor(np.arange(pages, dtype=np.uint32)[None], "u32")
            datas = [noise(device.empty((pages, columns), self._dtype), n) for n in range(copies)]
            caches = [Cache(data, table, c.num_key_value_heads, c.head_dim) for data in datas]
            weights = [noise(empty_matrix(device, matrix, options[0].order == "woven")) for _ in range(copies)]
            space, norm = self._space(table, depth), device.tensor(np.ones(c.hidden_size, np.float32))

        def run() -> None:
            step = FusedStep(space, 1, split_bucket(depth + 1))
            for cache, w in zip(caches, weights, strict=True):
                attended = step.attention(plain(space.activations["q"]), spec, cache)
                step.add(attended, w, None, spec, norm if spec.post_norms else None, norm)

        plans: dict[Tuning, Plan] = {}
        try:
            for tuning in options:
                plans[tuning] = device.record(run, tuning)
            times = time_plans(device, plans, 3, warm=WARM_AGAIN)
        finally:
            for plan in plans.values():
                plan.free()
            for buffer in made:
                device.free(buffer)
        return {tuning: seconds / copies for tuning, seconds in times.items()}

    def _space(self, table: Tensor, depth: int) -> Workspace:
        """The buffers of a step for one sequence after ``depth`` tokens, with random q."""
        device, c = self._device, self._config
        activations = {name: device.empty((1, n)) for name, n in activation_columns(c, fused=True).items()}
        noise(activations["q"], 1, 1.0)
        partials = device.empty(partial_shape(1, c.num_attention_heads, c.head_dim, max(2, split_bucket(depth + 1))))
        return Workspace(c, {}, table, device.tensor(step_rows([0], depth), "u32"), activations, partials)
