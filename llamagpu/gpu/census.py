"""Counting the use of the native library: calls, objects created, bytes moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llamagpu.gpu import native

_SIZES = {  # the direction of a transfer, and the argument that holds its bytes
    "wgpuQueueWriteBuffer": ("up", 4),
    "wgpuBufferGetMappedRange": ("down", 2),
    "wgpuBufferGetConstMappedRange": ("down", 2),
}
_MAKERS = ("wgpuCommandEncoderBeginComputePass", "wgpuCommandEncoderFinish")


@dataclass
class Census:
    """Native calls by name, and bytes moved up to the device and down to the host."""

    calls: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    @property
    def objects(self) -> dict[str, int]:
        """Native objects created, by call."""
        return {k: n for k, n in self.calls.items() if k.startswith("wgpuDeviceCreate") or k in _MAKERS}

    @property
    def dispatches(self) -> int:
        return self.calls["wgpuComputePassEncoderDispatchWorkgroups"]

    @property
    def pipelines(self) -> int:
        return self.calls["wgpuDeviceCreateComputePipeline"]


@contextmanager
def census() -> Iterator[Census]:
    """Count every native call of this process inside the block: raw calls, and those of wgpu-py's objects."""
    found, lib, libf = Census(), native.lib, native.libf
    kept = {name: fn for name, fn in vars(libf).items() if name.startswith("wgpu")}

    def counted(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        way, at = _SIZES.get(name, ("", 0))

        def call(*args: Any) -> Any:
            found.calls[name] += 1
            if way and args[at]:
                found.bytes[way] += int(args[at])
            return fn(*args)

        return call

    class Counting:
        def __getattr__(self, name: str) -> Any:
            value = getattr(lib, name)
            if not name.startswith("wgpu"):
                return value
            setattr(self, name, counted(name, value))
            return self.__dict__[name]

    for name, fn in kept.items():
        setattr(libf, name, counted(name, fn))
    native.lib = Counting()
    try:
        yield found
    finally:
        native.lib = lib
        for name, fn in kept.items():
            setattr(libf, name, fn)
