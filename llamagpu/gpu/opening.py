"""Opening devices, and closing those that are still open when Python ends."""

from __future__ import annotations

import atexit
import weakref

from llamagpu.errors import UsageError
from llamagpu.gpu.adapter import Need, choose_adapter, same_adapter
from llamagpu.gpu.device import Device
from llamagpu.gpu.native import Lost

_open_devices: weakref.WeakSet[Device] = weakref.WeakSet()


def open_device(
    device: str | Device = "auto",
    *,
    baseline: bool = False,
    memory_limit: int | str | None = None,
    need: Need | None = None,
    recover: bool = True,
) -> Device:
    """Open an adapter (see ``choose_adapter``, also for ``need``); a Device is returned as it is.

    Args:
        baseline: request WebGPU's default limits and no features, as a test of portability.
        memory_limit: the most bytes that buffers may take together (see ``parse_bytes``), within the adapter's memory.
        recover: whether a lost device is opened again, with the models on it; tensors are lost.

    Raises:
        UsageError: a memory limit is given for a device that is open.
        NoAdapterError: no adapter matches.
        DeviceLostError: the driver did not open it.
    """
    if isinstance(device, Device):
        if memory_limit is not None:
            raise UsageError("An open device has its memory limit already.", "", "Give it to gpu.open.")
        return device
    adapter, reason = choose_adapter(device, need=need, most=memory_limit)

    def make() -> Device:
        return Device(adapter, reason, baseline=baseline, limit=memory_limit, recover=recover)

    try:
        opened = make()
    except Lost:  # lost while it was opened
        adapter = same_adapter(adapter)
        opened = make()
    _open_devices.add(opened)
    return opened


@atexit.register
def _close_all() -> None:
    """Close the devices that are still open. Only daemon threads still run, and they are about to end. Those that wait
    for tokens get no error, because they would only print it."""
    for device in list(_open_devices):
        device.thread.stop_steps()
        device.close()
