"""The only module that imports wgpu. It also uses private functions of wgpu-native, if this version has them."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llamagpu.errors import DeviceLostError, KernelError, LlamaGPUError, OutOfMemoryError


def _private_runtime_dir() -> None:
    """Mesa prints "error: XDG_RUNTIME_DIR not set" on standard error: give it a private directory first."""
    if sys.platform == "linux" and not os.environ.get("XDG_RUNTIME_DIR"):
        path = os.path.join(tempfile.gettempdir(), f"llamagpu-runtime-{os.getuid()}")
        os.makedirs(path, mode=0o700, exist_ok=True)
        if os.stat(path).st_uid == os.getuid():
            os.environ["XDG_RUNTIME_DIR"] = path


_private_runtime_dir()

import wgpu

__all__ = [
    "BufferUsage",
    "Lost",
    "error_log",
    "errors",
    "ffi",
    "has_raw",
    "has_raw_pass",
    "has_trusted",
    "lib",
    "libf",
    "lost",
    "wgpu",
]

BufferUsage = wgpu.BufferUsage
_RAW_NAMES = (
    "wgpuBufferMapAsync",
    "wgpuBufferGetMappedRange",
    "wgpuBufferUnmap",
    "wgpuDevicePoll",
)
_PASS_NAMES = (
    "wgpuComputePassEncoderSetPipeline",
    "wgpuComputePassEncoderSetBindGroup",
    "wgpuComputePassEncoderDispatchWorkgroups",
)
_TRUSTED_NAME = "wgpuDeviceCreateShaderModuleTrusted"

try:
    from wgpu.backends.wgpu_native import ffi, lib
    from wgpu.backends.wgpu_native._api import libf

    has_raw = all(hasattr(libf, name) for name in _RAW_NAMES)
    has_raw_pass = all(hasattr(lib, name) for name in _PASS_NAMES)
    has_trusted = hasattr(libf, _TRUSTED_NAME)
except ImportError:  # another backend of wgpu-py, or private names that moved: use wgpu-py's objects
    ffi = lib = libf = None
    has_raw = has_raw_pass = has_trusted = False
use_raw_pass = True  # if has_raw_pass; tests and benchmarks set False to compare with wgpu-py's objects


def version() -> str:
    """The versions of wgpu-py and wgpu-native."""
    native = ".".join(str(part) for part in getattr(wgpu.backends.wgpu_native, "lib_version_info", ()))
    return f"wgpu {wgpu.__version__} (wgpu-native {native or 'unknown'})"


class ErrorLog(logging.Handler):
    """Counts the errors that wgpu-py only logs: a lost device, and errors outside of any call.

    A log record does not name its device. So when the count has grown, each gate checks its own device.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        self.last = record.getMessage().strip()


error_log = ErrorLog()
_logger = logging.getLogger("wgpu")
_logger.addHandler(error_log)
_logger.propagate = False  # relevant errors are raised as ours; the log would clutter standard error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Validation Error", "Caused by", "In "))), str(error))


@contextmanager
def errors(doing: str) -> Iterator[None]:
    """Turn wgpu's errors into ours; ``doing`` names the operation in them."""
    try:
        yield
    except wgpu.GPUOutOfMemoryError as e:
        raise OutOfMemoryError(
            f"The GPU ran out of memory while {doing}.",
            _first_line(e),
            "Use a smaller model or context, or a smaller dtype.",
        ) from e
    except (wgpu.GPUError, wgpu.GPUValidationError) as e:
        if "lost" in str(e).lower():
            raise lost(str(e)) from e
        raise KernelError(f"The driver refused a call while {doing}.", str(e).strip()) from e
    except RuntimeError as e:
        if isinstance(e, LlamaGPUError):
            raise
        raise KernelError(f"The driver failed while {doing}.", str(e).strip()) from e


class Lost(DeviceLostError):
    """The driver lost the device, or does not answer."""


def lost(detail: str) -> Lost:
    """The error for a lost device."""
    return Lost(
        "The GPU device was lost.",
        detail.strip().splitlines()[-1].strip() if detail.strip() else "The driver gave no reason.",
        "Close this model and load it again; if it happens again, try a smaller model or another --device.",
    )


def trusted_module(device: Any, code: str, label: str) -> Any:
    """A shader module without bounds checks and loop bounds (``wgpuDeviceCreateShaderModuleTrusted``)."""
    source = ffi.new("WGPUShaderSourceWGSL *")
    text, name = code.encode(), label.encode()
    c_text, c_name = ffi.new("char[]", text), ffi.new("char[]", name)
    source.chain.sType = lib.WGPUSType_ShaderSourceWGSL
    source.code.data, source.code.length = c_text, len(text)
    descriptor = ffi.new("WGPUShaderModuleDescriptor *")
    descriptor.nextInChain = ffi.cast("WGPUChainedStruct *", source)
    descriptor.label.data, descriptor.label.length = c_name, len(name)
    handle = getattr(libf, _TRUSTED_NAME)(device._internal, descriptor, 0)
    return wgpu.backends.wgpu_native.GPUShaderModule(label, handle, device)


def destroy_device(device: Any) -> None:
    """Destroy a device, and break the reference cycles of wgpu-py's objects for it and its queue. They would keep its
    memory until a garbage collection."""
    queue = device.queue
    device.destroy()
    for owned in (queue, device):
        if getattr(owned, "_device", None) is device:
            owned._device = None


_used = False  # whether this process, or its parent before a fork, has listed adapters
_forked = False  # whether this process was forked from one that had listed adapters


def check_process() -> None:
    """Raises DeviceLostError in a forked child whose parent used the GPU before."""
    global _used
    _used = True
    if _forked:
        raise DeviceLostError(
            "A GPU cannot be used after fork.",
            "The parent process had used it, and the driver's threads exist only there.",
            'Start the child with multiprocessing\'s "spawn" method, and open the model there.',
        )


def _after_fork() -> None:
    """Prepare a forked child: release no native objects, and skip the exit handlers of native libraries. Both would
    wait for the drivers' threads, which exist only in the parent, or crash. Python's own exit handlers still run."""
    global _forked
    _forked = _used
    for kind in vars(wgpu.backends.wgpu_native).values():
        if isinstance(kind, type) and hasattr(kind, "_release"):
            kind._release = lambda self: None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc: _exit gets the status as its first argument
        libc.on_exit(libc._exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def object_counts() -> dict[str, int]:
    """Live native objects by kind, as the library counts them."""
    from wgpu.backends.wgpu_native._helpers import generate_report

    hub = generate_report()["hub"]
    return {kind: n["allocated"] for kind, n in hub.items() if isinstance(n, dict)}


def timestamp_period(device: Any) -> float:
    """Seconds per timestamp tick; WebGPU's nanosecond if the library does not report it."""
    if lib is not None and hasattr(lib, "wgpuQueueGetTimestampPeriod"):
        return float(lib.wgpuQueueGetTimestampPeriod(device.queue._internal)) * 1e-9
    return 1e-9


def write_timestamp(compute: Any, query_set: Any, index: int) -> None:
    """Write a timestamp inside a pass (``timestamp-query-inside-passes``)."""
    from wgpu.backends.wgpu_native import extras

    extras.write_timestamp(compute, query_set, index)
