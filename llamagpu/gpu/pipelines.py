"""Compiled pipelines, one for every linked program, and their bind group layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llamagpu.errors import KernelError
from llamagpu.gpu import native
from llamagpu.gpu.linker import Linked, Program, link


@dataclass(frozen=True)
class Pipeline:
    """A compiled program: the driver's pipeline, the layout of each bind group, and the module it came from."""

    handle: Any
    layouts: dict[int, Any]
    linked: Linked


class Pipelines:
    """Compiles each program at its first use and keeps it. Use it on the device thread."""

    def __init__(self, handle: Any):
        self._handle = handle
        self._made: dict[tuple[Program, bool], Pipeline] = {}
        self._layouts: dict[tuple[tuple[int, str], ...], Any] = {}

    def __len__(self) -> int:
        return len(self._made)

    def has(self, program: Program, trusted: bool = False) -> bool:
        """Whether ``get`` would compile nothing."""
        return (program, trusted and native.has_trusted) in self._made

    def clear(self) -> None:
        """Drop all pipelines."""
        self._made.clear()

    def get(self, program: Program, trusted: bool = False) -> Pipeline:
        """The pipeline of a program; ``trusted`` drops bounds checks if this wgpu can.

        Raises:
            KernelError: it does not compile; the message names the shader file and line.
        """
        key = (program, trusted and native.has_trusted)
        if key not in self._made:
            self._made[key] = self._compile(*key)
        return self._made[key]

    def _compile(self, program: Program, trusted: bool) -> Pipeline:
        linked = link(program)
        layouts = {g: self._layout(linked, g) for g in range(max((b.group for b in linked.bindings), default=-1) + 1)}
        try:
            with native.errors(f"compiling {program.label}"):
                if trusted:
                    module = native.trusted_module(self._handle, linked.code, program.label)
                else:
                    module = self._handle.create_shader_module(code=linked.code, label=program.label)
                stage: dict[str, Any] = {"module": module, "entry_point": program.entry}
                if program.overrides:
                    stage["constants"] = dict(program.overrides)
                layout = self._handle.create_pipeline_layout(bind_group_layouts=list(layouts.values()))
                handle = self._handle.create_compute_pipeline(layout=layout, compute=stage)
        except KernelError as e:
            raise KernelError(e.what, linked.locate(e.why)) from e
        return Pipeline(handle, layouts, linked)

    def _layout(self, linked: Linked, group: int) -> Any:
        entries = tuple((b.index, b.kind) for b in linked.bindings if b.group == group)
        if entries not in self._layouts:
            visibility = native.wgpu.ShaderStage.COMPUTE
            described = [{"binding": i, "visibility": visibility, "buffer": {"type": kind}} for i, kind in entries]
            with native.errors("making a bind group layout"):
                self._layouts[entries] = self._handle.create_bind_group_layout(entries=described)
        return self._layouts[entries]
