"""The choice of an adapter by stand-ins, its memory as far as it is known, and adapters that lack features."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamagpu import LLM, gpu
from llamagpu.cli.main import run
from llamagpu.errors import NoAdapterError, OutOfMemoryError
from llamagpu.gpu import Capacity, adapter, limits, probe
from llamagpu.gpu.adapter import WANTED_FEATURES, Adapter, choose_adapter
from llamagpu.gpu.tuning import SHADER_F16, SHADER_INT64, SUBGROUP

GB = 10**9
CARD = (0x1002, 0x73BF)
LIMITS = {"max-storage-buffer-binding-size": 2**31 - 1, "max-buffer-size": 2**40}


def stand_in(index: int, kind: str, backend: str = "Vulkan") -> Adapter:
    info = {"vendor_id": CARD[0], "device_id": CARD[1]}
    return Adapter(index, f"a {kind} one", kind, backend, "", SimpleNamespace(info=info, limits=LIMITS))


MACHINE = [stand_in(0, "software"), stand_in(1, "integrated"), stand_in(2, "discrete"), stand_in(3, "other", "OpenGL")]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, int], None]:
    """A function that sets what the discrete GPU and the host have, in GB."""
    monkeypatch.delenv("LLAMAGPU_MEMORY_LIMIT", raising=False)

    def have(discrete: int | None, host: int) -> None:
        own = None if discrete is None else discrete * GB
        monkeypatch.setattr(limits, "video_memory", lambda vendor, product: own if (vendor, product) == CARD else None)
        monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: SimpleNamespace(available=host * GB))

    return have


def needs(size: int) -> Callable[[Capacity], None]:
    def need(capacity: Capacity) -> None:
        if capacity.free is not None and size > capacity.free:
            raise OutOfMemoryError(f"It needs {size // GB} GB, and {capacity.name} has {capacity.free / GB:.1f}.")

    return need


# --- the choice ------------------------------------------------------------------------------


def test_a_model_goes_where_it_fits(
    memory: Callable[[int | None, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Discrete before integrated before software, but never one that cannot hold what another can."""

    def chosen(size: int, device: str = "auto", **more: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "llamagpu"):
            return choose_adapter(device, MACHINE, needs(size * GB), **more)[0].kind

    memory(4, 32)
    assert (chosen(3), caplog.messages) == ("discrete", [])
    assert chosen(5) == "integrated"
    (line,) = caplog.messages
    assert line.startswith("using a integrated one (integrated, Vulkan); a discrete one")
    assert "needs 5 GB" in line
    assert "\n" not in line
    with pytest.raises(OutOfMemoryError, match="a discrete one"):
        chosen(5, "discrete")
    with pytest.raises(OutOfMemoryError, match=r"one \(\w+, Vulkan\) has 28\.8"):
        chosen(30)  # the error of an adapter with the most memory
    with pytest.raises(OutOfMemoryError, match=r"has 2\.0"):
        chosen(3, most="2GB")
    memory(24, 8)
    assert chosen(20) == "discrete"
    memory(None, 8)
    assert (chosen(20), caplog.messages) == ("discrete", [])  # nobody knows that it would not fit
    assert chosen(3, "software") == "software"


