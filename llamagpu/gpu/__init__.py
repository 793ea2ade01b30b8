"""The GPU layer: adapters, devices, tensors, linked shaders, recorded plans. It knows no model.

from llamagpu import gpu, kernels
with gpu.open() as device:
    x, w = device.tensor(np.ones((2, 64), "f4")), device.tensor(np.ones((8, 64), "f4"))
    print(kernels.matmul(x, w).numpy())
"""

from llamagpu.gpu.adapter import Adapter, choose_adapter, list_adapters
from llamagpu.gpu.affine import Affine
from llamagpu.gpu.device import Device, open_device
from llamagpu.gpu.dtypes import narrow_bf16, widen_bf16
from llamagpu.gpu.gate import Slot
from llamagpu.gpu.linker import Program, link, shader_root
from llamagpu.gpu.memory import UPLOAD_ROWS
from llamagpu.gpu.native import version
from llamagpu.gpu.plan import Plan
from llamagpu.gpu.profiles import profile_path, store_tuning
from llamagpu.gpu.tensor import Part, Tensor, pack_rows, row_items
from llamagpu.gpu.tuning import Lanes, Tuning, default_tuning, variants

open = open_device

__all__ = [
    "UPLOAD_ROWS",
    "Adapter",
    "Affine",
    "Device",
    "Lanes",
    "Part",
    "Plan",
    "Program",
    "Slot",
    "Tensor",
    "Tuning",
    "choose_adapter",
    "default_tuning",
    "link",
    "list_adapters",
    "narrow_bf16",
    "open",
    "open_device",
    "pack_rows",
    "profile_path",
    "row_items",
    "shader_root",
    "store_tuning",
    "variants",
    "version",
    "widen_bf16",
]
