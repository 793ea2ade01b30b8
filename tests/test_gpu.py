"""The GPU layer: adapters, tensors, ledger, linker, plans, the gate, errors."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from llamagpu import gpu, kernels
from llamagpu.errors import DeviceLostError, KernelError, NoAdapterError, OutOfMemoryError
from llamagpu.gpu import narrow_bf16, native, widen_bf16
from llamagpu.gpu.adapter import Adapter
from llamagpu.gpu.linker import Program, link
from llamagpu.gpu.plan import fold
from llamagpu.gpu.tensor import Part, Tensor, pack_rows, unpack_rows
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.matmul import matmul_nt
from llamagpu.kernels.matvec import matvec
from llamagpu.kernels.step import step_rows


def adapter(index: int, kind: str, backend: str = "Vulkan", name: str = "card") -> Adapter:
    return Adapter(index, name, kind, backend, "", SimpleNamespace())


# --- adapters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("auto", 2),
        ("0", 0),
        ("software", 1),
        ("cpu", 1),
        ("integrated", 3),
        ("opengl", 0),
        ("dx12", 4),
        ("radeon", 4),
        ("RADEON", 4),
    ],
)
def test_adapter_rule(request_: str, expected: int) -> None:
    """Discrete before integrated before software, Vulkan before DX12, OpenGL only when asked for."""
    found = [
        adapter(0, "discrete", "OpenGL"),
        adapter(1, "software"),
        adapter(2, "discrete"),
        adapter(3, "integrated"),
        adapter(4, "discrete", "D3D12", "Radeon"),
    ]
    chosen, reason = gpu.choose_adapter(request_, found)
    assert chosen.index == expected
    assert reason


def test_adapter_errors_suggest_a_remedy() -> None:
    with pytest.raises(NoAdapterError, match="mesa-vulkan-drivers"):
        gpu.choose_adapter("auto", [])
    with pytest.raises(NoAdapterError, match="mesa-vulkan-drivers"):
        gpu.choose_adapter("auto", [adapter(0, "software", "OpenGL")])
    with pytest.raises(NoAdapterError, match="This machine has 0: card"):
        gpu.choose_adapter("geforce", [adapter(0, "software")])


# --- tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "u32"])
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 1), (5, 7), (2, 3, 5), (4, 8)])
def test_tensors_round_trip(device: gpu.Device, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    tensor = device.tensor(values, dtype)
    assert tensor.nbytes % 16 == 0
    assert np.array_equal(tensor.numpy(), values)
    tensor.write(values + 1)
    assert np.array_equal(tensor.numpy(), values + 1)
    tensor.free()


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 3.3895313892515355e38], np.float32)
    assert np.array_equal(widen_bf16(narrow_bf16(values))[:4], np.array([1.0, 1.0, 1.015625, -2.5], np.float32))
    rng = np.random.default_rng(0)
    x = rng.standard_normal(10000).astype(np.float32)
    assert np.abs(widen_bf16(narrow_bf16(x)) / x - 1).max() <= 2.0**-8


def test_rows_are_padded_with_zeros() -> None:
    packed = pack_rows(np.ones((2, 3), np.float32), "f16")
    assert packed.shape == (2, 16)
    assert not packed[:, 6:].any()
    assert np.array_equal(unpack_rows(packed.tobytes(), (2, 3), "f16"), np.ones((2, 3)))


def test_tensors_beyond_the_binding_limit_are_split(device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor is split by rows, and kernels that take weights process every part."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((100, 20)).astype(np.float32)
    x = device.tensor(rng.standard_normal((9, 20)).astype(np.float32))
    whole = device.tensor(w)
    monkeypatch.setattr(device.memory, "max_binding", 33 * 80)
    cut = device.tensor(w)
    monkeypatch.undo()
    assert [p.rows for p in cut.parts] == [32, 32, 32, 4]  # whole groups of four rows
    assert np.array_equal(cut.numpy(), w)
    assert np.array_equal(matmul_nt(x, cut).numpy(), matmul_nt(x, whole).numpy())
    assert np.array_equal(matvec(x.head(3), cut).numpy(), matvec(x.head(3), whole).numpy())
    rows = device.tensor(step_rows([0, 33, 65, 66, 99], 0), "u32")
    assert np.array_equal(embedding(cut, rows).numpy(), w[[0, 33, 65, 66, 99]])
    monkeypatch.setattr(device.memory, "max_binding", 64)
    with pytest.raises(OutOfMemoryError, match="binding limit"):
        device.tensor(w)


@pytest.mark.slow
def test_head_beyond_128_mib(baseline: gpu.Device) -> None:
    """A Llama 3 vocabulary in float32 exceeds the guaranteed binding limit: 128,256 × 576."""
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((128256, 576), np.float32), rng.standard_normal((1, 576), np.float32)
    tensor = baseline.tensor(w)
    assert len(tensor.parts) == 3
    got = matvec(baseline.tensor(x), tensor).numpy().astype(np.float64)
    expected = x.astype(np.float64) @ w.T.astype(np.float64)
    assert (np.abs(got - expected) <= 2e-6 * (np.abs(x) @ np.abs(w).T)).all()
    rows = baseline.tensor(step_rows([0, 58253, 58254, 128255], 0), "u32")
    assert np.array_equal(embedding(tensor, rows).numpy(), w[[0, 58253, 58254, 128255]])
    tensor.free()


# --- memory --------------------------------------------------------------------------------


def test_ledger_counts_and_nothing_leaks(device: gpu.Device) -> None:
    before = device.ledger.held()
    with device.ledger.tracking() as made:
        tensor = device.empty((1000, 10), purpose="weights")
    assert device.ledger.held() - before == tensor.nbytes == 1000 * 48
    assert [b.size for b in made] == [48000]
    assert device.ledger.by_purpose()["weights"] >= 48000
    tensor.free()
    tensor.free()
    assert device.ledger.held() == before


def test_dropped_tensors_are_freed(device: gpu.Device) -> None:
    before = device.ledger.held("data")
    for _ in range(5):
        kernels.add(device.tensor(np.ones(1000)), device.tensor(np.ones(1000))).numpy()
    assert device.ledger.held("data") == before


@pytest.mark.parametrize("values", [[-1, 2], [2**40], [1j], None, "abc", [[1], [1, 2]]])
def test_values_that_cannot_be_a_tensor(device: gpu.Device, values: object) -> None:
    with pytest.raises(KernelError):
        device.tensor(values)
    with pytest.raises(KernelError, match="Unknown dtype"):
        device.tensor([1.0], "f64")


def test_allocation_beyond_the_limit_is_refused() -> None:
    with gpu.open(memory_limit=1_000_000) as small:
        with pytest.raises(OutOfMemoryError, match=r"8\.0 MB for data do not fit: 1\.0 MB of memory are free"):
            small.empty((1000, 2000))
        assert small.ledger.held("data") == 0
        small.empty((10, 10)).free()


# --- linker --------------------------------------------------------------------------------


def test_link_puts_libraries_in_front_and_maps_lines() -> None:
    choices = {
        "weights": "f16_native",
        "fold": "plain",
        "source": "plain",
        "share": "subgroup",
        "norm": "none",
        "bias": "none",
        "order": "plain",
        "words": "u32",
        "epilogue": "store",
    }
    linked = link(Program("product_rows", tuple(choices.items()), (("VECTORS", 2),)))
    assert linked.code.startswith("enable f16;\nconst VECTORS: u32 = 2u;")
    assert not any(line.startswith("enable subgroups") for line in linked.code.splitlines())
    assert [b.name for b in linked.bindings if b.group == 1] == ["weights_data"]
    assert dict(linked.params)["k4"] == "u32"
    line = next(i for i, text in enumerate(linked.code.splitlines(), 1) if "fn share_sum" in text)
    assert linked.locate(f"error: wgsl:{line}:3 bad") == "error: shaders/lib/share/subgroup.wgsl:15 bad"


def test_targets_differ_in_the_head_alone() -> None:
    program = Program("layer_norm", (("reduce", "subgroup"),), (("WORKGROUP", 64),))
    native, browser = link(program), link(program, "browser")
    head = "enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n"
    assert browser.code == head + native.code
    assert (browser.bindings, browser.params) == (native.bindings, native.params)
    assert browser.locate("wgsl:9:1") == native.locate("wgsl:7:1")
    plain = Program("layer_norm", (("reduce", "workgroup"),), (("WORKGROUP", 64),))
    assert link(plain, "browser") == link(plain)


def test_link_errors_name_the_missing_part() -> None:
    with pytest.raises(KernelError, match=r"lib/weights\.wgsl"):
        link(Program("embedding"))
    with pytest.raises(KernelError, match="WORKGROUP"):
        link(Program("layer_norm", (("reduce", "workgroup"),)))
    with pytest.raises(KernelError, match=r"no shader nonsense\.wgsl"):
        link(Program("nonsense"))


def test_a_compile_error_names_file_and_line(device: gpu.Device, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamagpu.gpu import linker

    (tmp_path / "broken.wgsl").write_text("// one\n@compute @workgroup_size(1)\nfn main() { let x = ; }\n")
    monkeypatch.setattr(linker, "shader_root", lambda: tmp_path)
    with pytest.raises(KernelError, match=r"shaders/broken\.wgsl:3"):
        device.dispatch(Program("broken"), 1, {}, {})


def test_shader_files_follow_the_rules() -> None:
    may = {f"lib/{name}.wgsl" for name in ("reduce/subgroup", "gather/subgroup", "gather/transposed", "neighbours")}
    may.add("subgroup_size.wgsl")
    for path in gpu.shader_root().rglob("*.wgsl"):
        text = path.read_text()
        code = "\n".join(line.split("//")[0] for line in text.splitlines())
        assert "enable " not in code, path
        assert ("subgroup" in code) == (str(path.relative_to(gpu.shader_root())) in may), path
        assert len(text.splitlines()) <= 150, path
        prefix = path.stem if path.parent.name == "lib" else path.parent.name
        if "lib" in path.parts:
            names = [line.split("fn ")[1].split("(")[0] for line in code.splitlines() if line.startswith("fn ")]
            assert all(n.startswith(prefix) for n in names), path


# --- dispatch, plans, gate -----------------------------------------------------------------


def test_grids_fold(device: gpu.Device) -> None:
    assert fold(65535, 65535) == (65535, 1)
    x, y = fold(65536, 65535)
    assert y == 2
    assert x * y >= 65536
    with pytest.raises(KernelError):
        fold(2**33, 65535)


def test_dispatch_checks_names(device: gpu.Device) -> None:
    a = device.tensor(np.ones(4, "f4"))
    with pytest.raises(KernelError, match="bindings"):
        device.dispatch(Program("copy"), 1, {"count4": 1}, {"x": a.part})
    with pytest.raises(KernelError, match="params"):
        device.dispatch(Program("copy"), 1, {}, {"x": a.part, "out": a.part})


def test_a_plan_replays(device: gpu.Device) -> None:
    a, b = device.tensor(np.ones(8, "f4")), device.tensor(np.full(8, 2, "f4"))
    out, twice = device.empty((8,)), device.empty((8,))

    def forward() -> None:
        kernels.add(a, b, out)
        kernels.add(out, b, twice)

    plan = device.record(forward)
    device.call(plan.run)
    assert twice.numpy()[0] == 5
    a.write(np.full(8, 10, "f4"))
    device.call(plan.run)
    assert twice.numpy()[0] == 14
    plan.free()


def test_pacing_changes_nothing(device: gpu.Device) -> None:
    """A plan cut into many submissions gives the same result; a cancelled one stops between them."""
    buffers = [device.tensor(np.ones((1, 64), "f4"))] + [device.empty((1, 64)) for _ in range(6)]
    w = device.tensor(np.eye(64, dtype="f4") * 2)
    plan = device.record(lambda: [matvec(a, w, None, b) for a, b in itertools.pairwise(buffers)])
    submissions = device.memory.gate.submissions
    device.call(lambda: plan.run(segment_work=1.0))
    assert device.memory.gate.submissions - submissions == 6
    assert buffers[-1].numpy()[0, 0] == 64
    buffers[-1].write(np.zeros((1, 64), "f4"))
    device.call(lambda: plan.run(segment_work=1.0, cancelled=lambda: True))
    assert buffers[-1].numpy()[0, 0] == 0
    plan.free()


def test_the_gate_refuses_freed_buffers(device: gpu.Device) -> None:
    a, b, out = (device.tensor(np.ones(4, "f4")) for _ in range(3))
    plan = device.record(lambda: kernels.add(a, b, out) and None)
    a.free()
    with pytest.raises(KernelError, match="was freed"):
        device.call(plan.run)
    with pytest.raises(KernelError, match="was freed"):
        a.write(np.ones(4))
    plan.free()


def test_a_write_to_a_buffer_that_is_freed_before_the_submit(device: gpu.Device) -> None:
    for _ in range(3):
        device.tensor(np.ones(4, "f4")).free()
    device.synchronize()


def test_the_gate_refuses_a_mapped_slot(device: gpu.Device) -> None:
    def attempt() -> None:
        slot = device.memory.take_slot(16)
        slot.mapped = True
        try:
            device.memory.gate.submit(device.memory.encoder(), (), slot)
        finally:
            slot.mapped = False
            device.memory.give_slot(slot)

    with pytest.raises(KernelError, match="mapped"):
        device.call(attempt)


def test_reads_without_private_names(device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without wgpu-py's private names, reads use its public objects."""
    tensor = device.tensor(np.arange(10, dtype="f4"))
    monkeypatch.setattr(native, "has_raw", False)
    assert np.array_equal(tensor.numpy(), np.arange(10))