def test_models_choose_their_adapter(
    memory: Callable[[int | None, int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``LLM`` passes a discrete GPU over that is too small for it. Here the other one is the real adapter."""
    real, _ = choose_adapter()
    small = replace(stand_in(7, "discrete"), name="tiny")
    monkeypatch.setattr(adapter, "list_adapters", lambda: [small, replace(real, kind="software")])
    monkeypatch.setattr(limits, "video_memory", lambda vendor, product: 6_000_000)
    with caplog.at_level(logging.WARNING, "llamagpu"), LLM(context=512) as llm:
        assert llm.device.adapter.name == real.name
        assert "tiny (discrete, Vulkan) was passed over: The model does not fit: it needs 11.5 MB" in llm.device.reason
    assert any("tiny" in line for line in caplog.messages)


def test_the_variable_names_an_adapter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLAMAGPU_DEVICE", "integrated")
    assert choose_adapter(adapters=MACHINE) == (MACHINE[1], "LLAMAGPU_DEVICE=integrated was asked for")
    assert choose_adapter("discrete", MACHINE)[0] is MACHINE[2]  # an argument comes first
    assert choose_adapter("3", MACHINE)[0] is MACHINE[3]
    monkeypatch.setenv("LLAMAGPU_DEVICE", "auto")
    assert choose_adapter(adapters=MACHINE)[0] is MACHINE[2]
    monkeypatch.setenv("LLAMAGPU_DEVICE", "geforce")
    with pytest.raises(NoAdapterError, match="LLAMAGPU_DEVICE=geforce"):
        choose_adapter(adapters=MACHINE)
    assert run(["generate", "a"]) == 5
    assert "LLAMAGPU_DEVICE=geforce" in capsys.readouterr().err


def test_a_software_adapter_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(adapter, "_warned", False)
    only = MACHINE[:1]
    with caplog.at_level(logging.WARNING, "llamagpu"):
        choose_adapter(adapters=only)  # the tests ask for any adapter
        monkeypatch.delenv("LLAMAGPU_DEVICE")
        choose_adapter("software", only)
        choose_adapter(adapters=MACHINE)
        assert caplog.messages == []
        for _ in range(2):
            choose_adapter(adapters=only)
    (line,) = caplog.messages
    assert "software adapter a software one" in line
    assert "slow" in line
    assert "\n" not in line


# --- memory ----------------------------------------------------------------------------------


def test_amdgpu_tells_its_memory(tmp_path: Path) -> None:
    for name, vendor, product, used in (("card0", "0x1002", "0x73bf", 1), ("card1", "0x1002", "0x1638", 0)):
        folder = tmp_path / name / "device"
        folder.mkdir(parents=True)
        values = {"vendor": vendor, "device": product, "mem_info_vram_total": 16 * GB, "mem_info_vram_used": used * GB}
        for file, value in values.items():
            (folder / file).write_text(f"{value}\n")
    (tmp_path / "card2" / "device").mkdir(parents=True)  # another driver
    assert list(probe._amdgpu(tmp_path, *CARD)) == [15 * GB]
    assert list(probe._amdgpu(tmp_path, 1, 2)) == []


class Nvml:
    """Stands in for NVML: two GPUs."""

    GPUS = ((0x2684, 20 * GB), (0x2204, 9 * GB))
    fails = ""

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.fails:
                return 999
            target = getattr(arguments[-1], "_obj", None) if arguments else None
            if name == "nvmlDeviceGetCount_v2":
                target.value = len(self.GPUS)
            elif name == "nvmlDeviceGetHandleByIndex_v2":
                target.value = arguments[0] + 1
            elif name == "nvmlDeviceGetPciInfo_v3":
                target.pciDeviceId = self.GPUS[arguments[0].value - 1][0] << 16 | probe.NVIDIA
            elif name == "nvmlDeviceGetMemoryInfo":
                target.free = self.GPUS[arguments[0].value - 1][1]
            return 0

        return call


def test_nvidias_driver_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setattr(probe.ctypes, "CDLL", lambda name: nvml)
    assert probe.video_memory(probe.NVIDIA, 0x2204) == 9 * GB
    assert probe.video_memory(probe.NVIDIA, 0x2684) == 20 * GB
    assert probe.video_memory(probe.NVIDIA, 0x1111) is None
    nvml.fails = "nvmlDeviceGetMemoryInfo"
    assert probe.video_memory(probe.NVIDIA, 0x2204) is None

    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(probe.ctypes, "CDLL", missing)
    assert probe.video_memory(probe.NVIDIA, 0x2204) is None


BYTES = (24 * GB).to_bytes(8, "little")  # as some drivers store it


class Registry:
    """Stands in for ``winreg``: the keys of display drivers."""

    HKEY_LOCAL_MACHINE = 0
    KEYS: tuple[dict[str, Any], ...] = (
        {"MatchingDeviceId": r"PCI\VEN_1002&DEV_73BF&SUBSYS_0", "HardwareInformation.qwMemorySize": 16 * GB},
        {
            "MatchingDeviceId": r"pci\ven_10de&dev_2684",
            "HardwareInformation.qwMemorySize": (24 * GB).to_bytes(8, "little"),
        },
        {"MatchingDeviceId": r"pci\ven_8086&dev_46a6"},
        {},
    )

    @contextmanager
    def OpenKey(self, parent: Any, name: Any) -> Iterator[Any]:
        if parent == 0:
            yield self.KEYS
        else:
            yield self.KEYS[int(name)]

    def QueryInfoKey(self, key: Any) -> tuple[int]:
        return (len(key),)

    def EnumKey(self, key: Any, index: int) -> str:
        return f"{index:04}"

    def QueryValueEx(self, key: dict[str, Any], name: str) -> tuple[Any]:
        if name not in key:
            raise OSError(name)
        return (key[name],)


def test_windows_registry_tells_the_memory() -> None:
    assert list(probe._windows(Registry(), *CARD)) == [16 * GB]
    assert list(probe._windows(Registry(), probe.NVIDIA, 0x2684)) == [24 * GB]
    assert list(probe._windows(Registry(), 0x8086, 0x46A6)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the files are Linux's")
def test_unknown_memory_is_unknown() -> None:
    assert probe.video_memory(0, 0) is None
    assert limits.memory_limit(replace(stand_in(0, "discrete"), handle=SimpleNamespace(info={}))) is None


# --- features --------------------------------------------------------------------------------


class Without:
    """The handle of an adapter, without some features."""

    def __init__(self, handle: Any, missing: frozenset[str]):
        self._handle, self.features = handle, set(handle.features) - missing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


TIMESTAMPS = frozenset(f for f in WANTED_FEATURES if "timestamp" in f)
MISSING = {
    "no float16 or int64": frozenset({SHADER_F16, SHADER_INT64}),
    "no subgroups": frozenset({SUBGROUP}),
    "no timestamps": TIMESTAMPS,
    "all of them": frozenset(WANTED_FEATURES),
}


SOME = [pytest.param(v, id=k, marks=() if "all" in k else pytest.mark.slow) for k, v in MISSING.items()]


@pytest.mark.parametrize("missing", SOME)
def test_missing_features_change_no_token(missing: frozenset[str], story: LLM) -> None:
    real, expected = story.device.adapter, story.generate("Once upon", max_tokens=8).token_ids
    poor = replace(real, handle=Without(real.handle, missing))
    with gpu.Device(poor, "a test") as device:
        assert device.features == story.device.features - missing
        with LLM(device=device, context=64) as llm:
            assert llm.generate("Once upon", max_tokens=8).token_ids == expected


@pytest.mark.slow
@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
@pytest.mark.parametrize("dtype", ["float16", "int4"])
def test_missing_features_with_other_weights(missing: frozenset[str], dtype: str, story: LLM) -> None:
    """Also in the tuning of GPUs, which uses them, and with WebGPU's default limits."""
    real = story.device.adapter
    with LLM(dtype=dtype, device=story.device) as expected:
        token_ids = expected.generate("One day, a cat", max_tokens=20).token_ids
    for kind, baseline in (("discrete", False), (real.kind, False), (real.kind, True)):
        poor = replace(real, handle=Without(real.handle, missing), kind=kind)
        with gpu.Device(poor, "a test", baseline=baseline) as device, LLM(dtype=dtype, device=device) as llm:
            assert llm.generate("One day, a cat", max_tokens=20).token_ids == token_ids
