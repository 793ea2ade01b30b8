"""GPU adapters: listing them, choosing one by a rule, and requesting a device from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from llamagpu.errors import NoAdapterError
from llamagpu.gpu import native
from llamagpu.gpu.tuning import SHADER_F16, SUBGROUP

log = logging.getLogger("llamagpu")

_KIND_ORDER = {"discrete": 0, "integrated": 1, "other": 2, "software": 3}
_KINDS = {"DiscreteGPU": "discrete", "IntegratedGPU": "integrated", "CPU": "software"}
_BACKEND_ORDER = {"Metal": 0, "Vulkan": 0, "D3D12": 1}  # auto never chooses OpenGL
WANTED_FEATURES = (SHADER_F16, SUBGROUP, "timestamp-query", "timestamp-query-inside-passes")
# WebGPU's defaults. Every kernel keeps within them, so only the buffer sizes are raised.
_BASELINE = {
    "max-bind-groups": 4,
    "max-storage-buffers-per-shader-stage": 8,
    "max-uniform-buffers-per-shader-stage": 12,
    "max-uniform-buffer-binding-size": 65536,
    "max-storage-buffer-binding-size": 134217728,
    "max-buffer-size": 268435456,
    "min-uniform-buffer-offset-alignment": 256,
    "min-storage-buffer-offset-alignment": 256,
    "max-compute-workgroup-storage-size": 16384,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-size-x": 256,
    "max-compute-workgroup-size-y": 256,
    "max-compute-workgroup-size-z": 64,
    "max-compute-workgroups-per-dimension": 65535,
}
_INSTALL = (
    "Install a Vulkan driver for the GPU. The software driver of Debian and Ubuntu: apt-get install mesa-vulkan-drivers"
)


@dataclass(frozen=True)
class Adapter:
    """One adapter as the driver reports it, with its place in the driver's list."""

    index: int
    name: str
    kind: str  # discrete, integrated, software or other
    backend: str  # Vulkan, Metal, D3D12, OpenGL
    driver: str
    handle: Any

    @property
    def usable(self) -> bool:
        """Whether ``auto`` may choose it."""
        return self.backend in _BACKEND_ORDER

    def request_device(self, baseline: bool) -> tuple[Any, frozenset[str]]:
        """A native device and its features. ``baseline`` requests no features and WebGPU's default limits."""
        features = [] if baseline else [f for f in WANTED_FEATURES if f in self.handle.features]
        limits = dict(_BASELINE)
        if not baseline:
            for key in ("max-storage-buffer-binding-size", "max-buffer-size"):
                limits[key] = self.handle.limits[key]
        with native.errors("opening the device"):
            handle = self.handle.request_device_sync(required_features=features, required_limits=limits)
        return handle, frozenset(features)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.backend})"


def list_adapters() -> list[Adapter]:
    """Every adapter of the machine, in the driver's order."""
    native.check_process()
    with native.errors("listing the adapters"):
        handles = native.wgpu.gpu.enumerate_adapters_sync()
    out = []
    for index, handle in enumerate(handles):
        info = handle.info
        out.append(
            Adapter(
                index=index,
                name=info.get("device", "") or "unnamed",
                kind=_KINDS.get(info.get("adapter_type", ""), "other"),
                backend=info.get("backend_type", ""),
                driver=info.get("description", ""),
                handle=handle,
            )
        )
    return out


def same_adapter(adapter: Adapter) -> Adapter:
    """An adapter as the driver lists it now.

    Raises:
        NoAdapterError: it is not there any more.
    """
    known = (adapter.name, adapter.kind, adapter.backend, adapter.driver)
    same = [a for a in list_adapters() if (a.name, a.kind, a.backend, a.driver) == known]
    if not same:
        raise NoAdapterError(f"{adapter} is not there any more.", "", "Choose another one with --device.")
    return min(same, key=lambda a: abs(a.index - adapter.index))


def choose_adapter(device: str = "auto", adapters: list[Adapter] | None = None) -> tuple[Adapter, str]:
    """The adapter for a request, and the reason for the choice in words.

    ``device`` is ``"auto"``; a number from the list; a kind (``discrete``, ``integrated``, ``software``);
    a backend (``vulkan``, ``metal``, ``d3d12``, ``opengl``); or a part of the adapter's name.
    Among several, discrete comes before integrated before software, and Vulkan or Metal before DX12.

    Raises:
        NoAdapterError: the machine has no adapter, or none that matches.
    """
    found = list_adapters() if adapters is None else adapters
    want = device.strip().lower()
    if not found:
        raise NoAdapterError("No GPU adapter was found.", "The machine has no Vulkan, Metal or DX12 driver.", _INSTALL)
    if want.isdigit():
        matching = [a for a in found if a.index == int(want)]
        reason = f"device {want} was asked for"
    elif want in ("", "auto"):
        matching = [a for a in found if a.usable]
        reason = "the rule is discrete before integrated before software"
    else:
        want = {"cpu": "software", "dx12": "d3d12", "gl": "opengl"}.get(want, want)
        matching = [a for a in found if want in (a.kind, a.backend.lower())]
        matching = matching or [a for a in found if want in a.name.lower()]
        reason = f"{device!r} was asked for"
    if not matching:
        listing = "; ".join(f"{a.index}: {a}" for a in found)
        if want in ("", "auto"):
            raise NoAdapterError(
                "No Vulkan, Metal or DX12 adapter was found.", f"auto does not choose OpenGL: {listing}.", _INSTALL
            )
        hint = "Choose one of them by its number, kind, backend or name."
        raise NoAdapterError(f"No adapter matches {device!r}.", f"This machine has {listing}.", hint)
    best = min(matching, key=lambda a: (_KIND_ORDER[a.kind], _BACKEND_ORDER.get(a.backend, 9), a.index))
    log.info("using %s: %s (adapters found: %d)", best, reason, len(found))
    return best, reason
