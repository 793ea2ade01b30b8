"""A device: opened, closed, lost and opened again; it runs kernels and recorded plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llamagpu.errors import DeviceLostError, Unique
from llamagpu.gpu.adapter import Adapter, same_adapter
from llamagpu.gpu.events import Event, require_timestamps
from llamagpu.gpu.ledger import Ledger
from llamagpu.gpu.limits import memory_limit
from llamagpu.gpu.linker import Program
from llamagpu.gpu.memory import Memory
from llamagpu.gpu.pipelines import Pipelines
from llamagpu.gpu.plan import Call, Plan
from llamagpu.gpu.recorder import Recorder
from llamagpu.gpu.recovery import Recovery
from llamagpu.gpu.thread import DeviceThread
from llamagpu.gpu.tuning import SUBGROUP, Tuning, default_tuning
from llamagpu.gpu.tuning_store import stored_tuning

T = TypeVar("T")


class Device(Recorder[Plan], Unique):
    """An open GPU device. Use it from any thread; close it, or use it as a context manager.

    Attributes:
        features: the optional features that were requested and granted.
        recovery: opens it again after a loss.
        measured: whether the default tuning was measured on this adapter.
        subgroup_size: counted on the device; 0 where lanes are not contiguous or subgroups are missing.

    Make one with ``llamagpu.gpu.open``.
    """

    def __init__(
        self,
        adapter: Adapter,
        reason: str,
        *,
        baseline: bool = False,
        limit: int | str | None = None,
        recover: bool = True,
    ):
        super().__init__(Tuning())
        self.adapter, self.reason, self._baseline = adapter, reason, baseline
        handle, self.features = adapter.request_device(baseline)
        self.ledger = Ledger(memory_limit(adapter, limit))
        self.recovery = Recovery(recover)
        self.thread = DeviceThread(self.recovery.handle)
        try:
            self._set_up(handle, baseline)
        except BaseException:
            self.thread.close()
            raise
        self.recovery.watch(self)

    def _set_up(self, handle: Any, baseline: bool) -> None:
        adapter = self.adapter
        self.memory = Memory(handle, adapter, self.ledger, self.thread)
        self.pipelines = Pipelines(handle)
        self._closed, self.measured = False, False
        self.subgroup_size = self._count_subgroup() if SUBGROUP in self.features else 0
        stored = None if baseline else stored_tuning(adapter, self.features, self.subgroup_size)
        self._default = stored or default_tuning(adapter.kind, self.features, self.subgroup_size)
        self.measured = stored is not None

    def __repr__(self) -> str:
        return f"<Device {self.adapter}{' closed' if self._closed else ''}>"

    # --- lifetime ---------------------------------------------------------------------------

    def close(self) -> None:
        """Finish queued work and free everything. Later use raises DeviceLostError."""
        if self._closed:
            return
        self._closed = True
        try:
            self.thread.call(self._destroy)
        except DeviceLostError:
            pass  # already gone
        self.thread.close()

    def _destroy(self) -> None:
        self.memory.gate.fail(DeviceLostError("The device is closed.", "", "Open it again to use it."))
        self.pipelines.clear()
        self.memory.destroy()

    def reopen(self) -> None:
        """Open the adapter again after a loss, on the device thread. All buffers, plans and pipelines are gone.

        Raises:
            NoAdapterError: the adapter is not there any more.
            DeviceLostError: the driver did not open it, or it has changed.
        """
        self.pipelines.clear()
        self.memory.reopen(self._request_again)
        self.pipelines = Pipelines(self.memory.handle)

    def _request_again(self) -> tuple[Any, Adapter]:
        self.adapter = same_adapter(self.adapter)
        handle, features = self.adapter.request_device(self._baseline)
        if features != self.features:
            raise DeviceLostError("The adapter has other features now.", ", ".join(sorted(features ^ self.features)))
        return handle, self.adapter

    def call(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` on the device thread and return its result."""
        return self.thread.call(fn)

    def event(self) -> Event:
        """A point in the queue that can be timed by the GPU's clock.

        Raises:
            KernelError: the device has no timestamp queries.
        """
        require_timestamps(self.features, self.adapter)
        return Event(self.memory)

    def _count_subgroup(self) -> int:
        """Size of a subgroup, counted because drivers report a range; 0 if its lanes are not contiguous."""
        out = self.empty((64,), "u32")
        self.dispatch(Program("subgroup_size"), 1, {}, {"out": out.part})
        sizes = out.numpy()
        out.free()
        return int(sizes[0]) if (sizes == sizes[0]).all() else 0

    # --- kernels ----------------------------------------------------------------------------

    def _run(self, call: Call) -> None:
        trusted = self.tuning.trusted

        def run() -> None:
            plan = Plan(self.memory, self.pipelines, [call], trusted)
            plan.run()
            plan.free()

        self.call(run)

    def _recorded(self, calls: list[Call]) -> Plan:
        trusted = self.tuning.trusted
        return self.call(lambda: Plan(self.memory, self.pipelines, calls, trusted))
