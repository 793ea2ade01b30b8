"""GPU adapters: listing them, choosing one by a rule, and requesting a device from it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamagpu.errors import NoAdapterError, OutOfMemoryError
from llamagpu.gpu import native
from llamagpu.gpu.limits import Capacity, adapter_capacity
from llamagpu.gpu.tuning import SHADER_F16, SHADER_INT64, SUBGROUP

log = logging.getLogger("llamagpu")
VARIABLE = "LLAMAGPU_DEVICE"
Need = Callable[[Capacity], object]

_KIND_ORDER = {"discrete": 0, "integrated": 1, "other": 2, "software": 3}
_KINDS = {"DiscreteGPU": "discrete", "IntegratedGPU": "integrated", "CPU": "software"}
_BACKEND_ORDER = {"Metal": 0, "Vulkan": 0, "D3D12": 1}  # auto never chooses OpenGL
WANTED_FEATURES = (SHADER_F16, SHADER_INT64, SUBGROUP, "timestamp-query", "timestamp-query-inside-passes")
# WebGPU's defaults. Every kernel keeps within them, so only the buffer sizes are raised.
DEFAULT_LIMITS = {
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
    def vendor(self) -> int:
        """The vendor's PCI id; 0 if the driver does not tell."""
        return int(self.handle.info.get("vendor_id") or 0)

    @property
    def product(self) -> int:
        """The product's PCI id; 0 if the driver does not tell."""
        return int(self.handle.info.get("device_id") or 0)

    @property
    def largest_binding(self) -> int:
        """Bytes that one binding of one buffer can hold, on a device with this adapter's own limits."""
        return most_binding(self.handle.limits)

    @property
    def usable(self) -> bool:
        """Whether ``auto`` may choose it."""
        return self.backend in _BACKEND_ORDER

    def request_device(self, baseline: bool) -> tuple[Any, frozenset[str]]:
        """A native device and its features. ``baseline`` requests no features and WebGPU's default limits."""
        features = [] if baseline else [f for f in WANTED_FEATURES if f in self.handle.features]
        limits = dict(DEFAULT_LIMITS)
        if not baseline:
            for key in ("max-storage-buffer-binding-size", "max-buffer-size"):
                limits[key] = self.handle.limits[key]
        with native.errors("opening the device"):
            handle = self.handle.request_device_sync(required_features=features, required_limits=limits)
        return handle, frozenset(features)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.backend})"


def most_binding(limits: Any) -> int:
    """Bytes that one binding of one buffer can hold."""
    return int(min(limits["max-storage-buffer-binding-size"], limits["max-buffer-size"], 2**32 - 4))


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


def choose_adapter(
    device: str = "auto", adapters: list[Adapter] | None = None, need: Need | None = None, most: int | str | None = None
) -> tuple[Adapter, str]:
    """The adapter for a request, and the reason for the choice in words.

    ``device`` is ``"auto"``; a number from the list; a kind (``discrete``, ``integrated``, ``software``);
    a backend (``vulkan``, ``metal``, ``d3d12``, ``opengl``); or a part of the adapter's name. The environment variable
    LLAMAGPU_DEVICE takes the place of ``"auto"``. Among several, discrete comes before integrated before software, and
    Vulkan or Metal before DX12; but an adapter that ``need`` refuses comes after those that it accepts.

    Args:
        need: raises OutOfMemoryError if a model does not fit a capacity.
        most: the most bytes that buffers may take together, see ``parse_bytes``.

    Raises:
        NoAdapterError: the machine has no adapter, or none that matches.
        OutOfMemoryError: no adapter that matches fits; the error is that of the one with the most memory.
    """
    found = list_adapters() if adapters is None else adapters
    order, reason = allowed_adapters(device, found)
    adapter, passed = fitting_adapter(order, need, most)
    if passed is not None:
        reason = f"{order[0]} was passed over: {passed.what}"
        log.warning("using %s; %s", adapter, reason)
    _warn_of_software(device, adapter)
    log.info("using %s: %s (adapters found: %d)", adapter, reason, len(found))
    return adapter, reason


def fitting_adapter(
    order: list[Adapter], need: Need | None, most: int | str | None = None
) -> tuple[Adapter, OutOfMemoryError | None]:
    """The first adapter that ``need`` accepts, and why it refused the first of all, if it did.

    Raises:
        OutOfMemoryError: see ``choose_adapter``.
    """
    if need is None:
        return order[0], None
    refused: list[tuple[int, OutOfMemoryError]] = []
    for adapter in order:
        capacity = adapter_capacity(adapter, most)
        try:
            need(capacity)
        except OutOfMemoryError as e:
            refused.append((capacity.free or 0, e))
        else:
            return adapter, refused[0][1] if refused else None
    raise max(refused, key=lambda r: r[0])[1]


def allowed_adapters(device: str, found: list[Adapter]) -> tuple[list[Adapter], str]:
    """The adapters that a request allows, the preferred one first, and the reason for that in words; see
    ``choose_adapter``."""
    matching, reason = _matching(device, found)
    return sorted(matching, key=lambda a: (_KIND_ORDER[a.kind], _BACKEND_ORDER.get(a.backend, 9), a.index)), reason


def _matching(device: str, found: list[Adapter]) -> tuple[list[Adapter], str]:
    """The adapters that a request allows, and the reason in words."""
    want, asked = device.strip().lower(), repr(device)
    if want in ("", "auto") and os.environ.get(VARIABLE):
        asked = f"{VARIABLE}={os.environ[VARIABLE]}"
        want = os.environ[VARIABLE].strip().lower()
    if not found:
        raise NoAdapterError("No GPU adapter was found.", "The machine has no Vulkan, Metal or DX12 driver.", _INSTALL)
    reason = f"{asked} was asked for"
    if want.isdigit():
        matching = [a for a in found if a.index == int(want)]
    elif want in ("", "auto"):
        matching = [a for a in found if a.usable]
        reason = "the rule is discrete before integrated before software"
    else:
        want = {"cpu": "software", "dx12": "d3d12", "gl": "opengl"}.get(want, want)
        matching = [a for a in found if want in (a.kind, a.backend.lower())]
        matching = matching or [a for a in found if want in a.name.lower()]
    if matching:
        return matching, reason
    listing = "; ".join(f"{a.index}: {a}" for a in found)
    if want in ("", "auto"):
        raise NoAdapterError(
            "No Vulkan, Metal or DX12 adapter was found.", f"auto does not choose OpenGL: {listing}.", _INSTALL
        )
    hint = "Choose one of them by its number, kind, backend or name."
    raise NoAdapterError(f"No adapter matches {asked}.", f"This machine has {listing}.", hint)


_warned = False


def _warn_of_software(device: str, adapter: Adapter) -> None:
    """Say once in a process that no GPU was found, unless somebody asked for an adapter, be it any."""
    global _warned
    asked = device.strip().lower() not in ("", "auto") or os.environ.get(VARIABLE)
    if adapter.kind == "software" and not asked and not _warned:
        _warned = True
        log.warning("using the software adapter %s, which is slow (%s=software hides this line)", adapter, VARIABLE)