def test_calls_from_many_threads(device: gpu.Device) -> None:
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(10):
            a = device.tensor(np.full((3, 5), n, "f4"))
            if not (kernels.add(a, a).numpy() == 2 * n).all():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_closed_device_says_so() -> None:
    opened = gpu.open()
    tensor = opened.tensor(np.ones(4))
    opened.close()
    opened.close()
    with pytest.raises(DeviceLostError, match="closed"):
        tensor.numpy()
    with pytest.raises(DeviceLostError, match="closed"):
        opened.tensor(np.ones(4))


LOSS = """
import numpy as np
from llamagpu import gpu, kernels
from llamagpu.errors import DeviceLostError
device = gpu.open(recover=False)
other = gpu.open()
a = device.tensor(np.ones((2, 8), "f4"))
plan = device.record(lambda: kernels.add(a, a, device.empty((2, 8))) and None)
event, commands = device.event(), gpu.CommandList(device.memory, [plan], 1e9)
event.record()
device.call(commands.run)
read = a.numpy_async()
device.call(device.memory.handle.destroy)
attempts = [a.numpy, lambda: device.call(plan.run), lambda: a.write(np.ones((2, 8))), device.synchronize,
            lambda: kernels.add(a, a), lambda: device.tensor(np.ones(3)), lambda: device.call(commands.run),
            event.record, event.synchronize, a.numpy_async, read.result]
for attempt in attempts:
    try:
        attempt()
    except DeviceLostError as e:
        print("lost:", str(e).splitlines()[0])
print(float(other.tensor(np.ones(4)).numpy().sum()))
device.close()
other.close()
"""


def test_a_lost_device_is_an_error_not_an_abort() -> None:
    """Every call into the driver raises an error once its device is lost. Another device keeps working."""
    done = subprocess.run([sys.executable, "-c", LOSS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["lost: The GPU device was lost."] * 11 + ["4.0"]


def test_importing_the_package_does_not_import_wgpu() -> None:
    code = "import sys, llamagpu, llamagpu.cli.main; print('wgpu' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_windows_start_at_aligned_offsets(device: gpu.Device) -> None:
    arrays = [np.arange(n, dtype="f4") for n in (3, 64, 65, 1)]
    tensors = device.windows(arrays)
    assert len({t.part.buffer for t in tensors}) == 1
    assert all(t.part.offset % 256 == 0 for t in tensors)
    assert all(np.array_equal(t.numpy(), a) for t, a in zip(tensors, arrays, strict=True))
    part = tensors[0].part
    assert Tensor(device, (3,), "f32", (Part(part.buffer, part.offset, 16, 0, 1),)).numpy()[2] == 2


def test_private_names_exist() -> None:
    """The pinned wgpu has the direct path and the trusted mode. Only this test notices a fall-back."""
    assert native.has_raw
    assert native.has_trusted
