"""The GPU layer: adapters, devices, tensors, linked shaders, recorded plans. It knows no model.

from llamagpu import gpu, kernels
with gpu.open() as device:
    x, w = device.tensor(np.ones((2, 64), "f4")), device.tensor(np.ones((8, 64), "f4"))
    print(kernels.linear(x, w).numpy())
"""

from llamagpu.gpu.adapter import Adapter, Need, allowed_adapters, choose_adapter, fitting_adapter, list_adapters
from llamagpu.gpu.affine import Affine
from llamagpu.gpu.commands import CommandList, Copy, copy_rows
from llamagpu.gpu.device import Device
from llamagpu.gpu.dtypes import LONG_NAMES, dtype_name, narrow_bf16, widen_bf16
from llamagpu.gpu.events import Event
from llamagpu.gpu.gate import Slot
from llamagpu.gpu.ledger import Part
from llamagpu.gpu.limits import Capacity, adapter_capacity, device_capacity, parse_bytes
from llamagpu.gpu.linker import Linked, Program, link, shader_root
from llamagpu.gpu.native import Lost, version
from llamagpu.gpu.opening import open_device
from llamagpu.gpu.plan import Call, Plan
from llamagpu.gpu.readback import Readback
from llamagpu.gpu.recorder import Recorded, Recorder
from llamagpu.gpu.recovery import Resident
from llamagpu.gpu.symbolic import Recording, SymbolicDevice
from llamagpu.gpu.tensor import UPLOAD_ROWS, Tensor, affine_bytes, pack_rows, row_items, tensor_bytes
from llamagpu.gpu.tuning import Lanes, ReadTuning, TunedLanes, Tuning, default_tuning, variants
from llamagpu.gpu.tuning_store import adapter_key, cache_folder, store_tuning, tuning_path
from llamagpu.gpu.warm_up import WarmUp

open = open_device

__all__ = [
    "LONG_NAMES",
    "UPLOAD_ROWS",
    "Adapter",
    "Affine",
    "Call",
    "Capacity",
    "CommandList",
    "Copy",
    "Device",
    "Event",
    "Lanes",
    "Linked",
    "Lost",
    "Need",
    "Part",
    "Plan",
    "Program",
    "ReadTuning",
    "Readback",
    "Recorded",
    "Recorder",
    "Recording",
    "Resident",
    "Slot",
    "SymbolicDevice",
    "Tensor",
    "TunedLanes",
    "Tuning",
    "WarmUp",
    "adapter_capacity",
    "adapter_key",
    "affine_bytes",
    "allowed_adapters",
    "cache_folder",
    "choose_adapter",
    "copy_rows",
    "default_tuning",
    "device_capacity",
    "dtype_name",
    "fitting_adapter",
    "link",
    "list_adapters",
    "narrow_bf16",
    "open",
    "open_device",
    "pack_rows",
    "parse_bytes",
    "row_items",
    "shader_root",
    "store_tuning",
    "tensor_bytes",
    "tuning_path",
    "variants",
    "version",
    "widen_bf16",
]
