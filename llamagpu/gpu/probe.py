"""The memory of discrete GPUs, which WebGPU does not tell: from the operating system and the drivers, where they do.

A GPU is found by the ids of its PCI vendor and product. Nothing here is required: what cannot be read is unknown.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

NVIDIA = 0x10DE
_DRM = Path("/sys/class/drm")
_DISPLAYS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"


def video_memory(vendor: int, product: int) -> int | None:
    """Bytes of a discrete GPU's memory that are free, or all of them where only that can be read; None if unknown.

    Of several equal GPUs it is the largest number, because nothing tells which of them an adapter is.
    """
    readers: list[Callable[[], Iterator[int]]] = []
    if sys.platform == "linux":
        readers.append(partial(_amdgpu, _DRM, vendor, product))
    if vendor == NVIDIA:
        readers.append(partial(_nvidia, product))
    if sys.platform == "win32":
        import winreg

        readers.append(partial(_windows, winreg, vendor, product))
    for read in readers:
        with suppress(OSError, ValueError, AttributeError):  # no such driver, or not its files
            sizes = [size for size in read() if size > 0]
            if sizes:
                return max(sizes)
    return None


def _amdgpu(root: Path, vendor: int, product: int) -> Iterator[int]:
    """Free memory by the files of the amdgpu driver on Linux: the total less what is used."""
    for total in root.glob("card*/device/mem_info_vram_total"):
        folder = total.parent
        ids = [int((folder / name).read_text(), 16) for name in ("vendor", "device")]
        if ids == [vendor, product]:
            yield int(total.read_text()) - int((folder / "mem_info_vram_used").read_text())


class _Pci(ctypes.Structure):
    """nvmlPciInfo_t."""

    _fields_ = (
        ("busIdLegacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pciDeviceId", ctypes.c_uint),  # product and vendor, 16 bits each
        ("pciSubSystemId", ctypes.c_uint),
        ("busId", ctypes.c_char * 32),
    )


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _nvidia(product: int) -> Iterator[int]:
    """Free memory from NVML, the library that comes with NVIDIA's driver."""
    nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")

    def call(name: str, *arguments: Any) -> None:
        if getattr(nvml, name)(*arguments):
            raise OSError(f"{name} failed")

    call("nvmlInit_v2")
    try:
        count = ctypes.c_uint()
        call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        for index in range(count.value):
            handle, pci, memory = ctypes.c_void_p(), _Pci(), _Memory()
            call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
            call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(pci))
            if pci.pciDeviceId == product << 16 | NVIDIA:
                call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
                yield int(memory.free)
    finally:
        nvml.nvmlShutdown()


def _windows(registry: Any, vendor: int, product: int) -> Iterator[int]:
    """All memory from the registry keys of the display drivers. ``registry`` is the module ``winreg``."""
    wanted = rf"pci\ven_{vendor:04x}&dev_{product:04x}"
    with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, _DISPLAYS) as displays:
        for index in range(registry.QueryInfoKey(displays)[0]):
            with suppress(OSError), registry.OpenKey(displays, registry.EnumKey(displays, index)) as key:
                if registry.QueryValueEx(key, "MatchingDeviceId")[0].lower().startswith(wanted):
                    size = registry.QueryValueEx(key, "HardwareInformation.qwMemorySize")[0]
                    yield int.from_bytes(size, "little") if isinstance(size, bytes) else int(size)
