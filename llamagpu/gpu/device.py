"""A device: its limits, its buffers, its pipelines. Everything that touches wgpu runs on its own thread."""

from __future__ import annotations

import atexit
import struct
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType

from llamagpu.errors import DeviceLostError, KernelError
from llamagpu.gpu import native
from llamagpu.gpu.adapter import Adapter, choose_adapter
from llamagpu.gpu.gate import Gate
from llamagpu.gpu.ledger import Ledger, memory_limit
from llamagpu.gpu.linker import Program, link
from llamagpu.gpu.memory import Memory
from llamagpu.gpu.pipelines import Pipelines
from llamagpu.gpu.plan import Call, Plan
from llamagpu.gpu.profiles import stored_tuning
from llamagpu.gpu.staging import Staging
from llamagpu.gpu.tensor import Part
from llamagpu.gpu.thread import DeviceThread
from llamagpu.gpu.tuning import SHADER_F16, SUBGROUP, Tuning, default_tuning

_WANTED_FEATURES = (SHADER_F16, SUBGROUP, "timestamp-query", "timestamp-query-inside-passes")
# WebGPU's defaults: every kernel keeps within them, so they are all that is asked for but for buffer sizes.
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
_open_devices: weakref.WeakSet[Device] = weakref.WeakSet()


class Device(Memory):
    """An open GPU device. Use it from any thread; close it, or use it as a context manager.

    ``ledger`` knows the memory held, ``tuning`` the kernel variants in use, ``features`` what was requested and got.
    Make one with ``llamagpu.gpu.open``.
    """

    def __init__(self, adapter: Adapter, reason: str, *, baseline: bool = False, limit: int | None = None):
        self.adapter, self.reason = adapter, reason
        features = [] if baseline else [f for f in _WANTED_FEATURES if f in adapter.handle.features]
        limits = dict(_BASELINE)
        if not baseline:
            for key in ("max-storage-buffer-binding-size", "max-buffer-size"):
                limits[key] = adapter.handle.limits[key]
        with native.errors("opening the device"):
            self.handle = adapter.handle.request_device_sync(required_features=features, required_limits=limits)
        self.features = frozenset(features)
        self.max_binding: int = min(self.handle.limits["max-storage-buffer-binding-size"], 2**32 - 4)
        self.max_buffer: int = self.handle.limits["max-buffer-size"]
        self.max_workgroups: int = self.handle.limits["max-compute-workgroups-per-dimension"]
        self.ledger = Ledger(memory_limit(adapter.kind) if limit is None else limit)
        self.gate = Gate(self.handle, spin=adapter.kind != "software")
        self.thread = DeviceThread()
        self.pipelines = Pipelines(self.handle)
        self.staging = Staging(self)
        self._recorder: list[Call] | None = None
        self._closed = False
        self.fence = self.allocate(16, "fence")
        self.tuning, self.measured = Tuning(), False  # whether the tuning was measured
        _open_devices.add(self)
        self.subgroup_size = self._count_subgroup() if SUBGROUP in self.features else 0
        built_in = default_tuning(adapter.kind, self.features, self.subgroup_size)
        stored = None if baseline else stored_tuning(adapter, self.features, self.subgroup_size)
        self.tuning, self.measured = stored or built_in, stored is not None

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Device {self.adapter}{' closed' if self._closed else ''}>"

    # --- lifetime ---------------------------------------------------------------------------

    def close(self) -> None:
        """Free everything. What is queued is finished first; later use raises DeviceLostError."""
        if self._closed:
            return
        self._closed = True
        try:
            self.thread.call(self._destroy)
        except DeviceLostError:
            pass  # already gone
        self.thread.close()

    def _destroy(self) -> None:
        self.gate.fail(DeviceLostError("The device is closed.", "", "Open it again to use it."))
        for buffer in self.ledger.live():
            self.free(buffer)
        self.pipelines.clear()
        self.handle.destroy()

    def _count_subgroup(self) -> int:
        """Invocations of a subgroup, counted as drivers report a range; 0 where they are no neighbours."""
        out = self.empty((64,), "u32")
        self.dispatch(Program("subgroup_size"), 1, {}, {"out": out.part})
        sizes = out.numpy()
        out.free()
        return int(sizes[0]) if (sizes == sizes[0]).all() else 0

    # --- kernels ----------------------------------------------------------------------------

    def fold(self, groups: int) -> tuple[int, int]:
        """Workgroups as (x, y) within the limit for one dimension; kernels read ``y · X + x`` and leave the rest."""
        y = -(-groups // self.max_workgroups)
        x = -(-groups // y)
        if y > self.max_workgroups or groups < 1:
            raise KernelError(f"{groups} workgroups cannot be dispatched.")
        return x, y

    def dispatch(
        self,
        program: Program,
        groups: int,
        params: Mapping[str, float],
        bindings: Mapping[str, Part],
        work: int = 0,
        reads: int = 0,
    ) -> None:
        """Run a kernel now, or add it to the plan being recorded.

        Args:
            groups: workgroups, counted linearly; folded where a dimension's limit is passed.
            params: values for every field of the shader's ``struct Params``.
            bindings: a window for every storage variable, by its name in the shader.
            work: multiply-adds, for pacing long plans and for profiles.
            reads: bytes of weights or cache that it reads, for profiles.
        """
        linked = link(program)
        if set(params) != {name for name, _ in linked.params}:
            raise KernelError(f"{program.label}: params {sorted(params)} do not match {linked.params}.")
        names = {b.name for b in linked.bindings if b.kind != "uniform"}
        if names != set(bindings):
            raise KernelError(f"{program.label}: bindings {sorted(names ^ set(bindings))} are missing or not known.")
        codes = {"u32": "I", "i32": "i", "f32": "f"}
        packed = b"".join(struct.pack("<" + codes[kind], params[name]) for name, kind in linked.params)
        padded = packed.ljust(-(-len(packed) // 16) * 16, b"\0")
        call = Call(program, groups, padded, dict(bindings), work, reads)

        def run() -> None:
            if self._recorder is not None:
                self._recorder.append(call)
                return
            plan = Plan(self, [call])
            plan.run()
            plan.free()

        self.call(run)

    def record(self, forward: Callable[[], object]) -> Plan:
        """Call ``forward``; the kernels that it calls become a plan instead of running."""

        def make() -> Plan:
            if self._recorder is not None:
                raise KernelError("A plan is being recorded already.")
            calls: list[Call] = []
            self._recorder = calls
            try:
                forward()
            finally:
                self._recorder = None
            return Plan(self, calls)

        return self.call(make)


def open_device(device: str | Device = "auto", *, baseline: bool = False, memory_limit: int | None = None) -> Device:
    """Open an adapter (see ``choose_adapter``); a Device is returned as it is.

    Args:
        baseline: request WebGPU's default limits and no features, as a test of portability.
        memory_limit: bytes that buffers may take together; the default is what the machine has free.

    Raises:
        NoAdapterError: no adapter matches.
        DeviceLostError: the driver did not open it.
    """
    if isinstance(device, Device):
        return device
    adapter, reason = choose_adapter(device)
    return Device(adapter, reason, baseline=baseline, limit=memory_limit)


@atexit.register
def _close_all() -> None:
    for device in list(_open_devices):
        device.close()
