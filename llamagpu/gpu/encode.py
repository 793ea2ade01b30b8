"""Encoding dispatches into a compute pass: by raw calls with handles looked up once, or through wgpu-py's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamagpu.gpu import native
from llamagpu.gpu.linker import Program


@dataclass(frozen=True)
class Dispatch:
    """One call with its handles and workgroup counts; see ``Call`` for the rest."""

    program: Program
    pipeline: Any
    bind_groups: tuple[tuple[int, Any], ...]
    x: int
    y: int
    work: int
    reads: int


class Encoder:
    """Encodes slices of a list of dispatches. Both ways skip a pipeline or bind group that is set already."""

    def __init__(self, dispatches: Sequence[Dispatch]):
        self._dispatches = dispatches
        self._raw: list[tuple[Any, ...]] | None = None
        if native.has_raw_pass:
            self._raw = [
                (d.pipeline._internal, [(i, g._internal) for i, g in d.bind_groups], d.x, d.y) for d in dispatches
            ]

    def encode(self, compute: Any, begin: int = 0, end: int | None = None) -> None:
        """Encode dispatches ``begin`` to ``end`` into an open compute pass."""
        if self._raw is not None and native.use_raw_pass:
            self._encode_raw(compute._internal, self._raw[begin:end])
        else:
            self._encode_objects(compute, self._dispatches[begin:end])

    @staticmethod
    def _encode_raw(compute: Any, dispatches: list[tuple[Any, ...]]) -> None:
        lib, null = native.lib, native.ffi.NULL
        set_pipeline, set_group = lib.wgpuComputePassEncoderSetPipeline, lib.wgpuComputePassEncoderSetBindGroup
        dispatch = lib.wgpuComputePassEncoderDispatchWorkgroups
        current: Any = None
        bound: list[Any] = [None] * 4
        for pipeline, groups, x, y in dispatches:
            if pipeline is not current:
                set_pipeline(compute, pipeline)
                current = pipeline
            for index, group in groups:
                if group is not bound[index]:
                    set_group(compute, index, group, 0, null)
                    bound[index] = group
            dispatch(compute, x, y, 1)

    @staticmethod
    def _encode_objects(compute: Any, dispatches: Sequence[Dispatch]) -> None:
        current: Any = None
        bound: list[Any] = [None] * 4
        for d in dispatches:
            if d.pipeline is not current:
                compute.set_pipeline(d.pipeline)
                current = d.pipeline
            for index, group in d.bind_groups:
                if group is not bound[index]:
                    compute.set_bind_group(index, group)
                    bound[index] = group
            compute.dispatch_workgroups(d.x, d.y, 1)
